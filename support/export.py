"""Our weights as safetensors, with a model card, in a folder that a model hub takes as it is:

    python -m support.export OUT
    python -m support.export OUT --weights runs/mine/weights.pt --title "My faces"

OUT/model.safetensors holds the tensors, OUT/config.json the settings that rebuild the network, and
OUT/README.md the card. `--weights OUT` reads them back, bit for bit, in every command; what belongs
to the original file alone, its sharpener and its readout of faces, is `--sharpen FILE` and
`python faces.py --weights OUT`.
"""
import argparse
import json
from pathlib import Path

import support.threads

import torch

from support.cli import BadInput, check_empty, run
from support.files import atomic_write, lock_folder
from support.foreign import local, needed, read_json, read_ours
from support.runs import WEIGHTS, from_checkpoint, read_checkpoint

FILES = "model.safetensors", "config.json", "README.md"
CARD = """---
license: other
license_name: non-commercial-research
tags:
- image-inpainting
- ddpm
pipeline_tag: image-to-image
---

# {title}

A network that {does} images of {size}×{size} pixels by denoising diffusion (Ho et al. 2020), with
the known pixels kept: {millions:.1f} M parameters, {kind}, T = {T} levels of noise,
schedule {schedule}, predicts {prediction}.

**For non-commercial research only**, as is CelebA (Liu et al. 2015), on which the weights are
trained that come with the code; whoever trains others states the terms of their own images here.

    python inpaint.py photo.jpg --mask mask.png {flag} FOLDER/OF/THIS/FILE

Loaded by the repository that wrote it ({version}step {step}); not a diffusers pipeline.
"""


def export(out, weights, title):
    """Write the folder, and read it back: BadInput if a single bit is another."""
    checkpoint = read_checkpoint(weights)
    if "ema" not in checkpoint:
        raise BadInput(f"{weights}: only weights of train.py's are exported")
    from_checkpoint(weights, checkpoint)                         # refuses what is damaged
    out, tensors = Path(out), {name: t.contiguous() for name, t in checkpoint["ema"].items()}
    settings, made = checkpoint["settings"], checkpoint.get("made with", {})
    sharpens = settings["unet"].get("coarse_size")
    needed("safetensors")
    from safetensors.torch import save_file

    config = {"settings": settings, "step": checkpoint.get("step"), "made with": made}
    text = CARD.format(
        title=title, size=settings["unet"]["size"], kind=str(tensors["stem.weight"].dtype)[6:],
        millions=sum(t.numel() for t in tensors.values()) / 1e6,
        version=f"commit {made['version']}, " if made.get("version") else "",
        flag="--sharpen" if sharpens else "--weights",
        does="sharpens fills of holes in" if sharpens else "fills holes in",
        step=checkpoint.get("step"), T=settings["T"], schedule=settings["schedule"],
        prediction=settings["prediction"])
    if "settings" not in read_json(out / "config.json"):
        taken = [name for name in FILES if (out / name).exists()]
        if taken:
            raise BadInput(f"{out} has a {taken[0]} that is not of an export, which would be "
                           "overwritten: name another folder")
    with lock_folder(out):
        with atomic_write(out / "model.safetensors") as half:
            save_file(tensors, half)
        for name, content in (("config.json", json.dumps(config, indent=1)), ("README.md", text)):
            with atomic_write(out / name) as half:
                half.write_text(content, encoding="utf-8")
    again = read_ours(out)
    if again["settings"] != settings or again["ema"].keys() != tensors.keys() or not all(
            torch.equal(again["ema"][name].view(torch.uint8), tensor.view(torch.uint8))
            for name, tensor in tensors.items()):
        raise BadInput(f"{out}: what was written does not read back; is the disk sound?")


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--weights", default=WEIGHTS, help="of train.py's")
    parser.add_argument("--title", default="Inpainting by denoising diffusion", help="of the card")
    args = parser.parse_args()
    check_empty(args)
    export(args.out, local(args.weights), args.title)
    print(f"{args.out}/: {', '.join(FILES)}; read back bit for bit")


if __name__ == "__main__":
    run(main, memory="what else uses memory")
