"""Ways to fill a hole, by name: with the network, from baselines/, or from a file of your own.

With the network, one signature: (ddpm, eps_model, image, hole, steps, eta, generator, callback) ->
image, as in `DDPM.sample`. `keep` conditions the network on the known pixels. The others are
training-free: they know only the unconditional network (all is hole) and hold it to the
known pixels in some other way, so they work with anybody's DDPM (support/foreign.py).

Elsewhere, a method is a file with `inpaint(image, hole, generator) -> image`; image [B, 3, H, W] in
[-1, 1], 0 inside the hole [B, 1, H, W]; generator: a list, one an image (`ddpm.randn_like` draws
from it). Or it has `fit(images) -> inpaint`, given training images, uint8 [N, H, W, 3].
`DRAWS = False` says that it has one fill only for an image; `CALLS` is the number of network calls.
`ANY_SIZE` says whether it takes images of any size: by default with `inpaint`, not with `fit`.
"""
import importlib.util
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

import sharpen
from ddpm import randn_like
from support.cli import BadInput

BASELINES = Path(__file__).parent / "baselines"
JUMP, REPEATS = 10, 10                  # of repaint


def keep(ddpm, eps_model, image, hole, steps, eta=1.0, generator=None, callback=None):
    """Known pixels are kept, clean, at every step, and the network knows the hole.

    As in TD-Paint (Mayet et al. 2024, arXiv:2410.09306). A perfect denoiser of such an image, clean
    beside noisy, gives the exact score of the fills (EPS: Mammadov et al. 2026, arXiv:2606.17048).
    """
    return ddpm.sample(eps_model, image, hole, steps, eta, generator, callback)


def replace(ddpm, eps_model, image, hole, steps, eta=1.0, generator=None, callback=None):
    """Known pixels are noised to the level of x and pasted over it (Song et al. 2021b, app. I.2):
    the fill is drawn before its surroundings are denoised, so the two disagree."""
    return repaint(ddpm, eps_model, image, hole, steps, eta, generator, callback, repeats=1)


def repaint(ddpm, eps_model, image, hole, steps, eta=1.0, generator=None, callback=None,
            jump=JUMP, repeats=REPEATS):
    """`replace`, but every `jump` steps are taken `repeats` times, with noise in between to go back
    up, so that hole and surroundings come to agree (Lugmayr et al. 2022, Algorithm 1). With no more
    steps than `jump` there is nowhere to go back to, and it is `replace`."""
    return _travel(ddpm, eps_model, image, hole, steps, eta, generator, callback, "x",
                   jump, repeats)


def ddnm(ddpm, eps_model, image, hole, steps, eta=1.0, generator=None, callback=None,
         jump=JUMP, repeats=1):
    """Known pixels replace those of the estimated x_0 (Wang et al. 2023, Algorithm 1: null-space
    projection of inpainting); more repeats are its time travel (Algorithm 2)."""
    return _travel(ddpm, eps_model, image, hole, steps, eta, generator, callback, "x0",
                   jump, repeats)


@torch.no_grad()
def _travel(ddpm, eps_model, image, hole, steps, eta, generator, callback, pasted, jump, repeats):
    """Along jump_path with the network that knows no hole; the known pixels are `pasted` into "x",
    noised to its level, or into the estimate "x0", as they are."""
    full, times = torch.ones_like(hole), ddpm.timesteps(steps)[::-1]   # times[0] = -1: clean
    x, previous = randn_like(image, generator), None
    for here, there in pairwise(jump_path(steps, jump, repeats)):
        t, s = times[here], times[there]
        if there > here:
            x, previous = ddpm.renoise(x, t, s, randn_like(x, generator)), None
            continue
        x0, eps = ddpm.predict(eps_model, x, t, full)
        if pasted == "x0":
            x0 = torch.where(hole > 0, x0, image)
            eps = ddpm.predict_eps(x, t, x0)
        x = ddpm.solver_step(x, x0, eps, t, s, previous, eta, generator)
        previous = (x0, t) if steps < ddpm.T else None
        if pasted == "x":                                            # at the level of the new x
            x = torch.where(hole > 0, x, ddpm.q_sample(image, s, randn_like(image, generator)))
        if callback:
            callback(t, x, x0)
    return x


def jump_path(steps, jump, repeats):
    """The path of RePaint through the levels that `steps` steps visit, counted from 0 = clean to
    `steps` = noise: down by one, which is a network call, or up by `jump`. 250 steps, jump 10 and
    10 repeats are 2,410 calls."""
    left = {place: repeats - 1 for place in range(1, steps - jump + 1, jump)}
    path = [steps]
    while path[-1] > 0:
        place = path[-1] - 1
        path.append(place)
        if left.get(place, 0):
            left[place] -= 1
            path.append(place + jump)
    return path


def pigdm(ddpm, eps_model, image, hole, steps, eta=1.0, generator=None, callback=None):
    """Guidance by the pseudo-inverse (Song et al. 2023): the estimate x̂ of x_0 becomes what it is
    if the known pixels H x_0 are seen too, for a backward pass a call:

    x̂ + (1-ᾱ)/√ᾱ · Jᵀ Hᵀ d / r²,   d = H (image - x̂),   J = ∂x̂/∂x_t,

    where H x_0 is taken to have variance r² in every direction. Song et al. set r² = 1-ᾱ, right
    for white images of variance 1. The covariance is (1-ᾱ)/√ᾱ H J Hᵀ (Boys et al. 2023), so here
    r² is that along d, (1-ᾱ)/√ᾱ · d·(H J Hᵀ d) / d·d: one step of conjugate gradients (Rozet et al.
    2024), exact for one known Gaussian pixel, and free, as Jᵀ Hᵀ d is there already.

    Other code adds √(ᾱ_s ᾱ_t) Jᵀ Hᵀ d (azula) or √ᾱ_t Jᵀ Hᵀ d (RED-diff) after the step. Such a
    push does not shrink with the stride: more steps overshoot further (test_methods.py).
    """
    full, times = torch.ones_like(hole), ddpm.timesteps(steps)
    x, previous = randn_like(image, generator), None
    for t, s in pairwise(times):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x0, _ = ddpm.predict(eps_model, x, t, full)
            missing = torch.where(hole > 0, 0, image - x0).detach()             # d
            (pull,) = torch.autograd.grad((missing * x0).sum(), x)              # Jᵀ Hᵀ d
        x = x.detach()
        x0 = _guided(x0.detach(), missing, pull)
        x0 = x0.clamp(-1, 1) if ddpm.clip else x0
        x = ddpm.solver_step(x, x0, ddpm.predict_eps(x, t, x0), t, s, previous, eta, generator)
        previous = (x0, t) if steps < ddpm.T else None
        if callback:
            callback(t, x, x0)
    return torch.where(hole > 0, x, image)


def _guided(x0, missing, pull):
    """x̂ + d·d / d·(Jᵀ Hᵀ d) · Jᵀ Hᵀ d, image by image; as it is where nothing can be moved."""
    squares, moved = ((missing * other).sum(dim=(1, 2, 3), keepdim=True)
                      for other in (missing, pull))
    return x0 + torch.where(moved > 1e-9 * squares, squares / moved, 0) * pull


DIFFUSION = {method.__name__: method for method in (keep, replace, repaint, ddnm, pigdm)}
UNAWARE = tuple(name for name in DIFFUSION if name != "keep")     # of the hole
STEPS = dict.fromkeys(DIFFUSION, 20) | {"keep": 10}                # docs/calls.md
STEPS_HELP = ("levels of noise, at most the chain's T; a network call each, more for repaint; "
              f"default: {STEPS['keep']} for keep, {STEPS['repaint']} for the others")
METHODS = (*DIFFUSION, *sorted(file.stem for file in BASELINES.glob("[a-z]*.py")))


def default(eps_model):
    """The best method for the network: `keep` if it knows the hole. Else `pigdm`: of the others it
    alone finds the conditional distribution of test_methods.py's two pixels, and on photographs its
    CRPS at 20 calls was below repaint's at 110 (docs/calls.md)."""
    return "keep" if knows_hole(eps_model) else "pigdm"


def knows_hole(eps_model):
    """Whether it was trained to be shown the hole and clean known pixels; our own networks were."""
    return getattr(eps_model, "knows_hole", True)


def usual_steps(method, ddpm):
    """How many steps a diffusion method takes by default: STEPS, at most the chain's T."""
    return min(STEPS[method], ddpm.T)


def by_diffusion(name):
    """Whether the method called `name` samples with the diffusion network, and is not one of
    baselines/ or a file."""
    return name.partition("@")[0] in DIFFUSION


def find(name, ddpm, eps_model, steps=None, eta=1.0, bf16=False, callback=None, sharpener=None):
    """The method called `name`, or in the file `name`: an object with `inpaint` or `fit`, DRAWS and
    CALLS. The settings are for those with the network; a name such as keep@50 has its own steps,
    and the default is `usual_steps`. With a Sharpener, it fills images of that one's size."""
    method, at, number = name.partition("@")
    if by_diffusion(name):
        if at:
            steps = int(number) if number.isdecimal() else 0
        elif steps is None:
            steps = usual_steps(method, ddpm)
        if not 1 <= steps <= ddpm.T:
            what = f"the number in {name}" if at else "--steps"
            raise BadInput(f"{what} is 1 … {ddpm.T}, the length of these weights' chain")
        if method == "keep" and not knows_hole(eps_model):
            raise BadInput(f"{name}: these weights know no hole; methods that need no more are "
                           f"{', '.join(UNAWARE)}; the best is {default(eps_model)}")
        settings = {"callback": callback, "eta": eta}

        def inpaint(image, hole, generator):
            with torch.autocast(image.device.type, torch.bfloat16, enabled=bf16):
                return DIFFUSION[method](ddpm, eps_model, image, hole, steps,
                                         generator=generator, **settings)
        path = jump_path(steps, JUMP, REPEATS if method == "repaint" else 1)
        calls = sum(there < here for here, there in pairwise(path))
        cost = calls * (2 if method == "pigdm" else 1)     # its backward pass takes about as long
        if sharpener:
            inpaint = sharpen.cascade(inpaint, sharpener, bf16=bf16, **settings)
            calls, cost = calls + sharpen.calls(sharpener), cost + sharpen.calls(sharpener)
        return SimpleNamespace(inpaint=inpaint, DRAWS=True, CALLS=calls, COST=cost, ANY_SIZE=False)
    path = file_of(name)
    if path.suffix != ".py" or not path.is_file():
        raise BadInput(f"{name}: neither a .py file nor one of {', '.join(METHODS)}")
    spec = importlib.util.spec_from_file_location(f"method of {path.resolve()}", path)
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)                              # for modules beside it
    if folder not in sys.path:
        sys.path.append(folder)
    sys.modules[spec.name] = module                                  # dataclasses look there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a stranger's code
        raise BadInput(f"{name} cannot be imported: {type(error).__name__}: {error}") from None
    own = {key: value for key, value in vars(module).items()
           if not isinstance(value, ModuleType)}                     # such as our inpaint, imported
    if "inpaint" not in own and "fit" not in own:
        raise BadInput(f"{name}: it has neither inpaint(image, hole, generator) nor fit(images)")
    return SimpleNamespace(**{"DRAWS": True, "CALLS": 0, "ANY_SIZE": "inpaint" in own, **own})


def file_of(name):
    """Where a method is written."""
    if by_diffusion(name):
        return Path(__file__)
    return BASELINES / f"{name}.py" if name in METHODS else Path(name)
