"""From 64×64 to 128×128: a second network sharpens what the first one filled.

               64×64                                128×128
    image ─ reduced ─ first network ─ fill ─ enlarged: coarse ─┐
      └─────────────────────────────────────────────────── sharpener ─ fill: coarse + 0.07 detail

A cascade (Ho et al. 2022, "Cascaded Diffusion Models for High Fidelity Image Generation"), whose
second network is a super-resolution model: the first decides what is in the hole, and the sharpener
adds the fine detail. Given the coarse fill at every call, it draws only what is missing, divided by
its typical deviation,

    detail = (x_0 - coarse) / 0.07,

with the loss and the sampler of any image (ddpm.py), known pixels kept. Few calls are enough, as
the coarse fill has decided most. To train one (weights/README.md has the shipped one's rates):

    python train.py --data PATH/TO/celeba --size 128 --coarse 64 --widths 32 64 128 --blocks 1 \
        --out runs/celeba128
"""
from collections import namedtuple
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

import masks
from support import distributed, foreign, runs
from support.cli import BadInput

Sharpener = namedtuple("Sharpener", "ddpm eps_model size path")
CALLS = 5
DETAIL = 0.07        # about the detail's deviation in faces; fixed once a sharpener is trained
STRONGEST = 0.1      # the most noise (standard deviation) that training adds to reduced images
HELP = "weights of a sharpener (train.py --coarse) for the network's fills, or none"


def reduced(x, size):
    """Each pixel is the mean of those that it covers: [B, C, H, W] -> [B, C, size, size]."""
    return F.interpolate(x, (size, size), mode="area")


def enlarged(x, size):
    """Bilinear: [B, C, h, w] -> [B, C, size, size]."""
    return F.interpolate(x, (size, size), mode="bilinear")


def detail(x0, size, noise=0.0):
    """(detail, coarse), each like x0 [B, 3, H, W]: coarse, a sharpener's input, is x0 reduced to
    `size`, plus noise, enlarged; detail is what the sharpener has to draw."""
    coarse = enlarged(reduced(x0, size) + noise, x0.shape[3])
    return (x0 - coarse) / DETAIL, coarse


def restored(detail, coarse):
    """The image that `detail` and `coarse` are of."""
    return coarse + DETAIL * detail


def draw_detail(x0, hole, size, generator=None):
    """`detail` for training, with noise of random strength in the hole. It stands for the errors in
    a first network's fills, so that the sharpener learns not to trust them ("conditioning
    augmentation": Ho et al. 2022, section 3). Under torchrun, x0 and hole are this process's share;
    the noise is drawn for the whole batch."""
    batch = len(x0) * distributed.WORLD_SIZE
    strength = STRONGEST * masks.uniform(batch, 1, generator).reshape(-1, 1, 1, 1)
    noise = strength * torch.randn(batch, x0.shape[1], size, size, generator=generator)
    noise = distributed.share(noise).to(x0.device, non_blocking=True)
    return detail(x0, size, noise * (reduced(hole, size) > 0))


def find(path, weights, size, device="cpu"):
    """The Sharpener that --sharpen names, for fills of `size` by `weights`; None for "none". The
    default, path None, means ours for our weights, none for others."""
    if path == "none" or path is None and Path(weights).resolve() != runs.WEIGHTS.resolve():
        return None
    path = runs.SHARPENER if path is None else foreign.of_run(path)
    ddpm, eps_model, larger = runs.load_sharpener(path, device)
    small = eps_model.coarse_size
    if small != size:
        raise BadInput(f"--sharpen {path} sharpens images of {small}×{small} pixels, and the "
                       f"--weights are for {size}×{size}: name another, or none")
    return Sharpener(ddpm, eps_model, larger, path)


def coarse_fill(inpaint, size, image, hole, generator=None):
    """The image reduced to `size`, filled by inpaint(image, hole, generator), enlarged. A reduced
    pixel is known if all that it covers are."""
    small_hole = (reduced(hole, size) > 0).to(hole.dtype)
    small = torch.where(small_hole > 0, 0, reduced(image, size))
    return enlarged(inpaint(small, small_hole, generator), image.shape[3])


def cascade(first, sharpener, eta=1.0, bf16=False, callback=None):
    """inpaint(image, hole, generator) at the sharpener's size: `first`, at the coarse size, then
    the sharpener, with eta and callback as in `DDPM.sample`."""
    ddpm, eps_model = sharpener[:2]

    def inpaint(image, hole, generator):
        coarse = coarse_fill(first, eps_model.coarse_size, image, hole, generator)

        def as_images(t, x, x0):
            callback(t, restored(x, coarse), restored(x0, coarse))
        with torch.autocast(image.device.type, torch.bfloat16, enabled=bf16):
            drawn = ddpm.sample(partial(eps_model, coarse=coarse), (image - coarse) / DETAIL, hole,
                                calls(sharpener), eta, generator, as_images if callback else None)
        return torch.where(hole > 0, restored(drawn, coarse).clamp(-1, 1), image)
    return inpaint


def calls(sharpener):
    """Its calls a fill: CALLS, or fewer if its chain is shorter."""
    return min(CALLS, sharpener.ddpm.T)
