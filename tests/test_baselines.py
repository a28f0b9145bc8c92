"""The baselines, each against what it promises."""
import pytest
import torch

import data
import masks
from baselines import biharmonic, masked, mean, patchmatch, ridge

SIZE = 12


def example(B=3, size=SIZE, family="random"):
    """Faces as every method is given them, and the hole."""
    hole = masks.MASKS[family](B, size, torch.Generator().manual_seed(0))
    return torch.where(hole > 0, 0.0, data.to_float(data.synthetic(B, size, seed=9))), hole


@pytest.mark.parametrize("family", masks.MASKS)
@pytest.mark.parametrize("method", [biharmonic, masked, mean, patchmatch, ridge])
def test_every_baseline_keeps_the_known_pixels_of_every_family(method, family):
    image, hole = example(family=family)
    inpaint = method.fit(data.synthetic(50, SIZE)) if hasattr(method, "fit") else method.inpaint
    filled = inpaint(image, hole, None)
    assert filled.shape == image.shape and filled.isfinite().all()
    assert torch.equal(torch.where(hole > 0, image, filled), image)


def test_the_mean_face_is_the_mean():
    images = data.synthetic(70, SIZE)
    image, hole = example(family="full")
    filled = mean.fit(images)(image, hole)
    torch.testing.assert_close(filled[1], data.to_float(images).mean(dim=0))


@pytest.mark.parametrize("family", ["random", "hybrid"])       # below and above half the image
def test_ridge_is_the_best_linear_guess(family):
    """Against the regression of the hole on the known pixels, solved the direct way."""
    images = data.synthetic(300, SIZE)
    image, hole = example(B=8, family=family)
    filled = ridge.fit(images)(image, hole)
    x = data.to_float(images).flatten(1).double()
    mu = x.mean(dim=0)
    areas = hole.mean(dim=(1, 2, 3))
    assert areas.min() < 0.5 and (family == "random" or areas.max() > 0.5)
    for i in range(len(image)):
        inside = (hole[i] > 0).expand_as(image[i]).flatten()
        known, wanted = (x - mu)[:, ~inside], (x - mu)[:, inside]
        penalty = ridge.PENALTY * torch.eye(known.shape[1], dtype=torch.float64)
        weights = torch.linalg.solve(known.T @ known / len(x) + penalty, known.T @ wanted / len(x))
        guess = mu[inside] + (image[i].flatten()[~inside].double() - mu[~inside]) @ weights
        torch.testing.assert_close(filled[i].flatten()[inside].double(), guess, atol=1e-3, rtol=0)


def test_biharmonic_continues_a_plane():
    y, x = torch.meshgrid(torch.linspace(-0.5, 0.5, 32), torch.linspace(-0.5, 0.5, 32), indexing="ij")
    plane = (0.6 * x + 0.3 * y).expand(1, 3, 32, 32)
    hole = masks.center(1, 32)
    filled = biharmonic.inpaint(torch.where(hole > 0, 0.0, plane), hole)
    torch.testing.assert_close(filled, plane, atol=1e-4, rtol=0)


# ---- PatchMatch --------------------------------------------------------------------------------

def matcher_of(image, hole, seed=0):
    matcher = patchmatch.Matcher(image, hole, None, generators(len(image), seed))
    matcher.look(image)                                 # at the picture as it is, hole and all
    return matcher


def generators(n, seed=0):
    return [torch.Generator().manual_seed(seed + i) for i in range(n)]


def test_five_iterations_come_within_5_percent_of_trying_all_pairs():
    image, hole = data.to_float(data.synthetic(2, 48)), masks.center(2, 48)
    image += 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    matcher = matcher_of(image, hole)
    begun = matcher.energy()
    for _ in range(5):
        matcher.propagate()
        matcher.search()
    rows = patchmatch.patches(image).unflatten(0, (2, -1))
    for b in range(2):
        valid = matcher.valid[b].flatten()
        nearest = torch.cdist(rows[b, ~valid], rows[b, valid]).min(dim=1).values.square().mean()
        found = matcher.energy()[b] * rows.shape[2]
        assert nearest * 0.999 <= found <= 1.05 * nearest and found < 0.8 * begun[b] * rows.shape[2]


def test_a_periodic_texture_is_completed_exactly():
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    tile = torch.stack([((x + y) % 4 < 2), (x % 8 < 4), (y % 8 < 4)]).float()[None] * 1.6 - 0.8
    hole = torch.zeros(1, 1, 64, 64)
    hole[..., 20:40, 24:44] = 1
    filled = patchmatch.inpaint(torch.where(hole > 0, 0.0, tile), hole, generators(1))
    torch.testing.assert_close(filled, tile, atol=0.02, rtol=0)


def test_what_is_copied_is_known_pixels_alone():
    image, hole = example(B=4, size=32, family="hybrid")
    matcher = matcher_of(image, hole)
    for _ in range(3):
        matcher.propagate()
        matcher.search()
        my, mx = matcher.field[matcher.b, :, matcher.y, matcher.x].T
        for b, y, x in zip(matcher.b, my, mx):
            assert not hole[b, 0, y:y + patchmatch.PATCH, x:x + patchmatch.PATCH].any()


def test_energy_falls_from_round_to_round_and_from_level_to_level():
    image, hole = example(B=6, size=64, family="irregular")
    levels = patchmatch.coarse_to_fine(image, hole, generators(6))[1]
    for energies in levels[1:]:
        assert (energies[-1] < energies[0]).all()
    assert (levels[2][-1] < levels[1][-1]).all() and (levels[1][-1] > 0).all()


def test_patchmatch_depends_on_its_seed_and_not_on_its_batch():
    image, hole = example(B=3, size=32)
    together = patchmatch.inpaint(image, hole, generators(3))
    alone = patchmatch.inpaint(image[2:], hole[2:], generators(3)[2:])
    other = patchmatch.inpaint(image, hole, generators(3, seed=7))
    assert torch.equal(together[2:], alone) and not torch.equal(together, other)
