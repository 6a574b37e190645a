"""A dataset as its readers see it: the manifest, the index columns, single samples."""

import hashlib
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxz.data import where as filters
from jaxz.data.manifest import Manifest
from jaxz.errors import InputError, suggest

INDEX_THREADS = 4
T = TypeVar("T")


class DataError(InputError):
    """Stored data is damaged or gone: names the file, the offset and what is lost."""


class Scan(NamedTuple):
    """rows: [M], those that pass; columns: {name: [N, ...]} of all rows; digests: of every column that was read."""

    rows: np.ndarray
    columns: dict[str, np.ndarray]
    digests: dict[str, str]


def open_dataset(path: Path | str) -> "Dataset":
    """Open the dataset in directory `path`. Raises InputError where there is none, or one of another schema."""
    return Dataset(path)


class Dataset:
    """Rows are numbered 0..samples-1 in shard order. Columns are read on demand, arrays one sample at a time
    (`cutout`) or in batches (`jaxz.data.stream.Stream`)."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.manifest = Manifest.load(path)
        self.starts = np.cumsum([0] + [shard.samples for shard in self.manifest.shards])  # first row of each shard

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
        self._check_columns((*columns, *(filters.names(where) if where else ())))

        def part(shard: int) -> pa.Table:
            table = self._index(shard, columns)
            if where is None:
                return table
            return table.filter(pa.array(passing(self._index(shard, filters.names(where)), where)))

        return pa.concat_tables(self._each_shard(part))

    def column(self, name: str) -> np.ndarray:
        """One column as NumPy: [N], or [N, ...] for an array that lives in the index; missing floats are NaN."""
        return self.scan(columns=(name,)).columns[name]

    def select(self, where: str | None) -> np.ndarray:
        """int64 [M]: the rows that pass the filter, in order."""
        return self.scan(where).rows.astype(np.int64)

    def scan(self, where: str | None = None, columns: Iterable[str] = ()) -> "Scan":
        """The rows that pass a filter, and columns, in one pass over the index. Raises InputError for an unknown
        column."""
        columns = tuple(columns)
        read = tuple(dict.fromkeys((*columns, *(filters.names(where) if where else ()))))
        self._check_columns(read)
        kind = np.uint32 if len(self) < 2**32 else np.int64  # 40 million rows: 160 MB
        if not read:
            return Scan(np.arange(len(self), dtype=kind), {}, {})

        def part(shard: int) -> tuple:
            table = self._index(shard, read)
            rows = np.arange(len(table), dtype=kind)
            if where is not None:
                rows = np.flatnonzero(passing(table, where)).astype(kind)
            rows += kind(self.starts[shard])
            return (
                rows,
                *(self._values(name, table[name]) for name in columns),
                *(column_digest(table[name]) for name in read),
            )

        rows, *parts = zip(*self._each_shard(part), strict=True)
        values = {name: np.concatenate(arrays) for name, arrays in zip(columns, parts, strict=False)}
        digests = {name: short_digest(*d) for name, d in zip(read, parts[len(columns) :], strict=True)}
        return Scan(np.concatenate(rows), values, digests)

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard number and row within the shard of global rows."""
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        return shard, rows - self.starts[shard]

    def cutout(self, row: int) -> dict:
        """One sample: its arrays, its scalars and its key, by global row number."""
        if not isinstance(row, int | np.integer) or not 0 <= row < len(self):
            raise InputError(f"row {row!r} is not a row number of the dataset, 0..{len(self) - 1}")
        shard, within = self.locate(np.array([row]))
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

    def places(self, shard: int, array: str, suffixes: tuple[str, ...] = ("offset", "size", "crc32")) -> list:
        """Offset, size and crc32 of every payload of `array` in a shard's tar."""
        index = self._index(shard, tuple(f"{array}_{suffix}" for suffix in suffixes))
        places = [column.to_numpy() for column in index.columns]
        if any(column.dtype.kind not in "iu" for column in places) or (places[0] < 0).any():
            path = self.path / "index" / f"{self.manifest.shards[shard].name}.parquet"
            raise DataError(f"{path}: {array}_offset, _size and _crc32 must be whole numbers; rebuild the index")
        return places

    def fingerprint(self, digests: dict[str, str] | None = None) -> dict:
        """What a stream's state holds to notice a changed dataset: a digest of the rows (shard names, counts and
        checksums), and those of columns that a scan gave."""
        rows = repr([(s.name, s.samples, s.sha256) for s in self.manifest.shards]).encode()
        return {"rows": short_digest(rows), "columns": dict(sorted((digests or {}).items()))}

    def _each_shard(self, part: Callable[[int], T]) -> list[T]:
        """part(shard) of every shard, in order; threads hide what the file system makes one wait for."""
        with ThreadPoolExecutor(INDEX_THREADS) as pool:
            try:
                return list(pool.map(part, range(len(self.manifest.shards))))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _values(self, name: str, column: pa.ChunkedArray) -> np.ndarray:
        if name not in self.manifest.arrays:
            return column.to_numpy()
        flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(-1, *self.manifest.arrays[name].shape)

    def _check_columns(self, columns: Iterable[str]) -> None:
        arrays = {name for name, array in self.manifest.arrays.items() if array.encoding == "index"}
        known = {"key", *self.manifest.columns, *arrays}
        for name in columns:
            if name not in known:
                raise InputError(f"column {name!r} is not in {str(self.path)!r}.{suggest(name, known)}")

    def _index(self, shard: int, columns: tuple[str, ...]) -> pa.Table:
        """Columns of one shard's index. Raises DataError where they cannot be read whole."""
        entry = self.manifest.shards[shard]
        path = self.path / "index" / f"{entry.name}.parquet"
        try:
            with pq.ParquetFile(path) as file:  # a third of pq.read_table's time
                table = file.read(list(columns), use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"{path} cannot be read ({error}); {entry.samples} samples lost; restore it or convert again"
            ) from None
        if missing := [name for name in columns if name not in table.column_names]:
            raise DataError(f"{path} has no column {missing[0]!r}; restore it or convert again")
        if table.num_rows != entry.samples:
            raise DataError(
                f"{path} has {table.num_rows} rows, dataset.json says {entry.samples}; restore it or convert again"
            )
        return table.select(list(columns))


def passing(table: pa.Table, where: str) -> np.ndarray:
    """bool [N]: the rows of a table that pass a filter."""
    return filters.evaluate(where, lambda name: table[name])


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
