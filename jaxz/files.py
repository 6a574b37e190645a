"""Files that are there complete or not at all."""

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from jaxz.errors import InputError

T = TypeVar("T")
TRIES, PAUSE = 4, 0.05  # of reads, and seconds before the second; each later one waits four times longer
PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EREMOTEIO)  # what storage may get over


@contextlib.contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` at the end, so that a reader finds the old file or the new one:
    where it is durable, also after a crash of the system.

    Raises OSError that names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # not the temporary name, or none where a disk is full
        raise
    finally:
        with contextlib.suppress(OSError):  # renamed, or never made
            temporary.unlink()


def replace(path: Path, content: bytes | memoryview) -> None:
    """Write bytes to `path` as `replacing` does."""
    with replacing(path) as file:
        file.write(content)


def read_json(path: Path | str, what: str) -> dict:
    """The object in a JSON file; `what` says what the file is, for people, such as "the run's config".

    Raises InputError where the file cannot be read, is not JSON or holds something else than an object.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {what} cannot be read ({error.strerror}); restore it or make it again") from None
    except (ValueError, RecursionError) as error:  # ValueError: of JSON, of UTF-8
        raise InputError(f"{path}: {what} is not JSON ({error}); restore it or make it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: {what} is not a JSON object; restore it or make it again")
    return content


def persist(read: Callable[[], T]) -> T:
    """read(), tried again a few times where the storage stumbles; what it raises in the end, it raises here."""
    for attempt in range(TRIES - 1):
        try:
            return read()
        except OSError as error:
            if error.errno not in PASSING:
                raise
            time.sleep(PAUSE * 4**attempt)
    return read()
