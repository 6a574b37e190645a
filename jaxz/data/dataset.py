"""A dataset as its readers see it: the manifest, the index columns, single samples."""

import functools
import hashlib
import itertools
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxz.data import compact
from jaxz.data import where as filters
from jaxz.data.manifest import Array, Manifest
from jaxz.errors import InputError, suggest


class DataError(InputError):
    """Stored data is damaged or gone: names the file, the offset and what is lost."""


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
        table = self._read(tuple(columns))
        return table if where is None else table.take(pa.array(self.select(where)))

    def column(self, name: str) -> np.ndarray:
        """One column as NumPy: [N], or [N, ...] for an array that lives in the index; missing floats are NaN."""
        values = self._read((name,))[name]
        if name in self.manifest.arrays:
            flat = values.combine_chunks().flatten().to_numpy(zero_copy_only=False)
            return flat.reshape(len(self), *self.manifest.arrays[name].shape)
        return values.to_numpy()

    def select(self, where: str | None) -> np.ndarray:
        """int64 [M]: the rows that pass the filter, in order."""
        if where is None:
            return np.arange(len(self))
        table = self._read(tuple(filters.names(where)))
        return np.flatnonzero(filters.evaluate(where, lambda name: table[name]))

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard number and row within the shard of global rows."""
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        return shard, rows - self.starts[shard]

    def cutout(self, row: int) -> dict:
        """One sample: its arrays, its scalars and its key, by global row number. Compact arrays are decoded: float32,
        whatever they were measured in."""
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
                [sample[name]] = self.payloads(int(shard[0]), name, slice(int(within[0]), int(within[0]) + 1))
        return sample

    def shard_table(self, shard: int, columns: Iterable[str]) -> pa.Table:
        """The named columns of the index of one shard."""
        return self._index(shard, tuple(columns))

    def payloads(self, shard: int, name: str, rows: slice = slice(None)) -> Iterator[np.ndarray]:
        """One stored array of the rows of a shard, in order, decoded (compact ones to float32). Raises DataError for
        one that cannot be read whole or fails its checksum."""
        path, places = self.shard_path(shard), (place[rows].tolist() for place in self.places(shard, name))
        try:
            with open(path, "rb") as tar:
                for offset, size, crc in zip(*places, strict=True):
                    try:
                        yield self._payload(tar, self.manifest.arrays[name], offset, size, crc)
                    except ValueError as error:
                        raise DataError(f"{path}: {name} at offset {offset} {error}") from None
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); restore the shard") from None

    def _payload(self, tar: BinaryIO, spec: Array, offset: int, size: int, crc: int) -> np.ndarray:
        """Raises ValueError, the end of a sentence."""
        try:
            shape = spec.shape_of(size)  # before so many bytes are read
        except ValueError as error:
            raise ValueError(f"has {error}; rebuild the index") from None
        tar.seek(offset)
        payload = tar.read(size)
        if zlib.crc32(payload) != crc:
            raise ValueError("fails its checksum; restore the shard")
        if not spec.compact:
            return np.frombuffer(payload, spec.dtype).reshape(shape)
        try:
            return compact.decode(payload, shape, spec.compact.steps)
        except ValueError as error:
            raise ValueError(f"is damaged: {error}; restore the shard") from None

    def shard_path(self, shard: int) -> Path:
        return self.path / "shards" / f"{self.manifest.shards[shard].name}.tar"

    def places(self, shard: int, array: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Offset, size and crc32 of every payload of `array` in a shard's tar."""
        index = self._index(shard, tuple(f"{array}_{suffix}" for suffix in ("offset", "size", "crc32")))
        places = tuple(column.to_numpy() for column in index.columns)
        if any(column.dtype.kind not in "iu" for column in places) or (places[0] < 0).any():
            path = self.path / "index" / f"{self.manifest.shards[shard].name}.parquet"
            raise DataError(f"{path}: {array}_offset, _size and _crc32 must be whole numbers; rebuild the index")
        return places

    def exceptions(self, shard: int, array: str) -> np.ndarray:
        """int32 [N]: how many exceptions every payload of a compact array has."""
        return self._index(shard, (f"{array}_exceptions",)).column(0).to_numpy()

    def fingerprint(self, columns: Iterable[str] = ()) -> dict:
        """What a stream's state holds to notice a changed dataset: a digest of the rows (shard names, counts and
        checksums) and one of each of the given columns."""
        rows = repr([(s.name, s.samples, s.sha256) for s in self.manifest.shards]).encode()
        digests = {}
        for name in sorted(set(columns)):
            values = self._read((name,))[name]
            parts = (values.slice(start, stop - start) for start, stop in itertools.pairwise(self.starts.tolist()))
            digests[name] = short_digest(*(column_digest(part) for part in parts))
        return {"rows": short_digest(rows), "columns": digests}

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def _read(self, columns: tuple[str, ...]) -> pa.Table:
        arrays = {name for name, array in self.manifest.arrays.items() if array.encoding == "index"}
        known = {"key", *self.manifest.columns, *arrays}
        for name in columns:
            if name not in known:
                raise InputError(f"column {name!r} is not in {str(self.path)!r}.{suggest(name, known)}")
        return pa.concat_tables([self._index(shard, columns) for shard in range(len(self.manifest.shards))])

    def _index(self, shard: int, columns: tuple[str, ...]) -> pa.Table:
        """Columns of one shard's index. Raises DataError where they cannot be read whole."""
        entry = self.manifest.shards[shard]
        path = self.path / "index" / f"{entry.name}.parquet"
        try:
            table = pq.read_table(path, columns=list(columns))
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
        return table


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
