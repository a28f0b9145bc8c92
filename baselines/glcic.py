"""GLCIC: a convolutional network fills the hole in one call (Iizuka, Simo-Serra, Ishikawa 2017).

The completion network C sees the image, its hole blanked, and the hole; dilated convolutions let
every pixel of the hole see all that is known. Squared error alone teaches it the mean of all fills
that would do, a blur; so a discriminator D learns to tell fills from photographs by the whole image
(global context) and by the square around the hole (local context), and C learns to deceive it.

    python -m baselines.glcic train --data PATH/TO/celeba                     # Algorithm 1
    python -m baselines.glcic train --data PATH/TO/celeba --loss l2 --out runs/encoder_decoder
    python -m baselines.glcic train --resume --out runs/glcic

`--loss l2` stays in phase one: a plain encoder-decoder. `--gated`: each layer learns where to trust
its input (Yu et al. 2019). In --out, what train.py leaves there: weights.pt is C in half precision.

Simplified, as images have 64 pixels, not 256: no dilation of 16, whose taps would lie outside the
image at a quarter of its size; two strides fewer in D, 128 features for 1,024. Nearest-neighbour
upsampling and a convolution for a deconvolution, against checkerboards. ELU without batch
normalization for ReLU with it (in one small trial, the loss after 300 steps was 0.058, not 0.097),
so that C is the same function in training and after it. Adam for AdaDelta; C's loss -log D, which
does not saturate (Goodfellow et al. 2014), for log(1 - D).

Costs: C has 1.30 M parameters (1.46 M gated), 2.6 MB (2.9) in half precision; D has 1.45 M, for
training alone. On an AMD EPYC with bfloat16 instructions: 44 images/s on one thread in phase one,
64 on two in phase three; 20 ms to fill an image. The shipped weights took 54 minutes each,
gated 100 (weights/README.md).
"""
import argparse
import functools
from pathlib import Path

import support.threads

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import data
import masks
import train
from support import runs
from support.cli import BadInput, check_range, run, say
from support.files import check_finite, lock_folder, read_tensors, reading, rebuild, write_png
from unet import zero

DRAWS, CALLS, ANY_SIZE = False, 1, False
WEIGHTS = Path(__file__).parents[1] / "weights"
T_C, T_D = 0.18, 0.02        # the shares of phases one and two: 90,000 and 10,000 of 500,000 steps
ALPHA = 0.0016               # 4 × the paper's 0.0004: in [-1, 1] squares are 4 × those in [0, 1]
WARMUP = 200                 # steps over which the learning rate rises


# ---- the networks ------------------------------------------------------------------------------

class Convolution(nn.Module):
    """φ(W_f ∗ x), φ = ELU; gated: φ(W_f ∗ x) · σ(W_g ∗ x)         (Yu et al. 2019, section 3.1)."""

    def __init__(self, inputs, outputs, kernel=3, stride=1, dilation=1, gated=False):
        super().__init__()
        shape = inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation
        self.feature = nn.Conv2d(*shape)
        self.gate = zero(nn.Conv2d(*shape)) if gated else None
        nn.init.kaiming_normal_(self.feature.weight)
        if gated:
            self.feature.weight.data.mul_(2)                     # every gate begins at 1/2

    def forward(self, x):
        h = F.elu(self.feature(x))
        return h if self.gate is None else h * self.gate(x).sigmoid()


class Completion(nn.Module):
    """C(image, hole): image [B, 3, H, W] in [-1, 1], hole [B, 1, H, W] -> [B, 3, H, W], the image
    outside the hole (section 3.2, table 1). `width` channels at full size, double at each half."""

    def __init__(self, width=32, gated=False):
        super().__init__()
        half, quarter = 2 * width, 4 * width
        conv = functools.partial(Convolution, gated=gated)
        self.layers = nn.Sequential(
            conv(4, width, kernel=5),
            conv(width, half, stride=2), conv(half, half),
            conv(half, quarter, stride=2),
            *(conv(quarter, quarter, dilation=dilation) for dilation in (1, 1, 2, 4, 8, 1, 1)),
            nn.Upsample(scale_factor=2), conv(quarter, half), conv(half, half),
            nn.Upsample(scale_factor=2), conv(half, width), conv(width, width // 2),
            nn.Conv2d(width // 2, 3, 3, padding=1))

    def forward(self, image, hole):
        blanked = torch.where(hole > 0, 0.0, image)
        painted = self.layers(torch.cat([blanked, hole], dim=1)).float().tanh()
        height, width = image.shape[2:]                          # upsampling may have gone beyond
        return torch.where(hole > 0, painted[..., :height, :width], image)


class Discriminator(nn.Module):
    """D(image, hole): the log-odds [B] that the image [B, 3, size, size] is a photograph; the hole
    only says where the local context is (section 3.3)."""

    def __init__(self, size=64, width=32):
        super().__init__()
        self.global_context = self.context(size, width)
        self.local_context = self.context(size // 2, width)
        self.verdict = nn.Linear(256, 1)

    @staticmethod
    def context(side, width):
        """[B, 3, side, side] -> [B, 128]: halved until 4×4 or less is left."""
        layers, channels, most = [], 3, 4 * width
        while side > 4:
            layers.append(Convolution(channels, width, kernel=5, stride=2))
            side, channels, width = (side + 1) // 2, width, min(2 * width, most)
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side ** 2, 128), nn.ELU())

    def forward(self, image, hole):
        far, near = self.global_context(image), self.local_context(local_patch(image, hole))
        return self.verdict(torch.cat([far, near], dim=1)).float()[:, 0]


def local_patch(image, hole):
    """The square of half the side around the hole's centre of mass, moved into the image where it
    sticks out: [B, C, size, size] -> [B, C, size//2, size//2]."""
    (B, _, size, _), side = image.shape, image.shape[-1] // 2
    middles, within = (torch.arange(n, device=image.device) for n in (size, side))
    places = []
    for others in ((1, 3), (1, 2)):                              # down, then across
        mass = hole.sum(dim=others)                              # [B, size]
        centre = (mass * (middles + 0.5)).sum(dim=1) / mass.sum(dim=1)
        first = (centre - side / 2).round().long().clamp(0, size - side)
        places.append(first[:, None] + within)                   # [B, side]
    b = torch.arange(B, device=image.device)[:, None, None]
    return image[b, :, places[0][:, :, None], places[1][:, None, :]].permute(0, 3, 1, 2)


# ---- Algorithm 1 -------------------------------------------------------------------------------

def phase(step, steps, loss="gan"):
    """1: C alone, by squared error; 2: D alone; 3: both, to the end."""
    if loss == "l2" or step < T_C * steps:
        return 1
    return 2 if step < (T_C + T_D) * steps else 3


def update(state, x, M_c, M_d, phase, alpha=ALPHA, bf16=False):
    """Algorithm 1 on a minibatch x [B, 3, H, W]: a step of D, of C, or of both.

    M_c, M_d  holes, [B, 1, H, W]: those that C fills, and those that D is shown photographs with
    D  maximizes  log D(x, M_d) + log(1 - D(C(x, M_c), M_c))
    C  minimizes  ‖M_c ⊙ (C(x, M_c) - x)‖² - α log D(C(x, M_c), M_c)       (section 3.4)
    Returns {the loss's name: its value}, of those that the phase has.
    """
    cast = torch.autocast(x.device.type, torch.bfloat16, enabled=bf16)
    C, losses = cast(state["C"]), {}
    with torch.set_grad_enabled(phase != 2):
        filled = C(x, M_c)
    if phase > 1:
        D = cast(state["D"])
        real, fake = D(x, M_d), D(filled.detach(), M_c)
        losses["discriminator"] = (F.softplus(-real) + F.softplus(fake)).mean()
        descend(state["optimizer_D"], losses["discriminator"])
    if phase != 2:
        squares = (filled - x).square().mean(dim=(1, 2, 3)) / M_c.mean(dim=(1, 2, 3))
        losses["mse"] = total = squares.mean()   # a small hole weighs as much as a large one
        if phase == 3:
            losses["adversarial"] = F.softplus(-D(filled, M_c)).mean()
            total = total + alpha * losses["adversarial"]
        descend(state["optimizer"], total)
    return {name: loss.detach() for name, loss in losses.items()}


def descend(optimizer, loss):
    optimizer.zero_grad()                                # what C's loss left in D goes, too
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()


def build(args):
    """All that is trained: C and its optimizer; against an adversary, D and its own, too."""
    torch.manual_seed(args.seed)
    layout = {"memory_format": torch.channels_last}      # 1.5 times as fast on a CPU
    C = Completion(args.width, args.gated).to(args.device, **layout)
    state = {"C": C, "optimizer": torch.optim.Adam(C.parameters())}
    if args.loss == "gan":
        D = Discriminator(args.size).to(args.device, **layout)
        state |= {"D": D, "optimizer_D": torch.optim.Adam(D.parameters(), betas=(0.5, 0.999))}
    return state                                         # 0.5: Radford et al. 2016


def learn(args, checkpoint=None):
    """Algorithm 1 from step 0, or from a checkpoint; returns C."""
    images = data.load(args.data, "train", args.size, limit=args.limit, cache=args.cache)
    state, generator = build(args), torch.Generator().manual_seed(args.seed)
    settings = {"width": args.width, "gated": args.gated}
    run = runs.Run(args, len(images), settings, state, "C", generator, checkpoint)
    optimizers = [part for part in state.values() if isinstance(part, torch.optim.Optimizer)]
    if checkpoint and args.steps != checkpoint["args"]["steps"]:
        now = phase(checkpoint["step"], args.steps, args.loss)
        say(f"step {checkpoint['step']:,} of {args.steps:,} is in phase {now}: phases and learning "
            "rates are shares of --steps")

    for step in run.progress:
        now = phase(step, args.steps, args.loss)
        rate = args.lr if now == 1 else args.lr_gan
        train.set_lr(optimizers, [rate, rate], train.lr_factor(step, args.steps, WARMUP))
        x = train.draw_images(images, args.batch, generator, args.device)
        x = x.contiguous(memory_format=torch.channels_last)
        M_c, M_d = (masks.mixture(args.batch, args.size, generator, args.device, all_hole=0.0)
                    for _ in range(2))
        run.record(update(state, x, M_c, M_d, now, args.alpha, args.bf16), "--lr or --lr-gan")
        if run.due:
            run.log()
            draw(args, state["C"], images[:8])
        run.save()
    return state["C"]


# ---- files -------------------------------------------------------------------------------------

@torch.no_grad()
def draw(args, C, images):
    """samples.png: the first training images, given, filled and original, a row each."""
    x = data.to_float(images).to(args.device)
    hole = masks.mixture(len(x), args.size, torch.Generator().manual_seed(0), args.device, 0.0)
    rows = torch.stack([torch.where(hole > 0, 0.0, x), C(x, hole), x])        # [3, N, 3, H, W]
    sheet = rows.permute(2, 0, 3, 1, 4).reshape(1, 3, 3 * args.size, -1)
    write_png(Image.fromarray(data.to_uint8(sheet)[0].cpu().numpy()),
              Path(args.out) / "samples.png", runs.made_with(args))


def read(path):
    """C, from a weights.pt or a checkpoint.pt."""
    missing = ("no such file; copy a weights.pt of python -m baselines.glcic train --data PATH "
               "(encoder_decoder: --loss l2; gated_convolution: --gated) there")
    with reading(path, "weights that baselines/glcic.py wrote", missing):
        content = read_tensors(path)
        C = rebuild(Completion, content["settings"], content["C"])
        check_finite(path, content["C"])
    return C.requires_grad_(False)


def load(path):
    """The method whose weights are in the file `path`, which is read when it is first called."""
    weights = functools.cache(lambda: read(path))

    def inpaint(image, hole, generator=None):
        """image [B, 3, H, W] in [-1, 1], hole [B, 1, H, W] -> the filled image, without chance."""
        return weights().to(image.device)(image, hole)
    return inpaint


inpaint = load(WEIGHTS / "glcic.pt")


def parse(argv=None):
    """As `runs.parse`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("command", choices=["train"], help="18%% of --steps are phase one, 2%% phase two")
    runs.add_flags(parser, out="runs/glcic")
    add("--loss", choices=("gan", "l2"), default="gan", help="l2: no adversary")
    add("--gated", action="store_true", help="gated convolutions")
    add("--width", type=int, help="channels at full size; default 32, gated 24")
    add("--lr", type=float, default=1e-3, help="Adam's learning rate in phase one")
    add("--lr-gan", type=float, default=2e-4, help="and of C and D in phases two and three")
    add("--alpha", type=float, default=ALPHA, help="weight of the adversary in C's loss")
    args, checkpoint = runs.parse(parser, argv)
    if checkpoint and any(getattr(args, name) != checkpoint["args"].get(name)
                          for name in ("loss", "gated", "width", "size")):
        raise BadInput("--resume with other networks than the checkpoint's: leave --loss, --gated, "
                       "--width and --size as they were")
    args.width = (24 if args.gated else 32) if args.width is None else args.width
    check_range(args, 1, 10 ** 9, "steps", "every")
    check_range(args, 1, 10 ** 6, "batch")
    check_range(args, 2, 10 ** 4, "width")
    check_range(args, 16, 10 ** 4, "size")
    check_range(args, 0, 100, "lr_gan", "alpha")
    return args, checkpoint


def main():
    args, checkpoint = parse()
    if runs.finished(args, checkpoint):
        return
    with lock_folder(args.out):
        learn(args, checkpoint)


if __name__ == "__main__":
    run(main, memory="--batch, --size or --width")
