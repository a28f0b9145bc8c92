"""Holes: which pixels are to be filled. hole [B, 1, size, size] float32, 1 = fill, 0 = known.

Five families, each `family(batch, size, generator=None, device="cpu") -> hole`, and their areas as
a share of the image (mean [range]); at small sizes rounding to pixels adds up to 3 %:

    center     a square of half the side, in the middle                 25 %
    random     a box with sides of 0.3 … 0.6, anywhere                  20 % [7, 40]
    irregular  blobs: smooth noise, cut at a drawn area                 30 % [9, 51]
    freeform   one to four brush strokes that wander                    25 % [2, 65]
    hybrid     a random box and strokes                                 39 % [9, 80]
    full       all of the image: unconditional generation              100 %

Every size is a share of the image's side, so a family looks alike at 64 pixels and at 256. All
holes of a batch are drawn at once from one table of uniform numbers, a row an image, taken from
`generator` on the generator's own device: the same seed gives the same holes on any device, and
the hole of an image does not depend on how many others are drawn beside it.
"""
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

STROKES, JOINTS = 4, 6            # at most so many strokes, of so many straight pieces each
STROKE_NUMBERS = 4 + 2 * JOINTS   # radius, heading, y and x of a stroke; turn and length a piece
NOISE = 5                         # the blobs are noise on a NOISE × NOISE grid, interpolated


def center(batch, size, generator=None, device="cpu"):
    """The middle half of each side."""
    middle = torch.full((batch,), 0.25, device=device)
    return _box(middle, middle, 2 * middle, 2 * middle, size)


def random(batch, size, generator=None, device="cpu"):
    """A box with sides uniform in 0.3 … 0.6 of the image's, at a uniform place."""
    return _random_box(_uniform(batch, 4, generator, device), size)


def irregular(batch, size, generator=None, device="cpu"):
    """Blobs of arbitrary shape: the lowest 10 … 50 % of a smooth random landscape."""
    u = _uniform(batch, 1 + NOISE ** 2, generator, device)
    noise = u[:, 1:].reshape(batch, 1, NOISE, NOISE)
    height = F.interpolate(noise, (size, size), mode="bicubic", align_corners=True).flatten(1)
    pixels = (size ** 2 * (0.1 + 0.4 * u[:, :1])).long()
    water = height.sort(dim=1).values.gather(1, pixels)
    return (height <= water).float().reshape(batch, 1, size, size)


def freeform(batch, size, generator=None, device="cpu"):
    """Brush strokes that turn as they go (after Yu et al. 2019, section 3.4)."""
    return _strokes(_uniform(batch, 1 + STROKES * STROKE_NUMBERS, generator, device), size)


def hybrid(batch, size, generator=None, device="cpu"):
    """A random box and brush strokes distributed."""
    u = _uniform(batch, 5 + STROKES * STROKE_NUMBERS, generator, device)
    return torch.maximum(_random_box(u[:, :4], size), _strokes(u[:, 4:], size))


def full(batch, size, generator=None, device="cpu"):
    """All hole: nothing is known, and inpainting is unconditional generation."""
    return torch.ones(batch, 1, size, size, device=device)


FAMILIES = {"center": center, "random": random, "irregular": irregular, "freeform": freeform,
            "hybrid": hybrid}
MASKS = {**FAMILIES, "full": full}


def mixture(batch, size, generator=None, device="cpu", all_hole=0.2):
    """What the network trains on: a share `all_hole` of full holes, the rest of all families."""
    u = _uniform(batch, 1, generator, device)[:, 0]
    kind = ((u - all_hole) / (1 - all_hole) * len(FAMILIES)).floor().long().clamp(min=-1)
    drawn = [family(batch, size, generator, device) for family in MASKS.values()]    # full is last
    return torch.stack(drawn)[kind, torch.arange(batch, device=device)]


def from_image(image, size):
    """A hole of size (width, height) from an 8-bit grey Pillow picture, nearest-resized; white =
    fill: [1, 1, height, width]. Of a picture with two values, such as a mask of 0 and 1, the
    brighter is the hole; of any other, such as one with soft edges, 128 and above."""
    pixels, values = np.array(image.resize(size, Image.NEAREST)), np.unique(image)
    threshold = max(values[-1], 1) if len(values) <= 2 else 128
    return torch.from_numpy(pixels >= threshold).float()[None, None]


def _uniform(batch, numbers, generator, device):
    source = device if generator is None else generator.device
    return torch.rand(batch, numbers, generator=generator, device=source).to(device)


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

    hole = torch.zeros(B, size, size, dtype=torch.bool, device=u.device)
    for stroke in range(STROKES):
        reach = radius[:, stroke, None, None]
        for joint in range(JOINTS):
            ay, ax, by, bx = joints[:, stroke, joint:joint + 2].reshape(B, 4, 1, 1).unbind(dim=1)
            dy, dx = by - ay, bx - ax
            along = ((y - ay) * dy + (x - ax) * dx) / (dy ** 2 + dx ** 2).clamp(min=1e-12)
            along = along.clamp(0, 1)                             # the segment's nearest point
            near = (y - ay - along * dy) ** 2 + (x - ax - along * dx) ** 2 <= reach ** 2
            hole |= near & drawn[:, stroke, None, None]
    return hole.float()[:, None]
