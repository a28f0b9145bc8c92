"""Ways to fill a hole, by name: the network's, those of baselines/, and anybody's file.

A method is a file with `inpaint(image, hole, generator) -> image`; image [B, 3, H, W] in [-1, 1], 0
inside the hole [B, 1, H, W]; generator: a list, one an image (`ddpm.randn_like` draws from it). Or
it has `fit(images) -> inpaint`, given training images, uint8 [N, H, W, 3]. `DRAWS = False` says that
it has one fill only for an image; `CALLS` is the number of network calls a fill.
"""
import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

from safety import BadInput

BASELINES = Path(__file__).parent / "baselines"
METHODS = ("keep", *sorted(file.stem for file in BASELINES.glob("[a-z]*.py")))


def find(name, ddpm, eps_model, steps=20, eta=0.0, bf16=False, callback=None):
    """The method called `name`, or in the file `name`: an object with `inpaint` or `fit`, DRAWS and
    CALLS. The network's settings and `callback` are for those that sample with it."""
    if name == "keep":
        return SimpleNamespace(inpaint=keep(ddpm, eps_model, steps, eta, bf16, callback),
                               DRAWS=True, CALLS=steps)
    path = file_of(name)
    if path.suffix != ".py" or not path.is_file():
        raise BadInput(f"{name}: neither a .py file nor one of {', '.join(METHODS)}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own = {key: value for key, value in vars(module).items()
           if not isinstance(value, ModuleType)}                     # such as our inpaint, imported
    if "inpaint" not in own and "fit" not in own:
        raise BadInput(f"{name}: it has neither inpaint(image, hole, generator) nor fit(images)")
    return SimpleNamespace(**{"DRAWS": True, "CALLS": 0, **own})


def file_of(name):
    return BASELINES / f"{name}.py" if name in METHODS else Path(name)


def keep(ddpm, eps_model, steps=20, eta=0.0, bf16=False, callback=None):
    """Known pixels are kept, clean, at every step, and the network knows the hole."""
    if not 1 <= steps <= ddpm.T:
        raise BadInput(f"--steps is 1 … {ddpm.T}, the length of these weights' chain")

    def inpaint(image, hole, generator):
        with torch.autocast(image.device.type, torch.bfloat16, enabled=bf16):
            return ddpm.sample(eps_model, image, hole, steps, eta, generator, callback)
    return inpaint
