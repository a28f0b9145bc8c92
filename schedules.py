"""Noise schedules: the variances β_1 … β_T of the forward process.

q(x_t | x_{t-1}) = N(√(1-β_t) x_{t-1}, β_t I)                     (Ho et al. 2020, eq. 2)

Every schedule returns β as float64 [T]; index t = 0 is the paper's t = 1. What decides how noisy
an image is at level t is ᾱ_t = ∏_{s≤t} (1-β_s), the share of the signal's variance that is left:
x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε.
"""
import math

import torch


def linear_betas(T=300, start=1e-4, end=0.02):
    """β rises on a straight line from `start` to `end` (Ho et al. 2020, section 4; there T = 1000).

    With T = 300 the chain stops early: ᾱ_T ≈ 0.048, so a fifth of the signal's amplitude
    (√0.048 ≈ 0.22) is still in x_T, while sampling starts from pure noise N(0, I). The mismatch
    costs contrast and colour; the other two schedules avoid it.
    """
    _check(T)
    return torch.linspace(start, end, T, dtype=torch.float64)


def rescaled_betas(T=300):
    """The straight line that T = 1000 has, in T steps: β from 0.1/T to 20/T, so that ᾱ falls as it
    does there, to ᾱ_T ≈ 3.4e-5 at T = 300; up to T = 20, the line ends at 0.999 instead."""
    _check(T)
    return linear_betas(T, 0.1 / T, min(20 / T, 0.999))


def cosine_betas(T=300, s=0.008, largest=0.999):
    """ᾱ falls as a squared cosine from 1 to almost 0 (Nichol and Dhariwal 2021, eq. 17).

    f(u) = cos²((u + s)/(1 + s) · π/2),  ᾱ_t = f((t+1)/T) / f(0),  β_t = 1 - ᾱ_t / ᾱ_{t-1},
    clipped at `largest`: without the clip ᾱ_T would be 0, by whose root `DDPM.predict_x0` divides.
    """
    _check(T)
    u = torch.arange(T + 1, dtype=torch.float64) / T
    f = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=largest)


def _check(T):
    if T < 1:
        raise ValueError(f"a schedule needs T ≥ 1 steps, not {T}")


SCHEDULES = {"linear": linear_betas, "rescaled": rescaled_betas, "cosine": cosine_betas}
