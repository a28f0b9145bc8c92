"""Muon against the singular value decomposition, and what it is for: fewer steps than AdamW."""
import argparse

import pytest
import torch
from torch.testing import assert_close

import data
import masks
import muon
import train
from ddpm import DDPM
from schedules import cosine_betas
from unet import UNet


def matrix(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 5, 5), (3, 64, 144), (2, 96, 32), (2, 12, 576)])
def test_the_singular_values_follow_the_quintic_and_the_vectors_stay(shape):
    """Computed in float64 from the decomposition: U p(p(p(p(p(S/‖S‖))))) Vᵀ."""
    M = matrix(*shape)
    U, S, Vh = torch.linalg.svd(M.double(), full_matrices=False)
    s = S / S.norm(dim=1, keepdim=True)
    for _ in range(5):
        s = muon.A * s + muon.B * s ** 3 + muon.C * s ** 5
    assert_close(muon.orthogonalize(M).double(), U * s[:, None] @ Vh, rtol=0, atol=2e-4)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("shape", [(2, 40, 360), (2, 360, 40)])
def test_singular_values_end_near_one(shape, bf16):
    X = muon.orthogonalize(matrix(*shape), bf16=bf16)
    values = torch.linalg.svdvals(X)
    assert 0.65 < values.min() and values.max() < 1.25 and X.dtype == torch.float32
    assert torch.equal(X, X.bfloat16().float()) == bf16


def test_bfloat16_keeps_the_vectors_also_of_small_singular_values():
    """From 1 down to 1/1000: as near to U Vᵀ, by the angle, as float32 comes."""
    U, _, Vh = torch.linalg.svd(matrix(1, 64, 144), full_matrices=False)
    M, near = U * torch.logspace(0, -3, 64) @ Vh, []
    for bf16 in (False, True):
        X = muon.orthogonalize(M, bf16=bf16)
        near.append(torch.cosine_similarity(X.flatten(), (U @ Vh).flatten(), dim=0))
    assert near[0] > 0.9 and near[1] > near[0] - 0.01


@pytest.mark.parametrize("bf16, atol", [(False, 1e-5), (True, 0.05)])
def test_each_matrix_of_a_batch_is_treated_alone_and_its_scale_does_not_matter(bf16, atol):
    M, zeros = matrix(3, 16, 24), torch.zeros(1, 4, 4)
    together = muon.orthogonalize(M * torch.tensor([1.0, 1e-4, 1e4])[:, None, None], bf16=bf16)
    for i in range(3):
        alone = muon.orthogonalize(M[i:i + 1], bf16=bf16)[0]
        assert_close(together[i], alone, rtol=0, atol=atol)
    assert torch.equal(muon.orthogonalize(zeros, bf16=bf16), zeros)


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (8, 6, 3, 3)])
def test_two_steps_are_those_of_the_docstring(shape):
    W, G = matrix(*shape), [matrix(*shape, seed=seed) for seed in (1, 2)]
    weight = torch.nn.Parameter(W.clone())
    optimizer = muon.Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.2)
    M, scale = torch.zeros(shape), 0.2 * max(weight.flatten(1).shape) ** 0.5
    for gradient in G:
        weight.grad = gradient.clone()
        optimizer.step()
        M = 0.9 * M + 0.1 * gradient
        ahead = (0.9 * M + 0.1 * gradient).flatten(1)
        W = (1 - 0.1 * 0.2) * W - 0.1 * scale * muon.orthogonalize(ahead[None])[0].view(shape)
        assert_close(weight.data, W, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bf16", [False, True])
def test_it_computes_in_bfloat16_where_training_does(monkeypatch, bf16):
    used = []
    monkeypatch.setattr(muon, "orthogonalize", lambda M, bf16: used.append(bf16) or M)
    args = argparse.Namespace(seed=0, size=16, patch=2, widths=[16, 32], blocks=1, init=None,
                              bf16=bf16, coarse=None)
    net, _, optimizer, _ = train.build(args, torch.device("cpu")).values()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert set(used) == {bf16}


def test_a_step_is_as_long_as_adamws():
    """The root mean square of an update is about 0.2 lr, whatever the shape."""
    for shape in ((64, 64), (64, 576), (192, 64)):
        weight = torch.nn.Parameter(torch.zeros(shape))
        weight.grad = matrix(*shape)
        muon.Muon([weight], lr=1.0).step()
        assert 0.14 < weight.square().mean().sqrt() < 0.25


def test_the_defaults_are_those_that_the_pilots_chose():
    defaults = muon.Muon([torch.nn.Parameter(torch.zeros(2, 2))]).defaults
    assert defaults == {"lr": 0.005, "momentum": 0.95, "weight_decay": 0.1}


def test_every_parameter_has_one_optimizer():
    net = UNet()
    matrices, others = muon.split(net)
    assert {*map(id, matrices)} | {*map(id, others)} == {*map(id, net.parameters())}
    assert len(matrices) + len(others) == len([*net.parameters()])
    assert min(p.ndim for p in matrices) == 2 and sum(p.numel() for p in others) < 31_000


def test_it_overfits_eight_images_in_fewer_steps_than_adamw():
    """The same network, images and noise, over three seeds; AdamW at the better of two rates."""
    def final(make):
        return sum(loss(make, seed) for seed in range(3))

    def loss(make, seed):
        torch.manual_seed(seed)
        generator, net = torch.Generator().manual_seed(seed), UNet(16, 1, (24, 32), 1)
        x0, hole = data.to_float(data.synthetic(8, 16)), masks.center(8, 16)
        optimizers, losses = make(net), []
        for step in range(60):
            train.set_lr(optimizers, [o.defaults["lr"] for o in optimizers],
                         train.lr_factor(step, 60, 6))
            losses.append(train.algorithm_1(DDPM(cosine_betas(50), "v"), net, optimizers, x0, hole,
                                            generator).item())
        return sum(losses[-15:]) / 15

    def both(net):
        matrices, others = muon.split(net, 256)
        return [muon.Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=3e-3)]

    def adamw(lr):
        return lambda net: [torch.optim.AdamW(net.parameters(), lr=lr)]

    assert final(both) < 0.97 * min(final(adamw(lr)) for lr in (3e-3, 6e-3))
