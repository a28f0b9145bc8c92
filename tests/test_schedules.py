"""Noise schedules: what holds at any length, and where they end."""
import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch.testing import assert_close

from schedules import SCHEDULES, cosine_betas, linear_betas, rescaled_betas

schedules = st.sampled_from(sorted(SCHEDULES))


@given(name=schedules, T=st.integers(1, 1000))
def test_every_step_adds_noise_and_never_all_of_it(name, T):
    betas = SCHEDULES[name](T)
    assert betas.dtype == torch.float64 and betas.shape == (T,)
    assert ((0 < betas) & (betas < 1)).all()


@given(name=schedules, T=st.integers(1, 1000))
def test_the_signal_only_fades(name, T):
    """ᾱ falls strictly within (0, 1), and with it the signal-to-noise ratio ᾱ/(1-ᾱ)."""
    alphas_bar = torch.cumprod(1 - SCHEDULES[name](T), dim=0)
    assert ((0 < alphas_bar) & (alphas_bar < 1)).all()
    assert (alphas_bar.diff() < 0).all()
    assert ((alphas_bar / (1 - alphas_bar)).diff() < 0).all()


@given(T=st.integers(1, 1000))
def test_linear_is_a_straight_line(T):
    betas = linear_betas(T)
    line = [1e-4 + (0.02 - 1e-4) * t / max(1, T - 1) for t in range(T)]
    assert_close(betas, torch.tensor(line, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("T", [100, 300, 2_000])
def test_rescaled_fades_as_the_thousand_steps_of_the_paper_do(T):
    """At the same share of the way, ln ᾱ agrees, to what Σ β²/2 ≈ 20²/6T says of long steps."""
    paper, ours = (torch.cumprod(1 - betas, dim=0).log()
                   for betas in (linear_betas(1_000), rescaled_betas(T)))
    share = torch.arange(1, 11)
    paper, ours = paper[share * 100 - 1], ours[share * T // 10 - 1]
    assert_close(ours, paper, rtol=0, atol=20 ** 2 / 6 / min(T, 1_000) + 0.02)
    assert_close(rescaled_betas(1_000), linear_betas(1_000))


def test_linear_at_300_stops_with_a_fifth_of_the_amplitude():
    """ln ᾱ_T = Σ ln(1-β_t) ≈ -Σ β - Σ β²/2 = -3.015 - 0.02."""
    end = torch.cumprod(1 - linear_betas(300), dim=0)[-1].item()
    assert end == pytest.approx(math.exp(-3.015 - 0.02), rel=5e-3)
    assert end == pytest.approx(0.048, abs=5e-4)


@given(T=st.integers(2, 1000))
def test_cosine_is_a_squared_cosine_up_to_the_clip(T):
    """ᾱ_t = f((t+1)/T) / f(0), f(u) = cos²((u + s)/(1 + s) · π/2), wherever β ≤ 0.999."""
    def f(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    closed = torch.tensor([f((t + 1) / T) / f(0) for t in range(T - 1)], dtype=torch.float64)
    assert_close(torch.cumprod(1 - cosine_betas(T), dim=0)[:-1], closed, rtol=1e-9, atol=0)


@given(T=st.integers(1, 1000))
def test_cosine_ends_at_the_clip_which_holds_for_the_last_step_alone(T):
    betas = cosine_betas(T)
    assert betas[-1] == 0.999 and (betas[:-1] < 0.999).all()


@given(T=st.integers(30, 1000))
def test_cosine_ends_in_noise(T):
    assert torch.cumprod(1 - cosine_betas(T), dim=0)[-1] < 1e-4


@given(name=schedules, T=st.integers(-5, 0))
def test_no_steps_are_no_schedule(name, T):
    with pytest.raises(ValueError):
        SCHEDULES[name](T)
