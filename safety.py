"""What every command promises: bad input ends in one line with exit status 2, never in a traceback;
a file is written whole or not at all; a stranger's file runs no code; and what is written says how
to make it again."""
import contextlib
import functools
import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from PIL import PngImagePlugin

try:
    import fcntl
except ImportError:                                              # Windows: two may collide there
    fcntl = None

HALF = ".{}.{}.tmp"                                              # of a file's name and a process


class BadInput(Exception):
    """What is wrong with what the user gave, and what to do about it, in one line."""


def run(main, memory="--batch"):
    """Call main() as a command. BadInput and the system's refusals (disk full, no permission) print
    one line and exit with 2, and so does a lack of memory, naming the flags to lower; Ctrl-C exits
    with 130."""
    try:
        main()
    except (BadInput, OSError) as error:
        refuse(error)
    except (MemoryError, RuntimeError) as error:
        lacking = "out of memory|can't allocate memory|array is too big"
        if not isinstance(error, MemoryError) and not re.search(lacking, str(error)):
            raise
        refuse(f"out of memory: lower {memory}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def refuse(error):
    """One line, whatever control characters a stranger's file name has."""
    line = "".join(c if c.isprintable() else " " for c in str(error))
    print(f"{Path(sys.argv[0]).name}: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(2)


def within(args, low, high, *names):
    """Refuse settings, numbers or lists of numbers, that are not from `low` to `high`."""
    for name in names:
        value = getattr(args, name)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and not low <= number <= high:
                raise BadInput(f"--{name.replace('_', '-')} is from {low:,} to {high:,}, "
                               f"not {number}")


def device(name):
    """The argument of --device: one that this machine has, and that holds numbers."""
    try:
        torch.zeros(1, device=name).item()
    except Exception as error:  # every device has its own way not to be there
        raise BadInput(f"--device {name}: this machine has none ({type(error).__name__}); "
                       "leave it out, or name cpu") from None
    return name


# ---- writing -----------------------------------------------------------------------------------

@contextlib.contextmanager
def whole(path):
    """A temporary name to write under: `path` appears when the block has ended well, and is left
    as it was, or absent, when it has not. A full disk and the like are told as BadInput."""
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
def alone(folder, wait=False):
    """Make the folder and work in it as the only process: a second one is refused, or waits. The
    lock is the system's, on the folder itself, and goes with the process, however it ends; what a
    killed one left half-written is removed."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    place = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        if fcntl:
            fcntl.flock(place, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            sweep(folder)
    except BlockingIOError:
        os.close(place)
        raise BadInput(f"{folder}: another process is at work there; wait for it, or name another "
                       "--out") from None
    except OSError:                                              # a file system without locks
        pass
    try:
        yield
    finally:
        if fcntl:
            os.close(place)
        with contextlib.suppress(OSError):
            os.rmdir(folder)                                     # if nothing was written


def sweep(folder, pattern=HALF.format("*", "[0-9]*")):
    for half in Path(folder).glob(pattern):
        half.unlink()


def write_tensors(path, content):
    """torch.save, whole, and on the disk before the file that was there is given up."""
    try:
        with whole(path) as half, open(half, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:                                # how torch reports a full disk
        raise BadInput(f"{path} could not be written (is the disk full? "
                       f"{str(error).splitlines()[0]}); what was there before is kept") from None


def write_png(picture, path, told=None):
    """A picture and, as its text chunks, what is told of it (see `origin`)."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in (told or {}).items():
        chunks.add_text(key, str(value))
    with whole(path) as half:
        picture.save(half, format="PNG", pnginfo=chunks)


@functools.cache
def origin(weights, seed):
    """How to make an output again: command, seed, SHA-256 of the weights, versions."""
    command = shlex.join(["python", *sys.argv]).encode(errors="backslashreplace").decode()
    return {"command": command, "seed": seed,
            "weights": hashlib.sha256(Path(weights).read_bytes()).hexdigest(),
            "version": version(), "torch": str(torch.__version__)}


@functools.cache
def version():
    """Of this code: git's name for the commit, if it is there to ask."""
    ask = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
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
    except MemoryError:
        raise
    except Exception as error:
        raise BadInput(f"{path}: not {expected}, or damaged ({type(error).__name__})") from None


def rebuild(network, settings, tensors):
    """network(**settings) with these weights. Settings that claim more of them than there are, and
    weights that claim more numbers than are stored, are refused before any memory is asked for."""
    with torch.device("meta"):
        net = network(**settings)
    claimed = {name: tensor.shape for name, tensor in net.state_dict().items()}
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
              for tensor in tensors.values()}
    if (claimed != {name: tensor.shape for name, tensor in tensors.items()}
            or sum(tensor.nbytes for tensor in tensors.values()) > sum(stored.values())):
        raise ValueError("other weights than the settings'")
    net.to_empty(device="cpu").load_state_dict(tensors)
    return net


def no_pipe(path):
    """A ValueError for what is there and is no file: a pipe would be waited for without an end."""
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
