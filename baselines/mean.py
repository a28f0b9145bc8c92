"""The mean face: every hole shows the mean of the training images, the best guess without a look
at the picture. It costs one pass over them."""
import torch

import data

DRAWS = False


def fit(images):
    """images uint8 [N, H, W, 3], of any number: read in blocks. Returns the inpainter."""
    total = sum(data.to_float(block).sum(dim=0, dtype=torch.float64)
                for block in images.split(1024))
    face = (total / len(images)).float()

    def inpaint(image, hole, generator=None):
        return torch.where(hole > 0, face.to(image.device), image)
    return inpaint
