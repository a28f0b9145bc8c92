"""Other people's networks: the same output, the same chain, and nothing that a file could do."""
import fnmatch
import hashlib
import itertools
import json
import pickle
import shutil
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.testing import assert_close

import evaluate
import inpaint
import methods
import scores
from ddpm import randn_like
from helpers import Evil, little_memory_and_no_hang, save_weights
from support import export, foreign
from support.cli import BadInput
from support.files import content
from support.guided_diffusion import ADM, architecture
from support.runs import load_weights
from tools import demo


def guided(path, change=lambda tensors: None, size=16):
    """A tiny random checkpoint, as guided-diffusion would save it."""
    torch.manual_seed(0)
    levels = (size // 8).bit_length()
    net = ADM(32, [32] * (levels - 1) + [64], 1, [False] * (levels - 1) + [True], 6)
    tensors = {name: 0.05 * torch.randn(t.shape) for name, t in net.state_dict().items()}
    change(tensors)
    torch.save(tensors, path)
    return path


def unet2d(size=16):
    """A tiny random network of diffusers'."""
    diffusers, halvings = pytest.importorskip("diffusers"), (size // 8).bit_length() - 1
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=size, block_out_channels=(8,) * halvings + (16,), norm_num_groups=4,
        layers_per_block=1, down_block_types=("DownBlock2D",) * halvings + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * halvings)


def pipeline(path, size):
    scheduler = pytest.importorskip("diffusers").DDPMScheduler(50, prediction_type="v_prediction")
    pytest.importorskip("diffusers").DDPMPipeline(unet2d(size), scheduler).save_pretrained(path)


KINDS = {"guided-diffusion": lambda path, size: guided(path, size=size),
         "UNet2DModel": lambda path, size: unet2d(size).save_pretrained(path),
         "pipeline": pipeline}


@pytest.fixture
def folder(tmp_path):
    """Saved by diffusers itself."""
    unet2d().save_pretrained(tmp_path / "net" / "unet")
    return tmp_path / "net"


@pytest.mark.parametrize("prediction", foreign.PREDICTIONS)
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("kind, eta", [("DDIMScheduler", 0.0), ("DDPMScheduler", 1.0)])
def test_a_chain_is_diffusers_own(folder, prediction, betas, kind, eta):
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, kind)(12, prediction_type=prediction, beta_schedule=betas)
    scheduler.save_pretrained(folder / "scheduler")
    scheduler.set_timesteps(12)
    ddpm, eps_model, size = load_weights(folder)
    net = diffusers.UNet2DModel.from_pretrained(folder / "unet")
    noise, hole = torch.randn(2, 3, 16, 16), torch.ones(2, 1, 16, 16)
    at = torch.tensor([3, 11])
    with torch.no_grad():
        assert_close(eps_model(noise, at, hole), net(noise, at).sample)
        generator = torch.Generator().manual_seed(1)
        ours = ddpm.sample(eps_model, 0 * noise, hole, None, eta, generator)
        generator, x = torch.Generator().manual_seed(1), None
        x = randn_like(noise, generator)
        for t in scheduler.timesteps:
            more = {"use_clipped_model_output": True} if eta == 0 else {"generator": generator}
            x = scheduler.step(net(x, t).sample, t, x, **more).prev_sample
    assert size == 16
    assert_close(ours, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("change, said", [
    ({"num_class_embeds": 10}, "class"), ({"in_channels": 4}, "4 channels"),
    ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
    ({"block_out_channels": [8, 2 ** 20]}, "not the weights"),
    ({"layers_per_block": 10 ** 9}, "not the weights"), ({"sample_size": None}, "sample_size"),
    ({"sample_size": 17}, "17×17 pixels"), ({"block_out_channels": 8}, "not the weights"),
    ({"class_embed_type": "timestep"}, "class"), ({"out_channels": 6}, "6 out")])
def test_what_is_not_understood_is_refused_by_name(folder, change, said):
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with little_memory_and_no_hang(), pytest.raises(BadInput, match=said):
        load_weights(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [16, 32, pytest.param(128, marks=pytest.mark.slow),
                                  pytest.param(256, marks=pytest.mark.slow)])
def test_every_method_fills_at_any_size_and_keeps_the_known_pixels(tmp_path, as_user, kind, size):
    """By inpaint.py, by the page and by evaluate.py; keep is refused by the first and the last."""
    weights = tmp_path / "weights.pt"
    KINDS[kind](weights, size)
    shared = "--weights", weights, "--samples", 2, "--steps", 2, "--device", "cpu"
    for name in methods.UNAWARE:
        status, printed, _ = as_user(inpaint, *shared, "--mask", "center", "--method", name)
        assert status == 0 and "2 network calls a fill" in printed
        one, two, before, hole = (np.asarray(Image.open(tmp_path / f"out/astronaut_{end}.png"))
                                  for end in ("0", "1", "input", "hole"))
        for fill in (one, two):
            changed = (fill != before).any(axis=-1)
            assert not changed[hole == 0].any() and changed[hole > 0].mean() > 0.5
        assert (one != two).any()
    unaware = ",".join(methods.UNAWARE)
    status, printed, _ = as_user(evaluate, *shared, "--methods", unaware, "--masks", "center",
                                 "--limit", 2, "--no-perceptual")
    assert status == 0 and f"{size}×{size}" in printed
    assert all(f"| center | {name} | 2 |" in printed for name in methods.UNAWARE)
    for command in (inpaint, evaluate):
        flag = "--method" + "s" * (command is evaluate)
        status, _, said = as_user(command, *shared, flag, "keep", "--out", "other")
        assert status == 2 and said.splitlines()[-1].endswith(
            "keep: these weights know no hole; methods that need no more are replace, repaint, "
            "ddnm, pigdm; the best is pigdm")
    fill_on_the_page(tmp_path, weights, size)


def fill_on_the_page(tmp_path, weights, size):
    model = demo.load(weights)
    assert model.size == size and next(iter(model.ways)) == "pigdm" and "keep" not in model.ways
    drawn = demo.draw("center", demo.read_photograph(None)[1].size)
    for name in methods.UNAWARE:
        *_, (state, pictures, command) = demo.fill(model, lambda: tmp_path, None, drawn, name, 2, 1,
                                                   0)
        before, fill, hole = (np.asarray(Image.open(file)) for file, _ in pictures)
        changed = (fill != before).any(axis=-1)
        assert not changed[hole == 0].any() and changed[hole > 0].mean() > 0.5
        assert f"--method {name}" in command and f"--weights {weights}" in command


def test_the_default_is_pigdm_and_a_file_that_says_nothing_is_taken_for_one_published(
        tmp_path, as_user):
    ddpm, eps_model, size = load_weights(guided(tmp_path / "g.pt"))
    assert (size, ddpm.T, ddpm.prediction) == (16, 1000, "eps")
    assert_close(ddpm.betas, torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    assert methods.default(eps_model) == "pigdm"
    run = as_user, inpaint, "--weights", "g.pt", "--mask", "center", "--steps", 2, "--samples", 1
    (status, _, said), (again, _, _) = (call(*argv, *more, "--device", "cpu") for more in (
        ("--out", "a"), ("--out", "b", "--method", "pigdm")) for call, *argv in [run])
    assert (status, again) == (0, 0)
    assert ("g.pt: taken for 16×16 pixels, heads of 64 channels, to predict ε, T = 1000 and β "
            "linear from 0.0001 to 0.02") in said
    one, two = (np.asarray(Image.open(tmp_path / out / "astronaut_0.png")) for out in "ab")
    assert (one == two).all()


@pytest.mark.parametrize("name, told", [("replace", 2), ("ddnm", 2), ("pigdm", 4)])
def test_the_time_announced_counts_pigdms_backward_passes(tmp_path, as_user, monkeypatch, name,
                                                          told):
    """On a clock by which a call for two images takes a second: 2 images, 2 calls each."""
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr(evaluate, "time", clock)
    guided(tmp_path / "g.pt")
    status, _, said = as_user(evaluate, *("--weights g.pt --limit 2 --samples 1 --steps 2 --masks "
                              f"center --no-perceptual --device cpu --methods {name}").split())
    assert status == 0 and f"4 network calls: about {told} s" in said


def test_a_folder_of_fills_called_keep_is_scored_with_weights_that_know_no_hole(tmp_path, as_user):
    guided(tmp_path / "g.pt")
    shared = "--limit 2 --masks center --no-perceptual --device cpu --weights".split()
    assert as_user(evaluate, *shared, save_weights(tmp_path, 16), "--methods", "keep", "--steps",
                   "2", "--samples", "1", "--save", "--out", "ours")[0] == 0
    status, printed, _ = as_user(evaluate, *shared, "g.pt", "--from", "ours/fills")
    assert status == 0 and "| center | keep | 2 |" in printed and "pigdm" not in printed


def test_memory_is_that_of_one_large_image_whatever_the_batch():
    """The network sees `at_once` images at a time; estimates and gradients are those of all."""
    class Watched(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.seen = torch.nn.Conv2d(3, 6, 3, padding=1), []

        def forward(self, x, t):
            self.seen.append(len(x))
            return self.layer(x).tanh() * t[:, None, None, None]

    torch.manual_seed(0)
    eps_model = foreign.Unconditional(Watched(), 128)
    x, t, at_a_time = torch.randn(9, 3, 128, 128), torch.arange(9), eps_model.network.seen
    with torch.no_grad():
        estimate = eps_model(x, t, None)
    assert at_a_time == [4, 4, 1]
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(eps_model(x, t, None).square().sum(), x)
    assert max(at_a_time) == 4
    whole = eps_model.network(x, t)[:, :3]
    (wanted,) = torch.autograd.grad(whole.square().sum(), x)
    assert_close(estimate, whole.detach())
    assert_close(gradient, wanted)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: kept.append(v.numel()), lambda v: v):
        eps_model(x, t, None)
    assert sum(kept) < 2 * x.numel()                # no more than what comes in, and what goes out
    at_once = [foreign.Unconditional(Watched(), side).at_once for side in (16, 256, 1024)]
    assert at_once == [256, 1, 1]


# ---- guided-diffusion's network, written out ---------------------------------------------------
# Dhariwal and Nichol 2021: adaptive group normalization (section 3), BigGAN's residual blocks that
# resize (Brock et al. 2019), heads of 64 channels. Names and shapes are those of a published file,
# for 32 channels, multiples (1, 4), one residual block a level, attention at 8×8; 16×16 images.

LAYERS = [("input_blocks.1.0", 32, 32, None), ("input_blocks.2.0", 32, 32, "down"),
          ("input_blocks.3.0", 32, 128, None), ("input_blocks.3.1", 128, 128, "attention"),
          ("middle_block.0", 128, 128, None), ("middle_block.1", 128, 128, "attention"),
          ("middle_block.2", 128, 128, None),
          ("output_blocks.0.0", 256, 128, None), ("output_blocks.0.1", 128, 128, "attention"),
          ("output_blocks.1.0", 160, 128, None), ("output_blocks.1.1", 128, 128, "attention"),
          ("output_blocks.1.2", 128, 128, "up"),
          ("output_blocks.2.0", 160, 32, None), ("output_blocks.3.0", 64, 32, None)]


def published():
    """A checkpoint of random weights, {name: tensor}."""
    shapes = {"time_embed.0": (128, 32), "time_embed.2": (128, 128),
              "input_blocks.0.0": (32, 3, 3, 3), "out.0": (32,), "out.2": (6, 32, 3, 3)}
    for name, before, after, kind in LAYERS:
        if kind == "attention":
            shapes |= {f"{name}.norm": (after,), f"{name}.qkv": (3 * after, after, 1),
                       f"{name}.proj_out": (after, after, 1)}
            continue
        shapes |= {f"{name}.in_layers.0": (before,), f"{name}.in_layers.2": (after, before, 3, 3),
                   f"{name}.emb_layers.1": (2 * after, 128), f"{name}.out_layers.0": (after,),
                   f"{name}.out_layers.3": (after, after, 3, 3)}
        if before != after:
            shapes[f"{name}.skip_connection"] = (after, before, 1, 1)
    torch.manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        fan_in = max(1, torch.Size(shape[1:]).numel())
        tensors[f"{name}.weight"] = torch.randn(shape) / fan_in ** 0.5
        tensors[f"{name}.bias"] = 0.3 * torch.randn(shape[0])
    return tensors


def layer(w, name, kind, x, emb):
    """What one of LAYERS makes of x [B, C, H, W]; emb [B, 128]."""
    def of(part):
        return w[f"{name}.{part}.weight"], w[f"{name}.{part}.bias"]

    def resized(x):
        if kind == "down":                                    # the mean of each 2×2 square
            return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2]
                    + x[..., 1::2, 1::2]) / 4
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2) if kind == "up" else x

    if kind == "attention":
        qkv, heads = F.conv1d(F.group_norm(x, 32, *of("norm")).flatten(2), *of("qkv")), []
        for head in qkv.chunk(x.shape[1] // 64, dim=1):       # each head's own q, k and v, in turn
            q, k, v = head.chunk(3, dim=1)                                        # [B, 64, HW]
            weight = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / 64 ** 0.5, dim=-1)
            heads.append(torch.einsum("bij,bcj->bci", weight, v))
        return x + F.conv1d(torch.cat(heads, dim=1), *of("proj_out")).reshape(x.shape)
    h = resized(F.silu(F.group_norm(x, 32, *of("in_layers.0"))))
    h = F.group_norm(F.conv2d(h, *of("in_layers.2"), padding=1), 32, *of("out_layers.0"))
    scale, shift = F.linear(F.silu(emb), *of("emb_layers.1"))[:, :, None, None].chunk(2, dim=1)
    h = F.conv2d(F.silu(h * (1 + scale) + shift), *of("out_layers.3"), padding=1)
    x = resized(x)
    if f"{name}.skip_connection.weight" in w:
        x = F.conv2d(x, *of("skip_connection"))
    return x + h


def written_out(w, x, t):
    """{layer's name: its output} of the network with weights w, x [B, 3, 16, 16], t [B]."""
    angles = t[:, None] * 10_000 ** (-torch.arange(16) / 16)
    emb = torch.cat([angles.cos(), angles.sin()], dim=1)
    emb = F.linear(emb, w["time_embed.0.weight"], w["time_embed.0.bias"])
    emb = F.linear(F.silu(emb), w["time_embed.2.weight"], w["time_embed.2.bias"])
    x = F.conv2d(x, w["input_blocks.0.0.weight"], w["input_blocks.0.0.bias"], padding=1)
    found, last = {"input_blocks.0.0": x}, [name for name, *_ in LAYERS]
    skips = [x]
    for i, (name, _, _, kind) in enumerate(LAYERS):
        if name.startswith("output_blocks") and name.endswith(".0"):
            x = torch.cat([x, skips.pop()], dim=1)
        found[name] = x = layer(w, name, kind, x, emb)
        if name.startswith("input_blocks") and not last[i + 1].endswith(".1"):  # after a block
            skips.append(x)
    h = F.silu(F.group_norm(x, 32, w["out.0.weight"], w["out.0.bias"]))
    return {**found, "out.2": F.conv2d(h, w["out.2.weight"], w["out.2.bias"], padding=1)}


def test_guided_diffusions_network_is_the_published_formulas_layer_by_layer(tmp_path):
    torch.save(published(), tmp_path / "g.pt")
    _, eps_model, size = load_weights(tmp_path / "g.pt")
    net, ours = eps_model.network, {}
    want_names = ["input_blocks.0.0", *(name for name, *_ in LAYERS), "out.2"]
    for name in want_names:
        net.get_submodule(name).register_forward_hook(
            lambda module, given, output, name=name: ours.update({name: output}))
    x, t = torch.randn(2, 3, size, size), torch.tensor([3, 700])
    output, want = eps_model(x, t, None), written_out(published(), x, t)
    for name in want_names:
        assert_close(ours[name], want[name], rtol=1e-4, atol=1e-4, msg=lambda m: f"{name}: {m}")
    assert_close(output, want["out.2"][:, :3], rtol=1e-4, atol=1e-4)
    assert size == 16 and want["out.2"].std() > 0.1


# Settings of published files, which RePaint, DPS and guided-diffusion list: model channels, their
# multiples, residual blocks, resolutions with attention; side, millions of parameters as published.
PUBLISHED = {"ImageNet 256, unconditional": (256, (1, 1, 2, 2, 4, 4), 2, (32, 16, 8), 256, 553),
             "RePaint's CelebA-HQ": (256, (1, 1, 2, 2, 4, 4), 2, (32, 16, 8), 256, 553),
             "DPS's FFHQ": (128, (1, 1, 2, 2, 4, 4), 1, (16,), 256, 94),
             "64 (1)": (192, (1, 2, 3, 4), 3, (32, 16, 8), 64, None),
             "128": (256, (1, 1, 2, 3, 4), 2, (32, 16, 8), 128, None),
             "512": (256, (0.5, 1, 1, 2, 2, 4, 4), 2, (32, 16, 8), 512, None)}


def shapes(channels, multiples, blocks, attention, side):
    """{name: shape} of a published checkpoint, after guided-diffusion's own numbering."""
    found, emb, skips = {}, 4 * channels, []

    def add(name, *shape):
        found.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})

    def residual(name, before, after):
        add(f"{name}.in_layers.0", before)
        add(f"{name}.in_layers.2", after, before, 3, 3)
        add(f"{name}.emb_layers.1", 2 * after, emb)
        add(f"{name}.out_layers.0", after)
        add(f"{name}.out_layers.3", after, after, 3, 3)
        if before != after:
            add(f"{name}.skip_connection", after, before, 1, 1)

    def attend(name, width):
        add(f"{name}.norm", width)
        add(f"{name}.qkv", 3 * width, width, 1)
        add(f"{name}.proj_out", width, width, 1)

    add("time_embed.0", emb, channels)
    add("time_embed.2", emb, emb)
    width, number = int(multiples[0] * channels), 0
    add("input_blocks.0.0", width, 3, 3, 3)
    skips.append(width)
    for level, multiple in enumerate(multiples):
        for step in range(blocks + (level < len(multiples) - 1)):     # the last of a level resizes
            number, wider = number + 1, int(multiple * channels)
            residual(f"input_blocks.{number}.0", width, wider)
            width = wider
            if step < blocks and side >> level in attention:
                attend(f"input_blocks.{number}.1", width)
            skips.append(width)
    residual("middle_block.0", width, width)
    attend("middle_block.1", width)
    residual("middle_block.2", width, width)
    for number in range(len(multiples) * (blocks + 1)):
        level = len(multiples) - 1 - number // (blocks + 1)
        wider, attends = int(multiples[level] * channels), side >> level in attention
        residual(f"output_blocks.{number}.0", width + skips.pop(), wider)
        width = wider
        if attends:
            attend(f"output_blocks.{number}.1", width)
        if level and number % (blocks + 1) == blocks:
            residual(f"output_blocks.{number}.{1 + attends}", width, width)
    add("out.0", width)
    add("out.2", 6, width, 3, 3)
    return found


@pytest.mark.parametrize("settings", PUBLISHED.values(), ids=PUBLISHED)
def test_a_published_networks_shapes_are_understood_by_themselves(settings):
    *given, side, millions = settings
    tensors = {name: torch.empty(shape, device="meta")
               for name, shape in shapes(*given, side).items()}
    foreign.check_guided("file.pt", tensors)
    arguments, found = architecture(tensors)
    with torch.device("meta"):
        ours = ADM(**arguments).state_dict()
    assert found == side
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in tensors.items()}
    assert millions in (None, round(sum(t.numel() for t in ours.values()) / 1e6))


def unshifted(tensors):
    for name in [name for name in tensors if "emb_layers.1" in name]:
        tensors[name] = tensors[name][:len(tensors[name]) // 2].clone()


@pytest.mark.parametrize("change, said", [
    (unshifted, "use_scale_shift_norm False"),
    (lambda t: t.update({"input_blocks.2.0.op.weight": torch.zeros(32, 32, 3, 3)}),
     "resblock_updown False"),
    (lambda t: t.update({"label_emb.weight": torch.zeros(9, 128)}), "class"),
    (lambda t: t["out.2.bias"].fill_(torch.nan), "out.2.bias is complex, NaN"),
    (lambda t: t.update({"input_blocks.0.0.weight": torch.zeros(32, 6, 3, 3)}), "6 channels"),
    (lambda t: t.update({"input_blocks.1.0.in_layers.2.weight":
                         torch.zeros(()).expand(2 ** 20, 32, 3, 3)}), "guided-diffusion"),
    (lambda t: t.update({"output_blocks.99999999.0.x": torch.zeros(1)}), "guided-diffusion"),
    (lambda t: t.pop("out.2.weight"), "guided-diffusion")])
def test_hostile_guided_diffusion_files_are_one_line(tmp_path, change, said):
    path = guided(tmp_path / "g.pt", change)
    with little_memory_and_no_hang(), pytest.raises(BadInput, match=said):
        load_weights(path)


def test_a_pickle_in_a_folder_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{foreign.NAME}.bin").write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(Exception, match="zip"):
        foreign.read_network(tmp_path)
    assert not Path("ran").exists()


def hostile_bytes(path, kind):
    """A safetensors file spoilt: a header that claims more than there is, or a NaN."""
    whole = bytearray(path.read_bytes())
    if kind == "NaN":
        whole[-2:] = b"\xff\xff"                   # the last number's exponent, of either precision
        path.write_bytes(whole)
    elif kind == "short":
        path.write_bytes(whole[:len(whole) // 2])
    else:                                                            # a header of 2⁶⁰ bytes
        path.write_bytes((2 ** 60).to_bytes(8, "little") + whole[8:])


@pytest.mark.parametrize("kind", ["NaN", "short", "claims"])
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "diffusers"])
def test_hostile_safetensors_are_one_line(tmp_path, request, kind, ours):
    pytest.importorskip("safetensors")
    if ours:
        folder = tmp_path / "out"
        export.export(folder, save_weights(tmp_path / "w"), "Faces")
        path = folder / "model.safetensors"
    else:
        folder = request.getfixturevalue("folder")
        path = folder / "unet" / f"{foreign.NAME}.safetensors"
    hostile_bytes(path, kind)
    said = "NaN or infinite" if kind == "NaN" else "or damaged"
    with little_memory_and_no_hang(), pytest.raises(BadInput, match=said):
        load_weights(folder)


@pytest.mark.parametrize("form", ["pickle", "zip"])
def test_a_pickle_beside_a_config_runs_no_code(folder, monkeypatch, form):
    path = folder / "unet" / f"{foreign.NAME}.bin"
    (folder / "unet" / f"{foreign.NAME}.safetensors").unlink()
    monkeypatch.chdir(folder)
    with pytest.raises(BadInput, match=f"no {foreign.NAME}.safetensors beside its config.json"):
        load_weights(folder)
    if form == "zip":
        torch.save({"a": Evil()}, path)
    else:
        path.write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(BadInput, match="not the weights"):
        load_weights(folder)
    assert not Path("ran").exists()


@pytest.mark.parametrize("part", ["vae", "vqvae", "text_encoder"])
def test_a_pipeline_on_latents_or_texts_is_refused_by_name(tmp_path, part):
    (tmp_path / "model_index.json").write_text(json.dumps({part: ["diffusers", "X"]}))
    with pytest.raises(BadInput, match=f"a {part}, so its network works on latents"):
        load_weights(tmp_path)


def test_our_export_and_a_network_of_diffusers_are_had_from_the_hub(folder, tmp_path, monkeypatch):
    """A hub that gives out only what it is asked for."""
    def snapshot_download(name, allow_patterns):
        files = [file for file in (tmp_path / name).rglob("*") if file.is_file() and any(
            fnmatch.fnmatch(file.relative_to(tmp_path / name), one) for one in allow_patterns)]
        for file in files:
            place = tmp_path / "had" / file.relative_to(tmp_path)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
        return tmp_path / "had" / name
    hub = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    (tmp_path / "theirs").mkdir()
    folder.rename(tmp_path / "theirs" / "faces")
    export.export(tmp_path / "ours" / "faces", save_weights(tmp_path / "w"), "Faces")
    (tmp_path / "away").mkdir()                         # else the names would be those of folders
    monkeypatch.chdir(tmp_path / "away")
    for name in ("theirs/faces", "ours/faces"):
        had = foreign.local(name)
        assert had == tmp_path / "had" / name and not (had / "README.md").exists()
        load_weights(had)


def test_our_weights_come_back_from_safetensors_bit_for_bit(tmp_path):
    pytest.importorskip("safetensors")
    weights = save_weights(tmp_path / "w")
    export.export(tmp_path / "out", weights, "Faces")
    (_, one, _), (ddpm, two, size) = load_weights(weights), load_weights(tmp_path / "out")
    assert (ddpm.T, size) == (20, 16)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\nlicense: other")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("precious")
    with pytest.raises(BadInput, match="has a README.md that is not of an export"):
        export.export(tmp_path / "mine", weights, "Faces")
    for name, text in (("config.json", "{}"), ("model.safetensors", "precious, too")):
        (tmp_path / "mine" / name).write_text(text)
    with pytest.raises(BadInput, match="has a model.safetensors that is not of an export"):
        export.export(tmp_path / "mine", weights, "Faces")
    assert (tmp_path / "mine" / "README.md").read_text() == "precious"


def test_features_of_a_foreign_network_are_refused_in_a_line(tmp_path):
    _, eps_model, _ = load_weights(guided(tmp_path / "adm.pt"))
    with pytest.raises(BadInput, match="--features unet reads the middle of our own U-Net"):
        scores.unet_features(eps_model)


def test_a_folder_is_hashed_in_blocks_and_in_the_order_of_its_names(tmp_path):
    for name, byte in (("b.bin", b"2"), ("a/z.bin", b"1")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(byte * 2 ** 24)
    tracemalloc.start()
    ours = content(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ours == hashlib.sha256(b"1" * 2 ** 24 + b"2" * 2 ** 24).digest()
    assert peak < 2 ** 21
