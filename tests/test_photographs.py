"""Photographs, masks and folders as people have them: what went in comes out, what is meant is
done, and what cannot be known is said in a line."""
import struct
import weakref
import zlib

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image, ImageCms, PngImagePlugin

import data
import faces
import inpaint
from helpers import photograph
from support import results, runs

SIZE = 32
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY = SRGB[:16] + b"GRAY" + SRGB[20:]


@pytest.fixture
def command(fill_as_user):
    """Run inpaint.py with arguments, two calls a fill."""
    return lambda *argv: fill_as_user("--steps", 2, "--samples", 1, *argv)


def mask_file(path, width=80, height=60, box=(30, 20, 50, 40), inside=255, outside=0):
    picture = Image.new("L", (width, height), outside)
    picture.paste(inside, box)
    path.parent.mkdir(exist_ok=True)
    picture.save(path)
    return path


def opened(path):
    with Image.open(path) as picture:
        picture.load()
        return picture


# ---- what a file says beside its pixels --------------------------------------------------------

def coloured(mode):
    """80×60 pixels that use every channel of the mode."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = torch.randint(0, 256, (60, 80, channels), generator=torch.Generator().manual_seed(0))
    return Image.fromarray(values.byte().numpy().squeeze(), mode)


@pytest.mark.parametrize("mode, ending, profile", [
    ("RGB", "png", SRGB), ("RGB", "jpg", SRGB), ("RGB", "webp", SRGB), ("RGB", "tif", SRGB),
    ("L", "png", GREY), ("L", "jpg", None), ("LA", "png", None), ("RGBA", "png", SRGB),
    ("RGBA", "webp", None), ("RGB", "jfif", None)])
def test_a_photograph_comes_back_in_its_own_kind_with_its_profile(command, tmp_path, mode, ending,
                                                                  profile):
    path = tmp_path / f"a.{ending}"
    kind = {"jfif": "JPEG", "jpg": "JPEG", "tif": "TIFF"}.get(ending, ending)
    coloured(mode).save(path, format=kind, **({"icc_profile": profile} if profile else {}))
    given = opened(path)
    assert command(path, "--mask", mask_file(tmp_path / "m" / "mask.png"))[0] == 0
    known = np.asarray(opened("out/a_hole.png")) == 0
    for result in (opened("out/a_input.png"), opened("out/a_0.png")):
        assert result.mode == given.mode and result.info.get("icc_profile") == profile
        assert (np.asarray(result)[known] == np.asarray(given)[known]).all()
    filled = np.asarray(opened("out/a_0.png"))[~known]
    assert (filled != np.asarray(given)[~known]).any()
    assert "A" not in mode or (filled[:, -1] == 255).all()                 # what is new is opaque


def test_a_profile_of_other_channels_is_not_attached(command, tmp_path):
    coloured("L").save(tmp_path / "a.png", icc_profile=SRGB)
    command(tmp_path / "a.png", "--mask", "center")
    assert "icc_profile" not in opened("out/a_0.png").info


def test_a_broken_profile_is_left_out(command, tmp_path):
    coloured("RGB").save(tmp_path / "a.png")
    content, chunk = (tmp_path / "a.png").read_bytes(), b"iCCP" + b"broken\0\0not zlib"
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(content[:33] + chunk + content[33:])            # behind IHDR
    assert opened(tmp_path / "a.png").info["icc_profile"] is None
    assert command(tmp_path / "a.png", "--mask", "center")[0] == 0
    assert "icc_profile" not in opened("out/a_0.png").info


def test_gamma_is_kept(command, tmp_path):
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"gAMA", (100_000).to_bytes(4))
    coloured("RGB").save(tmp_path / "a.png", pnginfo=chunks)
    command(tmp_path / "a.png", "--mask", "center")
    assert opened(tmp_path / "a.png").info["gamma"] == opened("out/a_0.png").info["gamma"] == 1.0


@pytest.mark.parametrize("dtype, top", [(np.float32, 1), (np.float32, 255), (np.uint16, 65_535),
                                        (np.uint16, 255), (np.int32, 65_535), (np.int32, 255),
                                        (np.int32, 2 ** 31 - 1)])
def test_depths_are_scaled_by_the_range_that_their_values_fill(tmp_path, dtype, top):
    ramp = np.linspace(0, 1, 60 * 80).reshape(60, 80)
    Image.fromarray((ramp * top).astype(dtype)).save(tmp_path / "a.tif")
    seen = np.asarray(data.open_image(tmp_path / "a.tif"))[..., 0]
    assert abs(seen / 255 - ramp).max() < 1.01 / 255


@pytest.mark.parametrize("highlight", [1.04, 2.5, 400])
def test_a_highlight_above_1_does_not_make_the_rest_black(tmp_path, highlight):
    ramp = np.linspace(0, 1.04, 60 * 80, dtype=np.float32).reshape(60, 80)
    ramp[0, 0] = highlight
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    seen = np.asarray(data.open_image(tmp_path / "a.tif"))
    assert seen[30].mean() == pytest.approx(132, abs=3) and seen.max() == 255


@pytest.mark.parametrize("name, order", [("a.png", "<"), ("a.tif", "<"), ("a.tif", ">")])
def test_sixteen_bits_stay_sixteen_bits(command, tmp_path, name, order):
    values = np.arange(60 * 80, dtype=np.uint16).reshape(60, 80) * 13
    mode = "I;16B" if order == ">" else "I;16"
    Image.frombytes(mode, (80, 60), values.astype(f"{order}u2").tobytes()).save(tmp_path / name)
    assert opened(tmp_path / name).mode == mode
    assert command(tmp_path / name, "--mask", mask_file(tmp_path / "m" / "mask.png"))[0] == 0
    known, filled = (np.asarray(opened(f"out/a_{end}.png")) for end in ("hole", "0"))
    assert filled.dtype == np.uint16 and (filled[known == 0] == values[known == 0]).all()
    assert (filled[known > 0] % 257 == 0).all()


def test_cmyk_is_shown_by_its_profile_or_plainly():
    picture = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    assert inpaint.Photograph(picture).rgb[0, 0].tolist() == [255, 0, 0]
    picture.info["icc_profile"] = b"not a profile"
    assert inpaint.Photograph(picture).rgb[0, 0].tolist() == [255, 0, 0]


# ---- masks -------------------------------------------------------------------------------------

def hole_of(path="out/a_hole.png"):
    return np.asarray(opened(path)) == 255


@pytest.fixture
def box():
    inside = np.zeros((60, 80), bool)
    inside[20:40, 30:50] = True
    return inside


def test_inverted_and_grown(command, tmp_path, box):
    path = photograph(tmp_path / "a.png")
    mask_file(tmp_path / "m" / "mask.png", inside=0, outside=255)
    _, _, said = command(path, "--mask", tmp_path / "m" / "mask.png")
    assert "92% of the picture" in said and "--invert" in said
    _, _, said = command(path, "--mask", tmp_path / "m" / "mask.png", "--invert", "--grow", 3)
    assert "--invert" not in said
    y, x = np.mgrid[:60, :80]
    away = np.hypot(np.maximum(np.maximum(20 - y, y - 39), 0),
                    np.maximum(np.maximum(30 - x, x - 49), 0))
    assert (hole_of() == (away <= 3)).all()


def test_paint_of_nearly_one_colour_is_the_hole(command, tmp_path):
    layer = np.zeros((60, 80, 4), np.uint8)
    layer[20:40, 30:50] = 0, 0, 0, 255
    layer[25:30, 30:50] = 1, 1, 1, 255
    Image.fromarray(layer).save(tmp_path / "layer.png")
    command(photograph(tmp_path / "a.png"), "--mask", tmp_path / "layer.png")
    assert hole_of().sum() == 20 * 20


@pytest.mark.parametrize("paint", ["black", "red", "white"])
def test_paint_on_a_transparent_layer_is_the_hole(command, tmp_path, box, paint):
    layer = Image.new("RGBA", (80, 60))
    layer.paste(paint, (30, 20, 50, 40))
    layer.save(tmp_path / "mask.png")
    command(photograph(tmp_path / "a.png"), "--mask", tmp_path / "mask.png")
    assert (hole_of() == box).all()


def test_a_picture_with_a_part_cut_out_is_no_mask(command, tmp_path):
    cut = coloured("RGB").convert("RGBA")
    cut.paste((0, 0, 0, 0), (30, 20, 50, 40))
    cut.save(tmp_path / "mask.png")
    status, _, said = command(photograph(tmp_path / "a.png"), "--mask", tmp_path / "mask.png")
    assert status == 2 and "transparent parts" in said and said.count("\n") == 1


@pytest.mark.parametrize("mode", ["I;16", "F"])
def test_masks_of_zeros_and_ones_at_any_depth(command, tmp_path, box, mode):
    Image.fromarray(box.astype({"I;16": np.uint16, "F": np.float32}[mode])).save(
        tmp_path / "mask.tif")
    command(photograph(tmp_path / "a.png"), "--mask", tmp_path / "mask.tif")
    assert (hole_of() == box).all()


def test_a_folder_of_masks_is_paired_by_name(command, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "c"):
        photograph(tmp_path / "in" / f"{name}.jpg")
    mask_file(tmp_path / "m" / "a.png", box=(5, 5, 15, 15))
    mask_file(tmp_path / "m" / "b_mask001.png", box=(20, 20, 30, 30))
    mask_file(tmp_path / "m" / "b_mask002.png", box=(40, 20, 50, 30))
    mask_file(tmp_path / "m" / "other.png")
    status, printed, said = command(tmp_path / "in", "--mask", tmp_path / "m")
    assert status == 2 and "c.jpg: no mask of this name" in said and "1 of 3 images" in said
    assert "2 images, 3 holes × " in printed and "1 mask" in said and "other.png" in said
    assert hole_of("out/a_hole.png")[5:15, 5:15].all() and hole_of("out/a_hole.png").sum() == 100
    assert hole_of("out/b_mask001_hole.png")[20:30, 20:30].all()
    assert hole_of("out/b_mask002_hole.png")[20:30, 40:50].all()
    assert (tmp_path / "out/b_mask002_0.png").exists() and not (tmp_path / "out/b_0.png").exists()


def test_masks_in_the_folder_where_one_works(command, tmp_path):
    (tmp_path / "in").mkdir()
    photograph(tmp_path / "in" / "a.jpg")
    mask_file(tmp_path / "a.png", box=(5, 5, 15, 15))
    for _ in range(2):                                            # then with results in ./out
        status, _, said = command("in/a.jpg", "--mask", ".")
        assert status == 0 and hole_of().sum() == 100 and "belong" not in said
    assert command("in", "--mask", ".", "--out", "all")[0] == 0
    assert hole_of("all/a_hole.png").sum() == 100


def test_masks_beside_their_photographs(command, tmp_path):
    """As LaMa's users keep them."""
    (tmp_path / "in").mkdir()
    photograph(tmp_path / "in" / "a.jpg")
    mask_file(tmp_path / "in" / "a_mask.png", box=(5, 5, 15, 15))
    assert command(tmp_path / "in", "--mask", tmp_path / "in")[0] == 0
    assert hole_of().sum() == 100 and not (tmp_path / "out/a_mask_0.png").exists()
    _, _, said = command(tmp_path / "in", "--mask", "center")
    assert "a_mask.png" in said and not (tmp_path / "out/a_mask_0.png").exists()


# ---- folders -----------------------------------------------------------------------------------

def test_a_folder_is_a_stream_that_one_bad_file_does_not_stop(command, tmp_path, monkeypatch):
    for name in ("a.png", "sub/a.tif", "sub/deeper/b.jfif", "c.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        coloured("RGB").save(tmp_path / "in" / name, format={"jfif": "JPEG", "tif": "TIFF"}.get(
            name.partition(".")[2]))
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no image")
    for note in ("._a.jpg", ".hidden.png"):
        (tmp_path / "in" / note).write_bytes(b"a Mac's note")
    alive, Kept = [], inpaint.Photograph

    class Counted(Kept):
        def __init__(self, picture):
            super().__init__(picture)
            alive.append(weakref.ref(self))
            assert sum(each() is not None for each in alive) <= 2       # the last one, and this
    monkeypatch.setattr(inpaint, "Photograph", Counted)
    status, printed, said = command(tmp_path / "in", "--mask", "center", "--out", "in/out")
    assert status == 2 and "bad.jpg: not a readable image" in said and "1 of 5 images" in said
    assert len(alive) == 4 and "4 images" in printed
    out = tmp_path / "in/out"
    results = {str(path.relative_to(out)) for path in out.rglob("*_0.png")}
    assert results == {"a_0.png", "c_0.png", "sub/a_0.png", "sub/deeper/b_0.png"}
    status, printed, _ = command(tmp_path / "in", "--mask", "center", "--out", "in/out")
    assert "4 images" in printed                         # results are not taken for photographs


# ---- the photograph's own pixels ---------------------------------------------------------------

def test_without_a_network_a_scratch_is_filled_at_the_photographs_own_pixels(command, tmp_path):
    y, x = np.mgrid[:300, :400]
    stripes = (128 + 100 * np.sin(x / 5)).astype(np.uint8)
    Image.fromarray(stripes).save(tmp_path / "a.png")
    mask_file(tmp_path / "m" / "mask.png", 400, 300, (20, 150, 380, 153))
    command(tmp_path / "a.png", "--mask", tmp_path / "m" / "mask.png", "--method", "biharmonic")
    error = np.asarray(opened("out/a_0.png")).astype(float) - stripes
    assert abs(error[150:153, 20:380]).mean() < 3


def test_a_family_is_drawn_in_the_photographs_own_square(command, tmp_path):
    command(photograph(tmp_path / "a.png", 150, 100), "--mask", "center")
    hole = hole_of()
    assert hole.shape == (100, 150) and hole[25:75, 50:100].all() and hole.sum() == 2500


def test_a_drawn_hole_depends_on_the_photographs_name_and_not_on_its_company(command, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "c"):
        photograph(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "a.png").write_bytes(b"no image")
    command("in", "--mask", "irregular")
    beside = hole_of("out/b_hole.png")
    command("in/b.png", "--mask", "irregular")
    assert (hole_of("out/b_hole.png") == beside).all()
    assert (hole_of("out/c_hole.png") != beside).any()


def test_pictures_that_are_not_read_are_named_on_a_line(command, tmp_path):
    (tmp_path / "in").mkdir()
    photograph(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b\x1b[31m.HEIC").write_bytes(b"")
    (tmp_path / "in" / "notes.txt").write_bytes(b"")
    status, _, said = command("in", "--mask", "center")
    assert status == 0 and "1 file left out, such as in/b [31m.HEIC" in said


def test_the_network_is_shown_the_face_that_the_user_points_at(command, tmp_path):
    path = photograph(tmp_path / "a.png", 300, 200)
    mask_file(tmp_path / "m" / "mask.png", 300, 200, (100, 80, 140, 120))
    command(path, "--mask", tmp_path / "m" / "mask.png", "--face", 70, 30, 128)
    sheet = np.asarray(opened("out/a.png"))[22:]
    given = np.asarray(opened(path).convert("RGB").crop((70, 30, 198, 158)).resize(
        (SIZE, SIZE), Image.BICUBIC))
    scale = len(sheet) // SIZE
    assert abs(sheet[::scale, :SIZE * scale:scale].astype(int) - given).mean() < 2
    status, _, said = command(path, "--mask", "center", "--face", 70, 30, 0)
    assert status == 2 and "--face" in said
    status, _, said = command(path, "--face", 70, 30, 128, "--method", "biharmonic")
    assert status == 2 and "--face is for the network" in said


def test_the_network_is_shown_the_face_that_is_found(command, tmp_path):
    two = np.concatenate([skimage.data.astronaut()] * 2, axis=1)
    Image.fromarray(two).save(tmp_path / "a.png")
    mask_file(tmp_path / "m" / "mask.png", 1024, 512, (717, 130, 767, 154))        # the right mouth
    given = tmp_path / "a.png", "--mask", tmp_path / "m" / "mask.png"
    hole = torch.from_numpy(np.asarray(opened(given[2]))[None] > 0).float()
    (found,), _ = faces.find(torch.from_numpy(two), hole, SIZE)
    assert 640 < found[0] < 680 and 120 < found[2] < 160
    for flags, square in (((), found), (["--no-find-faces"], (667, 67, 150))):
        command(*given, *flags)
        sheet = np.asarray(opened("out/a.png"))[22:]
        left, top, side = square
        seen = np.asarray(Image.fromarray(two).crop((left, top, left + side, top + side)).resize(
            (SIZE, SIZE), Image.BICUBIC))
        scale = len(sheet) // SIZE
        assert abs(sheet[::scale, :SIZE * scale:scale].astype(int) - seen).mean() < 3


@pytest.mark.parametrize("ours", [True, False])
def test_a_hole_without_a_face_is_said_if_the_network_can_tell(command, tmp_path, ours):
    Image.fromarray(skimage.data.coffee()).save(tmp_path / "a.png")
    mask = mask_file(tmp_path / "m" / "mask.png", 600, 400, (200, 150, 260, 210))
    status, _, said = command(tmp_path / "a.png", "--mask", mask, "--sharpen", "none",
                              *["--weights", runs.WEIGHTS] * ours)
    assert status == 0 and (f"a: {faces.NONE}" in said) == ours
    assert "no face" not in command("--mask", "center")[2]


def test_results_replace_results_and_leave_none_behind(command, tmp_path):
    """A second run, with fewer samples, replaces the first; a picture of the user's own stays."""
    given = photograph(tmp_path / "a.png"), "--mask", "center"
    assert command(*given, "--samples", 3)[0] == 0
    photograph(tmp_path / "out" / "a_3.png")
    assert command(*given, "--samples", 2)[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == [
        "a.png", "a_0.png", "a_1.png", "a_3.png", "a_hole.png", "a_input.png"]
    photograph(tmp_path / "out" / "a_1.png")
    status, _, said = command(*given, "--samples", 2)
    assert status == 2 and "a_1.png is no result" in said


def test_results_of_another_photograph_are_not_replaced(command, tmp_path):
    """As browsers call a second download photo_1.jpg."""
    one, other = photograph(tmp_path / "a.png"), photograph(tmp_path / "a_1.png")
    assert command(other, "--mask", "center")[0] == 0
    assert command(one, "--mask", "center")[0] == 0
    assert (tmp_path / "out" / "a_1.png").exists()
    status, _, said = command(one, "--mask", "center", "--samples", 2)
    assert status == 2 and "a_1.png is a result of a_1, and would be overwritten" in said


def test_a_sheet_of_a_hole_that_is_no_more_goes(command, tmp_path):
    path = photograph(tmp_path / "a.png")
    mask = tmp_path / "m" / "mask.png"
    for inside in (255, 0):
        command(path, "--mask", mask_file(mask, inside=inside))
        assert (tmp_path / "out" / "a.png").exists() == (inside > 0)


def test_a_huge_picture_under_a_results_name_is_no_result(command, tmp_path, monkeypatch):
    path = photograph(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 80 * 60 // 2 - 1)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)
    assert results.made_for(path) is None


@pytest.mark.parametrize("face, served", [((120, 120, 60), False), ((0, 0, 200), True)])
def test_a_face_that_serves_no_hole_is_said_but_not_one_that_is_all_of_a_square(command, tmp_path,
                                                                               face, served):
    path = photograph(tmp_path / "a.png", 200, 200)
    mask = mask_file(tmp_path / "m" / "mask.png", 200, 200, (10, 10, 90, 90))
    status, _, said = command(path, "--mask", mask, "--face", *face)
    assert status == 0 and ("suits --face, which is not used" not in said) == served


def test_a_face_that_serves_no_hole_takes_no_window_away():
    hole = torch.zeros(1, 512, 512)
    hole[:, 20:120, 20:120] = 1
    whole = inpaint.plan(hole, SIZE)
    assert whole[0][0] == (0, 0, 512, 512) and inpaint.plan(hole, SIZE, (330, 330, 100)) == whole


def test_masks_whose_results_would_overwrite_each_other(command, tmp_path):
    photograph(tmp_path / "a.png")
    for names in (("a.png", "a_mask.bmp", "a_mask.png"), ("a_mask.png", "a_mask_0.png")):
        for name in names:
            mask_file(tmp_path / "-".join(names) / name)
        status, _, said = command(tmp_path / "a.png", "--mask", tmp_path / "-".join(names))
        assert status == 2 and "rename one" in said


def test_a_thin_line_in_a_large_mask_is_not_lost(command, tmp_path):
    path = photograph(tmp_path / "a.png")
    mask_file(tmp_path / "m" / "mask.png", 800, 600, (201, 0, 202, 600))
    assert command(path, "--mask", tmp_path / "m" / "mask.png")[0] == 0
    hole = hole_of()
    assert hole[:, 20].all() and hole.sum() == 60


def test_nor_is_one_that_is_black_in_an_inverted_mask(command, tmp_path):
    path = photograph(tmp_path / "a.png")
    mask = mask_file(tmp_path / "m" / "mask.png", 800, 600, (201, 0, 202, 600), 0, 255)
    assert command(path, "--mask", mask, "--invert")[0] == 0
    hole = hole_of()
    assert hole[:, 20].all() and hole.sum() == 60


@pytest.mark.parametrize("photo, mask", [
    ("gas_mask.png", "gas_mask.png"), ("my_masked_set/a.png", "my_masked_set/a.png"),
    ("Zoe\u0301.png", "Zo\u00e9.png")])
def test_names_that_hold_the_word_mask_or_an_accent_written_as_two_find_theirs(command, tmp_path,
                                                                              photo, mask):
    (tmp_path / "p" / photo).parent.mkdir(parents=True)
    photograph(tmp_path / "p" / photo)
    (tmp_path / "m" / mask).parent.mkdir(parents=True)
    mask_file(tmp_path / "m" / mask)
    status, printed, said = command(tmp_path / "p", "--mask", tmp_path / "m")
    assert status == 0 and "1 image " in printed and "no photograph" not in said


def test_a_folder_called_after_a_photographs_masks_is_filled(command, tmp_path):
    for name in ("p/people.png", "p/people_mask_party/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photograph(tmp_path / name)
    assert "2 images" in command(tmp_path / "p", "--mask", "center")[1]


def test_a_folder_that_is_its_own_out_is_refused_for_what_it_is(command, tmp_path):
    (tmp_path / "p").mkdir()
    photograph(tmp_path / "p" / "a.png")
    status, _, said = command(tmp_path / "p", "--mask", "center", "--out", tmp_path / "p")
    assert status == 2 and "results could overwrite it" in said


def test_a_photograph_is_no_mask(command, tmp_path):
    portrait = Image.fromarray(skimage.data.astronaut())
    portrait.save(tmp_path / "a.png")
    portrait.paste("white", (200, 100, 260, 160))
    portrait.save(tmp_path / "painted.png")
    status, _, said = command(tmp_path / "a.png", "--mask", tmp_path / "painted.png")
    assert status == 2 and "a photograph's colours" in said
    strokes = Image.new("RGB", (512, 512))
    strokes.paste("yellow", (200, 100, 260, 500))
    strokes.paste("cyan", (0, 100, 100, 500))
    strokes.save(tmp_path / "strokes.jpg", quality=50)
    assert command(tmp_path / "a.png", "--mask", tmp_path / "strokes.jpg", "--invert")[0] == 0


def test_a_folder_that_is_called_as_celebas_hides_no_photographs(command, tmp_path):
    for name in ("f/a.png", "f/img_align_celeba/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photograph(tmp_path / name)
    assert "2 images" in command(tmp_path / "f", "--mask", "center")[1]
