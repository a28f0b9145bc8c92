"""The windows through which a network sees a photograph: they cover the hole, stay small, hide what
is in the hole, find faces; and what comes back lies where it was taken from."""
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from scipy import ndimage

import inpaint
import windows

SIZE = 64


def inside(box, other):
    return all(other[i] <= box[i] and box[i] + box[i + 2] <= other[i] + other[i + 2]
               for i in (0, 1))


def covered(hole, plan):
    left = hole.clone()
    for _, cell in plan:
        windows.crop(left[0], cell).zero_()
    return not left.any()


@hypothesis.given(st.integers(8, 400), st.integers(8, 400), st.data())
def test_the_cells_cover_the_hole_and_lie_in_their_boxes(width, height, draw):
    hole = torch.zeros(1, height, width)
    for _ in range(draw.draw(st.integers(1, 3))):
        top, left = (draw.draw(st.integers(0, length - 1)) for length in (height, width))
        bottom, right = (draw.draw(st.integers(low + 1, length))
                         for low, length in ((top, height), (left, width)))
        hole[:, top:bottom, left:right] = 1
    plan = inpaint.plan(hole, SIZE)
    assert covered(hole, plan)
    for box, cell in plan:
        assert inside(cell, box) and box[2] == box[3]
        assert box[2] <= max(SIZE, windows.CONTEXT * max(cell[2:]), windows.largest(
            hole[0].numpy() > 0, cell, SIZE))
        if max(cell[2:]) <= min(width, height):
            assert inside(box, (0, 0, height, width))
        _, part = windows.shrink(torch.zeros(height, width, 3).byte(), hole, box, (SIZE, SIZE))
        assert part.any() or min(cell[2:]) < 2


@pytest.mark.parametrize("seed", range(20))
def test_parts_and_their_thickness_as_scipy_tells_them(seed):
    generator = np.random.default_rng(seed)
    found = ndimage.zoom(generator.random((9, 7)), 12, order=1) > generator.uniform(0.4, 0.8)
    assert windows.thickness(found) == 2 * ndimage.distance_transform_cdt(
        np.pad(found, 1)).max() - 1
    labels, number = ndimage.label(found, np.ones((3, 3)))
    boxes = [(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
             for rows, columns in ndimage.find_objects(labels)]
    assert number and [*windows.apart(found, 1)] == boxes


def test_a_window_keeps_a_scratch_visible():
    """A line 3 pixels thick across 400 would be thinner than a pixel in one window."""
    hole = torch.zeros(1, 500, 600)
    hole[:, 250:253, 100:500] = 1
    plan = windows.plan(hole, SIZE)
    assert len(plan) > 4 and covered(hole, plan)
    for box, _ in plan:
        assert 3 * SIZE / box[2] >= windows.THINNEST


def test_holes_that_lie_apart_have_windows_of_their_own():
    hole = torch.zeros(1, 1000, 1000)
    hole[:, 100:140, 100:140] = hole[:, 800:860, 700:740] = 1
    (near, _), (far, _) = sorted(windows.plan(hole, SIZE))
    assert near[2] == windows.CONTEXT * 40 and far[2] == windows.CONTEXT * 60


@pytest.mark.parametrize("height, width", [(20, 14_000), (8, 200_000), (30_000, 3)])
def test_a_strip_takes_no_more_memory_than_its_windows(height, width):
    plan = windows.plan(torch.ones(1, height, width), SIZE)
    assert covered(torch.ones(1, height, width), plan)
    assert max(box[2] for box, _ in plan) <= max(SIZE, SIZE * min(height, width))


def test_celebas_photographs_are_seen_as_in_training():
    hole = torch.zeros(1, 218, 178)
    hole[:, 80:110, 60:100] = 1
    assert inpaint.plan(hole, SIZE) == [((39, 19, 140, 140), (80, 60, 30, 40))]
    hole[:, :80, 60:100] = 1
    assert inpaint.plan(hole, SIZE)[0][0] != (39, 19, 140, 140)


def test_methods_of_any_size_see_no_more_of_a_large_square_than_they_need():
    hole = torch.zeros(1, 2000, 2000)
    hole[:, 900:1100, 900:1100] = 1
    (box, _), = inpaint.plan(hole)
    assert box[2] == windows.CONTEXT * 200
    assert inpaint.plan(hole, SIZE)[0][0][2] == 2000


def test_a_square_photograph_and_one_whose_face_is_known_are_seen_as_a_face():
    hole = torch.zeros(1, 300, 300)
    hole[:, 100:150, 90:120] = hole[:, 200:230, 220:260] = 1
    assert inpaint.plan(hole, SIZE) == [((0, 0, 300, 300), (100, 90, 130, 170))]
    assert inpaint.plan(hole)[0][0] == (0, 0, 300, 300)          # of any size: never over OWN
    wide = torch.nn.functional.pad(hole, (70, 30))
    assert inpaint.plan(wide, SIZE, (80, 20, 260)) == [((20, 80, 260, 260), (100, 160, 130, 170))]
    assert len(inpaint.plan(wide, SIZE)) == len(windows.plan(wide, SIZE, [(0, 0, 200)])) == 2


def test_what_is_in_the_hole_is_never_seen():
    hole = torch.zeros(1, 100, 130)
    hole[:, 21:67, 33:76] = 1
    one, other = (torch.full((100, 130, 3), 90, dtype=torch.uint8) for _ in range(2))
    other[hole[0] > 0] = 255
    for box in ((10, 20, 70, 70), (-20, 5, 125, 125)):
        seen, part = windows.shrink(one, hole, box, (32, 32))
        assert (windows.shrink(other, hole, box, (32, 32))[0] == seen).all()
        assert (seen[part[0] == 0] == 90).all()


@pytest.mark.parametrize("box", [(10, 40, 80, 80), (0, 0, 100, 100), (-15, 0, 130, 130),
                                 (40, 60, 20, 20), (40, 60, 20, 50)])
def test_shrunk_and_pasted_back_a_smooth_photograph_is_itself(box):
    y, x = torch.meshgrid(torch.arange(100.0), torch.arange(130.0), indexing="ij")
    photograph = torch.stack([2 * y, 1.5 * x, 100 + 0.5 * y - 0.3 * x], dim=-1).round().byte()
    hole, cell = torch.zeros(1, 100, 130), (45, 65, 10, 10)
    windows.crop(hole[0], cell).fill_(1)
    small, _ = windows.shrink(photograph, torch.zeros_like(hole), box, (32, 32))
    back = photograph.clone()
    windows.paste(back, hole, box, cell, small)
    error = (back.float() - photograph.float())[hole[0] > 0]
    assert error.abs().max() <= 2 and error.mean(dim=0).abs().max() < 0.5
    assert (back[hole[0] == 0] == photograph[hole[0] == 0]).all()


def test_at_its_own_size_a_window_is_unchanged():
    photograph, hole = torch.randint(0, 256, (40, 50, 3)).byte(), torch.zeros(1, 40, 50)
    hole[:, 10:20, 10:20] = 1
    seen, part = windows.shrink(photograph, hole, (5, 3, 30, 40), (30, 40))
    assert (part == hole[:, 5:35, 3:43]).all()
    assert (seen[part[0] == 0] == photograph[5:35, 3:43][part[0] == 0]).all()


def test_a_pixel_is_known_if_three_quarters_of_it_are():
    """Halved: of each four pixels none, one, two or all are hole."""
    hole = torch.zeros(1, 8, 80)
    for k, columns in enumerate(((), (0,), (0, 1))):
        for column in columns:
            hole[0, 0::2, 20 * k + 10 + column] = 1
    hole[0, :, 70:72] = 1
    photograph = torch.full((8, 80, 3), 100, dtype=torch.uint8)
    _, small = windows.shrink(photograph, hole, (0, 0, 8, 80), (4, 40))
    assert [int(small[0, 2, column]) for column in (5, 15, 25, 35)] == [0, 0, 1, 1]
