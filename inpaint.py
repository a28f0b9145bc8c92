"""Fill the hole in a photograph with the trained network.

    python inpaint.py --mask irregular                       # a public-domain face, a drawn hole
    python inpaint.py photo.jpg --mask mask.png --samples 8  # white in the mask = to be filled
    python inpaint.py folder/ --mask center --out filled/    # every image of a folder
    python inpaint.py --method patchmatch                    # an older way

For an input STEM, in --out: `STEM.png`, everything side by side; `STEM_input.png`, what the network
was given; `STEM_hole.png`, white = filled; `STEM_0.png`, `STEM_1.png`, … the fills.
A photograph is cut to its centred square and resized to the network's size; pixels outside the
hole are exactly those of STEM_input.png.
"""
import argparse
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

import data
import masks
import methods
from ddpm import DDPM
from safety import (BadInput, device, origin, read_tensors, reading, rebuild, run, within,
                    write_png)
from schedules import SCHEDULES
from unet import UNet

WEIGHTS = Path(__file__).parent / "weights" / "celeba64.pt"
BATCH = 32        # images a network call: enough to keep a processor busy, 0.4 GB at 64×64


def load_weights(path=WEIGHTS, device="cpu"):
    """(ddpm, eps_model, size) from a file of train.py's: always the moving average's weights."""
    missing = "no such file; make weights with train.py, or name others with --weights"
    with reading(path, "weights that train.py wrote", missing):
        checkpoint = read_tensors(path)
        settings, ema = checkpoint["settings"], checkpoint["ema"]
        layers = settings["unet"]["blocks"] * len(settings["unet"]["widths"])
        if not (1 <= settings["T"] <= 10 ** 6 and 1 <= settings["unet"]["size"] <= 10 ** 4
                and 1 <= layers <= len(ema)):
            raise ValueError("settings out of range")
        net = rebuild(UNet, settings["unet"], ema).eval().requires_grad_(False)
        betas = SCHEDULES[settings["schedule"]](settings["T"])
        ddpm = DDPM(betas, settings["prediction"], clip=True)
    return ddpm, net.to(device), settings["unet"]["size"]


def fill(method, images, hole, samples=4, seed=0):
    """Draw `samples` fills of every image.

    method  inpaint(image, hole, generator) -> image, as in methods.py
    images  uint8 [N, H, W, 3];  hole [N, 1, H, W], on the device to work on
    seed    sample k of an image depends on (seed, k) alone, not on the images beside it
    Returns uint8 [N, samples, H, W, 3], outside the hole exactly `images`.
    """
    images = images.to(hole.device)
    given = torch.where(hole > 0, 0.0, data.to_float(images))
    known, holes = (v.repeat_interleave(samples, dim=0) for v in (given, hole))
    seeds = [seed * 65_536 + k + 1 for _ in images for k in range(samples)]
    fills = [method(known[i:i + BATCH], holes[i:i + BATCH],
                    [torch.Generator().manual_seed(s) for s in seeds[i:i + BATCH]])
             for i in range(0, len(known), BATCH)]
    filled = data.to_uint8(torch.cat(fills)).unflatten(0, (len(images), samples))
    return torch.where(hole.permute(0, 2, 3, 1)[:, None] > 0, filled, images[:, None])


def astronaut():
    """A face in the public domain (NASA's portrait of Eileen Collins, which comes with
    scikit-image), cut so that the eyes lie where they lie in CelebA's aligned photographs."""
    import skimage.data  # here, because it takes a second to import and only this needs it

    return Image.fromarray(skimage.data.astronaut()).crop((143, 16, 309, 182))


def read_photographs(paths):
    """{stem: picture} of the images and the folders of images named; the astronaut if none is."""
    if not paths:
        return {"astronaut": astronaut()}
    files = []
    for path in map(Path, paths):
        found = sorted(f for f in path.iterdir() if f.suffix.lower() in data.SUFFIXES
                       and f.is_file()) if path.is_dir() else [path]
        if not found:
            raise BadInput(f"{path}: no image in this folder ({', '.join(data.SUFFIXES)})")
        files += found
    stem, count = Counter(file.stem for file in files).most_common(1)[0]
    if count > 1:
        raise BadInput(f"two images are called {stem}: their results would overwrite each "
                       "other; rename one")
    return {file.stem: data.open_image(file) for file in files}


def read_hole(mask, photographs, size, seed):
    """The hole of every photograph, [N, 1, size, size]: drawn if `mask` names a family, else read
    from a file whose shape is the photographs'."""
    if mask in masks.MASKS:
        return masks.MASKS[mask](len(photographs), size, torch.Generator().manual_seed(seed))
    if not Path(mask).is_file():
        raise BadInput(f"--mask {mask}: neither a file nor one of {', '.join(masks.MASKS)}")
    picture = data.open_image(mask, background="black").convert("L")
    holes = []
    for stem, photograph in photographs.items():
        (width, height), (w, h) = photograph.size, picture.size
        if abs(w * height - h * width) > 0.01 * h * width:
            raise BadInput(f"{mask} is {w}×{h} and {stem} is {width}×{height}: a mask must have "
                           "its photograph's shape")
        fitted = picture.resize(photograph.size, Image.NEAREST)
        holes.append(masks.from_image(fitted.crop(data.window(photograph.size)), size))
    return torch.cat(holes)


def side_by_side(image, hole, fills, scale=3):
    """Original, masked, fills and their pixelwise spread, enlarged and labelled.

    image uint8 [H, W, 3]; hole [1, H, W]; fills uint8 [K, H, W, 3]. Returns a picture.
    """
    masked = np.where(hole[0, :, :, None] > 0, 128, image).astype(np.uint8)
    spread = fills.astype(float).std(axis=0).mean(axis=-1, keepdims=True)
    heat = (spread / max(spread.max(), 1) * 255).repeat(3, axis=-1).astype(np.uint8)
    panels = [("original", image), ("to fill", masked),
              *((f"fill {k}", fill) for k, fill in enumerate(fills)),
              (f"spread 0…{spread.max():.0f}", heat)]
    side, top = scale * len(image), 22
    sheet = Image.new("RGB", (len(panels) * (side + 4) - 4, side + top), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for i, (label, panel) in enumerate(panels):
        left = i * (side + 4)
        sheet.paste(Image.fromarray(panel).resize((side, side), Image.NEAREST), (left, top))
        pen.text((left + side / 2, top / 2), label, fill="black", font=font, anchor="mm")
    return sheet


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("images", nargs="*", help="photographs, or folders of them; none: the astronaut")
    add("--mask", default="irregular", help="a mask file (white = to be filled), or a family: "
        + ", ".join(masks.MASKS))
    add("--method", default="keep", help=", ".join(methods.METHODS) + ", or a file of your own")
    add("--train", nargs="+", metavar="PATH", help="training images, for a method that learns from "
        "them: as for train.py's --data")
    add("--samples", type=int, default=4, help="fills of every image, by a method that draws")
    add("--steps", type=int, default=20, help="network calls a fill, at most the chain's T")
    add("--eta", type=float, help="0: DDIM, deterministic, keep's default … 1: ancestral, as in DDPM")
    add("--seed", type=int, default=0, help="of the noise and of a drawn hole")
    add("--weights", default=WEIGHTS, help="a weights.pt or checkpoint.pt of train.py's")
    add("--out", default="out", help="folder for the results")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    within(args, 1, 65_535, "samples")
    within(args, 0, 10 ** 9, "seed")
    within(args, 0, 1, "eta")
    device(args.device)

    photographs = read_photographs(args.images)
    ddpm, eps_model, size = load_weights(args.weights, args.device)
    method = methods.find(args.method, ddpm, eps_model, args.steps, args.eta,
                          callback=lambda *_: bar.update())
    samples = args.samples if method.DRAWS else 1
    if not hasattr(method, "inpaint"):
        if not args.train:
            raise BadInput(f"--method {args.method} learns from training images: name them with "
                           "--train, or draw them with --train synthetic")
        method.inpaint = method.fit(data.load(args.train, size=size))
    holes = read_hole(args.mask, photographs, size, args.seed).to(args.device)
    out = Path(args.out)
    for path in map(Path, args.images):
        if out.resolve() == (path if path.is_dir() else path.parent).resolve():
            raise BadInput(f"--out {out} is where the photographs lie: results could overwrite "
                           "them")
    out.mkdir(parents=True, exist_ok=True)
    told = origin(args.weights, args.seed)

    begun = time.time()
    work = -(-samples // BATCH) * max(method.CALLS, 1)           # steps of the bar for an image
    with tqdm(total=len(holes) * work, desc="inpainting", unit=" calls") as bar:
        for i, ((stem, photograph), hole) in enumerate(zip(photographs.items(), holes)):
            image = torch.from_numpy(data.square(photograph, size).copy())
            if hole.any():
                fills = fill(method.inpaint, image[None], hole[None], samples, args.seed)[0]
            else:
                tqdm.write(f"{stem}: the hole is empty, nothing to do; the image is copied")
                fills = image.expand(samples, *image.shape)
            bar.update((i + 1) * work - bar.n)
            image, hole, fills = image.numpy(), hole.cpu().numpy(), fills.cpu().numpy()
            write_png(Image.fromarray(image), out / f"{stem}_input.png", told)
            write_png(Image.fromarray((255 * hole[0]).astype(np.uint8)), out / f"{stem}_hole.png",
                      told)
            for k, filled in enumerate(fills):
                write_png(Image.fromarray(filled), out / f"{stem}_{k}.png", told)
            write_png(side_by_side(image, hole, fills), out / f"{stem}.png", told)
    print(f"{len(holes)} image{'s' * (len(holes) > 1)} × {samples} fill{'s' * (samples > 1)}, seed "
          f"{args.seed}, {method.CALLS} network calls a fill, {time.time() - begun:.1f} s: {out}/")


if __name__ == "__main__":
    run(main, memory="--samples")
