"""Processes killed at any moment lose nothing. The long forms: pytest -m slow test_kills.py."""
import contextlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
from PIL import Image

import data
import evaluate
import train
from helpers import (
    ROOT,
    SCORED,
    TINY,
    assert_same_run,
    life,
    photographs,
    short_or_long,
)
from support import files


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
                                   env={**os.environ, "OMP_NUM_THREADS": "1"})  # bit for bit
        with contextlib.suppress(subprocess.TimeoutExpired):
            patience = None if done == kills else rng.uniform(0, 4 * trained[1])
            process.wait(patience)
        if process.poll() is None:
            process.kill()
            done += 1
        said = process.communicate()[1].decode()
        if process.returncode == -signal.SIGKILL:
            training += "training on" in said
            continue
        assert process.returncode == 0, said
        assert_same_run(trained[0], out)
        whole += 1
        if done == kills:
            break
        shutil.rmtree(out)
    print(f"killed {done}, {training} of them at work; came through {whole}")


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
