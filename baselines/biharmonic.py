"""Biharmonic inpainting: the smoothest surface through the hole's rim (Damelin and Hoang 2018, by
scikit-image). Nothing is learnt; a 64×64 image takes 5 to 12 ms on one thread."""
import numpy as np
import torch
from skimage.restoration import inpaint_biharmonic

DRAWS = False


def inpaint(image, hole, generator=None):
    filled = [inpaint_biharmonic(x.permute(1, 2, 0).numpy(), h[0].numpy() > 0, channel_axis=-1)
              if h.min() < 1 else np.zeros((*h.shape[1:], len(x)))          # no rim: grey
              for x, h in zip(image.cpu(), hole.cpu())]
    filled = torch.from_numpy(np.stack(filled)).float().permute(0, 3, 1, 2).to(image.device)
    return torch.where(hole > 0, filled, image)
