"""Images: CelebA as people have it, any other images, or faces drawn on the spot.

A source is a folder of images, however deep (CelebA's `img_align_celeba/`, or one that holds it, of
which nothing else is read), an archive of them (zip, tar, or the hub's parquet), a folder of
archives, several of these, or the word `synthetic`. Everything is decoded once into one uint8
array, cached on disk. Images are uint8 [N, H, W, 3] at the edges of the program and float [N, 3, H,
W] in [-1, 1] inside; `to_float` and `to_uint8` are the only way between.
"""
import functools
import hashlib
import io
import itertools
import os
import re
import warnings
import zlib
from collections import Counter, defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from support import archives
from support.cli import BadInput, say
from support.files import atomic_write, lock_folder, no_pipe, reading

ALIGNED = (178, 218)                  # width, height of CelebA's aligned photographs
# Windows (left, top, side) of them. Papers differ; say which you used.
CROPS = {"centre140": (19, 39, 140),  # the face, a little hair
         "ddim128": (25, 57, 128),    # Song et al. 2021: tighter, for comparison with their FID
         "centre178": (0, 20, 178)}   # the widest square
SPLITS = ("train", "val", "test")
LAST = (162_770, 182_637, 202_599)    # the number of the last file of each official split
KEYWORDS = {"train": "train", "training": "train",      # as on the Hugging Face hub, whole words
            "val": "val", "valid": "val", "validation": "val", "dev": "val",
            "test": "test", "testing": "test", "eval": "test", "evaluation": "test"}
CELEBA = re.compile(r"(img_align_)?celeba(?!.*(hq|mask|spoof))", re.IGNORECASE)  # numbered like it
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")   # none that runs a program, as EPS does
warnings.simplefilter("ignore", Image.DecompressionBombWarning)     # twice as many are refused
VERSION = 1                           # of what `decode` makes: a change of it rebuilds every cache


def to_float(images):
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W] in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(images):
    """[N, 3, H, W] -> uint8 [N, H, W, 3]: rounded, and clipped to [-1, 1]."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)


def load(sources, split="train", size=64, crop="centre140", limit=None, cache="cache"):
    """The images of a split as a uint8 tensor [N, size, size, 3], in the order of their names.

    sources  a path or a list of paths, or "synthetic" (10,000 faces if there is no `limit`)
    split    train, val, test or all, as `split_of` tells
    size     pixels, to which `crop`, the window cut from an aligned photograph, is reduced
    limit    only the first so many
    cache    the folder for decoded images: size² · 3 bytes an image (12 kB at 64, so 2 GB for all
             of CelebA's training split, in about two minutes); memory-mapped
    Raises BadInput if there are no such images, or some cannot be read.
    """
    sources = [sources] if isinstance(sources, (str, Path)) else list(sources)
    if limit is not None and limit < 1:
        raise BadInput(f"--limit is at least 1, not {limit}")
    if split not in (*SPLITS, "all"):
        raise BadInput(f"there is no split {split!r}: train, val, test or all")
    if [str(source) for source in sources] == ["synthetic"]:
        number = 10_000 if limit is None else limit
        return synthetic(number, size, 1_000_003 * (*SPLITS, "all").index(split))
    found = find(sources)
    members = [member for member, its in found.items() if split in ("all", its)][:limit]
    if not members:
        raise BadInput(_nothing(sources, split, Counter(found.values())))
    key = hashlib.sha256(repr((VERSION, size, CROPS[crop], members)).encode()).hexdigest()[:16]
    path = Path(cache) / f"{split}-{crop}-{size}-{key}.npy"
    shape = (len(members), size, size, 3)
    images = _open_cache(path, shape)
    if images is None:
        with lock_folder(cache, wait=True):             # while another process builds the same
            images = _open_cache(path, shape)
            if images is None:
                _build_cache(path, shape, members, crop)
                images = _open_cache(path, shape)
    return torch.from_numpy(images)


def find(sources):
    """Every image of the sources, at any depth: {(container, name, bytes, version): split}, in the
    order of the names. The container is a folder or an archive; version changes when the content
    does (a zip's checksum, a file's time)."""
    containers, seen = defaultdict(dict), set()       # (source, path): {name: member}
    for source in map(Path, sources):
        for folder, names in archives.walk(source, seen, _celebas_own):
            for name in names:
                file = folder / name
                if is_image(name) and file.is_file():
                    status = file.stat()
                    member = str(folder), name, status.st_size, status.st_mtime_ns
                    containers[source, folder][name] = member
                elif not source.is_dir() or archives.is_archive(file):
                    containers[source, file] = {member[0]: (str(file), *member)
                                                for member in archives.members(file, is_image)}
    found, listed = {}, functools.cache(_has_list)
    for (source, path), members in containers.items():
        for name, split in _splits(source, path, members, listed):
            found.setdefault(members[name], split)
    return dict(sorted(found.items(), key=lambda item: (archives.parts(item[0][1])[-1], *item[0])))


def split_of(name, folders=(), archive="", celeba=False):
    """The split that an image belongs to. Names come first: that of the first folder below the
    source that names a split, such as val/, decides; else a whole word in the name of the archive
    (train-0.zip). Else CelebA's own split holds, by the number; any other image is
    split by a hash of its name: a tenth val, a tenth test."""
    *inside, last = archives.parts(name)
    named = [_keywords(folder) for folder in (*folders, *inside)] + [_keywords(archive, True)]
    official = official_split(last) if celeba else None
    drawn = {0: "val", 1: "test"}.get(zlib.crc32(os.fsencode(last)) % 10, "train")
    return next((split for split in (*named, official) if split), drawn)


def official_split(name):
    """CelebA's split of the number in a file's name, 000001 … 202599; None of another name."""
    stem = Path(archives.parts(name)[-1]).stem
    if len(stem) == 6 and stem.isdecimal() and 1 <= int(stem) <= LAST[-1]:
        return next(split for split, last in zip(SPLITS, LAST) if int(stem) <= last)


def open_image(file, background="white"):
    """A path or an open file as an 8-bit RGB picture: EXIF's rotation applied, other depths scaled,
    transparency laid on the background. Raises BadInput if it is no image."""
    return to_rgb(decode(file), background)


def decode(file):
    """A path or an open file as the Pillow picture that it holds, upright. BadInput if none."""
    name = file if isinstance(file, (str, Path)) else getattr(file, "name", "the image")
    try:
        if isinstance(file, (str, Path)):
            no_pipe(file)
        with Image.open(file, formats=FORMATS) as image:
            return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise BadInput(f"{name}: no such file") from None
    except UnidentifiedImageError:
        raise BadInput(f"{name}: not a readable image (of no known format)") from None
    except Image.DecompressionBombError:
        raise BadInput(f"{name}: more than {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels, the "
                       "most that are read: reduce it") from None
    except MemoryError:
        raise
    except Exception as error:  # a strange file fails in as many ways as there are formats
        raise BadInput(f"{name}: not a readable image ({error})") from None


def to_rgb(image, background="white"):
    """A Pillow picture of any mode as 8-bit RGB: numbers of 16 or 32 bits are scaled down, floats
    of about 0 … 1, a few highlights aside, up; transparency is laid on the background."""
    if image.mode[0] in "IF":
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        high = values.max()
        top = max(65_535, high) if high > 255 else 255
        if image.mode == "F" and np.quantile(values, 0.99) <= 2:
            top = 1
        image = Image.fromarray((values * (255 / top)).clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")


def window(image_size, crop="centre140"):
    """The square (left, top, right, bottom) to cut: the named window of an aligned CelebA
    photograph, the largest centred square of anything else."""
    width, height = image_size
    side = min(image_size)
    left, top = (width - side) // 2, (height - side) // 2
    if image_size == ALIGNED:
        left, top, side = CROPS[crop]
    return left, top, left + side, top + side


def square(image, size, crop="centre140"):
    """Cut the window and resize it, antialiased (Pillow's bicubic): uint8 [size, size, 3]."""
    image = image.crop(window(image.size, crop))
    return np.asarray(image if image.width == size else image.resize((size, size), Image.BICUBIC))


def synthetic(number, size=64, seed=0):
    """Faces drawn from ellipses: uint8 [number, size, size, 3]. Endless, free, and no substitute:
    they give every command something to run on before there is data."""
    faces = [_draw_faces(min(256, number - first), size, seed * 1_000_003 + first // 256)
             for first in range(0, number, 256)]
    return to_uint8(torch.cat(faces)) if faces else torch.empty(0, size, size, 3).byte()


def _draw_faces(n, size, seed):
    """The first n of the seed's 256 faces."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(256, *shape, 1, 1, generator=generator)[:n]

    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = axis[None, None, :, None], axis[None, None, None, :]
    cx, cy, scale = uniform(-0.08, 0.08, 1), uniform(-0.08, 0.08, 1), uniform(0.85, 1.1, 1)
    skin = uniform(-0.5, 0.8, 1) + torch.tensor([0.25, 0.0, -0.2])[:, None, None]
    ink, lips = skin - uniform(0.6, 1.2, 1), skin + torch.tensor([0.1, -0.4, -0.3])[:, None, None]
    picture = uniform(-1, 1, 3) + uniform(-0.4, 0.4, 3) * x + uniform(-0.4, 0.4, 3) * y

    def paint(colour, dx, dy, rx, ry):
        radius = (((x - cx) / scale - dx) / rx) ** 2 + (((y - cy) / scale - dy) / ry) ** 2
        alpha = torch.sigmoid((1 - radius.sqrt()) * torch.minimum(rx, ry) * scale * size)
        return picture + alpha * (colour - picture)

    width, height = uniform(0.5, 0.62, 1), uniform(0.68, 0.8, 1)
    eye, gap, smile = uniform(0.07, 0.11, 1), uniform(0.2, 0.27, 1), uniform(0.03, 0.09, 1)
    nothing = torch.zeros_like(cx)
    hair = uniform(-1, 0.4, 3)
    picture = paint(hair, nothing, nothing - 0.2, width * 1.25, height * 1.15)
    picture = paint(skin, nothing, nothing + 0.05, width, height)
    picture = picture + uniform(-0.35, 0.35, 1) * x * (1 - y ** 2)                           # light
    for side in (-1, 1):
        picture = paint(skin * 0.3 + 0.7, side * gap, nothing - 0.1, eye * 1.5, eye)
        picture = paint(ink, side * gap, nothing - 0.1, eye * 0.7, eye * 0.8)
        picture = paint(ink, side * gap, nothing - 0.3, eye * 1.7, eye * 0.3)                # brow
    picture = paint(skin - 0.15, nothing, nothing + 0.14, eye * 0.6, eye * 1.6)              # nose
    return paint(lips, nothing, nothing + 0.42, gap, smile).clamp(-1, 1)


def is_image(name):
    return name.lower().endswith(SUFFIXES) and not archives.of_a_system(name)


@functools.cache
def _keywords(name, anywhere=False):
    """The split that a folder's whole name gives, ignoring case and digits (Train, val2017,
    test_256); in an archive's name, any word counts."""
    words = [word for word in re.split(r"[-._ \d]+", name.lower()) if word]
    splits = {KEYWORDS[word] for word in words if word in KEYWORDS}
    return splits.pop() if len(splits) == 1 and (anywhere or len(words) == 1) else None


def _celebas_own(folder, folders, files):
    """Where there is a folder img_align_celeba, read nothing else: what lies beside it may well be
    the same images, as in Kaggle's archive, which has them twice."""
    if "img_align_celeba" in folders:
        _tell_left_out(folder / "img_align_celeba")
        folders[:], files[:] = ["img_align_celeba"], []


@functools.cache                                                  # once is enough
def _tell_left_out(celeba):
    """Name what holds images beside a folder."""
    def holds_images(path):
        if path.is_dir():
            return any(is_image(name) for _, names in archives.walk(path, set()) for name in names)
        return is_image(path.name) or archives.is_archive(path)
    beside = [path.name for path in sorted(celeba.parent.iterdir())
              if path != celeba and not archives.of_a_system(path.name) and holds_images(path)]
    if beside:
        say(f"{celeba.parent}: only {celeba.name}/ is read, not {', '.join(beside[:3])}"
            f"{' …' * (len(beside) > 3)} beside it; if they hold other images, name them, too")


def _splits(source, path, members, listed):
    """(name, split) of each member of a container."""
    folder, archive = (path.parent, path.name) if path.is_file() else (path, "")
    below = folder.relative_to(source).parts if source.is_dir() else ()
    celeba = _is_celeba(path, folder, below, archive, members, listed)
    return ((name, split_of(name, below, archive, celeba)) for name in members)


def _is_celeba(path, folder, below, archive, names, listed):
    """Whether numbers are CelebA's: its list of splits is in the folder or around the source, a
    name says so, or the first picture with such a number has CelebA's size."""
    folder = Path(os.path.abspath(folder))
    around = [folder, *folder.parents][:len(below) + 3]
    if any([listed(place) for place in around]):
        return True
    first = next(filter(official_split, names), None)
    if first is None:
        return False
    marks = (*folder.parts[-1 - len(below):], archive, *archives.parts(first)[:-1])
    return any(map(CELEBA.match, marks)) or _size(path, first) == ALIGNED


def _size(path, name):
    """Width and height of a picture, from its first bytes."""
    file, place = path / name, f"{path}/{name}"
    if path.is_file():
        file = io.BytesIO(next(archives.contents(path, [name]))[1])
    with reading(place, "a readable image", "no such file"):
        return Image.open(file, formats=FORMATS).size


def first_size(sources):
    """(width, height) of the first of the images of all splits."""
    member = next(iter(find(sources)), None)
    if member is None:
        raise BadInput(_nothing(sources, "train", {}))
    return _size(Path(member[0]), member[1])


def _has_list(folder):
    """Whether CelebA's own list of splits lies here: the authors' .txt, or Kaggle's .csv with a
    heading. It must agree with ours."""
    for name in ("list_eval_partition.txt", "list_eval_partition.csv",
                 "Eval/list_eval_partition.txt"):
        if (folder / name).is_file():
            _check_lines(folder / name)
            return True
    return False


def _check_lines(path):
    for line in path.read_text("utf-8-sig", errors="replace").splitlines():
        name, *number = re.split(r"[\s,;]+", line.strip())
        if not name or name == "image_id":
            continue
        if len(number) != 1 or number[0] not in ("0", "1", "2") or (
                official_split(name) != SPLITS[int(number[0])]):
            raise BadInput(f"{path}: {line!r} is not CelebA's official split; mend or remove the "
                           "file")


def _nothing(sources, split, found):
    """Why there is no image of a split, and what to do; found is {split: number of images}."""
    place = ", ".join(map(str, sources))
    if not found:
        return (f"no image of the {split} split in {place}, nor of any other; images end in "
                f"{', '.join(SUFFIXES)}, archives in {', '.join(archives.ENDINGS)}: name others")
    have = " and ".join(f"{found[other]:,} {other}" for other in SPLITS if found[other])
    return (f"no image of the {split} split in {place}: there is {have}. Put images into folders "
            "called train, val and test there, or name another source or another --split")


def _open_cache(path, shape):
    """The cached array, or None if it is not there or not whole."""
    try:
        images = np.lib.format.open_memmap(path, mode="c")
    except (OSError, ValueError, EOFError):
        return None
    return images if images.shape == shape and images.dtype == np.uint8 else None


def _build_cache(path, shape, members, crop):
    """Decode in parallel (Pillow works outside the interpreter's lock) into a file that gets its
    name when it is whole. An archive's images come in its own order, each to its row."""
    def squares(share):
        return [(row, square(open_image(file), shape[1], crop)) for row, file in share]

    pool = ThreadPoolExecutor(torch.get_num_threads())
    with atomic_write(path) as half, open(half, "wb") as file, pool:
        head = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, head)
        begin = file.tell()
        with tqdm(desc="decoding", total=len(members), unit=" images") as bar:
            for images in _ahead(pool, squares, _files(members)):
                for row, image in images:
                    file.seek(begin + row * image.nbytes)
                    file.write(image)                       # to mmap, a full disk is a bus error
                bar.update(len(images))


def _ahead(pool, work, items):
    """work(share) of shares of 16 items, in order; as many are under way as there are threads, and
    as many again are waiting, so that only those are in memory."""
    waiting = deque()
    while share := list(itertools.islice(items, 16)):
        waiting.append(pool.submit(work, share))
        if len(waiting) > 2 * torch.get_num_threads():
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _files(members):
    """(row, path or open file) of every member: those in folders in order, then the archives."""
    inside, is_file = defaultdict(dict), functools.cache(os.path.isfile)
    for row, (container, name, *_) in enumerate(members):
        if is_file(container):
            inside[container][name] = row
        else:
            yield row, f"{container}/{name}"
    for container, rows in inside.items():
        for name, content in archives.contents(container, rows):
            file = io.BytesIO(content)
            file.name = f"{container}/{name}"                              # for messages
            yield rows[name], file
