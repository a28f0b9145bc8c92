"""The baselines, each against what it promises."""
import numpy as np
import pytest
import torch
from PIL import Image

import data
import masks
from baselines import biharmonic, masked, mean, patchmatch, ridge, scene_completion

SIZE = 12


def example(B=3, size=SIZE, family="random"):
    """Faces as every method is given them, and the hole."""
    hole = masks.MASKS[family](B, size, torch.Generator().manual_seed(0))
    return torch.where(hole > 0, 0.0, data.to_float(data.synthetic(B, size, seed=9))), hole


@pytest.mark.parametrize("family", masks.MASKS)
@pytest.mark.parametrize("method", [biharmonic, masked, mean, patchmatch, ridge,
                                    scene_completion])
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
    axis = torch.linspace(-0.5, 0.5, 32)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
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


def test_a_pixel_half_known_is_not_copied_from(monkeypatch):
    holes = []

    class Spy(patchmatch.Matcher):
        def __init__(self, image, hole, *rest):
            holes.append(hole)
            super().__init__(image, hole, *rest)
    monkeypatch.setattr(patchmatch, "Matcher", Spy)
    hole = torch.zeros(1, 1, 32, 32)
    hole[..., 11, 13] = 1
    patchmatch.inpaint(torch.rand(1, 3, 32, 32), hole, generators(1))
    assert [each.sum() for each in holes] == [1, 1] and holes[0][..., 5, 6] == 1


def test_propagation_spreads_a_right_match_to_its_neighbours():
    """Noise, copied 30 columns to the right: one patch of the copy knows from where."""
    noise = torch.rand(1, 3, 24, 30, generator=torch.Generator().manual_seed(0))
    image, hole = torch.cat([noise, noise, noise[..., :4]], dim=3), torch.zeros(1, 1, 24, 64)
    hole[..., 8:16, 40:48] = 1
    matcher = matcher_of(image, hole)
    matcher.field[0, :, 8, 40] = torch.tensor([8, 10])
    matcher.look(image)
    matcher.propagate()
    places = torch.stack([matcher.y, matcher.x - 30], dim=1)
    right = (matcher.field[0, :, matcher.y, matcher.x].T == places).all(dim=1)
    assert right.float().mean() > 0.9


@pytest.mark.parametrize("height, width", [(1, 1), (2, 2), (1, 300), (40, 5), (6, 512)])
def test_a_picture_smaller_than_a_patch_is_filled_smoothly(height, width):
    image, hole = torch.full((1, 3, height, width), 0.5), torch.ones(1, 1, height, width)
    for hole[..., 0, 0] in (1, 0):
        filled = patchmatch.inpaint(image, hole, generators(1))
        assert filled.isfinite().all() and filled.shape == image.shape
    assert height * width == 1 or torch.allclose(filled, image, atol=1e-4)


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


def test_the_vote_is_the_weighted_mean_of_what_the_patches_over_a_pixel_say():
    image, hole = example(B=2, size=32, family="random")
    matcher = matcher_of(image, hole)
    matcher.propagate()
    matcher.search()
    said, weight = torch.zeros(2, 3, 32, 32).double(), torch.zeros(2, 1, 32, 32).double()
    for b in range(2):
        here = matcher.b == b
        spread = matcher.distance[here].double().quantile(0.75)
        for y, x, distance in zip(matcher.y[here], matcher.x[here], matcher.distance[here]):
            my, mx = matcher.field[b, :, y, x]
            w = (-distance.double() / (2 * spread)).exp()
            to, of = (np.s_[b, :, r:r + patchmatch.PATCH, c:c + patchmatch.PATCH]
                      for r, c in ((y, x), (my, mx)))
            said[to] += w * image[of]
            weight[to] += w
    mean = torch.where(weight > 0, said / weight, image.double())
    assert (weight == 0).any() and (weight > 0).any()
    torch.testing.assert_close(matcher.vote(image).double(), mean, atol=1e-5, rtol=0)


def test_patchmatch_depends_on_its_seed_and_not_on_its_batch():
    image, hole = example(B=3, size=32)
    together = patchmatch.inpaint(image, hole, generators(3))
    alone = patchmatch.inpaint(image[2:], hole[2:], generators(3)[2:])
    other = patchmatch.inpaint(image, hole, generators(3, seed=7))
    assert torch.equal(together[2:], alone) and not torch.equal(together, other)


# ---- Scene Completion --------------------------------------------------------------------------

@pytest.mark.parametrize("family", ["center", "irregular", "hybrid"])
def test_a_picture_that_is_in_the_set_is_restored_exactly(family):
    images, hole = data.synthetic(300, 64), masks.MASKS[family](4, 64, generators(1)[0])
    truth = data.to_float(images[[3, 99, 200, 299]])
    filled = scene_completion.fit(images)(torch.where(hole > 0, 0.0, truth), hole)
    torch.testing.assert_close(filled, truth, atol=1e-5, rtol=0)


def test_a_picture_that_was_moved_is_found_and_moved_back():
    images, hole = data.synthetic(40, 64), masks.center(1, 64)
    truth = data.to_float(images[7:8]).roll((2, -3), dims=(2, 3))
    match = scene_completion.best_shift(truth, hole, data.to_float(images[5:10])[None])
    torch.testing.assert_close(match[..., 8:-8, 8:-8], truth[..., 8:-8, 8:-8])


def test_the_nearest_images_are_those_of_all_distances_computed_one_by_one():
    images, (image, hole) = data.synthetic(50, 32), example(B=4, size=32)
    index = torch.nn.functional.avg_pool2d(data.to_float(images), 4)
    found = scene_completion.nearest(index.flatten(1), image, hole, 5)
    for x, h, five in zip(image, hole, found):
        cells = torch.nn.functional.avg_pool2d(x, 4)
        known = torch.nn.functional.avg_pool2d(h, 4)[0] == 0
        slow = torch.stack([(cells - c)[:, known].square().sum() for c in index])
        assert five.tolist() == slow.argsort()[:5].tolist()


@pytest.mark.parametrize("family", ["random", "hybrid"])
def test_blending_equals_a_dense_solve(family):
    """Pérez et al. 2003, eq. 7, pixel by pixel, in float64."""
    image, hole = (v.double() for v in example(B=1, family=family))
    source = 0.3 * torch.randn(image.shape, generator=generators(1)[0], dtype=torch.float64)
    blended = scene_completion.blend(image, hole, source, tolerance=1e-12)
    pixels = [(y, x) for y in range(SIZE) for x in range(SIZE) if hole[0, 0, y, x]]
    A, b = torch.zeros(len(pixels), len(pixels)).double(), torch.zeros(len(pixels), 3).double()
    for i, (y, x) in enumerate(pixels):
        for q in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= min(q) and max(q) < SIZE:
                A[i, i] += 1
                b[i] += source[0, :, y, x] - source[0, :, q[0], q[1]]
                if q in pixels:
                    A[i, pixels.index(q)] -= 1
                else:
                    b[i] += image[0, :, q[0], q[1]]
    solved = torch.linalg.solve(A, b).clamp(-1, 1)
    for (y, x), colour in zip(pixels, solved):
        torch.testing.assert_close(blended[0, :, y, x], colour, atol=1e-8, rtol=0)


def test_a_constant_offset_leaves_no_seam():
    image, hole = 0.5 * data.to_float(data.synthetic(2, 32)), masks.center(2, 32)
    blended = scene_completion.blend(torch.where(hole > 0, 0.0, image), hole, image + 0.3)
    torch.testing.assert_close(blended, image, atol=1e-4, rtol=0)


def test_no_image_is_in_its_own_index(tmp_path):
    """The index is made of the training split; nothing that is evaluated is in it."""
    (tmp_path / "celeba").mkdir()
    for i in range(60):
        picture = Image.fromarray(data.synthetic(1, 16, seed=i)[0].numpy())
        picture.save(tmp_path / "celeba" / f"{162_741 + i:06}.png")
    train, val = (data.load(tmp_path, split, 16, cache=tmp_path / "cache")
                  for split in ("train", "val"))
    assert len(train) == len(val) == 30
    assert not (train[:, None] == val[None]).flatten(2).all(dim=2).any()
