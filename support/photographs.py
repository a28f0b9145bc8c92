"""Photographs and masks as people have them: what a file says beside its pixels goes in and comes
out again, a folder is read one photograph at a time, a mask is found by its photograph's name."""
import functools
import hashlib
import io
import os
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms

import data
import masks
from support import archives
from support.cli import BadInput, say

MASK = "_mask"                # face_mask.png, face_mask001.png are masks of face.jpg
SHADES = 16                   # of 255: paint on a transparent ground varies by no more
# Pictures, but of kinds that are not read.
OTHERS = (".gif", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".tga", ".psd", ".dng", ".cr2", ".nef")


# ---- photographs -------------------------------------------------------------------------------

class Photograph:
    """A picture in its own kind: grey or colour, transparent or not, of 8 bits or, if grey, 16;
    with the colour profile or gamma by which it is shown. `rgb`, uint8 [H, W, 3], is what methods
    see; `size` is (width, height)."""

    def __init__(self, picture):
        self.info = picture.info
        picture = to_srgb(picture)
        if picture.mode.startswith("I;16") and (values := np.asarray(picture)).max() > 255:
            self.mode, self.own = "L", values.astype(np.uint16)
        else:
            grey = picture.mode in ("1", "L", "LA", "I", "F") or picture.mode[:4] == "I;16"
            self.mode = ("L" if grey else "RGB") + "A" * picture.has_transparency_data
            flat = data.to_rgb(picture) if picture.mode[0] in "IF" else picture
            self.own = np.asarray(flat.convert(self.mode))
        self.rgb, self.size = torch.from_numpy(np.array(data.to_rgb(picture))), picture.size

    def filled(self, hole=None, fill=None):
        """As a Pillow picture of its own kind: with `fill`, uint8 [H, W, 3], in the hole
        [1, H, W], and all other pixels as they were; or as it was given."""
        pixels = self.own
        if fill is not None:
            new = np.asarray(Image.fromarray(fill.numpy()).convert(self.mode))          # opaque
            new = new.astype(np.uint16) * 257 if pixels.dtype == np.uint16 else new
            inside = (hole[0].numpy() > 0).reshape(*hole.shape[1:], *[1] * (new.ndim - 2))
            pixels = np.where(inside, new, pixels)
        picture = Image.fromarray(pixels)
        space = {b"RGB ": "RGB", b"GRAY": "L"}.get((self.info.get("icc_profile") or b"")[16:20])
        if space == self.mode.rstrip("A"):
            picture.info["icc_profile"] = self.info["icc_profile"]
        elif "gamma" in self.info:
            picture.info["gamma"] = self.info["gamma"]
        return picture


def to_srgb(picture):
    """CMYK and Lab, which a PNG cannot hold, as RGB: by the picture's own profile if it has one."""
    if picture.mode not in ("CMYK", "LAB"):
        return picture
    profile = picture.info.get("icc_profile")
    try:
        source = (ImageCms.createProfile("LAB") if picture.mode == "LAB" else
                  ImageCms.ImageCmsProfile(io.BytesIO(profile or b"")))
        return ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"),
                                         outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return picture.convert("RGB")


def find(paths, out):
    """{name: path} of the images named and of those in the folders named, at any depth; the name,
    a path relative to the folder, without its ending, is that of the results in --out."""
    found = []
    for path in map(Path, paths):
        files = [(Path(path.stem), path)]
        if path.is_dir():
            pictures = [*walk(path, out, is_picture)]
            files = [(file.relative_to(path).with_suffix(""), file) for file in pictures
                     if data.is_image(file.name)]
            say_left_out([file for file in pictures if not data.is_image(file.name)])
        if not files:
            raise BadInput(f"{path}: no image in this folder ({', '.join(data.SUFFIXES)})")
        found += [(str(name), file) for name, file in files]
    names = {name for name, _ in found}
    beside = {name: path for name, path in found if photograph_of(name) in names}
    if beside:
        say(f"{len(beside)} images, such as {beside[min(beside)]}, are taken for masks of others; "
            "--mask FOLDER uses them")
    found = [(name, path) for name, path in found if name not in beside]
    check_names([name for name, _ in found], "images")
    return dict(found)


def photograph_of(name):
    """The name of the photograph that a mask called STEM_mask… is of; None of any other name."""
    stem = Path(name).name.rpartition(MASK)[0]
    return str(Path(name).with_name(stem)) if stem else None


def composed(name):
    """A name as most systems write it, ä as one character; macOS's may have two."""
    return unicodedata.normalize("NFC", str(name))


def check_names(names, what):
    """Refuse names of which results would overwrite each other."""
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise BadInput(f"two {what} are called {name}: their results would overwrite each other; "
                       "rename one")
    taken = set(names)
    for name in names:
        base, _, end = name.rpartition("_")
        if base in taken and (end in ("input", "hole") or end.isdecimal()):
            raise BadInput(f"{name} is also the name of a result of {base}: rename one, or fill "
                           "them into folders of their own")


def is_picture(name):
    return data.is_image(name) or name.lower().endswith(OTHERS)


def say_left_out(left):
    """Name pictures that are of kinds that are not read."""
    if left:
        say(f"{len(left)} file{'s' * (len(left) > 1)} left out, such as {left[0]}: images in a "
            f"folder end in {', '.join(data.SUFFIXES)}")


def walk(folder, out=None, chosen=data.is_image):
    """The `chosen` files in a folder and those below it, sorted; not those in `out`."""
    for place, names in archives.walk(Path(folder), {Path(out).resolve()} if out else set()):
        for name in names:
            if chosen(name) and not name.startswith(".") and (place / name).is_file():
                yield place / name


# ---- masks -------------------------------------------------------------------------------------

class Holes:
    """The holes that --mask asks for: of a family, drawn, another for every photograph; of a file,
    the same for all; or of a folder, the files with the photographs' names.

    size, seed   of the drawn holes
    invert       fill what is known, and keep the hole
    grow         widen every hole by so many pixels
    out          a folder in which no masks are looked for
    """

    def __init__(self, mask, size, seed=0, invert=False, grow=0, out=None):
        self.mask, self.size, self.invert, self.grow = mask, size, invert, grow
        self.seed = seed
        self.files, self.used = {}, set()
        self.open = functools.lru_cache(1)(open_mask)
        if mask in masks.MASKS:
            return
        if Path(mask).is_dir():
            for file in walk(mask, out):
                name = composed(file.relative_to(mask).with_suffix(""))
                for stem in {name, photograph_of(name) or name}:
                    self.files.setdefault(stem, []).append(file)
            if not self.files:
                raise BadInput(f"--mask {mask}: no image in this folder")
        elif not Path(mask).is_file():
            raise BadInput(f"--mask {mask}: neither a file or folder nor one of "
                           f"{', '.join(masks.MASKS)}")

    def of(self, name, path, shape):
        """[(name of the results, hole [1, H, W])] of a photograph of this shape (H, W). Several
        masks of one photograph give results by the masks' names."""
        if self.mask in masks.MASKS:
            return [(name, self.grown(self.draw(shape, name if path else None)))]
        files = [Path(self.mask)]
        if self.files:
            own = path and path.resolve()                          # is no mask of its own

            def named(stem):
                return [file for file in self.files.get(composed(stem), [])
                        if file.resolve() != own]
            files = named(name) or named(Path(name).name)
            self.used.update([own, *(file.resolve() for file in files)])
            if not files:
                raise BadInput(f"{path or name}: no mask of this name in {self.mask}")
        names = [name]
        if len(files) > 1:
            names = [str(Path(name).with_name(file.stem)) for file in files]
            check_names(names, "masks")
        return [(each, self.grown(self.read(file, shape, path or name)))
                for each, file in zip(names, files)]

    def report_unused(self):
        """Say which masks of the folder belong to no photograph that was filled."""
        unused = sorted({file for files in self.files.values() for file in files
                         if file.resolve() not in self.used})
        if unused:
            say(f"{len(unused)} mask{'s' * (len(unused) > 1)} of {self.mask} belong"
                f"{'s' * (len(unused) == 1)} to no photograph: {unused[0]}"
                f"{' …' * (len(unused) > 1)}")

    def draw(self, shape, name=None):
        """A hole of the family in the photograph's centred square, drawn at the network's size, by
        the seed and the photograph's name: the same whatever else is filled."""
        height, width = shape
        left, top, right, bottom = data.window((width, height))
        seed = self.seed if name is None else int.from_bytes(
            hashlib.sha256(os.fsencode(f"{self.seed} {name}")).digest()[:7])
        hole = masks.MASKS[self.mask](1, self.size, torch.Generator().manual_seed(seed))[0]
        hole = F.interpolate(hole[None], (bottom - top, right - left), mode="nearest-exact")[0]
        hole = F.pad(hole, (left, width - right, top, height - bottom))
        return 1 - hole if self.invert else hole

    def read(self, path, shape, whose):
        """The hole of a mask file, for a photograph of this shape, called `whose` in messages."""
        picture, (height, width) = self.open(path), shape
        w, h = picture.size
        if abs(w * height - h * width) > 0.01 * h * width:
            raise BadInput(f"{path} is {w}×{h} and {whose} is {width}×{height}: a mask must have "
                           "its photograph's shape")
        larger, brightest = h >= height and w >= width, picture.getextrema()[1]
        white = masks.from_image(picture, picture.size if larger else (width, height))
        hole = 1 - white if self.invert else white
        hole = (F.adaptive_max_pool2d(hole, shape) if larger else hole)[0]       # no line is lost
        if 0 < brightest < 128 and not white.any():
            raise BadInput(f"{path}: white is what is filled, from 128 of 255 on, but the "
                           f"brightest of its values is {brightest}: raise the contrast of the "
                           "mask")
        rim = torch.cat([hole[0, 0], hole[0, -1], hole[0, :, 0], hole[0, :, -1]])
        if not self.invert and hole.mean() > 0.5 and rim.mean() > 0.9 and not hole.all():
            say(f"{path}: {hole.mean():.0%} of the picture are to be filled; if the mask is white "
                "where the photograph is to be kept, add --invert")
        return hole

    def grown(self, hole):
        if self.grow and hole.any():
            from scipy import ndimage  # here, because it takes a quarter of a second to import

            near = ndimage.distance_transform_edt(hole[0].numpy() == 0) <= self.grow
            hole = torch.from_numpy(near).float()[None]
        return hole


def open_mask(path):
    """A mask as an 8-bit grey picture. Paint of one colour, or nearly, on a transparent ground is
    the hole; a picture with a part cut out of it is refused, as it may mean either part."""
    picture = data.decode(path)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        pixels = np.asarray(picture).reshape(-1, 4)
        opaque = pixels[pixels[:, 3] >= 128, :3]
        if len(opaque) < len(pixels) and len(opaque):
            if np.ptp(opaque, axis=0).max() <= SHADES:
                return picture.getchannel("A")
            if (opaque != opaque[:, :1]).any():
                raise no_mask(path, "is a picture with transparent parts")
    picture = data.to_rgb(picture, background="black")
    if is_photograph(picture):
        raise no_mask(path, "has a photograph's colours: paint it on a layer of its own")
    return picture.convert("L")


def no_mask(path, why):
    return BadInput(f"{path}: a mask is white where the photograph is to be filled and black "
                    f"elsewhere; this one {why}")


def is_photograph(picture):
    """Whether a quarter of it is coloured, in many colours: over 32 of 4,096, of a thousandth of
    the pixels each. Paint has fewer, even as a JPEG."""
    pixels = np.asarray(picture.reduce(max(1, max(picture.size) // 256))).reshape(-1, 3)
    coloured = pixels[np.ptp(pixels, axis=1) > 32] >> 4
    _, counts = np.unique(coloured @ [256, 16, 1], return_counts=True)
    return len(coloured) > len(pixels) / 4 and (counts > len(pixels) / 1000).sum() > 32
