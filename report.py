"""The report of an evaluation: tables, scores.csv, results.json and a picture."""
import contextlib
import csv
import json
import math
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import scores
from support.files import atomic_write, provenance, write_png

COLUMNS = {"psnr_hole": ("PSNR hole", 2), "psnr_hole_mean": ("mean of K", 2),
           "psnr_hole_best": ("best of K", 2), "psnr": ("PSNR", 2), "ssim": ("SSIM", 3),
           "l1": ("L1", 1), "lpips": ("LPIPS", 3), "crps": ("CRPS", 1), "spread": ("spread", 1)}
FILES = ("table.md", "scores.csv", "holes.npz", "preview.png")       # beside results.json


def scored(values):
    """The names of all the scores of single images, the CRPS of every ruler's features included."""
    return [*scores.SCORES, *(key for key in values if key.startswith("crps_"))]


def of_images(values):
    """The names of all that is known of single images: scores, and what spread/skill is made of."""
    return [*scored(values), "variance", "error"]


def means(values):
    """Of some images' scores: every mean with its interval, spread/skill, calls and seconds."""
    samples = values["samples"][0] if len(set(values["samples"])) == 1 else math.nan
    return {"samples": samples, "calls": values["calls"][0],
            "seconds": np.median(values["seconds"]), "scoring": np.median(values["scoring"]),
            "spread_skill": scores.spread_skill(values["variance"], values["error"], samples),
            **{key: scores.interval(values[key]) for key in scored(values)}}


def by_area(args, found):
    """`means` by the hole's area in tenths, (0, 0.1], (0.1, 0.2], …, whatever its family: the bins
    of Liu et al. 2018, which end at 0.6, and beyond. Scores of an image under several such holes
    are averaged first, as they are not independent; n is the number of images."""
    results = []
    for name in args.methods:
        several = [found[mask, name] for mask in args.masks]
        values = {key: np.concatenate([v[key] for v in several]) for key in several[0]}
        known = of_images(values)
        tenth = (np.ceil((values["area"] * 10).round(5)) - 1).clip(0).astype(int)
        image = np.tile(np.arange(len(tenth) // len(several)), len(several))
        for i in np.unique(tenth):
            _, image_of, holes = np.unique(image[tenth == i], return_inverse=True,
                                           return_counts=True)
            chosen = {key: np.bincount(image_of, value[tenth == i]) / holes
                      if key in known else value for key, value in values.items()}
            results.append({"mask": f"{10 * i}–{10 * (i + 1)} %", "method": name,
                            "n": len(holes), **means(chosen)})
    return sorted(results, key=lambda result: int(result["mask"].split("–")[0]))


def table(results, rulers=(), suffix=""):
    """Markdown: a line a mask and method, every mean ± the longer side of its interval, so that
    the 95 % are within; both ends are in results.json."""
    columns = COLUMNS | {f"crps_{ruler}": (f"CRPS({ruler})", 4) for ruler in rulers}
    heads = ["mask", "method", "n", *(head for head, _ in columns.values())]
    others = {"spread_skill": ("spread/skill", 1, 2)}
    for ruler in rulers:
        fd, kd = ("FID", "KID") if ruler == "inception" else (f"FD({ruler})", f"KD({ruler})")
        others |= {f"fd_{ruler}": (fd, 1, 2), f"kd_{ruler}": (f"{kd} × 1000", 1000, 2)}
    others |= {"calls": ("calls", 1, 0), "seconds": ("s/sample", 1, 3)}
    others = {} if suffix else others
    heads += [head for head, _, _ in others.values()]

    def cell(value, digits, factor=1):
        value = value if isinstance(value, tuple) else (value, math.nan, math.nan)
        mean, low, high = (factor * number for number in value)
        side = max(high - mean, mean - low)
        told = "" if math.isnan(side) else f" ± {side:.{digits}f}"
        return "–" if math.isnan(mean) else f"{mean:.{digits}f}{told}"

    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for r in results:
        cells = [cell(r.get(key + suffix, math.nan), digits)
                 for key, (_, digits) in columns.items()]
        cells += [cell(r.get(key, math.nan), digits, factor)
                  for key, (_, factor, digits) in others.items()]
        names = [r[key].replace("|", "\\|") for key in ("mask", "method")]
        lines.append("| " + " | ".join([*names, str(r["n"]), *cells]) + " |")
    return "\n".join(lines)


def text(args, images, found, results, versions):
    """All tables as one text that says what was scored."""
    scoring = max(np.median(values["scoring"]) for values in found.values())
    drawn = sorted({int(r["samples"]) for r in results if r.get("samples", 1) > 1})
    samples = f"K = {', '.join(map(str, drawn)) or 1} samples"
    real, rulers = next((r for r in results if "n_real" in r), None), ()
    lines = [f"{len(images)} images of the {args.split} split, {args.size}×{args.size} (crop "
             f"{args.crop}), the same holes for all, seed {args.seed}; {samples} of a method that "
             "draws. Scores of the composite, known pixels exact, in 8 bits; means over images ± "
             "the longer side of a 95 % interval (bootstrap-t); L1, CRPS and spread in the hole, "
             "of 255."]
    if args.sharpen:
        lines[0] += f" The network's fills are sharpened by {Path(args.sharpen).name}."
    if real:
        what, apart = ("training images", "") if args.reference == "train" else (
            "scored images themselves, KD without the pairs of a fill and its own image",
            ", which share no pixels with them, so that FD of fills may be lower")
        lines[0] += (f" Distances of the first samples are to the {real['n_real']} {what}; the row "
                     f"real is theirs to other real images{apart}. CRPS(…) is the mean over a "
                     "network's features.")
        rulers = [key.removeprefix("fd_") for key in real if key.startswith("fd_")]
    lines += ["", table(results, rulers)]
    if len(args.methods) > 1:
        lines += ["", f"Paired differences to {args.methods[0]}, image by image:", "",
                  table([r for r in results if r["method"] not in (args.methods[0], "real")],
                        rulers, suffix="_minus_first")]
    if args.by_area:
        lines += ["", "By the hole's area:", "", table(by_area(args, found))]
    hardware = ", ".join(f"{key} {value}" for key, value in versions.items())
    lines += ["", f"Beside the filling, scoring took {1e3 * scoring:.1f} ms an image and method, "
                  f"{1 / scoring:.0f} a second in a process. {hardware}"]
    return "\n".join(lines)


def write(args, images, holes, found, results, tables, versions):
    out, made_by = Path(args.out), provenance(args.weights, args.seed, args.sharpen)
    with (atomic_write(out / "scores.csv") as half,
          open(half, "w", newline="", encoding="utf-8") as file):
        writer = csv.writer(file)
        keys = [*of_images(next(iter(found.values()))), "area"]
        writer.writerow(["image", "mask", "method", *keys])
        for (mask, name), values in found.items():
            rows = zip(*(values[key] for key in keys), strict=True)
            writer.writerows([i, mask, name, *row] for i, row in enumerate(rows))
    with atomic_write(out / "results.json") as half:
        content = {"settings": vars(args), "provenance": made_by, "versions": versions,
                   "results": results,
                   "by_area": by_area(args, found) if args.by_area else []}
        half.write_text(json.dumps(finite(content), indent=1, allow_nan=False, default=str))
    with (atomic_write(out / "holes.npz") as half,
          zipfile.ZipFile(half, "w", zipfile.ZIP_DEFLATED) as archive):
        for mask, hole in holes.items():             # np.savez takes no array of the name "file"
            with archive.open(f"{mask}.npy", "w") as file:
                np.lib.format.write_array(file, hole.byte().numpy())
    write_png(preview(images, holes, found), out / "preview.png", made_by)
    with atomic_write(out / "table.md") as half:
        half.write_text(tables + "\n", encoding="utf-8")
    for part in (out / "parts").glob("*.npz"):                   # before the settings: a removal
        part.unlink()                                            # that is cut off can be resumed
    (out / "parts" / "settings.json").unlink()
    with contextlib.suppress(OSError):                           # which holds others' files
        (out / "parts").rmdir()


def finite(content):
    """The same for JSON, which knows no NaN: null is what was not measured (a score without its
    network, the interval of fewer than eight images, spread and CRPS of one sample)."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    if isinstance(content, (float, np.floating)):
        return float(content) if math.isfinite(content) else None
    return int(content) if isinstance(content, np.integer) else content


def preview(images, holes, found):
    """The first 8 images: of every mask what was given, and a row a method."""
    rows = []
    for mask, hole in holes.items():
        given = torch.where(hole[:8].permute(0, 2, 3, 1) > 0, 128, images[:8]).byte().numpy()
        rows.append((mask, given))
        rows += [(f"  {name}", values["preview"]) for (other, name), values in found.items()
                 if other == mask]
    rows.append(("original", images[:8].numpy()))
    side, margin = images.shape[1], 120
    sheet = Image.new("RGB", (margin + side * len(images[:8]), side * len(rows)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for i, (label, row) in enumerate(rows):
        sheet.paste(Image.fromarray(np.concatenate(row, axis=1)), (margin, i * side))
        pen.text((4, (i + 0.5) * side), label[:18], fill="black", font=font, anchor="lm")
    return sheet
