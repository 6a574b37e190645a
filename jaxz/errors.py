"""Exit codes and the one way in which a command line ends."""

import errno
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

OK, FAILED, BAD_INPUT, REQUEUE, INTERRUPTED = 0, 1, 2, 75, 130

BESIDES = "\n       "  # between the sentences of an InputError that has several

# What the system says of a path that was given wrongly -> the fix. All else, such as a full disk, is a failure.
BAD_PATH = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "name a path below a directory",
    errno.EISDIR: "name a file",
    errno.EEXIST: "name another",
    errno.EACCES: "name another or change its permissions",
    errno.EPERM: "name another or change its permissions",
    errno.EROFS: "name another",
}


class InputError(Exception):
    """A bad argument, config or input: one sentence that names the field, the value and the fix."""


class DataError(InputError):
    """Stored data is damaged or gone: names the file, the offset and what is lost."""


class Stopped(Exception):
    """Work was interrupted after its progress was saved; the same command goes on from there."""


def run(main: Callable[[list[str]], int | None], argv: list[str] | None = None, resumes: bool = False) -> NoReturn:
    """Run `main(argv)` and exit: 0 done, 1 failed, 2 bad input (a sentence, no traceback), 75 saved and resumable.

    resumes: the same command goes on where an interrupted one was, so that Ctrl-C ends it with 75; else with 130.
    """
    code, sentence = OK, ""
    try:
        code = main(sys.argv[1:] if argv is None else argv) or OK
    except InputError as error:
        code, sentence = BAD_INPUT, f"error: {error}"
    except Stopped as stop:
        code, sentence = REQUEUE, f"stopped: {stop}"
    except KeyboardInterrupt:
        code, sentence = INTERRUPTED, "stopped: interrupted"
        if resumes:
            code, sentence = REQUEUE, f"{sentence}; run the same command again to go on"
    except OSError as error:
        if error.errno is None:  # a library's own error: its traceback tells more
            raise
        code, sentence = system_error(error)
    except MemoryError as error:
        code, sentence = FAILED, f"failed: not enough memory{f' ({error})' if str(error) else ''}"
    if sentence:
        print(*map(one_line, sentence.split(BESIDES)), sep=BESIDES, file=sys.stderr)
    sys.exit(code)


def one_line(text: str) -> str:
    """Text without what a terminal obeys: libraries quote the bytes of a damaged file."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.splitlines()))


def system_error(error: OSError) -> tuple[int, str]:
    """The exit code and the sentence for what the operating system refused."""
    what = error.strerror or str(error)
    if error.filename is not None:
        what = f"{error.filename}: cannot be read or written ({what})"
    if error.errno in BAD_PATH:
        return BAD_INPUT, f"error: {what}; {BAD_PATH[error.errno]}"
    return FAILED, f"failed: {what}"


def suggest(name: object, known: Iterable) -> str:
    """A hint such as " Did you mean 'steps'?" for a misspelt name, or the list of what there is."""
    import difflib

    known = sorted(map(str, known))
    close = difflib.get_close_matches(str(name), known, n=1)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known) or 'none'}."
