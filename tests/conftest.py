"""Every run draws the same examples, on one thread; run `python -m pytest` from the top folder."""
import signal
import sys
import threading
import time

import support.threads

import hypothesis
import pytest
import torch
import torch._dynamo  # which the first optimizer would import: once, and not in every fork
import tqdm

import inpaint
import train
from helpers import TINY, life, save_weights
from support import cli

SIGNALS = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
torch.set_num_threads(1)
tqdm.tqdm.monitor_interval = 0                               # no thread for a fork to leave behind
tqdm.tqdm.set_lock(threading.RLock())        # its own would stay locked by a killed fork
hypothesis.settings.register_profile(
    "seeded", deadline=None, derandomize=True, max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.too_slow])    # by the clock, which proves nothing
hypothesis.settings.load_profile("seeded")


@pytest.fixture
def as_user(tmp_path, monkeypatch, capsys):
    """Runs a command where a user would, in a folder of its own: call(module, *argv) returns (exit
    status, what it printed on both streams)."""
    monkeypatch.chdir(tmp_path)

    def call(module, *argv):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, argv)])
        try:
            cli.run(module.main)
            status = 0
        except SystemExit as ended:
            status = ended.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


@pytest.fixture(autouse=True)
def signals():
    """Give the test runner its own Ctrl-C back, also from a module's fixture that trained."""
    yield
    for number, handler in SIGNALS.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """An uninterrupted run, and the seconds that it took."""
    out, begun = tmp_path_factory.mktemp("trained") / "whole", time.time()
    status, said = life(train.main, *TINY, "--out", out)
    assert status == 0, said
    return out, time.time() - begun


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    path = save_weights(tmp_path_factory.mktemp("weights"), seed=0)
    inpaint.load_weights(path)                               # nobody may not import what this does
    return path


@pytest.fixture(scope="session")
def weights_32(tmp_path_factory):
    """Of a network for images of 32×32 pixels; those of `weights` have 16×16."""
    return save_weights(tmp_path_factory.mktemp("weights"), 32)


@pytest.fixture
def fill_as_user(weights_32, as_user):
    """Run inpaint.py, with those weights, with arguments."""
    return lambda *argv: as_user(inpaint, "--weights", weights_32, "--device", "cpu", *argv)
