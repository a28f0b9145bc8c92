"""Windows: which squares of a photograph a network of a fixed size is shown, and how its fills
return to the photograph.

A photograph is larger than the network's image, so the network sees a square of it, reduced. It
fills best if a face is placed as in training, so a hole on a face is seen in the face's own window
(faces.py). Any other window is a few times as wide as the hole. Holes that lie apart get windows of
their own. A hole too thin for one window, such as a scratch, is covered by several in turn, each of
which sees what those before it drew.

A box is (top, left, height, width), in pixels of the photograph; it may reach beyond the edges.
"""
import bisect
import math

import numpy as np
import torch
import torch.nn.functional as F

import data

CONTEXT = 3         # the side of a window, in extents of its part of the hole
FINEST = 10         # a face's window serves holes of at least a tenth of its side
GROWN = 1.25        # and may grow by a quarter for one that sticks out
THINNEST = 3        # pixels, the least thickness of a hole in the network's image


def plan(hole, size, faces=()):
    """The windows that fill a hole [1, H, W], in their order: a list of (box, cell).

    The network, of `size`, is shown the box, a square; what it draws in the hole is pasted in the
    cell, a box within it. The cells cover the hole. No window but a face's is smaller than the
    network's image, unless the photograph is.

    faces  [(left, top, side), …]: squares that show a face as the network knows them; a part of the
           hole belongs to the first that, enlarged at most GROWN times, holds it and is not too
           large for it
    """
    found = hole[0].numpy() > 0
    parts, planned = [*apart(found, size // 2)], []
    for face in faces:
        held = [part for part in parts if suits(found, part, size, face)]
        if held:
            cell = union(held)
            planned.append((grown(face, cell), cell))
            parts = [part for part in parts if part not in held]
    return planned + [window for part in parts for window in cover(found, part, size)]


def serves(hole, size, face):
    """Whether a face's square is one for any part of the hole [1, H, W]."""
    found = hole[0].numpy() > 0
    return any(suits(found, part, size, face) for part in apart(found, size // 2))


def suits(found, part, size, face):
    """Whether a part of the hole is seen well in a face's window: it may stick out a little, and
    must be neither much smaller nor too thin."""
    side = grown(face, part)[2]
    return side <= GROWN * face[2] and side <= max(size, min(FINEST * max(part[2:]),
                                                             largest(found, part, size)))


def grown(face, part):
    """The box of a face, (left, top, side), enlarged about its middle until it holds a part."""
    left, top, side = face
    half = max(side / 2, *(max(middle - low, low + extent - middle) for middle, low, extent in (
        (top + side / 2, part[0], part[2]), (left + side / 2, part[1], part[3]))))
    side, more = math.ceil(2 * half), half - side / 2
    return math.floor(top - more), math.floor(left - more), side, side


def face_in(height, width):
    """(left, top, side) of the face in a photograph of CelebA's, or one that is square; else None.
    """
    if height == width or (width, height) == data.ALIGNED:
        left, top, right, _ = data.window((width, height))
        return left, top, right - left


def bounds(found):
    """The smallest box around what is True, bool [H, W]; None if nothing is."""
    rows, columns = (found.any(axis=axis).nonzero()[0] for axis in (1, 0))
    if not len(rows):
        return None
    return (*map(int, (rows[0], columns[0], 1 + rows[-1] - rows[0], 1 + columns[-1] - columns[0])),)


def union(boxes):
    """The smallest box around boxes."""
    tops, lefts, heights, widths = np.array(boxes).T
    top, left = int(tops.min()), int(lefts.min())
    return top, left, int((tops + heights).max()) - top, int((lefts + widths).max()) - left


def crop(array, box):
    """The part of [H, W, …] that lies in the box: a view."""
    top, left, height, width = box
    return array[max(top, 0):top + height, max(left, 0):left + width]


def largest(found, part, size):
    """The side of a window, in pixels, in which this part of the hole is just THINNEST thick."""
    return max(size, int(thickness(crop(found, part)) * size / THINNEST))


def thickness(found):
    """The largest odd side of a square in which all is True, bool [H, W], from a summed-area table.
    (scipy's distance transform would do, but takes half a second to import.)"""
    sums = np.pad(found.cumsum(0, np.int32).cumsum(1, np.int32), ((1, 0), (1, 0)))

    def too_large(side):
        inside = (sums[side:, side:] - sums[:-side, side:]
                  - sums[side:, :-side] + sums[:-side, :-side])
        return not (inside == side ** 2).any()
    return 2 * bisect.bisect(range(1, min(found.shape) + 1, 2), False, key=too_large) - 1


def apart(found, gap):
    """The boxes around those parts of the hole between which lie `gap` pixels or more (nearer ones
    may count as one part), in the order of their first rows."""
    coarse = F.max_pool2d(torch.from_numpy(found)[None].float(), gap, ceil_mode=True)[0]
    for rows, columns in connected(coarse):
        own = np.zeros((np.ptp(rows) + 1, np.ptp(columns) + 1), bool)
        own[rows - rows.min(), columns - columns.min()] = True
        own = np.kron(own, np.ones((gap, gap), bool))
        top, left = gap * int(rows.min()), gap * int(columns.min())
        own = own[:len(found) - top, :found.shape[1] - left]
        own &= found[top:top + len(own), left:left + own.shape[1]]
        y, x, height, width = bounds(own)
        yield top + y, left + x, height, width


def connected(squares):
    """(rows, columns) of the parts of what is not 0 in [H, W] whose squares touch, at least at
    corners, in the order of their first rows. (As scipy's label, which is slow to import, too.)"""
    places = [*map(tuple, squares.nonzero().tolist())]
    left = set(places)
    for first in places:
        if first in left:
            left.remove(first)
            part = [first]
            for y, x in part:                                   # which grows while it is walked
                near = left.intersection((y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1))
                left -= near
                part += near
            yield np.array(part).T


def cover(found, part, size):
    """Windows for a part of the hole: one with CONTEXT around it, or, if the hole is too thin to be
    seen in that, a grid of smaller ones, each of which fills its middle."""
    extent, limit = max(part[2:]), largest(found, part, size)
    if extent <= limit / 2:
        return [(around(part, found.shape, min(max(size, CONTEXT * extent), limit)), part)]
    windows, step = [], limit // 2
    for top in range(part[0], part[0] + part[2], step):
        for left in range(part[1], part[1] + part[3], step):
            cell = bounds(crop(found, (top, left, min(step, part[0] + part[2] - top),
                                       min(step, part[1] + part[3] - left))))
            if cell:
                cell = (top + cell[0], left + cell[1], *cell[2:])
                windows.append((around(cell, found.shape, limit), cell))
    return windows


def around(part, shape, side):
    """The square box of about `side` around a part of the hole, moved into the photograph; smaller
    if the photograph is; beyond its edges only if the part is longer than the photograph is wide.
    """
    side = max(min(side, *shape), *part[2:])

    def place(start, extent, length):
        middle = start + (extent - side) // 2
        return min(max(middle, 0), length - side) if side <= length else (length - side) // 2
    return place(part[0], part[2], shape[0]), place(part[1], part[3], shape[1]), side, side


def shrink(photograph, hole, box, shape):
    """The box of the photograph, and its hole, reduced to `shape`. A pixel is the mean of those
    known around it, so that nothing in the hole colours its rim, and known if three quarters are.

    photograph uint8 [H, W, 3]; hole [1, H, W]; what lies outside the photograph is hole.
    Returns uint8 [*shape, 3], [1, *shape].
    """
    (top, left, height, width), (H, W) = box, hole.shape[1:]
    edges = (max(-left, 0), max(left + width - W, 0), max(-top, 0), max(top + height - H, 0))
    known = 1 - crop(hole[0], box)
    pixels = torch.cat([crop(photograph, box).permute(2, 0, 1) * known, known[None]])
    pixels = F.interpolate(F.pad(pixels, edges)[None], shape, mode="bicubic", antialias=True)[0]
    hole = (pixels[3:] < 0.75).float()
    colours = pixels[:3] * (1 - hole) / torch.where(hole > 0, 1, pixels[3:])
    return colours.clamp(0, 255).round().byte().permute(1, 2, 0), hole


def paste(photograph, hole, box, cell, filled):
    """Enlarge a fill, uint8 [h, w, 3], to the box and write it into the photograph, uint8
    [H, W, 3], in place: in the cell's part of the hole and nowhere else."""
    top, left, height, width = box
    large = F.interpolate(filled.permute(2, 0, 1)[None].float(), (height, width), mode="bicubic",
                          antialias=True)[0].clamp(0, 255).round().byte().permute(1, 2, 0)
    drawn = crop(large, (cell[0] - top, cell[1] - left, *cell[2:]))
    target = crop(photograph, cell)
    target.copy_(torch.where(crop(hole[0], cell)[..., None] > 0, drawn, target))


def clip(box, shape):
    """The part of the box that lies in a photograph of this shape (H, W)."""
    top, left = max(box[0], 0), max(box[1], 0)
    return top, left, min(box[0] + box[2], shape[0]) - top, min(box[1] + box[3], shape[1]) - left
