"""Algorithm 1: train the network that inpaints.

    python train.py --data PATH/TO/celeba            # the CelebA folder, or zips of it
    python train.py --data synthetic --steps 500     # no data at hand
    python train.py --resume --out runs/celeba64     # go on after Ctrl-C, a kill, a power cut
    torchrun --nproc_per_node 4 train.py --data …    # the same run, its batches shared out

Every --every steps, in --out: `checkpoint.pt` (all that --resume needs), `weights.pt` (the moving
average alone, in half precision: what inpaint.py loads), `log.jsonl`, `samples.png`. The log's
`held_out` is the loss on images of the validation split: once it rises, the others are being learnt
by heart.
"""
import argparse
import contextlib
import copy
import json
import math
import signal
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

import data
import masks
import muon
import together
from ddpm import DDPM
from safety import (BadInput, alone, device, read_tensors, reading, run, version, whole, within,
                    write_png, write_tensors)
from schedules import SCHEDULES
from unet import UNet

NO_DATA = ("no training images: give --data one of (1) a folder with CelebA's img_align_celeba/, "
           "(2) img_align_celeba.zip, or several zips of images, (3) synthetic, faces drawn on the "
           "spot, no download")


def train(args, checkpoint=None):
    """Algorithm 1 from step 0, or from a checkpoint; returns the moving average of the network."""
    device = together.own_device(args.device)
    with together.first():                                      # who decodes for all
        images = data.load(args.data, "train", args.size, args.crop, args.limit, args.cache)
        unseen = held_out(args) if together.RANK == 0 else None
    images = resident(images, device)
    ddpm = DDPM(SCHEDULES[args.schedule](args.T).to(device), args.prediction, clip=True)
    state = build(args, device)
    net, ema, *optimizers = state.values()
    generator = torch.Generator(device).manual_seed(args.seed)  # of batches, holes, t and noise
    start, losses = restore(checkpoint, state, generator) if checkpoint else (0, [])
    losses = [loss.to(device) for loss in losses]
    if args.compile:
        net.compile()
    eps_model, writes = together.share(net), together.RANK == 0
    interrupted, begun = on_signal(), time.time()

    progress = tqdm(range(start, args.steps), "training", args.steps, initial=start, unit=" steps",
                    disable=not writes)
    for step in progress:
        for optimizer, rate in zip(optimizers, (args.lr, args.lr_adamw)):
            for group in optimizer.param_groups:
                group["lr"] = rate * ramp(step, args.steps, args.warmup)

        chosen = torch.randint(len(images), (args.batch,), generator=generator, device=device)
        x0 = flip(data.to_float(images[chosen.to(images.device)].to(device)), generator)
        hole = masks.mixture(args.batch, args.size, generator, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            loss = ddpm.loss(eps_model, x0, hole, generator)
        net.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        average(ema, net, min(args.ema, (1 + step) / (10 + step)))

        losses.append(loss.detach())
        due = (step + 1) % args.every == 0 or step + 1 == args.steps
        stop = together.largest(*interrupted)
        if (due or stop) and writes:
            check(losses, step + 1)
        if due and writes:
            rate = args.batch * (step + 1 - start) / (time.time() - begun)
            mean = log(args, step + 1, losses, judge(args, ddpm, ema, unseen), rate)
            progress.set_postfix_str(f"loss {mean:.4f}, {rate:.0f} images/s")
            draw(args, ddpm, ema, device)
        if due:
            losses.clear()
        if (due or stop) and writes:
            save(args, state, generator, step + 1, losses)
        if stop:
            progress.close()
            if writes:
                print(f"interrupted: step {step + 1} is saved in {args.out}; go on with --resume",
                      file=sys.stderr)
            sys.exit(128 + stop)
    return ema


def build(args, device):
    """All that is trained: the network, its moving average, and the network's two optimizers, Muon
    for matrices and AdamW for the rest."""
    torch.manual_seed(args.seed)
    try:
        net = UNet(args.size, args.patch, args.widths, args.blocks).to(device)
    except ValueError as error:
        raise BadInput(f"{error}: choose another --size, --patch or --widths") from None
    if args.init:
        initialize(net, args.init)
    if device.type == "cuda":                                   # on CPUs it gains nothing
        net = net.to(memory_format=torch.channels_last)
    matrices, others = muon.split(net)
    return {"net": net, "ema": copy.deepcopy(net).requires_grad_(False),
            "muon": muon.Muon(matrices), "adamw": torch.optim.AdamW(others, fused=True)}


def initialize(net, path):
    """Start from the weights in a file of train.py's, wherever names and shapes agree."""
    with reading(path, "weights that train.py wrote", "no such file; --init names one"):
        stored, own = read_tensors(path)["ema"], net.state_dict()
        taken = {name: stored[name] for name in own
                 if name in stored and stored[name].shape == own[name].shape}
        net.load_state_dict(taken, strict=False)
    left = [name for name in own if name not in taken]
    if not taken:
        raise BadInput(f"--init {path}: no weight has the name and shape of one of this network's")
    if left and together.RANK == 0:
        print(f"--init {path}: {len(taken)} of {len(own)} tensors taken; new are {', '.join(left)}",
              file=sys.stderr)


def resident(images, device):
    """The images in the GPU's memory if they fill at most half of what is free; else as is."""
    fit = device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(device)[0] / 2
    return images.to(device) if fit else images


def ramp(step, steps, warmup):
    """The learning rate's factor: up over the warm-up, flat, then to 0 over the last 30 %."""
    return min(1, (step + 1) / warmup, (steps - step) / (0.3 * steps))


def flip(images, generator):
    """Each image mirrored or not, at even odds."""
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(3), images)


@torch.no_grad()
def average(ema, net, decay):
    """Exponential moving average of the weights: ema ← decay · ema + (1 - decay) · net."""
    torch._foreach_lerp_([*ema.parameters()], [*net.parameters()], 1 - decay)


def on_signal():
    """A list that Ctrl-C (or a polite kill) adds to, so that the step under way is finished and
    saved; the second Ctrl-C stops at once."""
    received = []

    def handle(number, _):
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return received


def check(losses, step, lower="--lr"):
    """Before anything is written: a loss that is no number ends the run. The last of `losses` is of
    `step`; they are looked at when due, as a look at each would have a GPU wait at every step."""
    values = torch.stack(losses).tolist()
    for i, loss in enumerate(values, step - len(losses) + 1):
        if not math.isfinite(loss):
            raise BadInput(f"the loss of step {i} is {loss}: the last checkpoint is kept; --resume "
                           f"with a lower {lower}")


def held_out(args):
    """128 images of the validation split, or None, and a line that says so, if there are none."""
    try:
        return data.load(args.data, "val", args.size, args.crop, 128, args.cache)
    except BadInput as error:
        print(f"the log will show no held-out loss: {error}", file=sys.stderr)


@torch.no_grad()
def judge(args, ddpm, ema, unseen):
    """The moving average's loss on unseen images, always at the same levels, with the same holes
    and noise, so that two of them compare."""
    if unseen is None:
        return None
    device = next(ema.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    losses = []
    for images in unseen.split(args.batch):
        hole = masks.mixture(len(images), args.size, generator, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            loss = ddpm.loss(ema, data.to_float(images.to(device)), hole, generator)
        losses.append(loss * len(images))
    return torch.stack(losses).sum().item() / len(unseen)


def log(args, step, losses, judged, rate):
    """Append the mean loss since the last line, and the held-out loss."""
    loss = torch.stack(losses).mean().item()
    line = {"step": step, "images": step * args.batch, "loss": round(loss, 5),
            "held_out": judged and round(judged, 5), "images_per_s": round(rate, 1)}
    Path(args.out).mkdir(parents=True, exist_ok=True)
    with open(Path(args.out) / "log.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")
    return loss


def save(args, state, generator, step, losses):
    """checkpoint.pt, and weights.pt, from which `inpaint.load_weights` rebuilds the network and the
    process."""
    settings = {"unet": {"size": args.size, "patch": args.patch, "widths": args.widths,
                         "blocks": args.blocks},
                "schedule": args.schedule, "T": args.T, "prediction": args.prediction}
    save_run(args, settings, state, "ema", generator, step, losses)


def save_run(args, settings, state, shipped, generator, step, losses):
    """checkpoint.pt, plain tensors and numbers from which a run goes on bit for bit, and
    weights.pt, the network called `shipped` in half precision."""
    told = {"settings": settings, "step": step}
    parts = {name: part.state_dict() for name, part in state.items()}
    half = {name: value.half() for name, value in parts[shipped].items()}
    rng = {"torch": torch.get_rng_state(), "train": generator.get_state()}
    Path(args.out).mkdir(parents=True, exist_ok=True)
    write_tensors(Path(args.out) / "weights.pt", {
        **told, "made with": made_with(args), shipped: half})
    write_tensors(Path(args.out) / "checkpoint.pt", {
        **told, **parts, "args": vars(args), "losses": losses, "rng": rng})


def made_with(args):
    """What to make an output again with: all but where things lay here."""
    places = "data", "out", "cache"
    return {"version": version(), "torch": str(torch.__version__),
            **{key: value for key, value in vars(args).items() if key not in places}}


def load_checkpoint(out):
    path = Path(out) / "checkpoint.pt"
    with reading(path, "a checkpoint of train.py's", "nothing to resume; start without --resume"):
        checkpoint = read_tensors(path)
        checkpoint["rng"], checkpoint["step"]
    return checkpoint


def restore(checkpoint, state, generator):
    """Put the checkpoint's state where it was; returns the step and the losses not yet logged."""
    try:
        for name, part in state.items():
            part.load_state_dict(checkpoint[name])
    except (KeyError, RuntimeError, ValueError):
        raise BadInput("--resume with another network than the checkpoint's: leave --size, "
                       "--patch, --widths and --blocks as they were") from None
    for part in state.values():
        for parameter, moments in getattr(part, "state", {}).items():
            for name, moment in moments.items():     # in the weights' layout, or fused AdamW mixes
                if moment.shape == parameter.shape:  # them up
                    moments[name] = torch.empty_like(parameter).copy_(moment)
    torch.set_rng_state(checkpoint["rng"]["torch"])
    if torch.device(checkpoint["args"]["device"]).type == generator.device.type:
        generator.set_state(checkpoint["rng"]["train"])
    else:                                       # whose streams differ: go on with one not yet used
        generator.manual_seed(checkpoint["args"]["seed"] + checkpoint["step"])
    return checkpoint["step"], checkpoint["losses"]


def cut_log(out, step):
    """Forget what was logged after the checkpoint, or before there was one: those steps will be
    done, and logged, again."""
    path = Path(out) / "log.jsonl"
    with reading(path, "a log of train.py's", "no such file"):
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    with whole(path) as half:
        half.write_text("".join(kept))


def draw(args, ddpm, ema, device):
    """A grid of 16 unconditional samples by the moving average, always from the same noise."""
    hole = masks.full(16, args.size, device=device)
    blank = torch.zeros(16, 3, args.size, args.size, device=device)
    x = ddpm.sample(ema, blank, hole, min(20, ddpm.T), 0.0, torch.Generator().manual_seed(0))
    rows = data.to_uint8(x).reshape(2, 8, args.size, args.size, 3).transpose(1, 2)
    grid = Image.fromarray(rows.reshape(2 * args.size, 8 * args.size, 3).cpu().numpy())
    write_png(grid, Path(args.out) / "samples.png", made_with(args))


def flags(parser, out):
    """The settings of any training."""
    add, cuda = parser.add_argument, torch.cuda.is_available()
    add("--data", nargs="+", metavar="PATH", help="folders or zips of images, or synthetic")
    add("--out", default=out, help="folder for checkpoint, weights, log and samples")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add("--steps", type=int, default=20_000, help="optimizer steps in all")
    add("--batch", type=int, default=32, help="images a step")
    add("--every", type=int, default=250, help="steps between log lines and checkpoints")
    add("--size", type=int, default=64, help="side of the images, pixels")
    add("--limit", type=int, help="train on the first so many images only")
    add("--cache", default="cache", help="folder for decoded images, 12 kB each at 64×64")
    add("--seed", type=int, default=0, help="of the weights, batches, holes and noise")
    add("--device", default="cuda" if cuda else "cpu", help="cpu, cuda, cuda:1, …")
    add("--bf16", action=argparse.BooleanOptionalAction, default=cuda,
        help="bfloat16 matrix products: twice as fast where the processor has them")


def parse(argv=None):
    """As `settle`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags(parser, out="runs/celeba64")
    add = parser.add_argument
    add("--init", metavar="FILE", help="start from these weights wherever names and shapes agree")
    add("--lr", type=float, default=0.005, help="Muon's learning rate, after the warm-up")
    add("--lr-adamw", type=float, default=4e-4, help="AdamW's, for biases, norms and small layers")
    add("--warmup", type=int, default=200, help="steps over which the learning rate rises")
    add("--ema", type=float, default=0.999, help="decay of the moving average, a step")
    add("--schedule", choices=SCHEDULES, default="rescaled", help="noise schedule")
    add("--T", type=int, default=300, help="levels of noise")
    add("--prediction", choices=("v", "eps"), default="v", help="what the network predicts")
    add("--patch", type=int, default=2, help="pixels are gathered in squares of this side")
    add("--widths", type=int, nargs="+", default=[64, 128, 224], help="channels per resolution")
    add("--blocks", type=int, default=2, help="residual blocks per resolution")
    add("--crop", choices=data.CROPS, default="centre140", help="window of a 178×218 photograph")
    add("--compile", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available(),
        help="compile the network: takes a minute, and on a CPU a C++ compiler")
    args, checkpoint = settle(parser, argv)
    within(args, 1, 10 ** 9, "steps", "warmup", "every")
    within(args, 1, 10 ** 6, "batch", "T")
    within(args, 1, 10 ** 4, "size", "patch", "widths", "blocks")
    within(args, 0, 0.999999, "ema")
    within(args, 0, 100, "lr_adamw")
    if args.batch % together.NUMBER:
        raise BadInput(f"--batch {args.batch} cannot be shared out evenly over {together.NUMBER} "
                       "processes")
    return args, checkpoint


def settle(parser, argv):
    """The settings, and with --resume the checkpoint, whose settings hold unless given anew."""
    args, checkpoint = parser.parse_args(argv), None
    if args.resume:
        checkpoint = load_checkpoint(args.out)
        here = {key: value for key, value in vars(args).items()
                if key in ("out", "device", "compile", "resume")}
        parser.set_defaults(**{**checkpoint["args"], **here})
        args = parser.parse_args(argv)
    elif (Path(args.out) / "checkpoint.pt").exists():
        raise BadInput(f"{args.out} holds a checkpoint: go on from it with --resume, or name "
                       "another --out")
    if not args.data:
        raise BadInput(NO_DATA)
    device(args.device)
    within(args, 0, 100, "lr")
    within(args, 0, 10 ** 9, "seed")
    return args, checkpoint


def main():
    with together.joined():
        with together.first():
            args, checkpoint = parse()
        with alone(args.out) if together.RANK == 0 else contextlib.nullcontext():
            if together.RANK == 0:
                cut_log(args.out, checkpoint["step"] if checkpoint else 0)
            train(args, checkpoint)


if __name__ == "__main__":
    run(main, memory="--batch, --size or --widths")
