"""Bad input ends a command with one line and exit status 2, never with a traceback."""
import signal
import sys


class BadInput(Exception):
    """What is wrong with what the user gave, and what to do about it, in one line."""


def run(main):
    """Call main() as a command: BadInput and the system's own refusals (disk full, no permission)
    print as one line and exit with 2; Ctrl-C exits with 130."""
    try:
        main()
    except (BadInput, OSError, MemoryError) as error:
        reason = " ".join(str(error).split()) or "out of memory"
        print(f"{sys.argv[0]}: {reason}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
