"""The pictures that inpaint.py leaves of a photograph, which replace nothing but earlier ones."""
import itertools
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import masks
import windows
from support.cli import BadInput
from support.files import write_png
from support.photographs import walk

SHOWN = 6         # windows in STEM.png, at most
PANEL = 256       # pixels, up to which they are enlarged there


def check_folder(out, images, mask):
    """Refuse to write where an input lies, which a result could overwrite, or where photographs
    would be passed over, as a folder's results are when it is filled again."""
    out, given = Path(out).resolve(), out
    for path in map(Path, [*images, *([] if mask in masks.MASKS else [mask])]):
        if out == (path if path.is_dir() else path.parent).resolve():
            raise BadInput(f"--out {given} is where {path} lies: results could overwrite it")
        if path.is_dir() and path.resolve() in out.parents and out.is_dir():
            for image in walk(out):
                if made_for(image) is None:
                    raise BadInput(f"--out {given} lies in {path} and holds {image}, which is "
                                   "no result: name another --out")


def check(out, name, samples):
    """Refuse to replace pictures that are not results, or those of another photograph."""
    mine = printable(name)
    for path in places(out, name, samples):
        what = made_for(path)
        if path.exists() and what != mine:
            raise BadInput(f"{path} is {f'a result of {what}' if what else 'no result'}, and would "
                           "be overwritten: name another --out")


def places(out, name, samples):
    """Where the pictures go: all side by side, the input, the hole, the fills."""
    fills = [f"_{k}" for k in range(samples)]
    return [out / f"{name}{end}.png" for end in ("", "_input", "_hole", *fills)]


def made_for(path):
    """The `printable` name of the photograph of which a file is a result, as `write` put it there;
    else None."""
    try:
        with Image.open(path) as picture:
            return picture.info.get("result of")
    except Exception:                                   # missing, no picture, or a huge one
        return None


def printable(name):
    """A name as a picture can hold it, also if its bytes are no text."""
    return name.encode(errors="backslashreplace").decode()


def write(out, name, photograph, hole, fills, views, metadata):
    """The pictures of one photograph; fills and views as `inpaint.complete` returned them."""
    sheets = []
    for box, seen, part, drawn in views[:SHOWN]:
        original, _ = windows.shrink(photograph.rgb, torch.zeros_like(hole), box, part.shape[1:])
        seen = torch.where(part[0, :, :, None] > 0, original, seen)
        sheets.append(side_by_side(seen.numpy(), part.numpy(), drawn.numpy()))
    pictures = [stacked(sheets) if sheets else None, photograph.filled(),
                Image.fromarray((255 * hole[0]).byte().numpy()),
                *(photograph.filled(hole, fill) for fill in fills)]
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    mine = printable(name)
    for path, picture in zip(places(out, name, len(fills)), pictures):
        if picture:
            write_png(picture, path, metadata | {"result of": mine})
        elif made_for(path) == mine:                     # left by an earlier run with a hole, …
            path.unlink()
    for k in itertools.count(len(fills)):                # … with more --samples
        left = out / f"{name}_{k}.png"
        if made_for(left) != mine:
            break
        left.unlink()


def spread_of(fills):
    """How much the fills, uint8 [K, H, W, 3], differ at every pixel: their standard deviation, of
    255, the mean of the three colours: [H, W]."""
    return fills.astype(float).std(axis=0).mean(axis=-1)


def side_by_side(image, hole, fills):
    """Original, masked, fills and their pixelwise spread, enlarged and labelled.

    image uint8 [H, W, 3]; hole [1, H, W]; fills uint8 [K, H, W, 3]. Returns a picture.
    """
    masked = np.where(hole[0, :, :, None] > 0, 128, image).astype(np.uint8)
    spread = spread_of(fills)[..., None]
    heat = (spread / max(spread.max(), 1) * 255).repeat(3, axis=-1).astype(np.uint8)
    panels = [("original", image), ("to fill", masked),
              *((f"fill {k}", fill) for k, fill in enumerate(fills))]
    if len(fills) > 1:
        panels.append((f"spread 0…{spread.max():.0f}", heat))
    scale, top = max(1, PANEL // max(image.shape)), 22
    width, height = scale * image.shape[1], scale * image.shape[0]
    sheet = Image.new("RGB", (len(panels) * (width + 4) - 4, height + top), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for i, (label, panel) in enumerate(panels):
        left = i * (width + 4)
        sheet.paste(Image.fromarray(panel).resize((width, height), Image.NEAREST), (left, top))
        pen.text((left + width / 2, top / 2), label, fill="black", font=font, anchor="mm")
    return sheet


def stacked(sheets):
    """Pictures one above the other."""
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets),
                              sum(sheet.height for sheet in sheets)), "white")
    for i, sheet in enumerate(sheets):
        whole.paste(sheet, (0, sum(above.height for above in sheets[:i])))
    return whole
