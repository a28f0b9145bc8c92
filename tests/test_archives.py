"""Archives: every kind gives the images that lie in it, in one pass; no name is a path, nothing is
unpacked, and what is damaged, cut off or something else is said."""
import gzip
import io
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
from helpers import little_memory_and_no_hang
from support import archives
from support.cli import BadInput

NAMES = ["b/000003.png", "a/000001.png", "b/x.png", "é漢.bmp", "train/two\nlines.webp"]
TARS = {"tar": "w", "tar.gz": "w:gz", "tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}


def picture(i, size=24, form="png"):
    file = io.BytesIO()
    Image.fromarray(data.synthetic(1, size, seed=i)[0].numpy()).save(file, form)
    return file.getvalue()


FILES = {name: picture(i) for i, name in enumerate(NAMES)}


def tar_of(path, files, mode="w", form=tarfile.PAX_FORMAT):
    with tarfile.open(path, mode, format=form) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def zip_of(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def parquet_of(path, files, column="image", form="struct", **options):
    """As the hub's: a column {bytes, path} beside others; `form` is another way people write it."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names, binary = [*files], pyarrow.large_binary() if form == "large" else pyarrow.binary()
    images = [{"bytes": content, "path": name} for name, content in files.items()]
    kind = pyarrow.struct([("bytes", binary), ("path", pyarrow.string())])
    if form == "no paths":
        images = [{"bytes": content, "path": None} for content in files.values()]
    elif form == "no bytes":
        images = [{"bytes": None, "path": name} for name in names]
    elif form == "plain":
        images, kind = [*files.values()], binary
    table = pyarrow.table({"celeb_id": range(len(names)), "mask": [b"no image"] * len(names),
                           column: pyarrow.array(images, kind)})
    parquet.write_table(table, path, **options)
    return path


def make(path, files):
    """The archive that the ending asks for."""
    ending = path.name.partition(".")[2]
    if ending in TARS:
        return tar_of(path, files, TARS[ending])
    return zip_of(path, files) if ending == "zip" else parquet_of(path, files)


def read(path):
    listed = [name for name, *_ in archives.members(path, lambda name: True)]
    return dict(archives.contents(path, listed))


def loaded(source, split="all", **rest):
    return data.load(source, split, 24, cache=Path("cache"), **rest)


def decoded(names, files=FILES):
    return torch.from_numpy(np.stack([np.asarray(Image.open(io.BytesIO(files[name])))
                                      for name in names]))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


KINDS = ["zip", *TARS, "parquet"]


# ---- every kind --------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_images_in_the_order_of_their_names(kind):
    path = make(Path(f"a.{kind}"), FILES)
    expected = decoded([NAMES[i] for i in (1, 0, 4, 2, 3)])
    assert torch.equal(loaded(path), expected)
    assert torch.equal(loaded(path, limit=2), expected[:2])
    Path("deep/er").mkdir(parents=True)
    os.rename(path, f"deep/er/{path}")
    assert torch.equal(loaded("deep"), expected)
    os.rename(f"deep/er/{path}", "wrong.zip" if kind != "zip" else "wrong.parquet")
    assert torch.equal(loaded(next(Path().glob("wrong.*"))), expected)     # the content decides
    assert {str(place) for place in Path().rglob("*.png")} == set()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_with_long_names(form):
    files = {"x" * 90 + "/" + f"{i}" * 60 + ".png": picture(i) for i in range(3)}
    assert read(tar_of(Path("a.tar"), files, form=form)) == files


@pytest.mark.parametrize("form", ["struct", "large", "no paths", "plain"])
@pytest.mark.parametrize("options", [{}, {"row_group_size": 2, "compression": "zstd"},
                                     {"use_dictionary": False, "data_page_size": 100}])
def test_every_form_of_a_column_of_images(form, options):
    path = parquet_of(Path("a.parquet"), FILES, form=form, **options)
    found = read(path)
    assert [*found.values()] == [*FILES.values()]
    assert [*found] == ([name.split("/")[-1] for name in NAMES] if form in ("struct", "large") else
                        [f"row-{i:07}" for i in range(len(NAMES))])
    assert dict(archives.contents(path, [*found][3:4])) == {[*found][3]: FILES[NAMES[3]]}


def test_a_parquet_file_as_the_hub_ships_celeba():
    """Shards that say their split; a name that comes twice is that of the first row."""
    for split, numbers in (("train", (1, 2, 182_640)), ("valid", (162_771,)), ("test", (9, 9))):
        Path("celeba/data").mkdir(parents=True, exist_ok=True)
        parquet_of(Path(f"celeba/data/{split}-00000-of-00001-0f1e2d.parquet"),
                   {f"{'x' * i}/{n:06}.jpg": picture(n) for i, n in enumerate(numbers)})
    assert [len(loaded("celeba", split)) for split in data.SPLITS] == [3, 1, 2]
    parquet_of(Path("celeba.parquet"), {f"{n:06}.jpg": picture(n) for n in (1, 162_771, 182_638)})
    assert [len(loaded("celeba.parquet", split)) for split in data.SPLITS] == [1, 1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_count_when_the_first_picture_has_celebas_size(kind):
    wide = io.BytesIO()
    Image.new("RGB", (178, 218)).save(wide, "png")
    files = {f"{n:06}.png": wide.getvalue() for n in (162_771, 1, 182_638)}
    path = make(Path(f"faces.{kind}"), files)
    assert [len(loaded(path, split)) for split in data.SPLITS] == [1, 1, 1]


def test_of_a_tars_two_files_with_a_name_the_last_counts_and_links_add_none():
    path = tar_of(Path("a.tar"), {"a.png": picture(1), "b.png": picture(2)})
    tar_of(path, {"a.png": picture(3, 30)}, "a")
    with tarfile.open(path, "a") as archive:
        for name, kind in (("c.png", tarfile.SYMTYPE), ("d.png", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert read(path) == {"a.png": picture(3, 30), "b.png": picture(2)}
    assert len(loaded(path)) == 2


def test_a_columns_other_than_images_are_no_images():
    files = {"x.png": picture(1)}
    path = parquet_of(Path("a.parquet"), files, column="attributes", form="plain")
    assert read(path) == {}
    with pytest.raises(BadInput, match="no image of the all split in a.parquet, nor"):
        loaded(path)
    assert read(parquet_of(Path("b.parquet"), files, column="picture")) == {
        "x.png": picture(1)}


@pytest.mark.parametrize("name", ["../../up.png", "/root.png", "a/../../b.png", "C:\\c.png"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_name_is_never_a_path(kind, name):
    Path("in/side").mkdir(parents=True)
    path = make(Path(f"in/side/a.{kind}"), {name: picture(1)})
    before = {*Path().rglob("*")}
    assert len(loaded(path)) == 1
    assert {place.parts[0] for place in {*Path().rglob("*")} - before} == {"cache"}
    assert not Path("/root.png").exists()


# ---- memory ------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_is_read_an_image_at_a_time(kind):
    """Images of 1 MB, twice as many as the memory holds."""
    n = 64
    content = np.random.default_rng(0).integers(0, 256, 2 ** 20, np.uint8)
    read(make(Path(f"warm.{kind}"), {f"{i}.png": content.tobytes() for i in range(16)}))
    child = os.fork()                                                   # whose memory is not ours
    if not child:
        make(Path(f"a.{kind}"), {f"{i}.png": (content ^ i).tobytes() for i in range(n)})
        os._exit(0)
    os.waitpid(child, 0)
    with little_memory_and_no_hang(n * 2 ** 19):
        names = [name for name, *_ in archives.members(Path(f"a.{kind}"), lambda name: True)]
        assert len(names) == n
        for i, (name, found) in enumerate(archives.contents(Path(f"a.{kind}"), names)):
            assert found == (content ^ i).tobytes() and name == f"{i}.png"


def test_only_so_many_images_wait_to_be_decoded():
    taken = []
    items = (taken.append(i) or i for i in range(1000))
    with data.ThreadPoolExecutor(1) as pool:
        done = data._ahead(pool, lambda share: share, items)
        assert next(done) == [*range(16)] and len(taken) <= 16 * (2 * torch.get_num_threads() + 1)
        assert [i for share in done for i in share] == [*range(16, 1000)]


# ---- what is damaged, or something else ----------------------------------------------------------

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [0.3, 0.6, -1, -700])
def test_a_file_that_is_cut_off_is_named(kind, keep):
    path = make(Path(f"cut.{kind}"), {f"{i}.png": picture(i) for i in range(12)})
    whole = path.read_bytes()
    path.write_bytes(whole[:int(keep * len(whole)) if keep > 0 else keep])
    if kind == "tar" and keep in (-1, -700):
        path.write_bytes(whole.rstrip(b"\0")[:keep])
    with pytest.raises(BadInput, match=rf"cut.{kind}.* damaged, incomplete.*download it again"):
        loaded(path)
    assert not list(Path("cache").glob("*"))


def test_a_tar_that_ends_between_two_files_is_not_taken_for_whole():
    path = tar_of(Path("a.tar"), {f"{i}.png": bytes(512) for i in range(4)})
    whole = path.read_bytes()
    for end in (1024, 2048, 3072):
        path.write_bytes(whole[:end])
        with pytest.raises(BadInput, match="a.tar: the tar is damaged, incomplete"):
            read(path)
    path.write_bytes(whole[:2048] + b"x" + whole[2049:])                # the third file's header
    with pytest.raises(BadInput, match="no header and no end at byte 2,048"):
        read(path)
    path.write_bytes(whole[:4096 + 512])                                # one block of the two
    assert len(read(path)) == 4


@pytest.mark.parametrize("kind", ["zip", "tgz", "tar.xz", "tar.bz2"])
def test_a_flipped_bit_is_noticed(kind):
    """Where the kind has a checksum, as a plain tar and most parquet files have none."""
    files = {f"{i}.png": os.urandom(3000) for i in range(5)}
    path = make(Path(f"a.{kind}"), files)
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadInput, match=f"a.{kind}.*damaged"):
        read(path)


@pytest.mark.parametrize("content, said", [
    (b"", "it is empty"), (b"hello", "neither an image nor a zip, tar or parquet file$"),
    (b"\n<!DOCTYPE html><html>quota exceeded</html>", "a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip"), (b"Rar!\x1a\x07", "RAR"), (b"PKunzip", "neither"),
    (b"\x28\xb5\x2f\xfd" + bytes(99), "zstd"), (b"ARROW1\0\0", "save it as parquet"),
    (gzip.compress(b"an image's pixels" * 99, mtime=0),
     "the tar is damaged, incomplete or of a sort")])
@pytest.mark.parametrize("name", ["celeba.zip", "celeba.tgz", "train.parquet", "photo.xyz"])
def test_something_else_is_called_what_it_is(content, said, name):
    Path(name).write_bytes(content)
    with pytest.raises(BadInput, match=f"^{name}: .*{said}") as error:
        loaded(name)
    assert "whole zip" not in str(error.value)


def test_an_encrypted_zip_and_a_zip_of_arrays_and_a_pipe():
    zip_of(Path("a.zip"), {"a.png": picture(1)})
    content = bytearray(Path("a.zip").read_bytes())
    content[6] |= 1                                                     # the flag, in both headers
    content[content.index(b"PK\1\2") + 8] |= 1
    Path("a.zip").write_bytes(content)
    with pytest.raises(BadInput, match="a.zip/a.png: .*encrypted.*unpack it and name the folder"):
        loaded("a.zip")
    np.savez("b.npz", images=np.zeros(3))
    with pytest.raises(BadInput, match="no image of the all split in b.npz, nor of any other"):
        loaded("b.npz")
    os.mkfifo("c.tar")
    with little_memory_and_no_hang(), pytest.raises(BadInput, match="c.tar: neither a file nor a"):
        loaded("c.tar")


def test_images_that_are_only_paths_are_refused():
    path = parquet_of(Path("a.parquet"), {"/etc/passwd": b""}, form="no bytes")
    with pytest.raises(BadInput, match="a.parquet/passwd: no image there, at most its path"):
        loaded(path)


def test_without_pyarrow_a_line_says_what_to_install(monkeypatch):
    Path("a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(BadInput, match="a.parquet: .*pip install pyarrow"):
        loaded("a.parquet")


@pytest.mark.parametrize("header", [False, True])
def test_a_tar_of_nothing_but_zeros_is_no_bomb(monkeypatch, header):
    """A member, or a header, of 64 MB, that gzip made 64 kB of, where an image may have 4."""
    monkeypatch.setattr(archives, "LARGEST_IMAGE", 2 ** 22)
    with tarfile.open("a.tgz", "w:gz", compresslevel=1) as archive:
        info = tarfile.TarInfo("a.png")
        info.size, info.type = 2 ** 26, tarfile.XHDTYPE if header else tarfile.REGTYPE
        archive.fileobj.write(info.tobuf())
        for _ in range(64):
            archive.fileobj.write(bytes(2 ** 20))
    said = "header of 67,108,864 bytes" if header else "67,108,864 bytes are no image"
    with little_memory_and_no_hang(2 ** 25), pytest.raises(BadInput, match=said):
        loaded("a.tgz")


def test_a_parquet_file_of_nothing_but_zeros_is_no_bomb(monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_IMAGE", 2 ** 22)
    parquet_of(Path("a.parquet"), {"a.png": bytes(2 ** 26)}, compression="zstd",
               use_dictionary=False)
    with pytest.raises(BadInput, match="a.parquet: 67,.* bytes are no images"):
        loaded("a.parquet")
    parquet_of(Path("b.parquet"), {"b.png": os.urandom(2 ** 23)}, use_dictionary=False)
    with pytest.raises(BadInput, match="b.parquet/b.png: 8,388,608 bytes are no image"):
        loaded("b.parquet")
