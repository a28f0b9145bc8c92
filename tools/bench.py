"""Benchmark: each part timed beside a reference, as ratios.

    python -m tools.bench --batch 16    # of the shipped network's shape; a GPU wants larger batches

The two sides of a row are timed in turn, so that whatever else the machine does slows both; a first
round, which compiles and fills caches, does not count. `pip install diffusers` brings a peer: its
UNet2DModel, made as wide as costs the same number of operations; on 2×2 patches as ours, which is
the fair comparison, and on single pixels, as it comes.
"""
import argparse
import contextlib
import copy
import os
import platform
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import support.threads

import numpy as np
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from tqdm import tqdm

import data
import masks
import methods
import muon
import scores
import train
from ddpm import DDPM
from schedules import rescaled_betas
from support import graphs
from support.cli import BadInput, check_range, device, run
from support.files import ROOT
from support.runs import resolve_bf16, resolve_compile
from tools import peers
from unet import UNet


def works(args, net, x0, hole, plain=False):
    """(a forward pass, a training step as in train.py, sampling) as functions without arguments;
    `plain`: in float32, not compiled, AdamW and the moving average a parameter at a time."""
    ddpm = DDPM(rescaled_betas().to(x0.device), "v", clip=True)
    t = torch.full((len(x0),), 150, device=x0.device)
    ema, generator = copy.deepcopy(net).requires_grad_(False), torch.Generator()
    matrices, others = muon.split(net)
    bf16 = args.bf16 and not plain
    optimizers = [muon.Muon([{"params": matrices}], lr=1e-4, bf16=bf16),     # a tiny net has none
                  torch.optim.AdamW(others, lr=1e-4, fused=not plain, foreach=False)]
    autocast = torch.autocast(x0.device.type, torch.bfloat16, enabled=bf16)
    update_ema = one_by_one if plain else train.update_ema
    replay = None
    if args.compile and not plain:
        net.compile()
        replay = graphs.on_one_gpu(optimizers, x0.device)

    def step():
        train.algorithm_1(ddpm, net, optimizers, x0, hole, generator, bf16, replay=replay)
        update_ema(ema, net, 0.999)
    for _ in range(graphs.WARM_UP if replay else 0):
        step()
    look = autocast(torch.no_grad()(lambda: net(x0, t, hole)))
    return look, step, autocast(lambda: ddpm.sample(net, x0, hole, args.calls, 0.0))


@torch.no_grad()
def one_by_one(ema, net, decay):
    """train.update_ema without its multi-tensor operation."""
    for old, new in zip(ema.parameters(), net.parameters()):
        old.lerp_(new, 1 - decay)


def around(args, folder):
    """Rows of what surrounds the network, each beside the plain way to do it; all on the CPU."""
    paths = [Path(folder) / f"{i}.jpg" for i in range(64 * args.batch)]
    for path, image in zip(paths, data.synthetic(len(paths), 2 * args.size).numpy()):
        Image.fromarray(image).save(path)
    images, hole = data.synthetic(args.batch, args.size), masks.center(args.batch, args.size)
    fills = images // 2

    start = partial(subprocess.run, cwd=folder, check=True, capture_output=True)
    command = [sys.executable, ROOT / "inpaint.py", "--samples=1"]

    def pack():
        with tempfile.TemporaryDirectory() as cache, quiet():     # a progress bar within ours
            data.load(paths, "all", args.size, cache=cache)

    def ssim():
        for image, fill in zip(images.numpy(), fills.numpy()):
            structural_similarity(image, fill, channel_axis=2, gaussian_weights=True)
    return {"packing JPEGs | Pillow, one by one": (
                pack, lambda: [data.square(data.open_image(path), args.size) for path in paths]),
            "all scores | scikit-image's SSIM alone": (
                lambda: scores.score(images, fills[:, None], hole), ssim),
            f"inpaint.py, {methods.STEPS['keep']} calls, start to end | import torch": (
                lambda: start(command), lambda: start([sys.executable, "-c", "import torch"]))}


@contextlib.contextmanager
def quiet():
    """The block writes nothing to standard error, not even from C++."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def clock(work, device):
    """Seconds until all that work() has started on the device has ended."""
    begun = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def profile(step, device, steps=5, most=6):
    """What a training step's time goes into, as a line; on a GPU also the share that it idles."""
    kind = "cpu" if device == "cpu" else "device"
    with quiet(), torch.profiler.profile() as profiler:           # which announces itself
        elapsed = clock(lambda: [step() for _ in range(steps)], device)
    spent = {event.key: getattr(event, f"self_{kind}_time_total") / 1e6 / elapsed
             for event in profiler.key_averages()
             if event.device_type.name == ("CPU" if kind == "cpu" else "CUDA")
             and not event.is_user_annotation}              # its operations have rows of their own
    largest = sorted(spent, key=spent.get, reverse=True)[:most]
    idle = f"; idle {1 - sum(spent.values()):.0%}" if kind == "device" else ""
    return ", ".join(f"{name.removeprefix('aten::')[:60]} {spent[name]:.0%}"
                     for name in largest) + idle


def parse():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--batch", type=int, default=16)
    add("--size", type=int, default=64, help="side of the images, pixels")
    add("--widths", type=int, nargs="+", default=[64, 128, 224], help="as for train.py")
    add("--calls", type=int, default=20, help="of the network, to sample")
    add("--repeats", type=int, default=7, help="rounds that count")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--bf16", action=argparse.BooleanOptionalAction, help="as for train.py")
    add("--compile", action=argparse.BooleanOptionalAction, help="as for train.py")
    args = parser.parse_args()
    check_range(args, 1, 10_000, "batch", "size", "widths", "repeats")
    check_range(args, 1, len(rescaled_betas()), "calls")
    device(args.device)
    resolve_bf16(args)
    resolve_compile(args)
    return args


def beside_peers(args, net, ours, x0, hole):
    """Rows of our network's works beside diffusers', the fair peer first."""
    names, rows = ("forward", "training step", f"sampling, {args.calls} calls"), {}
    try:
        for patch in (net.patch, 1):
            peer, share = peers.diffusers_unet(net, args.size, patch)
            peer = peer.to(args.device, memory_format=torch.channels_last)
            rows |= {f"{name} | diffusers {version('diffusers')}, {patch}×{patch} patches, "
                     f"{share:.2f} × the operations": pair
                     for name, *pair in zip(names, ours, works(args, peer, x0, hole))}
    except ImportError as error:
        print(f"nothing to compare the network with: {error}", file=sys.stderr)
        rows = {f"{name} | training step": (work, ours[1]) for name, work in zip(names, ours)
                if work is not ours[1]}
    return rows


def measure(args, rows):
    """Seconds, {row: [2, repeats]}, of the rows' two sides, all of them in turn."""
    rounds = []
    with tqdm(total=(args.repeats + 1) * len(rows), unit=" rows") as bar:
        for number in range(args.repeats + 1):
            rounds.append([])
            for row, pair in rows.items():
                bar.set_description(f"round {number} of {args.repeats}: {row}"[:60])
                rounds[-1].append([clock(work, args.device) for work in pair])
                bar.update()
    return dict(zip(rows, np.array(rounds[1:]).transpose(1, 2, 0)))


def main():
    args = parse()
    n, layout = (1024, None) if args.device == "cpu" else (8192, torch.channels_last)
    try:
        net = UNet(args.size, 2, args.widths).to(args.device, memory_format=layout)
    except ValueError as error:
        raise BadInput(f"{error}: change --size or --widths") from None
    print("making networks and pictures", file=sys.stderr)
    x0 = data.to_float(data.synthetic(args.batch, args.size)).to(args.device)
    hole = masks.mixture(args.batch, args.size, torch.Generator().manual_seed(0), args.device)
    flops = args.batch * peers.operations(net, args.size, backward=True)
    matrix = torch.ones(n, n, device=args.device, dtype=torch.bfloat16 if args.bf16 else None)
    ours = works(args, net, x0, hole)
    plain = works(args, UNet(args.size, 2, args.widths).to(args.device), x0, hole, plain=True)[1]
    rows = {**beside_peers(args, net, ours, x0, hole), "training step | the same, plain": (
                ours[1], plain),
            "holes | training step": (
                lambda: masks.mixture(args.batch, args.size, device=args.device), ours[1]),
            "training step | a matrix product": (ours[1], lambda: matrix @ matrix)}
    with tempfile.TemporaryDirectory() as folder:
        rows |= around(args, folder)
        seconds = measure(args, rows)
    report(args, seconds, flops, 2 * n ** 3)
    for name, step in {"Plain": plain, "As it is": ours[1]}.items():
        print(f"\n{name}, a training step goes into {profile(step, args.device)}.")


def report(args, seconds, flops, product):
    """Print the table: seconds {row: [2, repeats]}; operations of a step and of the product."""
    cpu = platform.processor() or Path("/proc/cpuinfo").read_text().partition("model name\t: ")[2]
    threads = torch.get_num_threads()
    device = (f"{threads} CPU thread{'s' * (threads > 1)} ({cpu.partition(chr(10))[0]})"
              if args.device == "cpu" else torch.cuda.get_device_name(args.device))
    print(f"{device}, Python {platform.python_version()}, torch {torch.__version__}; batch "
          f"{args.batch}, {args.size}×{args.size}, {'bfloat16' if args.bf16 else 'float32'}"
          f"{', compiled' * args.compile}; medians of {args.repeats} [quartiles]\n\n"
          "| what | beside | ms | beside, ms | what is |\n|---|---|---|---|---|")
    for row, (one, other) in seconds.items():
        ratio = compared(other / one)
        one, other = (float(f"{np.median(side) * 1e3:.3g}") for side in (one, other))
        print(f"| {row} | {one:g} | {other:g} | {ratio} |")
    step, matrix = np.median(seconds["training step | a matrix product"], axis=1)
    print(f"\nTraining does {flops / step / 1e12:.3g}·10¹² operations a second, "
          f"{flops / step * matrix / product:.0%} of the matrix product's rate.")


def compared(ratios):
    """The median and quartiles of how many times as fast, in words that read either way."""
    faster = np.median(ratios) >= 1
    low, middle, high = np.percentile(ratios if faster else 1 / ratios, (25, 50, 75))
    return f"{middle:.3g} [{low:.3g} … {high:.3g}] times {'faster' if faster else 'slower'}"


if __name__ == "__main__":
    run(main)
