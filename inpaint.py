"""Fill the hole in a photograph with the trained network.

    python inpaint.py --mask irregular                       # a public-domain face, a drawn hole
    python inpaint.py photo.jpg --mask mask.png --samples 8  # white in the mask = to be filled
    python inpaint.py folder/ --mask masks/ --out filled/    # each photograph with its own mask
    python inpaint.py --method patchmatch                    # an older way

For an input STEM, in --out: `STEM_input.png`; `STEM_hole.png`, white = filled; `STEM_0.png`,
`STEM_1.png`, … the fills, the most typical first, of the photograph's size and kind, outside the
hole exactly STEM_input.png; `STEM.png`, what the method was shown and drew, side by side.
Methods of a fixed size, such as the network, see windows of the photograph (windows.py), and a
second network sharpens our network's fills (sharpen.py). The others see its own pixels.
"""
import argparse
import hashlib
import itertools
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import support.threads

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

import data
import faces
import masks
import methods
import sharpen
import windows
from support.cli import BadInput, check_empty, check_range, device, run, say
from support.files import lock_folder, provenance, write_png
from support.foreign import local
from support.photographs import Holes, Photograph, find, walk
from support.runs import WEIGHTS, WEIGHTS_HELP, load_weights

BATCH = 32        # fills at a time: enough to keep a processor busy, 0.4 GB at 64×64
OWN = 512         # pixels, the side from which on a method of any size works on a reduced window
SHOWN = 6         # windows in STEM.png, at most
PANEL = 256       # pixels, up to which they are enlarged there


def fill(inpaint, images, hole, samples=4, seed=0, batch=BATCH):
    """`samples` fills of every image: what `draw` drew in the hole, exactly `images` outside it."""
    drawn = draw(inpaint, images, hole, samples, seed, batch)
    inside = hole.permute(0, 2, 3, 1)[:, None] > 0
    images = images if images.ndim == 5 else images[:, None]
    return torch.where(inside, drawn, images.to(hole.device))


def draw(inpaint, images, hole, samples=4, seed=0, batch=BATCH):
    """Have a method fill every image `samples` times: the one place where fills are drawn.

    inpaint inpaint(image, hole, generator) -> image, as in methods.py
    images  uint8 [N, H, W, 3], or [N, samples, H, W, 3] if each sample has its own surroundings
    hole    [N, 1, H, W], on the device to work on
    seed    sample k of an image depends on (seed, its known pixels and hole, k), not on its name or
            its neighbours: see `noise_seed`
    batch   fills at a time; a network's rounding depends on how many
    Returns uint8 [N, samples, H, W, 3], outside the hole whatever the method returned. Raises
    BadInput if that is of another shape than the images, or not finite.
    """
    if images.ndim == 4:
        images = images[:, None].expand(-1, samples, -1, -1, -1)
    images, holes = images.flatten(0, 1).to(hole.device), hole.repeat_interleave(samples, dim=0)
    known = torch.where(holes > 0, 0.0, data.to_float(images))            # nothing to peek at
    seeds = [noise_seed(seed, image, each, i % samples)
             for i, (image, each) in enumerate(zip(known.cpu(), holes.cpu()))]
    fills = []
    for i in range(0, len(known), batch):
        generators = [torch.Generator().manual_seed(s) for s in seeds[i:i + batch]]
        filled = inpaint(known[i:i + batch], holes[i:i + batch], generators)
        if not isinstance(filled, torch.Tensor):
            raise BadInput(f"a fill must be a tensor, and this one is a {type(filled).__name__}: "
                           "mend the method")
        if filled.shape != known[i:i + batch].shape:
            raise BadInput(f"a fill must be of the image's shape, {tuple(known[i:i + batch].shape)}"
                           f"; this one is of shape {tuple(filled.shape)}: mend the method")
        if not torch.isfinite(filled).all():
            raise BadInput("a fill must be finite, and this one is NaN or infinite somewhere: mend "
                           "the method or, if it uses a network, name other --weights")
        fills.append(filled.float())
    return data.to_uint8(torch.cat(fills)).unflatten(0, (len(hole), samples))


def noise_seed(seed, known, hole, k):
    """The seed of sample k's generator, a hash of the arguments: a photograph gets the same fill
    under any name, and no two faces share their noise."""
    content = hashlib.sha256(f"{seed} {k} {tuple(known.shape)}".encode())
    for pixels in (data.to_uint8(known[None]), hole > 0):
        content.update(pixels.numpy().tobytes())
    return int.from_bytes(content.digest()[:8]) >> 1                      # 63 bits


def complete(inpaint, photograph, hole, size=None, samples=4, seed=0, device="cpu", batch=BATCH,
             planned=None):
    """Fill the hole of one photograph, uint8 [H, W, 3], on a `device`; hole [1, H, W]; other
    arguments as for `fill`.

    size     of the images that the method takes, which shows it the photograph through windows.py;
             None: it takes any size, and sees the photograph's own pixels, reduced only in windows
             of over OWN
    planned  windows, as `plan` returns them; default: plan(hole, size). Needed for a known face,
             and for a sharpener, whose `size` is larger than the first network's

    Returns (fills, views, order): uint8 [samples, H, W, 3], the most typical first, exactly the
    photograph outside the hole; for every window, its box in the photograph, what the first sample
    was shown there, uint8 [h, w, 3], the hole in it, [1, h, w], and what was drawn, uint8
    [samples, h, w, 3] (if nothing is left of the hole at that size, what was shown); and each
    fill's number as a sample.
    """
    fills, left, views = photograph.repeat(samples, 1, 1, 1), hole.clone(), []
    for box, cell in plan(hole, size) if planned is None else planned:
        shape = size, size
        if size is None:
            box = windows.clip(box, hole.shape[1:])
            shape = tuple(max(1, round(side * min(1, OWN / max(box[2:])))) for side in box[2:])
        shrunk = [windows.shrink(each, left, box, shape) for each in fills]
        seen, part = torch.stack([pixels for pixels, _ in shrunk]), shrunk[0][1]
        drawn = fill(inpaint, seen[None], part[None].to(device), samples, seed,
                     batch)[0].cpu() if part.any() else seen
        for each, patch in zip(fills, drawn):
            windows.paste(each, left, box, cell, patch)
        windows.crop(left[0], cell).zero_()
        views.append((box, seen[0], part, drawn))
    order = typical_first(views, samples)
    if samples > 1:
        fills, views = fills[order], [(*view, drawn[order]) for *view, drawn in views]
    return fills, views, order


def typical_first(views, samples):
    """The order of the fills: nearest to the mean of all, in the hole, first; farthest last. On
    average the first is also nearest to what was there. Views are those of `complete`."""
    far = torch.zeros(samples)
    for _, _, part, drawn in views:
        fills = drawn[:, part[0] > 0].float()
        far += (fills - fills.mean(dim=0)).square().sum(dim=(1, 2))
    return far.argsort(stable=True)


def plan(hole, size=None, face=None, found=()):
    """The windows in which `complete` fills a hole, as from windows.plan. face is (left, top, side)
    of the face's square, or None: where CelebA has it, else one of those that `faces.find` found,
    else all of a square photograph."""
    if size is None:
        return windows.plan(hole, OWN)
    face = face or windows.face_in(*hole.shape[1:])
    return windows.plan(hole, size, [*found, face] if face else found)


def astronaut():
    """A face in the public domain (NASA's portrait of Eileen Collins, which comes with
    scikit-image), cut so that the eyes lie where they lie in CelebA's aligned photographs."""
    skimage = Path(find_spec("skimage").origin).parent    # not imported, which takes 0.1 s
    picture = data.open_image(skimage / "data" / "astronaut.png")
    return Image.fromarray(np.asarray(picture)[22:178, 148:304])              # without its profile


def spread_of(fills):
    """How much the fills, uint8 [K, H, W, 3], differ at every pixel: their standard deviation, of
    255, the mean of the three colours: [H, W]."""
    return fills.astype(float).std(axis=0).mean(axis=-1)


def side_by_side(image, hole, fills):
    """Original, masked, fills and their pixelwise spread, enlarged and labelled.

    image uint8 [H, W, 3]; hole [1, H, W]; fills uint8 [K, H, W, 3]. Returns a picture.
    """
    masked = np.where(hole[0, :, :, None] > 0, 128, image).astype(np.uint8)
    spread = spread_of(fills)[..., None]
    heat = (spread / max(spread.max(), 1) * 255).repeat(3, axis=-1).astype(np.uint8)
    panels = [("original", image), ("to fill", masked),
              *((f"fill {k}", fill) for k, fill in enumerate(fills))]
    if len(fills) > 1:
        panels.append((f"spread 0…{spread.max():.0f}", heat))
    scale, top = max(1, PANEL // max(image.shape)), 22
    width, height = scale * image.shape[1], scale * image.shape[0]
    sheet = Image.new("RGB", (len(panels) * (width + 4) - 4, height + top), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for i, (label, panel) in enumerate(panels):
        left = i * (width + 4)
        sheet.paste(Image.fromarray(panel).resize((width, height), Image.NEAREST), (left, top))
        pen.text((left + width / 2, top / 2), label, fill="black", font=font, anchor="mm")
    return sheet


def stacked(sheets):
    """Pictures one above the other."""
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets),
                              sum(sheet.height for sheet in sheets)), "white")
    for i, sheet in enumerate(sheets):
        whole.paste(sheet, (0, sum(above.height for above in sheets[:i])))
    return whole


def read_each(photographs, holes, failed):
    """(name of the results, photograph, hole), one at a time. Of several photographs, one that
    cannot be read, or has no mask, is reported, added to `failed`, and the rest go on."""
    for name, path in photographs.items():
        try:
            photograph = Photograph(data.decode(path) if path else astronaut())
            found = holes.of(name, path, photograph.rgb.shape[:2])
        except BadInput as error:
            if len(photographs) == 1:
                raise
            say(error)
            failed.append(name)
            continue
        for each, hole in found:
            yield each, photograph, hole


def write_results(out, name, photograph, hole, fills, views, metadata):
    """The files of one photograph; fills and views as `complete` returned them."""
    pictures = {f"{name}_input": photograph.filled(),
                f"{name}_hole": Image.fromarray((255 * hole[0]).byte().numpy())}
    pictures |= {f"{name}_{k}": photograph.filled(hole, fill) for k, fill in enumerate(fills)}
    sheets = []
    for box, seen, part, drawn in views[:SHOWN]:
        original, _ = windows.shrink(photograph.rgb, torch.zeros_like(hole), box, part.shape[1:])
        seen = torch.where(part[0, :, :, None] > 0, original, seen)
        sheets.append(side_by_side(seen.numpy(), part.numpy(), drawn.numpy()))
    if sheets:
        pictures[name] = stacked(sheets)
    for path, picture in pictures.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        write_png(picture, out / f"{path}.png", metadata)
    for k in itertools.count(len(fills)):                # left by an earlier run of more --samples
        left = out / f"{name}_{k}.png"
        if not is_result(left):
            break
        left.unlink()


def check_out(args):
    """Refuse to write where an input lies, which a result could overwrite, or where photographs
    would be passed over, as a folder's results are when it is filled again."""
    out, mask = Path(args.out).resolve(), [] if args.mask in masks.MASKS else [args.mask]
    for path in map(Path, [*args.images, *mask]):
        if out == (path if path.is_dir() else path.parent).resolve():
            raise BadInput(f"--out {args.out} is where {path} lies: results could overwrite it")
        if path.is_dir() and path.resolve() in out.parents and out.is_dir():
            for image in walk(out):
                if not is_result(image):
                    raise BadInput(f"--out {args.out} lies in {path} and holds {image}, which is "
                                   "no result: name another --out")


def check_results(out, name, samples):
    """Refuse to replace pictures that are not results."""
    for path in (f"{name}.png", f"{name}_input.png", f"{name}_hole.png",
                 *(f"{name}_{k}.png" for k in range(samples))):
        if (out / path).exists() and not is_result(out / path):
            raise BadInput(f"{out / path} is no result of inpaint.py, and would be overwritten: "
                           "name another --out")


def is_result(path):
    """Whether a file is a picture that write_results wrote, which says by which command."""
    try:
        with Image.open(path) as picture:
            return "command" in picture.info
    except OSError:                                     # missing, or no picture
        return False


def parse():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("images", nargs="*", help="photographs, or folders of them; none: the astronaut")
    add("--mask", default="irregular", help="a mask file, white (from 128 of 255) = to be filled; "
        "a folder of them, STEM.png or STEM_mask….png for photograph STEM; or a family, drawn in "
        "the centred square: " + ", ".join(masks.MASKS))
    add("--invert", action="store_true", help="the mask is white where the photograph is kept")
    add("--grow", type=int, default=0, metavar="PIXELS", help="widen every hole, so that no rim of "
        "a removed object is left")
    add("--face", type=int, nargs=3, metavar=("LEFT", "TOP", "SIDE"), help="the square, in pixels, "
        "that shows the face as CelebA does: eyes at half its height, 0.28 of its width apart; "
        "default: where one is found")
    add("--find-faces", action=argparse.BooleanOptionalAction, help="look for the faces that have "
        "a hole: 1 s for 512×512 pixels, a few for 12 megapixels; default: unless the weights "
        "are other people's")
    add("--method", help=", ".join(methods.METHODS) + ", or a file of your own; default: keep, or "
        "pigdm with weights that know no hole")
    add("--train", nargs="+", metavar="PATH", help="training images, for a method that learns from "
        "them: as for train.py's --data")
    add("--samples", type=int, default=4, help="fills of every image, by a method that draws; the "
        "one nearest to their mean comes first")
    add("--steps", type=int, default=20, help="levels of noise, at most the chain's T; a network "
        "call each, more for repaint")
    add("--eta", type=float, default=1.0, help="0: deterministic … 1: ancestral, as in DDPM, the "
        "default")
    add("--seed", type=int, default=0, help="of the noise and of a drawn hole")
    add("--batch", type=int, help=f"fills at a time; default: {BATCH}, or with weights that know "
        "no hole as many as make up 256×256 pixels; 1 takes up to twice as long, but makes each "
        "fill the same to the last bit for any --samples")
    add("--weights", default=WEIGHTS, help=WEIGHTS_HELP)
    add("--sharpen", metavar="FILE", help=f"{sharpen.HELP}; default: ours "
        "(128×128) with our --weights, else none; up to 5 more calls a fill")
    add("--out", default="out", help="folder for the results")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    check_empty(args)
    check_range(args, 1, 65_535, "samples", "batch")
    check_range(args, 0, 10 ** 9, "seed")
    check_range(args, 0, 10 ** 4, "grow")
    if args.face and args.face[2] < 1:
        raise BadInput(f"--face: a square's side is at least 1 pixel, not {args.face[2]}")
    check_range(args, 0, 1, "eta")
    device(args.device)
    return args


def main():
    args = parse()
    photographs = find(args.images, args.out) if args.images else {"astronaut": None}
    args.weights = local(args.weights)
    ddpm, eps_model, size = load_weights(args.weights, args.device)
    args.method = args.method or methods.default(eps_model)
    args.batch = args.batch or getattr(eps_model, "at_once", BATCH)
    sharpener = find_sharpener(args, size)
    method = methods.find(args.method, ddpm, eps_model, args.steps, args.eta,
                          callback=lambda *_: bar.update(), sharpener=sharpener)
    samples = args.samples if method.DRAWS else 1
    if args.face and method.ANY_SIZE:
        raise BadInput(f"--face is for the network: {args.method} sees the photograph's own pixels")
    if not hasattr(method, "inpaint"):
        if not args.train:
            raise BadInput(f"--method {args.method} learns from training images: name them with "
                           "--train, or draw them with --train synthetic")
        method.inpaint = method.fit(data.load(args.train, size=size))
    holes = Holes(args.mask, size, args.seed, args.invert, args.grow, args.out)
    check_out(args)
    failed = []
    jobs = read_each(photographs, holes, failed)
    jobs = jobs if len(photographs) > 1 else [*jobs]              # a mistake is told at once
    begun, count, size = time.time(), 0, None if method.ANY_SIZE else size
    look = methods.knows_hole(eps_model) if args.find_faces is None else args.find_faces
    known = args.face or not args.images                     # the astronaut's, too
    seek = None if known or not look or size is None else partial(
        faces_at, size, faces.load(args.weights, ddpm, eps_model, size))
    shown = sharpener.size if sharpener else size
    steps = len(photographs) * bar_steps(method, samples, args.batch)
    with lock_folder(args.out), tqdm(total=steps, desc="inpainting", unit=" calls") as bar:
        for count, job in enumerate(jobs, 1):
            fill_one(args, method, size, shown, seek, samples, bar, *job)
    holes.report_unused()
    done = len(photographs) - len(failed)
    print(f"{done} image{'s' * (done != 1)}{f', {count} holes' * (count != done)} × {samples} "
          f"fill{'s' * (samples > 1)}, seed "
          f"{args.seed}, {method.CALLS} network calls a fill, {time.time() - begun:.1f} s: "
          f"{Path(args.out)}/")
    if failed:
        raise BadInput(f"{len(failed)} of {len(photographs)} images were not filled, as said above")


def find_sharpener(args, size):
    """The Sharpener of the network's fills, or None; args.sharpen becomes its file, or None."""
    sharpener = None
    if methods.has_network(args.method):
        sharpener = sharpen.find(args.sharpen, args.weights, size, args.device)
    elif args.sharpen not in (None, "none"):
        raise BadInput(f"--sharpen is for fills of the network, not of --method {args.method}")
    args.sharpen = sharpener.path if sharpener else None
    return sharpener


def faces_at(size, readout, name, photograph, hole):
    """The faces found; if the network can tell that there is none, a line says so."""
    found = faces.find(photograph.rgb, hole, size, readout)
    if readout and hole.any() and not found:
        say(f"{name}: {faces.NONE}")
    return found


def bar_steps(method, samples, batch):
    """Steps of the progress bar for a window: its calls of the network, or 1 without one."""
    return -(-samples // batch) * max(method.CALLS, 1)


def fill_one(args, method, size, shown, seek, samples, bar, name, photograph, hole):
    """Fill a photograph's hole and write the results, moving the bar along. Windows are planned for
    a network of `size`, and the method is shown them at the size `shown`: a sharpener's is larger.
    seek(name, photograph, hole) finds faces.
    """
    check_results(Path(args.out), name, samples)
    found = seek(name, photograph, hole) if seek else ()
    planned, done, one = (plan(hole, size, args.face, found), bar.n,
                          bar_steps(method, samples, args.batch))
    if args.face and size and windows.plan(hole, size, [args.face]) == windows.plan(hole, size):
        say(f"{name}: no part of the hole suits --face, which is not used")
    work = one * max(1, len(planned))
    bar.total = max(bar.total + work - one, done + work)          # a photograph may have more holes
    fills, views, _ = complete(method.inpaint, photograph.rgb, hole, shown, samples, args.seed,
                               args.device, args.batch, planned)
    bar.update(done + work - bar.n)
    if not any(part.any() for _, _, part, _ in views):
        say(f"{name}: the hole is " + ("too thin for the network, and blurred over"
            if hole.any() else "empty, nothing to do; the image is copied"))
    write_results(Path(args.out), name, photograph, hole, fills, views,
                  provenance(args.weights, args.seed, args.sharpen))


if __name__ == "__main__":
    run(main, memory="--samples or --batch, reduce the photograph, or name --weights of a "
        "smaller network")
