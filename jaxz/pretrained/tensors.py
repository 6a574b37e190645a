"""A tensor in a file, which is read when asked for, and how damage to a file is reported."""

import contextlib
import errno
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxz.errors import InputError

# How numbers lie in files, by safetensors' names of their types; a bfloat16 is the upper half of a float32.
ITEM = {
    name: np.dtype(kind)
    for name, kind in {
        "F64": "<f8",
        "F32": "<f4",
        "F16": "<f2",
        "BF16": "<u2",
        "I64": "<i8",
        "I32": "<i4",
        "I16": "<i2",
        "I8": "i1",
        "U8": "u1",
        "BOOL": "?",
    }.items()
}


@dataclass(frozen=True)
class Tensor:
    """Numbers in a file, which stay there until they are read."""

    dtype: str  # a name in ITEM
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]  # the values, bfloat16 as float32

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM[self.dtype].itemsize


def decode(content: bytes, dtype: str) -> np.ndarray:
    """The numbers of a storage, one axis."""
    array = np.frombuffer(content, ITEM[dtype])
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else array


def need(condition: bool, why: str) -> None:
    """Refuse a file where the condition does not hold."""
    if not condition:
        raise ValueError(why)


@contextlib.contextmanager
def damaged(path: Path, kind: str) -> Iterator[None]:
    """Turns whatever fails in reading a file, which for damaged ones is anything, into one InputError."""
    try:
        yield
    except Exception as error:
        system = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)  # EINVAL: no such place in it
        if system or isinstance(error, InputError):
            raise
        why = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: cannot be read as {kind} ({why}); fetch it again or name another file") from None
