"""Nothing lost, nothing leaked: processes killed at any moment, faults made on purpose, strangers'
files. The long forms: pytest -m slow tests/test_faults.py."""
import contextlib
import hashlib
import io
import itertools
import json
import os
import pickle
import random
import re
import resource
import runpy
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import tqdm
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

import data
import evaluate
import inpaint
import train
from baselines import glcic
from ddpm import DDPM
from helpers import ROOT, disk_with_room_for, life, refused, save_weights, short_or_long, two
from support import cli, files, runs
from support.cli import BadInput

TINY = ("--data synthetic --limit 24 --size 16 --widths 8 16 --patch 1 --blocks 1 --batch 4 --T 3 "
        "--steps 12 --every 2 --device cpu").split()
tqdm.tqdm.monitor_interval = 0                               # no thread for a fork to leave behind
tqdm.tqdm.set_lock(threading.RLock())        # its own is shared with forks: one killed would keep it
N = 5
STATE = ["net", "ema", "muon", "adamw", "rng", "losses", "step"]
SCORED = (f"--data synthetic --limit {N} --batch 2 --steps 2 --samples 2 --no-perceptual --save "
          "--device cpu --methods keep,masked --masks center,irregular").split()


# ---- the kill storm ----------------------------------------------------------------------------

def kill_at_operation(n, folder):
    """A sabotage: SIGKILL when the n-th file of the folder is about to be opened, renamed, …"""
    count = itertools.count(1)

    def watch(event, args):
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"):
            if str(folder) in str(args[0]) and next(count) == n:
                os.kill(os.getpid(), signal.SIGKILL)
    return lambda: sys.addaudithook(watch)


def kill_at_byte(n):
    """A sabotage: the kernel's own SIGXFSZ in the middle of the write that passes n bytes."""
    def sabotage():
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))
    return sabotage


def storm(folder, kills, attempt, check, largest, moments):
    """Kill `attempt(**how)` in turn at a moment, at an operation on a file, in the middle of a
    write; `check(whole=…)` after each, and when one has come through, which begins another. Returns
    {signal: number}."""
    rng, died = random.Random(0), {}
    while sum(died.values()) < kills:
        how = (dict(moment=rng.uniform(0, moments)),
               dict(sabotage=kill_at_operation(rng.randint(1, 40), folder)),
               dict(sabotage=kill_at_byte(int(largest ** rng.random()))))[sum(died.values()) % 3]
        status, said = attempt(**how)
        assert status in (0, -signal.SIGKILL, -signal.SIGXFSZ), said
        if status:
            died[-status] = died.get(-status, 0) + 1
        check(whole=status == 0)
        if status == 0:
            shutil.rmtree(folder)
    status, said = attempt()
    assert status == 0, said
    check(whole=True)
    print(f"killed {died}")
    return died


def logged(out):
    """The log without its timings; every line must be one."""
    return [{key: value for key, value in json.loads(line).items() if key != "images_per_s"}
            for line in (out / "log.jsonl").read_text().splitlines()]


def assert_same_run(one, two):
    for file, parts in (("checkpoint.pt", STATE), ("weights.pt", ["ema", "step"])):
        first, second = (files.read_tensors(out / file) for out in (one, two))
        for part in parts:
            torch.testing.assert_close(first[part], second[part], rtol=0, atol=0)
    assert logged(one) == logged(two)
    assert (np.asarray(Image.open(one / "samples.png"))
            == np.asarray(Image.open(two / "samples.png"))).all()
    assert {path.name for path in two.iterdir()} == {
        "checkpoint.pt", "weights.pt", "log.jsonl", "samples.png"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An uninterrupted run, and the seconds that it took."""
    out, begun = tmp_path_factory.mktemp("trained") / "whole", time.time()
    status, said = life(train.main, *TINY, "--out", out)
    assert status == 0, said
    return out, time.time() - begun


@short_or_long("kills", 6, 100)
def test_training_that_is_killed_at_any_moment(tmp_path, trained, kills):
    (reference, seconds), out = trained, tmp_path / "storm"

    def attempt(**how):
        resume = ["--resume"] if (out / "checkpoint.pt").exists() else []
        return life(train.main, *TINY, "--out", out, *resume, **how)

    def check(whole):
        if whole:
            return assert_same_run(reference, out)
        for path in out.glob("*.pt"):
            files.read_tensors(path)
        for path in out.glob("*.png"):
            Image.open(path).load()

    storm(out, kills, attempt, check, (reference / "checkpoint.pt").stat().st_size, seconds)


@short_or_long("kills", 1, 100)
def test_train_py_itself_as_a_process_of_its_own(tmp_path, trained, kills):
    """Not forked: as a user starts it, killed at any moment from the import of torch on."""
    out, rng, done, training, whole = tmp_path / "storm", random.Random(1), 0, 0, 0
    while True:
        resume = ["--resume"] if (out / "checkpoint.pt").exists() else []
        words = [sys.executable, ROOT / "train.py", *TINY, "--out", out, *resume]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                   env={**os.environ, "OMP_NUM_THREADS": "1"})  # as here, for the bits
        with contextlib.suppress(subprocess.TimeoutExpired):
            patience = None if done == kills else rng.uniform(0, 4 * trained[1])
            process.wait(patience)
        if process.poll() is None:
            process.kill()
            done += 1
        said = process.communicate()[1].decode()
        if process.returncode == -signal.SIGKILL:
            training += "training:" in said
            continue
        assert process.returncode == 0, said
        assert_same_run(trained[0], out)
        whole += 1
        if done == kills:
            break
        shutil.rmtree(out)
    print(f"killed {done}, {training} of them at work; came through {whole}")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = save_weights(tmp_path_factory.mktemp("weights"), seed=0)
    inpaint.load_weights(path)                               # nobody may not import what this does
    return path


def scored(out):
    """What an evaluation left, without times and commands."""
    results = json.loads((out / "results.json").read_text())["results"]
    pictures = {str(path.relative_to(out)): np.asarray(Image.open(path)).tobytes()
                for path in out.rglob("*.png")}
    names = {str(path.relative_to(out)) for path in out.rglob("*")}
    return (names, pictures, (out / "scores.csv").read_text(), (out / "holes.npz").read_bytes(),
            [{key: value for key, value in r.items() if key not in ("seconds", "scoring")}
             for r in results])


@short_or_long("kills", 6, 60)
def test_an_evaluation_that_is_killed_at_any_moment(tmp_path, weights, kills):
    out, begun = tmp_path / "storm", time.time()

    def attempt(out=out, **how):
        resume = ["--resume"] if (out / "parts" / "settings.json").exists() else []
        return life(evaluate.main, *SCORED, "--weights", weights, "--out", out, *resume, **how)

    def check(whole):
        for path in out.rglob("*.npz"):
            dict(np.load(path))
        for path in out.rglob("*.png"):
            Image.open(path).load()
        if whole:
            assert scored(out) == scored(tmp_path / "whole")

    status, said = attempt(tmp_path / "whole")
    assert status == 0, said
    storm(out, kills, attempt, check, 3000, time.time() - begun)


def photographs(folder, n=40, size=24):
    folder.mkdir(parents=True)
    for i, face in enumerate(data.synthetic(n, size).numpy()):
        Image.fromarray(face).save(folder / f"{i}.png")
    return folder


@short_or_long("kills", 6, 100)
def test_packing_that_is_killed_at_any_moment(tmp_path, kills):
    faces, cache = photographs(tmp_path / "faces"), tmp_path / "cache"
    begun = time.time()
    data.load(faces, "all", cache=tmp_path / "whole")
    (reference,), seconds = (tmp_path / "whole").iterdir(), time.time() - begun

    def attempt(**how):
        return life(lambda: data.load(faces, "all", cache=cache), **how)

    def check(whole):
        for path in cache.glob("[!.]*"):
            assert path.name == reference.name and path.read_bytes() == reference.read_bytes()
        if whole:
            assert [path.name for path in cache.iterdir()] == [reference.name]

    storm(cache, kills, attempt, check, reference.stat().st_size, 2 * seconds)


# ---- faults made on purpose --------------------------------------------------------------------

def flipped(content, rng):
    content = bytearray(content)
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


@short_or_long("flips", 50, 1000)
def test_a_checkpoint_cut_at_every_power_of_two_and_with_bits_flipped(tmp_path, trained, flips):
    """Refused, or (a bit of the zip's padding or dates) exactly what was saved."""
    content = (trained[0] / "checkpoint.pt").read_bytes()
    expected, path = runs.load_checkpoint(trained[0]), tmp_path / "checkpoint.pt"
    rng = random.Random(0)
    for power in range(len(content).bit_length()):
        path.write_bytes(content[:2 ** power])
        with pytest.raises(BadInput, match="checkpoint.pt: not a checkpoint .* or damaged"):
            runs.load_checkpoint(tmp_path)
    noticed = 0
    for _ in range(flips):
        path.write_bytes(flipped(content, rng))
        try:
            loaded = runs.load_checkpoint(tmp_path)
            for part in STATE:
                torch.testing.assert_close(loaded[part], expected[part], rtol=0, atol=0)
        except BadInput:
            noticed += 1
    assert noticed > 0.8 * flips


@pytest.mark.parametrize("size", [100, 2_000])
@pytest.mark.parametrize("what", ["cache", "evaluation", "fill"])
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch, weights, what, size):
    """The training's checkpoints: test_train.py."""
    monkeypatch.chdir(tmp_path)
    faces = photographs(tmp_path / "faces", 9)
    command = {"cache": lambda: data.load(faces, "all", cache="out"),
               "evaluation": evaluate.main, "fill": inpaint.main}[what]
    argv = {"cache": [], "evaluation": [*SCORED, "--weights", weights, "--out", "out"],
            "fill": [faces / "1.png", "--weights", weights, "--steps", "2", "--samples", "1"]}[what]
    Path("out").mkdir()
    Path("out/kept").write_text("kept")
    with disk_with_room_for(size):
        status, said = life(command, *argv)
    assert refused((status, said), "could not be written")
    for path in Path("out").rglob("*.png"):
        Image.open(path).load()
    assert not list(Path("out").rglob("*.tmp")) and Path("out/kept").read_text() == "kept"
    resume = ["--resume"] if Path("out/parts/settings.json").exists() else []
    assert life(command, *argv, *resume)[0] == 0


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path):
    """A file system of 512 kB: to memory-mapped writing it would be a bus error."""
    photographs(tmp_path / "faces", 99)
    (tmp_path / "small").mkdir()
    script = ("mount -t tmpfs -o size=512k none small && "
              f"{sys.executable} -c \"import data, support.cli; "
              "support.cli.run(lambda: data.load('faces', 'all', cache='small/cache'))\"; "
              "status=$?; find small -type f; exit $status")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=tmp_path, text=True,
                          capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no file system of one's own here: {done.stderr}")
    assert done.returncode == 2 and "No space left" in done.stderr.splitlines()[-1]
    assert done.stdout == ""


COMMANDS = {"train": (train.main, TINY),
            "inpaint": (inpaint.main, "face.png --steps 2 --samples 1 --device cpu".split()),
            "evaluate": (evaluate.main, SCORED),
            "glcic": (glcic.main, "train --data synthetic --limit 8 --size 16 --width 2 --steps 2 "
                                  "--batch 2 --device cpu".split())}


def nobody():
    """A sabotage: no more rights than anybody has."""
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", ["read-only", "a file", "below a file"])
def test_a_folder_that_cannot_be_written_to(weights, command, place):
    with tempfile.TemporaryDirectory() as folder:            # pytest's own is closed to nobody
        os.chmod(folder, 0o755)
        shutil.copy(weights, folder)
        Image.new("RGB", (24, 24)).save(Path(folder, "face.png"))
        out = Path(folder, "out")
        if place == "read-only":
            out.mkdir(mode=0o555)
        else:
            out.write_text("kept")
            out = out / "below" if place == "below a file" else out
        main, argv = COMMANDS[command]
        with contextlib.chdir(folder):
            argv = [*argv, "--out", out, *(["--weights", "weights.pt"] if main in (
                inpaint.main, evaluate.main) else [])]
            assert refused(life(main, *argv, sabotage=nobody), "out")
        assert {path.name for path in Path(folder).rglob("*")} == {
            "weights.pt", "face.png", "out"}


@pytest.mark.parametrize("command", ["train", "evaluate", "glcic"])
def test_a_second_process_in_the_same_folder_is_refused_and_a_killed_one_leaves_no_lock(
        tmp_path, weights, command):
    main, argv = COMMANDS[command]
    argv = [*argv, "--out", tmp_path / "out"]
    argv += ["--weights", weights] if command == "evaluate" else []
    ready, go = os.pipe()
    first = os.fork()
    if first == 0:
        with files.lock_folder(tmp_path / "out"):
            (tmp_path / "out" / ".weights.pt.123.tmp").write_text("half")
            os.write(go, b".")
            time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    assert refused(life(main, *argv), "another process is at work there")
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    assert life(main, *argv)[0] == 0
    assert not (tmp_path / "out" / ".weights.pt.123.tmp").exists(), "half a file was left over"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_checkpoint_and_then_the_end(tmp_path, trained, monkeypatch, number):
    out, average, calls = tmp_path / "out", train.update_ema, itertools.count(1)

    def interrupt(*args):
        average(*args)
        if next(calls) == 5:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(train, "update_ema", interrupt)
        status, said = life(train.main, *TINY, "--out", out)
    assert status == 128 + number and "interrupted: step 5 is saved" in said
    assert runs.load_checkpoint(out)["step"] == 5
    assert life(train.main, *TINY, "--out", out, "--resume")[0] == 0
    assert_same_run(trained[0], out)


@pytest.mark.parametrize("signalled", [False, True])
def test_a_loss_that_is_no_number_is_named_and_never_saved(tmp_path, monkeypatch, signalled):
    """Not even by a Ctrl-C between the step and the next look at the losses."""
    loss, calls = DDPM.loss, itertools.count(1)

    def broken(*args):
        call = next(calls) if torch.is_grad_enabled() else None          # not the held-out loss
        if signalled and call == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(*args) * (float("nan") if call == 6 else 1)

    monkeypatch.setattr(DDPM, "loss", broken)
    argv = [*TINY, "--out", tmp_path, "--every", "4"]
    assert refused(life(train.main, *argv), "the loss of step 6 is nan", "--lr")
    saved = runs.load_checkpoint(tmp_path)
    assert saved["step"] == 4 and all(value.isfinite().all() for value in saved["net"].values())
    assert [line["step"] for line in logged(tmp_path)] == [4]


def less_memory(room):
    """A sabotage: so many bytes more than now, and no more."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells the memory in use")
@pytest.mark.parametrize("script, argv, flag", [
    ("train.py", [*TINY, "--batch", "1000000"], "--batch"),
    ("inpaint.py", ["--samples", "60000", "--method", "keep"], "--samples"),
    ("evaluate.py", [*SCORED, "--batch", "100000", "--limit", "100000"], "--batch")])
def test_too_little_memory_names_the_flag(tmp_path, monkeypatch, weights, script, argv, flag):
    monkeypatch.chdir(tmp_path)
    argv = [*argv, *([] if script == "train.py" else ["--weights", weights])]
    answer = life(lambda: runpy.run_path(str(ROOT / script), run_name="__main__"), *argv,
                  sabotage=lambda: less_memory(2 ** 27))
    assert refused(answer, f"out of memory: lower {flag}")


def test_what_one_of_several_processes_refuses_is_said_once(tmp_path, monkeypatch, weights):
    """The others, waiting for it, end without gloo's account of that."""
    monkeypatch.chdir(tmp_path)
    Path("none").mkdir()
    statuses, said = two(tmp_path, evaluate.main, *SCORED, "--weights", weights, "--data", "none")
    assert statuses[0] == 2 and statuses[1]
    assert re.fullmatch("command.py: no image of the test split.*\n", said)


# ---- strangers' files --------------------------------------------------------------------------

class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


def png(width, height, pixels=b""):
    """A PNG that says that it is so large, whatever it holds."""
    def chunk(name, content):
        return (struct.pack(">I", len(content)) + name + content
                + struct.pack(">I", zlib.crc32(name + content)))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(pixels))
            + chunk(b"IEND", b""))


@contextlib.contextmanager
def little_memory_and_time(most=2 ** 30, seconds=10):
    """The block takes neither more memory at its peak, nor more time."""
    def hang(*_):
        raise GeneratorExit(f"it took more than {seconds} s")    # no Exception: nobody catches it

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = signal.signal(signal.SIGALRM, hang)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, kept)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < most


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_pickle_that_would_execute_code_is_refused(tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    content = {"settings": Evil(), "ema": {}, "rng": {}, "optimizer": {}}
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
        net = inpaint.UNet(**content["settings"]["unet"])
    content["ema"] = {name: torch.zeros(()).expand(tensor.shape)
                      for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize("change", [
    claim(widths=[2 ** 20]), claim(blocks=10 ** 9), claim(widths=[8] * 10 ** 6),
    claim(size=2 ** 30), claim(size=0), claim(patch=0), claim(patch=2 ** 20), expand,
    lambda content: content["settings"].update(T=10 ** 12),
    lambda content: content["settings"].update(schedule="__import__"),
    lambda content: content.update(settings=[]), lambda content: content.pop("ema"),
    lambda content: content.update(ema=torch.zeros(3))])
def test_weights_that_claim_what_they_do_not_hold_are_refused_before_memory_is_asked_for(
        tmp_path, weights, change):
    content = files.read_tensors(weights)
    change(content)
    torch.save(content, tmp_path / "weights.pt")
    with little_memory_and_time(2 ** 28), pytest.raises(BadInput, match="not weights"):
        inpaint.load_weights(tmp_path / "weights.pt")


def test_a_checkpoint_that_unpacks_to_more_than_itself_is_refused(tmp_path, weights):
    with zipfile.ZipFile(weights) as source, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for member in source.infolist():
            content = source.read(member)
            if "/data/" in member.filename:
                content += bytes(2 ** 24)
            bomb.writestr(member.filename, content, zipfile.ZIP_DEFLATED)
    with little_memory_and_time(2 ** 26), pytest.raises(BadInput, match="BadZipFile"):
        inpaint.load_weights(tmp_path / "bomb.pt")


@pytest.mark.parametrize("content, said", [
    (png(100_000, 100_000), "exceeds limit"), (png(12_000, 12_000), "not a readable image"),
    (b"BM" + struct.pack("<IIIIiiHHI", 0, 0, 54, 40, 100_000, 100_000, 1, 24, 0) + bytes(24),
     "exceeds limit"),
    (png(0, 0), "not a readable image"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "format"),
    (b"\x89HDF\r\n\x1a\n" + bytes(99), "format")])
def test_images_that_claim_too_much_or_would_run_a_program(tmp_path, monkeypatch, content, said):
    monkeypatch.chdir(tmp_path)
    Path("faces").mkdir()
    Path("faces/a.png").write_bytes(content)
    with zipfile.ZipFile("a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write("faces/a.png", "a.png")
    face = Image.fromarray(data.synthetic(1, 16)[0].numpy())
    for read in (lambda: data.open_image("faces/a.png"), lambda: data.load("faces", "all"),
                 lambda: data.load("a.zip", "all"),
                 lambda: inpaint.read_hole("faces/a.png", {"face": face}, 16, 0)):
        with little_memory_and_time(2 ** 30), pytest.raises(BadInput, match=f"a.png.*{said}"):
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
    with little_memory_and_time(2 ** 27):
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
    assert refused(life(inpaint.main, "faces", *fast), "faces/a b.png: not a readable image")
    assert not Path("ran").exists()


def test_links_pipes_and_loops(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    photographs(Path("faces"), 2)
    Path("faces/link.png").symlink_to("0.png")
    Path("faces/nowhere.png").symlink_to("none.png")
    Path("faces/folder.png").mkdir()
    Path("faces/up.png").symlink_to("..")
    os.mkfifo("faces/pipe.png")
    with little_memory_and_time():
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
    Path("out/0_0.png").symlink_to("../precious")                # replaced, not written through
    assert life(inpaint.main, "faces/0.png", *fast)[0] == 0
    assert Path("precious").read_text() == "precious" and not Path("out/0_0.png").is_symlink()


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
    inpaint.read_hole("mask.png", {"face": Image.new("RGB", (24, 24))}, 16, 0)


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
        net = inpaint.UNet(16, 1, [8, 16], 1)
        state = {"net": net, "ema": net, "optimizer": torch.optim.AdamW(net.parameters())}
        runs.restore(checkpoint, state, torch.Generator())
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
            with little_memory_and_time(2 ** 31):
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
            with little_memory_and_time(2 ** 32):
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


# ---- the same seed, the same picture ------------------------------------------------------------

def test_the_same_seed_draws_the_same_picture_in_any_process_on_any_number_of_threads(
        tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    argv = ["--weights", weights, "--steps", "4", "--eta", "1", "--samples", "3"]
    for threads in (1, 2, 4):
        words = [sys.executable, ROOT / "inpaint.py", *argv, "--out", str(threads)]
        subprocess.run(words, check=True, capture_output=True,
                       env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    pictures = [[np.asarray(Image.open(path)).tobytes() for path in sorted(Path(out).iterdir())]
                for out in sorted(os.listdir("."))]
    assert len(pictures) == 3 and all(pictures[0] == others for others in pictures)


def test_any_number_of_decoding_threads_packs_the_same_cache(tmp_path, monkeypatch):
    faces, pool = photographs(tmp_path / "faces"), data.ThreadPoolExecutor
    caches = []
    for workers in (1, 3, 16):
        monkeypatch.setattr(data, "ThreadPoolExecutor", lambda threads: pool(workers))
        data.load(faces, "all", cache=tmp_path / str(workers))
        caches += [path.read_bytes() for path in (tmp_path / str(workers)).iterdir()]
    assert len(caches) == 3 and len(set(caches)) == 1


def test_every_output_says_how_to_make_it_again(tmp_path, monkeypatch, weights, trained):
    monkeypatch.chdir(tmp_path)
    argv = ["--weights", weights, "--steps", "2", "--samples", "1", "--seed", "7"]
    status, said = life(inpaint.main, *argv, "--out", "é")
    assert status == 0, said
    for path in Path("é").iterdir():
        told = Image.open(path).text
        assert told["command"] == f"python command.py {' '.join(map(str, argv))} --out 'é'"
        assert told["seed"] == "7" and told["torch"] == torch.__version__
        assert told["weights"] == hashlib.sha256(weights.read_bytes()).hexdigest()
        assert told["version"] == files.version() != "unknown" or not (ROOT / ".git").exists()
    assert life(evaluate.main, *SCORED, "--weights", weights, "--out", "scored")[0] == 0
    told = json.loads(Path("scored/results.json").read_text())["origin"]
    assert told["command"].startswith("python command.py --data synthetic")
    assert told.keys() == {"command", "seed", "weights", "version", "torch"}
    for path in Path("scored").rglob("*.png"):
        assert Image.open(path).text == {key: str(value) for key, value in told.items()}
    made = files.read_tensors(trained[0] / "weights.pt")["made with"]
    assert (made["seed"], made["steps"], made["version"]) == (0, 12, files.version())
    assert not {"data", "out", "cache"} & made.keys(), "where things lay is nobody's business"
    assert Image.open(trained[0] / "samples.png").text["steps"] == "12"
