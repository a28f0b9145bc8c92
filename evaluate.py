"""Score inpainters side by side: the same held-out images, the same holes, the same seeds.

    python evaluate.py --data PATH/TO/celeba --split val --masks center,irregular --samples 4
    python evaluate.py --methods keep,ridge,my_method.py         # against a method of your own
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
import os
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
from support import distributed
from support.cli import BadInput, check_range, device, run
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
from support.runs import WEIGHTS_HELP

DEFAULT = ("keep", "biharmonic", "mean", "masked")


# ---- fills: uint8 [B, K, H, W, 3] of a batch, drawn by a method or read from files -------------

def draw_fills(name, method, images, hole, samples, seed):
    """The fills that inpaint.py would draw, checked."""
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
        fills = [torch.from_numpy(np.array(data.open_image(str(file)))) for file in files]
        if not fills or any(fill.shape != image.shape for fill in fills):
            raise BadInput(f"{folder}/{mask}/{name}: needs {first + i:05}_0.png, _1.png, …, "
                           f"{len(image)}×{len(image)} pixels, and so for every image")
        drawn.append(torch.stack(fills))
    if len({len(fills) for fills in drawn}) > 1:
        raise BadInput(f"{folder}/{mask}/{name}: not as many samples of every image")
    return checked(name, torch.stack(drawn), images, hole)


def numbered(folder, i):
    """Image i's 00000_0.png, 00000_1.png, … in the folder, as far as they go."""
    files = (folder / f"{i:05}_{k}.png" for k in itertools.count())
    return list(itertools.takewhile(Path.exists, files))


def checked(name, fills, images, hole):
    """The fills; refused if they are not exactly the image outside the hole (which those in another
    range than [-1, 1] are not, either)."""
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


# ---- the work, a part a batch ------------------------------------------------------------------

def score_parts(args, images, holes, chosen, lpips, features):
    """Fill and score this process's share of the batches, each into its file of --out/parts."""
    work = [(mask, name, first) for mask in holes for name in args.methods
            for first in range(0, len(images), args.batch)]
    work = work[distributed.RANK::distributed.WORLD_SIZE]
    left = [task for task in work if not part(args, *task).exists()]
    training = functools.cache(lambda: unseen(args, images))
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
        if args.save:
            save_fills(Path(args.out) / "fills", mask, Path(name).stem, batch, hole, fills, first,
                       provenance(args.weights, args.seed))
        with atomic_write(part(args, mask, name, first)) as half, open(half, "wb") as file:
            np.savez(file, **scored, samples=fills.shape[1], calls=calls, seconds=seconds,
                     scoring=scoring, preview=fills[:max(0, 8 - first), 0],
                     features=features(fills[:, 0]) if features else np.empty((len(batch), 0)))


def part(args, mask, name, first):
    return Path(args.out) / "parts" / f"{mask}.{name.replace(os.sep, '!')}.{first:06}.npz"


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


def open_parts(args, images, lpips, features):
    """Make --out/parts, or with --resume check that it is of a run with the same settings."""
    folder = Path(args.out) / "parts"
    files = [args.weights, *(methods.file_of(name) for name in args.methods
                             if name not in args.read), *{args.features} - {None, "unet"}]
    settings = {key: value for key, value in vars(args).items()
                if key not in ("resume", "out", "cache", "by_area", "device", "data")}
    settings |= {"networks found": [lpips is not None, features is not None],
                 "images": digest(images.numpy().tobytes()),
                 **{f"content of {file}": digest(content(file)) for file in files}}
    settings, path = json.loads(json.dumps(settings, default=str)), folder / "settings.json"
    if not args.resume:
        if any(folder.glob("*.npz")):
            raise BadInput(f"{folder} is of a run that was cut off: go on with --resume, remove "
                           "it, or name another --out")
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
    scored = {image.tobytes() for image in images.numpy()}
    both = sum(image.tobytes() in scored for image in train.numpy())
    if both:
        raise BadInput(f"{both} of the images that are scored are among those that methods learn "
                       "from: choose another --split, or others with --train")
    return train


def training_images(args):
    return data.load(args.train or args.data, "train", args.size, args.crop, None, args.cache)


# ---- results ---------------------------------------------------------------------------------

def summarize(args, images, found, features):
    """A dict a mask and method: means with intervals, paired differences to the first method, and
    distances to real images; in the last row, those of other real images."""
    results, first, real = [], args.methods[0], None
    if features:
        train = training_images(args)
        if args.reference == "held-out":                        # as many, for the row `real`
            train = train[:len(images)]
        held_out, train = (torch.cat([features(block) for block in tqdm(
            pictures.split(args.batch), f"features of {name} images", unit=" batches")])
            for name, pictures in (("held-out", images), ("training", train)))
        real = train if args.reference == "train" else held_out
    for (mask, name), values in found.items():
        result = {"mask": mask, "method": name, "n": len(images), **report.means(values)}
        result |= {f"{key}_minus_first": scores.interval(values[key] - found[mask, first][key])
                   for key in scores.SCORES}
        if features:
            result |= distances(real, torch.from_numpy(values["features"]))
        results.append(result)
    if features:
        other = held_out if args.reference == "train" else train[:len(held_out)]
        results.append({"mask": "–", "method": "real", "n": len(other), **distances(real, other)})
    return results


def distances(real, fake):
    return {"fd": scores.frechet(real, fake), "kd": scores.kernel(real, fake),
            "n_real": len(real)}


# ---- the command -----------------------------------------------------------------------------

def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add, listed = parser.add_argument, lambda text: list(dict.fromkeys(text.split(",")))
    add("--data", nargs="+", default=["synthetic"], metavar="PATH", help="images, as for train.py")
    add("--train", nargs="+", metavar="PATH", help="training images, for methods that learn from "
        "them and for FID; default: the training split of --data")
    add("--split", choices=(*data.SPLITS, "all"), default="test")
    add("--masks", type=listed, default=list(masks.FAMILIES), help="families, after commas")
    add("--methods", type=listed, help="after commas, differences are to the first: files.py, or "
        f"{', '.join(methods.METHODS)}; default: {', '.join(DEFAULT)}, or all in --from's FOLDER")
    add("--from", dest="read_from", metavar="FOLDER", help="score the fills in its FOLDER/MASK/"
        "METHOD/00000_0.png, … too; their inputs and holes are what --save writes")
    add("--save", action="store_true", help="write inputs, holes and fills under --out/fills")
    add("--samples", type=int, default=4, help="fills of an image by a method that draws")
    add("--steps", type=int, default=20, help="network calls a fill")
    add("--eta", type=float, help="0: deterministic … 1: ancestral, the default")
    add("--bf16", action="store_true", help="bfloat16 matrix products in the network")
    add("--perceptual", action=argparse.BooleanOptionalAction, default=True,
        help="FID, KID and LPIPS, whose networks cost more than all the rest on a CPU")
    add("--features", metavar="FILE.pt", help="TorchScript network for Fréchet and kernel "
        "distances in place of Inception's: uint8 [B, 3, H, W] -> [B, d]; or unet, the middle of "
        "the inpainter's")
    add("--reference", choices=("train", "held-out"), default="train", help="the real images that "
        "distances are to")
    add("--by-area", action="store_true", help="also a table by the hole's area in tenths")
    add("--limit", type=int, help="the first so many images only")
    add("--batch", type=int, default=32, help="images at a time")
    add("--seed", type=int, default=0, help="of holes and noise")
    add("--crop", choices=data.CROPS, default="centre140", help="window of a 178×218 photograph")
    add("--weights", default=inpaint.WEIGHTS, help=WEIGHTS_HELP)
    add("--cache", default="cache", help="folder for decoded images")
    add("--out", default="results/latest", help="folder for the results")
    add("--resume", action="store_true", help="go on with the run that was cut off in --out")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    check_range(args, 1, 10 ** 6, "batch")
    check_range(args, 1, 999, "samples")
    check_range(args, 0, 10 ** 9, "seed")
    check_range(args, 0, 1, "eta")
    device(args.device)
    unknown = set(args.masks) - set(masks.MASKS)
    if unknown:
        raise BadInput(f"--masks {min(unknown)}: not one of {', '.join(masks.MASKS)}")
    args.read = []
    if args.read_from:
        folder = Path(args.read_from) / args.masks[0]
        args.read = sorted(path.name for path in folder.glob("[!_.]*") if path.is_dir())
        if not args.read:
            raise BadInput(f"--from {args.read_from}: no {args.masks[0]}/METHOD/ in it")
    args.named = bool(args.methods)
    args.methods = [*(args.methods or (() if args.read_from else DEFAULT)), *args.read]
    strange = [name for name in args.methods if not name.isprintable()]
    if strange:
        raise BadInput(f"a method is called {strange[0]!r}: rename its file or folder")
    names = [Path(name).stem for name in args.methods]
    twice = {name for name in names if names.count(name) > 1 or name == "real"}
    if twice:
        raise BadInput(f"two methods are called {min(twice)} (real images are the method real): "
                       "rename a file or a folder")
    return args


def main():
    args = parse()
    args.device = str(distributed.own_device(args.device))

    def network(make, *arguments):
        try:
            return make(*arguments)
        except scores.Missing as error:
            if distributed.RANK == 0:
                print(error, file=sys.stderr)

    with distributed.joined():
        with distributed.first():                                  # who downloads for all
            args.weights = local(args.weights)
        ddpm, eps_model, args.size = inpaint.load_weights(args.weights, args.device)
        if args.methods[:1] == ["keep"] and not args.named:
            args.methods[0] = methods.default(eps_model)
        with distributed.first():                                  # who decodes for all
            images = data.load(args.data, args.split, args.size, args.crop, args.limit, args.cache)
        holes = {mask: masks.MASKS[mask](len(images), args.size,
                                         torch.Generator().manual_seed(args.seed))
                 for mask in args.masks}
        chosen = {name: methods.find(name, ddpm, eps_model, args.steps, args.eta, args.bf16)
                  for name in args.methods if name not in args.read}
        lpips = network(scores.lpips_network, args.device) if args.perceptual else None
        features = None
        if args.features == "unet":
            features = scores.unet_features(eps_model, args.device)
        elif args.perceptual or args.features:
            features = network(scores.extractor, args.features, args.device)
        with lock_folder(args.out) if distributed.RANK == 0 else contextlib.nullcontext():
            with distributed.first():
                if distributed.RANK == 0:
                    open_parts(args, images, lpips, features)
            score_parts(args, images, holes, chosen, lpips, features)
            distributed.largest()                                  # waits for all
            if distributed.RANK == 0:
                finish(args, images, holes, features)


def finish(args, images, holes, features):
    """From all the parts, the results."""
    found = collect(args, len(images))
    versions = {"Python": platform.python_version(), "torch": torch.__version__,
                "torchmetrics": torchmetrics.__version__,
                "device": torch.cuda.get_device_name() if "cuda" in args.device else "CPU",
                "processes": distributed.WORLD_SIZE, "threads each": torch.get_num_threads()}
    results = summarize(args, images, found, features)
    tables = report.text(args, images, found, results, versions)
    report.write(args, images, holes, found, results, tables, versions)
    print(tables)


if __name__ == "__main__":
    run(main)
