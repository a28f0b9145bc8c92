"""The network's methods, where the right answer is known, and what all of them promise."""
from collections import Counter

import pytest
import torch
from torch.testing import assert_close

import methods
from ddpm import DDPM, PREDICTIONS
from schedules import cosine_betas, rescaled_betas
from support.cli import BadInput
from worlds import F64, two_pixels

EXACT = pytest.mark.parametrize("name", methods.DIFFUSION)


def fills(name, world, n=8_000, known=1.4, steps=None, **settings):
    """The right one of two pixels, [n], filled by the method when the left one is `known`."""
    image = torch.tensor([known, 0.0], dtype=F64).reshape(1, 1, 1, 2).expand(n, -1, -1, -1)
    hole = torch.tensor([0.0, 1.0], dtype=F64).reshape(1, 1, 1, 2).expand(n, -1, -1, -1)
    x = methods.DIFFUSION[name](world.process, world, image, hole, steps or world.process.T,
                                generator=torch.Generator().manual_seed(0), **settings)
    assert torch.equal(x[..., 0], image[..., 0]), "known pixels are exact"
    return x[:, 0, 0, 1]


@EXACT
@pytest.mark.parametrize("T, steps", [(100, 100), (300, 20)])
def test_where_the_known_pixel_says_nothing_every_method_draws_from_the_prior(name, T, steps):
    """Standard errors of 0.5/√n = 0.006 and √2 · 0.25/√n = 0.004, and the discretisation (which
    repaint suffers with every repeat); 20 plain steps of 15 levels would lack 0.065 of the 0.25."""
    world = two_pixels(DDPM(cosine_betas(T)))
    world.cov = torch.diag(world.cov.diagonal())
    x = fills(name, world, steps=steps)
    assert_close(x.mean(), world.mean.flatten()[1], rtol=0, atol=0.025)
    assert_close(x.var(), world.cov[1, 1], rtol=0, atol=0.04)


@EXACT
def test_where_there_is_one_image_every_method_lands_on_it(name):
    world = two_pixels(DDPM(cosine_betas(30)))
    world.cov = 1e-12 * torch.eye(2, dtype=F64)
    x = fills(name, world, n=3, known=0.5)
    assert_close(x, world.mean.flatten()[1].expand(3), rtol=0, atol=1e-5)


# Two pixels that correlate at 0.73. The left one, at 1.4, is 1.6 standard deviations high, so the
# right one's mean is 0.30 where it was -0.30. Measured with 100 steps and 20,000 draws, mean and
# variance (exact: 0.300 and 0.117): keep 0.303, 0.106; replace 0.074, 0.134; repaint with 4 repeats
# 0.220, 0.110 and with 10 0.260, 0.105; ddnm 0.073, 0.145.
EXACT_MEAN, EXACT_STD, PRIOR_MEAN = 0.30, 0.342, -0.30


@pytest.mark.parametrize("name, settings, low, high, std", [
    ("keep", {"eta": 0.0}, 0.28, 0.32, 0.02), ("keep", {"eta": 1.0}, 0.28, 0.32, 0.03),
    ("replace", {}, 0.02, 0.13, 0.05), ("ddnm", {}, 0.02, 0.13, 0.06),
    ("pigdm", {"eta": 0.0}, 0.28, 0.32, 0.02), ("pigdm", {}, 0.28, 0.32, 0.03)])
def test_knowing_the_hole_or_guidance_finds_the_conditional_mean_and_pasting_does_not(
        name, settings, low, high, std):
    x = fills(name, two_pixels(DDPM(cosine_betas(100))), **settings)
    assert low < x.mean() < high
    assert abs(x.std() - EXACT_STD) < std


@pytest.mark.parametrize("steps", [20, 50, 150])
def test_guidance_does_not_overshoot_however_many_the_steps(steps):
    """Adding √ᾱ_t · pull after a step instead has means of 0.379, 0.417 and, with 300 steps, 0.449;
    √(ᾱ_s ᾱ_t), 0.364, 0.402 and 0.440; r² = 1-ᾱ falls short, at 0.185, 0.182 and 0.178."""
    x = fills("pigdm", two_pixels(DDPM(rescaled_betas(300))), n=4_000, steps=steps)
    assert_close(x.mean(), torch.tensor(EXACT_MEAN, dtype=F64), rtol=0, atol=0.02)
    assert_close(x.var(), torch.tensor(EXACT_STD ** 2, dtype=F64), rtol=0, atol=0.012)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_guided_estimate_is_that_of_a_network_which_sees_the_known_pixel(prediction):
    world, reports = two_pixels(DDPM(cosine_betas(30), prediction)), []
    image = torch.tensor([1.4, 0.0], dtype=F64).reshape(1, 1, 1, 2)
    hole = torch.tensor([0.0, 1.0], dtype=F64).reshape(1, 1, 1, 2)
    methods.pigdm(world.process, world, image, hole, 12, generator=torch.Generator().manual_seed(0),
                  callback=lambda *report: reports.append(report))
    for (_, x, _), (t, _, x0) in zip(reports, reports[1:]):
        seen = torch.where(hole > 0, x, image)
        want, _ = world.process.predict(world, seen, torch.tensor([t]), hole)
        assert_close(x0[..., 1], want[..., 1])


@pytest.mark.parametrize("name", ["repaint", "ddnm"])
def test_the_bias_shrinks_as_the_repeats_grow_and_the_spread_stays(name):
    biases = []
    for repeats in (1, 4, 12):
        world = two_pixels(DDPM(cosine_betas(50)))
        x = fills(name, world, n=4_000, jump=5, repeats=repeats)
        biases.append((EXACT_MEAN - x.mean()).item())
        assert abs(x.std() - EXACT_STD) < 0.04
    assert biases[0] > 0.2 > biases[1] > biases[2] and biases[2] < 0.3 * biases[0]


def test_going_back_up_the_chain_forgets_the_estimate_below(monkeypatch):
    world, seen = two_pixels(DDPM(cosine_betas(100))), []
    monkeypatch.setattr(DDPM, "extrapolate_x0",
                        lambda self, x0, t, previous, r, s: seen.append((r, t, s)) or x0)
    fills("repaint", world, n=1, steps=20, jump=5, repeats=3)
    assert len(seen) > 20 and all(r > t > s for r, t, s in seen)


def test_repaint_without_repeats_is_replace():
    one, two = (fills(name, two_pixels(DDPM(cosine_betas(20))), n=5, **settings)
                for name, settings in (("repaint", {"repeats": 1}), ("replace", {})))
    assert torch.equal(one, two)


def test_the_jump_path_visits_what_the_papers_visits():
    """Lugmayr et al. 2022: of 250 levels, with jumps of 10, those at 0, 10, … 230 are gone back up
    from nine times; 250 + 24 · 9 · 10 = 2,410 network calls."""
    path = methods.jump_path(250, 10, 10)
    moves = Counter(there - here for here, there in zip(path, path[1:]))
    assert moves == {-1: 2_410, 10: 216} and path[0] == 250 and path[-1] == 0
    jumps = Counter(here for here, there in zip(path, path[1:]) if there > here)
    assert jumps == {level + 1: 9 for level in range(0, 240, 10)}       # the paper counts from 0
    assert methods.jump_path(20, 10, 1) == list(range(20, -1, -1))


@EXACT
@pytest.mark.parametrize("steps", [1, 12, 30])
def test_the_calls_are_those_foretold_and_a_callback_sees_each(name, steps):
    world, reports = two_pixels(DDPM(cosine_betas(30))), []
    method = methods.find(name, world.process, world, steps,
                          callback=lambda *report: reports.append(report))
    image = torch.zeros(2, 1, 1, 2, dtype=F64)
    hole = torch.tensor([0.0, 1.0], dtype=F64).expand(2, 1, 1, 2)
    x = method.inpaint(image, hole, [torch.Generator().manual_seed(i) for i in range(2)])
    assert len(world.calls) == len(reports) == method.CALLS
    assert [t for t, _, _ in reports] == world.calls and world.calls[0] == world.process.T - 1
    assert torch.equal(torch.where(hole > 0, reports[-1][1], image), x)


@EXACT
def test_a_fill_depends_on_its_own_generator_alone(name):
    world = two_pixels(DDPM(cosine_betas(10)))
    image = torch.tensor([[0.2, 0.0], [0.9, 0.0]], dtype=F64).reshape(2, 1, 1, 2)
    hole = torch.tensor([0.0, 1.0], dtype=F64).expand(2, 1, 1, 2)
    inpaint = methods.find(name, world.process, world, 10).inpaint
    both = inpaint(image, hole, [torch.Generator().manual_seed(i) for i in range(2)])
    alone = inpaint(image[1:], hole[1:], [torch.Generator().manual_seed(1)])
    assert_close(both[1:], alone)


def test_keep_takes_10_steps_others_20_and_a_short_chain_all_that_it_has():
    for T, expected in ((30, {"keep": 10, "ddnm": 20}), (15, {"keep": 10, "ddnm": 15}),
                        (6, {"keep": 6, "ddnm": 6})):
        world = two_pixels(DDPM(cosine_betas(T)))
        assert expected == {name: methods.find(name, world.process, world).CALLS
                            for name in expected}


def test_a_name_may_have_its_own_steps():
    world = two_pixels(DDPM(cosine_betas(30)))
    calls = {name: methods.find(name, world.process, world, steps=7).CALLS
             for name in ("keep", "keep@30", "ddnm@3", "repaint@20")}
    assert calls == {"keep": 7, "keep@30": 30, "ddnm@3": 3, "repaint@20": 20 + 9 * 10}
    for wrong in ("keep@0", "keep@31", "keep@", "keep@-2", "keep@2.5", "mean@3"):
        with pytest.raises(BadInput, match=wrong):
            methods.find(wrong, world.process, world)


@EXACT
def test_eta_0_draws_nothing_but_what_it_starts_from_and_no_method_keeps_a_gradient(name):
    image, hole = torch.zeros(1, 1, 1, 2), torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    weight, left = torch.ones((), requires_grad=True), {}

    def eps_model(x, t, hole):
        return weight * x
    for eta in (0.0, 1.0):
        method = methods.find(name, DDPM(cosine_betas(50)), eps_model, 5, eta)
        generator = torch.Generator().manual_seed(0)
        assert not method.inpaint(image, hole, [generator]).requires_grad
        left[eta] = generator.get_state()
    start = torch.Generator().manual_seed(0)
    torch.randn(image.shape[1:], generator=start)
    pasting = name in ("replace", "repaint")                      # which noise the known pixels
    assert torch.equal(left[0.0], start.get_state()) != pasting
    assert not torch.equal(left[0.0], left[1.0])


def test_guidance_leaves_the_estimate_in_the_range_of_images():
    """The known pixel's deviation is 0.22 and the hole's 1, so 1.0 pulls the estimate to 4."""
    world, seen = two_pixels(DDPM(cosine_betas(100), clip=True)), []
    world.mean, world.cov = torch.zeros(1, 1, 2, dtype=F64), torch.tensor([[0.05, 0.2], [0.2, 1]],
                                                                          dtype=F64)
    fills("pigdm", world, n=50, known=1.0, steps=10,
          callback=lambda t, x, x0: seen.append(x0[:, 0, 0, 1].abs().max()))
    assert len(seen) == 10 and max(seen) <= 1
