"""Worlds whose images are Gaussian: the best network there has a closed form, and so has what every
sampler should draw."""
import torch

import sharpen
from ddpm import DDPM
from schedules import cosine_betas

F64 = torch.float64


class World:
    """Images x_0 ~ N(mean [C, H, W], cov [CHW, CHW]), and the network that nothing can beat there.

    Known pixels k are clean, so the hole's pixels are N(m, C) before x_t is seen:
    m = mean_h + cov_hk cov_kk⁻¹ (x_k - mean_k),  C = cov_hh - cov_hk cov_kk⁻¹ cov_kh;
    after it, E[x_0] = m + √ᾱ C (ᾱ C + (1-ᾱ) I)⁻¹ (x_t - √ᾱ m).
    """

    def __init__(self, mean, cov, process):
        self.mean, self.cov, self.process, self.calls = mean, cov, process, []

    def conditional(self, images, hole):
        """The hole's mean [B, h] and covariance [h, h], given the clean pixels around it."""
        x, h = images.flatten(1), self.inside(hole)
        gain = torch.linalg.solve(self.cov[~h][:, ~h], self.cov[~h][:, h]).T
        mean = self.mean.flatten()[h] + (x[:, ~h] - self.mean.flatten()[~h]) @ gain.T
        return mean, self.cov[h][:, h] - gain @ self.cov[~h][:, h]

    def inside(self, hole):
        assert (hole == hole[:1]).all(), "one hole for the whole batch"
        return hole[0].expand_as(self.mean).flatten() > 0

    def __call__(self, x, t, hole):
        """ε, v or x_0 in the hole; outside it a number that would be noticed if it were used."""
        self.calls.append(int(t[0]))
        alpha_bar, (m, C) = self.process.alphas_bar[t[0]], self.conditional(x, hole)
        x_t = x.flatten(1)[:, self.inside(hole)]
        noisy = alpha_bar * C + (1 - alpha_bar) * torch.eye(len(C), dtype=F64)
        x0 = m + alpha_bar.sqrt() * (x_t - alpha_bar.sqrt() * m) @ torch.linalg.solve(noisy, C)
        answer = (x_t - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()
        if self.process.prediction == "v":
            answer = alpha_bar.sqrt() * answer - (1 - alpha_bar).sqrt() * x0
        elif self.process.prediction == "x0":
            answer = x0
        output = torch.full_like(x, 99.0).flatten(1)
        output[:, self.inside(hole)] = answer
        return output.reshape(x.shape)


def two_pixels(process):
    mean = torch.tensor([[[0.5, -0.3]]], dtype=F64)
    return World(mean, torch.tensor([[0.30, 0.20], [0.20, 0.25]], dtype=F64), process)


def textured(process, side=8):
    """Pixels a distance d apart correlate by exp(-d/3), around a slope from dark to light."""
    y, x = torch.meshgrid(*2 * [torch.arange(side, dtype=F64)], indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], dim=1)
    mean = (y / side - 0.5)[None]
    return World(mean, 0.25 * torch.exp(-torch.cdist(places, places) / 3), process)


def sharpener_of_noise(coarse_size, size):
    """A Sharpener of a world in which an image is its coarse version, enlarged, plus white noise of
    deviation DETAIL; its network is that world's exact E[x_0 | x_t]."""
    ddpm = DDPM(cosine_betas(300), "x0")

    def eps_model(x, t, hole, coarse):
        return ddpm.alpha_bar(t, x).sqrt() * x
    eps_model.coarse_size = coarse_size
    return sharpen.Sharpener(ddpm, eps_model, size, None)
