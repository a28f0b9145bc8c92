"""Files that survive kills and strangers: a file is written completely or not at all, reading one
runs no code from it, and every output records what it takes to reproduce it."""
import contextlib
import functools
import hashlib
import os
import shlex
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from PIL import PngImagePlugin

from support.cli import BadInput

try:
    import fcntl
except ImportError:                                              # Windows has no such locks
    fcntl = None

ROOT = Path(__file__).parents[1]
HALF = ".{}.{}.tmp"                                              # of a file's name and a process
LARGEST_SIDE = 1024     # pixels, the side of a network's images: a fill takes about 4 GB there


# ---- writing -----------------------------------------------------------------------------------

@contextlib.contextmanager
def atomic_write(path):
    """A temporary name to write under, renamed to `path` when the block succeeds; when it fails,
    `path` is left as it was, or absent. A full disk and the like become BadInput."""
    path = Path(path)
    half = path.with_name(HALF.format(path.name, os.getpid()))
    try:
        yield half
        os.replace(half, path)
    except OSError as error:
        raise BadInput(f"{path} could not be written ({error.strerror or error}); what was there "
                       "before is kept") from None
    finally:
        with contextlib.suppress(OSError):                       # it is gone, or was never there
            half.unlink()


@contextlib.contextmanager
def lock_folder(folder, wait=False):
    """Make the folder and lock it: a second process is refused, or waits. The operating system
    releases the lock when the process ends, however it ends; half-written files of a killed process
    are removed."""
    try:
        place = locked(folder, wait)
    except BlockingIOError:
        raise BadInput(f"{folder}: another process is at work there; wait for it, or name another "
                       "--out") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(folder)                                     # if nothing was written
        if fcntl:
            os.close(place)


def locked(folder, wait):
    """A descriptor of the folder, with the lock, where there are locks. Who waited makes the folder
    anew if the one before it removed it."""
    while True:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if not fcntl:
            return None
        try:
            place = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(place, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(place), os.stat(folder)):
                remove_leftovers(folder)
                return place
        except BlockingIOError:
            os.close(place)
            raise
        except FileNotFoundError:
            pass
        except OSError:                                          # a file system without locks
            return place
        os.close(place)


def remove_leftovers(folder, pattern=HALF.format("*", "[0-9]*")):
    for half in Path(folder).glob(pattern):
        half.unlink()


def write_tensors(path, content):
    """torch.save, whole, and on the disk before the file that was there is given up."""
    try:
        with atomic_write(path) as half, open(half, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:                                # how torch reports a full disk
        raise BadInput(f"{path} could not be written (is the disk full? "
                       f"{str(error).splitlines()[0]}); what was there before is kept") from None


def write_png(picture, path, metadata=None):
    """A picture, with its colour profile or gamma, and `metadata` in text chunks."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in (metadata or {}).items():
        chunks.add_text(key, str(value))
    if "gamma" in picture.info:
        chunks.add(b"gAMA", struct.pack(">I", round(picture.info["gamma"] * 100_000)))
    large = picture.width * picture.height > 2 ** 20     # 12 megapixels take 1 s instead of 5
    with atomic_write(path) as half:
        picture.save(half, format="PNG", pnginfo=chunks, compress_level=1 if large else 6)


def provenance(weights, seed, sharpener=None):
    """What it takes to reproduce an output: command, seed, SHA-256 of the weights, versions."""
    command = shlex.join(["python", *sys.argv]).encode(errors="backslashreplace").decode()
    return {"command": command, "seed": seed,
            "weights": content(weights).hex(),
            **({"sharpener": content(sharpener).hex()} if sharpener else {}),
            "version": version(), "torch": str(torch.__version__)}


def content(path):
    """SHA-256, 32 bytes, of a file, or of all the files in a folder one after another, in the order
    of their names; read in blocks, as weights may be larger than the memory."""
    path, whole = Path(path), hashlib.sha256()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        with open(file, "rb") as opened:
            hashlib.file_digest(opened, lambda: whole)
    return whole.digest()


@functools.cache
def version():
    """This code's version: git's description of the commit, or "unknown"."""
    ask = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# ---- reading -----------------------------------------------------------------------------------

@contextlib.contextmanager
def reading(path, expected, missing):
    """A block that makes sense of a stranger's file, which can fail in a dozen ways."""
    try:
        yield
    except FileNotFoundError:
        raise BadInput(f"{path}: {missing}") from None
    except (MemoryError, BadInput):
        raise
    except Exception as error:
        raise BadInput(f"{path}: not {expected}, or damaged ({type(error).__name__})") from None


def rebuild(network, settings, tensors):
    """network(**settings) with these weights. Settings that claim more weights than there are, and
    weights that claim more numbers than are stored, are refused before memory is allocated."""
    with torch.device("meta"):
        net = network(**settings)
    claimed = net.state_dict()
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
              for tensor in tensors.values()}
    if ({name: tensor.shape for name, tensor in claimed.items()}
            != {name: tensor.shape for name, tensor in tensors.items()}
            or sum(tensor.nbytes for tensor in tensors.values()) > sum(stored.values())):
        raise ValueError("other weights than the settings'")
    net.load_state_dict({name: tensor.to(claimed[name].dtype).contiguous()
                         for name, tensor in tensors.items()}, assign=True)
    return net                                    # not by to_empty, which would import sympy


def check_finite(path, tensors):
    """Refuse weights with a complex number, or with a NaN or an infinity: one is enough to fill
    every hole with black."""
    bad = next((name for name, tensor in tensors.items()
                if tensor.is_complex() or not tensor.isfinite().all()), None)
    if bad:
        raise BadInput(f"{path}: {bad} is complex, NaN or infinite somewhere: the training "
                       "diverged, or the file is damaged; use an earlier checkpoint, or download "
                       "it again")


def no_pipe(path):
    """Raise ValueError for what exists but is no file: reading a pipe could wait for ever."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError("not a file")


def read_tensors(path):
    """What `write_tensors` wrote, on the CPU. Nothing in the file is run, nothing is unpacked to
    more than the file's own length, and a flipped bit is an error: torch.load alone looks at no
    checksum."""
    no_pipe(path)
    with zipfile.ZipFile(path) as archive:
        claimed = sum(member.file_size for member in archive.infolist())
        if claimed > os.path.getsize(path) or archive.testzip():
            raise zipfile.BadZipFile
    return torch.load(path, map_location="cpu", weights_only=True)
