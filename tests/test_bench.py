"""bench.py counts and computes what it says; how fast a machine is, no test can know."""
import argparse
import copy
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import data
import masks
import train
from tools import bench, peers
from unet import UNet


class Products(torch.nn.Module):
    """An eps_model of a convolution and of attention over all pixels, one head of 3 channels."""

    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x, t, hole):
        h = self.convolution(torch.cat([x, hole], dim=1)).flatten(2).transpose(1, 2)[:, None]
        return torch.nn.functional.scaled_dot_product_attention(h, h, h)


def test_operations_against_a_count_by_hand():
    """Backward, each product takes two of its size; but the convolution's input needs none."""
    convolution, attention = 2 * 4 * 3 * 9 * 64, 2 * 2 * 64 * 64 * 3
    assert peers.operations(Products(), 8) == convolution + attention
    assert peers.operations(Products(), 8, backward=True) == 2 * convolution + 3 * attention


def test_the_step_that_is_timed_trains(monkeypatch):
    averaged = []
    monkeypatch.setattr(train, "update_ema", lambda *given: averaged.append(given))
    torch.manual_seed(0)
    net, images = UNet(16, 2, [8, 16], 1), data.to_float(data.synthetic(4, 16))
    args = argparse.Namespace(bf16=False, compile=False, calls=3)
    look, step, sample = bench.works(args, net, images, masks.center(4, 16))
    before = [parameter.clone() for parameter in net.parameters()]
    step()
    assert any((a != b).any() for a, b in zip(before, net.parameters()))
    assert len(averaged) == 1
    assert look().shape == sample().shape == images.shape and not look().requires_grad


def test_plain_or_not_a_step_does_the_same():
    """In float32, that is, where only the loops over parameters differ."""
    torch.manual_seed(0)
    net, images = UNet(16, 2, [8, 16], 1), data.to_float(data.synthetic(4, 16))
    args = argparse.Namespace(bf16=False, compile=False, calls=3)
    steps = []
    for plain in (True, False):
        twin = copy.deepcopy(net)
        torch.manual_seed(1)
        bench.works(args, twin, images, masks.center(4, 16), plain)[1]()
        steps.append(torch.nn.utils.parameters_to_vector(twin.parameters()))
    torch.testing.assert_close(*steps)


def test_the_average_is_the_same_a_parameter_at_a_time():
    averages = []
    for average in (bench.one_by_one, train.update_ema):
        torch.manual_seed(0)
        old, new = UNet(16, 2, [8, 16], 1), UNet(16, 2, [8, 16], 1)
        average(old, new, 0.9)
        averages.append(torch.nn.utils.parameters_to_vector(old.parameters()))
    torch.testing.assert_close(*averages)


def test_the_profile_names_what_takes_the_time_and_nothing_else_is_said(capfd):
    x = torch.ones(800, 800)          # so large that little else takes time, also when shared
    line = bench.profile(lambda: [x @ x for _ in range(20)] + [x + 1], "cpu")
    name, share = line.split(", ")[0].rsplit(" ", 1)
    assert name == "mm" and 50 < int(share.strip("%")) <= 100
    assert capfd.readouterr().err == ""
    os.write(2, b"heard again")
    assert capfd.readouterr().err == "heard again"


def test_the_table_gives_medians_quartiles_and_the_share_of_the_rate(capsys):
    args = argparse.Namespace(device="cpu", batch=2, size=16, bf16=False, compile=False, repeats=5)
    seconds = {"training step | a matrix product": np.array([[2, 2, 2, 2, 9], [1, 2, 4, 6, 90]]),
               "a | b": np.array([[1.0] * 5, [0.5] * 5])}
    bench.report(args, seconds, flops=3e9, product=12e9)
    printed = capsys.readouterr().out
    assert "| training step | a matrix product | 2000 | 4000 | 2 [1 … 3] times faster |" in printed
    assert "| a | b | 1000 | 500 | 2 [2 … 2] times slower |" in printed
    assert "0.0015·10¹² operations a second, 50% of" in printed
    assert torch.__version__ in printed


@pytest.mark.parametrize("patch", [1, 2])
def test_diffusers_network_costs_what_ours_does(patch):
    pytest.importorskip("diffusers")
    net = UNet(32, 2, [32, 64, 96], 1)
    peer, share = peers.diffusers_unet(net, 32, patch)
    assert peer.config.in_channels == 4 * patch ** 2
    assert peers.operations(peer, 32) / peers.operations(net, 32) == pytest.approx(share)
    assert 0.9 < share < 1.1
    x, t, hole = torch.zeros(2, 3, 32, 32), torch.zeros(2).long(), torch.zeros(2, 1, 32, 32)
    assert peer(x, t, hole).shape == net(x, t, hole).shape


def test_every_row_is_measured(monkeypatch, as_user):
    """But for the processes that it starts, which take seconds: those, test_readme.py waits for."""
    started = []
    monkeypatch.setattr(bench, "subprocess", SimpleNamespace(
        run=lambda words, **_: started.append(Path(words[1]).name)))
    monkeypatch.setattr(bench, "profile", partial(bench.profile, steps=1))
    status, printed, err = as_user(bench, *"--batch 2 --repeats 1 --size 16 --widths 8 16 24 "
                                   "--calls 2 --device cpu".split())
    assert status == 0, err
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ")][1:]
    assert {row[0].strip("| ") for row in rows} >= {
        "training step", "forward", "sampling, 2 calls", "holes", "packing JPEGs", "all scores",
        "inpaint.py, 10 calls, start to end"}
    assert ["training step", "the same, plain"] in [[cell.strip("| ") for cell in row[:2]]
                                                    for row in rows]
    assert printed.count("a training step goes into") == 2
    assert all(float(number) > 0 for row in rows for number in row[2:4])
    assert started == 2 * ["inpaint.py", "-c"]


@pytest.mark.parametrize("words", [
    "--size 30", "--size 0", "--batch 0", "--repeats -1", "--calls 301",
                                   "--widths 8 0", "--device nowhere"])
def test_settings_that_cannot_be_get_a_line(as_user, words):
    status, printed, err = as_user(bench, *words.split())
    assert status == 2 and not printed and err.count("\n") == 1 and words.split()[0] in err, err
