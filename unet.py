"""The U-Net: eps_model(x, t, hole) -> [B, 3, H, W], an estimate of ε, v or x_0 (`DDPM.predict`).
(A sharpener, the second network of sharpen.py, which adds detail to an enlarged fill, is given that
fill, too.)

                x, hole ─ patches ─ stem                 head ─ pixels
                                     ↓                    ↑
                            32×32   blocks ── skips ── blocks
                                       ↓                ↑
                            16×16   blocks ── skips ── blocks      with self-attention
                                       ↓                ↑
                              8×8   blocks ── skips ── blocks      with self-attention
                                       ↘──── middle ────↗

Ho et al. 2020, appendix B, with adaptive group normalization (Dhariwal and Nichol 2021, section 3)
and pixels gathered into 2×2 patches before the first convolution: full-resolution layers, the
costliest, are skipped.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

WRITTEN_OUT = 1024      # positions up to which attention is written out, its weights in memory


def timestep_embedding(t, dim, longest=10_000):
    """Sinusoids of t at dim/2 frequencies from 1 down towards 1/longest: [B] -> [B, dim] float32.

    PE(t) = [sin(t ω_i), cos(t ω_i)],  ω_i = longest^(-2i/dim)    (Vaswani et al. 2017, section 3.5)
    """
    half = dim // 2
    omega = longest ** (-torch.arange(half, device=t.device) / half)
    angles = t[:, None].float() * omega
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim % 2))


class AdaGN(nn.Module):
    """Adaptive group normalization: (1 + y_s) · GroupNorm(h) + y_b; y_s and y_b are linear in the
    time embedding."""

    def __init__(self, channels, time_dim):
        super().__init__()
        self.norm = group_norm(channels)
        self.scale_shift = nn.Linear(time_dim, 2 * channels)

    def forward(self, h, emb):
        y_s, y_b = self.scale_shift(emb)[:, :, None, None].chunk(2, dim=1)
        return (1 + y_s) * self.norm(h) + y_b


class ResBlock(nn.Module):
    """skip(x) + conv(silu(AdaGN(conv(silu(GroupNorm(x))), emb))), then self-attention where asked;
    skip is the identity, or a 1×1 convolution where the number of channels changes."""

    def __init__(self, in_channels, channels, time_dim, attention):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.norm2 = AdaGN(channels, time_dim)
        self.conv2 = zero(nn.Conv2d(channels, channels, 3, padding=1))
        same = in_channels == channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, channels, 1)
        self.attention = SelfAttention(channels) if attention else nn.Identity()

    def forward(self, x, emb):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h, emb)))
        return self.attention(self.skip(x) + h)


class SelfAttention(nn.Module):
    """Every position looks at every other: x + W_o v softmax(kᵀq/√d), in heads of d = 64 channels
    or, if 64 does not divide them, in one of all. q, k and v, of GroupNorm(x), have a column for
    each position; the softmax is over the keys. Written out, it is twice as fast on CPUs as
    PyTorch's fused kernel, which larger maps need, as its memory does not grow with the square of
    their area."""

    def __init__(self, channels):
        super().__init__()
        self.heads = channels // 64 if channels % 64 == 0 else 1
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x):
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).reshape(B, 3, self.heads, C // self.heads, H * W)
        q, k, v = qkv.unbind(1)                                  # each [B, heads, d, HW]
        if H * W <= WRITTEN_OUT:
            h = v @ (k.mT @ (q / q.shape[2] ** 0.5)).softmax(dim=2)
        else:                                                    # the same, never all at once
            h = F.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT
        return x + self.out(h.reshape(B, C, H, W))


class UNet(nn.Module):
    """A U-Net on images [B, 3, size, size]; each argument affects speed and size.

    patch        pixels are gathered into patch × patch squares: size/patch is the first resolution
    widths       channels at each resolution: size/patch, then half of it, …
    blocks       residual blocks at each resolution, on the way down and again on the way up
    attention    the resolutions that have self-attention; the middle always has it
    coarse_size  of the images that a sharpener enlarges (sharpen.py); None for any other network
    """

    def __init__(self, size=64, patch=2, widths=(64, 128, 224), blocks=2, attention=(16, 8),
                 coarse_size=None):
        super().__init__()
        if size % (patch * 2 ** (len(widths) - 1)):
            raise ValueError(f"a size of {size} cannot be cut into patches of {patch} and halved "
                             f"{len(widths) - 1} times")
        if size // patch // 2 ** (len(widths) - 1) < 2:
            raise ValueError(f"a size of {size} ends in maps of one pixel, which cannot be "
                             "normalized")
        self.patch, self.time_width, self.coarse_size = patch, widths[0], coarse_size
        time_dim = 4 * widths[0]
        self.time = nn.Sequential(nn.Linear(widths[0], time_dim), nn.SiLU(),
                                  nn.Linear(time_dim, time_dim), nn.SiLU())
        inputs = 4 if coarse_size is None else 7
        self.stem = nn.Conv2d(inputs * patch ** 2, widths[0], 3, padding=1)

        resolutions = [size // patch // 2 ** level for level in range(len(widths))]
        channels, skips = widths[0], []
        self.down = nn.ModuleList()
        for level, (width, resolution) in enumerate(zip(widths, resolutions)):
            if level > 0:
                self.down.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
            for _ in range(blocks):
                self.down.append(ResBlock(channels, width, time_dim, resolution in attention))
                channels = width
                skips.append(channels)

        self.middle = nn.ModuleList([ResBlock(channels, channels, time_dim, attention=True),
                                     ResBlock(channels, channels, time_dim, attention=False)])

        self.up = nn.ModuleList()
        for level, (width, resolution) in reversed([*enumerate(zip(widths, resolutions))]):
            for _ in range(blocks):
                self.up.append(ResBlock(channels + skips.pop(), width, time_dim,
                                        resolution in attention))
                channels = width
            if level > 0:
                self.up.append(nn.Upsample(scale_factor=2))
        assert not skips
        self.head = nn.Sequential(group_norm(channels), nn.SiLU(),
                                  zero(nn.Conv2d(channels, 3 * patch ** 2, 3, padding=1)))

    def forward(self, x, t, hole, coarse=None):
        """A sharpener is given `coarse` [B, 3, size, size] too (sharpen.py)."""
        h, skips, emb = self.encode(x, t, hole, coarse)
        for layer in self.up:
            if isinstance(layer, ResBlock):
                h = layer(torch.cat([h, skips.pop()], dim=1), emb)
            else:
                h = layer(h)
        assert not skips
        return F.pixel_shuffle(self.head(h), self.patch)

    def encode(self, x, t, hole, coarse=None):
        """The way down: (what the middle makes of it, the skips, the time embedding)."""
        emb = self.time(timestep_embedding(t, self.time_width))              # [B, time_dim]
        seen = [x, hole] if coarse is None else [x, hole, coarse]
        h = self.stem(F.pixel_unshuffle(torch.cat(seen, dim=1), self.patch))
        skips = []
        for layer in self.down:
            if isinstance(layer, ResBlock):
                h = layer(h, emb)
                skips.append(h)
            else:
                h = layer(h)
        for layer in self.middle:
            h = layer(h, emb)
        return h, skips, emb


def group_norm(channels):
    """Normalization in 32 groups, or gcd(32, channels) where 32 does not divide the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def zero(layer):
    """The layer with all its parameters zero: a residual branch that starts by adding nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
