"""The demo: a hole painted on a page is filled as inpaint.py would; every refusal is one message;
and in a real browser, if there is one, the pixels around the hole come back as they were."""
import asyncio
import base64
import http.client
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

import data
import faces
import inpaint
import masks
import methods
import sharpen
from helpers import HANG, photograph, save_weights
from support.cli import BadInput
from tools import demo, guard
from worlds import sharpener_of_noise

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
        return demo.fill(model, lambda: tmp_path, path, hole, name, steps, samples, seed)
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
        min(demo.canvas_size(size)) == demo.SHORTEST                 # without bands
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


def test_a_hole_whose_header_claims_too_many_pixels_is_refused(fill):
    content = bytearray(base64.b64decode(stroke_of((90, 200), 0, 0, 1, 1).partition(",")[2]))
    content[16:24] = (30_000).to_bytes(4) * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)
    with pytest.raises(BadInput, match="not what this page paints"):
        next(fill(None, "data:image/png;base64," + base64.b64encode(content).decode()))


@pytest.mark.parametrize("hole", ["data:image/png;base64,AAAA", "data:,x", "x" * 99, "base64,%%%%",
                                  stroke_of((90, 200), 0, 0, 1, 1), "webp", "eps", "text/plain"])
def test_a_hole_that_the_page_did_not_paint_is_refused(fill, tmp_path, hole):
    """Nothing is unpacked that is not of the canvas's size, and no other format is opened."""
    if hole in ("webp", "eps"):
        pixels = Image.new("RGBA" if hole == "webp" else "RGB", (640, 640), demo.PAINT + "cc")
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


@pytest.mark.parametrize("own", [True, False])
def test_faces_are_looked_for_in_a_photograph_of_ones_own(fill, own, monkeypatch, tmp_path):
    def plan(hole, size, found, plan=inpaint.plan):
        seen.append(found)
        return plan(hole, size, found=found)
    seen, squares = [], [(20, 10, 60)]
    monkeypatch.setattr(faces, "find", lambda *_: (squares, False))
    monkeypatch.setattr(inpaint, "plan", plan)
    states = [state[0] for state, *_ in fill(photograph(tmp_path / "a.png", 150, 100) if own
                                             else None, "center")]
    assert seen == ([squares] if own else [()])
    assert (states[0] == "looking for faces …") == own


@pytest.mark.parametrize("none", [False, True])
def test_a_hole_without_a_face_is_said_if_the_network_can_tell(fill, model, monkeypatch, tmp_path,
                                                               none):
    monkeypatch.setattr(faces, "find", lambda *given: ([], none and given[3] == "one"))
    *_, (state, _, _) = fill(photograph(tmp_path / "a.png", 150, 100), "center",
                             model=model._replace(readout="one"))
    assert (faces.NONE in state[0]) == none


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
    At the end, fills and chain are in the same order.
    """
    astronaut = inpaint.astronaut()
    *_, (state, _, _) = fill(None, "center", steps=6, samples=4)
    frames, shown = state[3], demo.chain(*state)
    assert len(frames) == 6 and 'max="5" value="5"' in shown
    hidden = [" hidden" in one.partition(">")[0] for one in shown.split('<div class="frame"')[1:]]
    assert hidden == [True] * 5 + [False]
    first, last = (pictures_of(demo.as_html(*frame)) for frame in (frames[0], frames[-1]))
    method = methods.find("keep", model.ddpm, model.eps_model, 6)
    hole = demo.painted(demo.draw("center", astronaut.size), astronaut.size)
    _, [(_, _, part, fills)], order = inpaint.complete(
        method.inpaint, torch.from_numpy(np.array(astronaut)), hole, SIZE, 4, 0)
    known = part[0].numpy() == 0
    assert order.tolist() != [0, 1, 2, 3]
    assert len(last) == 8 and all((last[k] == fills[k].numpy()).all() for k in range(4))
    assert (first[0][known] == last[0][known]).all() and (first[0] != last[0])[~known].mean() > 0.9
    for steps, number in ((demo.FRAMES, demo.FRAMES), (110, 22)):
        watch = demo.Watch(steps)
        for call in range(steps):
            watch(steps - call - 1, torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
        assert len(watch.film) in (number, number + 1) and watch.film[-1][0] == 0


def test_fills_are_sharpened_where_the_network_has_a_sharpener(fill, model):
    """The chain goes on at the sharpener's size; methods without the network are as they were."""
    model = model._replace(sharpener=sharpener_of_noise(SIZE, 2 * SIZE), sharpen="two.pt",
                           made={**model.made, "sharpener": "its hash"})
    *steps, (state, pictures, command) = fill(None, "center", steps=6, model=model)
    assert Image.open(pictures[1][0]).text["sharpener"] == "its hash"
    told = [line for (line, *_), _, _ in steps]
    assert told[1].endswith(f" of {model.ddpm.T}") and told[-1].endswith(" of 300, sharpening")
    assert "after the step at t = " in demo.as_html(*state[3][0]) and "--sharpen two.pt" in command
    assert ", sharpening" not in demo.as_html(*state[3][0])
    assert " of 300, sharpening</figcaption>" in demo.as_html(*state[3][-1])
    assert f"2 fills, {6 + sharpen.CALLS} network calls each" in state[0]
    first, last = (pictures_of(demo.as_html(*state[3][k])) for k in (0, -1))
    assert first[0].shape == (SIZE, SIZE, 3) and last[0].shape == (2 * SIZE, 2 * SIZE, 3)
    assert f"{2 * SIZE}×{2 * SIZE}" in demo.knowledge(model)
    *_, (state, pictures, command) = fill(None, "center", "glcic", model=model)
    assert "1 fill, 1 network call each" in state[0] and "--sharpen" not in command
    assert "sharpener" not in Image.open(pictures[1][0]).text


def test_the_page_takes_a_sharpener_as_inpaint_does(weights):
    assert demo.load().sharpener and not demo.load(sharpened_by="none").sharpener
    with pytest.raises(BadInput, match="not a sharpener"):
        demo.load(weights, sharpened_by=weights)


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
    ({"path": "huge.png"}, "huge.png: more than 1 megapixels")])
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


def test_a_thin_hole_is_filled_in_several_windows_and_the_bar_ends_full(fill, tmp_path):
    path = photograph(tmp_path / "a.png", 640, 640)
    *_, ((status, done, total, _), _, _) = fill(path, stroke_of((640, 640), 0, 0.5, 1, 0.501))
    calls = int(re.search(r"(\d+) network calls each", status)[1])
    assert done == total == calls and calls >= 10 * 5 and "too thin" not in status


def endless(watch, calls):
    """Work of 1,000 calls, watched; what it has done."""
    def work():
        try:
            for call in range(1000):
                calls.append(call)
                time.sleep(0.05)
                watch(call, torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
        finally:
            calls.append("end")
    return watch.during(work)


def test_when_the_page_closes_the_work_ends():
    watch, calls = demo.Watch(1000), []
    watched = endless(watch, calls)
    next(watched)
    watched.close()                                                  # waits for the thread
    assert calls[-1] == "end" and len(calls) < 100


def test_when_nobody_listens_any_more_the_work_ends():
    listening = iter([True] * 3)
    watch, calls = demo.Watch(1000, lambda: next(listening, False)), []
    with pytest.raises(BadInput, match="nobody was listening"):
        list(endless(watch, calls))
    assert calls[-1] == "end" and len(calls) < 100


def test_a_fill_that_takes_too_long_ends(monkeypatch):
    monkeypatch.setattr(demo, "LONGEST", 0.5)
    watch, calls = demo.Watch(1000), []
    with pytest.raises(BadInput, match="takes over 0 minutes here: lower steps"):
        list(endless(watch, calls))
    assert calls[-1] == "end" and len(calls) < 100


def test_a_method_without_a_network_ends_at_its_next_window():
    """It makes no call of the network at which it could be ended."""
    watch, windows = demo.Watch(), []

    def inpaint(*given):
        windows.append(given)
        time.sleep(0.05)

    def work():
        for k in range(1000):
            watch.ending(inpaint)(k)
    listening = iter([True] * 2)
    watch.listens = lambda: next(listening, False)
    with pytest.raises(BadInput, match="nobody was listening"):
        list(watch.during(work))
    assert 0 < len(windows) < 100


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
    (["--weights", ""], "the setting weights is empty"),
    ([], "pip install -r requirements-demo.txt")])
def test_bad_flags_are_one_line_and_status_2(as_user, weights, monkeypatch, argv, said):
    monkeypatch.setitem(sys.modules, "gradio", None)                 # as if it were not installed
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    port = str(free_port())
    status, printed, error = as_user(demo, "--weights", weights, "--port", port, *argv)
    assert status == 2 and said in error and error.count("\n") == 1 and not printed
    printed = as_user(demo, "--weights", weights, "--port", port, "--host", "0.0.0.0")[2]
    assert guard.UNBOUNDED in printed                                # before it serves
    with socket.create_server(("127.0.0.1", int(port))):             # taken
        assert as_user(demo, "--weights", weights, "--port", port)[0] == 2


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory")])
def test_too_little_memory_is_said_on_the_page(error):
    gr = SimpleNamespace(Error=lambda said, **_: BadInput(said))
    with pytest.raises(BadInput, match="lower the samples, or reduce the photograph"):
        with demo.mistakes(gr):
            raise error


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


# ---- as a server -------------------------------------------------------------------------------

def wait_for(found, what):
    """Until found() is true; the clock only catches a hang, whose name is `what`."""
    end = time.monotonic() + HANG
    while not found():
        assert time.monotonic() < end, f"{what} did not come in {HANG} s"
        time.sleep(0.05)


def serving(folder, weights, *settings):
    """(process, port) of demo.py in a process of its own, when it serves; `settings` are lines of
    Python before it does."""
    port = free_port()
    code = "; ".join(["import sys", "from support import cli", "from tools import demo, guard",
                      *settings, "cli.run(demo.main)"])
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--weights", str(weights), "--port", str(port)], cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder), "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert f"http://127.0.0.1:{port} " in process.stdout.readline()
    return process, port


def ended(process, folder, number):
    """It ends at the first signal, leaves nothing, and never said more than a line at a time."""
    process.send_signal(number)
    wait_for(lambda: process.poll() is not None, "the server's end")
    said, _ = process.communicate()
    assert process.returncode == 130 and "Traceback" not in said, said
    assert not list(folder.iterdir())                                # no upload, no result


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    """The server's folder for temporary files."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def server(weights, temporary):
    """The address of a demo.py that serves, and afterwards nothing left of it."""
    pytest.importorskip("gradio")
    process, port = serving(temporary, weights)
    try:
        yield f"http://127.0.0.1:{port}"
        ended(process, temporary, signal.SIGTERM)
    finally:
        process.kill()


class Visitor:
    """Who talks to the server without a browser, as if through a proxy from the address `whose`;
    `session` is gradio's name of the visit."""

    def __init__(self, address, whose="10.0.0.1"):
        self.address, self.whose = address.removeprefix("http://"), whose
        self.session = f"v{next(COUNT)}"
        config = json.loads(self.ask("GET", "/config")[1])
        self.calls = {len(one["inputs"]): one["id"] for one in config["dependencies"]}
        self.calls |= {one["targets"][0][1]: one["id"] for one in config["dependencies"]
                       if one["targets"]}

    def ask(self, method, path, body=None, **headers):
        """(status, body). None in place of a header's value leaves the header away."""
        connection = http.client.HTTPConnection(self.address, timeout=HANG)
        headers = {"Host": self.address, "Content_Length": body and str(len(body)),
                   "X_Forwarded_For": self.whose, **headers}
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            if value is not None:
                connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(body)
        reply = connection.getresponse()
        found = reply.status, reply.read().decode()
        connection.close()
        return found

    def join(self, call, *data, event=None):
        body = {"data": data, "fn_index": self.calls.get(call, call), "session_hash": self.session,
                "event_data": event}
        return self.ask("POST", "/gradio_api/queue/join", json.dumps(body).encode(),
                        Content_Type="application/json")

    def listen(self, until="process_completed", heard=None):
        """The message that ends the call, whole, as text; `heard`, a list, gets every message."""
        heard = [] if heard is None else heard
        connection = http.client.HTTPConnection(self.address, timeout=HANG)
        connection.request("GET", f"/gradio_api/queue/data?session_hash={self.session}")
        for line in connection.getresponse():
            heard.append(line.decode())
            if f'"msg":"{until}"' in heard[-1]:
                connection.close()
                return line.decode()

    def told(self, call, *data, **more):
        status, reply = self.join(call, *data, **more)
        return self.listen() if status == 200 else reply

    def upload(self, *files):
        parts = [FORM % name.encode() + content + b"\r\n" for name, content in files]
        return self.ask("POST", "/gradio_api/upload", b"".join(parts) + b"--B--\r\n",
                        Content_Type="multipart/form-data; boundary=B")


COUNT = itertools.count()
FORM = b'--B\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n'
FILL = 6                                                             # the call with 6 inputs
HOLE = stroke_of((156, 156), 0.2, 0.2, 0.6, 0.6)


def test_it_listens_on_this_address_alone(server):
    port = int(server.rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port)).close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), timeout=5).close()


def test_only_the_pages_own_address_is_answered(server):
    """Neither another site's request, nor one under a name that was pointed at this machine."""
    visitor = Visitor(server)
    port = server.rpartition(":")[2]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LocalHost:{port}", f"[::1]:{port}"):
        assert visitor.ask("GET", "/", Host=host)[0] == 200
    for host in (f"evil.example:{port}", "127.0.0.1.evil.example", ""):
        assert visitor.ask("GET", "/", Host=host)[0] == 403, host
    body = FORM % b"a.png" + b"a\r\n--B--\r\n"
    for origin, status in ((server, 200), ("http://evil.example", 403), ("null", 403),
                           (f"http://localhost:{port}", 403)):
        assert visitor.ask("POST", "/gradio_api/upload", body, Origin=origin,
                           Content_Type="multipart/form-data; boundary=B")[0] == status, origin


@pytest.mark.parametrize("method, path, body, headers, status", [
    ("POST", "/gradio_api/component_server", b"{}", {}, 404),
    ("POST", "/gradio_api/call/start", b"{}", {}, 404),
    ("POST", "/gradio_api/run/predict", b"{}", {}, 404),
    ("DELETE", "/", None, {}, 404),
    ("GET", "/docs", None, {}, 404),
    ("GET", "/gradio_api/file=/etc/passwd", None, {}, 404),
    ("GET", "/gradio_api/file=files/../../../../etc/passwd", None, {}, 403),
    ("GET", "/gradio_api/file=http://127.0.0.1/", None, {}, 404),
    ("GET", "/gradio_api/proxy=http://127.0.0.1/", None, {}, 404),
    ("POST", "/gradio_api/upload", None, {"Transfer_Encoding": "chunked"}, 411),
    ("POST", "/gradio_api/upload", None, {}, 411),
    ("POST", "/gradio_api/upload", None, {"Content_Length": str(2 ** 26)}, 413),
    ("POST", "/gradio_api/queue/join", bytes(2 ** 20 + 1), {}, 413)])
def test_what_the_page_never_sends_is_refused_in_a_sentence(server, method, path, body, headers,
                                                            status):
    found, said = Visitor(server).ask(method, path, body, **headers)
    assert found == status and (" " in said and len(said) < 100), said


def test_many_files_at_once_are_bounded_as_a_whole(server):
    half = bytes(demo.BYTES // 2 + 5000)
    assert Visitor(server).upload(("a.png", half))[0] == 200
    assert Visitor(server).upload(("a.png", half), ("b.png", half))[0] == 413


def files_in(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


def cut_off(port, content):
    """An upload whose connection is dropped before its end."""
    with socket.create_connection(("127.0.0.1", port)) as half:
        half.sendall(b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: "
                     b"multipart/form-data; boundary=B\r\nContent-Length: 9999999\r\n\r\n" % port
                     + FORM % b"b.png" + content)
        yield


def test_an_upload_that_is_refused_or_cut_off_leaves_no_file(server, temporary):
    """Two files, none, one under another name, a field; and a connection dropped in mid-file."""
    visitor, before = Visitor(server), files_in(temporary)
    other = (FORM % b"a.png").replace(b'"files"', b'"other"') + b"a\r\n"
    field = b'--B\r\nContent-Disposition: form-data; name="files"\r\n\r\na\r\n'
    for parts in ((FORM % b"a.png" + b"a\r\n") * 2, b"", other, field):
        status, said = visitor.ask("POST", "/gradio_api/upload", parts + b"--B--\r\n",
                                   Content_Type="multipart/form-data; boundary=B")
        assert status == 400 and " " in said and files_in(temporary) == before, (parts, said)
    for _ in cut_off(int(server.rpartition(":")[2]), bytes(10 ** 6)):
        wait_for(lambda: files_in(temporary) != before, "the first part of the upload")
    wait_for(lambda: files_in(temporary) == before, "the end of what was cut off")


def test_an_address_sends_only_so_much_an_hour(monkeypatch):
    """In bytes, and in requests, of which the smallest count, too."""
    monkeypatch.setattr(guard, "HOURLY", 1000)
    monkeypatch.setattr(guard, "LEAST", 300)
    front = guard.Guard(upload=2000)
    scope = {"method": "POST", "path": "/gradio_api/upload", "headers": [
        (b"host", b"localhost"), (b"content-length", b"400")]}
    assert [front.refusal(scope, one) for one in "aab"] == [None] * 3
    assert front.refusal(scope, "a")[0] == 429 and front.refusal(scope, "b") is None
    front.hour -= 3601
    assert front.refusal(scope, "a") is None
    small = {**scope, "headers": [(b"host", b"localhost"), (b"content-length", b"1")]}
    assert [front.refusal(small, "c") is None for _ in range(4)] == [True] * 3 + [False]
    front.open["a"] = guard.OPEN
    assert front.refusal({**scope, "method": "GET", "path": "/"}, "a")[0] == 429


@pytest.mark.parametrize("data", [
    (None, 5, "keep", 2, 1, 0), (None, ["a"], "keep", 2, 1, 0), (None, HOLE, "evil.py", 2, 1, 0),
    (None, HOLE, None, 2, 1, 0), (None, HOLE, ["keep"], 2, 1, 0), (None, HOLE, "keep", "x", 1, 0),
    (None, HOLE, "keep", 2, {"a": 1}, 0), (None, HOLE, "keep", 2, 1, "z"), (None, HOLE), (),
    (None, {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, "keep", 2, 1, 0)])
def test_wrong_types_get_a_sentence(server, data):
    """… and, as the server fixture sees at the end, no traceback in the log."""
    said = json.loads(Visitor(server).told(FILL, *data).removeprefix("data: "))
    assert not said["success"] and re.match("this is not what the page|the hole is not what|the "
                                            "method is one of", said["output"]["error"])


@pytest.mark.parametrize("call, data, event", [
    (999, [], None), (-1, [], None), ("select", [None], {"index": 7}), ("select", [None], None),
    ("select", [None], {"index": "x"}), ("upload", [{"path": 5}], None),
    ("upload", [{"path": "http://127.0.0.1/", "meta": {"_type": "gradio.FileData"}}], None),
    ("upload", [{"path": "files/../../x", "meta": {"_type": "gradio.FileData"}}], None)])
def test_wrong_calls_get_a_sentence(server, call, data, event):
    assert re.search("not what the page sends|no such fill",
                     Visitor(server).told(call, *data, event=event))


def test_postscript_as_a_png_is_refused_and_no_reply_names_a_folder(server, weights, tmp_path):
    visitor = Visitor(server)
    status, reply = visitor.upload(("a.png", eps(tmp_path / "a", (64, 64)).read_bytes()))
    (path,) = json.loads(reply)
    assert status == 200 and path.startswith("files/") and path.endswith("/a.png")
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    assert "a.png: not a readable image" in visitor.told("upload", file)
    replies = visitor.told(FILL, None, HOLE, "keep", 2, 1, 0).replace(str(weights), "")
    assert "files/" in replies and "/tmp" not in replies and str(ROOT) not in replies
    assert str(tmp_path.parent) not in replies


def test_a_job_that_nobody_listens_to_ends_and_frees_its_place(server):
    """Both places are taken by visitors who never listen; the third gets its fill all the same."""
    for _ in range(demo.AT_ONCE):
        assert Visitor(server).join(FILL, None, HOLE, "repaint", 20, 8, 0)[0] == 200
    said = Visitor(server).told(FILL, None, HOLE, "keep", 2, 1, 0)
    assert '"success":true' in said and "1 fill, 2 network calls" in said


def test_one_address_holds_only_so_many_calls_of_a_kind():
    """… at work and waiting; one more of another address, or of another kind, is let in."""
    def event(whose, kind):
        return SimpleNamespace(request=SimpleNamespace(client=SimpleNamespace(host=whose)),
                               fn=SimpleNamespace(_id=kind))

    async def onward(body, request, username):
        return True, "an id", "success"

    def pushed(whose, kind):
        body = SimpleNamespace(fn_index=kind, session_hash="v")
        return asyncio.run(guard.push(queue, onward, body, event(whose, kind).request, None))[:2]
    queue = SimpleNamespace(
        pending_messages_per_session={}, active_jobs=[None, [event("a", 6)], [event("a", 6)]],
        event_queue_per_concurrency_id={6: SimpleNamespace(queue=[event("a", 6)] * 1)})
    assert pushed("a", 6) == (True, "an id")
    queue.event_queue_per_concurrency_id[6].queue.append(event("a", 6))
    taken, said = pushed("a", 6)
    assert not taken and said == "4 of these from one address are at work or waiting: try later"
    assert pushed("b", 6)[0] and pushed("a", 5)[0]


def test_results_do_not_pile_up_for_a_visitor_who_does_not_read_them(server):
    """One who is there (its heartbeat is) and reads nothing; when he leaves, they go."""
    visitor = Visitor(server, "10.0.0.3")

    def told(sentence):
        return lambda: sentence in visitor.join("upload", None)[1]
    with socket.create_connection(("127.0.0.1", int(server.rpartition(":")[2]))) as there:
        there.sendall(f"GET /gradio_api/heartbeat/{visitor.session} HTTP/1.1\r\n"
                      f"Host: {visitor.address}\r\n\r\n".encode())
        wait_for(told("does not read its results"), "the refusal of more results")
    wait_for(told("event_id"), "the end of results that nobody reads")


def test_a_visitor_who_does_not_keep_up_is_sent_fewer_frames():
    front, messages = guard.Guard(2000), asyncio.Queue()
    front.queue = SimpleNamespace(pending_messages_per_session={"v": messages}, active_jobs=[None],
                                  event_queue_per_concurrency_id={})
    assert not front.behind("v") and not front.behind("w")
    for _ in range(guard.BEHIND + 1):
        messages.put_nowait("a frame")
    assert front.behind("v")


ENDLESS = "all(demo.torch.randn(10 ** 6).sum() < 10 ** 9 for _ in iter(int, 1))"
NEVER_ENDS = ("real = demo.inpaint.complete", "demo.inpaint.complete = lambda *given: "
              f"{ENDLESS} if given[5] == 13 else real(*given)")


def test_files_have_a_short_life_and_the_first_signal_ends_whatever_is_at_work(weights, tmp_path):
    """With a life of 4 seconds: the files of a run of several calls, and an upload. Then two
    visitors listen to work that never ends (seed 13), another waits."""
    pytest.importorskip("gradio")
    process, port = serving(tmp_path, weights, "guard.LIFE = 4", *NEVER_ENDS)
    try:
        visitor = Visitor(f"http://127.0.0.1:{port}")
        assert '"success":true' in visitor.told(FILL, None, HOLE, "keep", 3, 2, 0)
        assert visitor.upload(("a.png", b"a"))[0] == 200
        wait_for(lambda: not files_in(tmp_path), "the end of the files' life")
        begun = []
        for visitor in [Visitor(f"http://127.0.0.1:{port}") for _ in range(3)]:
            visitor.join(FILL, None, HOLE, "keep", 3, 2, 13)
            threading.Thread(target=visitor.listen, args=["never", begun], daemon=True).start()
        wait_for(lambda: len({line for line in begun if "process_generating" in line}) == 2,
                 "the beginning of two fills")
        ended(process, tmp_path, signal.SIGINT)
    finally:
        process.kill()


def test_of_too_many_files_the_oldest_go(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(guard, "ROOM", 100)
    for k in range(5):
        file = guard.folder() / "a"
        file.write_bytes(bytes(30))
        os.utime(file, (time.time() - 100 + k, time.time() - 100 + k))
        os.utime(file.parent, (time.time() - 100 + k,) * 2)
    guard.sweep()
    assert len(list(Path("files").rglob("a"))) == 3 and file.exists()


def test_two_sweeps_do_not_disturb_each_other(monkeypatch, tmp_path):
    """A folder that goes while another sweep walks through is passed over."""
    def scandir(path, scandir=os.scandir):
        if str(path) != guard.FOLDER:
            os.rmdir(path)
        return scandir(path)
    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        guard.folder()
    monkeypatch.setattr(os, "scandir", scandir)
    guard.sweep()
    assert not list(Path(guard.FOLDER).iterdir())


# ---- in a browser ------------------------------------------------------------------------------

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

    def call(width=1280, height=800, steps=2, samples=1):
        contexts.append(browser.new_context(
            accept_downloads=True, viewport={"width": width, "height": height}))
        page = contexts[-1].new_page()
        page.set_default_timeout(1000 * HANG)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(server)
        shown(page, 1)
        for label, value in (("Steps", steps), ("Samples", samples)):
            page.fill(f"input[type=number][aria-label*={label}]", str(value))
            page.keyboard.press("Tab")
        return page
    yield call
    for context in contexts:
        context.close()
    assert asked and all(url.startswith((server, "data:", f"blob:{server}")) for url in asked)


def shown(page, times):
    """Wait until the editor shows what the server has sent, so many times in all."""
    page.wait_for_selector(f"#editor [data-shown='{times}']")


def stroke(page):
    """Paint a line across the middle of the photograph."""
    page.locator("#editor canvas").scroll_into_view_if_needed()
    box = page.locator("#editor canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 60, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=6)
    page.mouse.up()


def alpha(page):
    """What is painted, as an array [height, width] of opacities."""
    url = page.eval_on_selector("#editor canvas", "canvas => canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))[..., 3]


def results(page, tmp_path, begin=lambda page: page.click("#fill")):
    """Press the button; {name: pixels} of all that can be downloaded, and the PNG's own words."""
    begin(page)
    page.wait_for_selector("#chain >> text=/1 fill, .* s/")
    page.click("text=Downloads, and")
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
    assert 0.005 < hole.mean() < 0.2 and hole[78, 70:86].all()       # the middle
    assert (filled[~hole] == given[~hole]).all() and filled.shape == given.shape
    assert (filled[hole] != given[hole]).any(axis=1).mean() > 0.9
    assert told["command"].startswith("python inpaint.py --mask astronaut_hole.png")
    assert page.locator("label:has-text('Command') >> textarea, input").last.input_value() == \
        told["command"]


def test_the_fill_that_is_clicked_lies_beside_the_original_large_and_in_view(visit):
    page = visit(samples=2)
    page.click("text=center")
    shown(page, 2)
    assert page.is_disabled("#stop")
    page.click("#fill")
    page.wait_for_selector("#chain >> text=/2 fills, .* s/")
    page.wait_for_function(                                          # the result comes into view
        "document.querySelector('#compared img')?.getBoundingClientRect().top < innerHeight - 300")
    assert page.is_disabled("#stop")
    assert page.eval_on_selector("#chain progress", "bar => bar.value == bar.max")
    whole = page.locator("#compared img").first.bounding_box()
    line = page.locator("#compared .inner").bounding_box()["x"]      # left of the hole
    left = whole["x"] + (whole["width"] - whole["height"]) / 2       # of the square photograph
    assert line - left == pytest.approx(whole["height"] / 4, abs=2) and whole["height"] > 400
    assert page.locator("#fills .caption-label").all_inner_texts()[:2] == ["fill 0", "fill 1"]
    for clicked, end in ((1, "1"), (2, "spread"), (0, "0")):
        page.locator("#fills button img").nth(clicked).click()
        page.wait_for_selector(f"#compared img[src$='astronaut_{end}.png']")
        assert page.locator("#compared img[src$='astronaut_input.png']").count() == 1
    frames = page.locator("#chain .frame")
    assert frames.count() == 2 and not frames.nth(0).is_visible() and frames.nth(1).is_visible()
    page.locator("#chain input").press("ArrowLeft")                  # the chain, scrubbed
    assert frames.nth(0).is_visible() and not frames.nth(1).is_visible()


def test_a_hole_is_painted_with_the_keyboard_erased_undone_and_cleared(visit):
    page = visit()
    assert not alpha(page).any()
    page.focus("#editor canvas")
    page.keyboard.press("ArrowDown")                                 # moves
    assert not alpha(page).any()
    page.keyboard.press("Shift+ArrowRight")                          # paints
    small = alpha(page)
    assert small[336, 320] == 255 and (small > 0).mean() < 0.02
    page.keyboard.press("Shift+ArrowRight")
    assert (alpha(page) > 0).sum() > (small > 0).sum()
    page.click("text=Undo")
    page.wait_for_timeout(500)
    assert (alpha(page) == small).all()
    page.click("text=Erase")
    page.focus("#editor canvas")
    page.keyboard.press("Shift+ArrowLeft")
    assert (alpha(page) > 0).sum() < (small > 0).sum()
    page.click("text=Clear")
    page.wait_for_timeout(500)
    assert not alpha(page).any()
    page.click("#fill")
    assert "no hole yet" in said(page)


def test_a_landscape_on_a_phone(visit, tmp_path):
    """Without bands, nothing wider than the screen, and file names that can be read."""
    page = visit(390, 844)
    path = photograph(tmp_path / "a valley in the autumn of last year.png", 300, 120)
    page.set_input_files("input[data-testid*=upload-button]", path)
    shown(page, 2)
    box = page.locator("#editor canvas").bounding_box()
    assert box["width"] > 270 and box["width"] / box["height"] == pytest.approx(2.5, rel=0.02)
    stroke(page)
    found, _ = results(page, tmp_path)
    assert found["a valley in the autumn of last year_0.png"].shape == (120, 300, 3)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for name in page.locator("#files .stem").all():
        assert name.evaluate("one => one.scrollWidth <= one.clientWidth")


def test_a_photograph_of_ones_own_and_a_bad_one(visit, tmp_path):
    """Turned by EXIF and far from square; then files that are none, and the page goes on."""
    page, upload = visit(), "input[data-testid*=upload-button]"
    exif = Image.Exif()
    exif[0x0112] = 6                                                 # to be turned right by 90°
    path = photograph(tmp_path / "a photo.png", 300, 120, exif=exif)
    stroke(page)
    page.click("#fill")
    page.wait_for_selector("#compared img")
    page.set_input_files(upload, path)
    shown(page, 3)                                                   # its photograph, then no hole
    page.wait_for_selector("#compared", state="hidden")              # fills of the astronaut
    assert page.locator("#chain").count() == 0
    page.click("text=center")
    shown(page, 4)
    large = io.BytesIO()
    Image.new("1", (8192, 8192)).save(large, "PNG")                  # 8 kB
    for name, content, message in (("a.png", b"a text", "a.png: not a readable image"),
                                   ("e.png", eps(tmp_path / "e").read_bytes(), "e.png: not"),
                                   ("c.png", large.getvalue(), "c.png: more than 17 megapixels"),
                                   ("b.png", bytes(demo.BYTES + 1), "exceed"),
                                   ("<b>.png", b"", "not a readable image")):
        (tmp_path / name).write_bytes(content)
        page.set_input_files(upload, tmp_path / name)
        assert message in said(page)
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
        shown(page, 2)
        page.click("text=center")
        shown(page, 3)
    for page in pages:
        page.click("#fill")                                          # before either has ended
    for page, path in zip(pages, paths):
        found, _ = results(page, tmp_path, begin=lambda page: None)
        given, hole = np.asarray(Image.open(path)), found[f"{path.stem}_hole.png"] == 255
        assert len(found) == 2 and (found[f"{path.stem}_0.png"][~hole] == given[~hole]).all()


def choose(page, method):
    page.click("input[aria-label=Method]")
    page.click(f"[role=option]:has-text('{method}:')")


def test_controls_that_a_method_does_not_use_are_grey(visit):
    page = visit()
    inputs = [f"input[type=number][aria-label*={name}]" for name in ("Steps", "Samples", "Seed")]
    for method, off in (("patchmatch", [True] * 3), ("repaint", [False] * 3)):
        choose(page, method)
        page.wait_for_selector(inputs[0] + (":disabled" if off[0] else ":enabled"))
        assert [page.is_disabled(one) for one in inputs] == off, method


def test_a_method_proposes_its_steps_but_those_that_were_chosen_stay(visit):
    box = "input[type=number][aria-label*=Steps]"
    for chosen, expected in ((10, "20, 10"), (7, "7, 7"), (20, "20, 20")):
        page, found = visit(steps=chosen), []
        for method in ("ddnm", "keep"):
            for other, state in (("patchmatch", ":disabled"), (method, ":enabled")):
                choose(page, other)
                page.wait_for_selector(box + state)
            found.append(page.input_value(box))
        assert ", ".join(found) == expected


def test_stopped_it_says_so_and_can_be_begun_again(visit, tmp_path):
    page = visit(steps=20, samples=8)
    choose(page, "repaint")                                          # 110 calls
    page.click("text=irregular")
    shown(page, 2)
    page.click("#fill", click_count=2)                               # as impatient people do
    page.wait_for_selector("#chain >> text=/^t = /")
    page.click("text=Stop")
    page.wait_for_selector("#chain >> text=/^stopped at t = .* of 20/")
    page.wait_for_selector("#stop:disabled")
    page.fill("input[type=number][aria-label*=Samples]", "1")
    found, _ = results(page, tmp_path)
    assert set(found) == {"astronaut_0.png", "astronaut_hole.png"}
