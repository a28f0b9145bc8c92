"""A training run's folder: settings, log, checkpoints, weights; how they are written and read back.

`checkpoint.pt` holds all that a run needs to go on bit for bit: networks, optimizers, the step,
the losses not yet logged, the states of the random generators. `weights.pt` holds what a user
needs: the settings that rebuild the network, and its weights in half precision.
"""
import argparse
import json
import math
import signal
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from ddpm import DDPM
from schedules import SCHEDULES
from support import distributed, foreign
from support.cli import BadInput, check_apart, check_empty, check_range, device, say
from support.files import (
    LARGEST_SIDE,
    ROOT,
    atomic_write,
    check_finite,
    read_tensors,
    reading,
    rebuild,
    version,
    write_tensors,
)
from unet import UNet

WEIGHTS, SHARPENER = ROOT / "weights" / "celeba64.pt", ROOT / "weights" / "celeba128.pt"
OURS = "weights that train.py wrote"
WEIGHTS_HELP = ("a weights.pt or checkpoint.pt of train.py's; a guided-diffusion .pt; or a folder, "
                "or owner/name on the hub, in diffusers' format")
NO_DATA = ("no training images: give --data one of (1) a folder with CelebA's img_align_celeba/, "
           "(2) img_align_celeba.zip, or several zips of images, (3) synthetic, faces drawn on the "
           "spot, no download")


class Run:
    """What surrounds the training step: progress bar, log, checkpoints, and a clean stop.

    args         of the command; out, steps, batch, every and save_every are read here
    images       how many there are to train on, which the progress bar says
    settings     what rebuilds the network; goes into both files
    state        {name: module or optimizer}: all that is trained, restored from `checkpoint`
    shipped      the name of the module that weights.pt holds
    generator    of the training's random numbers, on the CPU
    """

    def __init__(self, args, images, settings, state, shipped, generator, checkpoint=None):
        self.args, self.settings, self.state, self.shipped = args, settings, state, shipped
        self.generator, self.first = generator, distributed.RANK == 0
        self.step, self.seen, self.losses = (restore(checkpoint, state, generator) if checkpoint
                                             else (0, 0, []))
        if self.first:
            cut_log(args.out, self.step)
        self.begun = self.saved = time.monotonic()
        self.start, self.signals = self.step, on_signal()
        self.due = self.stopping = False
        self.progress = tqdm(range(self.step, args.steps), f"training on {images:,} images",
                             args.steps, initial=self.step, unit=" steps", disable=not self.first)

    def record(self, losses, lower="--lr"):
        """At the end of a step: its losses, {name: scalar tensor}. They are averaged over the
        processes, and checked, only when something is to be written: reading every loss would
        synchronise the GPU. A loss that is not finite ends the run; the last checkpoint stays."""
        self.step, self.seen = self.step + 1, self.seen + self.args.batch
        self.losses.append({name: loss.detach() for name, loss in losses.items()})
        self.due = self.step % self.args.every == 0 or self.step == self.args.steps
        self.stopping = distributed.largest(*self.signals)
        if self.due or self.stopping:
            self.losses = [{name: distributed.mean(loss).cpu() for name, loss in each.items()}
                           for each in self.losses]
            for step, each in enumerate(self.losses, self.step - len(self.losses) + 1):
                total = sum(loss.item() for loss in each.values())
                if self.first and not math.isfinite(total):
                    raise BadInput(f"the loss of step {step} is {total}: the last checkpoint is "
                                   f"kept; --resume with a lower {lower}")

    def log(self, **more):
        """Append a line to log.jsonl: the mean of each loss since the last line, and `more`."""
        names = dict.fromkeys(name for each in self.losses for name in each)
        means = {name: torch.stack([each[name] for each in self.losses if name in each]).mean()
                 for name in names}
        rate = self.args.batch * (self.step - self.start) / (time.monotonic() - self.begun)
        numbers = {name: round(float(number), 5) for name, number in {**means, **more}.items()
                   if number is not None}
        line = {"step": self.step, "images": self.seen,
                **dict.fromkeys(more), **numbers, "images_per_s": round(rate, 1)}
        Path(self.args.out).mkdir(parents=True, exist_ok=True)
        with open(Path(self.args.out) / "log.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        self.progress.set_postfix_str(", ".join(
            f"{name} {number:.4f}" for name, number in numbers.items()) + f", {rate:.0f} images/s")

    def save(self):
        """Write checkpoint.pt and weights.pt, if it is time to; after a signal, end the process.
        Log lines are due by steps, as one costs as much as some steps; checkpoints by seconds, as
        writing one takes as long on the fastest GPU."""
        late = time.monotonic() - self.saved >= self.args.save_every
        if self.due:
            self.losses.clear()
        if self.first and (self.due and late or self.step == self.args.steps or self.stopping):
            save(self.args, self.settings, self.state, self.shipped, self.generator, self.step,
                 self.losses, self.seen)
            self.saved = time.monotonic()
        if self.stopping:
            self.progress.close()
            if self.first:
                say(f"interrupted: step {self.step} is saved in {self.args.out}; go on with "
                    "--resume")
            sys.exit(128 + self.stopping)


def on_signal():
    """A list to which Ctrl-C, or a polite kill, adds its number, so that the step under way is
    finished and saved; the second Ctrl-C ends the process at once."""
    received = []

    def handle(number, _):
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return received


# ---- checkpoints -------------------------------------------------------------------------------

def save(args, settings, state, shipped, generator, step, losses, seen):
    """Write checkpoint.pt and weights.pt; the arguments are those of `Run`; seen: images so far."""
    metadata = {"settings": settings, "step": step}
    parts = {name: part.state_dict() for name, part in state.items()}
    half = {name: value.half() for name, value in parts[shipped].items()}
    rng = {"torch": torch.get_rng_state(), "train": generator.get_state()}
    Path(args.out).mkdir(parents=True, exist_ok=True)
    write_tensors(Path(args.out) / "weights.pt", {
        **metadata, "made with": made_with(args), shipped: half})
    write_tensors(Path(args.out) / "checkpoint.pt", {
        **metadata, **parts, "args": vars(args), "losses": losses, "seen": seen, "rng": rng})


def made_with(args):
    """The settings that reproduce an output, without the paths of this machine."""
    left_out = "data", "out", "cache", "init", "bf16_asked"
    return {"version": version(), "torch": str(torch.__version__),
            **{key: value for key, value in vars(args).items() if key not in left_out}}


def load_checkpoint(out):
    path = Path(out) / "checkpoint.pt"
    with reading(path, "a checkpoint of train.py's", "nothing to resume; start without --resume"):
        checkpoint = read_tensors(path)
        checkpoint["rng"], checkpoint["step"], checkpoint["seen"], checkpoint["args"]["bf16_asked"]
    return checkpoint


def restore(checkpoint, state, generator):
    """Load a checkpoint into `state` and `generator`; returns its step, how many images were seen,
    and its unlogged losses."""
    try:
        for name, part in state.items():
            part.load_state_dict(checkpoint[name])
    except (KeyError, RuntimeError, ValueError):
        raise BadInput("--resume with another network than the checkpoint's: leave --size, "
                       "--patch, --widths and --blocks as they were") from None
    for part in state.values():
        if isinstance(part, torch.optim.Optimizer):
            match_layout(part)
    torch.set_rng_state(checkpoint["rng"]["torch"])
    generator.set_state(checkpoint["rng"]["train"])
    return checkpoint["step"], checkpoint["seen"], checkpoint["losses"]


def match_layout(optimizer):
    """Give moments their weights' memory layout: without it, fused AdamW mixes up elements."""
    for parameter, moments in optimizer.state.items():
        for name, moment in moments.items():
            if moment.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(moment)


def cut_log(out, step):
    """Drop the log's lines after the checkpoint: those steps will be done, and logged, again."""
    path = Path(out) / "log.jsonl"
    if not path.exists():
        return
    with reading(path, "a log of train.py's", "no such file"):
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    with atomic_write(path) as half:
        half.write_text("".join(kept))


# ---- weights -----------------------------------------------------------------------------------

def load_weights(path=WEIGHTS, device="cpu"):
    """(ddpm, eps_model, size) from a weights.pt or a checkpoint.pt: always the EMA's weights; or
    from anything that support/foreign.py reads."""
    path = foreign.local(path)
    if Path(path).is_dir() and not foreign.is_ours(path):
        return foreign.load_diffusers(path, device)
    checkpoint = read_checkpoint(path)
    if foreign.is_guided(checkpoint):
        return foreign.load_guided(path, checkpoint, device)
    ddpm, net, size = from_checkpoint(path, checkpoint, device)
    if net.coarse_size:
        raise BadInput(f"{path}: a sharpener, which fills no hole alone: name it with --sharpen")
    return ddpm, net, size


def load_sharpener(path, device="cpu"):
    """As `load_weights`, for a sharpener (sharpen.py) of train.py's."""
    checkpoint = read_checkpoint(path, "name another with --sharpen, or none")
    ddpm, net, size = from_checkpoint(path, checkpoint, device)
    if not net.coarse_size:
        raise BadInput(f"--sharpen {path}: not a sharpener, such as train.py --coarse trains")
    return ddpm, net, size


def from_checkpoint(path, checkpoint, device="cpu"):
    """(ddpm, eps_model, size) from what is in `path`, a file of train.py's."""
    with reading(path, OURS, "no such file"):
        settings, ema = checkpoint["settings"], checkpoint["ema"]
        layers = settings["unet"]["blocks"] * len(settings["unet"]["widths"])
        size, coarse = settings["unet"]["size"], settings["unet"].get("coarse_size")
        if not (1 <= settings["T"] <= 10 ** 6 and 1 <= size <= LARGEST_SIDE
                and 1 <= layers <= len(ema)
                and (coarse is None or 1 <= coarse < size)):
            raise ValueError("settings out of range")
        net = rebuild(UNet, settings["unet"], ema).eval().requires_grad_(False)
        check_finite(path, ema)
        betas = SCHEDULES[settings["schedule"]](settings["T"])
        ddpm = DDPM(betas.to(device), settings["prediction"], clip=coarse is None)
    return ddpm, net.to(device), size


def read_checkpoint(path, missing="make weights with train.py, or name others with --weights"):
    """What is in a weights.pt, a checkpoint.pt, or a folder of train.py's or support.export's."""
    path = foreign.of_run(path)
    with reading(path, OURS, f"no such file; {missing}"):
        return foreign.read_ours(path) if Path(path).is_dir() else read_tensors(path)


def initialize(net, path):
    """Copy weights from a file of train.py's where names and shapes agree; say what did not."""
    with reading(path, OURS, "no such file; --init names one"):
        stored, own = read_checkpoint(path, "--init names one")["ema"], net.state_dict()
        taken = {name: stored[name] for name in own
                 if name in stored and stored[name].shape == own[name].shape}
        check_finite(path, taken)
        net.load_state_dict(taken, strict=False)
    left = [name for name in own if name not in taken]
    if not taken:
        raise BadInput(f"--init {path}: no tensor has the name and shape of one of this network's")
    if left and distributed.RANK == 0:
        say(f"--init {path}: {len(taken)} of {len(own)} tensors taken; not in it, and so new: "
            f"{', '.join(left)}")


# ---- the command line --------------------------------------------------------------------------

def add_flags(parser, out):
    """The flags that every training shares."""
    add = parser.add_argument
    add("--data", nargs="+", metavar="PATH",
        help="folders, zip, tar or parquet files of images; or synthetic")
    add("--out", default=out, help="folder for checkpoint, weights, log and samples")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add("--steps", type=int, default=20_000, help="optimizer steps in all")
    add("--batch", type=int, default=32, help="images a step")
    add("--every", type=int, default=250, help="steps between log lines, each with new samples.png")
    add("--save-every", type=float, default=60, metavar="SECONDS",
        help="between checkpoints, which are written after a log line, at the end and on Ctrl-C")
    add("--size", type=int, default=64, help="side of the images, pixels")
    add("--limit", type=int, help="train on the first so many images only")
    add("--cache", default="cache", help="folder for decoded images, 12 kB each at 64×64")
    add("--seed", type=int, default=0, help="of the weights, batches, holes and noise")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, cuda:1, …")
    add("--bf16", action=argparse.BooleanOptionalAction,
        help="bfloat16 matrix products, twice as fast where the processor has them; default: where "
        "a GPU, or an x86 CPU (AVX512_BF16, AMX), has them")


def parse(parser, argv=None):
    """(args, checkpoint): with --resume, the checkpoint's settings hold unless given anew."""
    args, checkpoint = parser.parse_args(argv), None
    if args.resume:
        checkpoint = load_checkpoint(args.out)
        here = {key: value for key, value in vars(args).items()
                if key in ("out", "device", "compile", "resume")}
        given = checkpoint["args"]
        asked = given["bf16_asked"]            # if neither, it is for this machine to say
        parser.set_defaults(**{**given, "bf16": asked, **here})
        args = parser.parse_args(argv)
        for flag in ("seed", "init", "coarse"):
            if getattr(args, flag, None) != given.get(flag):
                raise BadInput(f"--{flag} is not the checkpoint's: leave it out with --resume")
    elif (Path(args.out) / "checkpoint.pt").exists():
        raise BadInput(f"{args.out} holds a checkpoint: go on from it with --resume, or name "
                       "another --out")
    elif (Path(args.out) / "weights.pt").exists():
        raise BadInput(f"{args.out} holds a weights.pt that this run would overwrite, of another "
                       "run or of one cut off before its first checkpoint: remove it, or name "
                       "another --out")
    check_empty(args)
    if not args.data:
        raise BadInput(NO_DATA)
    check_apart(args.out, args.data)
    device(args.device)
    args.bf16_asked = args.bf16
    resolve_bf16(args)
    check_range(args, 0, 100, "lr")
    check_range(args, 0, 10 ** 9, "seed", "save_every")
    return args, checkpoint


def resolve_bf16(args):
    """Unless --bf16 was given or declined, turn it on where a GPU or an x86 CPU has instructions
    for it."""
    if args.bf16 is not None:
        return
    if torch.device(args.device).type == "cuda":
        args.bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if not args.bf16 and distributed.RANK == 0:
            say("this GPU has no bfloat16: float32 instead")
    else:
        has = torch.cpu.get_capabilities()
        args.bf16 = bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def resolve_compile(args):
    """Unless --compile was given or declined, turn it on on GPUs. Where nothing can be compiled,
    which a trial shows, turn it off, and say so in a line."""
    if args.compile is None:
        args.compile = torch.device(args.device).type == "cuda"
    if args.compile:
        try:
            torch.compile(lambda x: x + 1)(torch.zeros(2, device=args.device))
        except Exception as error:  # no C++ compiler, no Triton, neither works, …
            args.compile = False
            if distributed.RANK == 0:
                say(f"nothing can be compiled here, so the network is not ({type(error).__name__})")


def finished(args, checkpoint):
    """Whether a run that is resumed has no step left to do; then a line says so."""
    done = checkpoint is not None and checkpoint["step"] >= args.steps
    if done and distributed.RANK == 0:
        say(f"{args.out}: all {checkpoint['step']:,} steps are done; to go on, give more --steps")
    return done
