"""Scores against slow computations and closed forms."""
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import data
import masks
import scores


def example(B=3, K=4, size=24):
    images = data.synthetic(B, size)
    hole = masks.random(B, size, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(-40, 41, (B, K, size, size, 3), generator=generator)
    inside = hole.permute(0, 2, 3, 1)[:, None]
    fills = (images[:, None] + (noise * inside).long()).clamp(0, 255).byte()
    return images, fills, hole


def test_scores_against_slow_computations():
    images, fills, hole = example()
    scored = scores.score(images, fills, hole)
    for b in range(len(images)):
        truth, x = images[b].double().numpy(), fills[b].double().numpy()
        inside = hole[b, 0].numpy() > 0
        errors = (x - truth)[:, inside]

        def psnr(squares):
            return 10 * math.log10(255 ** 2 / squares.mean())

        pairs = np.mean([np.abs(x[i] - x[j])[inside].mean()
                         for i in range(4) for j in range(4) if i != j])
        slow = {"psnr_hole": psnr(errors[0] ** 2), "psnr": psnr((x[0] - truth) ** 2),
                "psnr_hole_mean": psnr(errors.mean(axis=0) ** 2),
                "psnr_hole_best": max(psnr(e ** 2) for e in errors),
                "l1": np.abs(errors[0]).mean(), "crps": np.abs(errors).mean() - pairs / 2,
                "diversity": x.var(axis=0, ddof=1)[inside].mean() ** 0.5}
        for name, value in slow.items():
            assert scored[name][b].item() == pytest.approx(value, rel=1e-5), name
        assert scored["ssim"][b].item() == pytest.approx(ssim(x[0], truth), rel=1e-4)


def ssim(x, y):
    """Wang et al. 2004, eq. 13, averaged over every pixel, the image mirrored at its edges."""
    def blur(image):
        return gaussian_filter(image, (1.5, 1.5, 0), truncate=3.5, mode="mirror")

    (mx, my), c1, c2 = (blur(x), blur(y)), (0.01 * 255) ** 2, (0.03 * 255) ** 2
    vx, vy, covariance = blur(x * x) - mx ** 2, blur(y * y) - my ** 2, blur(x * y) - mx * my
    return ((2 * mx * my + c1) * (2 * covariance + c2)
            / ((mx ** 2 + my ** 2 + c1) * (vx + vy + c2))).mean()


def test_a_perfect_fill_scores_perfectly():
    images, _, hole = example()
    scored = scores.score(images, images[:, None].expand(-1, 2, -1, -1, -1), hole)
    for name, best in {"psnr_hole": math.inf, "psnr": math.inf, "ssim": 1, "l1": 0, "crps": 0,
                       "diversity": 0}.items():
        assert all(scored[name] == best), name


def test_crps_of_a_gaussian_matches_its_closed_form():
    """σ (z (2Φ(z) - 1) + 2φ(z) - 1/√π), z = (y-μ)/σ (Gneiting and Raftery 2007, eq. 5)."""
    sigma, offset, K = 20.0, 15.0, 400
    images = torch.full((1, 32, 32, 3), 128, dtype=torch.uint8)
    draws = torch.randn(1, K, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    fills = (128 + offset + sigma * draws).round().byte()
    scored = scores.score(images, fills, masks.full(1, 32))
    z = -offset / sigma
    Phi, phi = 0.5 * (1 + math.erf(z / 2 ** 0.5)), math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    exact = sigma * (z * (2 * Phi - 1) + 2 * phi - 1 / math.sqrt(math.pi))
    assert scored["crps"].item() == pytest.approx(exact, rel=0.01)
    assert scored["diversity"].item() == pytest.approx(sigma, rel=0.01)


def test_crps_is_unbiased_at_two_samples_and_blurring_does_not_win():
    generator = torch.Generator().manual_seed(0)
    truth = (128 + 20 * torch.randn(1, 64, 64, 3, generator=generator)).round().byte()
    draws = (128 + 20 * torch.randn(1, 2, 64, 64, 3, generator=generator)).round().byte()
    hole = masks.full(1, 64)
    honest = scores.score(truth, draws, hole)["crps"].item()
    blurred = scores.score(truth, torch.full_like(draws, 128), hole)["crps"].item()
    assert honest == pytest.approx(20 / math.sqrt(math.pi), rel=0.03)
    assert blurred > 1.2 * honest
    honest, blurred = (scores.score(truth, x, hole)["psnr_hole"].item()
                       for x in (draws, torch.full_like(draws, 128)))
    assert blurred > honest + 2, "PSNR, by contrast, rewards the blur"


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_spread_skill_is_the_ratio_of_told_to_true_spread(factor):
    generator = torch.Generator().manual_seed(0)
    truth = (128 + 15 * torch.randn(1, 64, 64, 3, generator=generator)).round().byte()
    fills = (128 + factor * 15 * torch.randn(1, 5, 64, 64, 3, generator=generator)).round().byte()
    scored = scores.score(truth, fills, masks.full(1, 64))
    ratio = scores.spread_skill(scored["variance"].item(), scored["error"].item(), 5)
    # E(mean of K - y)² = σ² (1 + f²/K); told: (K+1)/K f² σ²
    assert ratio == pytest.approx((1.2 * factor ** 2 / (1 + factor ** 2 / 5)) ** 0.5, rel=0.03)


def test_the_bootstrap_interval_covers_the_truth_nineteen_times_in_twenty():
    draws = np.random.default_rng(0).exponential(size=(300, 60))
    covered = [low <= 1 <= high for _, low, high in
               (scores.interval(row, seed, 500) for seed, row in enumerate(draws))]
    assert 0.88 <= np.mean(covered) <= 0.98
