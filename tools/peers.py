"""Other people's networks, timed beside ours by bench.py: its dependencies alone."""
import bisect
import copy
import functools

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode


def operations(net, size, backward=False):
    """Floating-point operations in an eps_model's matrix products, an image; multiply and add are
    two. Counted without data, where attention, which is fused elsewhere, is products, too."""
    net = copy.deepcopy(net).to("meta")
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        output = net(torch.zeros(1, 3, size, size), torch.zeros(1), torch.zeros(1, 1, size, size))
        if backward:
            output.sum().backward()
    return counter.get_total_flops()


def diffusers_unet(net, size, patch=1):
    """diffusers' U-Net as an eps_model on squares of patch × patch pixels, made so wide that it
    takes about as many operations as `net`; (network, their share of its)."""
    from diffusers import UNet2DModel

    class Peer(UNet2DModel):
        def forward(self, x, t, hole):
            x = F.pixel_unshuffle(torch.cat([x, hole], dim=1), patch)
            return F.pixel_shuffle(super().forward(x, t, return_dict=False)[0], patch)

    def make(w, last):
        return Peer(size // patch, 4 * patch ** 2, 3 * patch ** 2, norm_num_groups=4,
                    block_out_channels=(w, 2 * w, last), attention_head_dim=None,
                    up_block_types=("AttnUpBlock2D",) * 2 + ("UpBlock2D",),
                    down_block_types=("DownBlock2D",) + ("AttnDownBlock2D",) * 2)

    @functools.cache
    def cost(w, last):
        with torch.device("meta"):
            return operations(make(w, last), size)

    target = operations(net, size)
    w = 4 * bisect.bisect(range(256), target, lo=2, key=lambda n: cost(4 * n, 8 * n)) - 4
    above = 4 * bisect.bisect(range(2 * w), target, lo=w // 2, key=lambda n: cost(w, 4 * n))
    last = min(above - 4, above, key=lambda last: abs(cost(w, last) - target))
    return make(w, last), cost(w, last) / target
