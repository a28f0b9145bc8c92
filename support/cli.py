"""What every command promises its user: bad input ends in one line with exit status 2, and so does
a lack of memory, disk or permission; DEBUG=1 in the environment shows the traceback behind it."""
import os
import re
import signal
import sys
from pathlib import Path

import torch
from tqdm import tqdm


class BadInput(Exception):
    """What is wrong with what the user gave, and what to do about it, in one line."""


def run(main, memory="--batch"):
    """Call main() as a command. BadInput and the system's refusals (disk full, no permission) print
    one line and exit with 2; so does a lack of memory, naming the flags in `memory` to lower.
    Ctrl-C exits with 130; a reader that closes the pipe, as head does, ends it quietly."""
    repair_streams()
    try:
        main()
        sys.stdout.flush()
    except Exception if os.environ.get("DEBUG") else ():
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)              # nothing is left to flush into
    except (BadInput, OSError) as error:
        refuse(error)
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        refuse(f"out of memory: lower {memory}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def lacks_memory(error):
    """Whether this is Python's, numpy's or torch's way to say that there is not enough memory."""
    lacking = "out of memory|can't allocate memory"
    return isinstance(error, MemoryError) or bool(re.search(lacking, str(error)))


def repair_streams():
    """Make printing safe: characters that the terminal's encoding lacks are escaped; of standard
    output and error, one that is closed (2>&-) gives way to the other. What is closed is opened on
    nothing first, so that no file of ours is taken for it."""
    while (place := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(place)
    sys.stdout = sys.stdout or sys.stderr or open(os.devnull, "w")
    sys.stderr = sys.stderr or sys.stdout
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def refuse(error):
    """Print the error on one line; exit with 2."""
    print(f"{Path(sys.argv[0]).name}: {one_line(error)}", file=sys.stderr)
    sys.exit(2)


def one_line(error):
    """The error's text on one line, even if a file name in it holds control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())


def say(text):
    """Tell the user something in a line of its own, above any progress bar."""
    tqdm.write(one_line(text), file=sys.stderr)


def check_empty(args):
    """Refuse a setting of no characters, which an unset variable of the shell leaves: as a path it
    would mean the present folder."""
    for name, value in vars(args).items():
        if value == "" or isinstance(value, list) and "" in value:
            raise BadInput(f"the setting {name} is empty: is a variable of the shell unset?")


def check_apart(out, data):
    """Refuse an --out in a folder of data: its pictures would be taken for images there."""
    place = Path(out).resolve()
    for path in map(Path, data):
        if path.is_dir() and path.resolve() in (place, *place.parents):
            raise BadInput(f"--out {out} lies in {path}, and its pictures would be taken for "
                           "images there: name an --out elsewhere")


def check_range(args, low, high, *names):
    """Refuse those of the named settings, numbers or lists of them, outside `low` … `high`."""
    for name in names:
        value = getattr(args, name)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and not low <= number <= high:
                raise BadInput(f"--{name.replace('_', '-')} is from {low:,} to {high:,}, "
                               f"not {number}")


def device(name):
    """The argument of --device, checked: this machine has it and can allocate on it. Under torchrun
    `cuda` is a GPU of the process's own, and nothing of it touches another."""
    local = {key: int(os.environ.get(f"LOCAL_{key}", 0)) for key in ("RANK", "WORLD_SIZE")}
    if name == "cuda" and local["WORLD_SIZE"] > 1 and torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        if local["WORLD_SIZE"] > gpus:
            raise BadInput(f"--nproc_per_node {local['WORLD_SIZE']}: this machine has {gpus} "
                           f"GPU{'s' * (gpus > 1)}, and a process needs one of its own")
        torch.cuda.set_device(local["RANK"])
    try:
        torch.zeros(1, device=name).item()
    except Exception as error:  # every device has its own way not to be there
        raise BadInput(f"--device {name}: this machine has none ({type(error).__name__}); "
                       "leave it out, or name cpu") from None
    return name
