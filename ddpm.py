"""Denoising diffusion (Ho et al. 2020): the forward process, its posterior, training and sampling.

The network is an argument, never a member: `eps_model(x, t, hole)` takes
    x     [B, C, H, W]  the image: noisy at level t inside the hole, clean outside it
    t     [B] int64     the noise level, 0-based: t = 0 is the paper's t = 1; ᾱ_{-1} = 1 is clean
    hole  [B, 1, H, W]  1 = to be filled, 0 = known
and returns an estimate, [B, C, H, W], of the noise ε in x (or of v or x_0: `DDPM.predict`). So a
U-Net, its moving average, a compiled module or a closed-form oracle all drop in.

There is one sampler here; methods.py has others, to compare. Known pixels are kept, clean, at every
step and only the hole is generated; an unconditional sample is the inpainting of an image that is
all hole.
"""
import math
from itertools import pairwise

import torch

PREDICTIONS = ("v", "eps", "x0")


class DDPM:
    """The process that the variances β [T] define; tables in float64, cast where they are used.

    `prediction` says what the network's output means: "eps" (Algorithm 1); "v",
    v = √ᾱ ε - √(1-ᾱ) x_0 (Salimans and Ho 2022); or "x0", the image itself. `clip` keeps estimates
    of x_0 in [-1, 1], where images live; without it, an ε-network's small errors at high noise
    become huge in x_0.

    `angles` [T] say how far a level is on the way from image to noise: arccos(√ᾱ_t cos θ_0) - θ_0,
    θ_0 = π/2 · s/(1+s), where s = 0.008 is the cosine schedule's, whose angles are equal steps.
    """

    def __init__(self, betas, prediction="eps", clip=False):
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction is one of {PREDICTIONS}, not {prediction!r}")
        self.betas = betas.double()
        alphas_bar = torch.cumprod(1 - self.betas, dim=0)
        self.table = torch.cat([alphas_bar, alphas_bar.new_ones(1)])    # ᾱ_{-1} = 1 stands last
        self.alphas_bar, self.T = self.table[:-1], len(betas)
        start = math.pi / 2 * 0.008 / 1.008                             # θ_0
        self.angles = (self.alphas_bar.cpu().sqrt() * math.cos(start)).arccos() - start
        self.prediction, self.clip = prediction, clip

    def beta(self, t, x):
        """β_t, of t [B] or an int, as [B or 1, 1, 1, 1], in x's type and on its device."""
        return self.betas.to(x.device)[t].to(x.dtype).reshape(-1, 1, 1, 1)

    def alpha_bar(self, t, x):
        """ᾱ_t likewise, with ᾱ_{-1} = 1."""
        return self.table.to(x.device)[t].to(x.dtype).reshape(-1, 1, 1, 1)

    # ---- the forward process -----------------------------------------------------------------

    def q_step(self, x, t, noise):
        """One step of noising, x_{t-1} → x_t = √(1-β_t) x_{t-1} + √β_t ε          (eq. 2)."""
        beta = self.beta(t, x)
        return (1 - beta).sqrt() * x + beta.sqrt() * noise

    def q_sample(self, x0, t, noise):
        """All the steps in one, x_0 → x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε                 (eq. 4)."""
        alpha_bar = self.alpha_bar(t, x0)
        return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise

    def renoise(self, x, s, t, noise):
        """From level s up to a noisier t: x_t = √(ᾱ_t/ᾱ_s) x_s + √(1 - ᾱ_t/ᾱ_s) ε; q_step if they
        are neighbours, q_sample from s = -1."""
        share = self.alpha_bar(t, x) / self.alpha_bar(s, x)
        return share.sqrt() * x + (1 - share).sqrt() * noise

    # ---- its reversal ------------------------------------------------------------------------

    def predict_x0(self, x_t, t, eps):
        """The image that q_sample made x_t from, if ε was its noise: (x_t - √(1-ᾱ_t) ε) / √ᾱ_t."""
        alpha_bar = self.alpha_bar(t, x_t)
        return (x_t - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()

    def predict_eps(self, x_t, t, x0):
        """The noise by which q_sample made x_t from x_0: (x_t - √ᾱ_t x_0) / √(1-ᾱ_t)."""
        alpha_bar = self.alpha_bar(t, x_t)
        return (x_t - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()

    def posterior(self, x0, x_t, t):
        """q(x_{t-1} | x_t, x_0) = N(mean, variance)                            (eqs. 6 and 7).

        mean     = √ᾱ_{t-1} β_t / (1-ᾱ_t) x_0 + √α_t (1-ᾱ_{t-1}) / (1-ᾱ_t) x_t    [B, C, H, W]
        variance = (1-ᾱ_{t-1}) / (1-ᾱ_t) β_t                                      [B, 1, 1, 1]
        At t = 0 the mean is x_0 and the variance 0: the last step adds no noise.
        """
        beta, alpha_bar = self.beta(t, x_t), self.alpha_bar(t, x_t)
        previous = self.alpha_bar(t - 1, x_t)
        mean = previous.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - previous) * x_t
        return mean / (1 - alpha_bar), (1 - previous) / (1 - alpha_bar) * beta

    def predict(self, eps_model, x, t, hole):
        """The network's x_0 and ε at x, whatever its output means; t [B], or an int for all. Its
        counterpart is `target`; besides these two, only `loss`'s weights depend on `prediction`.

        From v = √ᾱ ε - √(1-ᾱ) x_0, x_0 = √ᾱ x_t - √(1-ᾱ) v needs no division; from ε it needs one
        by √ᾱ, which is nearly 0 at the noisy end.
        """
        t = t if torch.is_tensor(t) else torch.full((len(x),), t, device=x.device)
        output = eps_model(x, t, hole).to(x.dtype)          # bfloat16 would not do for 1-ᾱ
        if self.prediction == "eps":
            x0 = self.predict_x0(x, t, output)
        elif self.prediction == "x0":
            x0 = output
        else:
            alpha_bar = self.alpha_bar(t, x)
            x0 = alpha_bar.sqrt() * x - (1 - alpha_bar).sqrt() * output
        x0 = x0.clamp(-1, 1) if self.clip else x0
        return x0, self.predict_eps(x, t, x0)

    # ---- Algorithm 1 -------------------------------------------------------------------------

    def draw_t(self, n, generator=None):
        """Levels to train at, [n] int64, as dense as those of `timesteps`: even in `angles`. For
        the cosine schedule that is Algorithm 1's t ~ Uniform; of the rescaled schedule's levels, a
        third is nearly all noise, and would get a third of the training."""
        uniform = torch.rand(n, generator=generator, dtype=torch.float64)
        return torch.searchsorted(self.angles, self.angles[-1] * uniform)

    def target(self, x0, noise, t):
        """What the network's output should be at x_t = q_sample(x0, t, noise); see `predict`."""
        if self.prediction == "eps":
            return noise
        if self.prediction == "x0":
            return x0
        alpha_bar = self.alpha_bar(t, x0)
        return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0

    def loss(self, eps_model, x0, hole, t, noise):
        """‖ε - ε_θ(x, t, hole)‖², averaged over colours, the hole's pixels, then images; a scalar.
        x is x_t in the hole and x_0 outside it.

        x0, noise [B, C, H, W], x0 in [-1, 1]; hole [B, 1, H, W]; t [B]. The mean over the hole
        alone keeps the loss's scale the same for a small hole and for an unconditional image.
        A v-network's error is in v. An x_0-network's is turned into v's, error / √(1-ᾱ), with a
        divisor of at least 0.1, or the least noisy levels would outweigh all others (after Li and
        He 2025).
        """
        x = hole * self.q_sample(x0, t, noise) + (1 - hole) * x0          # known pixels are kept
        error = eps_model(x, t, hole) - self.target(x0, noise, t)
        if self.prediction == "x0":
            error = error / (1 - self.alpha_bar(t, x0)).sqrt().clamp(min=0.1)
        squares = error.square().mean(dim=1, keepdim=True)
        return ((squares * hole).sum(dim=(1, 2, 3)) / hole.sum(dim=(1, 2, 3))).mean()

    # ---- Algorithm 2 -------------------------------------------------------------------------

    def step(self, x0, eps, t, s, eta=1.0, generator=None):
        """From level t down to any level s < t, given the estimates of x_0 and ε at x_t.

        x_s = √ᾱ_s x_0 + √(1-ᾱ_s-σ²) ε + σ z,  σ = η √((1-ᾱ_s)/(1-ᾱ_t) · (1-ᾱ_t/ᾱ_s))
        (Song et al. 2021, eqs. 12 and 16). η = 0 is DDIM, deterministic; η = 1 is ancestral, and
        with s = t - 1 it is the `posterior`, that is, Algorithm 2. To s = -1, σ = 0.
        """
        bar_t, bar_s = self.alpha_bar(t, x0), self.alpha_bar(s, x0)
        sigma = eta * ((1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s)).sqrt()
        x = bar_s.sqrt() * x0 + (1 - bar_s - sigma ** 2).clamp(min=0).sqrt() * eps
        return x + sigma * randn_like(x0, generator) if eta > 0 else x

    def extrapolate_x0(self, x0, t, previous, r, s):
        """The x_0 to aim at on the way from t to s: the straight line in λ = ½ log(ᾱ/(1-ᾱ)) through
        the last two estimates, `previous` at level r and x0 at t, followed half the way to s:

        x_0 + (λ_s-λ_t) / (λ_t-λ_r) · (x_0 - previous) / 2

        `step` to it is of second order where DDIM, or Algorithm 2 in strides, is of first, at the
        same calls: DPM-Solver++(2M) for η = 0, its SDE version for η = 1 (Lu et al. 2022). Without
        it, the fills of 20 calls vary too little.
        """
        lambda_r, lambda_t, lambda_s = (torch.logit(self.alpha_bar(level, x0)) / 2
                                        for level in (r, t, s))
        x0 = x0 + (lambda_s - lambda_t) / (lambda_t - lambda_r) * (x0 - previous) / 2
        return x0.clamp(-1, 1) if self.clip else x0

    def solver_step(self, x, x0, eps, t, s, previous=None, eta=1.0, generator=None):
        """`step` from x at level t to s: of second order, aimed at `extrapolate_x0`, if `previous`,
        the last estimate and its level, (x_0, level), is given and s is not yet clean."""
        if previous and s >= 0:
            x0 = self.extrapolate_x0(x0, t, *previous, s)
            eps = self.predict_eps(x, t, x0)
        return self.step(x0, eps, t, s, eta, generator)

    def p_sample(self, eps_model, x, t, hole, generator=None):
        """One step of Algorithm 2: x_{t-1} ~ N(mean, variance) of the posterior at the network's
        x_0; the known pixels of x stay as they are. `sample` does so if it takes all T steps."""
        x0, eps = self.predict(eps_model, x, t, hole)
        return torch.where(hole > 0, self.step(x0, eps, t, t - 1, 1.0, generator), x)

    def timesteps(self, steps):
        """`steps` levels from T-1 down, and -1 after them: where the network looks.

        The levels are equal steps of `angles`, rounded to levels that exist. For the cosine
        schedule, these are equal steps of t; others that end in noise get nearly the same levels of
        noise. So few calls are spent where nearly all is noise. Raises ValueError unless
        1 ≤ steps ≤ T.
        """
        if not 1 <= steps <= self.T:
            raise ValueError(f"steps is 1 … {self.T}, the length of the chain, not {steps}")
        times = [self.T - 1]
        for left in range(steps - 1, 0, -1):
            nearest = int((self.angles - self.angles[-1] * left / steps).abs().argmin())
            times.append(max(left - 1, min(nearest, times[-1] - 1)))
        return [*times, -1]

    @torch.no_grad()
    def sample(self, eps_model, image, hole, steps=None, eta=1.0, generator=None, callback=None):
        """Algorithm 2 with the known pixels kept: fill the hole of `image` in `steps` calls.

        image [B, C, H, W] in [-1, 1]; what it holds inside the hole is never looked at.
        hole  [B, 1, H, W]; all ones: an unconditional sample.
        steps     None: the whole chain, T calls; fewer take longer steps, see `extrapolate_x0`.
        eta       see `step`.
        generator one, or a list of one per image, which makes a fill independent of its batch.
        callback  callback(t, x, x0) is called after every step: the level that it left, the new x,
                  and the estimate of x_0 at t.
        Returns [B, C, H, W]: outside the hole exactly `image`; inside, in [-1, 1] if `clip` is set.
        """
        steps = self.T if steps is None else steps
        times = self.timesteps(steps)
        x, previous = torch.where(hole > 0, randn_like(image, generator), image), None
        for t, s in pairwise(times):
            x0, eps = self.predict(eps_model, x, t, hole)
            x = self.solver_step(x, x0, eps, t, s, previous, eta, generator)
            x = torch.where(hole > 0, x, image)
            previous = (x0, t) if steps < self.T else None        # all T: Algorithm 2 as it is
            if callback:
                callback(t, x, x0)
        return x


def randn_like(x, generator=None):
    """Standard normal noise of x's shape, drawn where the generator is and moved to x at once; with
    a list of generators, each image's is from its own."""
    if isinstance(generator, (list, tuple)):
        noise = torch.stack([randn(image, g) for image, g in zip(x, generator)])
    else:
        noise = randn(x, generator)
    return noise.to(x.device, non_blocking=True)


def randn(x, generator=None):
    """Standard normal noise of x's shape, on the generator's device, or on x's without one."""
    source = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=source, dtype=x.dtype)
