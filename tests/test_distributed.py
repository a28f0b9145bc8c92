"""Two processes train as one does: the same losses, the same gradient, and no file but once."""
import json
import os
import re
import signal

import pytest
import torch

import data
import masks
import train
from ddpm import DDPM
from helpers import two
from schedules import cosine_betas
from support import cli, distributed, runs
from support.cli import BadInput
from unet import UNet

TINY = ("--data synthetic --limit 24 --size 16 --widths 8 16 --patch 1 --blocks 1 --batch 4 "
        "--steps 7 --every 3 --save-every 0 --warmup 2 --device cpu --no-bf16").split()


def signalled(rank, number):
    """Training in which one process gets a signal in step 5, and only the first may write."""
    def work():
        def update_ema(*args, update_ema=train.update_ema, calls=iter(range(100))):
            update_ema(*args)
            if next(calls) == 4 and distributed.RANK == rank:
                os.kill(os.getpid(), number)

        if distributed.RANK > 0:
            runs.save = runs.Run.log = train.draw_samples = None
        train.update_ema = update_ema
        train.main()
    return work


def gradient(eps_model, net):
    """(loss, gradient) of Algorithm 1 on four images, whose unlike holes give the slices unlike
    losses."""
    x0, hole = data.to_float(data.synthetic(4, 16)), masks.center(4, 16)
    hole[2:] = 1
    loss = train.algorithm_1(DDPM(cosine_betas(50), "v"), eps_model, [], distributed.share(x0),
                             distributed.share(hole), torch.Generator().manual_seed(1))
    return distributed.mean(loss.detach()), [parameter.grad for parameter in net.parameters()]


def network():
    torch.manual_seed(0)
    net = UNet(16, 1, [8, 16], 1)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net


def alone(out, *argv):
    args, checkpoint = train.parse([*TINY, "--out", str(out), *argv])
    train.train(args, checkpoint)


def same(one, other):
    """The same log and the same network, up to rounding."""
    losses = [[(line["step"], line["loss"]) for line in map(json.loads, open(out / "log.jsonl"))]
              for out in (one, other)]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=0, atol=2e-5)
    a, b = (torch.cat([value.flatten() for value in runs.load_checkpoint(out)["net"].values()])
            for out in (one, other))
    assert (a - b).norm() < 1e-4 * a.norm()    # AdamW makes much of a gradient that is rounding


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    alone(out)
    return out


def test_the_loss_and_the_gradient_are_those_of_the_whole_batch(tmp_path):
    def work():
        with distributed.joined():
            net = network()
            found = gradient(distributed.parallel(net), net)
            torch.save(found, tmp_path / f"{distributed.RANK}.pt")

    statuses, said = two(tmp_path, work)
    assert statuses == [0, 0], said
    net = network()
    expected = gradient(net, net)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_begun_on_two_stopped_by_a_signal_to_one_and_ended_on_one(tmp_path, whole):
    out = tmp_path / "run"
    statuses, said = two(tmp_path, signalled(1, signal.SIGINT), *TINY, "--out", out)
    assert statuses == [130, 130] and said.count("interrupted: step 5 is saved") == 1
    assert runs.load_checkpoint(out)["step"] == 5
    alone(out, "--resume")
    same(out, whole)


def test_begun_on_one_and_ended_on_two(tmp_path, whole, monkeypatch):
    out, calls = tmp_path / "run", iter(range(100))
    monkeypatch.setattr(train, "update_ema", lambda *args, update_ema=train.update_ema: (
        update_ema(*args), 1 // (4 - next(calls))))
    with pytest.raises(ZeroDivisionError):                        # a power cut in step 5
        alone(out)
    assert runs.load_checkpoint(out)["step"] == 3
    statuses, said = two(tmp_path, train.main, "--out", out, "--resume")
    assert statuses == [0, 0], said
    same(out, whole)
    assert {path.name for path in out.iterdir()} == {
        "checkpoint.pt", "weights.pt", "log.jsonl", "samples.png"}


def test_a_killed_process_ends_the_job_with_one_line_and_the_last_checkpoint(tmp_path):
    out = tmp_path / "run"
    statuses, said = two(tmp_path, signalled(1, signal.SIGKILL), *TINY, "--out", out)
    assert statuses == [1, -signal.SIGKILL]
    assert len(re.findall(r"another process of this job has ended.*\(.*gloo.*\)", said)) == 1
    assert runs.load_checkpoint(out)["step"] == 3
    assert not list(out.glob(".*.tmp"))


def test_bad_input_is_said_once(tmp_path):
    out = tmp_path / "run"
    statuses, said = two(tmp_path, train.main, *TINY, "--out", out, "--batch", 3)
    assert statuses[0] == 2 and statuses[1] and said.count("cannot be shared out evenly") == 1
    assert "another process" not in said and not out.exists()


def test_processes_that_cannot_meet_say_why(monkeypatch):
    monkeypatch.setattr(distributed, "WORLD_SIZE", 2)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(BadInput, match="2 processes could not meet: .*RANK expected"):
        with distributed.joined():
            pass


def test_a_process_takes_its_own_gpu_and_there_must_be_one(monkeypatch):
    taken = []
    for name, value in {"is_available": True, "device_count": 4}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: torch.ones(shape))
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cli.device("cuda") == "cuda" and taken == [3]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "5")
    assert cli.device("cpu") == "cpu" and taken == [3]
    with pytest.raises(BadInput, match="--nproc_per_node 5: this machine has 4 GPUs"):
        cli.device("cuda")
