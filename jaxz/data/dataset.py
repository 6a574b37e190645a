"""A dataset as its readers see it: the manifest, the index columns, single samples."""

import dataclasses
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np
import pyarrow as pa

from jaxz.data import compact
from jaxz.data import where as filters
from jaxz.data.columns import Scan, absent, as_names, column_digest, joined, numpy_values, short_digest
from jaxz.data.index import UNREADABLE, column_type, list_type, place_types, read_index, shard_of
from jaxz.data.layers import check_fits, shard_list
from jaxz.data.manifest import Array
from jaxz.data.overlays import Overlay
from jaxz.data.staging import Remote, open_store
from jaxz.errors import DataError, InputError, suggest
from jaxz.files import persist

if TYPE_CHECKING:  # half a second to import, for notebooks only
    from astropy.table import Table
    from astropy.wcs import WCS

log = logging.getLogger("jaxz")

INDEX_THREADS = 4
REBUILD = "restore it, or rebuild it with `python -m data_tools.verify --repair`"
T = TypeVar("T")


def open_dataset(
    path: Path | str,
    cache: Path | str = "",
    cache_gib: float = 0,
    overlays: Sequence[str] = (),
    layers: Sequence[str] = (),
) -> "Dataset":
    """Open the dataset in directory `path`, or below a URL: s3://, https://, pipe:COMMAND {} and others. A remote one's
    files are kept in directory `cache` ("": $JAXZ_CACHE, or ~/.cache/jaxz), of at most `cache_gib` GiB (0: no limit).
    overlays: names of overlays/NAME.parquet whose columns join the index's, or replace them; later ones win. layers:
    names of layers/NAME whose arrays join the dataset's own.

    Raises InputError where there is none, or one of another schema, or a layer is of other rows.
    """
    return Dataset(path, cache, cache_gib, overlays, layers)


class Dataset:
    """Rows are numbered 0..samples-1 in shard order. Columns are read on demand, arrays one sample at a time
    (`cutout`) or in batches (`jaxz.data.stream.Stream`). `quarantined` (int64 [M]) are the rows that quarantine.json
    or that of a layer leaves out: they keep their numbers, no filter selects them, and where a whole shard is out their
    columns are null. `arrays` are its own and those of its layers; each layer is itself a Dataset without columns.
    """

    def __init__(
        self,
        path: Path | str,
        cache: Path | str = "",
        cache_gib: float = 0,
        overlays: Sequence[str] = (),
        layers: Sequence[str] = (),
    ):
        overlays, layers = as_names(overlays), as_names(layers)
        self.store = open_store(path, cache, cache_gib)
        self.path = self.store.path  # a Path, or the text of a URL
        self.manifest = self.store.manifest()
        self.starts = np.cumsum([0] + [shard.samples for shard in self.manifest.shards])  # first row of each shard
        self.quarantine = self.store.quarantine(self.manifest)
        self.quarantined = self.quarantine.rows(self.manifest)
        self.stored_columns = self.manifest.columns
        self.overlays = [Overlay(self.store.overlay_path(name), self.manifest) for name in overlays]
        for overlay in self.overlays:
            self.manifest = dataclasses.replace(self.manifest, columns=self.manifest.columns | overlay.columns)
        self.arrays = dict(self.manifest.arrays)
        self.layers: dict[str, Dataset] = {}
        self.owners: dict[str, Dataset] = {}  # of the arrays that layers hold
        self.placed: tuple[int, pa.Table] | None = None  # of the shard that a WCS was last made for
        for name in layers:
            layer = Dataset(self.store.layer_path(name), cache, cache_gib)
            check_fits(self, layer)
            self.layers[name] = layer
            self.arrays |= layer.arrays
            self.owners |= dict.fromkeys(layer.arrays, layer)
            self.quarantined = np.union1d(self.quarantined, layer.quarantined)
        if len(self.quarantined):
            log.warning("%s: quarantine.json leaves out %d of %d samples", path, len(self.quarantined), len(self))

    @property
    def remote(self) -> bool:
        """Whether shards are fetched before they can be read."""
        return isinstance(self.store, Remote)

    @property
    def _cure(self) -> str:
        """What to do about an index that is damaged."""
        return f"delete {self.store.folder}, which is fetched again" if isinstance(self.store, Remote) else REBUILD

    def __len__(self) -> int:
        return self.manifest.samples

    def __repr__(self) -> str:
        arrays = ", ".join(f"{name} {list(array.shape)} {array.dtype}" for name, array in self.arrays.items())
        bands = "".join(f" {band.name}" for band in self.manifest.bands)
        return f"Dataset({str(self.path)!r}: {len(self)} samples; {arrays}; bands{bands})"

    def table(self, where: str | None = None, columns: Iterable[str] | None = None) -> "Table":
        """The index as an Astropy table with units and descriptions: key and the scalar columns (or those named, which
        alone are read; of arrays that live in the index too), for all rows or those that pass `where`. Missing real
        numbers are NaN; what else is missing is masked. Raises InputError for an unknown column."""
        from jaxz.data.astropy_views import astropy_table

        return astropy_table(self.arrow(where, columns), self.manifest.columns, self.arrays)

    def arrow(self, where: str | None = None, columns: Iterable[str] | None = None) -> pa.Table:
        """What `table` gives, as an Arrow table: quicker, and as it is stored."""
        columns = ["key", *self.manifest.columns] if columns is None else list(columns)
        self._check_columns(columns, where)

        def part(shard: int) -> pa.Table:
            table = self._index(shard, columns)
            if where is None:
                return table
            return table.filter(pa.array(self._chosen(shard, self._index(shard, filters.names(where)), where)))

        return pa.concat_tables(self._each_shard(part))

    def column(self, name: str) -> np.ndarray:
        """One column as NumPy: [N], or [N, ...] for an array that lives in the index. Missing text is None; missing
        numbers and booleans are NaN, or, where only quarantined rows lack whole ones, 0. Raises InputError for an
        unknown column."""
        values = self.scan(columns=(name,)).columns[name]
        return values if isinstance(values, np.ndarray) else values.to_numpy()

    def select(self, where: str | None) -> np.ndarray:
        """int64 [M]: the rows that pass the filter and are not quarantined, in order."""
        return self.scan(where).rows.astype(np.int64)

    def scan(self, where: str | None = None, columns: Iterable[str] = (), digested: Iterable[str] = ()) -> "Scan":
        """The rows that pass a filter and are not quarantined, and columns, in one pass over the index; of `digested`
        the digests alone. Raises InputError for an unknown column."""
        columns = tuple(columns)
        read = tuple(dict.fromkeys((*columns, *(filters.names(where) if where else ()), *digested)))
        self._check_columns((*columns, *digested), where)
        kind = np.uint32 if len(self) < 2**32 else np.int64  # 40 million rows: 160 MB

        def part(shard: int) -> tuple:
            table = self._index(shard, read)
            rows = (np.flatnonzero(self._chosen(shard, table, where)) + self.starts[shard]).astype(kind)
            return (
                rows,
                *(numpy_values(table[name], self._shape(name)) for name in columns),
                *(column_digest(table[name]) for name in read),
            )

        if not read and where is None and not len(self.quarantined):
            return Scan(np.arange(len(self), dtype=kind), {}, {}, {})
        rows, *parts = zip(*self._each_shard(part), strict=True)
        found = Scan(np.concatenate(rows), {}, {}, {})
        for name, pairs in zip(columns, parts, strict=False):
            values, missing = map(joined, zip(*pairs, strict=True))
            if isinstance(values, np.ndarray) and missing.any():
                if missing[found.rows].any():
                    values = np.where(missing, np.nan, values)
                else:
                    found.filled[name] = missing
            found.columns[name] = values
        found.digests.update({name: short_digest(*d) for name, d in zip(read, parts[len(columns) :], strict=True)})
        return found

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard number and row within the shard of global rows."""
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        return shard, rows - self.starts[shard]

    def cutout(self, row: int, unit: str = "") -> dict:
        """One sample: its arrays, its scalars and its key, by global row number. Compact arrays are decoded: float32,
        whatever they were measured in. unit "uJy": images in microjansky per pixel, float32, not dereddened (pixels
        that are not observed stay 0, as their masks say); "": the stored numbers.

        "wcs" is the astropy.wcs.WCS of the images' pixels where all bands have one scale and the index has x, y, ra and
        dec of enough neighbours:
        see jaxz.data.astropy_views.cutout_wcs. Raises InputError for a row or a unit that there is not."""
        if not isinstance(row, int | np.integer) or not 0 <= row < len(self):
            raise InputError(f"row {row!r} is not a row number of the dataset, 0..{len(self) - 1}")
        if unit not in ("", "uJy"):
            raise InputError(f"unit: {unit!r} must be 'uJy', or '' for the stored numbers")
        [shard], [within] = self.locate(np.array([row]))
        self._check_there(int(shard))
        inside = [name for name, spec in self.arrays.items() if not spec.in_tar]
        scalars = self._index(int(shard), ("key", *self.manifest.columns, *inside)).slice(int(within), 1).to_pylist()[0]
        sample = {name: scalars[name] for name in ("key", *self.manifest.columns)}
        for name, spec in self.arrays.items():
            if name in inside:
                sample[name] = np.array(scalars[name], spec.dtype).reshape(spec.shape)
            else:
                [sample[name]] = self.owner(name).payloads(int(shard), name, slice(int(within), int(within) + 1))
            if unit and spec.kind == "image":
                from jaxz.data.astropy_views import in_microjansky

                sample[name] = in_microjansky(sample[name], self.owner(name).manifest.bands)
        if wcs := self._wcs(int(shard), int(within)):
            sample.setdefault("wcs", wcs)
        return sample

    def _wcs(self, shard: int, within: int) -> "WCS | None":
        """Of the images of one sample, where its neighbours in the shard tell."""
        columns = self.manifest.columns.keys()
        images = [array for array in self.manifest.arrays.values() if array.kind == "image"]
        shapes = {(image.full_shape[-2], image.full_shape[-1]) for image in images}
        scales = {band.pixel_scale_arcsec for band in self.manifest.bands}
        one_grid = len(shapes) == len(scales) == 1 and not any(image.variable for image in images)
        if not one_grid or not {"x", "y", "ra", "dec"} <= columns:
            return None
        from jaxz.data.astropy_views import cutout_wcs

        if self.placed is None or self.placed[0] != shard:
            self.placed = shard, self._index(shard, ["x", "y", "ra", "dec", *({"field"} & columns)])
        [shape], [scale] = shapes, scales
        return cutout_wcs(self.placed[1], within, shape, scale)

    def owner(self, array: str) -> "Dataset":
        """Whose tars and index hold an array: this dataset's own, or those of a layer."""
        return self.owners.get(array, self)

    def shard_table(self, shard: int, columns: Iterable[str]) -> pa.Table:
        """The named columns of the index of one shard."""
        return self._index(shard, tuple(columns))

    def payloads(self, shard: int, name: str, rows: slice = slice(None)) -> Iterator[np.ndarray]:
        """One stored array of the rows of a shard, in order, decoded (compact ones to float32). Raises DataError for
        one that cannot be read whole or fails its checksum."""
        path, places = self.shard_path(shard), (place[rows].tolist() for place in self.places(shard, name))
        try:
            with open(self.open_shard(shard), "rb") as tar:
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
        return self.store.shard_path(self.manifest.shards[shard])

    def open_shard(self, shard: int) -> int:
        """A file descriptor of the tar, fetched before where the dataset is remote. Raises OSError, or DataError."""
        return self.store.open(self.manifest.shards[shard])

    def places(
        self, shard: int, array: str, suffixes: tuple[str, ...] = ("offset", "size", "crc32")
    ) -> list[np.ndarray]:
        """Offset, size and crc32 of every payload of `array` in a shard's tar. Raises DataError where the index
        does not say them, as of a shard that is quarantined as a whole."""
        self._check_there(shard)
        index = self._stored(shard, tuple(f"{array}_{suffix}" for suffix in suffixes))
        places = [column.to_numpy() for column in index.columns]
        if any(column.dtype.kind not in "iu" for column in places) or (places[0] < 0).any():
            path = self.store.index_path(self.manifest.shards[shard])
            raise DataError(f"{path}: {array}_offset, _size and _crc32 must be whole numbers; {self._cure}")
        return places

    def exceptions(self, shard: int, array: str) -> np.ndarray:
        """int32 [N]: how many exceptions every payload of a compact array has. Raises DataError as `places` does."""
        self._check_there(shard)
        return self._stored(shard, (f"{array}_exceptions",)).column(0).to_numpy()

    def fingerprint(self, digests: dict[str, str] | None = None) -> dict:
        """What a stream's state holds to notice a changed dataset: a digest of the rows (shard names, counts and
        checksums, and which are quarantined), how many are quarantined, and those of columns that a scan gave."""
        rows = shard_list(self.manifest.shards) + self.quarantined.astype("<i8").tobytes()
        return {
            "rows": short_digest(rows),
            "quarantined": len(self.quarantined),
            "columns": dict(sorted((digests or {}).items())),
        }

    def _each_shard(self, part: Callable[[int], T]) -> list[T]:
        """part(shard) of every shard, in order; threads hide what the file system makes one wait for."""
        with ThreadPoolExecutor(INDEX_THREADS) as pool:
            try:
                return list(pool.map(part, range(len(self.manifest.shards))))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _chosen(self, shard: int, table: pa.Table, where: str | None) -> np.ndarray:
        """[N] bool: the rows of a shard that pass a filter and are not quarantined."""
        entry = self.manifest.shards[shard]
        chosen = np.ones(entry.samples, bool)
        if where is not None:
            chosen = filters.evaluate(where, lambda name: table[name]).copy()
        for part in (self, *self.layers.values()):
            if damage := part.quarantine.shards.get(entry.name):
                chosen[slice(None) if damage.rows is None else list(damage.rows)] = False
        return chosen

    def _check_there(self, shard: int) -> None:
        """Raises DataError for a shard that is quarantined as a whole: its index is not read."""
        if self.quarantine.whole(self.manifest.shards[shard].name):
            raise DataError(f"{self.shard_path(shard)} is quarantined as a whole; restore the shard")

    def _shape(self, column: str) -> tuple[int, ...]:
        return self.arrays[column].full_shape if column in self.arrays else ()

    def _check_columns(self, columns: Iterable[str], where: str | None) -> None:
        arrays = {name for name, array in self.arrays.items() if not array.in_tar}
        known = {"key", *self.manifest.columns, *arrays}
        for field, names in (("", columns), ("where: ", filters.names(where) if where else ())):
            for name in names:
                if name not in known:
                    raise InputError(f"{field}column {name!r} is not in {str(self.path)!r}.{suggest(name, known)}")

    def _index(self, shard: int, columns: Sequence[str]) -> pa.Table:
        """Columns of one shard's index, as the overlays and layers have them."""
        if lent := [name for name in columns if name in self.owners]:
            others = [name for name in columns if name not in lent]
            rest = self._index(shard, others) if others else {}
            found = {name: self.owners[name]._stored(shard, (name,))[name] for name in lent}
            return pa.table({name: found[name] if name in lent else rest[name] for name in columns})
        laid = [name for name in columns if any(name in overlay.columns for overlay in self.overlays)]
        if not laid:
            return self._stored(shard, columns)
        known = [name for name in columns if name not in laid or name in self.stored_columns]
        table = self._stored(shard, list(dict.fromkeys([*known, "object_id"])))
        found = {name: table[name] for name in known}
        for overlay in self.overlays:
            if names := overlay.columns.keys() & set(laid):
                at = overlay.match(table["object_id"])
                found |= {name: overlay.lay(name, at, found.get(name)) for name in names}
        return pa.table({name: found[name] for name in columns})

    def _stored(self, shard: int, columns: Sequence[str]) -> pa.Table:
        """Columns of one shard's index, null where the shard is quarantined as a whole. Raises DataError where they
        cannot be read whole, or are of another tar."""
        entry = self.manifest.shards[shard]
        types = [self._type(name) for name in columns]
        if self.quarantine.whole(entry.name):
            return pa.table([absent(entry.samples, kind) for kind in types], list(columns))
        path = self.store.index_path(entry)
        try:
            table = persist(lambda: read_index(path, columns))
        except UNREADABLE as error:
            raise DataError(f"{path} cannot be read ({error}); {entry.samples} samples lost; {self._cure}") from None
        if missing := [name for name in columns if table.column_names.count(name) != 1]:
            raise DataError(f"{path} has no column {missing[0]!r}; {self._cure}")
        table = table.select(columns)
        if table.num_rows != entry.samples:
            raise DataError(f"{path} has {table.num_rows} rows, dataset.json says {entry.samples}; {self._cure}")
        for name, kind, found in zip(columns, types, table.schema.types, strict=True):
            if found != kind:
                raise DataError(f"{path}: column {name!r} holds {found}, dataset.json says {kind}; {self._cure}")
        if shard_of(table).get("sha256", entry.sha256) != entry.sha256:
            raise DataError(f"{path} was written for another tar than dataset.json's; {self._cure}")
        return table

    def _type(self, name: str) -> pa.DataType:
        """The Arrow type of a column of the index."""
        arrays, columns = self.manifest.arrays, self.stored_columns
        if name in columns or name == "key":
            return column_type(columns[name]) if name in columns else pa.string()
        if name in arrays:
            return list_type(arrays[name])
        array, _, place = name.rpartition("_")
        return place_types(arrays[array])[place]
