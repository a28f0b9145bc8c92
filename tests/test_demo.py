"""The demo: a hole painted on a page is filled as inpaint.py would; every refusal is one message;
and in a real browser, if there is one, the pixels around the hole come back as they were."""
import base64
import io
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

import data
import inpaint
import masks
import methods
from helpers import photograph, save_weights
from support.cli import BadInput
from tools import demo

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ("--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync").split()


SIZE = 32


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_weights(tmp_path_factory.mktemp("weights"), SIZE)


@pytest.fixture(scope="module")
def model(weights):
    return demo.load(weights)


@pytest.fixture
def fill(model, tmp_path):
    """demo.fill of a file, with a hole that was painted or a family's name for one."""
    def call(path, hole, name="keep", steps=3, samples=2, seed=0, model=model):
        if hole in masks.FAMILIES:
            hole = demo.draw(hole, demo.read_photograph(path)[1].size)
        return demo.fill(model, tmp_path, path, hole, name, steps, samples, seed)
    return call


def stroke_of(size, *box):
    """A hole as paint.js sends it: a box in shares of the canvas for a photograph of this size."""
    width, height = demo.canvas_size(size)
    layer = Image.new("RGBA", (width, height))
    layer.paste(demo.PAINT, tuple(round(share * side) for share, side in
                                  zip(box, (width, height, width, height))))
    return demo.data_url(layer)


# ---- without a page ----------------------------------------------------------------------------

@pytest.mark.parametrize("size", [(156, 156), (1200, 900), (90, 200), (4, 3000), (9, 9)])
def test_a_hole_on_the_canvas_is_where_it_was_painted(size):
    """A quarter of the photograph is painted over on the canvas, whatever the photograph's size."""
    width, height = size
    assert max(demo.canvas_size(size)) == demo.CANVAS
    assert abs(np.log(width / height) - np.log(np.divide(*demo.canvas_size(size)))) < 0.01 or \
        min(demo.canvas_size(size)) == demo.THINNEST                 # without bands
    hole = demo.painted(stroke_of(size, 0, 0, 0.5, 0.5), size)
    assert hole.shape == (1, height, width)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    far = (y - height / 2).abs().gt(2) & (x - width / 2).abs().gt(2)      # from the painted edges
    assert (hole[0] == ((x < width / 2) & (y < height / 2)))[far].all()


@pytest.mark.parametrize("family", masks.FAMILIES)
def test_a_drawn_hole_survives_the_canvas(family):
    torch.manual_seed(0)
    hole = demo.painted(demo.draw(family, (300, 200)), (300, 200))
    assert 0.02 < hole[..., 50:250].mean() < 0.9 and not hole[..., :50].any() and \
        not hole[..., 250:].any()                                    # in the centred square


@pytest.mark.parametrize("hole", [None, "", stroke_of((156, 156), 0, 0, 0, 0)])
def test_no_hole_is_said(fill, hole):
    with pytest.raises(BadInput, match="no hole yet"):
        next(fill(None, hole))


def eps(path, size=(640, 640)):
    """A picture in PostScript, which Pillow gives to Ghostscript."""
    Image.new("RGB", size).save(path, "EPS")
    return path


@pytest.mark.parametrize("hole", ["data:image/png;base64,AAAA", "data:,x", "x" * 99, "base64,%%%%",
                                  stroke_of((90, 200), 0, 0, 1, 1), "jpeg", "eps", "text/plain"])
def test_a_hole_that_the_page_did_not_paint_is_refused(fill, tmp_path, hole):
    """Nothing is unpacked that is not of the canvas's size, and no other format is opened."""
    if hole in ("jpeg", "eps"):
        pixels = Image.new("RGB", (640, 640))
        pixels.save(tmp_path / "a", hole)
        hole = "data:image/png;base64," + base64.b64encode((tmp_path / "a").read_bytes()).decode()
    with pytest.raises(BadInput, match="not what this page paints"):
        next(fill(None, hole))


def test_postscript_under_another_name_never_reaches_its_interpreter(fill, monkeypatch, tmp_path):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("reached"))
    path = eps(tmp_path / "a.png", (64, 64))
    with pytest.raises(BadInput, match="a.png: not a readable image"):
        next(fill(path, stroke_of((64, 64), 0, 0, 1, 1)))


@pytest.mark.parametrize("stem", ["a photo", "-o"])                  # the other is no flag
def test_the_command_that_is_shown_makes_the_same_files(fill, weights, as_user, tmp_path, stem):
    """… as the page gives out, pixel for pixel; and each says so itself."""
    path = photograph(tmp_path / f"{stem}.jpg", 120, 90)
    *before, (state, pictures, command) = fill(path, "center", steps=4, seed=7)
    assert [Path(file).name for file, _ in pictures] == [
        f"{stem}_{end}.png" for end in ("input", "0", "1", "spread", "hole")]
    words = shlex.split(command)
    assert words[:2] == ["python", "inpaint.py"]
    status, printed, _ = as_user(inpaint, *words[2:], "--device", "cpu")     # beside the files
    assert status == 0
    for end in ("input", "0", "1", "hole"):
        ours, theirs = (Image.open(folder / f"{stem}_{end}.png") for folder in
                        (tmp_path, tmp_path / "out"))
        assert (np.asarray(ours) == np.asarray(theirs)).all()
        assert ours.text["command"] == command and ours.text["seed"] == "7"
        assert len(ours.text["weights"]) == 64


def test_known_pixels_are_the_photographs_and_the_hole_is_new(fill, tmp_path):
    path = photograph(tmp_path / "a.png", 150, 100)
    *_, (_, pictures, _) = fill(path, "random")
    given = np.asarray(Image.open(path))
    files = {Path(file).stem: np.asarray(Image.open(file)) for file, _ in pictures}
    known = files["a_hole"] == 0
    for k in range(2):
        assert (files[f"a_{k}"][known] == given[known]).all()
        assert (files[f"a_{k}"][~known] != given[~known]).any(axis=1).mean() > 0.9
    grey = files["a_spread"][known]
    assert (grey == grey[:, :1]).all() and files["a_spread"][~known].std() > 10


def pictures_of(shown):
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(found)))) for found in
            re.findall('base64,([^"]+)"', shown)]


def test_every_network_call_is_shown_and_the_last_is_the_end(fill, model):
    def slow(*seen):
        time.sleep(0.2)                                              # for the page to keep up
        return model.eps_model(*seen)
    states = [state for state, _, _ in fill(None, "center", steps=5,
                                            model=model._replace(eps_model=slow))]
    assert all(total == 5 for _, _, total, _ in states)
    calls = [call for _, call, *_ in states]
    assert calls[0] == 0 and calls[-1] == 5 and calls == sorted(calls) and len(set(calls)) > 2
    assert re.match(r"t = \d+ of 20", states[1][0])
    page = demo.chain(*states[1])
    assert '<progress max="5" value="1">' in page and "range" not in page
    assert [one.shape for one in pictures_of(page)] == [(SIZE, SIZE, 3)] * 4


def test_the_chain_can_be_looked_at_again_from_noise_to_the_fill(fill, model):
    """One frame a call, the last one shown; of longer chains FRAMES, of which the last is the end.
    A frame is x and x_0 of every sample; the last x is the fill, and the known pixels never change.
    """
    astronaut = inpaint.astronaut()
    *_, (state, _, _) = fill(None, "center", steps=6)
    frames, shown = state[3], demo.chain(*state)
    assert len(frames) == 6 and 'max="5" value="5"' in shown
    hidden = [" hidden" in one.partition(">")[0] for one in shown.split('<div class="frame"')[1:]]
    assert hidden == [True] * 5 + [False]
    first, last = (pictures_of(frame) for frame in (frames[0], frames[-1]))
    method = methods.find("keep", model.ddpm, model.eps_model, 6)
    hole = demo.painted(demo.draw("center", astronaut.size), astronaut.size)
    _, _, part, fills = inpaint.complete(
        method.inpaint, torch.from_numpy(np.array(astronaut)), hole, SIZE, 2, 0)
    known = part[0].numpy() == 0
    assert len(last) == 4 and all((last[k] == fills[k].numpy()).all() for k in range(2))
    assert (first[0][known] == last[0][known]).all() and (first[0] != last[0])[~known].mean() > 0.9
    for steps, number in ((demo.FRAMES, demo.FRAMES), (110, 18)):
        watch = demo.Watch(steps)
        for call in range(steps):
            watch(steps - call - 1, torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
        assert len(watch.film) in (number, number + 1) and "t = 0:" in watch.film[-1]


def test_thumbnails_of_a_large_network_keep_its_noise():
    x = torch.randn(3, 256, 256, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    (small,) = pictures_of(f'"{demo.thumbnail(x)}"')
    assert small.shape == (demo.THUMBNAIL, demo.THUMBNAIL, 3)
    assert small.std() == pytest.approx(data.to_uint8(x[None]).float().std().item(), rel=0.05)


@pytest.mark.parametrize("name", ["patchmatch", "biharmonic", "glcic"])
def test_a_method_without_the_chain_fills_once_and_its_bar_ends_full(fill, name):
    *_, (state, pictures, command) = fill(None, "center", name)
    assert [caption for _, caption in pictures] == ["original", "fill 0", "hole"]
    assert f"--method {name} --steps 3 --samples 1" in command and "1 fill, " in state[0]
    assert ("1 network call each" if name == "glcic" else "no network") in state[0]
    assert '<progress max="1" value="1">' in demo.chain(*state)


def test_the_methods_that_are_offered_need_no_training_images(model):
    assert [*model.ways] == [*demo.WAYS] and all(model.ways.values())
    assert not set(model.ways) & {"mean", "ridge", "scene_completion"}


def test_weights_that_know_no_hole_are_served_at_their_own_size(model, fill):
    """… and are said to know what they were trained on; ours, faces."""
    unaware = SimpleNamespace(knows_hole=False)
    assert [*demo.ways(model.ddpm, unaware)] == [name for name in demo.WAYS if name != "keep"]
    assert "32×32" in demo.knowledge(model) and "weights.pt" in demo.knowledge(model)
    assert str(Path(model.weights).parent) not in demo.knowledge(model)
    ours = demo.knowledge(model._replace(weights=inpaint.WEIGHTS, size=64))
    assert "faces" in ours and "64×64" in ours
    *_, (state, pictures, command) = fill(None, "center", "pigdm")
    assert "2 fills, 3 network calls each" in state[0] and f"--weights {model.weights}" in command


@pytest.mark.parametrize("asked, said", [
    ({"steps": 0}, "steps"), ({"steps": 21}, "steps"), ({"samples": 0}, "samples"),
    ({"samples": 9}, "samples"), ({"seed": -1}, "seed"), ({"seed": None}, "seed"),
    ({"steps": "3"}, "steps"), ({"samples": 2.5}, "samples"), ({"seed": [1]}, "seed"),
    ({"name": "nobody"}, "the method is one of keep"), ({"name": "keep@3"}, "the method is one of"),
    ({"name": "evil.py"}, "the method is one of"), ({"path": "gone.png"}, "open it again"),
    ({"path": "long.png"}, "long.png: no side may be longer than 8,192"),
    ({"path": "text.png"}, "text.png: not a readable image"),
    ({"path": "huge.png"}, "huge.png: not a readable image .*limit")])
def test_wrong_settings_and_files_are_said(fill, monkeypatch, tmp_path, asked, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500_000)
    Path("text.png").write_text("no image")
    Path("evil.py").write_text("open('ran', 'w')")
    photograph("huge.png", 1200, 900)
    Image.new("1", (8193, 9)).save("long.png")
    hole = stroke_of((156, 156), 0.2, 0.2, 0.6, 0.6)
    with pytest.raises(BadInput, match=said):
        list(fill(**{"path": None, "hole": hole, **asked}))
    assert not Path("ran").exists()


def test_a_thin_hole_is_said(fill, tmp_path):
    path = photograph(tmp_path / "a.png", 640, 640)
    *_, (state, _, _) = fill(path, stroke_of((640, 640), 0, 0.5, 1, 0.501))
    assert "too thin" in state[0]


def endless(watch, calls):
    """Work of 1,000 calls that begins, and how many of them it has made."""
    def work():
        for call in range(1000):
            calls.append(call)
            time.sleep(0.01)
            watch(call, torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
    return watch.during(work)


def test_when_the_page_closes_the_work_ends():
    watch, calls = demo.Watch(1000), []
    watched = endless(watch, calls)
    next(watched)
    watched.close()                                                  # waits for the thread
    ended = len(calls)
    time.sleep(0.05)
    assert ended == len(calls) < 100


def test_when_nobody_listens_any_more_the_work_ends():
    listening = iter([True] * 3)
    watch, calls = demo.Watch(1000, lambda: next(listening, False)), []
    with pytest.raises(BadInput, match="nobody was listening"):
        list(endless(watch, calls))
    ended = len(calls)
    time.sleep(0.05)
    assert ended == len(calls) < 100


def test_what_goes_wrong_in_the_thread_is_told():
    watch = demo.Watch()

    def work():
        raise BadInput("in the thread")
    with pytest.raises(BadInput, match="in the thread"):
        list(watch.during(work))


def test_two_at_once_do_not_mix(fill, tmp_path):
    """Interleaved step by step, each gets what it gets alone."""
    paths = [photograph(tmp_path / "a.png", 120, 90), None]

    def results(*paths):
        runs = zip_longest(*(fill(path, "center", seed=3) for path in paths))
        ends = [[found for found in run if found][-1] for run in zip(*runs)]
        return [np.asarray(Image.open(pictures[1][0])) for _, pictures, _ in ends]
    together = results(*paths)
    for path, result in zip(paths, together):
        assert (results(path)[0] == result).all()


@pytest.mark.parametrize("argv, said", [
    (["--port", "0"], "--port is from 1 to 65,535"), (["--weights", "none.pt"], "no such file"),
    (["--device", "abacus"], "--device abacus"), (["--host", "256.0.0.1"], "256.0.0.1"),
    ([], "pip install -r requirements-demo.txt")])
def test_bad_flags_are_one_line_and_status_2(as_user, weights, monkeypatch, argv, said):
    monkeypatch.setitem(sys.modules, "gradio", None)                 # as if it were not installed
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    port = str(free_port())
    status, printed, error = as_user(demo, "--weights", weights, "--port", port, *argv)
    assert status == 2 and said in error and error.count("\n") == 1 and not printed
    with socket.create_server(("127.0.0.1", int(port))):             # taken
        assert as_user(demo, "--weights", weights, "--port", port)[0] == 2


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


# ---- in a browser ------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def server(weights, tmp_path_factory):
    """demo.py as a process of its own; its address, and afterwards nothing left of it."""
    pytest.importorskip("gradio")
    folder, port = tmp_path_factory.mktemp("temporary"), free_port()
    environment = {**os.environ, "TMPDIR": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen([sys.executable, "-m", "tools.demo", "--weights", weights, "--port",
                                str(port)], env=environment, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    try:
        assert f"http://127.0.0.1:{port} " in process.stdout.readline()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said, said
    assert not list(folder.iterdir())                                # no upload, no result


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("no chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def visit(server, browser):
    """visit() is a page of a visitor of its own, set to two steps and one sample. What it asked of
    the network stays on this machine."""
    contexts, asked = [], []

    def call():
        contexts.append(browser.new_context(accept_downloads=True))
        page = contexts[-1].new_page()
        page.set_default_timeout(90_000)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(server)
        page.wait_for_function("document.querySelector('#editor canvas')?.width > 300")
        for label, value in (("Steps", 2), ("Samples", 1)):
            page.fill(f"input[type=number][aria-label*={label}]", str(value))
            page.keyboard.press("Tab")
        return page
    yield call
    for context in contexts:
        context.close()
    assert asked and all(url.startswith((server, "data:", f"blob:{server}")) for url in asked)


def test_it_listens_on_this_address_alone(server):
    port = int(server.rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port)).close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), timeout=5).close()


def stroke(page):
    """Paint a line across the middle of the photograph."""
    page.wait_for_timeout(3000)                                      # until the editor has drawn it
    box = page.locator("#editor canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 60, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=6)
    page.mouse.up()
    page.wait_for_timeout(1000)


def results(page, tmp_path, begin=lambda page: page.click("#fill")):
    """Press the button; {name: pixels} of all that can be downloaded, and the PNG's own words."""
    begin(page)
    page.wait_for_selector("#chain >> text=/1 fill .* s/")
    page.wait_for_selector("#files a")
    found = {}
    for link in page.locator("#files a").all():
        with page.expect_download() as download:
            link.click()
        download.value.save_as(tmp_path / "download")
        picture = Image.open(tmp_path / "download")
        assert picture.format == "PNG"
        found[download.value.suggested_filename] = np.asarray(picture)
    return found, picture.text


def said(page):
    """The message that the page shows; it is closed."""
    message = page.wait_for_selector(".toast-body").inner_text()
    page.click(".toast-close")
    page.wait_for_selector(".toast-body", state="detached")
    return message


def test_a_stroke_is_filled_and_all_else_comes_back_as_it_was(visit, tmp_path):
    page = visit()
    page.click("#fill")
    assert "no hole yet" in said(page)
    stroke(page)
    found, told = results(page, tmp_path)
    given, hole = np.asarray(inpaint.astronaut()), found["astronaut_hole.png"] == 255
    filled = found["astronaut_0.png"]
    assert 0.005 < hole.mean() < 0.2 and hole[83, 75:91].all()       # the middle
    assert (filled[~hole] == given[~hole]).all() and filled.shape == given.shape
    assert (filled[hole] != given[hole]).any(axis=1).mean() > 0.9
    assert told["command"].startswith("python inpaint.py --mask astronaut_hole.png")
    assert page.input_value("textarea, input[readonly], input[disabled]") == told["command"]


def test_a_photograph_of_ones_own_and_a_bad_one(visit, tmp_path):
    """Turned by EXIF and far from square; then files that are none, and the page goes on."""
    page, upload = visit(), "input[data-testid*=upload-button]"
    exif = Image.Exif()
    exif[0x0112] = 6                                                 # to be turned right by 90°
    path = photograph(tmp_path / "a photo.png", 300, 120, exif=exif)
    page.set_input_files(upload, path)
    page.wait_for_timeout(3000)
    page.click("text=center")
    large = io.BytesIO()
    Image.new("1", (8192, 8192)).save(large, "PNG")                  # 8 kB
    for name, content, message in (("a.png", b"a text", "a.png: not a readable image"),
                                   ("c.png", large.getvalue(), "exceeds limit"),
                                   ("b.png", bytes(demo.BYTES + 1), "exceed the maximum"),
                                   ("<b>.png", b"", "not a readable image")):
        (tmp_path / name).write_bytes(content)
        page.set_input_files(upload, tmp_path / name)
        assert message in said(page)
    page.wait_for_timeout(2000)
    found, told = results(page, tmp_path)
    given = np.asarray(Image.open(path).transpose(Image.ROTATE_270))
    hole = found["a photo_hole.png"] == 255
    assert given.shape == (300, 120, 3) and hole[90:210].any() and not hole[:89].any()
    assert (found["a photo_0.png"][~hole] == given[~hole]).all()
    assert (found["a photo_0.png"][hole] != given[hole]).any(axis=1).mean() > 0.9
    assert "'a photo.png' --mask 'a photo_hole.png'" in told["command"]


def test_two_visitors_at_once_each_get_their_own(visit, tmp_path):
    pages, paths = [visit(), visit()], []
    for page, (width, height) in zip(pages, ((120, 80), (60, 160))):
        paths.append(photograph(tmp_path / f"{width}.png", width, height))
        page.set_input_files("input[data-testid*=upload-button]", paths[-1])
    for page in pages:
        page.wait_for_timeout(3000)
        page.click("text=center")
        page.wait_for_timeout(3000)
    for page in pages:
        page.click("#fill")                                          # before either has ended
    for page, path in zip(pages, paths):
        found, _ = results(page, tmp_path, begin=lambda page: None)
        given, hole = np.asarray(Image.open(path)), found[f"{path.stem}_hole.png"] == 255
        assert len(found) == 2 and (found[f"{path.stem}_0.png"][~hole] == given[~hole]).all()


def test_stopped_it_can_be_begun_again(visit, tmp_path):
    page = visit()
    page.wait_for_timeout(3000)
    page.click("text=irregular")
    page.wait_for_timeout(3000)
    page.click("#fill", click_count=2)                               # as impatient people do
    page.click("text=Stop")
    found, _ = results(page, tmp_path)
    assert set(found) == {"astronaut_0.png", "astronaut_hole.png"}
