"""PatchMatch: fill the hole with patches of the picture itself (Barnes et al. 2009).

The field says, of every patch that touches the hole, which patch of known pixels is most like it.
It is found without trying all pairs: (1) initialization: at random; (2) propagation: if a patch
matches well, its neighbour's match is probably the neighbour of its match; (3) search: random
places around the best so far, in windows that halve. Patches vote on the hole's pixels; field and
picture are improved in turn, coarse to fine (Wexler et al. 2007).

Simplified: propagation looks at all patches at once, in four directions, 8, 4, 2 and 1 pixels far,
instead of scanning them in order, so that no loop runs over pixels; a match is a shift, without
rotation or scale. Where no patch is wholly known (a hole of nearly everything, a picture smaller
than a patch) the hole keeps its smooth first guess.

Cost, on one thread of an AMD EPYC (busy; medians of 5 or more, process time): an image with the
centre hole 0.3 s at 64×64 and 2.7 s at 256×256; with thin lines, 9 % of the pixels, 0.3 s and
2.3 s. Memory: 8 MB and 120 MB beyond the picture, as every patch has a row of its own: most of the
time goes into fetching patches from all over the picture, and a row is fetched in one piece.
docs/speed.md has what fewer ROUNDS cost.
"""
import torch
import torch.nn.functional as F

DRAWS = False      # the search is random, but not for the sake of many answers
PATCH = 7          # pixels, the side of a patch
COARSEST = 16      # pixels, the least side of a halved picture
ROUNDS = 6         # of search and vote, a level
SEARCHES = 2       # of propagation and random search, a round


def inpaint(image, hole, generator=None):
    """image [B, C, H, W] in [-1, 1], hole [B, 1, H, W], generator: a list, one an image."""
    return coarse_to_fine(image, hole, generator)[0]


def coarse_to_fine(image, hole, generator=None):
    """(the filled image, [the energy [B] after every round, a list a level, coarse to fine])."""
    levels = [(torch.where(hole > 0, 0.0, image), hole)]
    if min(image.shape[2:]) < PATCH:
        return smooth(*levels[0]), []
    while min(levels[0][0].shape[2:]) >= 2 * COARSEST:
        colour, known = halved(*levels[0])
        levels.insert(0, (colour, (known < 1).float()))      # a pixel half known is not copied from
    filled, field, energies = smooth(*levels[0]), None, []
    for image, hole in levels:
        filled = torch.where(hole > 0, resized(filled, image), image)
        matcher = Matcher(image, hole, field, generator)
        energies.append([])
        for _ in range(ROUNDS):
            matcher.look(filled)
            for _ in range(SEARCHES):
                matcher.propagate()
                matcher.search()
            energies[-1].append(matcher.energy())
            filled = torch.where(hole > 0, matcher.vote(filled), image)
        field = matcher.field
    return filled, energies


def halved(image, hole):
    """The image at half the size, each pixel the mean of the known ones of four; their share."""
    known = F.avg_pool2d(1 - hole, 2, ceil_mode=True, count_include_pad=False)
    colour = F.avg_pool2d(image * (1 - hole), 2, ceil_mode=True, count_include_pad=False)
    return torch.where(known > 0, colour / known.clamp(min=1e-6), 0.0), known


def resized(image, like):
    return F.interpolate(image, like.shape[2:], mode="bilinear", align_corners=False)


def smooth(image, hole):
    """The first guess: the hole shows the mean of the nearest known pixels (grey if none is)."""
    if max(image.shape[2:]) == 1 or not hole.any():
        return image
    colour, known = halved(image, hole)
    return torch.where(hole > 0, resized(smooth(colour, (known == 0).float()), image), image)


class Matcher:
    """The nearest-neighbour field of one level. A patch is named by its first pixel (y, x),
    0 <= y < H' = H - PATCH + 1; those that touch the hole are matched, those that do not are copied
    from. `field` [B, 2, H', W'] says where the match of a patch lies."""

    def __init__(self, image, hole, coarser=None, generator=None):
        self.generator, self.shape = generator, image.shape
        touches = F.max_pool2d(hole, PATCH, stride=1)[:, 0] > 0
        self.valid = ~touches                                              # [B, H', W']
        self.sources = patches(image)                                      # [B·H'·W', C·PATCH²]
        matched = touches & self.valid.flatten(1).any(dim=1)[:, None, None]
        self.b, self.y, self.x = matched.nonzero(as_tuple=True)
        self.field = self.initialize()
        if coarser is not None:
            self.take_over(coarser)

    def row(self, y, x):
        """Where in `sources` the patches (y, x) of the images self.b are."""
        _, height, width = self.valid.shape
        return (self.b * height + y) * width + x

    def uniform(self):
        """Random numbers in [0, 1), [B, 2, H', W'], each image's from its own generator."""
        B, height, width = self.valid.shape
        own = isinstance(self.generator, (list, tuple))
        drawn = [torch.rand(n, 2, height, width, generator=g, device=g.device if g else "cpu")
                 for n, g in ([(1, g) for g in self.generator] if own else [(B, self.generator)])]
        return torch.cat(drawn).to(self.valid.device)

    def initialize(self):
        """(1) Every match a random known patch."""
        B, height, width = self.valid.shape
        known = self.valid.flatten(1)
        order = known.byte().argsort(dim=1, descending=True, stable=True)  # the known ones first
        drawn = (self.uniform()[:, 0].flatten(1) * known.sum(dim=1, keepdim=True)).long()
        place = order.gather(1, drawn).reshape(B, height, width)
        return torch.stack([place // width, place % width], dim=1)

    def take_over(self, coarser):
        """The coarser level's matches, twice as far, where they are known patches here."""
        b, y, x = self.b, *((v // 2).clamp(max=side - 1)
                            for v, side in zip((self.y, self.x), coarser.shape[2:]))
        my, mx = 2 * coarser[b, 0, y, x] + self.y % 2, 2 * coarser[b, 1, y, x] + self.x % 2
        known = self.known(my, mx)
        self.field[b[known], :, self.y[known], self.x[known]] = torch.stack([my, mx], 1)[known]

    def known(self, y, x):
        _, height, width = self.valid.shape
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        return inside & self.valid[self.b, y.clamp(0, height - 1), x.clamp(0, width - 1)]

    def look(self, filled):
        """Measure the matches against the picture as it is now."""
        self.targets = windows(filled)[self.b, self.y, self.x].flatten(1)
        self.match = self.row(*self.field[self.b, :, self.y, self.x].T)    # in which rows they are
        self.distance = self.distances(self.match, self.targets)

    def distances(self, rows, targets):
        """Between the sources in those rows and the targets; in place, as memory is the cost."""
        return self.sources.index_select(0, rows).sub_(targets).square_().sum(dim=1)

    def offer(self, y, x):
        """Take (y, x) as the match of each patch that is more like it than its present one. A
        patch that is offered the match that it has needs no measuring."""
        rows = self.row(y, x)
        (i,) = (self.known(y, x) & (rows != self.match)).nonzero(as_tuple=True)
        distance = self.distances(rows[i], self.targets.index_select(0, i))
        better = distance < self.distance[i]
        i = i[better]
        self.distance[i], self.match[i] = distance[better], rows[i]
        self.field[self.b[i], :, self.y[i], self.x[i]] = torch.stack([y[i], x[i]], dim=1)

    def propagate(self):
        """(2) The match of the patch `step` further on, moved back by as much."""
        _, height, width = self.valid.shape
        for step in (8, 4, 2, 1):
            for dy, dx in ((0, step), (0, -step), (step, 0), (-step, 0)):
                y, x = self.y + dy, self.x + dx
                inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
                near = self.field[self.b, :, y.clamp(0, height - 1), x.clamp(0, width - 1)]
                self.offer(torch.where(inside, near[:, 0] - dy, -1), near[:, 1] - dx)

    def search(self):
        """(3) A random place in windows around the match, the first as large as the picture."""
        radius = float(max(self.valid.shape[1:]))
        while radius >= 1:
            u = (2 * self.uniform() - 1)[self.b, :, self.y, self.x]
            place = self.field[self.b, :, self.y, self.x] + (radius * u).round().long()
            self.offer(*place.T)
            radius /= 2

    def energy(self):
        """The mean squared difference between the hole's patches and their matches, [B]."""
        total = torch.zeros(len(self.valid), device=self.distance.device)
        count = total.index_add(0, self.b, torch.ones_like(self.distance))
        total = total.index_add(0, self.b, self.distance)
        return total / count.clamp(min=1) / self.targets.shape[1]

    def vote(self, filled):
        """Every pixel the mean of what the matches of the patches over it say, weighted by
        exp(-distance / 2σ²), σ² an image's 75th percentile of the distances."""
        spread = torch.full(self.valid.shape, torch.nan, device=filled.device)
        spread[self.b, self.y, self.x] = self.distance
        scale = 2 * spread.flatten(1).nanquantile(0.75, dim=1)[self.b] + 1e-12
        weight = (-self.distance / scale).exp()
        said = self.sources.index_select(0, self.match).unflatten(1, (-1, PATCH ** 2))
        said = torch.cat([said, torch.ones_like(said[:, :1])], dim=1) * weight[:, None, None]
        B, C, height, width = self.shape
        first = (self.b * height + self.y) * width + self.x
        total = torch.zeros(B * height * width, C + 1, device=filled.device)
        for k, colours in enumerate(said.permute(2, 0, 1).contiguous()):   # a pixel of all patches:
            total[first + k // PATCH * width + k % PATCH] += colours       # no two are the same
        total = total.reshape(B, height, width, C + 1).permute(0, 3, 1, 2)
        colour, weight = total[:, :C], total[:, C:]
        return torch.where(weight > 0, colour / weight.clamp(min=1e-12), filled)


def windows(image):
    """[B, C, H, W] -> [B, H', W', C, PATCH, PATCH], a view."""
    return image.unfold(2, PATCH, 1).unfold(3, PATCH, 1).permute(0, 2, 3, 1, 4, 5)


def patches(image):
    """[B, C, H, W] -> [B·H'·W', C·PATCH²], a row a patch."""
    return windows(image).flatten(0, 2).flatten(1)
