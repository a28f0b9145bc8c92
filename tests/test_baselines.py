"""The baselines, each against what it promises."""
import pytest
import torch

import data
import masks
from baselines import biharmonic, masked, mean, ridge

SIZE = 12


def example(B=3, size=SIZE, family="random"):
    """Faces as every method is given them, and the hole."""
    hole = masks.MASKS[family](B, size, torch.Generator().manual_seed(0))
    return torch.where(hole > 0, 0.0, data.to_float(data.synthetic(B, size, seed=9))), hole


@pytest.mark.parametrize("family", masks.MASKS)
@pytest.mark.parametrize("method", [biharmonic, masked, mean, ridge])
def test_every_baseline_keeps_the_known_pixels_of_every_family(method, family):
    image, hole = example(family=family)
    inpaint = method.fit(data.synthetic(50, SIZE)) if hasattr(method, "fit") else method.inpaint
    filled = inpaint(image, hole, None)
    assert filled.shape == image.shape and filled.isfinite().all()
    assert torch.equal(torch.where(hole > 0, image, filled), image)


def test_the_mean_face_is_the_mean():
    images = data.synthetic(70, SIZE)
    image, hole = example(family="full")
    filled = mean.fit(images)(image, hole)
    torch.testing.assert_close(filled[1], data.to_float(images).mean(dim=0))


@pytest.mark.parametrize("family", ["random", "hybrid"])       # below and above half the image
def test_ridge_is_the_best_linear_guess(family):
    """Against the regression of the hole on the known pixels, solved the direct way."""
    images = data.synthetic(300, SIZE)
    image, hole = example(B=8, family=family)
    filled = ridge.fit(images)(image, hole)
    x = data.to_float(images).flatten(1).double()
    mu = x.mean(dim=0)
    areas = hole.mean(dim=(1, 2, 3))
    assert areas.min() < 0.5 and (family == "random" or areas.max() > 0.5)
    for i in range(len(image)):
        inside = (hole[i] > 0).expand_as(image[i]).flatten()
        known, wanted = (x - mu)[:, ~inside], (x - mu)[:, inside]
        penalty = ridge.PENALTY * torch.eye(known.shape[1], dtype=torch.float64)
        weights = torch.linalg.solve(known.T @ known / len(x) + penalty, known.T @ wanted / len(x))
        guess = mu[inside] + (image[i].flatten()[~inside].double() - mu[~inside]) @ weights
        torch.testing.assert_close(filled[i].flatten()[inside].double(), guess, atol=1e-3, rtol=0)


def test_biharmonic_continues_a_plane():
    y, x = torch.meshgrid(torch.linspace(-0.5, 0.5, 32), torch.linspace(-0.5, 0.5, 32), indexing="ij")
    plane = (0.6 * x + 0.3 * y).expand(1, 3, 32, 32)
    hole = masks.center(1, 32)
    filled = biharmonic.inpaint(torch.where(hole > 0, 0.0, plane), hole)
    torch.testing.assert_close(filled, plane, atol=1e-4, rtol=0)
