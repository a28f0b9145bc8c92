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
import time
from importlib.util import find_spec
from pathlib import Path

import support.threads

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import data
import faces
import masks
import methods
import sharpen
import windows
from support import results
from support.cli import BadInput, check_empty, check_range, device, run, say
from support.files import lock_folder, provenance
from support.foreign import local
from support.photographs import Holes, Photograph, find
from support.runs import WEIGHTS, WEIGHTS_HELP, load_weights

BATCH = 32        # fills at a time: enough to keep a processor busy, 0.4 GB at 64×64
OWN = 512         # pixels, the side from which on a method of any size works on a reduced window


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
    under any name, and two faces hardly ever share their noise (the CPU's generator uses 32 of the
    63 bits)."""
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
    of a face's square, which comes first; then those that `faces.find` found; then where CelebA has
    it, or all of a square photograph."""
    if size is None:
        return windows.plan(hole, OWN)
    faces = [face, *found, windows.face_in(*hole.shape[1:])]
    return windows.plan(hole, size, [square for square in faces if square])


def astronaut():
    """A face in the public domain (NASA's portrait of Eileen Collins, which comes with
    scikit-image), cut so that the eyes lie where they lie in CelebA's aligned photographs."""
    skimage = Path(find_spec("skimage").origin).parent    # not imported, which takes 0.1 s
    picture = data.open_image(skimage / "data" / "astronaut.png")
    return Image.fromarray(np.asarray(picture)[22:178, 148:304])              # without its profile


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
    add("--steps", type=int, help=methods.STEPS_HELP)
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
    results.check_folder(args.out, args.images, args.mask)
    photographs = find(args.images, args.out) if args.images else {"astronaut": None}
    filler, failed, count, begun = Filler(args), [], 0, time.time()
    holes = Holes(args.mask, filler.network_size, args.seed, args.invert, args.grow, args.out)
    jobs = read_each(photographs, holes, failed)
    jobs = jobs if len(photographs) > 1 else [*jobs]              # a mistake is told at once
    with lock_folder(args.out), tqdm(total=len(photographs) * filler.calls, desc="inpainting",
                                     unit=" calls") as filler.bar:
        for count, job in enumerate(jobs, 1):
            filler.fill(*job)
    holes.report_unused()
    done = len(photographs) - len(failed)
    print(f"{done} image{'s' * (done != 1)}{f', {count} holes' * (count != done)} × "
          f"{filler.samples} fill{'s' * (filler.samples > 1)}, seed {args.seed}, "
          f"{filler.method.CALLS} network calls a fill, {time.time() - begun:.1f} s: "
          f"{Path(args.out)}/")
    if failed:
        raise BadInput(f"{len(failed)} of {len(photographs)} images were not filled, as said above")


class Filler:
    """A method and its networks, as the flags choose them, at work on one photograph after another.

    size     of the images for which windows are planned; None: the method takes any
    shown    of those that the method is shown and returns: larger, if a sharpener follows
    samples  fills of a photograph
    calls    steps of the progress bar for a window: the network's calls, or 1 without one
    """

    def __init__(self, args):
        args.weights = local(args.weights)
        ddpm, eps_model, self.network_size = load_weights(args.weights, args.device)
        args.method = args.method or methods.default(eps_model)
        args.batch = args.batch or getattr(eps_model, "at_once", BATCH)
        sharpener = find_sharpener(args, self.network_size)
        self.args, self.method = args, methods.find(
            args.method, ddpm, eps_model, args.steps, args.eta,
            callback=lambda *_: self.bar.update(), sharpener=sharpener)
        if args.face and self.method.ANY_SIZE:
            raise BadInput(f"--face is for the network: {args.method} sees the photograph's own "
                           "pixels")
        if not hasattr(self.method, "inpaint"):
            if not args.train:
                raise BadInput(f"--method {args.method} learns from training images: name them "
                               "with --train, or draw them with --train synthetic")
            self.method.inpaint = self.method.fit(data.load(args.train, size=self.network_size))
        self.size = None if self.method.ANY_SIZE else self.network_size
        self.shown = sharpener.size if sharpener else self.size
        self.samples = args.samples if self.method.DRAWS else 1
        self.calls = -(-self.samples // args.batch) * max(self.method.CALLS, 1)
        look = methods.knows_hole(eps_model) if args.find_faces is None else args.find_faces
        known = args.face or not args.images                     # the astronaut's, too
        self.looks = look and self.size is not None and not known
        self.made_by = provenance(args.weights, args.seed, args.sharpen)
        self.readout = (faces.load(args.weights, ddpm, eps_model, self.size) if self.looks
                        else None)

    def fill(self, name, photograph, hole):
        """Fill the photograph's hole and write the results, moving the bar along."""
        args, out, bar = self.args, Path(self.args.out), self.bar
        results.check(out, name, self.samples)
        found = self.find_faces(name, photograph, hole) if self.looks else ()
        planned, done = plan(hole, self.size, args.face, found), bar.n
        if args.face and not windows.serves(hole, self.size, args.face):
            say(f"{name}: no part of the hole suits --face, which is not used")
        work = self.calls * max(1, len(planned))
        bar.total = max(bar.total + work - self.calls, done + work)    # more holes than one
        fills, views, _ = complete(self.method.inpaint, photograph.rgb, hole, self.shown,
                                   self.samples, args.seed, args.device, args.batch, planned)
        bar.update(done + work - bar.n)
        if not any(part.any() for _, _, part, _ in views):
            say(f"{name}: the hole is " + ("too thin for the network, and blurred over"
                if hole.any() else "empty, nothing to do; the image is copied"))
        results.write(out, name, photograph, hole, fills, views, self.made_by)

    def find_faces(self, name, photograph, hole):
        """Where the faces with a hole are; if the network can tell that none is, a line says so."""
        found, none = faces.find(photograph.rgb, hole, self.size, self.readout)
        if none:
            say(f"{name}: {faces.NONE}")
        return found


def find_sharpener(args, size):
    """The Sharpener of the network's fills, or None; args.sharpen becomes its file, or None."""
    sharpener = None
    if methods.by_diffusion(args.method):
        sharpener = sharpen.find(args.sharpen, args.weights, size, args.device)
    elif args.sharpen not in (None, "none"):
        raise BadInput(f"--sharpen is for fills of the network, not of --method {args.method}")
    args.sharpen = sharpener.path if sharpener else None
    return sharpener


if __name__ == "__main__":
    run(main, memory="--samples or --batch, reduce the photograph, or name --weights of a "
        "smaller network")
