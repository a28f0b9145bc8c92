"""Images: every way in gives what Pillow decodes by hand, and nothing wrong gets in quietly."""
import io
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

import data
from support.cli import BadInput

LISTED = ["000001.jpg", "162770.jpg", "162771.jpg", "182637.jpg", "182638.jpg", "202599.jpg"]


def photograph(seed, width=178, height=218):
    """Smooth colours and some noise."""
    g = np.random.default_rng(seed)
    coarse = Image.fromarray(g.integers(0, 256, (6, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.BICUBIC)).astype(int)
    noisy = smooth + g.integers(-9, 10, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def folder_of(path, names, **size):
    path.mkdir(parents=True)
    for i, name in enumerate(names):
        photograph(i, **size).save(path / name)
    return path


def zip_of(path, folder, names=None, inside=""):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names or sorted(os.listdir(folder)):
            archive.write(folder / name, inside + name)
    return path


def by_hand(files, box=(19, 39, 159, 179), size=64):
    pictures = [Image.open(f).convert("RGB").crop(box).resize((size, size), Image.BICUBIC)
                for f in files]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))


@pytest.fixture
def faces(tmp_path):
    return folder_of(tmp_path / "faces", LISTED)


@pytest.fixture
def load(tmp_path):
    """data.load with a cache of its own; .files() are the names in the cache."""
    def load(sources, split="all", **rest):
        return data.load(sources, split, cache=tmp_path / "cache", **rest)
    load.files = lambda: sorted(p for p in (tmp_path / "cache").glob("*"))
    return load


# ---- bytes and floats ------------------------------------------------------------------------

def test_all_256_values_come_back_from_floats_in_minus_one_to_one():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(-1, -1, -1, 3)
    floats = data.to_float(images)
    assert floats.shape == (1, 3, 16, 16) and floats.dtype == torch.float32
    assert floats.min() == -1 and floats.max() == 1
    assert torch.equal(data.to_uint8(floats), images)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.data())
def test_pixels_and_channels_stay_in_their_places(n, height, width, draw):
    pixels = draw.draw(st.binary(min_size=3 * n * height * width, max_size=3 * n * height * width))
    images = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).reshape(n, height, width, 3)
    floats = data.to_float(images)
    torch.testing.assert_close(floats[-1, 2, -1, 0], images[-1, -1, 0, 2] / 127.5 - 1)
    assert torch.equal(data.to_uint8(floats), images)


def test_to_uint8_clips_and_rounds():
    floats = torch.tensor([-9, -1, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1, 9.0])
    images = data.to_uint8(floats.reshape(1, 1, 1, 6).expand(1, 3, 1, 6))
    assert images[0, 0, :, 0].tolist() == [0, 0, 0, 1, 255, 255]


# ---- the ways in -----------------------------------------------------------------------------

def test_a_folder_loads_as_pillow_decodes_it(faces, load):
    images = load(faces)
    assert images.dtype == torch.uint8
    assert torch.equal(images, by_hand(faces / name for name in LISTED))
    assert torch.equal(images[:2], load([str(faces)], limit=2))


def test_every_way_in_gives_the_same_images(tmp_path, load):
    faces = folder_of(tmp_path / "celeba" / "img_align_celeba", LISTED)
    expected = by_hand(faces / name for name in LISTED)
    whole = zip_of(tmp_path / "all.zip", faces, inside="img_align_celeba/")
    parts = tmp_path / "parts"
    parts.mkdir()
    one = zip_of(parts / "b.zip", faces, LISTED[:4])            # the images' names decide the order
    two = zip_of(parts / "a.ZIP", faces, LISTED[4:])
    for source in (faces, tmp_path / "celeba", whole, [two, one], [one, two], parts):
        assert torch.equal(load(source), expected), source


def test_what_lies_beside_celebas_own_folder_is_left_out_and_named(tmp_path, load, capsys):
    """They may hold the same images once more; the one that it was unpacked from is no news."""
    faces = folder_of(tmp_path / "celeba" / "img_align_celeba", LISTED)
    zip_of(tmp_path / "celeba" / "img_align_celeba.zip", faces)
    assert len(load(tmp_path / "celeba")) == len(LISTED)
    assert "only" not in capsys.readouterr().err
    other = folder_of(tmp_path / "other" / "img_align_celeba", LISTED[:4])
    zip_of(tmp_path / "other" / "more.zip", faces, LISTED[4:])
    folder_of(tmp_path / "other" / "mine" / "deep", LISTED[:1])
    photograph(9).save(tmp_path / "other" / "loose.png")
    (tmp_path / "other" / "Anno").mkdir()
    assert len(load(tmp_path / "other")) == len(load(tmp_path / "other")) == 4
    said = capsys.readouterr().err
    assert said.count("only img_align_celeba/ is read, not loose.png, mine, more.zip beside") == 1
    assert len(load([other, tmp_path / "other" / "more.zip"])) == len(LISTED)
    assert len(load([tmp_path / "other", tmp_path / "other" / "more.zip"])) == len(LISTED)
    assert not capsys.readouterr().err.count("only")


def test_only_images_are_read(faces, load):
    (faces / "notes.txt").write_text("no image")
    (faces / "folder.jpg").mkdir()
    photograph(9).save(faces / "shout.PNG")
    assert len(load(faces)) == 7


@pytest.mark.parametrize("hidden", [".thumbnails", "__MACOSX", "@eaDir", "a/.ipynb_checkpoints"])
@pytest.mark.parametrize("zipped", [False, True])
def test_folders_of_any_depth_are_read_but_not_those_of_systems(tmp_path, load, zipped, hidden):
    faces = tmp_path / "faces"
    names = ["top.png", "a/one.png", "a/b/c/deep.png", f"{hidden}/note.png", "a/._one.png"]
    for i, name in enumerate(names):
        (faces / name).parent.mkdir(parents=True, exist_ok=True)
        photograph(i).save(faces / name)
    order = [faces / names[i] for i in (2, 1, 0)]                       # deep, one, top
    source = zip_of(tmp_path / "a.zip", faces, names, inside="./") if zipped else faces
    assert torch.equal(load(source), by_hand(order))


def test_classes_with_the_same_names_keep_all_their_images_in_one_order(tmp_path, load):
    pets = tmp_path / "pets"
    folders = [folder_of(pets / kind, ["1.png", "2.png"], width=70, height=60 + i)
               for i, kind in enumerate(("cat", "dog"))]
    expected = by_hand([folder / name for name in ("1.png", "2.png") for folder in folders],
                       (5, 0, 65, 60))
    expected[1::2] = by_hand([folders[1] / name for name in ("1.png", "2.png")], (4, 0, 65, 61))
    names = ["dog/2.png", "cat/1.png", "cat/2.png", "dog/1.png"]
    for source in (pets, zip_of(tmp_path / "pets.zip", pets, names)):
        assert torch.equal(load(source), expected)


def test_links_are_followed_once_and_never_to_the_folders_around(tmp_path, load):
    elsewhere = folder_of(tmp_path / "elsewhere", ["far.png"])
    faces = folder_of(tmp_path / "data" / "faces", ["near.png"])
    photograph(5).save(tmp_path / "data" / "around.png")
    for name, target in (("0 same", faces), ("up", faces.parent), ("out", elsewhere),
                         ("twice", elsewhere)):
        (faces / name).symlink_to(target)
    (elsewhere / "back").symlink_to(faces)
    assert torch.equal(load(faces), by_hand([elsewhere / "far.png", faces / "near.png"]))
    assert len(load([faces, faces / "up" / "faces", elsewhere])) == 2    # named twice, read once


def test_a_zip_beside_what_was_unpacked_from_it_is_not_read_twice(tmp_path, load):
    folder = folder_of(tmp_path / "data" / "faces", ["a.png", "b.png"])
    zip_of(tmp_path / "data" / "faces.zip", folder)
    zip_of(tmp_path / "data" / "more.zip", folder, ["b.png"], inside="c/")
    assert len(load(tmp_path / "data")) == 3
    assert len(load(tmp_path / "data" / "faces.zip")) == 2               # asked for by name


@pytest.mark.parametrize("crop, box", [("centre140", (19, 39, 159, 179)),
                                       ("ddim128", (25, 57, 153, 185)),
                                       ("centre178", (0, 20, 178, 198))])
@pytest.mark.parametrize("size", [32, 64])
def test_the_windows_of_an_aligned_photograph(faces, load, crop, box, size):
    images = load(faces, size=size, crop=crop)
    assert torch.equal(images, by_hand((faces / name for name in LISTED), box, size))


@pytest.mark.parametrize("width, height, box", [(90, 60, (15, 0, 75, 60)),
                                                (60, 91, (0, 15, 60, 75)),
                                                (218, 178, (20, 0, 198, 178)),
                                                (178, 200, (0, 11, 178, 189))])
def test_any_other_picture_gives_its_middle_square(tmp_path, load, width, height, box):
    folder = folder_of(tmp_path / "any", ["a.png"], width=width, height=height)
    assert torch.equal(load(folder, crop="ddim128"), by_hand([folder / "a.png"], box))


def test_an_image_of_the_size_asked_for_is_left_untouched(tmp_path, load):
    folder = folder_of(tmp_path / "small", ["a.png", "b.png"], width=64, height=64)
    for image, name in zip(load(folder), ("a.png", "b.png")):
        assert np.array_equal(image, np.asarray(Image.open(folder / name)))


# ---- splits ----------------------------------------------------------------------------------

def test_the_official_splits_are_loaded_by_number(faces, load):
    for split, names in zip(data.SPLITS, (LISTED[:2], LISTED[2:4], LISTED[4:])):
        assert torch.equal(load(faces, split), by_hand(faces / name for name in names))


@given(st.integers(1, 202_599))
def test_an_official_number_has_its_split_whatever_its_suffix_and_folder(number):
    split = "train" if number <= 162_770 else "val" if number <= 182_637 else "test"
    for name in (f"{number:06}.jpg", f"{number:06}.png", f"img_align_celeba/{number:06}.jpg"):
        assert data.official_split(name) == data.split_of(name, celeba=True) == split


@pytest.mark.parametrize("form", ["img{}.png", "{:07}.jpg", "3{:05}.jpg"])
def test_other_names_are_split_eight_to_one_to_one(form):
    """Of 20,000 names 2000 ± 4 · 42 are of val, and as many of test."""
    splits = [data.split_of(form.format(i)) for i in range(20_000)]
    assert abs(splits.count("val") - 2000) < 170 and abs(splits.count("test") - 2000) < 170
    assert splits.count("train") == 20_000 - splits.count("val") - splits.count("test")


def counts(source, cache):
    """How many images train, val and test hold."""
    loaded = []
    for split in data.SPLITS:
        try:
            loaded.append(len(data.load(source, split, 16, cache=cache)))
        except BadInput as error:
            assert f"no image of the {split} split in {source}" in str(error)
            loaded.append(0)
    return loaded


OWN = ["train/cat/1.png", "train/dog/1.png", "Train/2.png", "training/000001.png",
       "train2017/3.png", "val/cat/4.png", "valid/5.png", "validation/6.png", "test/7.png",
       "Testing/test/8.png", "test_256/train/9.png", "deep/er/test/10.png", "evaluation/000002.png"]


@pytest.mark.parametrize("zipped", [False, True])
def test_a_users_own_train_val_and_test_are_theirs(tmp_path, zipped):
    """The outermost folder decides: train is also a class of CIFAR-100."""
    own = tmp_path / "test" / "own"                       # what lies above the source says nothing
    for i, name in enumerate(OWN):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        photograph(i).save(own / name)
    source = zip_of(tmp_path / "test" / "own.zip", own, OWN) if zipped else own
    assert counts(source, tmp_path / "cache") == [5, 3, 5]
    train = data.load(source, "train", cache=tmp_path / "cache")
    assert sorted(train.flatten(1).tolist()) == sorted(
        by_hand(own / name for name in OWN[:5]).flatten(1).tolist())


@pytest.mark.parametrize("name, split", [
    ("train-0.zip", "train"), ("validation-00000-of-00002.zip", "val"), ("my_test.zip", "test"),
    ("faces-VALID-0001.zip", "val"), ("train_val.zip", None), ("contest.zip", None),
    ("training.d.zip", "train"), ("trained.zip", None)])
def test_an_archives_name_tells_the_split_of_what_lies_in_no_such_folder(tmp_path, name, split):
    drawn = {data.split_of(f"{i}.png"): f"{i}.png" for i in range(40)}   # a name of each split
    folder = folder_of(tmp_path / "faces", drawn.values())
    path = zip_of(tmp_path / name, folder, inside="trained/")
    expected = [3 * (part == split) if split else 1 for part in data.SPLITS]
    assert counts(path, tmp_path / "cache") == expected


@pytest.mark.parametrize("folder", ["test_drive", "contest", "latest", "my_test", "tests", "testA"])
def test_only_a_whole_name_of_a_folder_is_a_split(folder):
    names = [f"img{i}.png" for i in range(40)]
    assert [data.split_of(name, [folder]) for name in names] == [*map(data.split_of, names)]
    assert [data.split_of(f"{folder}/{name}") for name in names] == [*map(data.split_of, names)]


@pytest.mark.parametrize("evidence", [
    "img_align_celeba", "celeba64", "CelebA/images", "img_align_celeba_png.zip", "celeba.zip",
    "list_eval_partition.txt", "Eval/list_eval_partition.txt", "178x218", "178x218 in a zip"])
def test_numbers_are_celebas_only_with_evidence_that_it_is_celeba(tmp_path, evidence):
    size = (178, 218) if "178" in evidence else (20, 20)
    names = [f"{number:06}.png" for number in range(162_701, 162_841)]
    plain = "." in evidence or "178" in evidence
    folder = tmp_path / "source" / ("faces" if plain else evidence)
    folder.mkdir(parents=True)
    for name in names:
        Image.new("RGB", size).save(folder / name)
    source = tmp_path / "source"
    if evidence.endswith("zip"):
        source = zip_of(tmp_path / evidence.replace("178x218 in a ", "a."), folder)
    elif "list" in evidence:
        (source / evidence).parent.mkdir(exist_ok=True)
        (source / evidence).write_text("162770.jpg 0\n162771.jpg 1\n")
    assert counts(source, tmp_path / "cache") == [70, 70, 0]


@pytest.mark.parametrize("inside", ["faces", "celeba_hq", "CelebAMask-HQ", "myceleba"])
@pytest.mark.parametrize("zipped", [False, True])
def test_other_peoples_numbers_are_not_celebas(tmp_path, inside, zipped):
    names = [f"{number:06}.png" for number in range(1, 141)]
    folder = folder_of(tmp_path / "source" / inside, [])
    for name in names:
        Image.new("RGB", (64, 64)).save(folder / name)
    source = zip_of(tmp_path / "a.zip", folder, inside=f"{inside}/") if zipped else folder.parent
    splits = [*map(data.split_of, names)]
    assert counts(source, tmp_path / "cache") == [splits.count(split) for split in data.SPLITS]
    assert 0 < splits.count("val") < 40


def test_too_few_images_for_a_split_are_counted_and_what_to_do_is_said(tmp_path, load):
    few = folder_of(tmp_path / "few", [f"{i}.png" for i in range(5)])
    splits = [data.split_of(f"{i}.png") for i in range(5)]
    empty = next(split for split in data.SPLITS if split not in splits)
    with pytest.raises(BadInput, match=f"no image of the {empty} split in .*few: there is "
                                       f".*{splits.count('train')} train.*into folders.*test"):
        load(few, empty)
    for split in data.SPLITS:
        photograph(9).save(folder_of(few / split, []) / "new.png")
        assert len(load(few, split)) == splits.count(split) + 1
    with pytest.raises(BadInput, match="no image of the val split in .*none, nor of any other"):
        load(folder_of(tmp_path / "none", []), "val")


@pytest.mark.parametrize("above", [False, True])
def test_a_partition_file_is_believed_only_if_it_is_the_official_one(tmp_path, load, above):
    faces = folder_of(tmp_path / "celeba" / "img_align_celeba", LISTED)
    listing = (faces.parent if above else faces) / "list_eval_partition.txt"
    lines = [f"{name} {i // 2}\n" for i, name in enumerate(LISTED)]
    listing.write_text("".join(lines))
    assert len(load(faces.parent)) == 6
    for wrong in ("000002.jpg 1\n", "000002.jpg 3\n", "000002.jpg\n"):
        listing.write_text("".join(lines) + wrong)
        with pytest.raises(BadInput, match=f"list_eval_partition.txt.*{wrong.strip()}"):
            load(faces.parent)


@pytest.mark.parametrize("listing", [
    "000001.jpg 0\n162771.jpg 1\n\n", "image_id,partition\n000001.jpg,0\n182638.jpg,2\n",
    "000001.jpg  0\r\n", "\ufeffimage_id;partition\n000001.jpg;0\n", "000001.jpg\t0\n"])
def test_celeba_as_kaggle_ships_it(tmp_path, listing):
    """The folder in a folder of its name; the list of splits beside them, as .txt or .csv."""
    folder = tmp_path / "celeba" / "img_align_celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    for name, face in zip(LISTED, data.synthetic(len(LISTED), 16).numpy()):
        Image.fromarray(face).save(folder / name)
    suffix = "csv" if "partition" in listing else "txt"
    path = tmp_path / "celeba" / f"list_eval_partition.{suffix}"
    path.write_text(listing)
    assert [len(data.load(tmp_path / "celeba", split, 16, cache=tmp_path / "cache"))
            for split in data.SPLITS] == [2, 2, 2]
    path.write_text(listing.replace("0", "7").replace("777771", "000001"))
    with pytest.raises(BadInput, match="is not CelebA's official split"):
        data.load(tmp_path / "celeba", "train", 16, cache=tmp_path / "cache")


# ---- the cache -------------------------------------------------------------------------------

def refuse(*_, **__):
    raise AssertionError("decoded again")


def test_the_second_load_decodes_nothing(faces, load, monkeypatch):
    first = load(faces).clone()
    monkeypatch.setattr(data, "open_image", refuse)
    assert torch.equal(load(faces), first) and len(load.files()) == 1


def test_the_cache_is_not_changed_by_changing_what_was_loaded(faces, load):
    images = load(faces)
    first = images.clone()
    images.zero_()
    assert torch.equal(load(faces), first)


def test_what_is_asked_for_has_a_cache_of_its_own(faces, load):
    for asked in ({}, {"size": 32}, {"crop": "ddim128"}, {"limit": 2}, {"split": "val"}):
        load(faces, **asked)
    assert len(load.files()) == 5


def test_a_changed_or_added_file_is_decoded_again(tmp_path, load):
    faces = folder_of(tmp_path / "faces", ["1.bmp", "2.bmp"])
    before, file = load(faces).clone(), faces / "1.bmp"
    status = file.stat()
    photograph(77).save(file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    assert file.stat().st_size == status.st_size                        # only its time tells
    assert torch.equal(load(faces), torch.cat([by_hand([file]), before[1:]]))
    photograph(78).save(faces / "3.bmp")
    assert torch.equal(load(faces)[2:], by_hand([faces / "3.bmp"]))


def test_a_zip_of_other_content_is_decoded_again(tmp_path, load):
    faces = folder_of(tmp_path / "faces", ["1.bmp"])
    load(zip_of(tmp_path / "a.zip", faces))
    photograph(77).save(faces / "1.bmp")                                # of the same length
    assert torch.equal(load(zip_of(tmp_path / "a.zip", faces)), by_hand([faces / "1.bmp"]))


@pytest.mark.parametrize("damage", ["truncated", "a byte short", "empty", "garbage", "other shape"])
def test_a_damaged_cache_is_built_again(faces, load, damage):
    expected = load(faces).clone()
    cache, = load.files()
    whole = cache.read_bytes()
    other = io.BytesIO()
    np.save(other, np.zeros((5, 64, 64, 3), np.uint8))
    cache.write_bytes({"truncated": whole[:len(whole) // 2], "a byte short": whole[:-1],
                       "empty": b"", "garbage": os.urandom(2000),
                       "other shape": other.getvalue()}[damage])
    assert torch.equal(load(faces), expected)
    assert cache.read_bytes() == whole


def test_a_build_that_was_cut_off_leaves_nothing_that_is_used(faces, load, monkeypatch):
    calls = []

    def interrupted(*args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return photograph(0)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(data, "open_image", interrupted)
        load(faces)
    assert load.files() == []
    expected = by_hand(faces / name for name in LISTED)
    assert torch.equal(load(faces), expected)


def test_a_leftover_temporary_file_is_never_used(faces, load):
    expected = load(faces).clone()
    cache, = load.files()
    half = np.zeros(expected.shape, np.uint8)
    for name in (f"{cache.name}.tmp", f".{cache.name}.{os.getpid()}.tmp", f".{cache.name}.1.tmp"):
        with open(cache.with_name(name), "wb") as file:
            np.save(file, half)
    cache.unlink()
    assert torch.equal(load(faces), expected)


# ---- what cannot be read ---------------------------------------------------------------------

@pytest.mark.parametrize("content", [b"", b"not an image", "half"])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_corrupt_image_is_named(faces, load, tmp_path, content, zipped):
    whole = (faces / LISTED[2]).read_bytes()
    (faces / LISTED[2]).write_bytes(whole[:len(whole) // 2] if content == "half" else content)
    source = zip_of(tmp_path / "a.zip", faces) if zipped else faces
    with pytest.raises(BadInput, match=f"{source.name}.*{LISTED[2]}"):
        load(source)
    assert load.files() == []


def test_only_a_photograph_of_twice_pillows_limit_is_refused(tmp_path, monkeypatch):
    photograph(0, 30, 20).save(tmp_path / "a.png")
    read = (f"import data; data.Image.MAX_IMAGE_PIXELS = 400; "
            f"data.decode({str(tmp_path / 'a.png')!r})")
    done = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")                     # not even Pillow's warning
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 299)
    with pytest.raises(BadInput, match="a.png: more than 0 megapixels, the most that are read"):
        data.decode(tmp_path / "a.png")


def test_a_truncated_zip_and_one_that_is_no_zip_are_named(faces, load, tmp_path):
    path = zip_of(tmp_path / "cut.zip", faces)
    whole = path.read_bytes()
    for content in (whole[:-100], whole[:len(whole) // 2], b"", b"hello"):
        path.write_bytes(content)
        with pytest.raises(BadInput, match="cut.zip"):
            load([faces, path])


def test_a_zip_with_a_flipped_bit_is_named_and_its_image_too(faces, load, tmp_path):
    path = zip_of(tmp_path / "flipped.zip", faces)
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo(LISTED[3]).header_offset + 2000
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadInput, match=f"flipped.zip.*{LISTED[3]}"):
        load(path)


def test_a_missing_path_is_named(load, tmp_path):
    for name in ("nowhere", "nowhere.zip"):
        with pytest.raises(BadInput, match=name):
            load(tmp_path / name)
    with pytest.raises(BadInput, match="face.png"):
        data.open_image(tmp_path / "face.png")


def test_an_empty_split_is_named_with_its_source(tmp_path, load):
    faces = folder_of(tmp_path / "few", LISTED[:2])
    with pytest.raises(BadInput, match="test split.*few"):
        load(faces, "test")
    with pytest.raises(BadInput, match="all split.*none"):
        load(folder_of(tmp_path / "none", []))


# ---- pictures of every kind ------------------------------------------------------------------

def saved(image, tmp_path, **options):
    image.save(tmp_path / "picture.png", **options)
    return np.asarray(data.open_image(tmp_path / "picture.png"))


def grey(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=-1)


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    values = np.arange(256, dtype=np.uint16).reshape(16, 16)
    assert np.array_equal(saved(Image.fromarray(values * 257), tmp_path), grey(values))


def test_transparency_is_laid_on_the_background(tmp_path):
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 0], pixels[0, :, 3] = 200, (255, 51, 0)                # opaque, a fifth, clear
    for image in (Image.fromarray(pixels), Image.fromarray(pixels[..., [0, 3]], "LA")):
        opened = saved(image, tmp_path)[0, :, 0].tolist()
        assert opened == [200, 244, 255]                                # 0.2 · 200 + 0.8 · 255
        file = io.BytesIO((tmp_path / "picture.png").read_bytes())
        assert np.asarray(data.open_image(file, "black"))[0, :, 0].tolist() == [200, 40, 0]


def test_a_palette_is_looked_up_and_its_clear_colour_is_white(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([2, 0, 1])
    rows = [[70, 80, 90], [10, 20, 30], [40, 50, 60]]
    assert saved(image, tmp_path)[0].tolist() == rows
    assert saved(image, tmp_path, transparency=2)[0].tolist() == [[255] * 3, *rows[1:]]


def test_grey_and_black_and_white_become_rgb(tmp_path):
    values = np.arange(256).reshape(16, 16)
    assert np.array_equal(saved(Image.fromarray(values.astype(np.uint8)), tmp_path), grey(values))
    black_and_white = Image.fromarray((values % 2 * 255).astype(np.uint8)).convert("1")
    assert np.array_equal(saved(black_and_white, tmp_path), grey(values % 2 * 255))


@pytest.mark.parametrize("orientation, turn", [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_a_rotated_photograph_is_turned_upright(tmp_path, orientation, turn):
    exif, image = Image.Exif(), photograph(0, 30, 20)
    exif[0x0112] = orientation
    opened = saved(image, tmp_path, exif=exif)
    assert np.array_equal(opened, np.rot90(np.asarray(image), turn))


# ---- synthetic -------------------------------------------------------------------------------

def test_synthetic_faces_are_decided_by_the_seed():
    faces = data.synthetic(6, 32, seed=1)
    assert faces.shape == (6, 32, 32, 3) and faces.dtype == torch.uint8
    assert torch.equal(faces, data.synthetic(6, 32, seed=1))
    assert not torch.equal(faces, data.synthetic(6, 32, seed=2))


def test_more_synthetic_faces_begin_with_the_same_in_256s():
    faces = data.synthetic(512, 16)
    for number in (2, 256, 300):
        assert torch.equal(data.synthetic(number, 16), faces[:number])


def test_synthetic_faces_differ_from_each_other_and_are_pictures():
    faces = data.synthetic(512, 16).double()
    assert faces.std(dim=0).mean() > 30                                 # across faces
    assert faces.flatten(1, 2).std(dim=1).mean() > 30                   # across a face's pixels
    assert len(faces.flatten(1).unique(dim=0)) == 512


def test_the_synthetic_splits_share_no_face(load):
    sets = [load("synthetic", split, limit=50, size=16).flatten(1) for split in data.SPLITS]
    assert len(torch.cat(sets).unique(dim=0)) == 150
    assert torch.equal(sets[0], load(["synthetic"], "train", limit=50, size=16).flatten(1))
    assert load.files() == []
