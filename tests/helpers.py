"""What several test files use: small weights, commands in processes of their own, faults."""
import argparse
import contextlib
import multiprocessing.connection
import os
import re
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch

import train
from support import cli, distributed, runs
from unet import UNet

ROOT = Path(__file__).parents[1]


def save_weights(out, size=16, widths=(8, 16), seed=0):
    """weights.pt of a small network with random layers, so that its fills depend on everything."""
    torch.manual_seed(seed)
    args = argparse.Namespace(out=str(out), size=size, patch=2, widths=[*widths], blocks=1,
                              schedule="cosine", T=20, prediction="v")
    net = UNet(size, 2, widths, 1)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    runs.save(args, train.settings(args), {"ema": net}, "ema", torch.Generator(), 1, [])
    return Path(out) / "weights.pt"


def random_loss(ddpm, eps_model, x0, hole, generator=None):
    """The loss at random levels and noise."""
    t = torch.randint(ddpm.T, (len(x0),), generator=generator)
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    return ddpm.loss(eps_model, x0, hole, t, noise)


def short_or_long(name, short, long):
    """A number for every run, and one for `-m slow`."""
    return pytest.mark.parametrize(name, [short, pytest.param(long, marks=pytest.mark.slow)])


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
            signal.alarm(120)                                    # a hang is a failure, too
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
        time.sleep(moment)
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
    """work() as a command in two processes that meet as under torchrun, and when one has failed
    the other is told to end; forked, as torch takes seconds to import (torchrun itself:
    test_evaluate.py). Returns (exit statuses, stderr)."""
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    screen = open(tmp_path / "said", "a", buffering=1)

    def process(rank):
        os.dup2(screen.fileno(), 2)
        sys.argv, sys.stderr = ["command.py", *map(str, argv)], screen
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
                       "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        distributed.RANK, distributed.WORLD_SIZE = rank, 2
        signal.alarm(120)                                            # a hang is a failure, too
        cli.run(work)

    both = [multiprocessing.get_context("fork").Process(target=process, args=(rank,))
            for rank in range(2)]
    for one in both:
        one.start()
    multiprocessing.connection.wait([one.sentinel for one in both])
    time.sleep(0.1)                                                  # as often as torchrun looks
    for one in both:
        if any(other.exitcode for other in both):
            one.terminate()
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
