"""The cascade: what a sharpener is given, what it returns, and how it is trained and named."""
import hashlib
import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
import evaluate
import inpaint
import masks
import methods
import sharpen
import train
from ddpm import DDPM, randn_like
from helpers import SCORED, assert_same_run, life, photograph
from schedules import cosine_betas
from support import distributed, runs
from unet import UNet
from worlds import sharpener_of_noise

TINY = ("--data synthetic --limit 24 --size 32 --coarse 16 --widths 8 16 --blocks 1 --batch 4 "
        "--T 20 --steps 4 --every 2 --save-every 0 --device cpu --no-bf16").split()


@pytest.fixture(scope="module")
def sharpener(tmp_path_factory):
    """The weights of a network that sharpens 16×16 to 32×32."""
    out = tmp_path_factory.mktemp("sharpener")
    status, said = life(train.main, *TINY, "--out", out)
    assert status == 0, said
    return out / "weights.pt"


def first(image, hole, generator):
    """Fills with 0.2, and keeps what is known."""
    return torch.where(hole > 0, 0.2, image)


def test_a_reduced_pixel_is_the_mean_of_a_square_and_enlarging_keeps_planes():
    x = torch.arange(64.).reshape(1, 1, 8, 8)
    torch.testing.assert_close(sharpen.reduced(x, 4)[0, 0, 1, 2], x[0, 0, 2:4, 4:6].mean())
    again = sharpen.enlarged(sharpen.reduced(x, 4), 8)
    torch.testing.assert_close(again[..., 1:-1, 1:-1], x[..., 1:-1, 1:-1])       # but for its rim


def test_the_cascade_adds_the_worlds_detail_to_a_first_fill():
    image, hole = torch.full((200, 3, 16, 16), 0.9), masks.center(200, 16)
    fill = sharpen.cascade(first, sharpener_of_noise(8, 16))
    fills = fill(image, hole, torch.Generator().manual_seed(0))
    inside = fills[..., 5:11, 5:11] - 0.2           # where 0.2 is enlarged from 0.2 alone
    assert abs(inside.mean()) < 4 * sharpen.DETAIL / math.sqrt(inside.numel())
    assert 0.85 < inside.std() / sharpen.DETAIL < 1.05                            # in five calls
    torch.testing.assert_close(torch.where(hole > 0, image, fills), image, rtol=0, atol=0)


def test_a_fill_depends_on_its_seed_alone_and_is_in_range():
    """… whatever else is in the batch. White surroundings, which detail could push out of range."""
    def noisy(image, hole, generator):
        return torch.where(hole > 0, 1 - 0.1 * randn_like(image, generator).abs(), image)
    image, hole = torch.ones(3, 3, 16, 16), masks.center(3, 16)
    fill = sharpen.cascade(noisy, sharpener_of_noise(8, 16))

    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]
    three, one = fill(image, hole, generators(1, 2, 3)), fill(image[:1], hole[:1], generators(2))
    torch.testing.assert_close(three[1:2], one)
    assert not torch.allclose(three[0], three[1]) and three.max() == 1


def test_eta_0_draws_no_noise_on_the_way():
    image, hole = torch.full((1, 3, 16, 16), 0.9), masks.center(1, 16)
    generator, other = (torch.Generator().manual_seed(0) for _ in range(2))
    sharpen.cascade(first, sharpener_of_noise(8, 16), eta=0.0)(image, hole, generator)
    torch.randn(image.shape, generator=other)                            # where the chain begins
    assert torch.equal(generator.get_state(), other.get_state())


def test_a_reduced_pixel_is_known_if_all_that_it_covers_are():
    seen = []

    def look(image, hole, generator):
        seen[:] = image, hole
        return image
    hole = torch.zeros(1, 1, 16, 16)
    hole[..., 5, 7] = 1                              # one pixel of the small one's [2, 3]
    sharpen.cascade(look, sharpener_of_noise(8, 16))(torch.ones(1, 3, 16, 16), hole, None)
    image, small = seen
    assert small.shape == (1, 1, 8, 8) and small.sum() == 1 and small[..., 2, 3] == 1
    torch.testing.assert_close(image, (1 - small).expand(1, 3, 8, 8))       # nothing to peek at


def test_in_training_a_coarse_pixel_that_the_hole_touches_is_noisy():
    """As it is unknown to the first network, whose fills are what it meets."""
    x0, hole = torch.zeros(64, 3, 16, 16), torch.zeros(64, 1, 16, 16)
    hole[..., 5, 7] = 1
    _, coarse = sharpen.draw_detail(x0, hole, 8, torch.Generator().manual_seed(0))
    touched = coarse[:, :, 4:6, 6:8].abs().mean()
    assert touched > 0.01 and coarse[:, :, 10:, 10:].abs().max() == 0


def test_only_methods_with_the_network_are_sharpened():
    ddpm, world = DDPM(cosine_betas(50)), sharpener_of_noise(8, 16)
    for name, more in (("keep@7", sharpen.CALLS), ("biharmonic", 0)):
        plain = methods.find(name, ddpm, None)
        assert methods.find(name, ddpm, None, sharpener=world).CALLS == plain.CALLS + more
    short = sharpen.Sharpener(DDPM(cosine_betas(3)), None, 16, None)
    assert methods.find("keep@7", ddpm, None, sharpener=short).CALLS == 7 + 3


@pytest.mark.parametrize("bf16", [False, True])
def test_it_computes_in_bfloat16_where_the_first_network_does(bf16):
    world, seen = sharpener_of_noise(8, 16), []

    def eps_model(x, t, hole, coarse=None):
        seen.append(torch.is_autocast_enabled("cpu"))
        return x
    eps_model.coarse_size = 8
    method = methods.find("keep@2", DDPM(cosine_betas(50)), eps_model, bf16=bf16,
                          sharpener=world._replace(eps_model=eps_model))
    method.inpaint(torch.zeros(1, 3, 16, 16), masks.center(1, 16), None)
    assert seen == [bf16] * method.CALLS


def test_detail_is_what_enlarging_loses():
    x = torch.linspace(-1, 1, 16).expand(2, 3, 16, 16).clone()
    detail, coarse = sharpen.detail(x, 8)
    assert detail[..., 1:-1].abs().max() < 1e-5                    # a plane: none but at its rim
    x[..., 8, 8] += 0.1
    detail, coarse = sharpen.detail(x, 8)
    torch.testing.assert_close(coarse + sharpen.DETAIL * detail, x)
    assert detail[..., 8, 8].min() > 0.07 / sharpen.DETAIL          # most of it is not in coarse


def test_callbacks_are_given_images():
    seen, image, hole = [], torch.full((1, 3, 16, 16), 0.9), masks.center(1, 16)
    sharpen.cascade(first, sharpener_of_noise(8, 16), callback=lambda *state: seen.append(state))(
        image, hole, None)
    assert len(seen) == sharpen.CALLS
    for _, x, x0 in seen:
        torch.testing.assert_close(torch.where(hole > 0, image, x), image)
        assert (x0 - 0.2)[..., 6:10, 6:10].abs().max() < 6 * sharpen.DETAIL
    torch.testing.assert_close(*(x[..., 4:12, 4:12] for x in seen[-1][1:]))


def test_coarse_images_for_training_have_noise_of_every_strength_in_the_hole():
    x0, hole = torch.full((400, 3, 16, 16), 0.5), masks.center(400, 16)
    detail, coarse = sharpen.draw_detail(x0, hole, 8, torch.Generator().manual_seed(0))
    torch.testing.assert_close(coarse + sharpen.DETAIL * detail, x0)
    assert (coarse[..., :3, :] == 0.5).all() and (coarse[..., 13:] == 0.5).all()
    strength = (coarse - 0.5)[..., 4:12, 4:12].flatten(1).std(dim=1)
    noise = torch.randn(400, 3, 8, 8) * (sharpen.reduced(hole, 8) > 0)
    strongest = sharpen.STRONGEST * sharpen.enlarged(noise, 16)[..., 4:12, 4:12].std()
    assert strength.min() < 0.05 * strongest and strength.max() < 1.3 * strongest
    assert abs(strength.mean() / strongest - 0.5) < 0.06


def test_processes_draw_for_the_whole_batch(monkeypatch):
    x0, hole = data.to_float(data.synthetic(4, 16)), masks.mixture(4, 16)
    whole = sharpen.draw_detail(x0, hole, 8, torch.Generator().manual_seed(0))
    monkeypatch.setattr(distributed, "WORLD_SIZE", 2)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "RANK", rank)
        share = slice(2 * rank, 2 * rank + 2)
        parts = sharpen.draw_detail(x0[share], hole[share], 8, torch.Generator().manual_seed(0))
        torch.testing.assert_close(parts, tuple(part[share] for part in whole))


def test_training_learns_the_detail_of_what_it_is_given():
    """A network that has memorised four images draws each from its reduction, with under 0.6 of
    enlarging's squared error; without it, it could not know which to draw."""
    torch.manual_seed(0)
    generator, x0 = torch.Generator().manual_seed(0), data.to_float(data.synthetic(4, 16))
    ddpm, net = DDPM(cosine_betas(50), "v"), UNet(16, 1, (24, 32), 1, coarse_size=8)
    optimizer, hole = torch.optim.AdamW(net.parameters(), lr=6e-3), masks.full(4, 16)
    for _ in range(200):
        detail, coarse = sharpen.draw_detail(x0, hole, 8, generator)
        train.algorithm_1(ddpm, net, [optimizer], detail, hole, generator, coarse=coarse)
    fill = sharpen.cascade(lambda *_: sharpen.reduced(x0, 8), sharpen.Sharpener(ddpm, net, 16, ""))
    drawn = fill(torch.zeros_like(x0), hole, generator)
    error, enlarged = ((x - x0).square().mean() for x in (drawn, sharpen.detail(x0, 8)[1]))
    assert error < 0.6 * enlarged


def test_a_sharpener_is_trained_and_used(sharpener, weights, as_user, tmp_path, monkeypatch):
    def plan(hole, size, *rest, plan=inpaint.plan):
        planned.append(size)
        return plan(hole, size, *rest)
    planned = []
    monkeypatch.setattr(inpaint, "plan", plan)
    ddpm, net, size = runs.load_sharpener(sharpener)
    assert (net.coarse_size, size, ddpm.clip) == (16, 32, False)
    given = "--weights", weights, "--sharpen", sharpener.parent       # the folder of its run
    status, said, _ = as_user(inpaint, photograph(tmp_path / "a.png"), *given, "--samples", 2,
                              "--steps", 3, "--mask", "irregular")
    assert status == 0 and f"{3 + sharpen.CALLS} network calls a fill" in said
    assert planned == [16]                                       # windows are the first network's
    digest = hashlib.sha256(sharpener.read_bytes()).hexdigest()
    assert Image.open("out/a_0.png").text["sharpener"] == digest
    hole = np.asarray(Image.open("out/a_hole.png"))
    status, _, _ = as_user(inpaint, "a.png", "--weights", weights, "--method", "biharmonic",
                           "--mask", "irregular", "--out", "older")
    assert status == 0 and (np.asarray(Image.open("older/a_hole.png")) == hole).all()
    assert "sharpener" not in Image.open("older/a_0.png").text


def test_scores_are_at_the_larger_size(sharpener, weights, weights_32, as_user):
    given = [*SCORED, "--weights", weights, "--sharpen", sharpener, "--out", "scored"]
    status, _, said = as_user(evaluate, *given)
    assert status == 0 and "images of 32×32" in said
    told = json.loads(Path("scored/results.json").read_text())
    assert told["provenance"]["sharpener"] == hashlib.sha256(sharpener.read_bytes()).hexdigest()
    (fill,) = Path("scored/fills/center/keep").glob("00000_0.png")
    assert Image.open(fill).size == (32, 32)
    for more, name in ((["--features", "unet"], "--features unet"),
                       (["--methods", "keep,glcic"], "glcic")):
        status, _, said = as_user(evaluate, *given, *more, "--out", "other")
        assert status == 2 and f"{name}: for images of 16×16, so not with --sharpen" in said


def test_the_held_out_loss_is_of_the_detail(tmp_path):
    seen = []

    class Spy(DDPM):
        def loss(self, eps_model, x0, *_):
            seen.append(eps_model.keywords["coarse"] + sharpen.DETAIL * x0)
            return x0.sum()
    args, _ = train.parse([*TINY, "--out", str(tmp_path)])
    net, images = UNet(32, 2, (8, 16), 1, coarse_size=16), data.synthetic(6, 32)
    train.held_out_loss(args, Spy(cosine_betas(20)), net, images)
    torch.testing.assert_close(torch.cat(seen), data.to_float(images))


def stop_after_three():
    """Ctrl-C in the third training step."""
    def update_ema(*args, average=train.update_ema, steps=iter(range(4))):
        average(*args)
        if next(steps) == 2:
            signal.raise_signal(signal.SIGINT)
    train.update_ema = update_ema


def test_training_is_resumed_as_if_it_had_not_stopped(sharpener, tmp_path):
    out = tmp_path / "resumed"
    status, said = life(train.main, *TINY, "--out", out, sabotage=stop_after_three)
    assert status == 130 and "step 3 is saved" in said
    status, said = life(train.main, "--resume", "--out", out)
    assert status == 0, said
    assert_same_run(sharpener.parent, out)
    assert np.asarray(Image.open(out / "samples.png")).std() > 30                # of images


def test_misplaced_sharpeners_are_refused(sharpener, weights, weights_32, as_user):
    for said, *argv in (("which fills no hole alone", "--weights", sharpener),
                        ("sharpens images of 16×16 pixels, and the --weights are for 32×32",
                         "--weights", weights_32, "--sharpen", sharpener),
                        ("not a sharpener", "--weights", weights, "--sharpen", weights),
                        ("not of --method patchmatch", "--method", "patchmatch", "--weights",
                         weights, "--sharpen", sharpener),
                        ("no such file", "--weights", weights, "--sharpen", "none.pt")):
        status, _, printed = as_user(inpaint, *argv)
        assert status == 2 and said in printed and printed.count("\n") == 1, printed


def test_our_weights_alone_default_to_our_sharpener(weights, tmp_path):
    assert sharpen.find(None, runs.WEIGHTS, 64).size == 128
    (tmp_path / "link.pt").symlink_to(runs.WEIGHTS)
    assert sharpen.find(None, tmp_path / "link.pt", 64).size == 128
    assert sharpen.find("none", runs.WEIGHTS, 64) is None
    assert sharpen.find(None, weights, 16) is None
    assert runs.SHARPENER.stat().st_size <= 25e6


@pytest.mark.parametrize("coarse", [0, 32])
def test_a_sharpener_that_does_not_enlarge_is_refused(as_user, coarse):
    status, _, printed = as_user(train, *TINY, "--coarse", coarse)
    assert status == 2 and "--coarse" in printed and "from 1 to 31" in printed


def test_a_resumed_sharpener_keeps_its_coarse_size(sharpener, as_user):
    status, _, said = as_user(train, "--resume", "--out", sharpener.parent, "--coarse", 8)
    assert status == 2 and "leave it out" in said
