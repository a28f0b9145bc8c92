"""Algorithm 1: train the network that inpaints.

    python train.py --data PATH/TO/celeba            # the CelebA folder, or zips of it
    python train.py --data synthetic --steps 500     # no data at hand
    python train.py --resume --out runs/celeba64     # go on after Ctrl-C, a kill, a power cut
    python train.py --data MY/FACES --init weights/celeba64.pt --out runs/mine    # fine-tune
    torchrun --nproc_per_node 4 train.py --data …    # the same run, its batches shared out

Every --every steps, --out gets a line in `log.jsonl` and new `samples.png`; then, if --save-every
seconds have passed since the last, `checkpoint.pt` (all that --resume needs) and `weights.pt` (the
moving average alone, in half precision: what inpaint.py loads). The log's `held_out` is the loss on
images of the validation split, with t uniform: compare it with itself only. If it goes on rising
while `loss` falls, the network is memorising the training images.
The command for a sharpener is in sharpen.py.
"""
import argparse
import contextlib
import copy
from functools import partial
from pathlib import Path

import support.threads

import torch
from PIL import Image

import data
import masks
import sharpen
from ddpm import DDPM, PREDICTIONS, randn_like
from muon import Muon, split
from schedules import SCHEDULES
from support import distributed, graphs, runs
from support.cli import BadInput, check_range, run, say
from support.files import LARGEST_SIDE, lock_folder, write_png
from unet import UNet

HELD_OUT = 8      # images at a time: the numbers drawn for a batch depend on its length


def train(args, checkpoint=None):
    """Train from step 0, or from a checkpoint; returns the moving average of the network."""
    device = distributed.own_device(args.device)
    with distributed.first():                                   # it decodes for all
        images = data.load(args.data, "train", args.size, args.crop, args.limit, args.cache)
        validation = load_validation(args) if distributed.RANK == 0 else None
    images = resident(images, device)
    ddpm = DDPM(SCHEDULES[args.schedule](args.T).to(device), args.prediction,
                clip=not args.coarse)
    state = build(args, device)
    net, ema, *optimizers = state.values()
    generator = torch.Generator().manual_seed(args.seed)        # of batches, holes, t and noise
    run = runs.Run(args, len(images), settings(args), state, "ema", generator, checkpoint)
    if args.compile:
        net.compile()
    eps_model = distributed.parallel(net)
    replay = graphs.on_one_gpu(optimizers, device) if args.compile else None

    for step in run.progress:                                   # Algorithm 1, line 1: repeat
        set_lr(optimizers, (args.lr, args.lr_adamw), lr_factor(step, args.steps, args.warmup))
        x0 = draw_images(images, args.batch, generator, device)               # 2: x_0 ~ q(x_0)
        hole = draw_holes(args.batch, args.size, generator, device)
        x0, coarse = (sharpen.draw_detail(x0, hole, args.coarse, generator) if args.coarse
                      else (x0, None))
        loss = algorithm_1(ddpm, eps_model, optimizers, x0, hole, generator, args.bf16,  # 3 … 5
                           coarse, replay)
        update_ema(ema, net, min(args.ema, (1 + step) / (10 + step)))   # at first a short average

        run.record({"loss": loss})
        if run.due and run.first:
            run.log(held_out=held_out_loss(args, ddpm, ema, validation))
            draw_samples(args, ddpm, ema, images)
        run.save()
    return ema


def algorithm_1(ddpm, eps_model, optimizers, x0, hole, generator=None, bf16=False, coarse=None,
                replay=None):
    """Algorithm 1 of Ho et al. 2020, lines 3 to 5, on a batch x0 [B, 3, H, W]; returns the loss.

    hole [B, 1, H, W]: noise is added, and the loss taken, only there. Under torchrun, x0 and hole
    are this process's share of the batch; t and ε are drawn for all of it, and shared out alike.
    ε is drawn on x0's device, seeded by the CPU's generator. A sharpener's x0 is the detail; it is
    given coarse [B, 3, H, W]. A `replay`, of support/graphs.py, makes line 5 one CUDA graph.
    """
    batch, device = len(x0) * distributed.WORLD_SIZE, x0.device
    t = ddpm.draw_t(batch, generator)                        # 3: t, uniform for the cosine schedule
    own = torch.Generator(device).manual_seed(int(torch.randint(2 ** 62, (), generator=generator)))
    noise = torch.randn(batch, *x0.shape[1:], generator=own, device=device)     # 4: ε ~ N(0, I)
    t, noise = distributed.share(t).to(device, non_blocking=True), distributed.share(noise)
    drawn = (x0, hole, t, noise) if coarse is None else (x0, hole, t, noise, coarse)
    line_5 = partial(descend, ddpm, eps_model, optimizers, bf16)
    return replay(line_5, *drawn) if replay else line_5(*drawn)


def descend(ddpm, eps_model, optimizers, bf16, x0, hole, t, noise, coarse=None):
    """Algorithm 1, line 5: a step down ∇_θ ‖ε - ε_θ‖²; returns the loss."""
    with torch.autocast(x0.device.type, torch.bfloat16, enabled=bf16):
        loss = ddpm.loss(given(eps_model, coarse), x0, hole, t, noise)
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(eps_model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return loss.detach()


def given(eps_model, coarse=None):
    """The network as eps_model(x, t, hole): a sharpener with `coarse` bound to it."""
    return eps_model if coarse is None else partial(eps_model, coarse=coarse)


def build(args, device):
    """All that is trained: the network, its moving average, and the network's two optimizers, Muon
    for convolutions and matrices of over 4,096 numbers, AdamW for the rest."""
    torch.manual_seed(args.seed)
    try:
        net = UNet(args.size, args.patch, args.widths, args.blocks,
                   coarse_size=args.coarse).to(device)
    except ValueError as error:
        raise BadInput(f"{error}: choose another --size, --patch or --widths") from None
    if args.init and not args.resume:                           # else a checkpoint has it all
        runs.initialize(net, args.init)
    if device.type == "cuda":                                   # no gain on CPUs
        net = net.to(memory_format=torch.channels_last)
    matrices, others = split(net)
    return {"net": net, "ema": copy.deepcopy(net).requires_grad_(False),
            "muon": Muon([{"params": matrices}], bf16=args.bf16),      # a tiny network has none
            "adamw": torch.optim.AdamW(others, fused=True)}


def settings(args):
    """What `runs.load_weights` rebuilds the network and the process from."""
    return {"unet": {"size": args.size, "patch": args.patch, "widths": args.widths,
                     "blocks": args.blocks, "coarse_size": args.coarse},
            "schedule": args.schedule, "T": args.T, "prediction": args.prediction}


def resident(images, device):
    """The images, moved to the GPU if they fill at most half of its free memory."""
    fit = device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(device)[0] / 2
    return images.to(device) if fit else images


def draw_images(images, batch, generator, device="cpu"):
    """This process's share of a random batch, each image mirrored or not: float [·, 3, H, W]. The
    generator is the CPU's, and no draw waits for the device."""
    chosen = distributed.share(torch.randint(len(images), (batch,), generator=generator))
    mirrored = distributed.share(torch.rand(batch, 1, 1, 1, generator=generator) < 0.5)
    chosen, mirrored = (v.to(where, non_blocking=True)
                        for v, where in ((chosen, images.device), (mirrored, device)))
    x0 = data.to_float(images[chosen].to(device, non_blocking=True))
    return torch.where(mirrored, x0.flip(3), x0)


def draw_holes(batch, size, generator, device="cpu"):
    """This process's share of a batch of holes, [·, 1, size, size]; only their numbers are drawn
    for the whole batch."""
    numbers = distributed.share(masks.uniform(batch, masks.NUMBERS, generator))
    return masks.mixture(len(numbers), size, numbers, device)


def lr_factor(step, steps, warmup):
    """The learning rate's factor: up over the warm-up, flat, then to 0 over the last 30 %."""
    return min(1, (step + 1) / warmup, (steps - step) / (0.3 * steps))


def set_lr(optimizers, rates, factor):
    for optimizer, rate in zip(optimizers, rates):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor


@torch.no_grad()
def update_ema(ema, net, decay):
    """Exponential moving average of the weights: ema ← decay · ema + (1 - decay) · net."""
    torch._foreach_lerp_([*ema.parameters()], [*net.parameters()], 1 - decay)


def load_validation(args):
    """128 images of the validation split; None, and a line that says so, if there are none."""
    try:
        return data.load(args.data, "val", args.size, args.crop, 128, args.cache)
    except BadInput as error:
        say(f"the log will show no held-out loss: {error}")


@torch.no_grad()
def held_out_loss(args, ddpm, ema, images):
    """The moving average's loss on `images`, always with the same t (uniform), holes and noise,
    whatever the batch, so that the losses of two steps or runs compare; None without images."""
    if images is None:
        return None
    device = next(ema.parameters()).device
    generator, losses = torch.Generator().manual_seed(0), []
    for block in images.split(HELD_OUT):
        x0 = data.to_float(block.to(device))
        hole = masks.mixture(len(x0), args.size, generator, device)
        t = torch.randint(ddpm.T, (len(x0),), generator=generator).to(device)
        noise = randn_like(x0, generator)
        x0, coarse = sharpen.detail(x0, args.coarse) if args.coarse else (x0, None)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            losses.append(ddpm.loss(given(ema, coarse), x0, hole, t, noise) * len(x0))
    return torch.stack(losses).sum().item() / len(images)


def draw_samples(args, ddpm, ema, images):
    """samples.png, by the moving average, always from the same noise: 16 unconditional samples; for
    a sharpener, 16 training images, reduced and sharpened."""
    device, size = next(ema.parameters()).device, args.size
    hole, blank = masks.full(16, size, device=device), torch.zeros(16, 3, size, size, device=device)
    coarse = None
    if args.coarse:
        x0 = data.to_float(images[torch.arange(16) % len(images)].to(device))
        _, coarse = sharpen.detail(x0, args.coarse)
    x = ddpm.sample(given(ema, coarse), blank, hole, min(20, ddpm.T), 0.0,
                    torch.Generator().manual_seed(0))
    x = sharpen.restored(x, coarse) if args.coarse else x
    rows = data.to_uint8(x).reshape(2, 8, size, size, 3).transpose(1, 2)
    grid = Image.fromarray(rows.reshape(2 * size, 8 * size, 3).cpu().numpy())
    write_png(grid, Path(args.out) / "samples.png", runs.made_with(args))


def parse(argv=None):
    """As `runs.parse`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    runs.add_flags(parser, out="runs/celeba64")
    add = parser.add_argument
    add("--init", metavar="FILE", help="start from these weights wherever names and shapes agree")
    add("--lr", type=float, default=0.005, help="Muon's learning rate, after the warm-up")
    add("--lr-adamw", type=float, default=4e-4, help="AdamW's, for biases, norms, small matrices")
    add("--warmup", type=int, default=200, help="steps over which the learning rates rise")
    add("--ema", type=float, default=0.999, help="decay of the moving average a step, at most; it "
        "begins lower")
    add("--schedule", choices=SCHEDULES, default="rescaled", help="noise schedule")
    add("--T", type=int, default=300, help="levels of noise")
    add("--prediction", choices=PREDICTIONS, default="v", help="what the network predicts")
    add("--patch", type=int, default=2, help="pixels are gathered in squares of this side")
    add("--widths", type=int, nargs="+", default=[64, 128, 224], help="channels per resolution")
    add("--blocks", type=int, default=2, help="residual blocks per resolution")
    add("--coarse", type=int, metavar="SIZE", help="train a sharpener (sharpen.py), which enlarges "
        "images of this size to --size")
    add("--crop", choices=data.CROPS, default="centre140", help="window of a 178×218 photograph; "
        "inpaint.py assumes the default")
    add("--compile", action=argparse.BooleanOptionalAction,
        help="compile the network, which takes a minute and a C++ compiler, and on one GPU record "
        "the step as a CUDA graph; default: on GPUs")
    args, checkpoint = runs.parse(parser, argv)
    runs.resolve_compile(args)
    check_range(args, 1, 10 ** 9, "steps", "warmup", "every")
    check_range(args, 1, 10 ** 6, "batch", "T")
    check_range(args, 8, LARGEST_SIDE, "size")           # smaller, a free-form hole may be empty
    check_range(args, 1, 10 ** 4, "patch", "widths", "blocks")
    check_range(args, 0, 0.999999, "ema")
    check_range(args, 0, 100, "lr_adamw")
    check_range(args, 1, args.size - 1, "coarse")
    if args.batch % distributed.WORLD_SIZE:
        raise BadInput(f"--batch {args.batch} cannot be shared out evenly over "
                       f"{distributed.WORLD_SIZE} processes")
    return args, checkpoint


def main():
    with distributed.joined():
        with distributed.first():
            args, checkpoint = parse()
        if runs.finished(args, checkpoint):
            return
        with lock_folder(args.out) if distributed.RANK == 0 else contextlib.nullcontext():
            train(args, checkpoint)


if __name__ == "__main__":
    run(main, memory="--batch, --size or --widths")
