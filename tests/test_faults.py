"""Faults made on purpose: full disks, signals, too little memory; and one seed, one picture."""
import contextlib
import hashlib
import itertools
import json
import os
import random
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
import evaluate
import inpaint
import train
from ddpm import DDPM
from helpers import (
    COMMANDS,
    HANG,
    ROOT,
    SCORED,
    STATE,
    TINY,
    assert_same_run,
    disk_with_room_for,
    less_memory,
    life,
    logged,
    photograph,
    photographs,
    refused,
    short_or_long,
    two,
)
from support import files, runs
from support.cli import BadInput


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
            time.sleep(HANG)
        os._exit(0)
    os.read(ready, 1)
    assert refused(life(main, *argv), "another process is at work there")
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    assert life(main, *argv)[0] == 0
    assert not (tmp_path / "out" / ".weights.pt.123.tmp").exists(), "half a file was left over"


def test_who_waits_for_a_folder_that_is_then_removed_makes_it_anew(tmp_path):
    """Several times, as the two ends of a lock meet in either order."""
    def second():
        with files.lock_folder(out, wait=True):
            (out / "written").write_text("by the second")

    for out in (tmp_path / str(i) for i in range(20)):
        with ThreadPoolExecutor() as pool:
            with files.lock_folder(out):
                waiting = pool.submit(second)
                time.sleep(0.01)
            waiting.result(HANG)
        assert (out / "written").read_text() == "by the second"


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
    told = json.loads(Path("scored/results.json").read_text())["provenance"]
    assert told["command"].startswith("python command.py --data synthetic")
    assert told.keys() == {"command", "seed", "weights", "version", "torch"}
    for path in Path("scored").rglob("*.png"):
        assert Image.open(path).text == {key: str(value) for key, value in told.items()}
    made = files.read_tensors(trained[0] / "weights.pt")["made with"]
    assert (made["seed"], made["steps"], made["version"]) == (0, 12, files.version())
    assert not {"data", "out", "cache"} & made.keys(), "where things lay is nobody's business"
    assert Image.open(trained[0] / "samples.png").text["steps"] == "12"


def test_debug_shows_the_traceback_behind_a_line(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    argv = ["nothing.jpg", "--weights", weights]
    status, said = life(inpaint.main, *argv)
    assert refused((status, said), "nothing.jpg: no such file")
    monkeypatch.setenv("DEBUG", "1")
    status, said = life(inpaint.main, *argv)
    assert status and "Traceback" in said and "in decode" in said


# ---- streams -----------------------------------------------------------------------------------

FILL = [sys.executable, ROOT / "inpaint.py", "face.png", "--steps", "2", "--samples", "1",
        "--device", "cpu", "--weights"]


def shell(tmp_path, weights, end):
    photograph(tmp_path / "face.png")
    words = f"set -o pipefail; {shlex.join(map(str, [*FILL, weights]))} {end}"
    return subprocess.run(["bash", "-c", words], cwd=tmp_path, text=True, capture_output=True,
                          timeout=600)


def test_a_closed_screen_is_not_silence(tmp_path, weights):
    answer = shell(tmp_path, weights, "--mask nowhere.png 2>&-")
    assert answer.returncode == 2 and "nowhere.png" in answer.stdout
    assert shell(tmp_path, weights, "--mask center >&- 2>&-").returncode == 0
    assert (tmp_path / "out/face_0.png").read_bytes()[:4] == b"\x89PNG"


def test_a_reader_that_leaves_is_not_an_error(tmp_path, weights):
    answer = shell(tmp_path, weights, "--mask center | true")
    assert answer.returncode == 0 and "Traceback" not in answer.stderr
    assert (tmp_path / "out/face_0.png").exists()


@pytest.mark.parametrize("script", ["train.py", "inpaint.py", "evaluate.py"])
def test_help_in_an_encoding_that_lacks_its_characters_and_without_docstrings(script):
    words = [sys.executable, "-OO", ROOT / script, "--help"]
    answer = subprocess.run(words, capture_output=True, timeout=600,
                            env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert answer.returncode == 0 and b"--seed" in answer.stdout


def test_two_fills_into_one_folder(tmp_path, weights, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photograph(tmp_path / "face.png")
    argv = ("face.png", "--steps", 2, "--samples", 1, "--weights", weights, "--device", "cpu")
    with files.lock_folder("out"):
        assert refused(life(inpaint.main, *argv), "another process is at work there")
    assert life(inpaint.main, *argv)[0] == 0
