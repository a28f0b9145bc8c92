"""Files and command lines of strangers: no code runs, no memory is claimed, no traceback shows."""
import contextlib
import io
import itertools
import json
import os
import pickle
import random
import re
import shutil
import struct
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

import data
import evaluate
import inpaint
import train
from baselines import glcic
from ddpm import DDPM
from helpers import (
    COMMANDS,
    ROOT,
    Evil,
    less_memory,
    life,
    little_memory_and_no_hang,
    photographs,
    refused,
    short_or_long,
)
from support import cli, files, runs
from support.cli import BadInput
from support.guided_diffusion import ADM
from support.photographs import Holes
from unet import UNet


def png(width, height, pixels=b""):
    """A PNG that says that it is so large, whatever it holds."""
    def chunk(name, content):
        return (struct.pack(">I", len(content)) + name + content
                + struct.pack(">I", zlib.crc32(name + content)))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(pixels))
            + chunk(b"IEND", b""))


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_pickle_that_would_execute_code_is_refused(tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    content = {"settings": Evil(), "ema": {}, "rng": {}, "step": 0}
    path = tmp_path / "checkpoint.pt"
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    for read in (lambda: runs.load_checkpoint(tmp_path), lambda: inpaint.load_weights(path),
                 lambda: glcic.read(path)):
        with pytest.raises(BadInput, match="checkpoint.pt: not "):
            read()
    assert not Path("ran").exists()
    with contextlib.suppress(Exception):
        torch.load(path, weights_only=False)                     # the bait is live
    assert Path("ran").exists()


def claim(**unet):
    """Weights whose settings claim something else than they hold."""
    def change(content):
        content["settings"]["unet"] |= unet
    return change


def expand(content):
    """One number that says that it is 10⁸ weights."""
    content["settings"]["unet"] |= {"widths": [2 ** 10]}
    net = torch.nn.Module()
    with torch.device("meta"):
        net = UNet(**content["settings"]["unet"])
    content["ema"] = {name: torch.zeros(()).expand(tensor.shape)
                      for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize("change", [
    claim(widths=[2 ** 20]), claim(blocks=10 ** 9), claim(widths=[8] * 10 ** 6),
    claim(size=2 ** 30), claim(size=0), claim(patch=0), claim(patch=2 ** 20), expand,
    lambda content: content["settings"].update(T=10 ** 12),
    lambda content: content["settings"].update(schedule="__import__"),
    lambda content: content["settings"]["unet"].update(size=2048),
    lambda content: content.update(settings=[]), lambda content: content.pop("ema"),
    lambda content: content.update(ema=torch.zeros(3))])
def test_weights_that_claim_what_they_do_not_hold_are_refused_before_memory_is_asked_for(
        tmp_path, weights, change):
    content = files.read_tensors(weights)
    change(content)
    torch.save(content, tmp_path / "weights.pt")
    with little_memory_and_no_hang(2 ** 28), pytest.raises(BadInput, match="not weights"):
        inpaint.load_weights(tmp_path / "weights.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(tmp_path, weights, value):
    """One of them makes every pixel of every hole black."""
    content = files.read_tensors(weights)
    content["ema"]["stem.weight"].flatten()[7] = value
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(BadInput, match="weights.pt: stem.weight is complex, NaN or"):
        inpaint.load_weights(tmp_path / "weights.pt")


@pytest.mark.parametrize("value", [float("nan"), 1j])
def test_a_weight_to_start_from_that_is_not_finite_is_refused(tmp_path, weights, value):
    content = files.read_tensors(weights)
    content["ema"]["stem.weight"] = content["ema"]["stem.weight"].float() * value
    torch.save(content, tmp_path / "weights.pt")
    net = UNet(**content["settings"]["unet"])
    with pytest.raises(BadInput, match="weights.pt: stem.weight is complex, NaN or"):
        runs.initialize(net, tmp_path / "weights.pt")


def test_networks_of_others_that_claim_huge_images_or_end_in_one_pixel_are_refused(tmp_path):
    """… by their settings, before anything is read or built; a fill would take terabytes, or be
    impossible for one sample."""
    config = {"_class_name": "UNet2DModel", "sample_size": 16, "block_out_channels": [8, 16]}
    for change, said in (({"sample_size": 10_000}, "of at most 1,024 pixels"),
                         ({"block_out_channels": [8] * 5}, "maps of one pixel")):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(BadInput, match=said):
            inpaint.load_weights(tmp_path)
    widths = [32] * 11 + [64]                                    # 8 pixels, doubled 11 times
    deep = ADM(32, widths, 1, [width == 64 for width in widths], 6)
    torch.save(deep.state_dict(), tmp_path / "deep.pt")
    with little_memory_and_no_hang(), pytest.raises(BadInput, match="not a guided-diffusion"):
        inpaint.load_weights(tmp_path / "deep.pt")


def test_a_checkpoint_that_unpacks_to_more_than_itself_is_refused(tmp_path, weights):
    with zipfile.ZipFile(weights) as source, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for member in source.infolist():
            content = source.read(member)
            if "/data/" in member.filename:
                content += bytes(2 ** 24)
            bomb.writestr(member.filename, content, zipfile.ZIP_DEFLATED)
    with little_memory_and_no_hang(2 ** 26), pytest.raises(BadInput, match="BadZipFile"):
        inpaint.load_weights(tmp_path / "bomb.pt")


@pytest.mark.parametrize("content, said", [
    (png(100_000, 100_000), "more than 179 megapixels"),
    (png(12_000, 12_000), "not a readable image"),
    (b"BM" + struct.pack("<IIIIiiHHI", 0, 0, 54, 40, 100_000, 100_000, 1, 24, 0) + bytes(24),
     "more than 179 megapixels"),
    (png(0, 0), "not a readable image"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "format"),
    (b"\x89HDF\r\n\x1a\n" + bytes(99), "format")])
def test_images_that_claim_too_much_or_would_run_a_program(tmp_path, monkeypatch, content, said):
    monkeypatch.chdir(tmp_path)
    Path("faces").mkdir()
    Path("faces/a.png").write_bytes(content)
    with zipfile.ZipFile("a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write("faces/a.png", "a.png")
    for read in (lambda: data.open_image("faces/a.png"), lambda: data.load("faces", "all"),
                 lambda: data.load("a.zip", "all"),
                 lambda: Holes("faces/a.png", 16).of("face", None, (24, 24))):
        with little_memory_and_no_hang(2 ** 30), pytest.raises(BadInput, match=f"a.png.*{said}"):
            read()


def test_a_zip_is_never_unpacked_and_no_member_may_be_a_bomb(tmp_path, monkeypatch):
    """`..`, absolute names, newlines, other scripts: images like any others."""
    monkeypatch.chdir(tmp_path)
    names = ["../../up.png", f"{tmp_path}/root.png", "a\nb.png", "é漢.png", "..\\back.png"]
    faces = data.synthetic(len(names), 64).numpy()
    with zipfile.ZipFile("a.zip", "w") as archive:
        for name, face in zip(names, faces):
            Image.fromarray(face).save("face.bmp")
            archive.write("face.bmp", name)
    before = set(tmp_path.rglob("*"))
    loaded = data.load("a.zip", "all", cache="cache").flatten(1)
    assert sorted(loaded.tolist()) == sorted(faces.reshape(len(names), -1).tolist())
    assert {path.name for path in set(tmp_path.rglob("*")) - before} == {
        "cache", *(path.name for path in Path("cache").iterdir())}

    with zipfile.ZipFile("b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("bomb\x1b[2J.png", "w", force_zip64=True) as member:
            for _ in range(2 ** 9):
                member.write(bytes(2 ** 20))
    with little_memory_and_no_hang(2 ** 27):
        answer = life(lambda: data.load("b.zip", "all", cache="cache"))
    assert refused(answer, "b.zip/bomb", "536,870,912 bytes are no image")
    assert "\x1b" not in answer[1]


def test_names_with_newlines_and_bytes_that_are_no_text(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    names = ["a\nb", "é漢字", os.fsdecode(b"\xff\xfe"), "-rf", "`touch ran`", "a" * 240]
    Path("faces").mkdir()
    for name, face in zip(names, data.synthetic(len(names), 24).numpy()):
        Image.fromarray(face).save(f"faces/{name}.png")
    assert len(data.load("faces", "all", cache="cache")) == len(names)
    fast = ["--weights", weights, "--steps", "1", "--samples", "1"]
    answer = life(inpaint.main, "faces", *fast)
    assert refused(answer, "could not be written", "too long")   # no room for _input.png
    Path(f"faces/{names.pop()}.png").unlink()
    status, said = life(inpaint.main, "faces", *fast)
    assert status == 0, said
    assert {f"{name}_0.png" for name in names} <= set(os.listdir("out"))
    Path("faces/a\nb.png").write_bytes(b"no image")
    status, said = life(inpaint.main, "faces", *fast)
    assert status == 2 and "faces/a b.png: not a readable image" in said and "1 of " in said
    assert not Path("ran").exists()


def test_links_pipes_and_loops(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    photographs(Path("faces"), 2)
    Path("faces/link.png").symlink_to("0.png")
    Path("faces/nowhere.png").symlink_to("none.png")
    Path("faces/folder.png").mkdir()
    Path("faces/up.png").symlink_to("..")
    os.mkfifo("faces/pipe.png")
    with little_memory_and_no_hang():
        images = data.load("faces", "all", cache="cache")
    assert len(images) == 3 and torch.equal(images[0], images[2])
    fast = ["--weights", weights, "--steps", "1", "--samples", "1"]
    for place in ("faces/pipe.png", "faces/folder.png", "faces/nowhere.png", "/dev/zero"):
        assert refused(life(inpaint.main, place, *fast, "--mask", "center"), place)
        assert refused(life(inpaint.main, "faces/0.png", *fast, "--mask", place), place)
        assert refused(life(inpaint.main, "faces/0.png", "--weights", place), place)
    status, said = life(inpaint.main, "faces", *fast)
    assert status == 0, said
    Path("loop.png").symlink_to("loop.png")
    assert refused(life(inpaint.main, "loop.png", *fast), "loop.png")
    Path("precious").write_text("precious")
    Path("out/0_0.png").unlink()
    Path("out/0_0.png").symlink_to("../precious")                # not written through
    assert refused(life(inpaint.main, "faces/0.png", *fast), "0_0.png is no result")
    assert Path("precious").read_text() == "precious" and Path("out/0_0.png").is_symlink()


# ---- fuzz --------------------------------------------------------------------------------------

def mutated(content, rng):
    """Bytes flipped, cut, doubled, removed, overwritten with numbers that tend to hurt."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        i = rng.randrange(len(content) or 1)
        n = rng.choice((1, 2, 4, 8, 64))
        match rng.randrange(6):
            case 0:
                content[i:i + 1] = bytes([rng.randrange(256)])
            case 1:
                del content[i:]
            case 2:
                content[i:i] = content[i:i + n]
            case 3:
                del content[i:i + n]
            case 4:
                number = rng.choice((0, 1, 0x7f, 0x80, 0xff))
                content[i:i + n] = bytes([number]) * n
            case 5:
                content[i:i + n] = rng.randbytes(n)
    return bytes(content)


def samples(folder):
    """Small images of every format and mode, as bytes."""
    face, made = Image.fromarray(data.synthetic(1, 24)[0].numpy()), []
    for suffix in ("jpeg", "png", "webp", "bmp", "gif", "tiff"):
        for mode in ("RGB", "L", "P", "RGBA", "CMYK", "I;16", "1"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                exif = Image.Exif()
                exif[0x0112] = 6
                file = io.BytesIO()
                picture = face.convert("L") if mode == "I;16" else face
                picture.convert(mode).save(file, suffix, exif=exif)
                made.append(file.getvalue())
    return made


def rezipped(content, rng):
    """One member of a torch file mutated, its checksum right again."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(file, "w") as target:
        victim = rng.choice([*source.namelist(), *[name for name in source.namelist()
                                                   if name.endswith(".pkl")] * 20])
        for name in source.namelist():
            inside = source.read(name)
            target.writestr(name, mutated(inside, rng) if name == victim else inside)
    return file.getvalue()


def fuzz_image(rng, seeds, _):
    with data.open_image(io.BytesIO(mutated(rng.choice(seeds["images"]), rng))) as image:
        data.square(image, 16)


def fuzz_mask(rng, seeds, folder):
    Path("mask.png").write_bytes(mutated(rng.choice(seeds["images"]), rng))
    Holes("mask.png", 16).of("face", None, (24, 24))


def fuzz_zip(rng, seeds, folder):
    file, content = io.BytesIO(), rng.choice(seeds["images"])
    with zipfile.ZipFile(file, "w", rng.choice((0, 8, 12, 14))) as archive:
        for name in ("a.png", "b.jpg", "c/d.bmp")[:rng.randint(1, 3)]:
            archive.writestr(name, content)
    Path("a.zip").write_bytes(mutated(file.getvalue(), rng))
    data.load("a.zip", "all", 16, cache="cache")


def fuzz_checkpoint(rng, seeds, folder):
    for name in ("weights.pt", "checkpoint.pt"):
        change = rng.choice((mutated, rezipped, rezipped))
        Path(name).write_bytes(change(seeds[name], rng))
    with contextlib.suppress(BadInput):
        inpaint.load_weights("weights.pt")
    try:
        args, checkpoint = train.parse(["--resume", "--out", "."])
        runs.restore(checkpoint, train.build(args, torch.device("cpu")), torch.Generator())
    except SystemExit as ended:                                  # argparse's, of a strange default
        assert ended.code == 2


FUZZED = {"image": fuzz_image, "mask": fuzz_mask, "zip": fuzz_zip, "checkpoint": fuzz_checkpoint}


@pytest.mark.parametrize("what, inputs", [
    *((what, 50) for what in FUZZED),
    *(pytest.param(what, inputs, marks=pytest.mark.slow) for what, inputs in (
        ("image", 5000), ("mask", 2500), ("zip", 2000), ("checkpoint", 300)))])
def test_no_damaged_file_is_more_than_a_line(tmp_path, trained, what, inputs):
    """Every input is read or refused as BadInput, in 10 s and 2 GB."""
    seeds = {"images": samples(tmp_path)} | {name: (trained[0] / name).read_bytes()
                                             for name in ("weights.pt", "checkpoint.pt")}

    def fuzz():
        os.chdir(tmp_path)
        rng, refusals = random.Random(what), 0
        for i in range(inputs):
            with little_memory_and_no_hang(2 ** 31):
                try:
                    FUZZED[what](rng, seeds, tmp_path)
                except BadInput as error:
                    refusals += 1
                    assert "\n" not in str(error).strip()
            shutil.rmtree("cache", ignore_errors=True)
        assert 0.1 * inputs < refusals, "the mutations are too weak"
        print(f"{what}: {inputs} inputs, {refusals} refused")

    status, said = life(fuzz)
    assert status == 0, said
    print(said.splitlines()[-1])


JUNK = st.one_of(
    st.sampled_from(["", "0", "-1", "1", "3", "16", "nan", "inf", "-inf", "1e9", "1e-300", "9" * 9,
                     "9" * 30, "0x10", "é漢", "a\nb", "\udcff", "/dev/null", "/dev/null/x", ".",
                     "--", "-", "cuda", "cuda:7", "meta", "mps", "cpu:1", "synthetic", "keep",
                     "ridge", "center", "full", "x" * 300, "faces", "a.zip", "weights.pt",
                     "mask.png", "center,center", ",", "keep,keep", "%s", "[]"]),
    st.integers(-9, 9).map(str), st.floats().map(str),
    st.text(st.characters(exclude_characters="\0/"), max_size=9))
FLAGS = {name: re.findall(r'add\("(--[\w-]+)"', (ROOT / file).read_text()) for name, file in (
    ("train", "train.py"), ("inpaint", "inpaint.py"), ("evaluate", "evaluate.py"),
    ("glcic", "baselines/glcic.py"))}


@short_or_long("inputs", 15, 300)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_line_is_more_than_a_line(tmp_path, weights, command, inputs):
    """Valid arguments and a few that may be anything: done, interrupted at the first step of the
    work, or refused with status 2."""
    main, argv = COMMANDS[command]
    needs_weights = main in (inpaint.main, evaluate.main)

    def stop(*_, **__):
        raise KeyboardInterrupt                                  # here the work itself would begin

    @settings(max_examples=inputs, derandomize=True, database=None, deadline=None,
              suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(st.sampled_from(FLAGS[command]), st.lists(JUNK, max_size=2)
                              | st.tuples(st.integers(1, 9).map(str))), max_size=3),
           st.just([]) | st.lists(JUNK, max_size=1))
    def fuzz(options, rest):
        out = Path(tempfile.mkdtemp(dir=tmp_path))
        words = [*argv, *(["--weights", str(weights)] if needs_weights else []), "--out", str(out),
                 *itertools.chain.from_iterable([flag, *values] for flag, values in options), *rest]
        sys.argv, screen = ["command.py", *words], io.StringIO()
        with contextlib.redirect_stderr(screen), contextlib.redirect_stdout(screen):
            with little_memory_and_no_hang(2 ** 32):
                try:
                    cli.run(main)
                    status = 0
                except SystemExit as ended:
                    status = ended.code or 0
        assert status in (0, 2, 130), words
        assert "Traceback" not in screen.getvalue(), words
        statuses.append(status)
        shutil.rmtree(out, ignore_errors=True)

    statuses = []

    def all_of_them():
        os.chdir(tmp_path)
        photographs(tmp_path / "faces", 2)
        shutil.copy(weights, "weights.pt")
        Image.new("L", (24, 24), 255).save("mask.png")
        Image.new("RGB", (24, 24)).save("face.png")
        with zipfile.ZipFile("a.zip", "w") as archive:
            archive.write("faces/0.png", "0.png")
        for place in (DDPM, "loss"), (DDPM, "sample"), (glcic, "update"), (evaluate, "draw_fills"):
            setattr(*place, stop)
        less_memory(2 ** 33)
        fuzz()
        refusals = statuses.count(2)
        assert 0.5 * inputs < refusals < 0.98 * inputs, "the junk is too weak, or nothing gets by"
        print(f"{command}: {len(statuses)} command lines, {refusals} refused")

    status, said = life(all_of_them)
    assert status == 0, said
    print(said.splitlines()[-1])
