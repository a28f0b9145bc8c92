"""Algorithm 1: train the network that inpaints.

    python train.py --data PATH/TO/celeba          # the CelebA folder, or zips of it
    python train.py --data synthetic --steps 500   # no data at hand

Every --every steps, under --out: `checkpoint.pt` (all that --resume needs), `weights.pt` (the
moving average alone in half precision: what inpaint.py loads), `log.jsonl`, `samples.png`.
"""
import argparse
import copy
import json
import os
import time
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

import data
import masks
from ddpm import DDPM
from errors import BadInput, run
from schedules import SCHEDULES
from unet import UNet

NO_DATA = ("no training images: give --data one of (1) a folder with CelebA's img_align_celeba/, "
           "(2) img_align_celeba.zip or several zips of images, (3) synthetic, faces drawn on the "
           "spot, no download")


def train(args):
    device = torch.device(args.device)
    images = data.load(args.data, "train", args.size, args.crop, args.limit, args.cache)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)          # of batches, holes, t and noise
    ddpm = DDPM(SCHEDULES[args.schedule](args.T), args.prediction)
    net = UNet(args.size, args.patch, args.widths, args.blocks).to(device)
    ema = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr, weight_decay=0.01)
    state = {"net": net, "ema": ema, "optimizer": optimizer}
    start = restore(args, state, generator) if args.resume else 0

    begun, losses = time.time(), []
    progress = tqdm(range(start, args.steps), "training", args.steps, initial=start, unit=" steps")
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * ramp(step, args.steps, args.warmup)

        chosen = torch.randint(len(images), (args.batch,), generator=generator)
        x0 = flip(data.to_float(images[chosen]), generator).to(device)
        hole = masks.mixture(args.batch, args.size, generator, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            loss = ddpm.loss(net, x0, hole, generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        average(ema, net, min(args.ema, (1 + step) / (10 + step)))

        losses.append(loss.detach())
        if (step + 1) % args.every == 0 or step + 1 == args.steps:
            mean = torch.stack(losses).mean().item()
            rate = args.batch * (step + 1 - start) / (time.time() - begun)
            losses.clear()
            progress.set_postfix_str(f"loss {mean:.4f}, {rate:.0f} images/s")
            save(args, state, generator, step + 1, mean, rate)
            draw(args, ddpm, ema, device)


def ramp(step, steps, warmup):
    """The learning rate's factor: up over the warm-up, flat, down to 0 over the last 30 % of steps."""
    return min(1, (step + 1) / warmup, (steps - step) / (0.3 * steps))


def flip(images, generator):
    """Each image mirrored or not, at even odds."""
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, images.flip(3), images)


@torch.no_grad()
def average(ema, net, decay):
    """Exponential moving average of the weights: ema ← decay · ema + (1 - decay) · net."""
    for mean, parameter in zip(ema.parameters(), net.parameters()):
        mean.lerp_(parameter, 1 - decay)


def settings(args):
    """What rebuilds the network and the process: stored in every checkpoint."""
    return {"unet": {"size": args.size, "patch": args.patch, "widths": args.widths,
                     "blocks": args.blocks},
            "schedule": args.schedule, "T": args.T, "prediction": args.prediction}


def save(args, state, generator, step, loss, rate):
    """The log line first, then the checkpoint: what a resumed run does not know it writes again."""
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    line = {"step": step, "images": step * args.batch, "loss": round(loss, 5),
            "images_per_s": round(rate, 1)}
    with open(out / "log.jsonl", "a") as log:
        log.write(json.dumps(line) + "\n")
    shared = {"settings": settings(args), "step": step, "args": vars(args)}
    write(out / "checkpoint.pt", {**shared, "rng": torch.get_rng_state(),
                                  "generator": generator.get_state(),
                                  **{name: part.state_dict() for name, part in state.items()}})
    half = {name: value.half() for name, value in state["ema"].state_dict().items()}
    write(out / "weights.pt", {**shared, "ema": half})


def write(path, checkpoint):
    """All or nothing: under another name first, then renamed."""
    half = path.with_suffix(".tmp")
    torch.save(checkpoint, half)
    os.replace(half, path)


def restore(args, state, generator):
    path = Path(args.out) / "checkpoint.pt"
    checkpoint = torch.load(path, map_location=args.device, weights_only=True)
    for name, part in state.items():
        part.load_state_dict(checkpoint[name])
    torch.set_rng_state(checkpoint["rng"].cpu())
    generator.set_state(checkpoint["generator"].cpu())
    return checkpoint["step"]


def draw(args, ddpm, ema, device):
    """A grid of 16 unconditional samples by the moving average, always from the same noise."""
    hole = masks.full(16, args.size, device=device)
    blank = torch.zeros(16, 3, args.size, args.size, device=device)
    x = ddpm.sample(ema, blank, hole, min(20, ddpm.T), 0.0, torch.Generator().manual_seed(0))
    rows = data.to_uint8(x).reshape(2, 8, args.size, args.size, 3).transpose(1, 2)
    Image.fromarray(rows.reshape(2 * args.size, 8 * args.size, 3).cpu().numpy()).save(
        Path(args.out) / "samples.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", nargs="+", metavar="PATH", help="folders or zips of images, or synthetic")
    add("--out", default="runs/celeba64", help="folder for checkpoint, weights, log and samples")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add("--steps", type=int, default=20_000, help="optimizer steps in all")
    add("--batch", type=int, default=64, help="images a step")
    add("--lr", type=float, default=4e-4, help="AdamW's learning rate, after the warm-up")
    add("--warmup", type=int, default=200, help="steps over which the learning rate rises")
    add("--ema", type=float, default=0.999, help="decay of the moving average, a step")
    add("--every", type=int, default=500, help="steps between log lines and checkpoints")
    add("--schedule", choices=SCHEDULES, default="cosine", help="noise schedule")
    add("--T", type=int, default=300, help="levels of noise")
    add("--prediction", choices=("v", "eps"), default="v", help="what the network predicts")
    add("--size", type=int, default=64, help="side of the images, pixels")
    add("--patch", type=int, default=2, help="pixels are gathered in squares of this side")
    add("--widths", type=int, nargs="+", default=[64, 128, 224], help="channels per resolution")
    add("--blocks", type=int, default=2, help="residual blocks per resolution")
    add("--crop", choices=data.CROPS, default="centre140", help="window of a 178×218 photograph")
    add("--limit", type=int, help="train on the first so many images only")
    add("--cache", default="cache", help="folder for decoded images, 12 kB each at 64×64")
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--bf16", action="store_true", help="bfloat16 matrix products (twice as fast where the "
        "processor has them)")
    args = parser.parse_args()
    if not args.data:
        raise BadInput(NO_DATA)
    train(args)


if __name__ == "__main__":
    run(main)
