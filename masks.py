"""Holes: which pixels are to be filled. hole [B, 1, size, size] float32, 1 = fill, 0 = known.

Five families and `full`, each `family(batch, size, generator=None, device="cpu") -> hole`, and
their areas as a share of the image (mean [range]); at small sizes rounding to pixels adds up to
3 %:

    center     a square of half the side, in the middle                 25 %
    random     a box with sides of 0.3 … 0.6, anywhere                  20 % [7, 40]
    irregular  blobs: smooth noise, cut at a drawn area                 30 % [9, 51]
    freeform   one to four brush strokes that wander                    25 % [2, 65]
    hybrid     a random box and strokes                                 39 % [9, 80]
    full       all of the image: unconditional generation              100 %

Every size is a share of the image's side, so a family looks alike at 64 pixels and at 256. All
holes of a batch are drawn at once from one table of uniform numbers, a row an image (`uniform`):
the same seed gives the same holes on any device, and the hole of an image does not depend on how
many others are drawn beside it. docs/older-ways.md sets these families beside published masks.
"""
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

STROKES, JOINTS = 4, 6            # at most so many strokes, of so many straight pieces each
STROKE_NUMBERS = 4 + 2 * JOINTS   # radius, heading, y and x of a stroke; turn and length a piece
NOISE = 5                         # the blobs are noise on a NOISE × NOISE grid, interpolated
NUMBERS = 6 + STROKES * STROKE_NUMBERS    # at most: the mixture's choice, then a hybrid


def center(batch, size, generator=None, device="cpu"):
    """The middle half of each side."""
    middle = torch.full((batch,), 0.25, device=device)
    return _box(middle, middle, 2 * middle, 2 * middle, size)


def random(batch, size, generator=None, device="cpu"):
    """A box with sides uniform in 0.3 … 0.6 of the image's, at a uniform place."""
    return _random_box(uniform(batch, 4, generator, device), size)


def irregular(batch, size, generator=None, device="cpu"):
    """Blobs of arbitrary shape: the lowest 10 … 50 % of a smooth random landscape."""
    u = uniform(batch, 1 + NOISE ** 2, generator, device)
    noise = u[:, 1:].reshape(batch, 1, NOISE, NOISE)
    height = F.interpolate(noise, (size, size), mode="bicubic", align_corners=True).flatten(1)
    pixels = (size ** 2 * (0.1 + 0.4 * u[:, :1])).long()
    water = height.sort(dim=1).values.gather(1, pixels)
    return (height <= water).float().reshape(batch, 1, size, size)


def freeform(batch, size, generator=None, device="cpu"):
    """Brush strokes that turn as they go (after Yu et al. 2019, section 3.4)."""
    return _strokes(uniform(batch, 1 + STROKES * STROKE_NUMBERS, generator, device), size)


def hybrid(batch, size, generator=None, device="cpu"):
    """A random box and brush strokes."""
    u = uniform(batch, 5 + STROKES * STROKE_NUMBERS, generator, device)
    return torch.maximum(_random_box(u[:, :4], size), _strokes(u[:, 4:], size))


def full(batch, size, generator=None, device="cpu"):
    """All hole: nothing is known, and inpainting is unconditional generation."""
    return torch.ones(batch, 1, size, size, device=device)


FAMILIES = {"center": center, "random": random, "irregular": irregular, "freeform": freeform,
            "hybrid": hybrid}
MASKS = {**FAMILIES, "full": full}


def mixture(batch, size, generator=None, device="cpu", all_hole=0.2):
    """What the network trains on: a share `all_hole` of full holes, the rest of all families.

    Of an image's row of numbers, the first chooses the family, which is given the others. So a
    family is drawn for its own images alone; the choice is made on the CPU, where counting them
    does not wait for a GPU.
    """
    u = uniform(batch, NUMBERS, generator).cpu()
    kind = ((u[:, 0] - all_hole) / (1 - all_hole) * len(FAMILIES)).floor().clamp(min=-1).long()
    kind %= len(MASKS)                                            # -1: full, the last
    order, counts = kind.argsort(stable=True), kind.bincount(minlength=len(MASKS)).tolist()
    parts = u[order, 1:].to(device, non_blocking=True).split(counts)
    drawn = torch.cat([family(len(part), size, part, device)
                       for family, part in zip(MASKS.values(), parts) if len(part)])
    return drawn[order.argsort().to(device, non_blocking=True)]


def uniform(batch, numbers, generator=None, device="cpu"):
    """Numbers in [0, 1), [batch, numbers], drawn where the generator is, without one on the CPU.
    In the generator's place, a table that was drawn before, as in `mixture`: its first columns."""
    if isinstance(generator, torch.Tensor):
        if numbers > generator.shape[1]:
            raise ValueError(f"a family draws at most {NUMBERS - 1} numbers, not {numbers}")
        return generator[:, :numbers].to(device)
    source = "cpu" if generator is None else generator.device
    return torch.rand(batch, numbers, generator=generator, device=source).to(device)


def from_image(image, size):
    """A hole of size (width, height) from an 8-bit grey Pillow picture, nearest-resized; white =
    fill: [1, 1, height, width]. Of a picture with two values, such as a mask of 0 and 1, the
    brighter is the hole; of any other, such as one with soft edges, 128 and above."""
    pixels = np.array(image.resize(size, Image.NEAREST))
    values = np.flatnonzero(image.histogram())
    threshold = values[-1] if len(values) == 2 else 128
    return torch.from_numpy(pixels >= threshold).float()[None, None]


def _pixels(size, device):
    """The centres of the pixels, y [1, size, 1] and x [1, 1, size], in a unit square."""
    centres = (torch.arange(size, device=device) + 0.5) / size
    return centres[None, :, None], centres[None, None, :]


def _box(top, left, height, width, size):
    y, x = _pixels(size, top.device)
    top, left, height, width = (v[:, None, None] for v in (top, left, height, width))
    inside = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
    return inside.float()[:, None]


def _random_box(u, size):
    height, width = 0.3 + 0.3 * u[:, 0], 0.3 + 0.3 * u[:, 1]
    return _box(u[:, 2] * (1 - height), u[:, 3] * (1 - width), height, width, size)


def _strokes(u, size):
    """Chains of segments, drawn with a round brush: the pixels within its radius of a segment."""
    B, (y, x) = len(u), _pixels(size, u.device)
    drawn = u[:, :1] * STROKES >= torch.arange(STROKES, device=u.device)      # the first 1 … 4
    u = u[:, 1:].reshape(B, STROKES, STROKE_NUMBERS)
    radius = 0.04 + 0.05 * u[:, :, 0]
    turns = 0.8 * math.pi * (u[:, :, 4:4 + JOINTS] - 0.5)
    lengths = 0.08 + 0.14 * u[:, :, 4 + JOINTS:]
    heading = 2 * math.pi * u[:, :, 1:2] + turns.cumsum(dim=2)    # turns of up to ±72°
    steps = torch.stack([heading.sin(), heading.cos()], dim=-1) * lengths[..., None]
    start = u[:, :, None, 2:4]
    joints = torch.cat([start, start + steps.cumsum(dim=2)], dim=2)          # [B, S, J+1, 2]
    joints = 1 - (joints % 2 - 1).abs()                           # reflected at the image's edges

    ay, ax = joints[:, :, :-1, :, None, None].unbind(dim=3)                  # [B, S, J, 1, 1]
    dy, dx = joints.diff(dim=2)[..., None, None].unbind(dim=3)
    pieces = y - ay, x - ax, dy, dx, (dy ** 2 + dx ** 2).clamp(min=1e-12)
    reach = torch.where(drawn, radius ** 2, -1.0)[..., None, None]
    hole = torch.zeros(B, STROKES, size, size, dtype=torch.bool, device=u.device)
    for y, x, dy, dx, square in zip(*(v.unbind(dim=2) for v in pieces)):     # of all strokes
        along = (y * dy + x * dx).div_(square).clamp_(0, 1)       # the segment's nearest point
        hole |= (y - along * dy).square_().add_((x - along.mul_(dx)).square_()) <= reach
    return hole.any(dim=1, keepdim=True).float()
