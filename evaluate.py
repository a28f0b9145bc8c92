"""Score inpainters side by side: the same held-out images, the same holes, the same seeds.

    python evaluate.py --data PATH/TO/celeba --split val --masks center,irregular --samples 4

Every score is of the composite, known pixels exact, in 8 bits, as a viewer would get it; a method
that touches a known pixel is refused. Writes, under --out: `table.md`, `scores.csv` (a row an
image, mask and method), `results.json` (settings, means, intervals), `holes.npz`, `preview.png`.
"""
import argparse
import csv
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchmetrics.functional.image import (peak_signal_noise_ratio,
                                           structural_similarity_index_measure)
from tqdm import tqdm

import data
import inpaint
import masks
from safety import BadInput, run, whole

SCORES = {"psnr_hole": "PSNR in the hole, one sample, dB",
          "psnr_hole_mean": "… of the mean of all samples",
          "psnr_hole_best": "… of the best sample",
          "psnr": "PSNR of the whole image, one sample, dB",
          "ssim": "SSIM of the whole image, one sample (Gaussian window 11, σ 1.5)",
          "l1": "mean |error| in the hole, one sample, of 255",
          "crps": "continuous ranked probability score in the hole, of 255: lower is better, and "
                  "blurring does not win it",
          "diversity": "standard deviation over samples in the hole, of 255"}


# ---- methods: anything with inpaint(image, hole, generator) -> image --------------------------
# image [B, 3, H, W] in [-1, 1], hole [B, 1, H, W]; generator: a list of one an image.

def keep(args):
    """The network, known pixels kept: inpaint.py's own way."""
    ddpm, eps_model, _ = inpaint.load_weights(args.weights, args.device)
    return lambda image, hole, generator: ddpm.sample(eps_model, image, hole, args.steps, args.eta,
                                                      generator)


def mean(args):
    """The mean face of the training split."""
    face = data.to_float(training_images(args)).mean(dim=0).to(args.device)
    return lambda image, hole, generator: torch.where(hole > 0, face, image)


def ridge(args, penalty=0.02):
    """Linear regression from the known pixels to the hole, in closed form, for any hole.

    With the covariance Σ of the training images (its diagonal raised by the ridge `penalty`) and
    its inverse Λ, the best linear guess is x_h = μ_h - Λ_hh⁻¹ Λ_hk (x_k - μ_k): after one inversion
    (0.6 GB at 64×64, half a minute) an image costs one solve in the hole's pixels alone.
    """
    x = data.to_float(training_images(args)).flatten(1).to(args.device)
    mu = x.mean(dim=0)
    x -= mu
    precision = x.T @ x / len(x)
    precision.diagonal().add_(penalty)
    precision = torch.cholesky_inverse(torch.linalg.cholesky(precision))

    def one(image, inside):
        seen = torch.where(inside, 0, image - mu)
        wanted = precision[inside]                                              # [hole, all]
        root = torch.linalg.cholesky(wanted[:, inside])
        guess = mu[inside] - torch.cholesky_solve((wanted @ seen)[:, None], root)[:, 0]
        return image.index_put((inside,), guess)

    def fill(image, hole, generator):
        inside = (hole > 0).expand_as(image).flatten(1)
        return torch.stack([*map(one, image.flatten(1), inside)]).reshape(image.shape)
    return fill


def biharmonic(args):
    """The smoothest surface through the hole's rim (scikit-image)."""
    from skimage.restoration import inpaint_biharmonic

    def fill(image, hole, generator):
        filled = [inpaint_biharmonic(x.permute(1, 2, 0).numpy(), h[0].numpy() > 0, channel_axis=-1)
                  for x, h in zip(image.cpu(), hole.cpu())]
        filled = torch.from_numpy(np.stack(filled)).float().permute(0, 3, 1, 2).to(image.device)
        return torch.where(hole > 0, filled, image)
    return fill


METHODS = {"keep": keep, "mean": mean, "ridge": ridge, "biharmonic": biharmonic}
SAMPLERS = {"keep"}        # methods that draw: the others give the same fill whatever the generator


def training_images(args):
    return data.load(args.train or args.data, "train", args.size, args.crop, None, args.cache)


# ---- scores ----------------------------------------------------------------------------------

def fills_of(name, method, images, hole, first, samples, seed):
    """uint8 [B, samples, H, W, 3]: sample k of image i has a generator of its own, of (seed, i, k).

    Raises BadInput, naming the method, if a fill is misshapen, not finite, or not exactly the image
    outside the hole (which a fill in another range than [-1, 1] is not, either).
    """
    known = torch.where(hole > 0, 0.0, data.to_float(images).to(hole.device))   # nothing to peek at
    drawn = []
    for k in range(samples):
        seeds = [(seed * 1_000_003 + first + i) * 1_000 + k for i in range(len(images))]
        filled = method(known, hole, [torch.Generator().manual_seed(s) for s in seeds])
        if filled.shape != known.shape or not torch.isfinite(filled).all():
            raise BadInput(f"method {name}: a fill must be finite and of the image's shape, "
                           f"{tuple(known.shape)}; this one is of shape {tuple(filled.shape)}")
        fill = data.to_uint8(filled.float()).cpu()
        if not torch.equal(fill[~inside(hole)], images[~inside(hole)]):
            raise BadInput(f"method {name}: a fill must keep the known pixels exactly, in [-1, 1]")
        drawn.append(fill)
    return torch.stack(drawn, dim=1)


def inside(hole):
    """hole [B, 1, H, W] as an index into uint8 images [B, H, W, 3]."""
    return hole[:, 0].cpu() > 0


def score(images, fills, hole):
    """Every score of every image: {name: float64 [B]}.

    images uint8 [B, H, W, 3]; fills uint8 [B, K, H, W, 3]; hole [B, 1, H, W].
    Known pixels are exact, so the hole's squared error is the whole image's divided by the hole's
    share of the image: PSNR in the hole = PSNR + 10 log10(share).
    """
    truth = images.permute(0, 3, 1, 2).double()
    x = fills.permute(1, 0, 4, 2, 3).double()                                # [K, B, 3, H, W]
    share = hole.mean(dim=(1, 2, 3)).double()

    def psnr(image):
        return peak_signal_noise_ratio(image, truth, 255.0, reduction="none", dim=(1, 2, 3))

    def in_hole(values):                                       # mean over the hole and channels
        return (values * hole).sum(dim=(-3, -2, -1)) / hole.sum(dim=(-3, -2, -1)) / 3

    level, K, centre = 10 * share.log10(), len(x), x.mean(dim=0)
    error = (x - truth).abs().mean(dim=0)
    # E|X - X'| over pairs of different samples, from the sorted ones: Σ (2k - K + 1) x_(k)
    ranks = 2 * torch.arange(K, dtype=torch.float64) - K + 1
    pairs = torch.einsum("k,kbchw->bchw", ranks, x.sort(dim=0).values) * 2 / max(K * (K - 1), 1)
    variance = x.var(dim=0) if K > 1 else torch.zeros_like(truth)
    return {"psnr_hole": psnr(x[0]) + level, "psnr_hole_mean": psnr(centre) + level,
            "psnr_hole_best": torch.stack([psnr(one) for one in x]).max(dim=0).values + level,
            "psnr": psnr(x[0]),
            "ssim": structural_similarity_index_measure(
                x[0], truth, data_range=255.0, sigma=1.5, reduction="none"),
            "l1": in_hole((x[0] - truth).abs()), "crps": in_hole(error - pairs / 2),
            "diversity": in_hole(variance).sqrt(), "variance": in_hole(variance),
            "error": in_hole((centre - truth).square()), "area": share}


def interval(values, seed=0, resamples=2_000):
    """(mean, low, high): the mean over images, and its 95 % bootstrap percentile interval."""
    values = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return values.mean(), low, high


def spread_skill(rows, samples):
    """√((K+1)/K · mean variance) / root mean squared error of the mean of K: 1 if the spread of the
    samples tells their error truthfully (Fortin et al. 2014, eq. 15)."""
    variance, error = (np.mean([row[name] for row in rows]) for name in ("variance", "error"))
    return ((samples + 1) / samples * variance / error) ** 0.5 if samples > 1 else float("nan")


# ---- the command -----------------------------------------------------------------------------

def evaluate(args):
    images = data.load(args.data, args.split, args.size, args.crop, args.limit, args.cache)
    methods = {name: METHODS[name](args) for name in args.methods}
    holes = {mask: masks.MASKS[mask](len(images), args.size,
                                     torch.Generator().manual_seed(args.seed))
             for mask in args.masks}
    rows, seconds, preview = [], {}, {}
    total = len(images) * len(holes) * len(methods)
    with tqdm(total=total, desc="scoring", unit=" images") as bar:
        for mask, hole in holes.items():
            for name, method in methods.items():
                samples = args.samples if name in SAMPLERS else 1
                begun = time.time()
                for i in range(0, len(images), args.batch):
                    part, h = images[i:i + args.batch], hole[i:i + args.batch].to(args.device)
                    fills = fills_of(name, method, part, h, i, samples, args.seed)
                    scores = score(part, fills, h.cpu())
                    rows += [{"image": i + j, "mask": mask, "method": name,
                              **{key: value[j].item() for key, value in scores.items()}}
                             for j in range(len(part))]
                    preview.setdefault((mask, name), fills[:8, 0])
                    bar.update(len(part))
                seconds[mask, name] = (time.time() - begun) / len(images) / samples
    return images, holes, rows, seconds, preview


def summarize(args, rows, seconds, n):
    """Means with intervals, a dict a mask and method; and the difference to the first method."""
    results, first = [], args.methods[0]
    for mask in args.masks:
        chosen = {name: [row for row in rows if (row["mask"], row["method"]) == (mask, name)]
                  for name in args.methods}
        for name, part in chosen.items():
            samples = args.samples if name in SAMPLERS else 1
            result = {"mask": mask, "method": name, "n": n, "samples": samples,
                      "calls": args.steps if name in SAMPLERS else 0,
                      "seconds": seconds[mask, name], "spread_skill": spread_skill(part, samples)}
            for key in SCORES:
                result[key] = interval([row[key] for row in part])
                result[f"{key}_minus_{first}"] = interval(
                    [row[key] - other[key] for row, other in zip(part, chosen[first])])
            results.append(result)
    return results


def table(results):
    """Markdown: a line a mask and method, every mean with half its interval."""
    names = [*SCORES, "spread/skill", "calls", "s/sample"]
    lines = ["| mask | method | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for r in results:
        cells = [f"{r[key][0]:.{d}f} ± {(r[key][2] - r[key][1]) / 2:.{d}f}"
                 for key, d in zip(SCORES, (2, 2, 2, 2, 3, 1, 1, 1))]
        cells += [f"{r['spread_skill']:.2f}" if r["samples"] > 1 else "–", str(r["calls"]),
                  f"{r['seconds']:.3f}"]
        lines.append(f"| {r['mask']} | {r['method']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(args, images, holes, rows, results, preview):
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    with whole(out / "scores.csv") as half, open(half, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    settings = {key: str(value) if isinstance(value, Path) else value
                for key, value in vars(args).items()}
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    with whole(out / "results.json") as half:
        content = {"settings": settings, "versions": versions,
                   "threads": torch.get_num_threads(), "results": results}
        half.write_text(json.dumps(content, indent=1))
    with whole(out / "table.md") as half:
        half.write_text(table(results) + "\n")
    with whole(out / "holes.npz") as half, open(half, "wb") as file:
        np.savez_compressed(file, **{mask: hole.byte().numpy() for mask, hole in holes.items()})
    grids = []
    for (mask, _), fills in preview.items():
        n = len(fills)
        known = torch.where(holes[mask][:n].permute(0, 2, 3, 1) > 0, 128, images[:n]).byte()
        grids += [torch.cat([*row], dim=1) for row in (known, fills)]
    inpaint.write_png(Image.fromarray(torch.cat(grids).numpy()), out / "preview.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", nargs="+", default=["synthetic"], metavar="PATH", help="images, as for train.py")
    add("--train", nargs="+", metavar="PATH", help="training images of mean and ridge; default: "
        "the training split of --data")
    add("--split", choices=(*data.SPLITS, "all"), default="test")
    add("--masks", default=",".join(masks.FAMILIES), help="families, separated by commas")
    add("--methods", default=",".join(METHODS), help="separated by commas; differences are to the "
        "first")
    add("--samples", type=int, default=4, help="fills of every image by a method that draws")
    add("--steps", type=int, default=20, help="network calls a fill")
    add("--eta", type=float, default=0.0, help="0: DDIM … 1: ancestral")
    add("--limit", type=int, help="the first so many images only")
    add("--batch", type=int, default=64, help="images at a time")
    add("--seed", type=int, default=0, help="of holes and noise")
    add("--crop", choices=data.CROPS, default="centre140", help="window of a 178×218 photograph")
    add("--weights", default=inpaint.WEIGHTS, help="a weights.pt or checkpoint.pt of train.py's")
    add("--cache", default="cache", help="folder for decoded images")
    add("--out", default="results/latest", help="folder for the results")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.size = inpaint.load_weights(args.weights)[2]
    args.masks, args.methods = args.masks.split(","), args.methods.split(",")
    for given, known in ((args.masks, masks.MASKS), (args.methods, METHODS)):
        unknown = set(given) - set(known)
        if unknown:
            raise BadInput(f"{min(unknown)}: not one of {', '.join(known)}")
    images, holes, rows, seconds, preview = evaluate(args)
    results = summarize(args, rows, seconds, len(images))
    write(args, images, holes, rows, results, preview)
    print(table(results))


if __name__ == "__main__":
    run(main)
