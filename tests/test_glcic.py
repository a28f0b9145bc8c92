"""GLCIC: what its networks see, who learns in which phase, and a run that can be interrupted."""
import copy
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
import masks
import methods
import train
from baselines import glcic
from helpers import disk_with_room_for
from support import files, runs
from support.cli import BadInput, run

TINY = ("train --data synthetic --limit 24 --size 16 --width 4 --batch 4 --steps 11 --every 3 "
        "--save-every 0 --device cpu --no-bf16").split()
# steps 0 and 1 are phase one, 2 is two, 3 … 10 three


def settings(*more):
    return glcic.parse([*TINY, "--out", "/nowhere", *more])[0]


def start(out, *more):
    args, checkpoint = glcic.parse([*TINY, "--out", str(out), *more])
    return glcic.learn(args, checkpoint)


def example(B=4, size=16, family="random"):
    """Faces, whole, and holes."""
    hole = masks.MASKS[family](B, size, torch.Generator().manual_seed(0))
    return data.to_float(data.synthetic(B, size, seed=9)), hole


# ---- the networks ------------------------------------------------------------------------------

@pytest.mark.parametrize("gated", [False, True])
def test_every_pixel_of_a_fill_sees_all_of_the_image(gated):
    """With weights above 0 no two paths cancel: a gradient of 0 means that there is no path."""
    C = glcic.Completion(width=2, gated=gated).double()
    for parameter in C.parameters():
        parameter.data.abs_()
    seen = torch.ones(1, 4, 64, 64, dtype=torch.float64, requires_grad=True)
    painted = C.layers(seen)[0, 0]
    for y, x in ((32, 32), (0, 0), (0, 63), (63, 0), (63, 63)):
        (slope,) = torch.autograd.grad(painted[y, x], seen, retain_graph=True)
        assert slope.isfinite().all() and (slope > 0).all(), (y, x)


def test_a_gate_scales_its_feature():
    """φ(W_f ∗ x) · σ(W_g ∗ x): all of the feature at a gate of +∞, half at 0, nothing at -∞."""
    torch.manual_seed(0)
    layer, x = glcic.Convolution(4, 6, stride=2, gated=True), torch.randn(2, 4, 8, 8)
    feature = torch.nn.functional.elu(layer.feature(x))
    for bias, share in ((0, 0.5), (50, 1), (-50, 0), (1, 0.7310586)):
        layer.gate.bias.data.fill_(bias)
        torch.testing.assert_close(layer(x), share * feature)


@pytest.mark.parametrize("gated, width", [(False, 32), (True, 24)])
def test_two_files_of_weights_stay_below_6_mb(gated, width):
    words = ["train", "--data", "synthetic", "--out", "/nowhere", *["--gated"] * gated]
    args, _ = glcic.parse(words)
    assert (args.gated, args.width) == (gated, width)
    numbers = sum(p.numel() for p in glcic.Completion(args.width, args.gated).parameters())
    assert 1_200_000 < numbers < 1_500_000                       # 2 bytes each


@pytest.mark.parametrize("size", [16, 19, 30])
@pytest.mark.parametrize("family", masks.MASKS)
def test_known_pixels_are_exact_and_the_holes_are_not_looked_at(family, size):
    torch.manual_seed(0)
    C, (x, hole) = glcic.Completion(4), example(size=size, family=family)
    filled = C(x, hole)
    assert filled.shape == x.shape and filled.isfinite().all() and filled.abs().max() <= 1
    assert torch.equal(torch.where(hole > 0, x, filled), x)
    assert torch.equal(filled, C(torch.where(hole > 0, 0.7, x), hole))
    assert not torch.equal(filled, x)


@pytest.mark.parametrize("family", masks.MASKS)
@pytest.mark.parametrize("size", [32, 64])
def test_the_local_context_is_the_square_around_the_hole(family, size):
    B = 32
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    hole = masks.MASKS[family](B, size, torch.Generator().manual_seed(0))
    patch = glcic.local_patch(torch.stack([y, x]).expand(B, 2, size, size), hole)
    assert patch.shape == (B, 2, size // 2, size // 2)
    steps = torch.arange(size // 2)
    for axis, place in enumerate((y, x)):
        first = patch[:, axis, 0, 0]
        rows = first[:, None] + steps
        expected = rows[:, :, None] if axis == 0 else rows[:, None, :]
        assert torch.equal(patch[:, axis], expected.expand(B, size // 2, size // 2))
        assert first.min() >= 0 and first.max() <= size // 2
        centre = torch.stack([place[h > 0].float().mean() for h in hole[:, 0]])
        inside = (centre > first - 0.5) & (centre < first + size // 2 - 0.5)
        assert inside.all()
        off = (first + (size // 2 - 1) / 2 - centre).abs()
        free = (first > 0) & (first < size // 2)
        assert (off[free] <= 0.5).all() and free.any()


def test_the_discriminator_looks_at_the_image_and_closer_around_the_hole():
    torch.manual_seed(0)
    D, (x, _) = glcic.Discriminator(16, width=4), example(B=1)
    hole = torch.zeros(1, 1, 16, 16)
    hole[..., 1:5, 9:13] = 1                                     # centred at (3, 11): clamped down
    x.requires_grad_()
    (slope,) = torch.autograd.grad(D.local_context(glcic.local_patch(x, hole)).sum(), x)
    seen = torch.zeros(16, 16, dtype=torch.bool)
    seen[0:8, 7:15] = True
    assert torch.equal(slope.abs().sum(dim=(0, 1)) > 0, seen)
    (slope,) = torch.autograd.grad(D(x, hole).sum(), x)
    assert (slope.abs().sum(dim=(0, 1)) > 0).all()
    assert D(x, hole) != D(x, hole.flip(2)) and D(x, hole).shape == (1,)


# ---- Algorithm 1 -------------------------------------------------------------------------------

def test_the_phases_last_18_2_and_80_percent():
    phases = [glcic.phase(step, 500) for step in range(500)]
    assert phases == 90 * [1] + 10 * [2] + 400 * [3]
    assert {glcic.phase(step, 500, "l2") for step in range(500)} == {1}


def same(one, two, name):
    """Of each parameter of the network, whether it is the same in both states."""
    return [torch.equal(p, q) for p, q in zip(one[name].parameters(), two[name].parameters())]


@pytest.mark.parametrize("phase, learners", [(1, "C"), (2, "D"), (3, "CD")])
def test_each_phase_teaches_only_whom_it_should(phase, learners):
    state, (x, hole) = glcic.build(settings()), example()
    before = copy.deepcopy(state)
    losses = glcic.update(state, x, hole, hole.flip(0), phase)
    for name, optimizer in (("C", "optimizer"), ("D", "optimizer_D")):
        assert set(same(before, state, name)) == {name not in learners}
        assert bool(state[optimizer].state) == (name in learners)
    assert list(losses) == {1: ["mse"], 2: ["discriminator"],
                            3: ["discriminator", "mse", "adversarial"]}[phase]


def test_alpha_weighs_the_adversary_in_what_c_learns_and_nothing_else():
    """With α = 0, C's step in phase three is that of phase one."""
    after = []
    for phase, alpha in ((1, 0.0), (3, 0.0), (3, 1.0)):
        after.append(glcic.build(settings()))
        x, hole = example()
        glcic.update(after[-1], x, hole, hole.flip(0), phase, alpha)
    one, three, weighed = after
    assert all(same(one, three, "C")) and not any(same(one, three, "D"))
    assert not all(same(three, weighed, "C")) and all(same(three, weighed, "D"))


def test_d_learns_to_tell_and_c_to_deceive():
    state, (x, hole) = glcic.build(settings()), example(B=8)
    C, D, other = state["C"], state["D"], hole.flip(0)
    for _ in range(15):
        told = glcic.update(state, x, hole, other, phase=2)["discriminator"]
    assert (D(x, other) > 0).all() and (D(C(x, hole), hole) < 0).all() and told < 0.5
    state["optimizer_D"].param_groups[0]["lr"] = 0.0
    before = D(C(x, hole), hole).mean()
    for _ in range(15):
        glcic.update(state, x, hole, other, phase=3, alpha=1e4)
    assert D(C(x, hole), hole).mean() > before + 1


def test_the_loss_is_the_mean_square_in_the_hole_of_each_image():
    state, (x, hole) = glcic.build(settings()), example(family="irregular")
    inside = hole.expand_as(x) > 0
    with torch.no_grad():
        filled = state["C"](x, hole)
    each = [(f[i] - p[i]).square().mean() for f, p, i in zip(filled, x, inside)]
    assert max(each) > 1.1 * min(each)
    loss = glcic.update(state, x, hole, hole, phase=1)["mse"]
    torch.testing.assert_close(loss, torch.stack(each).mean())


def test_bfloat16_is_only_less_exact():
    losses = []
    for bf16 in (False, True):
        state, (x, hole) = glcic.build(settings()), example()
        losses.append(glcic.update(state, x, hole, hole.flip(0), phase=3, bf16=bf16))
    for name, loss in losses[0].items():
        torch.testing.assert_close(losses[1][name], loss, rtol=0.03, atol=0)
        assert losses[1][name] != loss and losses[1][name].dtype == torch.float32


@pytest.mark.parametrize("gated", [False, True])
def test_eight_images_are_learnt_by_heart(gated):
    """Little is left of the error that the mean of the eight makes, less than any one colour's."""
    torch.manual_seed(0)
    C, x = glcic.Completion(8, gated), data.to_float(data.synthetic(8, 16))
    state, hole = {"C": C, "optimizer": torch.optim.Adam(C.parameters())}, masks.center(8, 16)
    for step in range(120):
        state["optimizer"].param_groups[0]["lr"] = 4e-3 * train.lr_factor(step, 120, 10)
        glcic.update(state, x, hole, None, phase=1)
    with torch.no_grad():
        error, spread = (((y - x) * hole).square().mean() for y in (C(x, hole), x.mean(dim=0)))
    assert error < 0.1 * spread


# ---- a run -------------------------------------------------------------------------------------

def logged(out):
    """The log without its timings."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{**line, "images_per_s": None} for line in lines]


@pytest.mark.parametrize("how, step, more", [
    ("SIGINT", 0, []), ("SIGTERM", 1, ["--gated"]), ("SIGINT", 2, []), ("crash", 4, []),
    ("SIGTERM", 6, []), ("crash", 7, ["--loss", "l2"])])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, monkeypatch, how, step, more):
    start(tmp_path / "whole", *more)
    update, calls = glcic.update, iter(range(100))

    def interrupt(*args):
        losses = update(*args)
        if next(calls) == step:
            if how == "crash":
                raise RuntimeError("power cut")
            os.kill(os.getpid(), getattr(signal, how))
        return losses

    monkeypatch.setattr(glcic, "update", interrupt)
    with pytest.raises((SystemExit, RuntimeError)):
        start(tmp_path / "broken", *more)
    monkeypatch.setattr(glcic, "update", update)
    args, checkpoint = glcic.parse(["train", "--resume", "--out", str(tmp_path / "broken")])
    assert checkpoint["step"] == (step + 1 if how != "crash" else step // 3 * 3)
    runs.cut_log(tmp_path / "broken", checkpoint["step"])
    glcic.learn(args, checkpoint)

    one, two = (runs.load_checkpoint(tmp_path / name) for name in ("whole", "broken"))
    assert one.keys() == two.keys() and ("D" in one) == (more != ["--loss", "l2"])
    for part in one.keys() - {"args"}:
        torch.testing.assert_close(one[part], two[part], rtol=0, atol=0)
    assert logged(tmp_path / "whole") == logged(tmp_path / "broken")
    assert {path.name for path in (tmp_path / "broken").iterdir()} == {
        "checkpoint.pt", "weights.pt", "log.jsonl", "samples.png"}


def test_d_is_shown_photographs_with_holes_of_their_own():
    state, x, M_c = glcic.build(settings()), *example()
    M_d, seen = masks.center(4, 16), []
    state["D"].register_forward_hook(lambda net, given, out: seen.append(given))
    glcic.update(state, x, M_c, M_d, 2)
    assert [(torch.equal(image, x), hole is M_d) for image, hole in seen] == [(True, True),
                                                                             (False, False)]


def test_what_each_step_is_given(tmp_path, monkeypatch):
    """Images mirrored or not, no full holes, others for D, and the phase's learning rate."""
    steps = []

    def record(state, *given):
        rates = {state[name].param_groups[0]["lr"] for name in ("optimizer", "optimizer_D")}
        steps.append((rates, *given))
        return {"mse": torch.zeros(())}

    monkeypatch.setattr(glcic, "update", record)
    start(tmp_path, *"--steps 50 --every 50 --lr 0.5 --lr-gan 0.25 --alpha 7".split())
    images, mirrored = data.to_float(data.synthetic(24, 16)), 0
    for step, (rates, x, M_c, M_d, phase, alpha, _) in enumerate(steps):
        assert phase == (1 if step < 9 else 2 if step < 10 else 3) and alpha == 7
        assert rates == {(0.5 if phase == 1 else 0.25) * train.lr_factor(step, 50, glcic.WARMUP)}
        assert 0 < M_c.mean(dim=(1, 2, 3)).min() and M_c.mean(dim=(1, 2, 3)).max() < 1
        assert M_d.mean(dim=(1, 2, 3)).max() < 1 and not torch.equal(M_c, M_d)
        for image in x:
            ways = [(images == way).flatten(1).all(dim=1).any() for way in (image, image.flip(2))]
            assert any(ways)
            mirrored += not ways[0]
    assert 60 < mirrored < 140                                   # of 200


def test_phase_one_is_the_plain_encoder_decoder_and_l2_has_no_discriminator(tmp_path, monkeypatch):
    start(tmp_path / "gan", "--steps", "22", "--every", "4")     # phase one: 4 steps
    monkeypatch.setattr(glcic, "Discriminator", None)            # not even built
    start(tmp_path / "l2", "--steps", "22", "--every", "4", "--loss", "l2")
    one, two = (logged(tmp_path / name) for name in ("gan", "l2"))
    assert one[0] == two[0] and one[-1]["mse"] != two[-1]["mse"]
    assert all(line.keys() == {"step", "images", "mse", "images_per_s"} for line in two)
    assert all(line.keys() > {"mse", "adversarial", "discriminator"} for line in one[1:])
    assert not {"D", "optimizer_D"} & runs.load_checkpoint(tmp_path / "l2").keys()


def test_weights_are_the_completion_network_in_half_precision(tmp_path):
    C, (x, hole) = start(tmp_path, "--gated"), example()
    content = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert content.keys() == {"settings", "step", "made with", "C"}
    for name, value in C.state_dict().items():
        assert torch.equal(content["C"][name], value.half())
    with torch.no_grad():
        filled = C(x, hole)
    shipped, exact = (glcic.load(tmp_path / name)(x, hole)
                      for name in ("weights.pt", "checkpoint.pt"))
    torch.testing.assert_close(shipped, filled, atol=2e-3, rtol=0)
    torch.testing.assert_close(exact, filled, atol=1e-5, rtol=0)       # another memory layout
    assert not torch.equal(shipped, exact)
    assert torch.equal(torch.where(hole > 0, x, shipped), x) and not shipped.requires_grad


def test_samples_show_given_filled_and_original(tmp_path):
    C = start(tmp_path)
    sheet = torch.from_numpy(np.array(Image.open(tmp_path / "samples.png")))
    given, filled, original = sheet.unflatten(0, (3, 16)).unflatten(2, (8, 16)).transpose(1, 2)
    images = data.synthetic(24, 16)[:8]
    hole = masks.mixture(8, 16, torch.Generator().manual_seed(0), all_hole=0.0)
    inside = hole.permute(0, 2, 3, 1) > 0
    assert torch.equal(original, images)
    assert torch.equal(given, torch.where(inside, 128, images))
    with torch.no_grad():
        assert torch.equal(filled, data.to_uint8(C(data.to_float(images), hole)))


@pytest.mark.parametrize("name", ["glcic", "encoder_decoder", "gated_convolution"])
def test_the_methods_are_found_and_read_their_own_weights_when_called(tmp_path, monkeypatch, name):
    """The shipped ones, which nobody waits for who does not use them."""
    (x, hole), shipped = example(), glcic.WEIGHTS / f"{name}.pt"
    opened, read = [], glcic.read_tensors
    for module in (files, glcic):                               # find() imports the file anew
        monkeypatch.setattr(module, "read_tensors", lambda path: opened.append(path) or read(path))
    method = methods.find(name, None, None)
    assert (method.DRAWS, method.CALLS, opened) == (False, 1, [])
    filled = [method.inpaint(x, hole, None) for _ in range(2)]
    assert torch.equal(torch.where(hole > 0, x, filled[0]), x) and torch.equal(*filled)
    assert opened == [shipped]                                   # once


@pytest.mark.parametrize("content, message", [
    (None, "no such file.*glcic train"), (b"not weights", "not weights that baselines/glcic.py"),
    ({"ema": {}, "settings": {"T": 300}}, "not weights"),
    ({"settings": {"width": 4}}, "not weights"),
    ({"settings": {"width": 4}, "C": {}}, "not weights"),
    ({"settings": {"width": 4}, "C": glcic.Completion(4).state_dict(), "code": Path("x")},
     "not weights")])                                            # more than tensors: not unpickled
def test_weights_that_are_none_are_named_in_one_line(tmp_path, capsys, content, message):
    path = tmp_path / "glcic.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        torch.save(content, path)
    inpaint, (x, hole) = glcic.load(path), example()
    with pytest.raises(BadInput, match=f"glcic.pt: {message}"):
        inpaint(x, hole)
    with pytest.raises(SystemExit, match="2"):
        run(lambda: inpaint(x, hole))
    assert len(capsys.readouterr().err.splitlines()) == 1
    torch.save({"settings": {"width": 4}, "C": glcic.Completion(4).state_dict()}, path)
    assert inpaint(x, hole).shape == x.shape                     # the failure is not remembered


def test_damaged_weights_are_named(tmp_path):
    start(tmp_path)
    path = tmp_path / "weights.pt"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(BadInput, match="weights.pt: not weights"):
        glcic.load(path)(*example())


@pytest.mark.parametrize("argv, message", [
    ([], "synthetic"),
    (["--data", "/nowhere"], "/nowhere"),
    (["--data", "synthetic", "--steps", "0"], "--steps"),
    (["--data", "synthetic", "--limit", "0"], "--limit"),
    (["--data", "synthetic", "--size", "8"], "--size is from 16"),
    (["--data", "synthetic", "--width", "1"], "--width is from 2"),
    (["--resume"], "nothing to resume"),
])
def test_bad_input_is_named_in_one_line_with_status_2(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.setattr(sys, "argv", ["glcic.py", "train", *argv, "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        run(glcic.main)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and line.startswith("glcic.py: ")


def test_a_run_that_is_made_longer_says_in_which_phase_it_goes_on(tmp_path, capsys):
    start(tmp_path)
    assert "phase" not in capsys.readouterr().err
    start(tmp_path, "--resume", "--steps", "100")
    assert "step 11 of 100 is in phase 1: phases and learning rates" in capsys.readouterr().err


def test_a_run_goes_on_as_it_began(tmp_path):
    start(tmp_path)
    with pytest.raises(BadInput, match="--resume"):
        start(tmp_path)
    for other in (["--loss", "l2"], ["--gated"], ["--width", "8"], ["--size", "32"]):
        with pytest.raises(BadInput, match="leave --loss"):
            start(tmp_path, "--resume", *other)
    args, _ = glcic.parse(["train", "--resume", "--out", str(tmp_path), "--steps", "12"])
    assert (args.steps, args.width, args.batch, args.loss) == (12, 4, 4, "gan")
    (tmp_path / "checkpoint.pt").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="not a checkpoint"):
        start(tmp_path, "--resume")


def test_a_loss_that_is_no_number_stops_before_the_checkpoint_is_overwritten(tmp_path, monkeypatch):
    start(tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(glcic, "update", lambda *args: {"mse": torch.tensor(float("nan"))})
    with pytest.raises(BadInput, match="loss of step 12 is nan"):
        start(tmp_path, "--resume", "--steps", "13")
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("file, size", [("weights.pt", 10_000), ("checkpoint.pt", 100_000)])
def test_a_full_disk_keeps_the_files_before(tmp_path, file, size):
    start(tmp_path)
    before = (tmp_path / file).read_bytes()
    assert size < len(before)
    with disk_with_room_for(size), pytest.raises(BadInput, match=f"{file} could not be written"):
        start(tmp_path, "--resume", "--steps", "12")
    assert (tmp_path / file).read_bytes() == before
