"""Two promises of every command: bad input ends in one line with exit status 2, never in a
traceback; and a file is written whole or not at all."""
import contextlib
import os
import signal
import sys
from pathlib import Path


class BadInput(Exception):
    """What is wrong with what the user gave, and what to do about it, in one line."""


def run(main):
    """Call main() as a command. BadInput and the system's refusals (disk full, no permission) print
    one line and exit with 2; Ctrl-C exits with 130."""
    try:
        main()
    except (BadInput, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


@contextlib.contextmanager
def whole(path):
    """A temporary name to write under: `path` appears when the block has ended well, and is left
    as it was, or absent, when it has not. A full disk and the like are told as BadInput."""
    path = Path(path)
    half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield half
        os.replace(half, path)
    except OSError as error:
        raise BadInput(f"{path} could not be written ({error.strerror or error}); what was there "
                       "before is kept") from None
    finally:
        half.unlink(missing_ok=True)
