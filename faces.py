"""Where the faces are in a photograph, so that the network sees them placed as in training.

    python faces.py --data PATH/TO/celeba      # fit weights/celeba64.faces.pt, in minutes

First comes scikit-image's detector: a cascade of ever finer tests (Viola and Jones 2001) on local
binary patterns (Liao et al. 2007), at every place and size, for upright faces seen from the front.
A hole hinders it, and its squares are rough. Then the network itself moves the window: it is shown
the window with noise in its hole, and a linear function of the U-Net's middle tells how far
CelebA's window is from it.
The function is fitted to windows displaced at random, by ridge regression:

    (dx, dy, log scale) = middle · W + b

docs/choices.md has its precision, and what it is worth.
"""
import argparse
from collections import namedtuple
from pathlib import Path

import support.threads

import torch
from tqdm import tqdm

import data
import masks
import windows
from support.cli import BadInput, check_empty, check_range, run
from support.files import content, read_tensors, reading, write_tensors
from support.foreign import local
from support.runs import WEIGHTS, WEIGHTS_HELP, load_weights

SEEN = 512          # pixels, the side of the square that the detector is shown, reduced
SMOOTHED = 128      # pixels, the side of the copy in which the hole is smoothed over
LEAST = 48          # pixels, the smallest face there, from the brows to the chin
SIDE = 1.35         # of CelebA's window around a face, in sides of the square detected, and
RISE = 0.15         # how much higher its middle is: medians over 150 validation photographs
SPREAD = 0.06, 0.06, 0.12       # deviations of the displacements to learn from: dx, dy, log scale
PARTS = 6           # of the hole, for which faces are looked for: about a second each
CLOSE = 0.8         # of a square photograph's side: one with a larger face is seen whole
ROUNDS, COPIES = 5, 8           # of the alignment; nearby windows averaged in each
AGREED = 0.095      # deviation of what these say, dx, dy and log scale added, up to which there is
                    # a face; 0.12 if they tell nothing (docs/choices.md)

NONE = ("no face was found at the hole, and the network knows nothing else: the method patchmatch "
        "may do better")

Readout = namedtuple("Readout", "ddpm eps_model size W b")


def find(photograph, hole, size, readout=None):
    """([(left, top, side), …], none): the faces in a photograph, uint8 [H, W, 3], whose squares
    suit a part of its hole [1, H, W], none smaller than the network's images, of `size`; and
    whether there is no face at the hole at all, which a `readout` tells where it is asked.

    For each part, up to PARTS of them, the largest first, they are detected with the hole smoothed
    over. With a `readout`, the network aligns them; where none is detected, it looks for one at the
    window otherwise used, if the part has only one. Aligned ones come first. None is looked for
    along a part longer than twice the photograph's shorter side, nor in CelebA's photographs, whose
    window is known; the window of a square photograph that is nearly all face is all of it.
    """
    (height, width), where, detected, near = hole.shape[1:], hole[0].numpy() > 0, [], []
    if (width, height) == data.ALIGNED:
        return [windows.face_in(height, width)], False
    if min(height, width) <= size:
        return [], False
    any_face = False
    parts = sorted(windows.apart(where, size // 2), key=lambda part: -part[2] * part[3])[:PARTS]

    def serves(face):
        return face[2] >= size and any(windows.suits(where, part, size, face) for part in parts)
    for part in parts:
        if max(part[2:]) > 2 * min(height, width) or any(
                windows.suits(where, part, size, face) for face in detected):
            continue
        box = surroundings(part, hole.shape[1:], size)
        seen = detect(smooth(photograph, hole, box), box)
        any_face |= bool(seen)
        seen = [face for face in seen if serves(face)]
        detected += seen
        general = windows.cover(where, part, size)
        if not seen and len(general) == 1:
            (top, left, side, _), _ = general[0]
            near.append((left, top, side))
    detected, aligned = distinct(detected), []
    for face in detected + near if readout else ():
        window, deviation = align(readout, photograph, hole, face)
        any_face |= deviation < AGREED
        if face in detected or deviation < AGREED:
            aligned.append(window)
    found = [face for face in distinct(aligned) + detected if serves(face)]
    if found and width == height and found[0][2] > CLOSE * width:
        found = [windows.face_in(height, width)]
    return found, bool(readout and near and not any_face)


def surroundings(part, shape, size):
    """The square box around a part of the hole in which faces are looked for."""
    return windows.around(part, shape, max((windows.FINEST + 1) * max(part[2:]), 2 * size))


def smooth(photograph, hole, box):
    """A box of the photograph, uint8 [SEEN, SEEN, 3], with the smoothest surface in its hole,
    computed on a smaller one."""
    from baselines import biharmonic  # 0.1 s, and seldom needed

    seen, part = windows.shrink(photograph, hole, box, (SEEN, SEEN))
    whole = 0, 0, SEEN, SEEN
    small, small_part = windows.shrink(seen, part, whole, (SMOOTHED, SMOOTHED))
    filled = biharmonic.inpaint(data.to_float(small[None]), small_part[None])
    windows.paste(seen, part, whole, whole, data.to_uint8(filled)[0])
    return seen


def detect(seen, box):
    """[(left, top, side), …], the smallest first: CelebA's windows of the faces in a box of the
    photograph, of which uint8 [SEEN, SEEN, 3] is seen."""
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade  # 0.2 s, and seldom needed

    squares = Cascade(lbp_frontal_face_cascade_filename()).detect_multi_scale(
        seen.numpy(), scale_factor=1.1, step_ratio=1, min_size=(LEAST, LEAST),
        max_size=(SEEN, SEEN))
    return [as_celeba(square, box) for square in sorted(squares, key=lambda each: each["width"])]


def as_celeba(square, box):
    """CelebA's window, in pixels of the photograph, for a square that was detected in a box."""
    scale, width = box[2] / SEEN, square["width"]
    left = square["c"] + (1 - SIDE) / 2 * width
    top = square["r"] + ((1 - SIDE) / 2 - RISE) * width
    return round(box[1] + scale * left), round(box[0] + scale * top), round(scale * SIDE * width)


def overlap(one, other):
    """The intersection of two squares, (left, top, side), over their union."""
    width, height = (max(0, min(one[i] + one[2], other[i] + other[2]) - max(one[i], other[i]))
                     for i in (0, 1))
    return width * height / (one[2] ** 2 + other[2] ** 2 - width * height)


def distinct(squares):
    """Of squares that overlap, only the one that most others overlap; it comes first."""
    kept = []
    for square in sorted(squares, key=lambda one: -sum(overlap(one, other) for other in squares)):
        if all(overlap(square, other) < 0.3 for other in kept):
            kept.append(square)
    return kept


# ---- the network's own opinion -----------------------------------------------------------------

def align(readout, photograph, hole, face):
    """CelebA's window (left, top, side) near that of a face, in a photograph, uint8 [H, W, 3], with
    a hole [1, H, W]. In each of ROUNDS rounds, COPIES windows are displaced at random around the
    present one; each says where CelebA's window is, and their mean is the next. Also returns by how
    much they differed, the mean of all rounds: where there is no face, they do not agree."""
    generator, (height, width) = torch.Generator().manual_seed(0), hole.shape[1:]
    scale = max(1, round(face[2] / (4 * readout.size)))               # a large face is reduced once
    if scale > 1:
        photograph, hole = windows.shrink(photograph, hole, (0, 0, height, width),
                                          (-(-height // scale), -(-width // scale)))
        face = [number / scale for number in face]
        height, width = hole.shape[1:]
    least, most = torch.tensor([0, 0, 1]), torch.tensor([width, height, max(width, height)])
    face = torch.tensor([face[0] + face[2] / 2, face[1] + face[2] / 2, face[2]])      # x, y, side
    deviations = torch.zeros(ROUNDS)
    for i in range(ROUNDS):
        near = displaced(face, displacements(COPIES, generator) / 2)
        near = displaced(near, tell(readout, photograph, hole, near, generator))
        places, sizes = near[:, :2] / face[2], near[:, 2].log()
        deviations[i] = places.std(dim=0).sum() + sizes.std()
        face = torch.cat([near[:, :2].mean(dim=0), sizes.mean()[None].exp()]).clamp(least, most)
    x, y, side = (scale * face).tolist()
    return (round(x - side / 2), round(y - side / 2), round(side)), deviations.mean().item()


def displacements(number, generator):
    """(dx, dy, log scale), [number, 3], in sides of the window."""
    return torch.randn(number, 3, generator=generator) * torch.tensor(SPREAD)


def displaced(squares, by):
    """Squares (x, y, side) [..., 3], moved by (dx, dy) of their sides, and scaled."""
    x, y, side = squares.unbind(-1)
    dx, dy, scale = by.unbind(-1)
    return torch.stack([x + dx * side, y + dy * side, side * scale.exp()], dim=-1)


def tell(readout, photograph, hole, squares, generator):
    """The displacements [N, 3] of CelebA's window from squares (x, y, side) [N, 3] of a photograph,
    no farther than was learnt; every second one is mirrored for it."""
    images, parts = look(photograph, hole, squares, readout.size)
    for each in (images, parts):
        each[1::2] = each[1::2].flip(3)
    told = middle(readout.ddpm, readout.eps_model, images, parts, generator) @ readout.W + readout.b
    told[1::2, 0] *= -1
    farthest = 3 * torch.tensor(SPREAD)
    return told.clamp(-farthest, farthest)


def look(photograph, hole, squares, size):
    """What the network would be shown of squares: images [N, 3, size, size], holes."""
    seen = []
    for x, y, side in squares.tolist():
        side = max(1, round(side))
        box = round(y - side / 2), round(x - side / 2), side, side
        seen.append(windows.shrink(photograph, hole, box, (size, size)))
    images, parts = zip(*seen)
    return data.to_float(torch.stack(images)), torch.stack(parts)


@torch.no_grad()
def middle(ddpm, eps_model, images, parts, generator):
    """The middle of the U-Net, [N, d], shown images with noise in their holes, as sampling begins.
    """
    where = next(eps_model.parameters()).device
    x = torch.where(parts > 0, torch.randn(images.shape, generator=generator), images).to(where)
    t = torch.full((len(x),), ddpm.T - 1, device=where)
    seen, *_ = eps_model.encode(x, t, parts.to(where))
    return seen.flatten(1).cpu()


# ---- its fit -----------------------------------------------------------------------------------

def beside(weights):
    """The file of the Readout that belongs to weights: celeba64.pt's is celeba64.faces.pt, a
    folder's v1.0 is v1.0.faces.pt."""
    weights = Path(weights)
    return weights.parent / f"{weights.name if weights.is_dir() else weights.stem}.faces.pt"


def load(weights, ddpm, eps_model, size):
    """The Readout of a network, whose weights are this file; None without one."""
    path = beside(weights)
    if not path.is_file():
        return None
    with reading(path, "what faces.py writes", "no such file"):
        saved = read_tensors(path)
        W, b, made_for = saved["W"].float(), saved["b"].float(), saved["weights"]
        if W.ndim != 2 or W.shape[1] != 3 or b.shape != (3,) or not torch.isfinite(W).all():
            raise ValueError("not a readout")
    if made_for != content(weights).hex():
        raise BadInput(f"{path} was made for other weights: delete it, or make it anew with "
                       f"python faces.py --weights {weights}")
    return Readout(ddpm, eps_model, size, W, b)


def examples(ddpm, eps_model, size, photographs, copies, generator):
    """(middle [n, d], displacements [n, 3]) of windows around the faces of CelebA's photographs,
    uint8 [N, 178, 178, 3], with holes of all families, `copies` of each."""
    left, top, side = data.CROPS["centre140"]
    true = torch.tensor([left + side / 2, top - data.CROPS["centre178"][1] + side / 2, side])
    no_hole, middles, targets = torch.zeros(1, *photographs.shape[1:3]), [], []
    for block in tqdm(photographs.split(8), "looking", unit=" × 8 photographs"):
        n = len(block) * copies
        squares = displaced(true, displacements(n, generator))
        targets.append(torch.stack([*((true[:2] - squares[:, :2]) / squares[:, 2:]).T,
                                    (true[2] / squares[:, 2]).log()], dim=1))
        images, outside = (torch.cat(each) for each in zip(*(
            look(photograph, no_hole, near, size)
            for photograph, near in zip(block, squares.split(copies)))))
        holes = masks.mixture(n, size, generator)
        holes = torch.maximum(torch.where(holes.amin(dim=(1, 2, 3), keepdim=True) > 0, 0, holes),
                              outside)                      # no hole instead of a full one
        middles.append(middle(ddpm, eps_model, images, holes, generator).half())
    return torch.cat(middles), torch.cat(targets)


def ridge(X, Y):
    """W [d, 3], b [3] of Y ≈ X W + b by ridge regression: W = D⁻¹ Zᵀ (Z Zᵀ + λ I)⁻¹ (Y - Ȳ), where
    Z = (X - X̄) D⁻¹ [n, d], D holds the deviations + 0.05, and λ is the mean of Z Zᵀ's diagonal.
    With the defaults n < d, so n × n is solved."""
    X = X.float()
    mean, scale, target = X.mean(dim=0), X.std(dim=0) + 0.05, Y.mean(dim=0)
    Z = ((X - mean) / scale).double()
    gram = Z @ Z.T
    gram.diagonal().add_(gram.diagonal().mean())
    W = (Z.T @ torch.linalg.solve(gram, (Y - target).double())).float() / scale[:, None]
    return W, target - mean @ W


def parse():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--data", nargs="+", required=True, metavar="PATH",
        help="CelebA's aligned photographs, uncropped: as for train.py")
    add("--weights", default=WEIGHTS, help=WEIGHTS_HELP)
    add("--limit", type=int, default=500, help="photographs to learn from")
    add("--copies", type=int, default=24, help="windows of each")
    add("--seed", type=int, default=0, help="of windows, holes and noise")
    add("--cache", default="cache", help="folder for decoded images")
    args = parser.parse_args()
    if args.data == ["synthetic"]:
        raise BadInput("--data: drawn faces teach nothing of where CelebA has them")
    check_empty(args)
    check_range(args, 1, 10 ** 6, "limit", "copies")
    check_range(args, 0, 10 ** 9, "seed")
    return args


def main():
    args = parse()
    args.weights = local(args.weights)
    ddpm, eps_model, size = load_weights(args.weights)
    if not hasattr(eps_model, "encode"):
        raise BadInput(f"--weights {args.weights}: not a network of train.py's")
    size_of_first = data.first_size(args.data)
    if size_of_first != data.ALIGNED:
        raise BadInput("--data: CelebA's aligned photographs have {}×{} pixels; the first image "
                       "here has {}×{}".format(*data.ALIGNED, *size_of_first))
    generator, sets = torch.Generator().manual_seed(args.seed), []
    for split in ("train", "val"):
        photographs = data.load(args.data, split, 178, "centre178", args.limit, args.cache)
        sets.append(examples(ddpm, eps_model, size, photographs,
                             args.copies if split == "train" else 3, generator))
    W, b = ridge(*sets[0])
    X, Y = sets[1]
    left = (X.float() @ W.half().float() + b - Y).std(dim=0)
    if not torch.isfinite(left).all():
        raise BadInput("too few windows to learn from: more --limit or --copies")
    write_tensors(beside(args.weights), {"W": W.half(), "b": b,
                                         "weights": content(args.weights).hex()})
    print("validation, deviations of dx, dy, log scale: " + ", ".join(
        f"{before:.3f} → {after:.3f}" for before, after in zip(Y.std(dim=0), left))
          + f": {beside(args.weights)}")


if __name__ == "__main__":
    run(main, memory="--limit or --copies")
