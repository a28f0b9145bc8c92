"""Scene Completion: paste from the most similar of many other pictures (Hays and Efros 2007).

(1) A descriptor, the picture at a quarter of its size, finds the MATCHES training images that are
nearest in the known region; (2) each of these is shifted by up to REACH pixels, and the one that
fits best in the known CONTEXT around the hole is chosen; (3) its content is pasted and blended in
the gradient domain (Pérez et al. 2003): inside the hole the gradients are the match's, at the rim
the colours are the picture's.

Simplified: colours for the gist descriptor, which tells kinds of scenes apart (ours are all faces);
no graph cut, as the hole's rim is where the user put it; the best match alone, not twenty to choose
from. The index of 27,000 images at 64×64 takes 85 MB and 2 seconds, from data.py's decoded cache.

Cost of a query among 25,000 images, on one thread of an AMD EPYC (busy; medians, process time,
centre hole): alone 0.07 s, of which (1), exact distances in matrix products, 0.03 s; in a batch of
32 0.04 s an image, of which (1) 3 ms and (2), 81 shifts of 20 images, 0.03 s.
"""
import torch
import torch.nn.functional as F

import data

DRAWS = False
QUARTER, MATCHES, REACH, CONTEXT = 4, 20, 4, 8          # CONTEXT in pixels around the hole


def fit(images):
    """images uint8 [N, H, W, 3], of any number, at best memory-mapped. Returns the inpainter."""
    index = torch.cat([F.avg_pool2d(data.to_float(block), QUARTER).flatten(1)
                       for block in images.split(1024)])

    def inpaint(image, hole, generator=None):
        x, h = image.cpu(), hole.cpu()
        found = nearest(index, x, h, min(MATCHES, len(index)))                     # [B, M]
        matches = data.to_float(images[found.flatten()]).unflatten(0, found.shape)
        return blend(x, h, best_shift(x, h, matches)).to(image.device)
    return inpaint


def nearest(index, image, hole, number):
    """The `number` images of the index [N, D] that are nearest to each image in its known cells.

    Exact, in two matrix products: Σ w (c - x)² = Σ w c² - 2 Σ w x c + const, w = 1 where a cell is
    wholly known. Returns indices [B, number], the nearest first.
    """
    x = F.avg_pool2d(image, QUARTER).flatten(1)
    known = (F.avg_pool2d(hole, QUARTER) == 0).expand(-1, image.shape[1], -1, -1).flatten(1).float()
    distance = torch.cat([part.square() @ known.T - 2 * part @ (known * x).T
                          for part in index.split(8192)])                          # [N, B]
    return distance.topk(number, dim=0, largest=False).indices.T


def best_shift(image, hole, matches):
    """Of matches [B, M, C, H, W], each shifted by -REACH … REACH both ways, the one that fits best
    around the hole: [B, C, H, W]."""
    context = F.max_pool2d(hole, 2 * CONTEXT + 1, stride=1, padding=CONTEXT) * (1 - hole)
    B, M, C, height, width = matches.shape
    padded = F.pad(matches.flatten(0, 1), [REACH] * 4, mode="replicate").unflatten(0, (B, M))
    least = torch.full((B,), torch.inf)
    best, difference = torch.empty_like(image), torch.empty_like(matches)
    shifts = sorted(((y, x) for y in range(-REACH, REACH + 1) for x in range(-REACH, REACH + 1)),
                    key=lambda shift: shift[0] ** 2 + shift[1] ** 2)               # ties: the least
    for y, x in shifts:
        shifted = padded[..., REACH + y:REACH + y + height, REACH + x:REACH + x + width]
        torch.sub(shifted, image[:, None], out=difference)          # one buffer for all the shifts
        error = difference.square_().mul_(context[:, None]).sum(dim=(2, 3, 4))
        error, m = error.min(dim=1)
        better = error < least
        least = torch.where(better, error, least)
        best[better] = shifted[better, m[better]]
    return best


def blend(image, hole, source, tolerance=1e-5):
    """The image whose hole has the source's gradients and whose rim has its own colours.

    With d = result - source: Δd = 0 inside, d = image - source on the rim, no flow over the image's
    edge. Solved by conjugate gradients, all images and channels at once: the matrix is
    (A d)_p = Σ over p's neighbours q of (d_p - d_q), with d_q = 0 outside the hole.
    """
    def around(x):                                                # the sum over the four neighbours
        x = F.pad(x, [1, 1, 1, 1])
        return x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]

    neighbours = around(torch.ones_like(hole))                    # 4, less at the edges

    def A(d):
        return (neighbours * d - around(d)) * hole

    def dot(x, y):
        return (x * y).sum(dim=(2, 3), keepdim=True)

    d = torch.zeros_like(image)
    residual = around((image - source) * (1 - hole)) * hole
    direction, size = residual, dot(residual, residual)
    enough = tolerance ** 2 * size
    for _ in range(4 * sum(image.shape[2:])):
        if (size <= enough).all():
            break
        curved = A(direction)
        step = size / dot(direction, curved).clamp(min=1e-20)
        d = d + step * direction
        residual = residual - step * curved
        before, size = size, dot(residual, residual)
        direction = residual + size / before.clamp(min=1e-20) * direction
    return torch.where(hole > 0, (source + d).clamp(-1, 1), image)
