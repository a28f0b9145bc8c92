"""The network of guided-diffusion (Dhariwal and Nichol 2021, section 3: "ADM"), as RePaint and DPS
use it, under the names that its checkpoints have; its shapes are read off the checkpoint.

What checkpoints do not record is taken from the published models, which agree: attention in heads
of 64 channels, residual blocks that resize, an innermost resolution of 8×8, β linear, T = 1000.
"""
import torch
import torch.nn.functional as F
from torch import nn

from unet import timestep_embedding

INNERMOST, HEAD = 8, 64


class ResBlock(nn.Module):
    """skip(x) + conv(silu((1 + scale) · norm(conv(resize(silu(norm(x))))) + shift)); x is resized
    in its skip, too, by the factor `resize`: ½, 1 or 2."""

    def __init__(self, in_channels, channels, time_dim, resize=1):
        super().__init__()
        self.resize = {0.5: nn.AvgPool2d(2), 1: nn.Identity(),
                       2: nn.Upsample(scale_factor=2)}[resize]
        self.in_layers = nn.Sequential(nn.GroupNorm(32, in_channels), nn.SiLU(),
                                       nn.Conv2d(in_channels, channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, 2 * channels))
        self.out_layers = nn.Sequential(nn.GroupNorm(32, channels), nn.SiLU(), nn.Dropout(),
                                        nn.Conv2d(channels, channels, 3, padding=1))
        same = in_channels == channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(in_channels, channels, 1)

    def forward(self, x, emb):
        norm, activate, conv = self.in_layers
        h = conv(self.resize(activate(norm(x))))
        scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, dim=1)
        h = (1 + scale) * self.out_layers[0](h) + shift
        return self.skip_connection(self.resize(x)) + self.out_layers[1:](h)


class Attention(nn.Module):
    """x + W_o softmax(q kᵀ/√d) v; the heads are cut before q, k and v."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x, _):
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x.flatten(2)))
        q, k, v = qkv.reshape(B, C // HEAD, 3, HEAD, H * W).transpose(-1, -2).unbind(2)
        h = F.scaled_dot_product_attention(q, k, v)               # [B, heads, HW, 64]
        return x + self.proj_out(h.transpose(-1, -2).reshape(B, C, H * W)).reshape(x.shape)


class Conv(nn.Conv2d):
    """The first layer, which is not told the time, either."""

    def forward(self, x, _):
        return super().forward(x)


class ADM(nn.Module):
    """eps [B, out_channels, H, W] from x [B, 3, H, W] and t [B].

    channels   of the time's embedding
    widths     channels at each resolution, halving
    blocks     residual blocks at each resolution, on the way down; one more on the way up
    attention  for each resolution, whether it has attention
    """

    def __init__(self, channels, widths, blocks, attention, out_channels):
        super().__init__()
        self.channels, time_dim = channels, 4 * channels
        self.time_embed = nn.Sequential(nn.Linear(channels, time_dim), nn.SiLU(),
                                        nn.Linear(time_dim, time_dim))

        def block(in_channels, width, level):
            return [ResBlock(in_channels, width, time_dim)] + [Attention(width)] * attention[level]

        width, skips = widths[0], [widths[0]]
        layers = [[Conv(3, width, 3, padding=1)]]
        for level, wider in enumerate(widths):
            if level > 0:
                layers.append([ResBlock(width, width, time_dim, 0.5)])
                skips.append(width)
            for _ in range(blocks):
                layers.append(block(width, wider, level))
                width = wider
                skips.append(width)
        self.input_blocks = nn.ModuleList(map(nn.ModuleList, layers))

        self.middle_block = nn.ModuleList([ResBlock(width, width, time_dim), Attention(width),
                                           ResBlock(width, width, time_dim)])
        layers = []
        for level, wider in reversed([*enumerate(widths)]):
            for _ in range(blocks + 1):
                layers.append(block(width + skips.pop(), wider, level))
                width = wider
            if level > 0:
                layers[-1].append(ResBlock(width, width, time_dim, 2))
        assert not skips
        self.output_blocks = nn.ModuleList(map(nn.ModuleList, layers))
        self.out = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(),
                                 nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, x, t):
        half = self.channels // 2
        emb = self.time_embed(timestep_embedding(t, self.channels).roll(half, 1))  # cosines first
        h, skips = x, []
        for block in self.input_blocks:
            for layer in block:
                h = layer(h, emb)
            skips.append(h)
        for layer in self.middle_block:
            h = layer(h, emb)
        for block in self.output_blocks:
            h = torch.cat([h, skips.pop()], dim=1)
            for layer in block:
                h = layer(h, emb)
        assert not skips
        return self.out(h)


def architecture(tensors):
    """The arguments of `ADM`, and the images' side, read off the names and shapes of a checkpoint.
    Raises KeyError or ValueError where the checkpoint is of something else."""
    def count(part):
        return 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith(part + "."))

    def resnets(block):
        return sum(f"output_blocks.{block}.{i}.in_layers.2.weight" in tensors for i in range(3))

    outputs = count("output_blocks")
    if outputs > len(tensors):
        raise ValueError("blocks that are not there")
    levels = 1 + sum(resnets(block) == 2 for block in range(outputs))
    blocks = outputs // levels - 1
    firsts = [1 + level * (blocks + 1) for level in range(levels)]
    inputs = count("input_blocks")
    if blocks < 1 or outputs != levels * (blocks + 1) or inputs != firsts[-1] + blocks:
        raise ValueError("not the levels of guided-diffusion")
    widths = [len(tensors[f"input_blocks.{first}.0.in_layers.2.weight"]) for first in firsts]
    attention = [f"input_blocks.{first}.1.qkv.weight" in tensors for first in firsts]
    channels, out_channels = tensors["time_embed.0.weight"].shape[1], len(tensors["out.2.weight"])
    if any(width % HEAD for width, has in zip(widths, attention) if has) or widths[-1] % HEAD:
        raise ValueError("heads of another width")
    return ({"channels": channels, "widths": widths, "blocks": blocks, "attention": attention,
             "out_channels": out_channels}, INNERMOST * 2 ** (levels - 1))
