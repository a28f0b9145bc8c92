"""Training: it learns, it goes on bit for bit after an interruption, and it loses nothing."""
import argparse
import json
import os
import signal

import pytest
import torch
import torch._inductor.config
from PIL import Image

import data
import inpaint
import masks
import methods
import muon
import train
from ddpm import DDPM, randn_like
from helpers import disk_with_room_for, random_loss
from schedules import cosine_betas
from support import runs
from support.cli import BadInput
from unet import UNet

TINY = ("--data synthetic --limit 24 --size 16 --widths 8 16 --patch 1 --blocks 1 --batch 4 "
        "--steps 7 --every 3 --save-every 0 --device cpu --no-bf16").split()


def start(out, *more):
    args, checkpoint = train.parse([*TINY, "--out", str(out), *more])
    return train.train(args, checkpoint)


def logged(out):
    """The log without its timings."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["held_out"]) for line in lines]


@pytest.fixture(scope="module", params=["--no-bf16", "--bf16"])
def whole(tmp_path_factory, request):
    """An uninterrupted run, and the flag that it had."""
    out = tmp_path_factory.mktemp("whole")
    start(out, request.param)
    return out, request.param


@pytest.mark.parametrize("step", [0, 4, 5])
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "crash"])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, monkeypatch, whole, how, step):
    whole, flag = whole
    average, calls = train.update_ema, iter(range(100))

    def interrupt(*args):
        average(*args)
        if next(calls) == step:
            if how == "crash":
                raise RuntimeError("power cut")
            os.kill(os.getpid(), getattr(signal, how))

    monkeypatch.setattr(train, "update_ema", interrupt)
    with pytest.raises((SystemExit, RuntimeError)):
        start(tmp_path / "broken", flag)
    monkeypatch.setattr(train, "update_ema", average)
    resume = ["--resume"] if (tmp_path / "broken" / "checkpoint.pt").exists() else []
    start(tmp_path / "broken", flag, *resume)

    one, two = (runs.load_checkpoint(out) for out in (whole, tmp_path / "broken"))
    for part in ("net", "ema", "muon", "adamw", "rng", "step", "losses"):
        torch.testing.assert_close(one[part], two[part], rtol=0, atol=0)
    assert logged(whole) == logged(tmp_path / "broken")
    assert {path.name for path in (tmp_path / "broken").iterdir()} == {
        "checkpoint.pt", "weights.pt", "log.jsonl", "samples.png"}


def test_resume_keeps_the_checkpoints_settings_and_lets_steps_grow(tmp_path):
    start(tmp_path, "--lr", "0.002")
    args, checkpoint = train.parse(["--resume", "--out", str(tmp_path), "--steps", "9"])
    assert (args.lr, args.widths, args.steps, checkpoint["step"]) == (0.002, [8, 16], 9, 7)


def test_weights_are_the_moving_average_in_half_precision(tmp_path):
    ema = start(tmp_path)
    _, net, size = inpaint.load_weights(tmp_path / "weights.pt")
    assert size == 16
    for (name, a), b in zip(ema.state_dict().items(), net.state_dict().values()):
        torch.testing.assert_close(a.half().float(), b, rtol=0, atol=0, msg=name)
    moved = [(a - b).abs().max() for a, b in zip(
        ema.parameters(), runs.load_checkpoint(tmp_path)["net"].values())]
    assert max(moved) > 0, "the average should lag behind the network"


@pytest.mark.parametrize("prediction, left", [("v", 0.1), ("eps", 0.4), ("x0", 0.1)])
def test_training_overfits_eight_images(prediction, left):
    """Little of the variance among the eight is left as error in the hole; ε learns more slowly."""
    torch.manual_seed(0)
    generator, images = torch.Generator().manual_seed(0), data.synthetic(8, 16)
    ddpm, net = DDPM(cosine_betas(50), prediction, clip=True), UNet(16, 1, (24, 32), 1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    x0, hole = data.to_float(images), masks.center(8, 16)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 3e-3 * train.lr_factor(step, 200, 20)
        optimizer.zero_grad()
        random_loss(ddpm, net, x0, hole, generator).backward()
        optimizer.step()
    fills = inpaint.fill(methods.find("keep", ddpm, net, 25).inpaint, images, hole, samples=2)
    inside = hole[0, 0].bool()
    error = (fills.float() - images[:, None].float())[:, :, inside]
    spread = images.float()[:, inside] - images.float()[:, inside].mean(dim=0)
    assert error.square().mean() < left * spread.square().mean()


def test_the_held_out_loss_stays_behind_when_two_images_are_learnt_by_heart(tmp_path):
    start(tmp_path, *("--limit 2 --size 8 --steps 480 --every 160 --lr 0.02 --lr-adamw 0.01 "
                      "--ema 0.9").split())
    (_, _, before), _, (_, loss, after) = logged(tmp_path)
    assert 1.3 * loss < after < before


def test_the_held_out_loss_is_the_moving_averages_and_the_same_when_asked_again(tmp_path):
    ema = start(tmp_path)
    args = train.parse([*TINY, "--out", str(tmp_path / "other")])[0]
    ddpm = DDPM(train.SCHEDULES["rescaled"](300), "v", clip=True)
    unseen = train.load_validation(args)
    assert len(unseen) == 128 and not torch.equal(unseen[:24], data.synthetic(24, 16))
    one, two = (train.held_out_loss(args, ddpm, ema, unseen) for _ in range(2))
    assert one == two and round(one, 5) == logged(tmp_path)[-1][2]


def test_the_held_out_loss_is_a_mean_over_images_and_does_not_depend_on_the_batch(monkeypatch):
    args, ddpm = train.parse([*TINY, "--out", "none"])[0], DDPM(cosine_betas(50), "v")
    net, images = UNet(16, 1, (8, 16), 1), data.synthetic(2 * train.HELD_OUT + 3, 16)
    torch.nn.init.normal_(net.head[2].weight)
    losses = set()
    for args.batch in (3, 32):
        losses.add(train.held_out_loss(args, ddpm, net, images))
    assert len(losses) == 1
    monkeypatch.setattr(DDPM, "loss", lambda *given: torch.ones(()))
    assert train.held_out_loss(args, ddpm, net, images) == 1


def test_results_do_not_become_data_and_a_runs_folder_is_its_weights(tmp_path):
    with pytest.raises(BadInput, match="and its pictures would be taken for images there"):
        start(tmp_path / "run", "--data", str(tmp_path))
    start(tmp_path / "run")
    _, net, _ = inpaint.load_weights(tmp_path / "run")
    for name, tensor in inpaint.load_weights(tmp_path / "run" / "weights.pt")[1].named_parameters():
        assert torch.equal(net.get_parameter(name), tensor)
    start(tmp_path / "other", "--init", str(tmp_path / "run"))


def test_a_steep_gradient_is_cut_to_a_norm_of_one_and_a_gentle_one_is_not():
    torch.manual_seed(0)
    net, x0 = UNet(16, 1, (8, 16), 1), data.to_float(data.synthetic(4, 16))
    torch.nn.init.normal_(net.head[2].weight)
    for steepness, cut in ((1e3, True), (1e-6, False)):
        class Steep(DDPM):
            def loss(self, *given):
                return steepness * super().loss(*given)
        net.zero_grad()
        train.algorithm_1(Steep(cosine_betas(50), "v"), net, [], x0, masks.center(4, 16),
                          torch.Generator().manual_seed(0))
        norm = torch.stack([p.grad.square().sum() for p in net.parameters()]).sum().sqrt()
        assert (abs(norm - 1) < 1e-3) == cut and norm > 0


def test_what_a_run_is_made_of(tmp_path, monkeypatch):
    """The training split alone, the two learning rates as they rise, an average that begins fast,
    samples by that average."""
    asked, rates, decays, drawn = [], [], [], []

    def spy(name, seen, pick):
        real = getattr(train, name)
        monkeypatch.setattr(train, name, lambda *given: seen.append(pick(*given)) or real(*given))
    spy("set_lr", rates, lambda optimizers, lrs, factor: (*lrs, factor))
    spy("update_ema", decays, lambda ema, net, decay: decay)
    spy("draw_samples", drawn, lambda args, ddpm, net, images: net)
    load = data.load
    monkeypatch.setattr(data, "load", lambda *given: asked.append(given[1]) or load(*given))
    ema = start(tmp_path, "--warmup", "2", "--lr", "0.005", "--lr-adamw", "0.0004")
    assert asked == ["train", "val"] and all(net is ema for net in drawn) and drawn
    assert decays == [(1 + step) / (10 + step) for step in range(7)]
    assert rates[:3] == [(0.005, 0.0004, 0.5), (0.005, 0.0004, 1), (0.005, 0.0004, 1)]


def test_held_out_images_change_nothing_but_the_log_and_may_be_missing(tmp_path, capsys):
    trained = {}
    for name in ("with", "without"):
        folder = tmp_path / f"celeba {name}"                        # so that the numbers count
        folder.mkdir()
        for i, image in enumerate(data.synthetic(6, 16).numpy()):
            number = i + 1 if name == "without" or i < 4 else data.LAST[0] + i
            Image.fromarray(image).save(folder / f"{number:06}.png")
        start(tmp_path / f"run {name}", "--data", str(folder), "--limit", "4",
              "--cache", str(tmp_path / "cache"))
        trained[name] = runs.load_checkpoint(tmp_path / f"run {name}")
    for part in ("net", "ema", "muon", "adamw", "rng"):
        torch.testing.assert_close(trained["with"][part], trained["without"][part], rtol=0, atol=0)
    assert {line[2] for line in logged(tmp_path / "run without")} == {None}
    assert None not in {line[2] for line in logged(tmp_path / "run with")}
    said = capsys.readouterr().err
    assert said.count("no held-out loss: no image of the val split") == 1
    assert "training on 4 images" in said


def test_the_learning_rate_rises_stays_and_falls():
    ramp = [train.lr_factor(step, 1000, 100) for step in range(1000)]
    assert ramp[0] == 0.01 and ramp[99] == ramp[700] == 1 and 0 < ramp[-1] < 0.01
    assert sorted(ramp[:100]) == ramp[:100] and sorted(ramp[700:], reverse=True) == ramp[700:]


def test_a_loss_that_is_no_number_stops_before_the_checkpoint_is_overwritten(tmp_path, monkeypatch):
    start(tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    loss = DDPM.loss
    monkeypatch.setattr(DDPM, "loss", lambda *args: loss(*args) * float("nan"))
    with pytest.raises(BadInput, match="loss of step 8 is nan"):
        start(tmp_path, "--resume", "--steps", "9")
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_weights_and_log_of_another_run_are_not_overwritten(tmp_path, as_user):
    """Not by a run whose data cannot be read, either: what is there is touched when it starts."""
    start(tmp_path / "run")
    (tmp_path / "run" / "checkpoint.pt").unlink()
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    for more in ([], ["--init", tmp_path / "run" / "weights.pt"]):
        status, _, said = as_user(train, *TINY, "--out", tmp_path / "run", *more)
        assert status == 2 and "holds a weights.pt that this run would overwrite" in said
    (tmp_path / "run" / "weights.pt").rename(tmp_path / "weights.pt")
    status, _, said = as_user(train, *TINY, "--out", tmp_path / "run", "--data", "nowhere")
    assert status == 2 and "nowhere" in said
    (tmp_path / "weights.pt").rename(tmp_path / "run" / "weights.pt")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}


def test_images_are_counted_across_batches_of_different_sizes(tmp_path):
    start(tmp_path)
    start(tmp_path, "--resume", "--steps", "9", "--batch", "8")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [12, 24, 28, 28 + 2 * 8]


@pytest.mark.parametrize("flag, value", [("--seed", "7"), ("--init", "x.pt"), ("--coarse", "8")])
def test_what_a_run_began_with_is_not_changed_on_the_way(tmp_path, as_user, flag, value):
    start(tmp_path)
    status, _, said = as_user(train, "--resume", "--out", tmp_path, "--steps", 9, flag, value)
    assert status == 2 and f"{flag} is not the checkpoint's" in said


@pytest.mark.parametrize("flag", ["data", "init", "out"])
def test_what_an_unset_variable_leaves_is_not_taken_for_a_path(tmp_path, as_user, flag):
    status, _, said = as_user(train, *TINY, "--out", tmp_path / "run", f"--{flag}", "")
    assert status == 2 and f"the setting {flag} is empty" in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize("seconds, expected", [("0", [3, 6, 7]), ("1e9", [7])])
def test_log_lines_come_by_steps_and_checkpoints_by_seconds(tmp_path, monkeypatch, seconds,
                                                            expected):
    saved, save = [], runs.save
    monkeypatch.setattr(runs, "save", lambda *given: saved.append(given[5]) or save(*given))
    start(tmp_path, "--save-every", seconds)
    assert saved == expected and [line[0] for line in logged(tmp_path)] == [3, 6, 7]


def test_a_finished_run_says_so_and_loads_nothing(tmp_path, as_user, monkeypatch, capsys):
    start(tmp_path)
    capsys.readouterr()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(data, "load", None)
    status, _, said = as_user(train, "--resume", "--out", tmp_path)
    assert status == 0 and "all 7 steps are done" in said and said.count("\n") == 1
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_nothing_between_two_steps_or_calls_waits_for_the_device():
    """Tensors on "meta" have shapes and no numbers, so whatever asks for one fails."""
    g, images = torch.Generator().manual_seed(0), data.synthetic(8, 16)
    net = UNet(16, 1, [8, 16], 1).to("meta")
    ddpm = DDPM(train.SCHEDULES["rescaled"](30), "v", clip=True)
    x0, hole = train.draw_images(images, 4, g, "meta"), train.draw_holes(4, 16, g, "meta")
    t = torch.randint(30, (4,)).to("meta")
    ddpm.loss(net, x0, hole, t, randn_like(x0, g)).backward()
    fills = ddpm.sample(net, x0, hole, 5, 1.0, [torch.Generator() for _ in range(4)])
    assert fills.device.type == "meta" and fills.shape == (4, 3, 16, 16)


# ---- what a device can do ----------------------------------------------------------------------

@pytest.mark.parametrize("device, native, bf16, compile", [
    ("cpu", True, True, False), ("cpu", False, False, False), ("cuda", True, True, True),
    ("cuda:1", False, False, True)])
def test_bf16_and_compile_are_for_the_device_asked_for(monkeypatch, capsys, device, native, bf16,
                                                       compile):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported",
                        lambda including_emulation=True: native or including_emulation)
    monkeypatch.setattr(torch.cpu, "get_capabilities",
                        lambda: {"avx512_bf16": native and device == "cpu", "avx512_f": True})
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: torch.ones(shape))
    args = argparse.Namespace(device=device, bf16=None, compile=None)
    runs.resolve_bf16(args)
    runs.resolve_compile(args)
    assert (args.bf16, args.compile) == (bf16, compile)
    assert ("no bfloat16" in capsys.readouterr().err) == (device != "cpu" and not native)
    asked = argparse.Namespace(device=device, bf16=not bf16, compile=not compile)
    runs.resolve_bf16(asked)
    runs.resolve_compile(asked)
    assert (asked.bf16, asked.compile) == (not bf16, not compile)


@pytest.mark.parametrize("begun, given, then", [
    ("", "", (True, False)), ("--bf16", "", (True, True)), ("--no-bf16", "", (False, False)),
    ("--no-bf16", "--bf16", (True, True)), ("--bf16", "--no-bf16", (False, False))])
def test_a_run_resumed_on_another_machine_asks_it_for_bf16_unless_told(tmp_path, monkeypatch, begun,
                                                                       given, then):
    """Begun where there is bfloat16; then there is, there is not."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    native, words = True, [word for word in TINY if word != "--no-bf16"]
    args, _ = train.parse([*words, "--out", str(tmp_path), "--steps", "1", *begun.split()])
    train.train(args)
    for native, bf16 in zip((True, False), then):
        args, _ = train.parse(["--resume", "--out", str(tmp_path), *given.split()])
        assert args.bf16 == bf16


def test_without_a_compiler_training_goes_on_and_says_so(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/nowhere/g++",))
    start(tmp_path, "--compile", "--steps", "1")
    said = capfd.readouterr().err
    assert said.count("nothing can be compiled here") == 1 and "Traceback" not in said
    assert runs.load_checkpoint(tmp_path)["args"]["compile"] is False


def test_an_existing_run_is_not_overwritten(tmp_path):
    start(tmp_path)
    with pytest.raises(BadInput, match="--resume"):
        start(tmp_path)


@pytest.mark.parametrize("file, size", [("weights.pt", 20_000), ("checkpoint.pt", 150_000)])
def test_a_full_disk_keeps_the_files_before(tmp_path, file, size):
    start(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")}
    assert size < len(before[file])
    with disk_with_room_for(size), pytest.raises(BadInput, match=f"{file} could not be written"):
        start(tmp_path, "--resume", "--steps", "9")
    assert (tmp_path / file).read_bytes() == before[file]
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    start(tmp_path, "--resume", "--steps", "9")


@pytest.mark.parametrize("argv, message", [
    ([], "synthetic"),
    (["--data", "/nowhere"], "/nowhere"),
    (["--data", "synthetic", "--size", "30"], "30"),
    (["--data", "synthetic", "--steps", "0"], "--steps"),
    (["--resume"], "nothing to resume"),
])
def test_bad_input_is_named(tmp_path, argv, message):
    with pytest.raises(BadInput, match=message):
        train.train(*train.parse([*argv, "--out", str(tmp_path)]))


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(BadInput, match="not a checkpoint"):
        train.parse(["--resume", "--out", str(tmp_path)])


def test_another_network_is_refused(tmp_path):
    start(tmp_path)
    with pytest.raises(BadInput, match="--widths"):
        start(tmp_path, "--resume", "--widths", "8", "8")


def test_the_network_is_compiled_into_one_graph(tmp_path, monkeypatch):
    """Whatever t and the holes are, while others of other sizes run: no second graph, no break."""
    graphs, compile = [], torch.nn.Module.compile
    monkeypatch.setattr(UNet, "compile", lambda net: compile(
        net, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward))
    monkeypatch.setattr(runs, "resolve_compile", lambda args: None)        # no trial
    start(tmp_path, "--compile")
    assert len(graphs) == 1
    assert not any("_orig_mod" in name for name in runs.load_checkpoint(tmp_path)["net"])


def test_a_checkpoint_goes_on_in_another_memory_layout(tmp_path):
    """As when a CPU's run is resumed on a GPU: fused AdamW pairs numbers by place in memory."""
    start(tmp_path)
    checkpoint, stepped = runs.load_checkpoint(tmp_path), []
    for layout in (torch.contiguous_format, torch.channels_last):
        net = UNet(16, 1, [8, 16], 1).to(memory_format=layout)
        matrices, others = muon.split(net)
        state = {"net": net, "ema": UNet(16, 1, [8, 16], 1),
                 "muon": muon.Muon([{"params": matrices}]),
                 "adamw": torch.optim.AdamW(others, fused=True)}
        runs.restore(checkpoint, state, torch.Generator())
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        state["muon"].step()
        state["adamw"].step()
        stepped.append(net.state_dict())
    torch.testing.assert_close(*stepped)


# ---- --init ------------------------------------------------------------------------------------

def test_init_starts_from_the_weights_of_another_run_and_says_what_is_new(tmp_path, capsys):
    start(tmp_path / "one")
    trained = runs.load_weights(tmp_path / "one" / "weights.pt")[1].state_dict()
    args, _ = train.parse([*TINY, "--out", str(tmp_path / "two"), "--widths", "8", "24", "--init",
                           str(tmp_path / "one" / "weights.pt")])
    state = train.build(args, torch.device("cpu"))
    said, taken = capsys.readouterr().err, 0
    for part in ("net", "ema"):
        for name, value in state[part].state_dict().items():
            same = name in trained and trained[name].shape == value.shape
            assert not same or torch.equal(value, trained[name])
            assert same or name in said
            taken += same
    assert f"{taken // 2} of {len(state['net'].state_dict())} tensors taken" in said and taken > 20


def test_a_run_begun_with_init_resumes_without_that_file(tmp_path):
    start(tmp_path / "one")
    weights = tmp_path / "one" / "weights.pt"
    start(tmp_path / "two", "--init", str(weights))
    weights.unlink()
    start(tmp_path / "two", "--resume", "--steps", "8")
    assert runs.load_checkpoint(tmp_path / "two")["step"] == 8


def test_init_of_the_same_shape_says_nothing_and_a_strangers_file_is_refused(tmp_path, capsys):
    start(tmp_path / "one")
    capsys.readouterr()
    words = [*TINY, "--out", str(tmp_path / "two"), "--init"]
    train.build(train.parse([*words, str(tmp_path / "one" / "weights.pt")])[0], torch.device("cpu"))
    assert "--init" not in capsys.readouterr().err
    torch.save({"ema": {"stem.weight": torch.zeros(3)}}, tmp_path / "other.pt")
    for file, message in (("other.pt", "no tensor has the name and shape"),
                          ("nothing.pt", "--init names one")):
        with pytest.raises(BadInput, match=message):
            train.build(train.parse([*words, str(tmp_path / file)])[0], torch.device("cpu"))
