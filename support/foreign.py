"""Other people's unconditional networks, for the methods that need no more: repaint, pigdm, …

    --weights FOLDER        diffusers: a UNet2DModel and its scheduler's settings, side by side or
                            in unet/ and scheduler/; or what `python -m support.export` wrote
    --weights OWNER/NAME    such a folder on the Hugging Face hub, which is downloaded
    --weights FILE.pt       guided-diffusion's, as RePaint uses it

No file's code is run, and a file that claims more than it holds is refused before memory is
allocated. diffusers and safetensors are needed for the first two only.
"""
import json
import re
from pathlib import Path

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ddpm import DDPM
from schedules import cosine_betas, linear_betas
from support.cli import BadInput, say
from support.files import LARGEST_SIDE, check_finite, no_pipe, read_tensors, reading, rebuild
from support.guided_diffusion import ADM, HEAD, architecture

PIXELS = 2 ** 16        # of images in the network's memory: one of 256×256 (docs/speed.md)
NAME = "diffusion_pytorch_model"
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler")
RENAMED = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.",      # attention's names
           ".proj_attn.": ".to_out.0."}                                      # before 2023


class Unconditional(nn.Module):
    """eps_model(x, t, hole) by a network(x, t) that knows no hole; `methods.find` asks for that."""

    knows_hole = False

    def __init__(self, network, size):
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.at_once = max(1, PIXELS // size ** 2)            # images

    def forward(self, x, t, hole):
        """`at_once` images at a time; a backward pass through more recomputes them in turn."""
        parts = [*zip(x.split(self.at_once), t.split(self.at_once))]
        if len(parts) > 1 and torch.is_grad_enabled():
            return torch.cat([checkpoint(self.estimate, *part, use_reentrant=False)
                              for part in parts])
        return torch.cat([self.estimate(*part) for part in parts])

    def estimate(self, x, t):
        output = self.network(x, t)
        return getattr(output, "sample", output)[:, :3]     # after them, the learned variance


# ---- diffusers' folders ------------------------------------------------------------------------

def of_run(path):
    """Of the folder of a training its weights.pt; any other path as it is."""
    file = Path(path) / "weights.pt"
    return file if file.is_file() else path


def local(path):
    """The folder of a network on the hub, downloaded once; any other path as of `of_run`."""
    path = of_run(path)
    name = str(path)
    here = Path(path).exists() or Path(path).parent.is_dir()     # a file, perhaps mistyped
    if here or not re.fullmatch(r"[\w-]+/[\w.-]+(?<!\.pt)", name):
        return path
    try:
        import huggingface_hub as hub
    except ImportError:
        raise BadInput(f"{name}: no such file or folder; if it is the name of a network on the "
                       "Hugging Face hub: pip install diffusers safetensors") from None
    wanted = ("*config.json", "model_index.json", f"*{NAME}.safetensors", "model.safetensors")
    try:
        folder = hub.snapshot_download(name, allow_patterns=wanted)
        if not [*Path(folder).rglob("*.safetensors")]:
            folder = hub.snapshot_download(name, allow_patterns=[*wanted, f"*{NAME}.bin"])
    except Exception as error:          # offline, no such name, not public: a dozen ways to fail
        raise BadInput(f"{name}: neither here nor to be had from the hub ({type(error).__name__}); "
                       f"download config.json, scheduler_config.json and {NAME}.safetensors of "
                       f"https://huggingface.co/{name} into a folder, and name that") from None
    return Path(folder)


def load_diffusers(folder, device="cpu"):
    """(ddpm, eps_model, size) of a folder in diffusers' format."""
    folder = Path(folder)
    index = read_json(folder / "model_index.json")
    latent = sorted({"vae", "vqvae", "text_encoder"} & set(index))
    if latent:
        raise BadInput(f"{folder}: it has a {latent[0]}, so its network works on latents or texts, "
                       "not pixels: only pixel-space unconditional networks work here")
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    settings = read_json(unet / "config.json")
    if not settings:
        raise BadInput(f"{folder}: no config.json of a network in it, nor in its unet/")
    size = check_network(folder, settings)
    model = needed("diffusers").UNet2DModel

    def network(**given):
        net = model.from_config(given)
        net(torch.zeros(1, 3, size, size), torch.zeros(1).long())       # on no device: does it fit?
        return net

    with reading(folder, f"the weights of a network for {size}×{size} pixels, as its config.json "
                 "describes it", f"no {NAME}.safetensors beside its config.json"):
        tensors = {renamed(name): tensor for name, tensor in read_network(unet).items()}
        layers = settings["layers_per_block"] * len(settings["block_out_channels"])
        if not 1 <= layers <= len(tensors):
            raise ValueError("settings out of range")
        net = rebuild(network, settings, tensors)
    check_finite(folder, tensors)
    return process(folder, unet, device), Unconditional(net, size).to(device), size


def check_network(folder, settings):
    """The side of its images, if the network is one that we can use."""
    kind, size = settings.get("_class_name"), settings.get("sample_size")
    if kind != "UNet2DModel":
        raise BadInput(f"{folder}: its network is a {kind}, and only UNet2DModel is understood")
    if settings.get("class_embed_type") or settings.get("num_class_embeds"):
        raise BadInput(f"{folder}: its network wants to be told a class, and we have none to tell")
    channels = [settings.get(name, 3) for name in ("in_channels", "out_channels")]
    if channels != [3, 3]:
        raise BadInput(f"{folder}: its network has {channels[0]} channels in, {channels[1]} out, "
                       "not the 3 of a colour image")
    if settings.get("time_embedding_type", "positional") != "positional":
        raise BadInput(f"{folder}: its network is told the noise as "
                       f"{settings['time_embedding_type']} features, not as a DDPM's level")
    height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
    if type(height) is not int or height != width or not 1 <= height <= LARGEST_SIDE:
        raise BadInput(f"{folder}: its config.json has sample_size {str(size)[:40]}, not the side "
                       f"of a square image, of at most {LARGEST_SIDE:,} pixels")
    levels = settings.get("block_out_channels")
    if isinstance(levels, list) and height >> max(len(levels) - 1, 0) < 2:
        raise BadInput(f"{folder}: its network ends in maps of one pixel, which cannot be "
                       "normalized")
    return height


def process(folder, unet, device):
    """The DDPM that scheduler_config.json describes; without one, that of Ho et al. 2020."""
    places = (folder / "scheduler", folder, unet.parent / "scheduler")
    configs = (read_json(place / "scheduler_config.json") for place in places)
    config = next((config for config in configs if config), None)
    if config is None:
        say(f"{folder}: no scheduler_config.json in it: taken to predict ε, with T = 1000 and β "
            "linear from 0.0001 to 0.02")
        config = {"_class_name": SCHEDULERS[0]}
    given = {"_class_name": None, "beta_schedule": "linear", "prediction_type": "epsilon", **config}
    known = {"_class_name": SCHEDULERS, "prediction_type": PREDICTIONS,
             "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2")}
    for key, values in known.items():
        if given[key] not in (*values,):
            raise BadInput(f"{folder}: its scheduler's {key} is {given[key]}, and only "
                           f"{', '.join(values)} are understood")
    if given.get("rescale_betas_zero_snr"):
        raise BadInput(f"{folder}: its scheduler's rescale_betas_zero_snr is not understood")
    with reading(folder, "a scheduler's settings", "no such file"):
        betas = read_betas(given)
        if not ((0 < betas) & (betas < 1)).all():
            raise ValueError("β out of range")
    return DDPM(betas.to(device), PREDICTIONS[given["prediction_type"]], clip=True)


def read_betas(config):
    """β [T], float64, of a scheduler's settings; what is left out is diffusers' default."""
    if config.get("trained_betas") is not None:
        return torch.tensor(config["trained_betas"], dtype=torch.float64)
    T = config.get("num_train_timesteps", 1000)
    if not 1 <= T <= 10 ** 6:
        raise ValueError("T out of range")
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    if config["beta_schedule"] == "squaredcos_cap_v2":
        return cosine_betas(T)
    if config["beta_schedule"] == "scaled_linear":
        return linear_betas(T, start ** 0.5, end ** 0.5) ** 2
    return linear_betas(T, start, end)


def read_network(folder):
    """{name: tensor} from NAME.safetensors, or where there is none from NAME.bin."""
    safe, pickled = (folder / f"{NAME}.{end}" for end in ("safetensors", "bin"))
    return read_tensors(pickled) if pickled.exists() and not safe.exists() else read_safe(safe)


def renamed(name):
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name


# ---- our own weights, as safetensors -----------------------------------------------------------

def is_ours(folder):
    return (Path(folder) / "model.safetensors").exists()


def read_ours(folder):
    """What `support.export` wrote, as `read_tensors` gives it of a weights.pt."""
    return {**read_json(Path(folder) / "config.json"),
            "ema": read_safe(Path(folder) / "model.safetensors")}


# ---- guided-diffusion --------------------------------------------------------------------------

def is_guided(checkpoint):
    return isinstance(checkpoint, dict) and "time_embed.0.weight" in checkpoint


def load_guided(path, tensors, device="cpu"):
    """(ddpm, eps_model, size) of a guided-diffusion checkpoint that was read."""
    with reading(path, f"a guided-diffusion network with heads of {HEAD} channels", "no such file"):
        check_guided(path, tensors)
        settings, size = architecture(tensors)
        if size > LARGEST_SIDE:
            raise ValueError("images too large")
        net = rebuild(ADM, settings, tensors)
    check_finite(path, tensors)
    say(f"{path}: taken for {size}×{size} pixels, heads of {HEAD} channels, to predict ε, T = 1000 "
        "and β linear from 0.0001 to 0.02: it does not say, and so are those published")
    ddpm = DDPM(linear_betas(1000).to(device), "eps", clip=True)
    return ddpm, Unconditional(net, size).to(device), size


def check_guided(path, tensors):
    """Refuse, by name, the variants of guided-diffusion's network that ADM is not."""
    inputs, outputs = tensors["input_blocks.0.0.weight"].shape[1], len(tensors["out.2.weight"])
    first = "input_blocks.1.0"
    faults = {
        "wants to be told a class, and we have none to tell": "label_emb.weight" in tensors,
        f"has {inputs} channels in and {outputs} out, not the 3 of a colour image (or 6 out, with "
        "their variances)": inputs != 3 or outputs not in (3, 6),
        "resizes outside its residual blocks (resblock_updown False), which is not understood":
            any(name.endswith((".op.weight", ".conv.weight")) for name in tensors),
        "is told the noise by shifts alone (use_scale_shift_norm False), which is not understood":
            len(tensors[f"{first}.emb_layers.1.weight"])
            == len(tensors[f"{first}.out_layers.0.weight"])}
    for fault, found in faults.items():
        if found:
            raise BadInput(f"{path}: its network {fault}")


# ---- files -------------------------------------------------------------------------------------

def needed(module):
    try:
        return __import__(module)
    except ImportError:
        raise BadInput(f"these weights need {module}: pip install diffusers safetensors") from None


def read_safe(path):
    """{name: tensor} from a safetensors file, on the CPU. Raises as any reading may."""
    no_pipe(path)
    needed("safetensors")
    from safetensors.torch import load_file

    return load_file(path)


def read_json(path):
    """The object in a file; {} if there is no such file."""
    if not path.exists():
        return {}
    with reading(path, "a JSON object", "no such file"):
        no_pipe(path)
        return {**json.loads(path.read_text())}
