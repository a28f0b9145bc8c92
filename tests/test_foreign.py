"""Other people's networks: the same output, the same chain, and nothing that a file could do."""
import hashlib
import json
import pickle
import tracemalloc
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import data
import inpaint
import masks
import methods
import scores
from ddpm import randn_like
from helpers import Evil, little_memory_and_no_hang
from support import export, foreign
from support.cli import BadInput
from support.files import content
from support.guided_diffusion import ADM
from support.runs import load_weights

SHAPE = {"channels": 32, "widths": [32, 64], "blocks": 1, "attention": [False, True],
         "out_channels": 6}


def guided(path, change=lambda tensors: None):
    torch.manual_seed(0)
    tensors = {name: 0.05 * torch.randn(t.shape) for name, t in ADM(**SHAPE).state_dict().items()}
    change(tensors)
    torch.save(tensors, path)
    return path


@pytest.fixture
def folder(tmp_path):
    """A tiny random network, saved by diffusers itself."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=16, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    net.save_pretrained(tmp_path / "net" / "unet")
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
    ({"layers_per_block": 10 ** 9}, "not the weights"), ({"sample_size": None}, "sample_size")])
def test_what_is_not_understood_is_refused_by_name(folder, change, said):
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with little_memory_and_no_hang(), pytest.raises(BadInput, match=said):
        load_weights(folder)


def test_guided_diffusions_networks_fill_and_keep_the_known_pixels(tmp_path):
    ddpm, eps_model, size = load_weights(guided(tmp_path / "g.pt"))
    assert (size, ddpm.T, ddpm.prediction) == (16, 1000, "eps")
    assert methods.default(eps_model) == "pigdm"
    images, hole = data.synthetic(1, 16), masks.center(1, 16)
    for name in methods.UNAWARE:
        fills = inpaint.fill(methods.find(name, ddpm, eps_model, 3).inpaint, images, hole, 1)
        inside = hole[0, 0].bool()
        same = fills[0, 0] == images[0]
        assert same[~inside].all() and not same[inside].all()
    with pytest.raises(BadInput, match="repaint.*pigdm"):
        methods.find("keep", ddpm, eps_model)


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


@pytest.mark.parametrize("change, said", [
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


def test_our_weights_come_back_from_safetensors_bit_for_bit(tmp_path):
    pytest.importorskip("safetensors")
    from helpers import save_weights
    weights = save_weights(tmp_path / "w")
    export.export(tmp_path / "out", weights, "Faces")
    (_, one, _), (ddpm, two, size) = load_weights(weights), load_weights(tmp_path / "out")
    assert (ddpm.T, size) == (20, 16)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\nlicense: other")


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
