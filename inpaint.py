"""Fill the hole in a photograph with the trained network.

    python inpaint.py --mask irregular                       # a public-domain face, a drawn hole
    python inpaint.py photo.jpg --mask mask.png --samples 8  # white in the mask = to be filled
    python inpaint.py folder/ --mask center --out filled/    # every image of a folder
    python inpaint.py --method patchmatch                    # an older way

For an input STEM, in --out: `STEM_input.png`; `STEM_hole.png`, white = filled; `STEM_0.png`,
`STEM_1.png`, … the fills, outside the hole exactly STEM_input.png; `STEM.png`, what the network was
given and made of it, side by side.
With a mask file they are as large as the photograph: a square around the hole is resized to the
network's size, filled, resized back and pasted into the hole. For a drawn hole the photograph is
first cut to its centred square and resized to the network's size.
"""
import argparse
import hashlib
import time
from collections import Counter
from pathlib import Path

import support.threads

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

import data
import masks
import methods
from support.cli import BadInput, check_range, device, run
from support.files import provenance, write_png
from support.foreign import local
from support.runs import WEIGHTS, WEIGHTS_HELP, load_weights

BATCH = 32        # fills at a time: enough to keep a processor busy, 0.4 GB at 64×64
FINEST = 10       # the network is to see no more of a photograph than 10 × the hole's extent


def fill(method, images, hole, samples=4, seed=0, batch=BATCH):
    """`samples` fills of every image: what `draw` drew in the hole, exactly `images` outside it."""
    drawn = draw(method, images, hole, samples, seed, batch)
    inside = hole.permute(0, 2, 3, 1)[:, None] > 0
    return torch.where(inside, drawn, images[:, None].to(hole.device))


def draw(method, images, hole, samples=4, seed=0, batch=BATCH):
    """Have a method fill every image `samples` times: the one place where fills are drawn.

    method  inpaint(image, hole, generator) -> image, as in methods.py
    images  uint8 [N, H, W, 3];  hole [N, 1, H, W], on the device to work on
    seed    sample k of an image depends on (seed, its known pixels and hole, k), not on its name or
            its neighbours: see `noise_seed`
    batch   fills at a time; a network's rounding depends on how many
    Returns uint8 [N, samples, H, W, 3], outside the hole whatever the method returned. Raises
    BadInput if that is of another shape than the images, or not finite.
    """
    images = images.to(hole.device)
    known = torch.where(hole > 0, 0.0, data.to_float(images))             # nothing to peek at
    seeds = [noise_seed(seed, *pair, k) for pair in zip(known, hole) for k in range(samples)]
    known, holes = (v.repeat_interleave(samples, dim=0) for v in (known, hole))
    fills = []
    for i in range(0, len(known), batch):
        generators = [torch.Generator().manual_seed(s) for s in seeds[i:i + batch]]
        filled = method(known[i:i + batch], holes[i:i + batch], generators)
        if filled.shape != known[i:i + batch].shape or not torch.isfinite(filled).all():
            raise BadInput("a fill must be finite and of the image's shape, "
                           f"{tuple(known[i:i + batch].shape)}; this one is of shape "
                           f"{tuple(filled.shape)}: mend the method or, if it uses a network, its "
                           "--weights")
        fills.append(filled.float())
    return data.to_uint8(torch.cat(fills)).unflatten(0, (len(images), samples))


def noise_seed(seed, known, hole, k):
    """The seed of sample k's generator, a hash of the arguments: a photograph gets the same fill
    under any name, and no two faces share their noise."""
    content = hashlib.sha256(f"{seed} {k} {tuple(known.shape)}".encode())
    for pixels in (data.to_uint8(known[None]), hole > 0):
        content.update(pixels.cpu().numpy().tobytes())
    return int.from_bytes(content.digest()[:8]) >> 1                      # 63 bits


def context_box(hole, size):
    """The square (top, left, side) of a photograph, reduced to `size`, that the network is to see.

    hole [1, H, W], not empty. The window that training cuts, where faces lie as the network knows
    them, if it holds the hole and the hole would not become too small in it. Else FINEST times the
    hole's extent, around the hole, as far as the photograph goes; beyond its edges only for a hole
    that is longer than the photograph is wide.
    """
    _, height, width = hole.shape
    rows, columns = (hole[0].any(dim=dim).nonzero()[:, 0].tolist() for dim in (1, 0))
    extent = 1 + max(rows[-1] - rows[0], columns[-1] - columns[0])
    x, y, x_end, y_end = data.window((width, height))
    if (x <= columns[0] and columns[-1] < x_end and y <= rows[0] and rows[-1] < y_end
            and x_end - x <= max(size, FINEST * extent)):
        return y, x, x_end - x
    side = max(min(max(size, FINEST * extent), height, width), extent)

    def place(line, length):
        middle = (line[0] + line[-1] + 1 - side) // 2
        return min(max(middle, 0), length - side) if side <= length else (length - side) // 2
    return place(rows, height), place(columns, width), side


def shrink(photograph, hole, box, size):
    """The box of the photograph, and its hole, at the network's size. A pixel is the mean of those
    known around it, so that nothing in the hole colours its rim, and known if three quarters are.

    photograph uint8 [H, W, 3]; hole [1, H, W]; what lies outside the photograph is hole.
    Returns uint8 [size, size, 3], [1, size, size].
    """
    (top, left, side), (height, width) = box, hole.shape[1:]
    edges = (-left, left + side - width, -top, top + side - height)     # negative: cut away
    known = F.pad(1 - hole, edges)
    pixels = torch.cat([F.pad(photograph.permute(2, 0, 1), edges) * known, known])
    pixels = F.interpolate(pixels[None], (size, size), mode="bicubic", antialias=True)[0]
    hole = (pixels[3:] < 0.75).float()
    colours = pixels[:3] * (1 - hole) / torch.where(hole > 0, 1, pixels[3:])
    return colours.clamp(0, 255).round().byte().permute(1, 2, 0), hole


def paste(photograph, hole, box, filled):
    """The fill, uint8 [size, size, 3], enlarged to the box and pasted into the hole of the
    photograph, uint8 [H, W, 3], whose other pixels stay as they are."""
    (top, left, side), (height, width) = box, hole.shape[1:]
    large = F.interpolate(filled.permute(2, 0, 1)[None].float(), (side, side), mode="bicubic",
                          antialias=True)[0].clamp(0, 255).round().byte()
    large = F.pad(large, (left, width - left - side, top, height - top - side))
    return torch.where(hole[0, :, :, None] > 0, large.permute(1, 2, 0), photograph)


def complete(method, photograph, hole, size, samples=4, seed=0, device="cpu", batch=BATCH):
    """Fill the hole of one photograph, uint8 [H, W, 3]; hole [1, H, W]; the rest as for `fill`.

    Returns (box, seen, part, fills): the square of the photograph that the network, of `size`, was
    shown; what it saw there and the hole in it, as from `shrink`; and its fills, uint8 [samples,
    size, size, 3], to `paste` back. If nothing is left of the hole at the network's size, they are
    what it would have seen.
    """
    box = context_box(hole, size) if hole.any() else (0, 0, min(hole.shape[1:]))
    seen, part = shrink(photograph, hole, box, size)
    if not part.any():
        return box, seen, part, seen.expand(samples, *seen.shape)
    fills = fill(method, seen[None], part[None].to(device), samples, seed, batch)
    return box, seen, part, fills[0].cpu()


def astronaut():
    """A face in the public domain (NASA's portrait of Eileen Collins, which comes with
    scikit-image), cut so that the eyes lie where they lie in CelebA's aligned photographs."""
    import skimage.data  # here, because it takes a second to import and only this needs it

    return Image.fromarray(skimage.data.astronaut()).crop((148, 22, 304, 178))


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
    stems = {file.stem for file in files}
    for stem in stems:
        base, _, end = stem.rpartition("_")
        if base in stems and (end in ("input", "hole") or end.isdecimal()):
            raise BadInput(f"{stem} is also the name of a result of {base}: rename one, or fill "
                           "them into folders of their own")
    return {file.stem: data.open_image(file) for file in files}


def read_hole(mask, photographs, size, seed):
    """The hole of every photograph: a list of [1, H, W], drawn at the network's size if `mask`
    names a family, else read from a file of the photographs' shape and of each one's own size."""
    if mask in masks.MASKS:
        return [*masks.MASKS[mask](len(photographs), size, torch.Generator().manual_seed(seed))]
    if not Path(mask).is_file():
        raise BadInput(f"--mask {mask}: neither a file nor one of {', '.join(masks.MASKS)}")
    picture = data.open_image(mask, background="black").convert("L")
    brightest = picture.getextrema()[1]
    if brightest > 0 and not masks.from_image(picture, picture.size).any():
        raise BadInput(f"{mask}: white is what is filled, from 128 of 255 on, but the brightest of "
                       f"its values is {brightest}: raise the contrast of the mask")
    holes = []
    for stem, photograph in photographs.items():
        (width, height), (w, h) = photograph.size, picture.size
        if abs(w * height - h * width) > 0.01 * h * width:
            raise BadInput(f"{mask} is {w}×{h} and {stem} is {width}×{height}: a mask must have "
                           "its photograph's shape")
        holes.append(masks.from_image(picture, photograph.size)[0])
    return holes


def spread_of(fills):
    """How much the fills, uint8 [K, H, W, 3], differ at every pixel: their standard deviation, of
    255, the mean of the three colours: [H, W]."""
    return fills.astype(float).std(axis=0).mean(axis=-1)


def side_by_side(image, hole, fills, scale=3):
    """Original, masked, fills and their pixelwise spread, enlarged and labelled.

    image uint8 [H, W, 3]; hole [1, H, W]; fills uint8 [K, H, W, 3]. Returns a picture.
    """
    masked = np.where(hole[0, :, :, None] > 0, 128, image).astype(np.uint8)
    spread = spread_of(fills)[..., None]
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


def write_results(out, stem, image, hole, size, filled, metadata):
    """The files of one photograph; `filled` is what `complete` returned."""
    box, seen, part, fills = filled
    pictures = {f"{stem}_input": image, f"{stem}_hole": (255 * hole[0]).byte()}
    pictures |= {f"{stem}_{k}": paste(image, hole, box, fill) for k, fill in enumerate(fills)}
    for name, pixels in pictures.items():
        write_png(Image.fromarray(pixels.numpy()), out / f"{name}.png", metadata)
    original = shrink(image, torch.zeros_like(hole), box, size)[0]
    seen = torch.where(part[0, :, :, None] > 0, original, seen)
    sheet = side_by_side(seen.numpy(), part.numpy(), fills.numpy())
    write_png(sheet, out / f"{stem}.png", metadata)


def check_out(args):
    """Refuse to write where an input lies, which a result could overwrite."""
    out, mask = Path(args.out).resolve(), [] if args.mask in masks.MASKS else [args.mask]
    for path in map(Path, [*args.images, *mask]):
        if out == (path if path.is_dir() else path.parent).resolve():
            raise BadInput(f"--out {args.out} is where {path} lies: results could overwrite it")


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("images", nargs="*", help="photographs, or folders of them; none: the astronaut")
    add("--mask", default="irregular", help="a mask file (white = to be filled), or a family: "
        + ", ".join(masks.MASKS))
    add("--method", help=", ".join(methods.METHODS) + ", or a file of your own; default: keep, or "
        "pigdm with weights that know no hole")
    add("--train", nargs="+", metavar="PATH", help="training images, for a method that learns from "
        "them: as for train.py's --data")
    add("--samples", type=int, default=4, help="fills of every image, by a method that draws")
    add("--steps", type=int, default=20, help="network calls a fill, at most the chain's T")
    add("--eta", type=float, help="0: deterministic … 1: ancestral, as in DDPM, the default")
    add("--seed", type=int, default=0, help="of the noise and of a drawn hole")
    add("--batch", type=int, default=BATCH, help="fills at a time; 1 takes up to twice as long, "
        "and a fill is then the same to the last bit however many are asked for")
    add("--weights", default=WEIGHTS, help=WEIGHTS_HELP)
    add("--out", default="out", help="folder for the results")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    check_range(args, 1, 65_535, "samples", "batch")
    check_range(args, 0, 10 ** 9, "seed")
    check_range(args, 0, 1, "eta")
    device(args.device)
    return args


def main():
    args = parse()
    photographs = read_photographs(args.images)
    args.weights = local(args.weights)
    ddpm, eps_model, size = load_weights(args.weights, args.device)
    args.method = args.method or methods.default(eps_model)
    method = methods.find(args.method, ddpm, eps_model, args.steps, args.eta,
                          callback=lambda *_: bar.update())
    samples = args.samples if method.DRAWS else 1
    if not hasattr(method, "inpaint"):
        if not args.train:
            raise BadInput(f"--method {args.method} learns from training images: name them with "
                           "--train, or draw them with --train synthetic")
        method.inpaint = method.fit(data.load(args.train, size=size))
    holes = read_hole(args.mask, photographs, size, args.seed)
    check_out(args)
    out, metadata = Path(args.out), provenance(args.weights, args.seed)
    out.mkdir(parents=True, exist_ok=True)

    begun = time.time()
    work = -(-samples // args.batch) * max(method.CALLS, 1)        # steps of the bar for an image
    with tqdm(total=len(holes) * work, desc="inpainting", unit=" calls") as bar:
        for i, ((stem, photograph), hole) in enumerate(zip(photographs.items(), holes)):
            if args.mask in masks.MASKS:
                photograph = data.square(photograph, size)
            image = torch.from_numpy(np.array(photograph))
            filled = complete(method.inpaint, image, hole, size, samples, args.seed, args.device,
                              args.batch)
            if not filled[2].any():
                tqdm.write(f"{stem}: the hole is too thin for the network, and blurred over"
                           if hole.any() else
                           f"{stem}: the hole is empty, nothing to do; the image is copied")
            bar.update((i + 1) * work - bar.n)
            write_results(out, stem, image, hole, size, filled, metadata)
    print(f"{len(holes)} image{'s' * (len(holes) > 1)} × {samples} fill{'s' * (samples > 1)}, seed "
          f"{args.seed}, {method.CALLS} network calls a fill, {time.time() - begun:.1f} s: {out}/")


if __name__ == "__main__":
    run(main, memory="--samples")
