"""Columns of the index as NumPy: what a pass over all shards gives, and their digests."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa


class Scan(NamedTuple):
    """rows: [M], those that pass; columns: {name: [N, ...]} of all rows, text as Arrow has it; digests: of every column
    that was read.

    Missing real numbers are NaN. Whole numbers and booleans become real ones, with NaN, where a row that passes lacks
    one; else they keep their type, and filled, {name: bool [N, ...]}, says where 0 stands for one that is missing.
    """

    rows: np.ndarray
    columns: dict[str, np.ndarray | pa.ChunkedArray]
    digests: dict[str, str]
    filled: dict[str, np.ndarray]


def numpy_values(column: pa.ChunkedArray, shape: tuple[int, ...]) -> tuple[np.ndarray | pa.ChunkedArray, np.ndarray]:
    """A column [N, *shape], text as Arrow has it, missing real numbers as NaN; and bool [N, *shape] where whole numbers
    and booleans are missing: 0 stands there."""
    if column.type == pa.string():
        return column, np.zeros(len(column), bool)
    array = column.combine_chunks()
    array = array.flatten() if pa.types.is_fixed_size_list(array.type) else array
    if pa.types.is_floating(array.type) or not array.null_count:
        missing = np.zeros(len(array), bool)
    else:
        missing = array.is_null().to_numpy(zero_copy_only=False)
        array = array.fill_null(0 if pa.types.is_integer(array.type) else False)
    return array.to_numpy(zero_copy_only=False).reshape(-1, *shape), missing.reshape(-1, *shape)


def absent(samples: int, kind: pa.DataType) -> pa.Array:
    """A column without values; lists keep their length."""
    if not pa.types.is_fixed_size_list(kind):
        return pa.nulls(samples, kind)
    return pa.FixedSizeListArray.from_arrays(pa.nulls(samples * kind.list_size, kind.value_type), kind.list_size)


def joined(parts: Sequence[np.ndarray | pa.ChunkedArray]) -> np.ndarray | pa.ChunkedArray:
    """The values of all shards."""
    if text := [part for part in parts if not isinstance(part, np.ndarray)]:
        return pa.chunked_array([chunk for part in text for chunk in part.chunks], text[0].type)
    return np.concatenate(parts)


def short_digest(*parts: bytes) -> str:
    """16 hexadecimal digits of the sha256 of all parts, one after another."""
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def as_names(names: str | Iterable[str]) -> tuple[str, ...]:
    """A text is one name, not its letters."""
    return (names,) if isinstance(names, str) else tuple(names)


def is_whole(value: object) -> bool:
    """Whether it is an integer, of Python or NumPy, and no bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def column_digest(values: pa.ChunkedArray) -> bytes:
    """sha256 of a shard's column: its type, which values are missing, and the others."""
    digest = hashlib.sha256(str(values.type).encode())
    array = values.combine_chunks()
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    if array.null_count:
        digest.update(np.packbits(array.is_null().to_numpy(zero_copy_only=False)).data)
    else:
        digest.update(bytes(-(-len(array) // 8)))
    if pa.types.is_fixed_size_list(array.type):
        array = array.flatten()
    if pa.types.is_string(array.type):
        array = array.fill_null("") if array.null_count else array
        _, offsets, text = array.buffers()
        ends = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
        digest.update((ends - ends[0]).data)
        digest.update(memoryview(text)[ends[0] : ends[-1]] if text else b"")
    else:
        array = array.fill_null(0) if array.null_count else array
        digest.update(np.ascontiguousarray(array.to_numpy(zero_copy_only=False)).data)
    return digest.digest()
