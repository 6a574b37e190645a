"""Exit codes and the one way in which a command line ends."""

import sys
from collections.abc import Callable
from typing import NoReturn

OK, FAILED, BAD_INPUT, REQUEUE = 0, 1, 2, 75


class InputError(Exception):
    """A bad argument, config or input: one sentence that names the field, the value and the fix."""


class Stopped(Exception):
    """Work was interrupted after its progress was saved; the same command goes on from there."""


def run(main: Callable[[list[str]], int | None], argv: list[str] | None = None) -> NoReturn:
    """Run `main(argv)` and exit: 0 done, 2 bad input (a sentence, no traceback), 75 saved and resumable."""
    try:
        sys.exit(main(sys.argv[1:] if argv is None else argv) or OK)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except Stopped as stop:
        print(f"stopped: {stop}", file=sys.stderr)
        sys.exit(REQUEUE)
    except KeyboardInterrupt:
        print("stopped: interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(REQUEUE)


def suggest(name: str, known) -> str:
    """A hint such as " Did you mean 'steps'?" for a misspelt name, or the list of what there is."""
    import difflib

    known = sorted(map(str, known))
    close = difflib.get_close_matches(str(name), known, n=1)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known) or 'none'}."
