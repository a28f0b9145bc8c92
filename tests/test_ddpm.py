"""A world with a known answer: where the images are Gaussian, the best network has a closed form,
the sampler is an affine function of the noise it draws, and its mean and covariance are exact."""
import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import ddpm
from ddpm import DDPM, PREDICTIONS
from helpers import random_loss
from schedules import SCHEDULES, cosine_betas, linear_betas, rescaled_betas
from worlds import F64, textured, two_pixels


def exact_moments(monkeypatch, world, image, hole, steps, eta):
    """The mean [h] and covariance [h, h] of sample()'s hole, without any sampling error.

    The result is affine in all the numbers drawn, so one batch tells all: row 0 is given zeros, and
    every other row a single 1, each at a different pixel of a different draw. Row 0 is the mean,
    and the covariance sums the other rows' deviations from it.
    """
    inside = world.inside(hole)
    pixels = inside.nonzero()[:, 0]
    draws = 1 + (steps if eta > 0 else 0)
    rows, drawn = 1 + draws * len(pixels), []

    def units(x, generator=None):
        noise = torch.zeros(rows, x[0].numel(), dtype=F64)
        first = 1 + len(drawn) * len(pixels)
        noise[torch.arange(first, first + len(pixels)), pixels] = 1
        drawn.append(first)
        return noise.reshape(x.shape)

    monkeypatch.setattr(ddpm, "randn_like", units)
    x = world.process.sample(world, image.expand(rows, -1, -1, -1), hole.expand(rows, -1, -1, -1),
                             steps, eta)
    monkeypatch.undo()
    assert len(drawn) == draws
    x = x.flatten(1)[:, inside]
    return x[0], (x[1:] - x[0]).T @ (x[1:] - x[0])


def box(side=8):
    hole = torch.zeros(1, 1, side, side, dtype=F64)
    hole[..., 2:6, 3:7] = 1
    return hole


def drawn_from(world, n, seed=0):
    """n images of the world."""
    z = torch.randn(n, len(world.cov), dtype=F64, generator=torch.Generator().manual_seed(seed))
    x = world.mean.flatten() + z @ torch.linalg.cholesky(world.cov).T
    return x.reshape(n, *world.mean.shape)


# ---- the sampler finds the distribution ------------------------------------------------------

# The allowances are for the discretisation alone: about half as much again as was measured. They
# are of the covariance; the mean is far better. That the error shrinks with the steps is below.
MEAN = 5e-4


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta, allowance", [(1.0, 0.010), (0.0, 0.0045)])
def test_unconditional_moments_of_two_pixels(monkeypatch, prediction, eta, allowance):
    world = two_pixels(DDPM(cosine_betas(300), prediction))
    hole = torch.ones(1, 1, 1, 2, dtype=F64)
    mean, cov = exact_moments(monkeypatch, world, 0 * hole, hole, 300, eta)
    assert_close(mean, world.mean.flatten(), rtol=0, atol=MEAN)
    assert_close(cov, world.cov, rtol=0, atol=allowance)


@pytest.mark.parametrize("steps, eta, allowance", [(50, 0.0, 0.003), (50, 1.0, 0.012)])
def test_unconditional_moments_of_a_textured_image(monkeypatch, steps, eta, allowance):
    world = textured(DDPM(cosine_betas(300)))
    blank = torch.zeros(1, 1, 8, 8, dtype=F64)
    mean, cov = exact_moments(monkeypatch, world, blank, torch.ones_like(blank), steps, eta)
    assert_close(mean, world.mean.flatten(), rtol=0, atol=MEAN)
    assert_close(cov, world.cov, rtol=0, atol=allowance)


@pytest.mark.parametrize("betas", [cosine_betas, rescaled_betas])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps, eta, allowance", [(300, 0.0, 0.0045), (150, 1.0, 0.004),
                                                   (20, 0.0, 0.008), (20, 1.0, 0.008)])
def test_inpainting_has_the_conditional_moments(monkeypatch, betas, prediction, steps, eta,
                                                allowance):
    world = textured(DDPM(betas(300), prediction))
    image, hole = drawn_from(world, 1), box()
    m, C = world.conditional(image, hole)
    assert (m[0] - world.mean.flatten()[world.inside(hole)]).abs().max() > 0.2    # not the prior
    mean, cov = exact_moments(monkeypatch, world, image, hole, steps, eta)
    left = world.process.alphas_bar[-1].sqrt()                 # of the image in x_T, a little bias
    assert_close(mean, m[0], rtol=0, atol=MEAN + 0.5 * left.item())
    assert_close(cov, C, rtol=0, atol=allowance)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_between_neighbours_the_sampler_is_of_first_order(monkeypatch, eta):
    """Twice the steps, about half the error."""
    def error(steps):
        world = two_pixels(DDPM(cosine_betas(steps)))
        hole = torch.ones(1, 1, 1, 2, dtype=F64)
        _, cov = exact_moments(monkeypatch, world, 0 * hole, hole, steps, eta)
        return (cov - world.cov).abs().max()
    assert 0.4 < error(128) / error(64) < 0.65


@pytest.mark.parametrize("betas", [cosine_betas, rescaled_betas])
@pytest.mark.parametrize("order, low, high", [(1, 3.5, 5.0), (2, 16, 60)])
def test_in_strides_the_solver_is_of_second_order_and_ddim_of_first(monkeypatch, betas, order, low,
                                                                    high):
    """A quarter of the stride: a quarter of DDIM's distance to the exact path, a sixteenth or less
    of the solver's (from the same noise to where the finest strides lead)."""
    world = two_pixels(DDPM(betas(6_400)))
    blank = torch.zeros(100, 1, 1, 2, dtype=F64)

    def end(steps):
        return world.process.sample(world, blank, blank[..., :1] + 1, steps, 0.0,
                                    torch.Generator().manual_seed(0))
    exact = end(800)
    if order == 1:
        monkeypatch.setattr(DDPM, "extrapolate_x0", lambda self, x0, *_: x0)
    errors = [(end(steps) - exact).square().mean().sqrt() for steps in (25, 100)]
    assert low < errors[0] / errors[1] < high


@pytest.mark.parametrize("betas", [cosine_betas, rescaled_betas])
def test_twenty_calls_vary_as_they_should_and_would_not_without_ahead(monkeypatch, betas):
    """The fills have all the variance that they should; Algorithm 2 in strides loses a third."""
    world = textured(DDPM(betas(300)))
    image, hole = drawn_from(world, 1), box()
    _, C = world.conditional(image, hole)

    def share():
        return exact_moments(monkeypatch, world, image, hole, 20, 1.0)[1].trace() / C.trace()
    assert 0.97 < share() < 1.03
    monkeypatch.setattr(DDPM, "extrapolate_x0", lambda self, x0, *_: x0)
    assert share() < 0.75


@pytest.mark.parametrize("clip", [False, True])
def test_ahead_follows_a_line_in_half_the_log_snr(clip):
    process = DDPM(cosine_betas(300), clip=clip)
    r, t, s = (torch.tensor([level]) for level in (250, 200, 120))
    lam = 0.5 * (process.alphas_bar / (1 - process.alphas_bar)).log()
    line = lambda at: 0.1 + 0.2 * at                                        # noqa: E731
    x0, before = (torch.full((1, 3, 2, 2), line(lam[i]).item(), dtype=F64) for i in (200, 250))
    want = line((lam[200] + lam[120]) / 2)
    assert_close(process.extrapolate_x0(x0, t, before, r, s)[0, 0, 0, 0], want)
    far = process.extrapolate_x0(x0 + 5, t, before, r, s)
    assert (far.abs().max() <= 1) == clip


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_real_draws_have_the_moments_too(eta):
    """20,000 draws: standard errors of √(0.3/N) = 0.004 and √2 · 0.3/√N = 0.003, four allowed,
    and 0.01 for the discretisation."""
    world, n = two_pixels(DDPM(cosine_betas(200))), 20_000
    blank = torch.zeros(n, 1, 1, 2, dtype=F64)
    x = world.process.sample(world, blank, blank + 1, None, eta,
                             torch.Generator().manual_seed(1)).flatten(1)
    assert_close(x.mean(dim=0), world.mean.flatten(), rtol=0, atol=0.016)
    assert_close(x.T.cov(), world.cov, rtol=0, atol=0.012 + 0.01)
    skew = ((x - x.mean(dim=0)) / x.std(dim=0)).pow(3).mean(dim=0)
    assert_close(skew, torch.zeros(2, dtype=F64), rtol=0, atol=4 * math.sqrt(6 / n))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 7, None])
def test_where_there_is_one_image_every_sampler_lands_on_it(prediction, eta, steps):
    world = two_pixels(DDPM(cosine_betas(20), prediction))
    world.cov = torch.zeros(2, 2, dtype=F64)
    x = world.process.sample(world, torch.zeros(3, 1, 1, 2, dtype=F64),
                             torch.ones(3, 1, 1, 2, dtype=F64), steps, eta)
    assert_close(x, world.mean.expand(3, -1, -1, -1))


# ---- what the sampler keeps and reports ------------------------------------------------------

def setting(prediction="eps", T=12, n=3):
    """A process, an elementwise network, images and holes, float32."""
    g = torch.Generator().manual_seed(5)
    image = torch.rand(n, 3, 6, 6, generator=g) * 2 - 1
    hole = (torch.rand(n, 1, 6, 6, generator=g) < 0.4).float()
    return DDPM(linear_betas(T, 0.01, 0.4), prediction), lambda x, t, hole: 0.5 * x, image, hole


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_known_pixels_come_back_bit_for_bit(prediction, eta):
    process, network, image, hole = setting(prediction)
    seen = []

    def watched(x, t, hole):
        seen.append(torch.equal(x * (1 - hole), image * (1 - hole)))
        return network(x, t, hole)

    x = process.sample(watched, image, hole, 5, eta, torch.Generator().manual_seed(0))
    known = (hole == 0).expand_as(x)
    assert torch.equal(x[known], image[known]) and not (x[~known] == image[~known]).any()
    assert seen == [True] * 5                            # clean at every level, for the network


def test_what_lies_in_the_hole_is_never_looked_at():
    process, network, image, hole = setting()
    torn = torch.where(hole > 0, torch.nan, image)
    one, two = (process.sample(network, i, hole, generator=torch.Generator().manual_seed(0))
                for i in (image, torn))
    assert torch.equal(one, two)


@pytest.mark.parametrize("steps", [1, 5, 12, None])
def test_a_network_call_and_a_callback_a_step(steps):
    process, network, image, hole = setting()
    calls, reports = [], []

    def counted(x, t, hole):
        assert t.shape == (len(x),) and t.dtype == torch.int64 and (t == t[0]).all()
        calls.append((int(t[0]), x))
        return network(x, t, hole)

    x = process.sample(counted, image, hole, steps, callback=lambda *report: reports.append(report))
    times = process.timesteps(steps or 12)[:-1]
    assert [t for t, _ in calls] == [t for t, _, _ in reports] == times
    for (_, before), (_, after, _) in zip(calls[1:], reports):
        assert torch.equal(before, after)
    for (t, before), (_, _, x0) in zip(calls, reports):
        t = torch.full((3,), t)
        assert_close(x0, process.predict_x0(before, t, network(before, t, hole)))
    assert torch.equal(reports[-1][1], x)


def test_a_list_of_generators_makes_a_fill_independent_of_its_batch():
    process, network, image, hole = setting()
    seeded = [torch.Generator().manual_seed(i) for i in range(3)]
    together = process.sample(network, image, hole, generator=seeded)
    for i in (2, 0, 1):
        alone = process.sample(network, image[i:i + 1], hole[i:i + 1],
                               generator=[torch.Generator().manual_seed(i)])
        assert torch.equal(alone[0], together[i])


def test_noise_of_many_generators_is_moved_to_the_device_at_once():
    moves = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            moves.append(function) if function is torch.ops.aten._to_copy.default else None
            return function(*args, **(kwargs or {}))

    x = torch.zeros(4, 3, 8, 8, device="meta")
    with Count():
        noise = ddpm.randn_like(x, [torch.Generator() for _ in range(4)])
    assert noise.device.type == "meta" and len(moves) == 1


def test_the_full_chain_is_p_sample_after_p_sample():
    process, network, image, hole = setting()
    g = torch.Generator().manual_seed(3)
    x = torch.where(hole > 0, torch.randn(image.shape, generator=g), image)
    for t in reversed(range(process.T)):
        x = process.p_sample(network, x, torch.full((3,), t), hole, g)
    assert_close(process.sample(network, image, hole, generator=g.manual_seed(3)), x)


def test_the_last_step_adds_no_noise():
    process, network, image, hole = setting()
    for t, same in ((0, True), (1, False)):
        one, two = (process.p_sample(network, image, torch.full((3,), t), hole,
                                     torch.Generator().manual_seed(seed)) for seed in (0, 1))
        assert torch.equal(one, two) == same


@given(st.sampled_from(list(SCHEDULES.values())), st.data())
def test_times_go_from_the_noise_to_clean(betas, data):
    T = data.draw(st.integers(1, 500))
    steps = data.draw(st.integers(1, T))
    times = DDPM(betas(T)).timesteps(steps)
    assert times[0] == T - 1 and times[-1] == -1 and len(times) == steps + 1
    assert all(t > s for t, s in zip(times[:-1], times[1:]))
    for wrong in (0, -1, T + 1):
        with pytest.raises(ValueError):
            DDPM(betas(T)).timesteps(wrong)


@pytest.mark.parametrize("steps", [2, 7, 20, 50])
def test_times_are_even_under_the_cosine_schedule_and_elsewhere_as_noisy_as_there(steps):
    cosine, rescaled = DDPM(cosine_betas(300)), DDPM(rescaled_betas(300))
    even = [300 * i / steps - 1 for i in range(steps, -1, -1)]
    assert all(abs(t - at) <= 1 for t, at in zip(cosine.timesteps(steps), even))
    root, want = rescaled.alphas_bar.sqrt(), cosine.alphas_bar.sqrt()[cosine.timesteps(steps)[1:-1]]
    got = root[rescaled.timesteps(steps)[1:-1]]
    assert (got - want).abs().max() < 0.01             # half a level, and the √ᾱ_T that is left


# ---- the forward process and its posterior ---------------------------------------------------

def numbers(*values):
    return torch.tensor(values, dtype=F64).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_levels_are_drawn_as_densely_as_sampling_visits_them(name):
    """Even in the angle between image and noise; uniform for the cosine schedule; both ends too."""
    process, n = DDPM(SCHEDULES[name](50)), 100_000
    drawn = process.draw_t(n, torch.Generator().manual_seed(0))
    share = drawn.bincount() / n
    theta = 0.008 / 1.008 * math.pi / 2
    angles = (process.alphas_bar.sqrt() * math.cos(theta)).arccos() - theta
    want = angles.diff(prepend=angles.new_zeros(1)) / angles[-1]
    assert len(share) == 50 and share.min() > 0
    torch.testing.assert_close(share.double(), want, atol=3e-3, rtol=0.1)
    if name == "cosine":
        torch.testing.assert_close(share, torch.full((50,), 0.02), atol=2e-3, rtol=0)


@pytest.mark.parametrize("betas", [linear_betas(300), rescaled_betas(300), cosine_betas(300)])
def test_iterated_q_step_has_the_moments_of_q_sample(betas):
    """Mean factor √ᾱ_t and variance 1 - ᾱ_t, by iteration on x_0 = 1 and on the noise's share."""
    process, mean, variance = DDPM(betas), numbers(1), numbers(0)
    for t in torch.arange(process.T).split(1):
        mean = process.q_step(mean, t, numbers(0))
        variance = process.q_step(numbers(1), t, numbers(0)) ** 2 * variance
        variance = variance + process.q_step(numbers(0), t, numbers(1)) ** 2
        assert_close(process.q_sample(numbers(1), t, numbers(0)), mean)
        assert_close(process.q_sample(numbers(0), t, numbers(1)) ** 2, variance)
        assert_close(process.alpha_bar(t, mean), mean ** 2)


@pytest.mark.parametrize("s, t", [(-1, 0), (-1, 7), (3, 4), (2, 9)])
def test_renoising_is_all_the_steps_of_noise_between(s, t):
    process, mean, variance = DDPM(cosine_betas(12)), numbers(1), numbers(0)
    for level in range(s + 1, t + 1):
        level = torch.tensor([level])
        mean = process.q_step(mean, level, numbers(0))
        variance = process.q_step(numbers(1), level, numbers(0)) ** 2 * variance
        variance = variance + process.q_step(numbers(0), level, numbers(1)) ** 2
    s, t = torch.tensor([s]), torch.tensor([t])
    assert_close(process.renoise(numbers(1), s, t, numbers(0)), mean)
    assert_close(process.renoise(numbers(0), s, t, numbers(1)) ** 2, variance)


@pytest.mark.parametrize("t", [1, 2, 10, 29])
def test_the_posterior_is_bayes_rule(t):
    """q(x_{t-1} | x_t, x_0) ∝ q(x_t | x_{t-1}) q(x_{t-1} | x_0), multiplied out on a grid."""
    betas = linear_betas(30, 0.01, 0.3)
    process, x0, x_t = DDPM(betas), 0.7, -0.4
    beta, before = betas[t], torch.prod(1 - betas[:t])
    grid = torch.linspace(-8, 8, 160_001, dtype=F64)
    log = -(x_t - (1 - beta).sqrt() * grid) ** 2 / (2 * beta)
    log = log - (grid - before.sqrt() * x0) ** 2 / (2 * (1 - before))
    weight = torch.softmax(log, dim=0)
    mean = (weight * grid).sum()
    variance = (weight * (grid - mean) ** 2).sum()
    ours = process.posterior(numbers(x0), numbers(x_t), torch.tensor([t]))
    assert_close(torch.stack(ours).flatten(), torch.stack([mean, variance]), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("betas", [linear_betas(300), rescaled_betas(300), cosine_betas(300)])
def test_the_posterior_of_the_first_step_is_x0_itself(betas):
    mean, variance = DDPM(betas).posterior(numbers(0.7), numbers(-0.4), torch.tensor([0]))
    assert_close(mean, numbers(0.7))
    assert_close(variance, numbers(0))


@pytest.mark.parametrize("betas", [linear_betas(300), rescaled_betas(300), cosine_betas(300)])
def test_an_ancestral_step_is_the_posterior(betas):
    """η = 1 and s = t - 1: the mean and the σ of eq. 7, at every level."""
    process, t = DDPM(betas), torch.arange(len(betas))
    g = torch.Generator().manual_seed(0)
    x0, eps, z = torch.randn(3, process.T, 1, 1, 1, dtype=F64, generator=g)
    mean, variance = process.posterior(x0, process.q_sample(x0, t, eps), t)
    g.manual_seed(1)
    z = torch.randn(process.T, 1, 1, 1, dtype=F64, generator=g)
    step = process.step(x0, eps, t, t - 1, 1.0, g.manual_seed(1))
    assert_close(step, mean + variance.sqrt() * z, rtol=1e-9, atol=1e-12)


@given(eta=st.floats(0, 1), levels=st.sets(st.integers(-1, 29), min_size=2, max_size=2))
def test_a_step_keeps_the_marginal_whatever_eta(eta, levels):
    """x_0's share is √ᾱ_s and all of the noise, ε and fresh, has variance 1 - ᾱ_s."""
    process = DDPM(cosine_betas(30))
    s, t = (torch.tensor([level]) for level in sorted(levels))

    def step(x0, eps):
        return process.step(numbers(x0), numbers(eps), t, s, eta, torch.Generator().manual_seed(0))

    z = torch.randn(1, 1, 1, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    fresh, kept = step(0, 0) / z, step(0, 1) - step(0, 0)
    assert_close(step(1, 0) - step(0, 0), process.alpha_bar(s, z).sqrt())
    assert_close(fresh ** 2 + kept ** 2, 1 - process.alpha_bar(s, z), rtol=1e-9, atol=1e-12)


@given(t=st.integers(0, 299), seed=st.integers(0, 99))
def test_predict_x0_and_predict_eps_undo_q_sample(t, seed):
    process, t = DDPM(cosine_betas(300)), torch.tensor([t, t])
    x0, eps = torch.randn(2, 2, 3, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(seed))
    x_t = process.q_sample(x0, t, eps)
    assert_close(process.predict_x0(x_t, t, eps), x0, rtol=0, atol=1e-10)
    assert_close(process.predict_eps(x_t, t, x0), eps, rtol=0, atol=1e-10)


@given(t=st.integers(0, 299), prediction=st.sampled_from(PREDICTIONS))
def test_predict_knows_what_the_network_means(t, prediction):
    process, t = DDPM(cosine_betas(300), prediction), torch.tensor([t, t])
    x0, eps = torch.randn(2, 2, 3, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    x, hole = process.q_sample(x0, t, eps), torch.ones(2, 1, 4, 4, dtype=F64)
    ours = process.predict(perfect(process, x0, hole), x, t, hole)
    assert_close(torch.stack(ours), torch.stack([x0, eps]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_clipped_prediction_still_explains_x(prediction):
    """x_0 is in [-1, 1] and √ᾱ x_0 + √(1-ᾱ) ε is x, at every level; inside, nothing changes."""
    process, t = DDPM(cosine_betas(50), prediction, clip=True), torch.arange(50)
    g = torch.Generator().manual_seed(0)
    truth, eps = 1.5 * torch.randn(2, 50, 3, 4, 4, dtype=F64, generator=g)
    x, hole = process.q_sample(truth, t, eps), torch.ones(50, 1, 4, 4, dtype=F64)
    x0, noise = process.predict(perfect(process, truth, hole), x, t, hole)
    assert_close(x0, truth.clamp(-1, 1), rtol=0, atol=1e-9)
    assert_close(process.q_sample(x0, t, noise), x)


def test_only_these_are_predictions():
    with pytest.raises(ValueError, match="score"):
        DDPM(linear_betas(3), "score")


# ---- the loss --------------------------------------------------------------------------------

def perfect(process, x0, hole, record=None):
    """The network that knows x_0, and so the noise; wrong outside the hole on purpose."""
    def network(x, t, hole):
        if record is not None:
            record.append((x, t))
        alpha_bar = process.alphas_bar[t].reshape(-1, 1, 1, 1)
        eps = (x - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()
        v = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x0
        answers = {"eps": eps, "v": v, "x0": x0}
        return torch.where(hole > 0, answers[process.prediction], 99.0)
    return network


def images_and_holes(n, shares, channels=3, side=6):
    """n float64 images; of image i the share shares[i % len], at least one pixel, is the hole."""
    g = torch.Generator().manual_seed(2)
    x0 = torch.rand(n, channels, side, side, dtype=F64, generator=g) * 2 - 1
    ranks = torch.rand(n, side * side, generator=g).argsort(dim=1).argsort(dim=1)
    pixels = torch.tensor([max(1, round(shares[i % len(shares)] * side ** 2)) for i in range(n)])
    return x0, (ranks < pixels[:, None]).to(F64).reshape(n, 1, side, side)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_has_no_loss_whatever_it_says_outside_the_hole(prediction):
    process, (x0, hole) = DDPM(cosine_betas(50), prediction), images_and_holes(64, [0, 0.3, 1])
    loss = random_loss(process, perfect(process, x0, hole), x0, hole,
                       torch.Generator().manual_seed(0))
    assert_close(loss, torch.zeros((), dtype=F64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_every_image_weighs_the_same_whatever_its_hole(prediction):
    """Errors of 1 and of 2 on holes of 1 and of 36 pixels: (1² + 2²)/2."""
    process, (x0, hole) = DDPM(cosine_betas(50), prediction), images_and_holes(2, [0, 1])
    network = perfect(process, x0, hole)
    loss = random_loss(process, lambda *a: network(*a) + numbers(1, 2), x0, hole)
    assert_close(loss, torch.tensor(2.5, dtype=F64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("level", [0, 1, 12, 49])
def test_an_error_in_x0_costs_what_the_same_error_costs_as_v(level):
    """x_0 = √ᾱ x_t - √(1-ᾱ) v, so an error of 0.3 in x_0 is one of 0.3/√(1-ᾱ) in v; the two least
    noisy levels here, of √(1-ᾱ) = 0.04 and 0.07, count as if it were 0.1."""
    process, (x0, hole) = DDPM(cosine_betas(50), "x0"), images_and_holes(4, [0.3])
    t, noise = torch.full((4,), level), torch.randn(x0.shape, dtype=F64)
    network, share = perfect(process, x0, hole), (1 - process.alphas_bar[level]).sqrt().item()
    loss = process.loss(lambda *a: network(*a) + 0.3, x0, hole, t, noise)
    assert loss.item() == pytest.approx((0.3 / max(share, 0.1)) ** 2)


@pytest.mark.parametrize("share", [0, 0.2, 1])
def test_a_network_that_says_zero_has_a_loss_of_one_whatever_the_hole(share):
    """E ε² = 1; of 2000 images of 3 · |hole| squares, each of variance 2; four standard errors."""
    process, (x0, hole) = DDPM(cosine_betas(50)), images_and_holes(2000, [share])
    loss = random_loss(process, lambda x, t, hole: 0 * x, x0, hole,
                       torch.Generator().manual_seed(0))
    error = math.sqrt(2 / (3 * hole.sum()))
    assert_close(loss, torch.tensor(1.0, dtype=F64), rtol=0, atol=4 * error)


def test_the_loss_shows_the_network_clean_known_pixels_and_a_noisy_hole():
    process, (x0, hole) = DDPM(linear_betas(4, 0.2, 0.9)), images_and_holes(500, [0.3])
    record = []
    random_loss(process, perfect(process, x0, hole, record), x0, hole,
                torch.Generator().manual_seed(0))
    (x, t), = record
    known = (hole == 0).expand_as(x)
    assert torch.equal(x[known], x0[known])
    alpha_bar = process.alpha_bar(t, x0)
    noise = ((x - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt())[~known]
    assert noise.var().item() == pytest.approx(1, abs=4 * math.sqrt(2 / len(noise)))
    assert t.unique().tolist() == [0, 1, 2, 3]                                  # both ends too
    assert t.bincount().min() > 500 / 4 * 0.7


def test_the_same_seed_gives_the_same_loss():
    process, (x0, hole) = DDPM(cosine_betas(50)), images_and_holes(4, [0.3])
    one, two, other = (random_loss(process, lambda x, t, hole: x, x0, hole,
                                    torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert one == two != other


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_network_in_bfloat16_leaves_the_chain_in_the_images_own_precision(prediction):
    """1-ᾱ of the cleanest levels is 0 in bfloat16, and ε then infinite."""
    process = DDPM(rescaled_betas(300), prediction, clip=True)
    image, hole = torch.zeros(2, 3, 4, 4), torch.ones(2, 1, 4, 4)

    def eps_model(x, t, hole):
        return (0.5 * x).bfloat16()
    for estimate in process.predict(eps_model, image, 0, hole):
        assert estimate.dtype == torch.float32
    assert process.sample(eps_model, image, hole, 50).isfinite().all()


@pytest.mark.parametrize("steps", [2, 5])
def test_long_strides_through_a_long_chain_stay_finite(steps):
    """In float32, 1-ᾱ_s-σ² of a stride may come out below 0."""
    process, image = DDPM(cosine_betas(1000)), torch.zeros(1, 1, 4, 4)
    x = process.sample(lambda x, t, hole: 0 * x, image, torch.ones(1, 1, 4, 4), steps,
                       generator=torch.Generator().manual_seed(0))
    assert x.isfinite().all()
