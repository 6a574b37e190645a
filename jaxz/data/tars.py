"""Open tars, and reads that get over what a storage does for a moment."""

import contextlib
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

from jaxz.errors import DataError
from jaxz.files import PAUSE, TRIES

OPEN_SHARDS = 4096  # at most, and half of the files that the process may have open


class Shard:
    """An open tar; closed when the last reader lets go of it."""

    def __init__(self, path: Path, fd: int):
        self.fd, self.path, self.size = fd, path, os.fstat(fd).st_size

    def __del__(self, close: Callable[[int], None] = os.close):  # bound here: at exit, globals may be gone first
        if hasattr(self, "fd"):
            close(self.fd)


def raise_file_limit() -> int:
    """Let the process open as many files as it may; how many those are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return OPEN_SHARDS * 2 if hard == resource.RLIM_INFINITY else max(soft, hard)


def read_whole(shard: Shard, parts: list[memoryview], start: int, size: int) -> None:
    """Fill `parts`, `size` bytes in all, from offset `start`. A read that fails or gives nothing is tried again a few
    times; then DataError."""
    done, failed, reason = 0, 0, ""
    while done < size:
        try:
            got, reason = os.preadv(shard.fd, parts, start + done), "the file ends there"
        except OSError as error:
            got, reason = 0, error.strerror or str(error)
        done += got
        if done < size:
            parts = skip(parts, got)
            failed = 0 if got else failed + 1
            if failed == TRIES:
                raise DataError(
                    f"{shard.path}: {size - done} bytes at offset {start + done} cannot be read ({reason}, "
                    f"{TRIES} tries); restore the shard"
                )
            if not got:
                time.sleep(PAUSE * 4 ** (failed - 1))


def skip(parts: list[memoryview], count: int) -> list[memoryview]:
    """What is left of `parts` after their first `count` bytes."""
    for place, part in enumerate(parts):
        if count < len(part):
            return [part[count:], *parts[place + 1 :]]
        count -= len(part)
    return []
