"""What several test files use: small weights, commands in processes of their own, faults."""
import argparse
import contextlib
import faulthandler
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
import evaluate
import inpaint
import train
from baselines import glcic
from support import cli, distributed, files, runs
from unet import UNet

ROOT = Path(__file__).parents[1]
HANG = 600        # seconds, many times what anything here takes on a busy machine
TINY = ("--data synthetic --limit 24 --size 16 --widths 8 16 --patch 1 --blocks 1 --batch 4 --T 3 "
        "--steps 12 --every 2 --save-every 0 --device cpu --no-bf16").split()
N = 5
STATE = ["net", "ema", "muon", "adamw", "rng", "losses", "step"]
SCORED = (f"--data synthetic --limit {N} --batch 2 --steps 2 --samples 2 --no-perceptual --save "
          "--device cpu --methods keep,masked --masks center,irregular").split()
COMMANDS = {"train": (train.main, TINY),
            "inpaint": (inpaint.main, "face.png --steps 2 --samples 1 --device cpu".split()),
            "evaluate": (evaluate.main, SCORED),
            "glcic": (glcic.main, "train --data synthetic --limit 8 --size 16 --width 2 --steps 2 "
                                  "--batch 2 --device cpu".split())}


def save_weights(out, size=16, widths=(8, 16), seed=0):
    """weights.pt of a small network with random layers, so that its fills depend on everything."""
    torch.manual_seed(seed)
    args = argparse.Namespace(out=str(out), size=size, patch=2, widths=[*widths], blocks=1,
                              schedule="cosine", T=20, prediction="v", coarse=None)
    net = UNet(size, 2, widths, 1)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    runs.save(args, train.settings(args), {"ema": net}, "ema", torch.Generator(), 1, [], 8)
    return Path(out) / "weights.pt"


def random_loss(ddpm, eps_model, x0, hole, generator=None):
    """The loss at random levels and noise."""
    t = torch.randint(ddpm.T, (len(x0),), generator=generator)
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    return ddpm.loss(eps_model, x0, hole, t, noise)


def short_or_long(name, short, long):
    """A number for every run, and one for `-m slow`."""
    return pytest.mark.parametrize(name, [short, pytest.param(long, marks=pytest.mark.slow)])


def guard():
    """A hang is a failure, too: after HANG seconds, this process says where it is, and ends."""
    faulthandler.dump_traceback_later(HANG, exit=True, file=2)


def life(main, *argv, sabotage=None, moment=None):
    """A command in a process of its own, forked from this one, as torch takes seconds to import:
    (its exit status, or minus the signal that ended it; what it said). `sabotage` is called in it
    first; at `moment`, in seconds, it is killed."""
    ours, screen = os.pipe()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            os.dup2(screen, 1)
            os.dup2(screen, 2)
            sys.stdout = sys.stderr = open(screen, "w", buffering=1, closefd=False)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            guard()
            sys.argv = ["command.py", *map(str, argv)]
            if sabotage:
                sabotage()
            cli.run(main)
            status = 0
        except SystemExit as ended:
            status = ended.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(screen)
    if moment is not None:
        end, left = time.monotonic() + moment, os.WEXITED | os.WNOHANG | os.WNOWAIT
        while time.monotonic() < end and not os.waitid(os.P_PID, child, left):
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
    with open(ours, errors="replace") as told:
        said = told.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def refused(answer, *said):
    """Status 2 and, below the progress, one line that says so."""
    status, text = answer
    *progress, last = text.splitlines()
    return (status == 2 and re.match(r"\w+\.py: ", last) and all(word in last for word in said)
            and "Traceback" not in text and all(": " in line or not line for line in progress))


def two(tmp_path, work, *argv):
    """work() as a command in two processes that meet as under torchrun; forked, as torch takes
    seconds to import (torchrun itself: test_evaluate.py). Each ends by itself, also when the other
    has failed. Returns (exit statuses, stderr)."""
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    screen = open(tmp_path / "said", "a", buffering=1)

    def process(rank):
        os.dup2(screen.fileno(), 2)
        sys.argv, sys.stderr = ["command.py", *map(str, argv)], screen
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
                       "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        distributed.RANK, distributed.WORLD_SIZE = rank, 2
        guard()
        cli.run(work)

    both = [multiprocessing.get_context("fork").Process(target=process, args=(rank,))
            for rank in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    return [one.exitcode for one in both], Path(screen.name).read_text()


@contextlib.contextmanager
def disk_with_room_for(size):
    """No file can grow beyond so many bytes: to a program, a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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


def photographs(folder, n=40, size=24):
    folder.mkdir(parents=True)
    for i, face in enumerate(data.synthetic(n, size).numpy()):
        Image.fromarray(face).save(folder / f"{i}.png")
    return folder


def photograph(path, width=80, height=60, mode="RGB", **options):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def less_memory(room):
    """A sabotage: so many bytes more than now, and no more."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


@contextlib.contextmanager
def little_memory_and_no_hang(most=2 ** 30):
    """The block takes no more memory at its peak, and ends; the traceback says where it hung."""
    def hang(*_):
        raise GeneratorExit(f"it took more than {HANG} s")       # no Exception: nobody catches it

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = signal.signal(signal.SIGALRM, hang)
    signal.alarm(HANG)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, kept)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < most
