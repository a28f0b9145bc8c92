"""Faces that have a hole are found at any size and place, in spite of it; what is in the hole plays
no part; and their windows are those that the network sees."""
import pytest
import skimage.data
import torch

import faces
import inpaint
import windows
from ddpm import DDPM
from helpers import photograph
from schedules import linear_betas
from support import runs
from support.cli import BadInput

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


def find(*given):
    """Where the faces are; what else is told, the tests of `none` see."""
    return faces.find(*given)[0]


def moved(box, right):
    return (box[0], box[1] + right, *box[2:])


@pytest.mark.parametrize("scale", [1, 2, 5])
def test_a_face_is_found_at_any_size(scale):
    photograph = ASTRONAUT.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    box = tuple(scale * number for number in MOUTH)
    hole = hole_at(photograph, box)
    found, *_ = find(photograph, hole, SIZE)
    assert faces.overlap(found, [scale * number for number in FACE]) > 0.65
    assert inpaint.plan(hole, SIZE, found=[found]) == [((found[1], found[0], *2 * found[2:]), box)]


@pytest.mark.parametrize("height", [512, 300])
def test_every_face_with_a_hole_has_a_window(height):
    """Also in a photograph that is lower than the holes are apart."""
    hole = hole_at(TWO[:height], MOUTH, moved(MOUTH, 512))
    found = find(TWO[:height], hole, SIZE)
    plan = sorted(inpaint.plan(hole, SIZE, found=found), key=lambda window: window[1][1])
    assert [cell for _, cell in plan] == [MOUTH, moved(MOUTH, 512)]
    for (top, left, side, _), right in zip((box for box, _ in plan), (0, 512)):
        assert faces.overlap((left, top, side), (FACE[0] + right, *FACE[1:])) > 0.65


def test_faces_are_looked_for_around_the_largest_parts_only(monkeypatch):
    boxes = [(20 + 60 * (i // 4), 20 + 120 * (i % 4), 4 + i, 4 + i) for i in range(8)]
    seen = []
    monkeypatch.setattr(faces, "detect", lambda _, box: seen.append(box) or [])
    assert find(TWO, hole_at(TWO, *boxes), SIZE) == []
    assert len(seen) == faces.PARTS
    for box, (top, left, side, _) in zip(seen, reversed(boxes)):
        assert box[0] <= top and box[1] <= left and left + side <= box[1] + box[3]


def test_of_two_faces_only_the_one_with_a_hole_is_found():
    (found,) = find(TWO, hole_at(TWO, moved(MOUTH, 512)), SIZE)
    assert faces.overlap(found, (FACE[0] + 512, *FACE[1:])) > 0.65


def test_what_is_in_the_hole_plays_no_part():
    hole = hole_at(TWO, MOUTH)
    noise = torch.randint(256, TWO.shape, generator=torch.Generator().manual_seed(0)).byte()
    other = torch.where(hole[0, :, :, None] > 0, noise, TWO)
    assert find(TWO, hole, SIZE) == find(other, hole, SIZE) != []


@pytest.fixture
def readout(monkeypatch):
    """Of a network that knows where the face of the astronaut is."""
    def tell(readout, photograph, hole, squares, generator):
        seen.append(squares)
        x, y, side = FACE[0] + FACE[2] / 2, FACE[1] + FACE[2] / 2, FACE[2]
        return torch.stack([(x - squares[:, 0]) / squares[:, 2],
                            (y - squares[:, 1]) / squares[:, 2], (side / squares[:, 2]).log()], 1)
    seen = []
    monkeypatch.setattr(faces, "tell", tell)
    return faces.Readout(None, None, SIZE, None, seen)


def test_the_network_aligns_what_was_detected_and_finds_what_was_not(readout):
    for box in (MOUTH, EYES):
        hole = hole_at(TWO, box)
        assert find(TWO, hole, SIZE, readout)[0] == FACE
    assert len(readout.b) == 2 * faces.ROUNDS
    first, *_, last = readout.b[faces.ROUNDS:]                      # near the hole, near the face
    assert abs(first.mean(dim=0)[:2] - torch.tensor([230, 150])).max() < 30
    assert abs(last.mean(dim=0)[:2] - torch.tensor([226, 100])).max() < 10


def test_of_squares_that_overlap_the_one_that_most_others_overlap_is_kept():
    one, like, far = (150, 30, 140), (152, 31, 138), (700, 30, 140)
    assert faces.distinct([(120, 0, 200), one, like, far, (152, 32, 139)]) == [one, far]
    assert faces.distinct([]) == []


def test_a_readout_finds_how_far_windows_were_moved():
    """A "network" whose middle is the image itself: of a smooth photograph, it tells the place."""
    y, x = torch.meshgrid(torch.linspace(0, 255, 178), torch.linspace(0, 255, 178), indexing="ij")
    photographs = torch.stack([x, y, (x - 127).abs() + (y - 127).abs()], dim=-1).byte()[None]
    generator = torch.Generator().manual_seed(0)

    class Middle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def encode(self, x, t, hole):
            seen = torch.nn.functional.avg_pool2d(x * (1 - hole), 2)
            return torch.cat([seen, hole[:, :, ::2, ::2]], dim=1), [], None

        def forward(self, *given):
            raise AssertionError("the way up is not needed")

    network = DDPM(linear_betas(10)), Middle(), 16
    X, Y = faces.examples(*network, photographs.expand(8, -1, -1, -1), 64, generator)
    assert X.shape == (512, 4 * 64)
    assert (Y.std(dim=0) / torch.tensor(faces.SPREAD) - 1).abs().max() < 0.2
    W, b = faces.ridge(X, Y)
    X, Y = faces.examples(*network, photographs, 64, generator)
    assert ((X.float() @ W + b - Y).std(dim=0) < 0.6 * Y.std(dim=0)).all()
    hole, true, start = torch.zeros(1, 178, 178), (19, 19, 140), (30, 10, 125)
    hole[:, 60:90, 70:100] = 1
    aligned, _ = faces.align(faces.Readout(*network, W, b), photographs[0], hole, start)
    assert faces.overlap(aligned, true) > 0.75 and faces.overlap(start, true) < 0.7


def test_nothing_is_found_where_there_is_no_face_or_its_place_is_known(monkeypatch):
    coffee = torch.from_numpy(skimage.data.coffee())
    assert find(coffee, hole_at(coffee, (150, 250, 60, 60)), SIZE) == []
    square = torch.from_numpy(skimage.data.astronaut()[22:178, 148:304])
    hole = hole_at(square, (108, 57, 24, 50))
    monkeypatch.setattr(faces, "align", lambda *_: ((3, -2, 150), 0.0))           # of 156
    assert find(square, hole, SIZE, "readout") == [(0, 0, 156)]
    monkeypatch.setattr(faces, "align", lambda *_: ((20, 10, 120), 0.0))
    assert find(square, hole, SIZE, "readout")[0] == (20, 10, 120)
    aligned = square.new_zeros(218, 178, 3)
    monkeypatch.setattr(faces, "detect", None)
    assert find(aligned, hole_at(aligned, (100, 60, 30, 30)), SIZE) == [(19, 39, 140)]
    assert find(TWO, hole_at(TWO), SIZE) == []
    strip = square.new_zeros(8, 200_000, 3)                # its surroundings would be 40 gigapixels
    assert find(strip, hole_at(strip, (0, 0, 8, 200_000)), SIZE) == []


def test_the_shipped_network_tells_a_face_that_the_detector_misses_from_what_is_none(monkeypatch):
    readout = faces.load(runs.WEIGHTS, *inpaint.load_weights())
    monkeypatch.setattr(faces, "detect", lambda *_: [])
    (found,) = find(ASTRONAUT, hole_at(ASTRONAUT, (70, 190, 70, 70)), SIZE, readout)
    assert faces.overlap(found, FACE) > 0.6
    for picture in (skimage.data.rocket(), skimage.data.coffee(), skimage.data.chelsea()):
        picture = torch.from_numpy(picture)
        hole = hole_at(picture, (150, 200, 60, 60))
        assert faces.find(picture, hole, SIZE, readout) == ([], True)


def test_no_face_is_not_said_where_one_is_but_its_window_does_not_serve_the_hole(monkeypatch):
    """Of a blemish and a scratch, by the detector or the network; nor where nobody looked."""
    blemish = hole_at(ASTRONAUT, (120, 190, 12, 12))
    scratch = hole_at(ASTRONAUT, *((60 + i, 150 + 2 * i, 4, 4) for i in range(0, 90, 2)))

    def find(hole, detected, deviation, photograph=ASTRONAUT):
        monkeypatch.setattr(faces, "detect", lambda *_: detected)
        monkeypatch.setattr(faces, "align", lambda *_: (FACE, deviation))
        return faces.find(photograph, hole, SIZE, "readout")
    assert find(blemish, [], 1.0) == ([], True)
    assert find(blemish, [FACE], 1.0) == ([], False)
    assert find(blemish, [], 0.0) == ([], False)
    assert find(scratch, [], 1.0) == ([], False)
    small = ASTRONAUT[:SIZE, :SIZE]
    assert find(hole_at(small, (20, 20, 20, 20)), [], 1.0, small) == ([], False)


def test_folders_that_differ_behind_a_dot_have_readouts_of_their_own(tmp_path):
    for name in ("v1.0", "v1.1"):
        (tmp_path / name).mkdir()
    assert faces.beside(tmp_path / "v1.0").name == "v1.0.faces.pt"
    assert faces.beside(tmp_path / "celeba64.pt").name == "celeba64.faces.pt"


def test_without_a_readout_nobody_can_tell_that_there_is_no_face():
    coffee = torch.from_numpy(skimage.data.coffee())
    assert faces.find(coffee, hole_at(coffee, (150, 250, 60, 60)), SIZE) == ([], False)


def test_a_face_found_is_preferred_to_all_of_a_square_photograph_and_one_given_to_both():
    hole, found = hole_at(ASTRONAUT, EYES), [(150, 30, 140)]
    assert inpaint.plan(hole, SIZE, found=found) == [((30, 150, 140, 140), EYES)]
    assert inpaint.plan(hole, SIZE) == [((0, 0, 512, 512), EYES)]
    assert inpaint.plan(hole, SIZE, FACE) == [((22, 148, 156, 156), EYES)]


def test_a_face_s_window_grows_for_a_hole_that_sticks_out_by_a_little():
    hole = hole_at(ASTRONAUT, (100, 90, 50, 100))
    assert windows.plan(hole, SIZE, [(100, 50, 140)]) == [((40, 90, 160, 160), (100, 90, 50, 100))]
    assert windows.plan(hole, SIZE, [(130, 50, 140)]) == windows.plan(hole, SIZE)


def test_a_readout_is_made_for_weights_and_used_with_no_others(weights_32, as_user, tmp_path):
    weights = tmp_path / "weights.pt"                             # as in the folder of a run
    weights.write_bytes(weights_32.read_bytes())
    network = inpaint.load_weights(weights)
    assert faces.load(weights, *network) is None
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for k in range(3):
            photograph(tmp_path / split / f"{k}.png", 178, 218)
    status, said, _ = as_user(faces, "--data", tmp_path, "--weights", tmp_path, "--copies", 2)
    assert status == 0 and "validation" in said and "weights.faces.pt" in said
    readout = faces.load(weights, *network)
    assert readout.W.shape[1] == 3 and readout.W.abs().max() > 0
    hole = hole_at(ASTRONAUT, MOUTH)
    window, _ = faces.align(readout, ASTRONAUT, hole, FACE)
    assert faces.overlap(window, FACE) > 0.2                       # it runs, and stays near
    weights.write_bytes(weights_32.read_bytes() + b" ")
    with pytest.raises(BadInput, match="made for other weights"):
        faces.load(weights, *network)
    faces.beside(weights).write_bytes(b"no")
    with pytest.raises(BadInput, match="weights.faces.pt: not "):
        faces.load(weights, *network)


@pytest.mark.parametrize("size, flags, said", [
    ((128, 128), [], "178×218 pixels; the first image here has 128×128"),
    ((178, 218), ["--limit", 1, "--copies", 1], "too few windows"),
    ((178, 218), ["--weights", ""], "the setting weights is empty")])
def test_a_readout_is_not_made_of_what_is_no_use_nor_the_old_one_lost(
        weights_32, as_user, tmp_path, size, flags, said):
    (tmp_path / "w.pt").write_bytes(weights_32.read_bytes())
    (tmp_path / "w.faces.pt").write_bytes(b"the old one")
    for split in ("train", "val"):
        (tmp_path / "photographs" / split).mkdir(parents=True)
        photograph(tmp_path / "photographs" / split / "0.png", *size)
    status, _, told = as_user(faces, "--data", tmp_path / "photographs", "--weights",
                              tmp_path / "w.pt", *flags)
    assert status == 2 and said in told
    assert (tmp_path / "w.faces.pt").read_bytes() == b"the old one"


def test_a_large_face_is_aligned_like_a_small_one():
    readout = faces.load(runs.WEIGHTS, *inpaint.load_weights())
    small = hole_at(ASTRONAUT, MOUTH)
    large, hole = (x.repeat_interleave(5, -2).repeat_interleave(5, -1) for x in (
        ASTRONAUT.permute(2, 0, 1), small))
    one, _ = faces.align(readout, ASTRONAUT, small, (150, 40, 130))
    other, _ = faces.align(readout, large.permute(1, 2, 0), hole, (750, 200, 650))
    assert faces.overlap(one, FACE) > 0.75
    assert faces.overlap([number / 5 for number in other], one) > 0.9


@pytest.mark.parametrize("told", [(9, 9, 9), (-9, -9, -9), (0, 0, 9)])
def test_a_readout_that_is_wrong_stays_in_the_photograph(told, weights_32):
    network = inpaint.load_weights(weights_32)
    d = faces.middle(*network[:2], torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, 32, 32),
                     None).shape[1]
    readout = faces.Readout(*network, torch.zeros(d, 3), torch.tensor(told).float())
    (left, top, side), _ = faces.align(readout, TWO, hole_at(TWO, MOUTH), (900, 400, 100))
    assert 1 <= side <= 1024
    assert 0 <= left + side / 2 <= 1025 and 0 <= top + side / 2 <= 513


def test_the_shipped_readout_is_that_of_the_shipped_weights():
    assert faces.load(runs.WEIGHTS, *inpaint.load_weights()).W.shape == (224 * 8 * 8, 3)
