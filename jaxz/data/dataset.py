"""A dataset as its readers see it: the manifest, the index columns, single samples."""

import functools
import hashlib
import itertools
import logging
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from jaxz.data import where as filters
from jaxz.data.index import PLACES, UNREADABLE, column_type, list_type, read_index, shard_of
from jaxz.data.manifest import Manifest
from jaxz.data.quarantine import Quarantine
from jaxz.errors import InputError, suggest
from jaxz.files import persist

log = logging.getLogger("jaxz")


class DataError(InputError):
    """Stored data is damaged or gone: names the file, the offset and what is lost."""


REBUILD = "restore it, or rebuild it with `python -m data_tools.verify --repair`"


def open_dataset(path: Path | str) -> "Dataset":
    """Open the dataset in directory `path`. Raises InputError where there is none, or one of another schema."""
    return Dataset(path)


class Dataset:
    """Rows are numbered 0..samples-1 in shard order. Columns are read on demand, arrays one sample at a time
    (`cutout`) or in batches (`jaxz.data.stream.Stream`). `quarantined` (int64 [M]) are the rows that quarantine.json
    leaves out: they keep their numbers, no filter selects them, and where a whole shard is out their columns are null.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.manifest = Manifest.load(path)
        self.starts = np.cumsum([0] + [shard.samples for shard in self.manifest.shards])  # first row of each shard
        self.quarantine = Quarantine.load(path, self.manifest)
        self.quarantined = self.quarantine.rows(self.manifest)
        if len(self.quarantined):
            log.warning("%s: quarantine.json leaves out %d of %d samples", path, len(self.quarantined), len(self))

    def __len__(self) -> int:
        return self.manifest.samples

    def __repr__(self) -> str:
        arrays = ", ".join(f"{name} {list(array.shape)} {array.dtype}" for name, array in self.manifest.arrays.items())
        bands = "".join(f" {band.name}" for band in self.manifest.bands)
        return f"Dataset({str(self.path)!r}: {len(self)} samples; {arrays}; bands{bands})"

    def table(self, columns: Iterable[str] | None = None, where: str | None = None) -> pa.Table:
        """The index as an Arrow table: key and the scalar columns (or those named), for all rows or those that pass
        `where`. Raises InputError for an unknown column."""
        columns = ["key", *self.manifest.columns] if columns is None else list(columns)
        table = self._read(tuple(columns))
        return table if where is None else table.take(pa.array(self.select(where)))

    def column(self, name: str) -> np.ndarray:
        """One column as NumPy: [N], or [N, ...] for an array that lives in the index; missing floats are NaN, and whole
        numbers 0 in the rows of a shard that is quarantined as a whole."""
        values, spec = self._read((name,))[name], self.manifest.arrays.get(name)
        values = pa.chunked_array([chunk.flatten() for chunk in values.chunks]) if spec else values
        out = sum(shard.samples for shard in self.manifest.shards if self.quarantine.whole(shard.name))
        counted = not pa.types.is_string(values.type) and not pa.types.is_floating(values.type)
        if out and counted and values.null_count == out * (len(values) // len(self)):  # no other numbers are missing
            values = values.fill_null(pa.scalar(0).cast(values.type))
        return values.to_numpy().reshape(len(self), *(spec.shape if spec else ()))

    def select(self, where: str | None) -> np.ndarray:
        """int64 [M]: the rows that pass the filter and are not quarantined, in order."""
        if where is None:
            rows = np.arange(len(self))
        else:
            table = self._read(tuple(filters.names(where)))
            rows = np.flatnonzero(filters.evaluate(where, lambda name: table[name]))
        return rows[~np.isin(rows, self.quarantined)] if len(self.quarantined) else rows

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard number and row within the shard of global rows."""
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        return shard, rows - self.starts[shard]

    def cutout(self, row: int) -> dict:
        """One sample: its arrays, its scalars and its key, by global row number."""
        if not isinstance(row, int | np.integer) or not 0 <= row < len(self):
            raise InputError(f"row {row!r} is not a row number of the dataset, 0..{len(self) - 1}")
        shard, within = self.locate(np.array([row]))
        if self.quarantine.whole(self.manifest.shards[int(shard[0])].name):
            raise DataError(f"{self.shard_path(int(shard[0]))} is quarantined as a whole; restore the shard")
        columns = [name for name, spec in self.manifest.arrays.items() if spec.encoding == "index"]
        columns = ("key", *self.manifest.columns, *columns)
        scalars = self._index(int(shard[0]), columns).slice(int(within[0]), 1).to_pylist()[0]
        sample = {"key": scalars["key"], **{c: scalars[c] for c in self.manifest.columns}}
        for name, spec in self.manifest.arrays.items():
            if spec.encoding == "index":
                sample[name] = np.array(scalars[name], spec.dtype).reshape(spec.shape)
            else:
                sample[name] = self._payload(int(shard[0]), int(within[0]), name)
        return sample

    def _payload(self, shard: int, within: int, name: str) -> np.ndarray:
        """One stored array, checked against its checksum."""
        offset, size, crc = (int(place[within]) for place in self.places(shard, name))
        path, spec = self.shard_path(shard), self.manifest.arrays[name]
        try:
            shape = spec.shape_of(size)  # before so many bytes are read
        except ValueError as error:
            raise DataError(f"{path}: {name} at offset {offset}: {error}; rebuild the index") from None
        try:
            with open(path, "rb") as tar:
                tar.seek(offset)
                payload = tar.read(size)
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); restore the shard") from None
        if zlib.crc32(payload) != crc:
            raise DataError(f"{path}: {name} at offset {offset} fails its checksum; restore the shard")
        return np.frombuffer(payload, spec.dtype).reshape(shape)

    def shard_path(self, shard: int) -> Path:
        return self.path / "shards" / f"{self.manifest.shards[shard].name}.tar"

    def places(self, shard: int, array: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Offset, size and crc32 of every payload of `array` in a shard's tar."""
        index = self._index(shard, tuple(f"{array}_{suffix}" for suffix in PLACES))
        places = tuple(column.to_numpy() for column in index.columns)
        if any(column.dtype.kind not in "iu" for column in places) or (places[0] < 0).any():
            path = self.path / "index" / f"{self.manifest.shards[shard].name}.parquet"
            raise DataError(f"{path}: {array}_offset, _size and _crc32 must be whole numbers; rebuild the index")
        return places

    def fingerprint(self, columns: Iterable[str] = ()) -> dict:
        """What a stream's state holds to notice a changed dataset: a digest of the rows (shard names, counts and
        checksums, and which are quarantined), how many are quarantined, and a digest of each of the given columns."""
        rows = repr([(s.name, s.samples, s.sha256) for s in self.manifest.shards]).encode()
        rows += self.quarantined.astype("<i8").tobytes()
        digests = {}
        for name in sorted(set(columns)):
            values = self._read((name,))[name]
            parts = (values.slice(start, stop - start) for start, stop in itertools.pairwise(self.starts.tolist()))
            digests[name] = short_digest(*(column_digest(part) for part in parts))
        return {"rows": short_digest(rows), "quarantined": len(self.quarantined), "columns": digests}

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def _read(self, columns: tuple[str, ...]) -> pa.Table:
        arrays = {name for name, array in self.manifest.arrays.items() if array.encoding == "index"}
        known = {"key", *self.manifest.columns, *arrays}
        for name in columns:
            if name not in known:
                raise InputError(f"column {name!r} is not in {str(self.path)!r}.{suggest(name, known)}")
        return pa.concat_tables([self._index(shard, columns) for shard in range(len(self.manifest.shards))])

    def _index(self, shard: int, columns: tuple[str, ...]) -> pa.Table:
        """Columns of one shard's index, null where the shard is quarantined as a whole. Raises DataError where they
        cannot be read whole, or are of another tar."""
        entry = self.manifest.shards[shard]
        types = [self._type(name) for name in columns]
        if self.quarantine.whole(entry.name):
            return pa.table([absent(entry.samples, kind) for kind in types], list(columns))
        path = self.path / "index" / f"{entry.name}.parquet"
        try:
            table = persist(lambda: read_index(path, columns))
        except UNREADABLE as error:
            raise DataError(f"{path} cannot be read ({error}); {entry.samples} samples lost; {REBUILD}") from None
        if missing := [name for name in columns if table.column_names.count(name) != 1]:
            raise DataError(f"{path} has no column {missing[0]!r}; {REBUILD}")
        table = table.select(columns)
        if table.num_rows != entry.samples:
            raise DataError(f"{path} has {table.num_rows} rows, dataset.json says {entry.samples}; {REBUILD}")
        for name, kind, found in zip(columns, types, table.schema.types, strict=True):
            if found != kind:
                raise DataError(f"{path}: column {name!r} holds {found}, dataset.json says {kind}; {REBUILD}")
        if shard_of(table).get("sha256", entry.sha256) != entry.sha256:
            raise DataError(f"{path} was written for another tar than dataset.json's; {REBUILD}")
        return table

    def _type(self, name: str) -> pa.DataType:
        """The Arrow type of a column of the index."""
        arrays, columns = self.manifest.arrays, self.manifest.columns
        if name in columns or name == "key":
            return column_type(columns[name]) if name in columns else pa.string()
        return list_type(arrays[name]) if name in arrays else PLACES[name.rpartition("_")[2]]


def absent(samples: int, kind: pa.DataType) -> pa.Array:
    """A column without values; lists keep their length."""
    if not pa.types.is_fixed_size_list(kind):
        return pa.nulls(samples, kind)
    return pa.FixedSizeListArray.from_arrays(pa.nulls(samples * kind.list_size, kind.value_type), kind.list_size)


def short_digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def column_digest(values: pa.ChunkedArray) -> bytes:
    """sha256 of a shard's column: its type, which values are missing, and the others."""
    digest = hashlib.sha256(str(values.type).encode())
    array = values.combine_chunks()
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    digest.update(np.packbits(array.is_null().to_numpy(zero_copy_only=False)))
    if pa.types.is_fixed_size_list(array.type):
        array = array.flatten()
    if pa.types.is_string(array.type):
        array = array.fill_null("")
        _, offsets, text = array.buffers()
        ends = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
        digest.update(ends - ends[0])
        digest.update(memoryview(text)[ends[0] : ends[-1]] if text else b"")
    else:
        digest.update(np.ascontiguousarray(array.fill_null(0).to_numpy(zero_copy_only=False)))
    return digest.digest()
