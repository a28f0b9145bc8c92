"""Holes: the areas that masks.py states, and that a seed and a row decide them, nothing else."""
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image
from torch.testing import assert_close

import masks
from masks import FAMILIES, MASKS, mixture

# Mean and bounds of the area, as a share; freeform's and hybrid's were measured over 20,000 draws.
AREAS = {"center": (0.25, 0.25, 0.25), "random": (0.20, 0.07, 0.40),
         "irregular": (0.30, 0.09, 0.51), "freeform": (0.25, 0.02, 0.65),
         "hybrid": (0.395, 0.09, 0.80), "full": (1, 1, 1)}
DRAWINGS = {**MASKS, "mixture": mixture}
families, drawings = st.sampled_from(sorted(MASKS)), st.sampled_from(sorted(DRAWINGS))
seeds, sizes, batches = st.integers(0, 2 ** 31), st.integers(16, 96), st.integers(1, 9)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def shares(hole):
    return hole.mean(dim=(1, 2, 3))


def test_every_family_has_its_areas_here():
    assert AREAS.keys() == MASKS.keys() == FAMILIES.keys() | {"full"}


@given(name=drawings, size=sizes, batch=batches, seed=seeds)
def test_a_hole_is_zeros_and_ones_and_the_seed_decides_it(name, size, batch, seed):
    family = DRAWINGS[name]
    hole = family(batch, size, seeded(seed))
    assert hole.shape == (batch, 1, size, size) and hole.dtype == torch.float32
    assert ((hole == 0) | (hole == 1)).all()
    assert torch.equal(hole, family(batch, size, seeded(seed)))


@given(name=drawings, size=sizes, batch=batches, more=st.integers(1, 9), seed=seeds)
def test_a_hole_does_not_depend_on_how_many_are_drawn_beside_it(name, size, batch, more, seed):
    some, all_ = (DRAWINGS[name](n, size, seeded(seed)) for n in (batch, batch + more))
    assert torch.equal(some, all_[:batch])


@given(name=drawings, size=sizes, batch=batches, more=st.integers(0, 9), seed=seeds)
def test_a_table_of_numbers_is_as_good_as_the_generator_that_drew_it(name, size, batch, more, seed):
    """And so are rows of it, from which a process makes its share of a batch."""
    numbers = 1 + masks.NOISE ** 2 if name == "irregular" else {
        "random": 4, "freeform": masks.NUMBERS - 5, "hybrid": masks.NUMBERS - 1}.get(
            name, masks.NUMBERS)
    table = masks.uniform(batch + more, numbers, seeded(seed))
    whole = DRAWINGS[name](batch + more, size, seeded(seed))
    assert torch.equal(whole, DRAWINGS[name](batch + more, size, table))
    assert torch.equal(whole[more:], DRAWINGS[name](batch, size, table[more:]))


def test_the_mixture_draws_a_family_for_its_own_images_alone(monkeypatch):
    drawn = []
    for name, family in MASKS.items():
        monkeypatch.setitem(MASKS, name, lambda batch, *rest, family=family: (
            drawn.append(batch) or family(batch, *rest)))
    mixture(200, 16, seeded(0))
    assert len(drawn) == len(MASKS) and sum(drawn) == 200


@given(name=families, size=sizes, batch=st.integers(1, 64), seed=seeds)
def test_an_area_is_within_its_bounds_and_so_never_nothing_and_never_all(name, size, batch, seed):
    _, least, most = AREAS[name]
    share = shares(MASKS[name](batch, size, seeded(seed)))
    edge = 1.01 / size if name == "center" else 0           # an odd side has no middle half
    assert (least - edge <= share).all() and (share <= most + edge).all()
    assert (share > 0).all() and (name == "full" or (share < 1).all())


@pytest.mark.parametrize("size", [16, 33, 64])
@pytest.mark.parametrize("name", sorted(MASKS))
def test_the_mean_area_is_the_stated_one(name, size):
    """2000 draws of a standard deviation of at most 0.12: four standard errors are 0.011."""
    share = shares(torch.cat([MASKS[name](250, size, seeded(i)) for i in range(8)]))
    edge = 1.01 / size if name == "center" else 0
    assert share.mean().item() == pytest.approx(AREAS[name][0], abs=0.011 + edge)
    if name not in ("center", "full"):
        assert share.unique().numel() > 10


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_family_looks_alike_at_64_and_at_256(name):
    small, large = (MASKS[name](100, size, seeded(0)) for size in (64, 256))
    assert_close(shares(small), shares(large), rtol=0, atol=0.02)
    coarse = torch.nn.functional.avg_pool2d(large, 4)       # and it is the same hole
    assert (small - coarse).abs().mean() < 0.05


def test_center_is_the_middle_half():
    hole = masks.center(2, 64)
    expected = torch.zeros(2, 1, 64, 64)
    expected[:, :, 16:48, 16:48] = 1
    assert torch.equal(hole, expected)


@given(size=sizes, seed=seeds)
def test_random_is_a_box_with_sides_of_three_to_six_tenths(size, seed):
    for hole in masks.random(8, size, seeded(seed))[:, 0]:
        rows, columns = hole.any(dim=1).nonzero()[:, 0], hole.any(dim=0).nonzero()[:, 0]
        assert hole[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1].all()
        assert hole.sum() == len(rows) * len(columns)
        for side in (len(rows), len(columns)):
            assert 0.3 * size - 1 <= side <= 0.6 * size + 1


def test_random_reaches_every_corner():
    hole = masks.random(2000, 32, seeded(0)).amax(dim=0)[0]
    assert (hole[:2, :2].any() and hole[:2, -2:].any() and hole[-2:, :2].any()
            and hole[-2:, -2:].any())


@given(size=sizes, seed=seeds)
def test_hybrid_holds_a_whole_box(size, seed):
    """Some window of 0.3 of the side, less a pixel, is all hole: the box cannot be smaller."""
    side = int(0.3 * size) - 1
    windows = torch.nn.functional.avg_pool2d(masks.hybrid(8, size, seeded(seed)), side, stride=1)
    assert (windows.amax(dim=(1, 2, 3)) > 1 - 1e-6).all()


def test_a_stroke_that_turns_by_72_degrees_at_every_joint_draws_a_pentagon():
    """Of side 0.08 and thickness 0.08: 0.13 across between the middles of its line."""
    u = torch.zeros(1, 1 + masks.STROKES * masks.STROKE_NUMBERS)
    u[:, 3:5], u[:, 5:5 + masks.JOINTS] = 0.5, 1
    y, x = masks._strokes(u, 200)[0, 0].nonzero().T / 200
    for v in (y, x):
        assert 0.19 < v.max() - v.min() < 0.23


def test_mixture_is_a_fifth_all_hole_and_the_rest_in_equal_shares():
    """Of 2000: 400 ± 4 · 18 full, and 320 ± 4 · 16.4 of center, which no other family draws."""
    hole = torch.cat([mixture(500, 32, seeded(i)) for i in range(4)])
    whole = (shares(hole) == 1).sum().item()
    middle = (hole == masks.center(1, 32)).flatten(1).all(dim=1).sum().item()
    assert abs(whole - 400) <= 72 and abs(middle - 320) <= 66
    rest = sum(AREAS[name][0] for name in FAMILIES) / len(FAMILIES)
    assert shares(hole).mean().item() == pytest.approx(0.2 + 0.8 * rest, abs=0.03)


def test_mixture_draws_every_family(monkeypatch):
    for i, name in enumerate(MASKS):
        monkeypatch.setitem(MASKS, name, lambda batch, size, *_, i=i: torch.full(
            (batch, 1, size, size), float(i)))
    *families, full = mixture(1000, 16, seeded(0))[:, 0, 0, 0].long().bincount().tolist()
    assert len(families) == 5 and all(100 < n < 220 for n in families) and 150 < full < 250


def test_mixture_can_leave_out_the_full_holes():
    assert (shares(mixture(300, 16, seeded(0), all_hole=0)) < 1).all()
    assert (mixture(30, 16, seeded(0), all_hole=1) == 1).all()


@given(name=families, size=sizes, seed=seeds)
def test_a_hole_drawn_as_a_white_picture_comes_back_from_it(name, size, seed):
    hole = MASKS[name](1, size, seeded(seed))
    picture = Image.fromarray((hole[0, 0] * 255).byte().numpy())
    assert torch.equal(masks.from_image(picture, (size, size)), hole)
    enlarged = picture.resize((3 * size, 3 * size), Image.NEAREST)
    assert torch.equal(masks.from_image(enlarged, (size, size)), hole)


def test_grey_is_a_hole_from_the_middle_up():
    greys = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    assert_close(masks.from_image(greys, (16, 16)).flatten(), (torch.arange(256) >= 128).float())


def test_a_family_that_draws_more_numbers_than_the_mixture_has_is_refused(monkeypatch):
    """Not given fewer, silently."""
    def greedy(batch, size, generator=None, device="cpu"):
        return masks.uniform(batch, masks.NUMBERS, generator, device)
    monkeypatch.setattr(masks, "MASKS", {"greedy": greedy, "full": masks.full})
    monkeypatch.setattr(masks, "FAMILIES", {"greedy": greedy})
    with pytest.raises(ValueError, match="at most 69 numbers, not 70"):
        masks.mixture(8, 16)
