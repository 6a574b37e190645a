"""Where a layer's arrays come from: a dataset, or files of arrays with a row for each object."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.lib.npyio import NpzFile

from data_tools.inputs import sha256
from data_tools.webdataset_tars import BAD_ZIP
from jaxz.data.dataset import Dataset, open_dataset
from jaxz.data.index import UNREADABLE
from jaxz.data.manifest import Array, Band
from jaxz.data.reader import Reader
from jaxz.data.rules import is_dtype
from jaxz.data.transport import is_remote
from jaxz.errors import InputError

T = TypeVar("T")
IDS = ("object_id", "key")
ABSENT = "absent"  # the bit of a mask that is made for what a source lacks
CHUNK = 1024  # rows read at once

Ids = dict[str, Callable[[], pa.Array]]
Take = Callable[[np.ndarray], dict[str, list]]


@dataclass(frozen=True)
class Source:
    """arrays: what there is; ids: {column: function to its values}; reading({new name: name}): the function from rows,
    int64 [K], to {new name: [K] values, or, of a compact array, payloads}; digest: of the content, so that it is
    noticed if the source changes."""

    arrays: dict[str, Array]
    bands: tuple[Band, ...]
    ids: Ids
    reading: Callable[[dict[str, str]], Take]
    digest: str


def open_source(path: str, name: str, ids: Path | None) -> Source:
    """name: of the only array of a .npy file. Raises InputError for what is neither a dataset nor such a file."""
    suffix = "" if is_remote(path) else Path(path).suffix
    if (suffix == ".npy") != (ids is not None):
        raise InputError(f"ids: goes with a .npy file, and only there; --from is {path!r}")
    file = Path(path)
    if ids is not None:
        values = {name: load(file, np.ndarray), "object_id": load(ids, np.ndarray)}
        return of_arrays(values, path, f"{sha256(file)} {sha256(ids)}")
    if suffix == ".parquet":
        return of_arrays(read_parquet(file), path, sha256(file))
    if suffix == ".npz":
        return of_arrays(read_npz(file), path, sha256(file))
    return of_dataset(open_dataset(path))


def of_dataset(dataset: Dataset) -> Source:
    """Samples that are quarantined count as not there."""
    lost = np.zeros(len(dataset), bool)
    lost[dataset.quarantined] = True
    masks = band_masks(dataset)

    def ids(name: str) -> pa.Array:
        values = dataset.arrow(columns=[name])[name].combine_chunks()
        return pc.if_else(pa.array(lost), pa.scalar(None, values.type), values) if lost.any() else values

    def reading(names: dict[str, str]) -> Take:
        reader = Reader([dataset], tuple(name for name in names.values() if name not in masks), check="crc")
        bits = dataset.column("bands_observed").astype(np.int64) if masks else np.zeros(0, np.int64)

        def take(rows: np.ndarray) -> dict[str, list]:
            found = read(reader, dataset, rows)
            for mask, array in masks.items():
                absent = ~bits[rows, None] >> np.arange(array.full_shape[0]) & 1
                found[mask] = list(absent.astype(np.uint8)[..., None, None])
            return {new: found[old] for new, old in names.items()}

        return take

    known: Ids = {name: partial(ids, name) for name in IDS if name == "key" or name in dataset.manifest.columns}
    return Source(dataset.arrays | masks, dataset.manifest.bands, known, reading, dataset.fingerprint()["rows"])


def band_masks(dataset: Dataset) -> dict[str, Array]:
    """Masks, of one value a band, for images that have none: bands_observed, which says it, does not come along."""
    if "bands_observed" not in dataset.manifest.columns:
        return {}
    found = {}
    for name, array in dataset.arrays.items():
        if array.kind == "image" and len(array.shape) == 3 and f"{name}_mask" not in dataset.arrays:
            found[f"{name}_mask"] = Array("mask", "uint8", (array.shape[0], 1, 1), "index", bits={ABSENT: 1})
    return found


def read(reader: Reader, dataset: Dataset, rows: np.ndarray) -> dict[str, list]:
    """{name: what the writer takes of each row}."""
    found: dict[str, list] = {name: [] for name in reader.stored}
    for start in range(0, len(rows), CHUNK):
        for name, payloads in reader.payloads(rows[start : start + CHUNK]).items():
            found[name] += [as_value(payload, dataset.arrays[name]) for payload in payloads]
    return found | {name: list(values[rows]) for name, values in reader.columns.items()}


def as_value(payload: memoryview, array: Array) -> np.ndarray | bytes:
    """What the writer takes: of a compact array the payload, since quantising it again would add noise."""
    if array.compact:
        return bytes(payload)
    return np.frombuffer(payload, array.dtype).reshape(array.shape_of(len(payload)))


def of_arrays(values: dict[str, np.ndarray], path: str, digest: str) -> Source:
    """values: {name: [M, ...]}, of which object_id or key are ids. Raises InputError where they do not go together."""
    known: Ids = {name: partial(as_ids, values[name], path) for name in IDS if name in values}
    if not known:
        raise InputError(f"from: {path!r} has no column object_id, nor key; add one that says whose the rows are")
    count = values[next(iter(known))].size
    arrays = {}
    for name, found in values.items():
        if name in IDS:
            continue
        if found.ndim < 2 or not is_dtype(str(found.dtype)):
            continue  # one value an object is a column, for data_tools.relabel
        if len(found) != count:
            raise InputError(f"from: {name!r} of {path!r} has {len(found)} rows, there are {count} ids; mend it")
        arrays[name] = Array("vector" if found.ndim == 2 else "array", found.dtype.name, found.shape[1:])

    def reading(names: dict[str, str]) -> Take:
        native = lambda name, rows: values[name][rows].astype(arrays[name].dtype, copy=False)
        return lambda rows: {new: list(native(old, rows)) for new, old in names.items()}

    return Source(arrays, (), known, reading, digest)


def as_ids(values: np.ndarray, path: str) -> pa.Array:
    """Raises InputError for what is neither text nor whole numbers."""
    kind = values.dtype
    if values.ndim != 1 or kind.kind not in "iuSUO":
        raise InputError(f"from: the ids of {path!r} are {kind} {list(values.shape)}; use whole numbers or text")
    return pa.array(values.astype(str) if kind.kind == "S" else values.astype(kind.newbyteorder("=")))


def load(path: Path, kind: type[T]) -> T:
    """A .npy file (ndarray) or .npz file (NpzFile), read where it is asked for. Nothing is unpickled. Raises
    InputError."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(found, kind):
            raise ValueError(f"it holds a {type(found).__name__}, not a {kind.__name__}")
        return found
    except BAD_ZIP as error:
        raise InputError(f"from: {path} cannot be read as NumPy arrays of numbers ({error}); write it again") from None


def read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with load(path, NpzFile) as found:
            return {name: found[name] for name in found.files}
    except BAD_ZIP as error:
        raise InputError(f"from: {path} cannot be read as NumPy arrays of numbers ({error}); write it again") from None


def read_parquet(path: Path) -> dict[str, np.ndarray]:
    """The ids, and the columns of lists of one length [M, L]."""
    try:
        table = pq.read_table(path)
    except UNREADABLE as error:
        raise InputError(f"from: {path} cannot be read ({error}); write it again") from None
    found = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if name in IDS:
            found[name] = column.to_numpy()
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            found[name] = rectangle(column.combine_chunks(), name, path)
    return found


def rectangle(lists: pa.Array, name: str, path: Path) -> np.ndarray:
    """[M, L] of lists of one length. Raises InputError for others, and where values are missing."""
    lengths = pc.unique(pc.list_value_length(lists)).to_pylist()
    flat, width = lists.flatten(), lengths[0] if lengths else 0
    if len(lengths) > 1 or lists.null_count or flat.null_count or pa.types.is_nested(flat.type):
        raise InputError(f"from: {name!r} of {path} must hold lists of numbers of one length, none missing; mend it")
    return flat.to_numpy(zero_copy_only=False).reshape(len(lists), width)
