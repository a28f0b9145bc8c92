"""The U-Net: shapes, what its output depends on, and its parts against the formula by hand."""
import math

import pytest
import torch
from torch.testing import assert_close

import data
import inpaint
import masks
import unet
from unet import AdaGN, ResBlock, SelfAttention, UNet, timestep_embedding


def tiny(size=16, patch=2, widths=(7, 12, 20), blocks=1, seed=0):
    torch.manual_seed(seed)
    return UNet(size, patch, widths, blocks, attention=(size // patch // 2,))


def inputs(n=2, size=16):
    g = torch.Generator().manual_seed(1)
    return (torch.randn(n, 3, size, size, generator=g), torch.randint(300, (n,), generator=g),
            (torch.rand(n, 1, size, size, generator=g) < 0.5).float())


@pytest.fixture(scope="module")
def trained():
    """A tiny network after a few steps towards noise: no layer is zero any more."""
    net, (x, t, hole) = tiny(), inputs(4)
    target = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = (net(x, t, hole) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    return net


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("widths", [(7, 12, 20), (8,), (12, 64)])
@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("size", [32, 64])
def test_the_output_is_an_image_and_zero_before_training(size, patch, widths, blocks):
    x, t, hole = inputs(2, size)
    with torch.no_grad():
        out = UNet(size, patch, widths, blocks, attention=(8,))(x, t, hole)
    assert torch.equal(out, torch.zeros_like(x))


@pytest.mark.parametrize("size, patch, widths", [(30, 2, (8, 8, 8)), (64, 3, (8,)),
                                                 (16, 4, (8, 8, 8, 8))])
def test_a_size_that_cannot_be_halved_is_refused(size, patch, widths):
    with pytest.raises(ValueError, match=str(size)):
        UNet(size, patch, widths)


def test_every_parameter_learns(trained):
    """Zero-initialised layers block the gradient on the first step only."""
    x, t, hole = inputs(4)
    trained.zero_grad()
    trained(x, t, hole).square().mean().backward()
    idle = [name for name, p in trained.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


@torch.no_grad()
def test_the_output_depends_on_the_level_the_hole_and_the_known_pixels(trained):
    x, t, hole = inputs(1)
    hole[..., :8] = 0
    elsewhere = (0, slice(None), slice(None), slice(12, 16))           # far from what is changed
    brighter = x.clone()
    brighter[..., :4] += 1
    opened = hole.clone()
    opened[..., :4] = 1
    out = trained(x, t, hole)
    for other in (trained(x, t + 50, hole), trained(brighter, t, hole), trained(x, t, opened)):
        assert (other - out)[elsewhere].abs().max() > 1e-3


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch(trained):
    x, t, hole = inputs(3)
    assert_close(trained(x, t, hole)[1:2], trained(x[1:2], t[1:2], hole[1:2]))


@pytest.mark.parametrize("dim", [2, 7, 8, 64])
def test_the_embedding_of_time_against_a_loop(dim):
    levels = [0, 1, 17, 299, 999]
    rows = []
    for t in levels:
        angles = [t * 10_000 ** (-i / (dim // 2)) for i in range(dim // 2)]
        rows.append([math.sin(a) for a in angles] + [math.cos(a) for a in angles] + [0] * (dim % 2))
    embedding = timestep_embedding(torch.tensor(levels), dim)
    assert embedding.shape == (5, dim) and embedding.dtype == torch.float32
    assert_close(embedding, torch.tensor(rows), rtol=0, atol=2e-4)     # float32 at an angle of 999


def normalized(h, groups):
    """(h - mean)/√(variance + 1e-5), over each image's groups of neighbouring channels."""
    grouped = h.reshape(len(h), groups, -1)
    mean, variance = grouped.mean(-1, keepdim=True), grouped.var(-1, correction=0, keepdim=True)
    return ((grouped - mean) / (variance + 1e-5).sqrt()).reshape(h.shape)


@torch.no_grad()
@pytest.mark.parametrize("channels, groups", [(64, 32), (12, 4), (7, 1)])
def test_adagn_is_y_s_times_the_normalized_plus_y_b(channels, groups):
    torch.manual_seed(0)
    layer, h, emb = AdaGN(channels, 5), torch.randn(3, channels, 4, 4) * 2 + 1, torch.randn(3, 5)
    y = emb @ layer.scale_shift.weight.T + layer.scale_shift.bias
    y_s, y_b = 1 + y[:, :channels, None, None], y[:, channels:, None, None]
    assert_close(layer(h, emb), y_s * normalized(h, groups) + y_b, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("channels, heads", [(12, 1), (64, 1), (128, 2)])
@pytest.mark.parametrize("largest", [15, 14])
def test_attention_against_an_explicit_softmax(monkeypatch, channels, heads, largest):
    """h + W_o softmax(q kᵀ/√d) v, position by position, each head on its own channels; of small
    maps and of large ones."""
    monkeypatch.setattr(unet, "WRITTEN_OUT", largest)
    torch.manual_seed(0)
    layer, x = SelfAttention(channels), torch.randn(2, channels, 3, 5)
    assert torch.equal(layer(x), x)                                    # zero-initialised
    torch.nn.init.normal_(layer.out.weight)
    torch.nn.init.normal_(layer.out.bias)
    h = layer.norm(x).flatten(2)                                       # [B, C, HW]
    weight, bias = layer.qkv.weight[:, :, 0, 0], layer.qkv.bias[:, None]
    q, k, v = (weight @ h + bias).chunk(3, dim=1)
    d, outs = channels // heads, []
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        scores = torch.einsum("bci,bcj->bij", q[:, part], k[:, part]) / math.sqrt(d)
        attention = scores.exp() / scores.exp().sum(dim=2, keepdim=True)
        outs.append(torch.einsum("bij,bcj->bci", attention, v[:, part]))
    out = layer.out.weight[:, :, 0, 0] @ torch.cat(outs, dim=1) + layer.out.bias[:, None]
    assert_close(layer(x), x + out.reshape(x.shape), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_residual_block_is_what_its_docstring_says():
    torch.manual_seed(0)
    block, x, emb = ResBlock(8, 12, 6, attention=False), torch.randn(2, 8, 5, 5), torch.randn(2, 6)
    for parameter in block.parameters():
        parameter.normal_(std=0.3)
    def conv(layer, x):
        return torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
    h = conv(block.conv1, torch.nn.functional.silu(block.norm1(x)))
    h = conv(block.conv2, torch.nn.functional.silu(block.norm2(h, emb)))
    assert block.conv1.kernel_size == block.conv2.kernel_size == (3, 3)
    assert_close(block(x, emb), block.skip(x) + h)


@torch.no_grad()
def test_the_shipped_weights_are_of_this_network():
    """Their v-loss on a face in a centre hole, twelve levels: 0.062. Without the last SiLU of the
    timestep embedding it is 0.262, with maps enlarged bilinearly on the way up 0.066."""
    ddpm, net, size = inpaint.load_weights()
    face = torch.from_numpy(data.square(inpaint.astronaut(), size).copy())[None]
    x0, t = data.to_float(face).expand(12, -1, -1, -1), torch.arange(12, 300, 25)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    assert ddpm.loss(net, x0, masks.center(12, size), t, noise) < 0.064


@torch.no_grad()
def test_a_residual_block_starts_as_its_skip():
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 6)
    assert torch.equal(ResBlock(8, 8, 6, attention=True)(x, emb), x)
    block = ResBlock(8, 12, 6, attention=False)
    assert torch.equal(block(x, emb), block.skip(x))


@torch.no_grad()
@pytest.mark.parametrize("blocks", [1, 2])
def test_every_block_up_is_handed_what_its_mirror_image_put_out(blocks):
    net, ups, downs = tiny(blocks=blocks), [], []
    for layers, record in ((net.down, lambda _, given, out: downs.append(out)),
                           (net.up, lambda _, given, out: ups.append(given[0]))):
        for block in layers:
            if isinstance(block, ResBlock):
                block.register_forward_hook(record)
    net(*inputs())
    assert len(ups) == len(downs) == 3 * blocks
    for given, out in zip(ups, reversed(downs)):
        assert torch.equal(given[:, -out.shape[1]:], out)


def test_the_shipped_network_fits_in_25_megabytes_of_half_precision():
    net = UNet(widths=(64, 128, 224))
    assert 2 * sum(p.numel() for p in net.state_dict().values()) <= 25e6


def test_attention_is_where_it_is_asked_for():
    net = UNet(64, 2, (8, 8, 8), 1, attention=(16,))
    has = [isinstance(b.attention, SelfAttention) for b in net.modules() if isinstance(b, ResBlock)]
    assert has == [False, True, False, True, False, False, True, False]


def test_maps_of_one_pixel_are_refused():
    """They can be trained on, in batches, but not fill one image: there is nothing to normalize."""
    with pytest.raises(ValueError, match="maps of one pixel"):
        UNet(8, 2, [8, 8, 8], 1)
    UNet(16, 2, [8, 8, 8], 1)(torch.zeros(1, 3, 16, 16), torch.zeros(1).long(),
                              torch.ones(1, 1, 16, 16))
