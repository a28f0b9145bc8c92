"""Where the faces are in a photograph, so that the network sees them placed as in training.

The detector comes with scikit-image: a cascade of ever finer tests (Viola and Jones 2001) on local
binary patterns (Liao et al. 2007), at every place and size. It knows upright faces, seen from the
front, and can do without a cheek, but not without the eyes, so `inpaint.find_faces` fills the hole
first, roughly. docs/choices.md has its hits, and what they are worth.
"""
import torch

import windows

SEEN = 512          # pixels, the side of the square that the detector is shown
LEAST = 48          # pixels, the smallest face there, from the brows to the chin
SIDE = 1.35         # of CelebA's window around a face, in sides of the square detected, and
RISE = 0.15         # how much higher its middle is: medians over 150 validation photographs


def surroundings(hole):
    """The square box around a hole [1, H, W] in which a face may lie whose window serves it."""
    part = windows.bounds(hole[0].numpy() > 0)
    return windows.around(part, hole.shape[1:], (windows.FINEST + 1) * max(part[2:]))


def find(photograph, box):
    """[(left, top, side), …], the smallest first: CelebA's windows of the faces in a box of the
    photograph, uint8 [H, W, 3]."""
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade  # 0.2 s, and seldom needed

    no_hole = torch.zeros(1, *photograph.shape[:2])
    seen, _ = windows.shrink(photograph, no_hole, box, (SEEN, SEEN))
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
