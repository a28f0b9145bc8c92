"""Score inpainters side by side: the same held-out images, the same holes, the same seeds.

    python evaluate.py --data PATH/TO/celeba --split val --masks center,irregular --samples 4
    python evaluate.py --methods keep,ridge,my_method.py         # against a method of your own
    python evaluate.py --masks PATH/TO/masks --by-area           # published masks, such as NVIDIA's
    python evaluate.py --save                                    # inputs, holes and fills as PNGs
    python evaluate.py --from FOLDER                             # anybody's PNGs, the same holes
    torchrun --nproc_per_node 4 evaluate.py                      # shared out over processes

Methods are those of methods.py. One that touches a known pixel is refused: every score is of the
composite, in 8 bits, as a viewer would get it.

Writes, under --out: `table.md`, `scores.csv` (a row an image, mask and method), `results.json`
(settings, versions, means, intervals), `holes.npz`, `preview.png`; and until all is done `parts/`,
a file a batch, from which --resume goes on.
"""
import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import math
import platform
import sys
import time
from pathlib import Path

import support.threads

import numpy as np
import torch
import torchmetrics
from PIL import Image
from tqdm import tqdm

import data
import inpaint
import masks
import methods
import report
import scores
import sharpen
from support import distributed
from support.cli import BadInput, check_apart, check_empty, check_range, device, run, say
from support.files import (
    atomic_write,
    content,
    lock_folder,
    provenance,
    reading,
    remove_leftovers,
    write_png,
)
from support.foreign import local
from support.photographs import MASK, open_mask
from support.runs import WEIGHTS_HELP

DEFAULT = ("keep", "biharmonic", "mean", "masked")
DRAWN = 16                                # images, if they are drawn: minutes of work on a CPU


# ---- fills: uint8 [B, K, H, W, 3] of a batch, drawn by a method or read from files -------------

def draw_fills(name, method, images, hole, samples, seed):
    """The fills that inpaint.py would draw of an image of this size, checked."""
    try:
        fills = inpaint.draw(method.inpaint, images, hole, samples, seed, batch=len(images))
    except BadInput as error:
        raise BadInput(f"method {name}: {error}") from None
    return checked(name, fills.cpu(), images, hole)


def read_fills(folder, mask, name, images, hole, first):
    """From FOLDER/MASK/NAME/00000_0.png, 00000_1.png, …: the image's number, the sample's."""
    drawn = []
    for i, image in enumerate(images):
        files = numbered(Path(folder) / mask / name, first + i)
        fills = [torch.from_numpy(np.array(data.open_image(file))) for file in files]
        if any(fill.shape != image.shape for fill in fills):
            raise BadInput(f"{folder}/{mask}/{name}: {first + i:05}_… must be of {len(image)}×"
                           f"{len(image)} pixels, as the images are")
        drawn.append(torch.stack(fills))
    return checked(name, torch.stack(drawn), images, hole)


def check_fills(args, n):
    """Refuse a --from in which an image lacks a fill, or has more of them than another."""
    for mask, name in itertools.product(args.masks, args.read):
        folder = Path(args.read_from) / mask / name
        names = {path.name for path in folder.glob("*.png")}
        samples = len([file for file in names if file.startswith("00000_")])
        wanted = {f"{i:05}_{k}.png" for i in range(n) for k in range(max(samples, 1))}
        if wanted - names:
            raise BadInput(f"{folder}: {min(wanted - names)} is missing; each of the {n} images "
                           "needs as many fills, 00000_0.png, 00000_1.png, …")
        more = [file for file in names - wanted if file[:5].isdecimal() and int(file[:5]) < n]
        if more:
            raise BadInput(f"{folder}: {min(more)} is one more than image 00000 has; each image "
                           "needs as many fills")


def numbered(folder, i):
    """Image i's 00000_0.png, 00000_1.png, … in the folder, as far as they go."""
    files = (folder / f"{i:05}_{k}.png" for k in itertools.count())
    return list(itertools.takewhile(Path.exists, files))


def checked(name, fills, images, hole):
    """The fills; refused unless they equal the image outside the hole, as those of a method that
    works in another range than [-1, 1] do not."""
    inside = hole.cpu().permute(0, 2, 3, 1)[:, None] > 0
    if not torch.equal(torch.where(inside, images[:, None], fills),
                       images[:, None].expand_as(fills)):
        raise BadInput(f"method {name}: a fill must keep the known pixels exactly, in [-1, 1]")
    return fills


def save_fills(folder, mask, name, images, hole, fills, first, metadata=None):
    """PNGs for --from: FOLDER/MASK/NAME/00000_0.png; and _input/ and _hole/ for others to fill."""
    folder = Path(folder) / mask
    hole = hole.permute(0, 2, 3, 1)
    pictures = {f"_input/{first + i:05}.png": image
                for i, image in enumerate(torch.where(hole > 0, 128, images))}
    pictures |= {f"_hole/{first + i:05}.png": 255 * h[:, :, 0] for i, h in enumerate(hole)}
    pictures |= {f"{name}/{first + i:05}_{k}.png": fill
                 for i, drawn in enumerate(fills) for k, fill in enumerate(drawn)}
    for path, picture in pictures.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_png(Image.fromarray(picture.byte().numpy()), folder / path, metadata)
    for i, drawn in enumerate(fills):
        for stale in numbered(folder / name, first + i)[len(drawn):]:   # of a run with more
            stale.unlink()


# ---- holes --------------------------------------------------------------------------------------

def make_holes(args, n):
    """{mask: hole [n, 1, size, size]}, drawn by a family or read from files."""
    return {mask: read_holes(args.mask_files[mask], n, args.size, args.crop)
            if mask in args.mask_files else
            masks.MASKS[mask](n, args.size, torch.Generator().manual_seed(args.seed))
            for mask in args.masks}


def read_holes(path, n, size, crop):
    """Holes [n, 1, size, size] from one mask for all, or from a folder of masks (where some are
    called *_mask*, as LaMa has them beside its photographs, from those). In the order of their
    names: spread evenly over a folder that holds more than n, as NVIDIA's is sorted by area; else
    from its start again. What is hole is decided as by masks.from_image, of the whole mask, which
    is then cut as photographs are; white, or paint on a transparent ground, is filled."""
    files = [path] if path.is_file() else sorted(
        file for file in path.iterdir() if data.is_image(file.name))
    files = [file for file in files if MASK in file.stem] or files
    if not files:
        raise BadInput(f"--masks {path}: no image in it ({', '.join(data.SUFFIXES)})")

    @functools.cache
    def read(file):
        picture = open_mask(file)
        whole = 255 * masks.from_image(picture, picture.size)[0, 0].byte()
        cut = Image.fromarray(whole.numpy()).crop(data.window(picture.size, crop))
        hole = masks.from_image(cut, (size, size))
        if not hole.any():
            raise BadInput(f"{file}: no hole is left of it at {size}×{size} pixels; white is what "
                           "is filled")
        return hole
    return torch.cat([read(files[i * max(len(files), n) // n % len(files)]) for i in range(n)])


# ---- the work, a part a batch ------------------------------------------------------------------

def score_parts(args, images, holes, chosen, training, lpips, rulers, truth):
    """Fill and score this process's share of the batches, each into its file of --out/parts;
    training() are the images to learn from, truth {ruler: features [n, d] of the images}."""
    work = [(mask, name, first) for mask in holes for name in args.methods
            for first in range(0, len(images), args.batch)]
    work = work[distributed.RANK::distributed.WORLD_SIZE]
    left = [task for task in work if not part(args, *task).exists()]
    made_by = provenance(args.weights, args.seed, args.sharpen) if args.save else None
    for mask, name, first in tqdm(left, "scoring", len(work), initial=len(work) - len(left),
                                  unit=" batches", disable=distributed.RANK > 0):
        batch, hole = (x[first:first + args.batch] for x in (images, holes[mask]))
        if name in args.read:
            seconds, calls = math.nan, math.nan
            fills = read_fills(args.read_from, mask, name, batch, hole, first)
        else:
            method = chosen[name]
            if not hasattr(method, "inpaint"):
                method.inpaint = method.fit(training())
            begun = time.perf_counter()
            fills = draw_fills(name, method, batch, hole.to(args.device),
                               args.samples if method.DRAWS else 1, args.seed)
            seconds = (time.perf_counter() - begun) / len(batch) / fills.shape[1]
            calls = method.CALLS
        begun = time.perf_counter()
        scored = scores.score(batch, fills, hole, lpips)
        scoring = (time.perf_counter() - begun) / len(batch)
        for ruler, features in rulers.items():
            blocks = fills.flatten(0, 1).split(args.batch)
            drawn = torch.cat([*map(features, blocks)]).unflatten(0, fills.shape[:2])  # [B, K, d]
            crps = scores.crps(drawn.transpose(0, 1), truth[ruler][first:first + len(batch)])
            scored |= {f"features_{ruler}": drawn[:, 0], f"crps_{ruler}": crps.mean(dim=1)}
        if name not in args.read and method.DRAWS and fills.shape[1] == 1:    # it would be L1
            scored |= {key: torch.full((len(batch),), torch.nan)
                       for key in scored if key.startswith("crps")}
        if args.save:
            save_fills(Path(args.out) / "fills", mask, short(name), batch, hole, fills, first,
                       made_by if name not in args.read else {"fill": "read by --from"})
        with atomic_write(part(args, mask, name, first)) as half, open(half, "wb") as file:
            np.savez(file, **scored, samples=fills.shape[1], calls=calls, seconds=seconds,
                     scoring=scoring, preview=fills[:max(0, 8 - first), 0])


def part(args, mask, name, first):
    """The file of one part. Numbers name it, as two names joined could be those of two others."""
    numbers = f"{args.masks.index(mask)}.{args.methods.index(name)}.{first:06}"
    return Path(args.out) / "parts" / f"{numbers}.npz"


def collect(args, n):
    """{(mask, method): {score: [n], …}} from all the parts."""
    found = {}
    for mask in args.masks:
        for name in args.methods:
            parts = []
            for first in range(0, n, args.batch):
                path = part(args, mask, name, first)
                with reading(path, "a part of an evaluation: remove it and --resume", "not there"):
                    parts.append(dict(np.load(path)))
            found[mask, name] = {key: np.concatenate([np.atleast_1d(p[key]) for p in parts])
                                 for key in parts[0]}
    return found


def open_parts(args, images, holes, chosen, training, lpips, rulers):
    """Make --out/parts, or with --resume check that it is of a run with the same settings."""
    folder = Path(args.out) / "parts"
    learning = any(not hasattr(chosen[name], "inpaint") for name in args.methods if name in chosen)
    files = [args.weights, *([args.sharpen] if args.sharpen else []),
             *(Path(args.read_from) / mask / name for mask in args.masks for name in args.read),
             *(methods.file_of(name) for name in args.methods if name not in args.read),
             *filter(Path.is_file,                                          # of baselines
                     (inpaint.WEIGHTS.parent / f"{name}.pt" for name in args.methods)),
             *(name for name in args.features or () if name not in (*scores.RULERS, "unet"))]
    settings = {key: value for key, value in vars(args).items()
                if key not in ("resume", "out", "cache", "by_area", "device", "data")}
    settings |= {"networks found": [lpips is not None, *rulers],
                 "holes": [digest(np.ascontiguousarray(hole)) for hole in holes.values()],
                 "images": digest(np.ascontiguousarray(images)),
                 "training images": digest(np.ascontiguousarray(training())) if learning else None,
                 **{f"content of {file}": digest(content(file)) for file in files}}
    settings, path = json.loads(json.dumps(settings, default=str)), folder / "settings.json"
    if not args.resume:
        if any(folder.glob("*.npz")):
            raise BadInput(f"{folder} is of a run that was cut off: go on with --resume, remove "
                           "it, or name another --out")
        out = Path(args.out)
        others = [name for name in report.FILES if (out / name).exists()]
        if others and not (out / "results.json").exists():
            raise BadInput(f"{out / others[0]} is not of an evaluation: name another --out")
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as half:
            half.write_text(json.dumps(settings, indent=1))
        return
    with reading(path, "settings of an evaluation", "nothing to resume; start without --resume"):
        before = dict(json.loads(path.read_text()))
    for leftovers in (folder, *(Path(args.out) / "fills").glob("*/*")):
        remove_leftovers(leftovers)
    changed = [key for key in settings if settings[key] != before.get(key)]
    if changed:
        raise BadInput(f"--resume with other settings than {folder} was begun with: "
                       f"{', '.join(changed)}")


def digest(content):
    return hashlib.sha256(content).hexdigest()[:16]


def unseen(args, images):
    """The training images, for methods that learn; refused if one of them is to be scored."""
    train = training_images(args)
    both = sum(among(images, train))
    if both:
        raise BadInput(f"{both} of the images that are scored are among those that methods learn "
                       "from: choose another --split, or others with --train")
    return train


def leave_out_learners(args, chosen, training):
    """Of the default methods, those that could only learn from what is scored, or from nothing."""
    learners = [name for name in chosen if not hasattr(chosen[name], "inpaint")]
    try:
        training()
    except BadInput as error:
        args.methods = [name for name in args.methods if name not in learners]
        for name in learners:
            del chosen[name]
        if distributed.RANK == 0:
            say(f"{', '.join(learners)} left out: {error}")


def among(images, others):
    """Of every one of the others, whether it is one of the images."""
    known = {image.tobytes() for image in images.numpy()}
    return [other.tobytes() in known for other in others.numpy()]


def training_images(args, limit=None):
    return data.load(args.train or args.data, "train", args.size, args.crop, limit, args.cache)


# ---- distances to real images ------------------------------------------------------------------

def reference(args, images, rulers):
    """{ruler: (features of the real images that distances are to, of other real images)}."""
    if not rulers:
        return {}
    if args.reference == "train":
        sets = ("training images", training_images(args)), ("scored images", images)
    else:
        sets = ("scored images", images), ("other images", other_images(args, images))
    return {ruler: tuple(cached_features(args, ruler, features, what, pictures)
                         for what, pictures in sets) for ruler, features in rulers.items()}


def other_images(args, images):
    """As many training images, none of them among those scored; perhaps there are none at all."""
    try:
        others = training_images(args, limit=len(images))
    except BadInput:
        if args.train:
            raise
        return images[:0]
    return others[~torch.tensor(among(images, others))]


def cached_features(args, ruler, features, what, images):
    """The features of all the images, from --cache if the same network has seen them before: its
    features of two drawn faces tell whether it is the same."""
    content = hashlib.sha256(np.ascontiguousarray(images))
    content.update(features(data.synthetic(2, args.size)).numpy())
    path = Path(args.cache) / f"features-{ruler}-{content.hexdigest()[:16]}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        return torch.from_numpy(np.load(path))
    blocks = tqdm(images.split(args.batch), f"{what} by {ruler}", unit=" batches",
                  disable=distributed.RANK > 0)
    found = torch.cat([features(block) for block in blocks]) if len(images) else torch.empty(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as half, open(half, "wb") as file:
        np.save(file, found.numpy())
    return found


def distances(ruler, real, fake, paired=False):
    return {f"fd_{ruler}": scores.frechet(real, fake),
            f"kd_{ruler}": scores.kernel(real, fake, paired), "n_real": len(real)}


# ---- results ---------------------------------------------------------------------------------

def summarize(args, images, found, real):
    """A dict a mask and method: means with intervals, paired differences to the first method, and
    distances to real images; in the last row, those of other real images."""
    results, first = [], args.methods[0]
    for (mask, name), values in found.items():
        result = {"mask": mask, "method": name, "n": len(images), **report.means(values)}
        result |= {f"{key}_minus_first": scores.interval(values[key] - found[mask, first][key])
                   for key in report.scored(values)}
        for ruler, (features, _) in real.items():
            result |= distances(ruler, features, torch.from_numpy(values[f"features_{ruler}"]),
                                paired=args.reference == "held-out")
        results.append(result)
    others = {"mask": "–", "method": "real"}
    for ruler, (features, other) in real.items():
        others |= {"n": len(other), **distances(ruler, features, other)}
    return [*results, others] if others.get("n") else results


# ---- the command -----------------------------------------------------------------------------

def parse():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add, listed = parser.add_argument, lambda text: list(dict.fromkeys(text.split(",")))
    add("--data", nargs="+", default=["synthetic"], metavar="PATH", help="images, as for train.py")
    add("--train", nargs="+", metavar="PATH", help="training images, for methods that learn from "
        "them and for FID; default: the training split of --data")
    add("--split", choices=(*data.SPLITS, "all"), default="test")
    add("--masks", type=listed, default=list(masks.FAMILIES), help="comma-separated: families, "
        "or folders or files of masks, white = fill")
    add("--methods", type=listed, help="comma-separated; differences are to the first: .py files, "
        f"or {', '.join(methods.METHODS)}; default: {', '.join(DEFAULT)}, or all in --from's "
        "FOLDER")
    add("--from", dest="read_from", metavar="FOLDER", help="score the fills in its FOLDER/MASK/"
        "METHOD/00000_0.png, … too; their inputs and holes are what --save writes")
    add("--save", action="store_true", help="write inputs, holes and fills under --out/fills")
    add("--samples", type=int, default=4, help="fills of an image by a method that draws; of one, "
        "there is no CRPS")
    add("--steps", type=int, help=methods.STEPS_HELP)
    add("--eta", type=float, default=1.0, help="0: deterministic … 1: ancestral, the default")
    add("--bf16", action="store_true", help="bfloat16 matrix products in the network")
    add("--perceptual", action=argparse.BooleanOptionalAction, default=True,
        help="LPIPS, and distances by the default networks")
    add("--features", type=listed, help="networks for Fréchet and kernel distances, comma-"
        "separated: efficientnet-lite0; inception, for FID and KID; unet, the inpainter's middle; "
        "FILE.pt, TorchScript from uint8 [B, 3, H, W] to [B, d]; default: those of "
        f"{', '.join(scores.RULERS)} that are installed")
    add("--reference", choices=("held-out", "train"), default="held-out", help="the real images "
        "that distances are to: the scored images themselves, as in most papers on inpainting, or "
        "all training images, whose features are computed once and kept under --cache")
    add("--by-area", action="store_true", help="also a table by the hole's area in tenths, whose "
        "first six are the bins of Liu et al. 2018 (NVIDIA's masks)")
    add("--limit", type=int, help="the first so many images only; default: all, or "
        f"{DRAWN} of drawn faces")
    add("--batch", type=int, default=32, help="images at a time")
    add("--seed", type=int, default=0, help="of holes and noise")
    add("--crop", choices=data.CROPS, default="centre140", help="window of a 178×218 photograph")
    add("--weights", default=inpaint.WEIGHTS, help=WEIGHTS_HELP)
    add("--sharpen", metavar="FILE", help=f"{sharpen.HELP}, the default; with one, "
        "images and --from's fills are of its size")
    add("--cache", default="cache", help="folder for decoded images")
    add("--out", default="results/latest", help="folder for the results")
    add("--resume", action="store_true", help="go on with the run that was cut off in --out")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.data == ["synthetic"]:
        args.limit = DRAWN if args.limit is None else args.limit
    check_empty(args)
    check_apart(args.out, [*args.data, *(args.train or ())])
    check_range(args, 1, 10 ** 6, "batch")
    check_range(args, 1, 999, "samples")
    check_range(args, 0, 10 ** 9, "seed")
    check_range(args, 0, 1, "eta")
    device(args.device)
    name_masks(args)
    name_methods(args)
    if len({Path(name).stem for name in args.features or ()}) < len(args.features or ()):
        raise BadInput("--features: two networks of one name; rename a file")
    return args


def name_methods(args):
    """args.methods, checked: those named, or the default; and args.read, those in --from."""
    args.read = []
    if args.read_from:
        folder = Path(args.read_from) / args.masks[0]
        args.read = sorted(path.name for path in folder.glob("[!_.]*") if path.is_dir())
        if not args.read:
            raise BadInput(f"--from {args.read_from}: no {args.masks[0]}/METHOD/ in it")
    args.named = bool(args.methods)
    args.methods = [*(args.methods or (() if args.read_from else DEFAULT)), *args.read]
    strange = [name for name in (*args.masks, *args.methods) if not name.isprintable()]
    if strange:
        raise BadInput(f"a mask or method is called {strange[0]!r}: rename its file or folder")
    names = [short(name) for name in args.methods]
    twice = {name for name in names if names.count(name) > 1 or name == "real"}
    if twice:
        raise BadInput(f"two methods are called {min(twice)} (real images are the method real): "
                       "rename a file or a folder")


def short(name):
    """A method's name, without the place and ending of its file."""
    return Path(name).stem if name.endswith(".py") else name


def name_masks(args):
    """args.masks, checked, by name: a family's or a file's or folder's without its place, which
    args.mask_files has."""
    paths = [Path(mask) if mask in masks.MASKS else Path(mask).resolve() for mask in args.masks]
    for mask, path in zip(args.masks, paths):
        if mask not in masks.MASKS and not (mask and path.stem and path.exists()):
            raise BadInput(f"--masks {mask}: neither a file or folder nor one of "
                           f"{', '.join(masks.MASKS)}")
    names = [path.name if path.is_dir() else path.stem for path in paths]
    args.mask_files = {name: path for name, path in zip(names, paths) if path.is_absolute()}
    args.masks = names
    if len(set(args.masks)) < len(args.masks):
        raise BadInput("--masks: two of one name; rename a file or a folder")


def main():
    args = parse()
    args.device = str(distributed.own_device(args.device))
    with distributed.joined():
        with distributed.first():                                  # who downloads for all
            args.weights = local(args.weights)
        ddpm, eps_model, size = inpaint.load_weights(args.weights, args.device)
        sharpener = sharpen.find(args.sharpen or "none", args.weights, size, args.device)
        args.size, args.sharpen = (sharpener.size, sharpener.path) if sharpener else (size, None)
        if not (args.named or args.read):
            args.methods[0] = methods.default(eps_model)                     # else keep
        with distributed.first():                                  # who decodes for all
            images = data.load(args.data, args.split, args.size, args.crop, args.limit, args.cache)
        check_fills(args, len(images))
        holes = make_holes(args, len(images))
        chosen = {name: methods.find(name, ddpm, eps_model, args.steps, args.eta, args.bf16,
                                     sharpener=sharpener)
                  for name in args.methods if name not in args.read}
        if sharpener:
            check_sizes(args, chosen, size)
        training = functools.cache(lambda: unseen(args, images))
        if not (args.named or args.read):
            leave_out_learners(args, chosen, training)
        lpips, rulers = find_networks(args, eps_model)
        with lock_folder(args.out) if distributed.RANK == 0 else contextlib.nullcontext():
            with distributed.first():
                if distributed.RANK == 0:
                    open_parts(args, images, holes, chosen, training, lpips, rulers)
                    if not args.resume:
                        announce(args, images, holes, chosen, rulers, eps_model, size)
                    real = reference(args, images, rulers)
                truth = {ruler: cached_features(args, ruler, features, "scored images", images)
                         for ruler, features in rulers.items()}
            score_parts(args, images, holes, chosen, training, lpips, rulers, truth)
            distributed.barrier()
            if distributed.RANK == 0:
                finish(args, images, holes, real)


def check_sizes(args, chosen, size):
    """Refuse what cannot look at images of a sharpener's size, only at those of `size`."""
    fixed = [name for name, method in chosen.items() if hasattr(method, "inpaint")
             and not (method.ANY_SIZE or methods.by_diffusion(name))]
    fixed += ["--features unet"] * ("unet" in (args.features or ()))
    if fixed:
        raise BadInput(f"{', '.join(fixed)}: for images of {size}×{size}, so not with --sharpen")


def find_networks(args, eps_model):
    """LPIPS, or None, and {ruler: its function from images to features}. What cannot be had is left
    out with a line, but refused if --features names it."""
    def network(make, *arguments):
        try:
            return make(*arguments, args.device)
        except scores.Missing as error:
            if args.features and make is scores.extractor:
                raise BadInput(f"--features: {error}") from None
            if distributed.RANK == 0:
                say(f"left out: {error}")

    lpips = network(scores.lpips_network) if args.perceptual else None
    names = args.features or (scores.RULERS if args.perceptual else ())
    rulers = {Path(name).stem: network(scores.unet_features, eps_model) if name == "unet"
              else network(scores.extractor, name) for name in names}
    return lpips, {ruler: features for ruler, features in rulers.items() if features}


@torch.no_grad()
def announce(args, images, holes, chosen, rulers, eps_model, size):
    """Say what is to do and roughly how long it takes, as the networks are timed on a few images,
    eps_model at its own `size`; methods without it are not timed."""
    n, sets = min(len(images), args.batch if "cuda" in args.device else 2), len(images) * len(holes)
    x, t = torch.zeros(n, 3, size, size, device=args.device), torch.zeros(n, dtype=torch.int64)

    def seconds(network, *arguments):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=args.bf16):
            network(*arguments).cpu()                                            # warm
            begun = time.perf_counter()
            network(*arguments).cpu()                                            # and waits for it
        return (time.perf_counter() - begun) / n

    samples = {name: args.samples if method.DRAWS else 1 for name, method in chosen.items()}
    calls, cost = (sum(sets * samples[name] * getattr(method, kind, 0)
                       for name, method in chosen.items()) for kind in ("CALLS", "COST"))
    fills = sets * (sum(samples.values()) + len(args.read))
    total = cost and cost * seconds(eps_model, x, t.to(args.device), torch.ones_like(x[:, :1]))
    total += sum(fills * seconds(features, images[:n]) for features in rulers.values())
    total /= distributed.WORLD_SIZE
    told = (f"{total:.0f} s" if total < 99 else f"{total / 60:.0f} min" if total < 6_000 else
            f"{total / 3_600:.0f} h")
    families = ", ".join(f"{mask} {100 * hole.mean():.0f} %" for mask, hole in holes.items())
    print(f"to do: {len(images)} images of {args.size}×{args.size} × {len(holes)} kinds of holes "
          f"({families} of the image) × {len(args.methods)} methods ({', '.join(args.methods)}), "
          f"{args.samples} samples of those that draw; {calls:,} network calls"
          + "".join(f", features by {ruler}" for ruler in rulers) +
          f": about {told}" * bool(total) + ", and what methods without a network take",
          file=sys.stderr)


def finish(args, images, holes, real):
    """From all the parts, the results."""
    found = collect(args, len(images))
    versions = {"Python": platform.python_version(), "torch": torch.__version__,
                "torchmetrics": torchmetrics.__version__,
                "device": torch.cuda.get_device_name() if "cuda" in args.device else "CPU",
                "processes": distributed.WORLD_SIZE, "threads each": torch.get_num_threads()}
    results = summarize(args, images, found, real)
    tables = report.text(args, images, found, results, versions)
    report.write(args, images, holes, found, results, tables, versions)
    print(tables)


if __name__ == "__main__":
    run(main)
