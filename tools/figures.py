"""Every picture of the course, drawn by the code that it is about.

    python -m tools.figures                         # all of them, into out/figures/: a few minutes
    python -m tools.figures masks schedules         # those named
    python -m tools.figures --out docs/figures      # renew the README's

The photograph is the public-domain astronaut of inpaint.py; other faces are data.synthetic's.
t counts from 1 here, as in the papers: x_t has seen t steps of noise, x_0 none.
"""
import argparse
import io
import itertools
import json
import math
import re
import sys
from functools import cached_property, partial
from pathlib import Path

import support.threads

import matplotlib
import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch.distributions import Normal
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import data
import faces
import inpaint
import masks
import methods
import sharpen
import train
import windows
from baselines import patchmatch, scene_completion
from ddpm import DDPM
from schedules import SCHEDULES, cosine_betas, linear_betas
from support.cli import BadInput, check_empty, run
from support.files import ROOT, atomic_write
from support.foreign import local
from support.runs import WEIGHTS_HELP
from unet import SelfAttention, UNet, timestep_embedding

STYLE = {                       # solid, dashed, dotted: three lines even without colour
    "axes.prop_cycle": matplotlib.cycler(color=["#14305c", "#d0661a", "#5f7a94"],
                                         linestyle=["-", "--", ":"]),
    "axes.spines.right": False, "axes.spines.top": False, "axes.titlesize": 10, "font.size": 9,
    "image.cmap": "gray", "legend.frameon": False, "lines.linewidth": 2,
    "figure.constrained_layout.use": True, "savefig.bbox": "tight", "savefig.dpi": 100}
COLOURS = "#14305c", "#999999", "#d0661a", "#5f7a94", "#000000"         # of methods.DIFFUSION
CALLS, LOG = ROOT / "docs" / "calls.json", inpaint.WEIGHTS.with_suffix(".jsonl")
OURS = "unet", "adagn", "inpainting", "animation", "sharpened"  # of our U-Net, or it knows holes
PANEL = 1.28                    # inches, the side of an image: 128 pixels
T = 300                         # levels, as in the course
SAMPLES = 20_000                # of a histogram
STEPS, BATCH = 400, 32          # of the training behind the loss curve
FIGURES = {}                    # draw(course) -> Figure, or frames, by name in the course's order


def figure(name, width=9, height=2.8):
    """Makes draw(course, fig), which draws on an empty Figure or returns frames, one of FIGURES."""
    def register(draw):
        def drawn(course):
            fig = Figure(figsize=(width, height))
            return draw(course, fig) or fig
        FIGURES[name] = drawn
        return draw
    return register


class Course:
    """What the figures share. x is the photograph, [1, 3, size, size] in [-1, 1]."""

    def __init__(self, weights=inpaint.WEIGHTS):
        weights = local(weights)
        self.ddpm, self.net, self.size = inpaint.load_weights(weights)
        self.sharpener = sharpen.find(None, weights, self.size)
        self.shown = self.sharpener.size if self.sharpener else self.size
        self.readout = faces.load(weights, self.ddpm, self.net, self.size)
        self.x = data.to_float(astronaut(self.size)[None])
        self.subject = "a face" if methods.knows_hole(self.net) else "an image"
        self.drawn = min(self.size, 64)      # side of drawn faces, where no network sees them
        self.noise = torch.randn(self.x.shape, generator=torch.Generator().manual_seed(0))
        self.linear, self.cosine = DDPM(linear_betas(T)), DDPM(cosine_betas(T))

    @cached_property
    def inpainting(self):
        """`reverse` in a hole of the photograph, for the strip and the film."""
        hole = masks.irregular(1, self.size, torch.Generator().manual_seed(0))
        return reverse(self.ddpm, self.net, self.x, hole)


def astronaut(size):
    """The photograph, uint8 [size, size, 3]."""
    return torch.from_numpy(data.square(inpaint.astronaut(), size).copy())


def gallery(ax, rows, titles=(), labels=()):
    """Rows of images, each [3, H, W] in [-1, 1], titles over the columns, labels before the rows.
    Returns the width and the height of the whole, in pixels."""
    height, width = rows[0][0].shape[1:]
    gap = max(1, width // 16)
    sheet = torch.cat([torch.cat([F.pad(image, (0, gap, 0, gap), value=1) for image in row], dim=2)
                       for row in rows], dim=1)[:, :-gap, :-gap]
    ax.imshow(data.to_uint8(sheet[None])[0].numpy(), interpolation="nearest")
    ax.set_xticks([i * (width + gap) + width / 2 for i in range(len(titles))], titles)
    ax.set_yticks([i * (height + gap) + height / 2 for i in range(len(labels))], labels)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    return sheet.shape[2], sheet.shape[1]


def strip(fig, rows, titles=(), labels=(), title=None, panel=PANEL):
    """A figure that is one gallery, every image `panel` inches wide."""
    fig.set_layout_engine("none")
    ax = fig.add_axes((0, 0, 1, 1))
    fig.set_size_inches([side * panel / rows[0][0].shape[2]
                         for side in gallery(ax, rows, titles, labels)])
    ax.set_title(title, pad=8)


def curves(ax, title, ys, **settings):
    """A line for each of {label: its values at t = 1, 2, …}."""
    for label, y in ys.items():
        ax.plot(range(1, len(y) + 1), y, label=label)
    ax.set(title=title, xlabel="step $t$", **settings)
    if len(ys) > 1:
        ax.legend()


def bell(ax, axis, mean, variance, label):
    ax.plot(axis, Normal(mean, variance ** 0.5).log_prob(axis).exp(), label=label)


def grey(image, hole):
    return torch.where(hole > 0, 0.0, image)


@figure("masks")
def five_masks(course, fig):
    names, columns = [], []
    for name, family in masks.FAMILIES.items():
        holes = family(400, course.size, torch.Generator().manual_seed(2))
        names.append(f"{name}\nmean area {holes.mean():.0%}")
        columns.append([2 * holes[0].expand(3, -1, -1) - 1, *grey(course.x, holes[:3])])
    strip(fig, [*zip(*columns)], names, ["hole:\nwhite = 1", "to fill", "another\ndraw", "a third"])


def wallpaper():
    """A pattern that repeats every 12 pixels, so that the right matches are known, and its hole."""
    y, x = torch.meshgrid(*[torch.arange(60) * math.tau / 12] * 2, indexing="ij")
    image = (torch.sin(x + y.cos()) * torch.cos(y - x.sin() / 2)).expand(1, 3, -1, -1)
    return image, F.pad(torch.ones(1, 1, 24, 24), [18] * 4)


@figure("patchmatch", height=5)
def nearest_neighbour_field(course, fig):
    image, hole = wallpaper()
    generator = torch.Generator().manual_seed(1)
    matcher = patchmatch.Matcher(grey(image, hole), hole, generator=generator)
    matcher.look(image)
    before, patches = -1, len(matcher.y)
    spread, search = matcher.propagate, matcher.search
    stages = {"(1) initialization:\nmatches at random": [],
              "(2) propagation: good matches\nspread to neighbours": [spread],
              "(3) search: random places\naround the best so far": [search],
              "(2) and (3) five times more:\nwhole periods away": 5 * [spread, search]}
    axes = fig.subplots(2, 4)
    for (top, bottom), (title, moves) in zip(axes.T, stages.items()):
        for move in moves:
            move()
        new = ((matcher.field != before).any(dim=1) & ~matcher.valid)[0]
        before, count = matcher.field.clone(), int(new.sum())
        y, x = new.nonzero()[::max(1, count // 16)].T
        my, mx = matcher.field[0][:, y, x]
        gallery(top, [torch.where(hole > 0, 1, 0.3 * image + 0.5)])
        top.quiver(x + 3, y + 3, mx - x, my - y, color="#14305c", angles="xy", scale=1,
                   scale_units="xy", width=0.012)
        top.set_title(title)
        gallery(bottom, [torch.where(hole > 0, matcher.vote(image), image)])
        bottom.set_xlabel(f"{count} of {patches} matches are new;\n"
                          f"mean squared difference {matcher.energy().item():.3f}")
    axes[0, 0].set_ylabel("some patches of the hole\nand where their new matches are")
    axes[1, 0].set_ylabel("what the matches\nput into the hole")


@figure("scene")
def scene_matches(course, fig):
    faces = data.to_float(data.synthetic(2000, course.drawn))
    x, hole = data.to_float(data.synthetic(1, course.drawn, seed=7)), masks.center(1, course.drawn)
    index = F.avg_pool2d(faces, scene_completion.QUARTER).flatten(1)
    matches = faces[scene_completion.nearest(index, x, hole, scene_completion.MATCHES)]
    best = scene_completion.best_shift(x, hole, matches)
    row = [grey(x, hole), matches[:, 0], matches[:, 1], torch.where(hole > 0, best, x),
           scene_completion.blend(x, hole, best), x]
    strip(fig, [[image[0] for image in row]],
          ["to fill", f"the nearest of\n{len(faces):,} faces", "the next",
           "the best match,\nshifted, pasted", "only its gradients\npasted", "original"])


@figure("noising")
def step_by_step(course, fig):
    x, row = course.x, [course.x[0]]
    for t in range(T):
        x = course.linear.q_step(x, torch.tensor([t]), torch.randn_like(x))
        row += [x[0]] if (t + 1) % (T // 5) == 0 else []
    strip(fig, [row], [f"$x_{{{T // 5 * i}}}$" for i in range(6)],
          title=r"300 times a little noise: $x_t = \sqrt{1-\beta_t}\,x_{t-1} + \sqrt{\beta_t}\,"
                r"\epsilon$")


@figure("levels")
def signal_and_noise(course, fig):
    n = torch.tensor([0, 100, 200, 300])
    x0, noise = course.x.expand(4, -1, -1, -1), course.noise.expand(4, -1, -1, -1)
    rows = [course.linear.q_sample(a * x0, n - 1, b * noise) for a, b in ((1, 0), (0, 1), (1, 1))]
    left = course.linear.alpha_bar(n - 1, x0).flatten()
    strip(fig, rows, [rf"$x_{{{t}}}$:  $\bar\alpha_t$ = {a:.2f}" for t, a in zip(n, left)],
          [r"signal $\sqrt{\bar\alpha_t}\,x_0$", r"noise $\sqrt{1-\bar\alpha_t}\,\epsilon$",
           r"their sum $x_t$"])


@figure("linear", width=4.5)
def linear_schedule(course, fig):
    ax, betas = fig.subplots(), course.linear.betas
    curves(ax, r"the linear schedule: more noise at every step", {"": betas},
           ylabel=r"variance $\beta_t$ of the noise added", xticks=[1, 100, 200, 300])
    ax.text(30, betas[0], rf"$\beta_1$ = {betas[0]:g}")
    ax.text(270, betas[-1], rf"$\beta_{{{T}}}$ = {betas[-1]:g}", ha="right", va="center")


@figure("schedules", height=7)
def three_schedules(course, fig):
    three = {name: DDPM(betas(T)) for name, betas in SCHEDULES.items()}
    n = torch.arange(60, 301, 60)
    rows = []
    *axes, below = fig.subplot_mosaic("abc;ddd", height_ratios=[1, 2.5]).values()
    bars = {name: ddpm.alphas_bar for name, ddpm in three.items()}
    curves(axes[0], r"noise added at a step, $\beta_t$",
           {name: ddpm.betas for name, ddpm in three.items()}, yscale="log")
    curves(axes[1], r"signal left, $\bar\alpha_t$", bars)
    curves(axes[2], r"log SNR, $\ln\ \bar\alpha_t/(1-\bar\alpha_t)$",
           {name: torch.logit(bar) for name, bar in bars.items()})
    for ddpm in three.values():
        x = ddpm.q_sample(course.x.expand(5, -1, -1, -1), n - 1, course.noise)
        draws = ddpm.q_sample(course.x, n[-1:] - 1, torch.randn(100, *course.x.shape[1:]))
        rows.append([*x, draws.mean(dim=0)])
    gallery(below, rows, [*(f"$x_{{{t}}}$" for t in n), "mean of 100 $x_{300}$"], three)


@figure("step")
def one_step(course, fig):
    ddpm = course.linear
    left, middle, right = fig.subplots(1, 3, width_ratios=[1.6, 1, 1])
    before, axis = torch.full((SAMPLES, 1, 1, 1), 0.8), torch.linspace(0.2, 1.4, 400)
    for t in (20, 100, 300):
        drawn = ddpm.q_step(before, torch.tensor([t - 1]), torch.randn_like(before))
        left.hist(drawn.flatten(), 80, range=(0.2, 1.4), density=True, color="0.85")
        beta = ddpm.betas[t - 1]
        bell(left, axis, 0.8 * (1 - beta).sqrt(), beta, f"t = {t}")
    left.axvline(0.8, color="black", linestyle="-", linewidth=0.8, label="$x_{t-1}$ = 0.8")
    left.legend()
    left.set(title=r"$q(x_t\,|\,x_{t-1}) = N(\sqrt{1-\beta_t}\,x_{t-1},\ \beta_t)$", xlabel="$x_t$",
             ylabel="density (grey: samples)")
    curves(middle, r"mean: $x_{t-1}$ times $\sqrt{1-\beta_t}$", {"": (1 - ddpm.betas).sqrt()})
    curves(right, r"variance: $\beta_t$", {"": ddpm.betas})


def walk_and_jump(ddpm, x0, stops):
    """SAMPLES of x_t by t single steps and by one jump, for every t of `stops`: [(t, [N], [N])]."""
    start = x = torch.full((SAMPLES, 1, 1, 1), x0)
    found = []
    for t in range(max(stops)):
        x = ddpm.q_step(x, torch.tensor([t]), torch.randn_like(x))
        if t + 1 in stops:
            jump = ddpm.q_sample(start, torch.tensor([t]), torch.randn_like(x))
            found.append((t + 1, x.flatten(), jump.flatten()))
    return found


@figure("jump", height=3.1)
def many_steps_and_one(course, fig):
    axes = fig.subplots(1, 3, sharex=True)
    for ax, (t, walked, jumped) in zip(axes, walk_and_jump(course.linear, 0.8, (30, 100, 300))):
        ax.hist(walked, 60, range=(-3, 3), color="0.75", label=f"{t} single steps")
        ax.hist(jumped, 60, range=(-3, 3), histtype="step", linewidth=1.5, label="one jump")
        ax.set(title=f"$x_{{{t}}}$ from $x_0$ = 0.8", xlabel=f"$x_{{{t}}}$", yticks=[])
        ax.set_ylim(top=1.3 * ax.get_ylim()[1])
        ax.legend(loc="upper left")
    axes[0].set_ylabel(f"how many of {SAMPLES:,} samples")
    fig.suptitle(r"many small steps, or one jump: $q(x_t\,|\,x_0) = "
                 r"N(\sqrt{\bar\alpha_t}\,x_0,\ 1-\bar\alpha_t)$", size=10)


@figure("embedding")
def sinusoids(course, fig):
    left, right = fig.subplots(1, 2, width_ratios=[1.6, 1])
    table = timestep_embedding(torch.arange(T), 64)
    shown = left.imshow(table.T.numpy(), aspect="auto", interpolation="nearest",
                        extent=(0.5, T + 0.5, 63.5, -0.5))
    left.set(title="PE(t): every step is a column of 64 numbers", xlabel="step $t$",
             yticks=[0, 31, 32, 63],
             yticklabels=[r"$\sin\ t\,\omega_0$, fast", r"$\sin\ t\,\omega_{31}$, slow",
                          r"$\cos\ t\,\omega_0$, fast", r"$\cos\ t\,\omega_{31}$, slow"])
    left.get_yticklabels()[1].set_verticalalignment("bottom")
    left.get_yticklabels()[2].set_verticalalignment("top")
    fig.colorbar(shown, ax=left, ticks=[-1, 0, 1])
    curves(right, "steps that are near look alike",
           {f"s = {s}": table @ table[s - 1] / 32 for s in (50, 200)}, ylim=(0, 1.05),
           ylabel="PE(s) · PE(t) / 32")


def summary(net, size):
    """[(name, what it is, shape in, shape out, parameters, FLOPs)] of the layers, from one call."""
    layers = {name: layer for name, layer in net.named_modules()
              if re.fullmatch(r"time|stem|head|(down|middle|up)\.\d+", name)}
    shapes, counter = {}, FlopCounterMode(display=False)

    def note(layer, inputs, output):
        shapes[layer] = ["×".join(map(str, v.shape[1:])) for v in (inputs[0], output)]

    hooks = [layer.register_forward_hook(note) for layer in layers.values()]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:    # else attention goes uncounted
        net(torch.zeros(1, 3, size, size), torch.zeros(1).long(), torch.ones(1, 1, size, size))
    for hook in hooks:
        hook.remove()
    rows = []
    for name, layer in layers.items():
        attends = any(isinstance(part, SelfAttention) for part in layer.modules())
        rows.append((name, type(layer).__name__ + " + SelfAttention" * attends, *shapes[layer],
                     sum(p.numel() for p in layer.parameters()),
                     sum(counter.get_flop_counts().get(f"UNet.{name}", {}).values())))
    return rows


@figure("unet")
def unet_table(course, fig):
    rows = summary(course.net, course.size)
    *_, parameters, flops = zip(*rows)
    line = "{:9} {:24} {:>10} {:>10} {:>11} {:>7} {}".format
    lines = [line("layer", "what it is", "in, C×H×W", "out", "parameters", " MFLOPs",
                  "per image (a × and a + are two)"), ""]
    lines += [line(*shape, f"{n:,}", f"{f / 1e6:.1f}", "█" * round(24 * f / max(flops)))
              for *shape, n, f in rows]
    net, p, size = course.net, course.net.patch, course.size
    ends = [f"{channels // p ** 2}×{size}×{size}"
            for channels in (net.stem.in_channels, net.head[-1].out_channels)]
    lines += ["", line("all", f"U-Net on {p}×{p} patches", *ends, f"{sum(parameters):,}",
                       f"{sum(flops) / 1e6:.1f}", "")]
    fig.text(0, 0, "\n".join(lines), family="monospace")


@figure("adagn", height=4.3)
@torch.no_grad()
def adaptive_normalization(course, fig):
    """The same feature map h as a block's AdaGN would pass it on at other levels."""
    norm, seen, t = course.net.down[0].norm2, [], torch.arange(course.ddpm.T)
    hook = norm.register_forward_hook(lambda layer, inputs, _: seen.append(inputs[0]))
    course.net(course.x, t[:1], masks.center(1, course.size))
    hook.remove()
    before = norm.norm(seen[0])[0]
    emb = course.net.time(timestep_embedding(t, course.net.time_width))
    y_s, y_b = norm.scale_shift(emb).chunk(2, dim=1)                             # [T, C] each
    c = (y_s.std(dim=0) * before.std(dim=(1, 2))).argmax()                       # shows it most
    top, bottom = fig.subfigures(2, 1, height_ratios=[1.4, 1])
    for ax, y, name in zip(top.subplots(1, 2), (1 + y_s, y_b), ("scale $1 + y_s$", "shift $y_b$")):
        curves(ax, f"{name} of {y.shape[1]} channels, dark: channel {c}", {"": y[:, c]})
        ax.plot(t + 1, y, color="0.8", linestyle="-", linewidth=0.6, zorder=1)
    at = t[torch.linspace(0, len(t) - 1, 4).long()]
    maps = torch.stack([before[c], *(norm(seen[0], emb[i:i + 1])[0, c] for i in at)])
    limit = maps.abs().quantile(0.98)
    titles = [f"GroupNorm(h), channel {c}", *(f"AdaGN(h) at t = {i + 1}" for i in at)]
    for ax, feature, title in zip(bottom.subplots(1, 5), maps, titles):
        shown = ax.imshow(feature.numpy(), vmin=-limit, vmax=limit)
        ax.set_title(title, fontsize=9)
        ax.axis("off")
    bottom.colorbar(shown, ax=bottom.axes, pad=0.01)
    bottom.suptitle("the same h, $(1 + y_s)$ · GroupNorm(h) + $y_b$, at four steps", size=10)


@figure("posterior")
def mean_and_variance(course, fig):
    ddpm, one = course.cosine, torch.ones(T, 1, 1, 1, dtype=torch.float64)
    of_x0, variance = (v.flatten() for v in ddpm.posterior(one, 0 * one, torch.arange(T)))
    of_xt = ddpm.posterior(0 * one, one, torch.arange(T))[0].flatten()
    left, middle, right = fig.subplots(1, 3)
    curves(left, "mean: weights of $x_0$ and $x_t$ (cosine)", {"$x_0$": of_x0, "$x_t$": of_xt})
    curves(middle, r"variance: a little less than $\beta_t$",
           {"$q(x_{t-1}|x_t,x_0)$": variance, r"$q(x_t|x_{t-1})$: $\beta_t$": ddpm.betas},
           xscale="log", yscale="log", xticks=[1, 10, 100], xticklabels=[1, 10, 100])
    axis = torch.linspace(-0.8, 0.8, 500)
    for t in (5, 20, 60):
        bell(right, axis, (of_x0 - of_xt)[t - 1] / 2, variance[t - 1], f"t = {t}")
    right.vlines([-0.5, 0.5], 0, 15, color="black", linewidth=0.8)
    right.set(title="$q(x_{t-1}|x_t,x_0)$: from $x_t$ towards $x_0$", xlabel="$x_{t-1}$",
              ylabel="density", xticks=[-0.5, 0.5], xticklabels=["$x_t$", "$x_0$"])
    right.legend()


def algorithm_1(stops):
    """Train a small network on drawn faces: (its losses, samples [N, 3, 16, 16] at each stop)."""
    ddpm, net = DDPM(linear_betas(T), "eps", clip=True), UNet(16, 1, [16, 32], 1)
    optimizer = torch.optim.AdamW(net.parameters())
    images, hole = data.to_float(data.synthetic(2000, 16)), masks.full(BATCH, 16)
    losses, samples = [], []
    for step in range(1, max(stops) + 1):
        optimizer.param_groups[0]["lr"] = 3e-3 * train.lr_factor(step - 1, max(stops), warmup=20)
        x0 = images[torch.randint(len(images), (BATCH,))]
        loss = train.algorithm_1(ddpm, net, [optimizer], x0, hole)
        losses.append(loss.item())
        if step in stops:
            samples.append(ddpm.sample(net, torch.zeros(5, 3, 16, 16), hole[:5], 20, 1.0,
                                       torch.Generator().manual_seed(0)))
    return losses, samples


@figure("training", height=3.2)
def loss_curve(course, fig):
    left, right = fig.subplots(1, 2, width_ratios=[1.5, 1])
    stops = [STEPS // 20, STEPS // 4, STEPS]
    losses, samples = algorithm_1(stops)
    left.plot(losses, ".", color="0.75", markersize=3, label="one step")
    mean = torch.tensor(losses).unfold(0, STEPS // 20, 1).mean(dim=1)
    left.plot(range(STEPS // 20, STEPS + 1), mean, label=f"mean of the last {STEPS // 20}")
    left.set(title=f"Algorithm 1: {BATCH} images a step", xlabel="step", yscale="log",
             ylabel=r"$(\epsilon - \epsilon_\theta(x_t, t))^2$, mean over pixels")
    left.legend()
    gallery(right, samples, labels=[f"step {stop}" for stop in stops])
    right.set_title("samples, from the same noise")


@figure("weights", height=2.6)
def losses_of_the_shipped_network(course, fig):
    """From weights/celeba64.jsonl: what train.py logged, each training `before` images after the
    first began."""
    ax, rows = fig.subplots(), [json.loads(line) for line in LOG.read_text().splitlines()]
    for k, (before, training) in enumerate(itertools.groupby(rows, lambda row: row["before"])):
        training = [*training]
        x = [(before + row["images"]) / 1000 for row in training]
        for score, label, colour in (("loss", "training, t as in sampling", COLOURS[1]),
                                     ("held_out", "held out, t uniform", COLOURS[0])):
            ax.plot(x, [row[score] for row in training], color=colour, ls="-",
                    label=None if k else label)
        ax.axvline(before / 1000, color="black", lw=0.6, ls=":")
    ax.set(xlabel="thousand images seen, a dotted line where a training begins",
           ylabel="loss, of v")
    ax.legend()


def reverse(ddpm, eps_model, image, hole):
    """Algorithm 2, every step: ([x_T … x_0], [the x_0 that the network sees in each])."""
    xs, x0s = [], []

    def watched(x, t, hole):
        xs.append(x[0])
        return eps_model(x, t, hole)

    x = ddpm.sample(watched, image, hole, generator=torch.Generator().manual_seed(0),
                    callback=lambda t, x, x0: x0s.append(torch.where(hole > 0, x0, image)[0]))
    return [*xs, x[0]], [*x0s, x[0]]


def reverse_strip(fig, xs, x0s, title):
    stops = [round(i * (len(xs) - 1) / 5) for i in range(6)]
    strip(fig, [[images[i] for i in stops] for images in (xs, x0s)],
          [f"t = {len(xs) - 1 - i}" for i in stops],
          ["$x_t$", "the $\\hat x_0$\nseen in it"], title)


@figure("sampling")
def algorithm_2(course, fig):
    reverse_strip(fig, *reverse(course.ddpm, course.net, course.x, masks.full(1, course.size)),
                  f"Algorithm 2: from noise to {course.subject}, in {course.ddpm.T} steps")


@figure("inpainting")
def known_pixels_kept(course, fig):
    reverse_strip(fig, *course.inpainting,
                  "Algorithm 2 with the known pixels kept at every step: only the hole is drawn")


@figure("animation")
def film(course, fig):
    frames, side, font, (xs, x0s) = [], 192, ImageFont.load_default(size=14), course.inpainting
    for i in [*range(0, len(xs) - 1, -(-(len(xs) - 1) // 20)), *[len(xs) - 1] * 8]:
        frames.append(Image.new("RGB", (2 * side + 4, side + 22), "white"))
        for left, label, image in ((0, f"x at t = {len(xs) - 1 - i}", xs[i]),
                                   (side + 4, "the x0 seen in it", x0s[i])):
            picture = Image.fromarray(data.to_uint8(image[None])[0].numpy())
            frames[-1].paste(picture.resize((side, side), Image.NEAREST), (left, 22))
            ImageDraw.Draw(frames[-1]).text((left + 96, 11), label, "black", font, anchor="mm")
    return frames


def compare(course, fig, picture, names, faces=None, sharpener=None):
    """A hole of each family in the picture [1, H, W, 3] uint8, filled by the methods {name: title},
    those that need other pictures fitted to `faces`. With a sharpener, whose size the picture has,
    fills by the network are sharpened, and others of its size enlarged."""
    holes = torch.cat([family(1, picture.shape[1], torch.Generator().manual_seed(2))
                       for family in masks.FAMILIES.values()])
    images = picture.expand(len(holes), -1, -1, -1)
    columns = {"to fill": grey(data.to_float(images), holes)}
    for name, title in names.items():
        method = methods.find(name, course.ddpm, course.net, sharpener=sharpener)
        fill = method.fit(faces) if hasattr(method, "fit") else method.inpaint
        if sharpener and not (method.ANY_SIZE or methods.by_diffusion(name)):
            fill = partial(sharpen.coarse_fill, fill, course.size)
        samples = 1 + methods.by_diffusion(name)
        fills = inpaint.fill(fill, images, holes, samples)
        for k in range(samples):
            columns[title + f",\nsample {k + 1}" * (samples > 1)] = data.to_float(fills[:, k])
    columns["original"] = data.to_float(images)
    strip(fig, [*zip(*columns.values())], columns, masks.FAMILIES)


@figure("results")
def side_by_side(course, fig):
    network, sharpener = methods.default(course.net), course.sharpener
    compare(course, fig, astronaut(course.shown)[None], {
        network: f"diffusion ({network})", "encoder_decoder": "encoder-decoder", "glcic": "GLCIC",
        "gated_convolution": "gated convolution", "biharmonic": "biharmonic",
        "patchmatch": "PatchMatch"}, sharpener=sharpener)


@figure("drawn")
def fitted_to_drawn_faces(course, fig):
    """Fitted to CelebA, these would show its faces."""
    compare(course, fig, data.synthetic(1, course.drawn, seed=7), {
        "mean": "mean face", "ridge": "ridge regression", "scene_completion": "Scene Completion",
        "biharmonic": "biharmonic", "patchmatch": "PatchMatch"}, data.synthetic(2000, course.drawn))


@figure("sharpened")
def two_sizes(course, fig):
    """Six holes, filled by the first network and then sharpened: the same fill in both sizes."""
    small, size = methods.find("keep", course.ddpm, course.net), course.sharpener.size
    large = sharpen.cascade(small.inpaint, course.sharpener)
    images = data.to_float(torch.cat([astronaut(size).repeat(3, 1, 1, 1),
                                      data.synthetic(3, size, seed=7)]))
    families = 2 * ["center", "irregular", "freeform"]
    holes = torch.cat([masks.MASKS[family](1, size, torch.Generator().manual_seed(2))
                       for family in families])

    def generators():
        return [torch.Generator().manual_seed(k) for k in range(len(images))]
    given = images * (1 - holes), holes
    coarse = sharpen.coarse_fill(small.inpaint, course.size, *given, generators())
    columns = {"to fill": grey(images, holes),
               f"{course.size}×{course.size}, enlarged": torch.where(holes > 0, coarse, images),
               f"sharpened: {size}×{size}": large(*given, generators()), "original": images}
    strip(fig, [*zip(*columns.values())], columns, families)


@figure("windows", height=2.6)
def a_face_in_a_photograph(course, fig):
    """One hole, filled through a window three times as wide, and through that of the face found."""
    photograph, hole = torch.from_numpy(skimage.data.astronaut()), torch.zeros(1, 512, 512)
    hole[:, 60:150, 205:225] = 1
    method = methods.find(methods.default(course.net), course.ddpm, course.net,
                          sharpener=course.sharpener)
    found, _ = faces.find(photograph, hole, course.size, course.readout)
    panels = {"to fill": torch.where(hole[0, :, :, None] > 0, 128, photograph).byte()}
    for title, known in (("window: 3 × the hole", ()), ("window: the face found", found)):
        planned = windows.plan(hole, course.size, known)
        fills, _, _ = inpaint.complete(method.inpaint, photograph, hole, course.shown, 1,
                                       planned=planned)
        (top, left, side, _), _ = planned[0]
        picture = Image.fromarray(fills[0].numpy())
        ImageDraw.Draw(picture).rectangle((left, top, left + side, top + side), outline="white",
                                          width=3)
        panels[title] = torch.from_numpy(np.array(picture))
    panels["original"] = photograph
    strip(fig, [data.to_float(torch.stack([*panels.values()])[:, :256, 80:336])], panels,
          panel=2 * PANEL)


@figure("calls", height=5.2)
def quality_against_calls(course, fig):
    """From docs/calls.json: runs of evaluate.py that begin with keep@10. CRPS is paired with
    keep@10's, which the number of images does not shift; the rest is of the largest run."""
    runs, axes = json.loads(CALLS.read_text()), fig.subplots(2, 4, sharex=True, sharey="col")
    titles = {"crps_minus_first": "CRPS minus keep's at 10\n(of 255; low is good)",
              "fd": "Fréchet distance\n(low is good)", "spread_skill": "spread/skill\n(1 is right)",
              "psnr_hole": "PSNR of one sample, dB\n(a blur's is high)"}
    for i, hole in enumerate(("center", "irregular")):
        axes[i, 0].set_ylabel(f"{hole} holes", fontsize="large")
        for ax, (score, title) in zip(axes[i], titles.items()):
            for method, colour, marker in zip(methods.DIFFUSION, COLOURS, "os^Dv"):
                for first, run_ in zip((True, False), runs):
                    rows = sorted((r for r in run_["results"] if r["mask"] == hole
                                   and r["method"].partition("@")[0] == method
                                   and (first or score == "crps_minus_first")),
                                  key=lambda r: r["calls"])
                    values = torch.tensor([r[score] if isinstance(r[score], list)
                                           else [r[score]] * 3 for r in rows]).reshape(-1, 3)
                    mean, low, high = values.T
                    ax.errorbar([r["calls"] for r in rows], mean, [mean - low, high - mean],
                                color=colour, marker=marker, ms=4, ls="-" if first else "", lw=1.2,
                                mfc=colour if first else "white", capsize=2,
                                label=method if first else None)
            if score in ("crps_minus_first", "spread_skill"):
                ax.axhline(score == "spread_skill", color="black", lw=0.6, ls="-")
            ax.set(xscale="log", title=None if i else title, xlabel="network calls" if i else None)
            ax.set_xticks([5, 20, 100, 500, 2500], [5, 20, 100, 500, 2500])
    filled, *hollow = (run_["images"] for run_ in runs)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center",
               title=f"{filled} images" + "".join(f"\n(hollow: {n})" for n in hollow))


def write(drawn, path):
    """A Figure as a PNG of 256 colours, frames as a GIF; returns the file's path. If that fails,
    the picture that was there is kept."""
    if isinstance(drawn, list):
        path = path.with_suffix(".gif")
        with atomic_write(path) as half:
            drawn[0].save(half, "GIF", save_all=True, append_images=drawn[1:], duration=150, loop=0)
        return path
    path, buffer = path.with_suffix(".png"), io.BytesIO()
    drawn.savefig(buffer, format="png")
    with atomic_write(path) as half:
        Image.open(buffer).convert("RGB").quantize(256).save(half, "PNG", optimize=True)
    return path


def possible(course, names):
    """The figures named, or all: with other people's weights, all but OURS; with other weights than
    the shipped ones, which alone have a sharpener, all but what it draws."""
    missing, why = OURS, "of our own network only"
    if methods.knows_hole(course.net):
        missing, why = ["sharpened"] * (not course.sharpener), "of weights with a sharpener only"
    rest = [name for name in FIGURES if name not in missing]
    left = [name for name in names or FIGURES if name in missing]
    if names and left:
        raise BadInput(f"{', '.join(left)}: {why}; with these weights one can draw "
                       f"{', '.join(rest)}")
    if left:
        print(f"left out: {', '.join(left)}, {why}", file=sys.stderr)
    return names or rest


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("names", nargs="*", metavar="name", help="none: all of " + ", ".join(FIGURES))
    add("--out", default="out/figures", help="folder for the pictures")
    add("--weights", default=inpaint.WEIGHTS, help=WEIGHTS_HELP)
    args = parser.parse_args()
    check_empty(args)
    for name in args.names:
        if name not in FIGURES:
            raise BadInput(f"there is no figure {name!r}: {', '.join(FIGURES)}")
    course, out = Course(args.weights), Path(args.out)
    chosen, calls = possible(course, args.names), itertools.count(1)
    out.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE), tqdm(chosen, "drawing") as names:
        course.net.register_forward_hook(
            lambda *_: names.set_postfix_str(f"{name}, network call {next(calls)}"))
        for name in names:
            names.set_postfix_str(name)
            torch.manual_seed(0)                       # a figure does not depend on those before
            names.write(str(write(FIGURES[name](course), out / name)))


if __name__ == "__main__":
    run(main, memory="the network's size: name other --weights")
