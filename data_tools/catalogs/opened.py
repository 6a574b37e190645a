"""An open catalogue file, whatever its format."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WantedColumns = dict[str, tuple[str, str]]  # role: (column of the file, "number", "text" or "id")


@dataclass(frozen=True)
class Opened:
    """Columns of a table and a way to read them.

    kinds: {column: "number", "text", "array" (several values a row), "object" (nothing that is
    read) or "any" (not told yet)}. units: those
    that the file states. rows: None where only reading tells. chunks(wanted, size) yields {role: values [n]} for at
    most `size` rows at a time: numbers or text, masked arrays where values are missing; text formats need to be told
    by `wanted` what a column is read as.
    """

    files: list[Path]
    kinds: dict[str, str]
    units: dict[str, str]
    rows: int | None
    chunks: Callable[[WantedColumns, int], Iterator[dict[str, np.ndarray]]]
