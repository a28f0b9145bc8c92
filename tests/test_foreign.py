"""Other people's networks: the same output, the same chain, and nothing that a file could do."""
import json
import pickle
from pathlib import Path

import pytest
import torch
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


@pytest.mark.parametrize("change, said", [
    (lambda t: t.update({"label_emb.weight": torch.zeros(9, 128)}), "class"),
    (lambda t: t["out.2.bias"].fill_(torch.nan), "out.2.bias is NaN"),
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
