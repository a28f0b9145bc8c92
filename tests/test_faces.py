"""Faces that have a hole are found at any size and place, in spite of it; what is in the hole plays
no part; and their windows are those that the network sees."""
import pytest
import skimage.data
import torch

import faces
import inpaint
import windows

SIZE = 64
ASTRONAUT = torch.from_numpy(skimage.data.astronaut())        # 512×512
FACE = 148, 22, 156                                           # as `inpaint.astronaut` cuts it
MOUTH, EYES = (130, 205, 24, 50), (70, 180, 40, 100)
TWO = torch.cat([ASTRONAUT, ASTRONAUT], dim=1)


def hole_at(photograph, *boxes):
    hole = torch.zeros(1, *photograph.shape[:2])
    for box in boxes:
        windows.crop(hole[0], box).fill_(1)
    return hole


def moved(box, right):
    return (box[0], box[1] + right, *box[2:])


@pytest.mark.parametrize("scale", [1, 2, 5])
def test_a_face_is_found_at_any_size(scale):
    photograph = ASTRONAUT.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    box = tuple(scale * number for number in MOUTH)
    hole = hole_at(photograph, box)
    found, *_ = inpaint.find_faces(photograph, hole, SIZE)
    assert faces.overlap(found, [scale * number for number in FACE]) > 0.65
    assert inpaint.plan(hole, SIZE, found=[found]) == [((found[1], found[0], *2 * found[2:]), box)]


def test_every_face_with_a_hole_has_a_window():
    hole = hole_at(TWO, MOUTH, moved(MOUTH, 512))
    found = inpaint.find_faces(TWO, hole, SIZE)
    plan = sorted(inpaint.plan(hole, SIZE, found=found), key=lambda window: window[1][1])
    assert [cell for _, cell in plan] == [MOUTH, moved(MOUTH, 512)]
    for (top, left, side, _), right in zip((box for box, _ in plan), (0, 512)):
        assert faces.overlap((left, top, side), (FACE[0] + right, *FACE[1:])) > 0.5


def test_of_two_faces_only_the_one_with_a_hole_is_found():
    (found,) = inpaint.find_faces(TWO, hole_at(TWO, moved(MOUTH, 512)), SIZE)
    assert faces.overlap(found, (FACE[0] + 512, *FACE[1:])) > 0.65


def test_what_is_in_the_hole_plays_no_part():
    hole = hole_at(TWO, MOUTH)
    noise = torch.randint(256, TWO.shape, generator=torch.Generator().manual_seed(0)).byte()
    other = torch.where(hole[0, :, :, None] > 0, noise, TWO)
    assert inpaint.find_faces(TWO, hole, SIZE) == inpaint.find_faces(other, hole, SIZE) != []


def test_a_face_without_eyes_is_found_in_a_rough_fill():
    hole = hole_at(TWO, EYES)
    assert inpaint.find_faces(TWO, hole, SIZE) == []
    found, *_ = inpaint.find_faces(TWO, hole, SIZE, lambda photograph, hole: [TWO])
    assert faces.overlap(found, FACE) > 0.65


def test_the_face_that_most_others_overlap_comes_first(monkeypatch):
    views = iter([[(0, 0, 90), (150, 30, 140)], [(152, 31, 138)], [(120, 0, 200), (152, 32, 139)]])
    monkeypatch.setattr(faces, "find", lambda *_: next(views))
    hole = hole_at(ASTRONAUT, MOUTH)
    first, *_, last = inpaint.find_faces(ASTRONAUT, hole, SIZE, lambda *_: [ASTRONAUT] * 2)
    assert first == (150, 30, 140) and last == (120, 0, 200)           # the first holds no mouth


def test_nothing_is_found_where_there_is_no_face_or_its_place_is_known(monkeypatch):
    coffee = torch.from_numpy(skimage.data.coffee())
    assert inpaint.find_faces(coffee, hole_at(coffee, (150, 250, 60, 60)), SIZE) == []
    square = torch.from_numpy(skimage.data.astronaut()[22:178, 148:304])
    assert inpaint.find_faces(square, hole_at(square, (108, 57, 24, 50)), SIZE) == []
    aligned = square.new_zeros(218, 178, 3)
    monkeypatch.setattr(faces, "find", None)
    assert inpaint.find_faces(aligned, hole_at(aligned, (100, 60, 30, 30)), SIZE) == []
    assert inpaint.find_faces(TWO, hole_at(TWO), SIZE) == []


def test_a_face_found_is_preferred_to_all_of_a_square_photograph_and_one_given_to_both():
    hole, found = hole_at(ASTRONAUT, EYES), [(150, 30, 140)]
    assert inpaint.plan(hole, SIZE, found=found) == [((30, 150, 140, 140), EYES)]
    assert inpaint.plan(hole, SIZE) == [((0, 0, 512, 512), EYES)]
    assert inpaint.plan(hole, SIZE, FACE) == [((22, 148, 156, 156), EYES)]


def test_a_face_s_window_grows_for_a_hole_that_sticks_out_by_a_little():
    hole = hole_at(ASTRONAUT, (100, 90, 50, 100))
    assert windows.plan(hole, SIZE, [(100, 50, 140)]) == [((40, 90, 160, 160), (100, 90, 50, 100))]
    assert windows.plan(hole, SIZE, [(130, 50, 140)]) == windows.plan(hole, SIZE)
