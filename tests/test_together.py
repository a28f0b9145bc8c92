"""Two processes train as one does: the same losses, the same gradient, and no file but once."""
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import data
import masks
import train
from ddpm import DDPM
from schedules import cosine_betas
from unet import UNet

ROOT = Path(__file__).parents[1]
TINY = ("--data synthetic --limit 24 --size 16 --widths 8 16 --patch 1 --blocks 1 --batch 4 "
        "--steps 7 --every 3 --warmup 2 --device cpu").split()
SIGNAL = """
if together.RANK > 0:
    train.save = train.log = train.draw = None                    # only the first may write
average = train.average
calls = iter(range(100))
def signalled(*args):
    average(*args)
    if next(calls) == 4 and together.RANK == {rank}:
        os.kill(os.getpid(), signal.{name})
train.average = signalled
safety.run(train.main)
"""


def gradient(eps_model, net):
    """Of the loss on a batch of four: of unlike holes, so that the slices' losses differ."""
    generator = torch.Generator().manual_seed(1)
    hole = torch.cat([masks.center(2, 16), masks.full(2, 16)])
    loss = DDPM(cosine_betas(50), "v").loss(eps_model, data.to_float(data.synthetic(4, 16)), hole,
                                            generator)
    loss.backward()
    return loss.item(), [parameter.grad for parameter in net.parameters()]


def network():
    torch.manual_seed(0)
    net = UNet(16, 1, [8, 16], 1)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net


def two(tmp_path, code, *argv):
    """Run Python code as two processes, as torchrun does; returns (exit status, stderr)."""
    script = tmp_path / "train.py"
    script.write_text(f"import os, signal, sys\nsys.path[:0] = [{str(ROOT)!r}, "
                      f"{str(ROOT / 'tests')!r}]\nimport safety, together, torch, train\n"
                      f"torch.set_num_threads(1)\n{code}")
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                           "--nproc_per_node", "2", script, *map(str, argv)], cwd=tmp_path,
                          capture_output=True, text=True, timeout=120,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    return done.returncode, done.stderr


def alone(out, *argv):
    args, checkpoint = train.parse([*TINY, "--out", str(out), *argv])
    if checkpoint:
        train.cut_log(out, checkpoint["step"])
    train.train(args, checkpoint)


def same(one, other):
    """The same log and the same network, up to rounding."""
    losses = [[(line["step"], line["loss"]) for line in map(json.loads, open(out / "log.jsonl"))]
              for out in (one, other)]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=0, atol=2e-5)
    a, b = (torch.cat([value.flatten() for value in train.load_checkpoint(out)["net"].values()])
            for out in (one, other))
    assert (a - b).norm() < 1e-4 * a.norm()    # AdamW makes much of a gradient that is rounding


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    alone(out)
    return out


def test_the_loss_and_the_gradient_are_those_of_the_whole_batch(tmp_path):
    status, said = two(tmp_path, """
from test_together import gradient, network
with together.joined():
    net = network()
    eps_model = together.share(net)
    torch.save(gradient(eps_model, net), f"{together.RANK}.pt")
""")
    assert status == 0, said
    net = network()
    expected = gradient(net, net)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_begun_on_two_stopped_by_a_signal_to_one_and_ended_on_one(tmp_path, whole):
    out = tmp_path / "run"
    status, said = two(tmp_path, SIGNAL.format(rank=1, name="SIGINT"), *TINY, "--out", out)
    assert status != 0 and said.count("interrupted: step 5 is saved") == 1
    assert train.load_checkpoint(out)["step"] == 5
    alone(out, "--resume")
    same(out, whole)


def test_begun_on_one_and_ended_on_two(tmp_path, whole, monkeypatch):
    out, calls = tmp_path / "run", iter(range(100))
    monkeypatch.setattr(train, "average", lambda *args, average=train.average: (
        average(*args), 1 // (4 - next(calls))))
    with pytest.raises(ZeroDivisionError):                        # a power cut in step 5
        alone(out)
    assert train.load_checkpoint(out)["step"] == 3
    status, said = two(tmp_path, "safety.run(train.main)", "--out", out, "--resume")
    assert status == 0, said
    same(out, whole)
    assert {path.name for path in out.iterdir()} == {
        "checkpoint.pt", "weights.pt", "log.jsonl", "samples.png"}


def test_a_killed_process_ends_the_job_with_one_line_and_the_last_checkpoint(tmp_path):
    out = tmp_path / "run"
    status, said = two(tmp_path, SIGNAL.format(rank=1, name="SIGKILL"), *TINY, "--out", out)
    assert status != 0
    assert len(re.findall("another process of this job has ended", said)) == 1
    assert train.load_checkpoint(out)["step"] == 3
    assert not list(out.glob(".*.tmp"))


def test_bad_input_is_said_once(tmp_path):
    status, said = two(tmp_path, "safety.run(train.main)", *TINY, "--out", "run", "--batch", 3)
    assert status != 0 and said.count("cannot be shared out evenly") == 1
    assert "another process" not in said and not (tmp_path / "run").exists()
