"""Reads samples by row number: `preadv` straight from the tars into page-aligned batch buffers."""

import collections
import contextlib
import errno
import itertools
import math
import mmap
import os
import threading
import time
import weakref
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxz.data import compact
from jaxz.data.dataset import DataError, Dataset
from jaxz.data.manifest import Array
from jaxz.data.staging import Ahead
from jaxz.data.tars import OPEN_SHARDS, Shard, raise_file_limit, read_whole
from jaxz.errors import InputError
from jaxz.files import persist

POOLS = 16  # sizes of batches for which memory is kept
LOST_FOR = 60.0  # seconds for which a shard that cannot be opened is not tried again: each sample would wait for it
MOST_JOINED = 512  # payloads read with one call, with gaps between them: the system takes 1,024 parts


class Buffers:
    """Page-aligned arrays whose memory is taken again once nothing refers to it.

    Aligned to a page because the kernel's copy is 3.3 times slower to NumPy's own offset of 16 bytes on Zen 3.
    """

    def __init__(self):
        self.free: collections.OrderedDict[tuple[int, int], collections.deque] = collections.OrderedDict()

    def take(self, shape: tuple[int, ...], dtype: str) -> tuple[np.ndarray, list[memoryview]]:
        """An array [B, ...] and the bytes of each of its B entries."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        pool = self.free.setdefault((nbytes, shape[0]), collections.deque())
        if len(self.free) > POOLS:
            with contextlib.suppress(KeyError):  # another thread was first
                self.free.popitem(last=False)
        try:
            memory, slots = pool.pop()
        except IndexError:
            memory = mmap.mmap(-1, max(1, nbytes))
            step = nbytes // max(1, shape[0])
            slots = [memoryview(memory)[n * step : (n + 1) * step] for n in range(shape[0])]
        base = np.frombuffer(memory, np.uint8)  # every view, a jax array's too, keeps this one alive
        weakref.finalize(base, pool.append, (memory, slots)).atexit = False
        return base[:nbytes].view(dtype).reshape(shape), slots


class Places:
    """Offset, size and crc32 of every payload of one array, read shard by shard where they are first wanted."""

    def __init__(self, name: str, spec: Array, starts: np.ndarray, crc: bool):
        self.name, self.spec, self.starts, count = name, spec, starts, int(starts[-1])
        self.known = np.zeros(len(starts) - 1, bool)
        self.offset = np.zeros(count, np.int64)  # pages that are never touched take no memory
        least, most = spec.stored_bounds
        self.size = np.zeros(count, np.int32) if least < most else None
        self.exceptions = np.zeros(count if spec.compact else 0, np.int32)
        self.crc = np.zeros(count if crc else 0, np.uint32)
        self.with_crc = crc

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        """Bytes of the payloads of rows whose shards are known."""
        return np.full(len(rows), self.spec.nbytes) if self.size is None else self.size[rows]

    def load(self, n: int, dataset: Dataset, shard: int) -> None:
        """Those of shard number n of all, which is `shard` of a dataset. Raises DataError where a payload has a size
        that the array's shape does not have."""
        here = slice(*self.starts[n : n + 2])
        suffixes = ("offset", "size", "crc32") if self.with_crc else ("offset", "size")
        offset, size, *crc = dataset.places(shard, self.name, suffixes)
        least, most = self.spec.stored_bounds
        wrong = (size < least) | (size > most)
        if wrong.any():
            first = int(np.argmax(wrong))
            path = dataset.shard_path(shard)
            raise DataError(
                f"{path}: {self.name} at offset {offset[first]} has {size[first]} bytes, its shape takes "
                f"{least if least == most else f'{least} to {most}'}; rebuild the index"
            )
        self.offset[here] = offset
        if self.size is not None:
            self.size[here] = size
        if self.with_crc:
            [self.crc[here]] = crc
        if self.spec.compact:
            self.exceptions[here] = dataset.exceptions(shard, self.name)
        self.known[n] = True


class Reader:
    """Reads arrays of rows, from any number of threads. The rows and the shards of several datasets, whose arrays are
    alike, are numbered through. Where layers hold some of the arrays, each shard has a tar of the dataset and one of
    each layer: `tars`, numbered through too, first those of one owner for all shards, then those of the next.

    check: "size" (every payload has the size its index says) or "crc" (and its checksum). coalesce: payloads of a shard
    that lie at most so many bytes apart are read in one go; the default joins the arrays of one sample, network file
    systems want a megabyte.
    """

    def __init__(self, datasets: Sequence[Dataset], arrays: tuple[str, ...], check: str = "size", coalesce: int = 4096):
        self.datasets, self.check, self.coalesce = datasets, check, coalesce
        self.numbered = [(dataset, shard) for dataset in datasets for shard in range(len(dataset.manifest.shards))]
        self.starts = np.cumsum([0] + [dataset.manifest.shards[shard].samples for dataset, shard in self.numbered])
        specs = {name: datasets[0].arrays[name] for name in arrays}
        self.stored = {name: spec for name, spec in specs.items() if spec.in_tar}
        inside = [name for name, spec in specs.items() if not spec.in_tar]
        owners = {name: tuple(dataset.owner(name) for dataset in datasets) for name in self.stored}
        each = list(dict.fromkeys(owners.values())) or [tuple(datasets)]
        self.tars = [(of[datasets.index(dataset)], shard) for of in each for dataset, shard in self.numbered]
        self.first_tar = {name: each.index(of) * len(self.numbered) for name, of in owners.items()}
        self.columns = {name: np.concatenate([dataset.column(name) for dataset in datasets]) for name in inside}
        self.places = {name: Places(name, spec, self.starts, check == "crc") for name, spec in self.stored.items()}
        self.specs, self.buffers = specs, Buffers()
        self.gap = memoryview(bytearray(max(1, coalesce)))  # where what lies between two payloads goes
        self.shards: collections.OrderedDict[int, Shard] = collections.OrderedDict()  # by tar
        self.lock = threading.Lock()
        self.lost: dict[int, tuple[float, str]] = {}  # tars that could not be opened: when, and why
        self.most = min(OPEN_SHARDS, raise_file_limit() // 2)
        self.background: dict[Dataset, Ahead] = {}
        self.closing: list[weakref.finalize] = []

    def ahead(self, shards: list[int]) -> None:
        """The shards that are read from now on, soonest first: these are fetched, or read into the system's memory, in
        the background. Others of remote datasets are closed, so that their files can make room."""
        tars = [tar for n in shards for tar in self._tars_of(n)]
        for dataset in dict.fromkeys(dataset for dataset, _ in self.tars):
            if dataset not in self.background:
                self.background[dataset] = background = Ahead(dataset.store)
                self.closing.append(weakref.finalize(self, background.close))
            numbers = [number for of, number in map(self.tars.__getitem__, tars) if of is dataset]
            self.background[dataset].want([dataset.manifest.shards[number] for number in numbers])
        with self.lock:
            others = self.shards.keys() - set(tars)
        for tar in others:
            self._close(tar)

    def release(self, n: int) -> None:
        """Close shard n of a remote dataset, so that its files can make room; those on a disk may stay open."""
        for tar in self._tars_of(n):
            self._close(tar)

    def _tars_of(self, n: int) -> range:
        return range(n, len(self.tars), len(self.numbered))

    def _close(self, tar: int) -> None:
        with self.lock:
            if self.tars[tar][0].remote:
                self.shards.pop(tar, None)

    def close(self) -> None:
        """Nothing more is read ahead, and no shard is held."""
        for close in self.closing:
            close()
        with self.lock:
            self.shards.clear()

    def first_shard(self, dataset: Dataset) -> int:
        """The number of a dataset's first shard."""
        return self.numbered.index((dataset, 0))

    def first_row(self, dataset: Dataset) -> int:
        """The number of a dataset's first row."""
        return sum(map(len, self.datasets[: self.datasets.index(dataset)]))

    def read(self, rows: np.ndarray, whole: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """{name: [B, *shape]} for int64 rows [B]; a variable axis is padded with zeros, and its `name`_mask,
        bool [B, max], says which entries are there. A compact array comes as int16 levels, with `name`_dither uint32
        [B] and its exceptions, `name`_exception_at int32 [B,X] (pixels; their number where unused) and
        `name`_exception_value float32 [B,X]. X is that of the rows `whole` (default: `rows`), those of the global
        batch where several processes read parts of it. Raises DataError for what cannot be read whole."""
        opened = self._opened(rows)
        batch: dict[str, np.ndarray] = {}
        beside: dict[str, np.ndarray] = {}
        views: list[memoryview] = []  # of all payloads
        later: list[tuple[str, int, np.ndarray]] = []  # to be copied into their slots of the batch
        packed: dict[str, tuple[np.ndarray, list[memoryview], list[memoryview]]] = {}
        for name, spec in self.stored.items():
            dtype = "int16" if spec.compact else spec.dtype
            batch[name], slots = self.buffers.take((len(rows), *spec.full_shape), dtype)
            if spec.compact:
                memory, payloads = self._room(self.places[name].sizes(rows))
                packed[name], slots = (memory, payloads, slots), payloads
            if spec.max is not None:  # one axis varies
                beside[f"{name}_mask"] = np.zeros((len(rows), spec.max), bool)
                empty = self._variable(name, rows)
                later += zip(itertools.repeat(name), range(len(rows)), empty)
                slots = [value.reshape(-1).view(np.uint8).data for value in empty]
            views += slots
        if views:
            self._fill(opened, rows, views)
        for name, (_, payloads, slots) in packed.items():
            room = self._exceptions(name, rows if whole is None else whole)
            beside |= self._unpack(name, rows, payloads, slots, room)
        for name, slot, value in later:
            batch[name][slot] = 0
            batch[name][slot][tuple(slice(size) for size in value.shape)] = value
            beside[f"{name}_mask"][slot, : value.shape[self.stored[name].shape.index(None)]] = True
        for name, column in self.columns.items():
            batch[name] = column[rows]
        return {**{name: batch[name] for name in self.specs}, **beside}

    def shard_numbers(self, rows: np.ndarray) -> np.ndarray:
        """The shard of each row, of all datasets'."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def payloads(self, rows: np.ndarray) -> dict[str, list[memoryview]]:
        """{name: the bytes of each row, as they are stored} of the arrays in the tars, for int64 rows [B]. Raises
        DataError for what cannot be read whole."""
        opened = self._opened(rows)
        found = {name: [memoryview(bytearray(n)) for n in p.sizes(rows).tolist()] for name, p in self.places.items()}
        if found and len(rows):
            self._fill(opened, rows, list(itertools.chain.from_iterable(found.values())))
        return found

    def _path(self, name: str, row: int) -> Path:
        dataset, shard = self.tars[self.first_tar[name] + int(self.shard_numbers(np.array(row)))]
        return dataset.shard_path(shard)

    def _opened(self, rows: np.ndarray) -> dict[int, Shard]:
        """The tars that the rows lie in, with their places known."""
        numbers = np.unique(self.shard_numbers(rows)).tolist() if self.stored else []
        return {tar: self._open(tar) for n in numbers for tar in self._tars_of(n)}

    def _fill(self, opened: dict[int, Shard], rows: np.ndarray, views: list[memoryview]) -> None:
        """Read the payloads of all rows, array after array, into `views`; near ones with one call."""
        places = list(self.places.values())
        offsets = np.concatenate([place.offset[rows] for place in places])
        sizes = np.concatenate([place.sizes(rows) for place in places])
        numbers = np.add.outer(list(self.first_tar.values()), self.shard_numbers(rows)).ravel()
        order = np.lexsort((offsets, numbers))
        offsets, sizes, numbers = offsets[order], sizes[order], numbers[order]
        views = [views[k] for k in order.tolist()]
        gaps = offsets[1:] - offsets[:-1] - sizes[:-1]
        joined = (numbers[1:] == numbers[:-1]) & (gaps >= 0) & (gaps <= self.coalesce)
        joined[MOST_JOINED - 1 :: MOST_JOINED] = False
        first = np.flatnonzero(np.append(True, ~joined))
        last = np.append(first[1:], len(views))
        length = offsets[last - 1] + sizes[last - 1] - offsets[first]
        if self.check == "crc":
            crcs = np.concatenate([place.crc[rows] for place in places])[order].tolist()
        preadv = os.preadv
        stretches = (first, last, numbers[first], offsets[first], length)
        for a, b, n, offset, size in zip(*(x.tolist() for x in stretches), strict=True):
            parts = views[a:b] if b == a + 1 else self._with_gaps(views[a:b], gaps[a : b - 1].tolist())
            try:
                got = preadv(opened[n].fd, parts, offset)
            except OSError:
                got = -1
            if got != size:
                read_whole(opened[n], parts, offset, size)
            if self.check == "crc":  # while the processor's cache holds it
                for k in range(a, b):
                    if zlib.crc32(views[k]) != crcs[k]:
                        name = places[order[k] // len(rows)].name
                        cached = self.tars[n][0].remote
                        fix = "delete this copy, and it is fetched again" if cached else "restore the shard"
                        raise DataError(f"{opened[n].path}: {name} at offset {offsets[k]} fails its checksum; {fix}")

    def _with_gaps(self, views: list[memoryview], gaps: list[int]) -> list[memoryview]:
        """The views, with room for what lies between them."""
        parts = views[:1]
        for view, gap in zip(views[1:], gaps, strict=True):
            parts += (self.gap[:gap], view) if gap else (view,)
        return parts

    def _room(self, sizes: np.ndarray) -> tuple[np.ndarray, list[memoryview]]:
        """Memory, which must be kept as long as it is used, and in it the bytes of payloads of the given sizes. Each
        begins a line of the cache: the kernel's copy is slow elsewhere (see Buffers)."""
        ends = np.cumsum(np.append(0, -(-sizes.astype(np.int64) // 64) * 64))
        power = 1 << int(ends[-1] - 1).bit_length()  # few different ones, so that memory is used again
        memory, [view] = self.buffers.take((1, power), "uint8")
        return memory, [view[a : a + size] for a, size in zip(ends[:-1].tolist(), sizes.tolist(), strict=True)]

    def fits(self, row: int, whole: np.ndarray) -> bool:
        """Whether a row's exceptions find room in a batch of the rows `whole`, so that it can stand in for one."""
        compact_ones = (name for name, spec in self.stored.items() if spec.compact)
        alone = np.array([row])
        return all(self._exceptions(name, alone) <= self._exceptions(name, whole) for name in compact_ones)

    def _exceptions(self, name: str, rows: np.ndarray) -> int:
        """Room for the exceptions of any of the rows. Where an index cannot be read none are known: the process that
        reads these rows says so."""
        places = self.places[name]
        for n in np.unique(self.shard_numbers(rows)).tolist():
            with contextlib.suppress(DataError):
                self._know(n)
        return compact.room(int(places.exceptions[rows].max(initial=0)), math.prod(places.spec.full_shape))

    def _unpack(
        self, name: str, rows: np.ndarray, payloads: list[memoryview], slots: list[memoryview], room: int
    ) -> dict[str, np.ndarray]:
        """Decompress payloads into the slots of a batch; the entries that belong to it. Raises DataError."""
        places, shape = self.places[name], (len(rows), room)
        dither = np.empty(len(rows), np.uint32)
        at, value = np.full(shape, math.prod(places.spec.full_shape), np.int32), np.zeros(shape, np.float32)
        counts = places.exceptions[rows].tolist()
        for n, (payload, slot, count) in enumerate(zip(payloads, slots, counts, strict=True)):
            try:
                dither[n], found = compact.unpack(payload, slot)
                if len(found) != count or count > room:
                    raise ValueError(f"it has {len(found)} exceptions, the index says {count}, the batch takes {room}")
            except ValueError as error:
                path, offset = self._path(name, rows[n]), places.offset[rows[n]]
                raise DataError(f"{path}: {name} at offset {offset}: {error}; restore the shard") from None
            at[n, :count], value[n, :count] = found["at"], found["value"]
        return {f"{name}_{entry}": values for entry, values in zip(compact.ENTRIES, (dither, at, value), strict=True)}

    def _variable(self, name: str, rows: np.ndarray) -> list[np.ndarray]:
        """Memory for the payloads of a variable array."""
        places, spec, values = self.places[name], self.specs[name], []
        for row, size in zip(rows.tolist(), places.sizes(rows).tolist(), strict=True):
            try:
                values.append(np.empty(spec.shape_of(size), spec.dtype))
            except ValueError as error:
                where = f"{self._path(name, row)}: {name} at offset {places.offset[row]}"
                raise DataError(f"{where}: {error}; rebuild the index") from None
        return values

    def _know(self, n: int) -> None:
        """Load the places of shard n, unless they are known. Threads that do so at once write the same."""
        for name, places in self.places.items():
            if not places.known[n]:
                places.load(n, *self.tars[self.first_tar[name] + n])

    def _open(self, tar: int) -> Shard:
        """A tar, open, with the places of its shard known. Raises DataError where it is gone or of another size."""
        with self.lock:
            if tar in self.shards:
                self.shards.move_to_end(tar)
                return self.shards[tar]
            when, message = self.lost.get(tar, (-math.inf, ""))
        if time.monotonic() - when < LOST_FOR:
            raise DataError(message)
        try:
            shard = self._open_whole(*self.tars[tar])  # without the lock: it may have to be fetched, ...
        except DataError as error:
            self.lost[tar] = time.monotonic(), str(error)
            raise
        self._know(tar % len(self.numbered))  # ... and its index read
        with self.lock:
            shard = self.shards.setdefault(tar, shard)
            self.lost.pop(tar, None)
            if len(self.shards) > self.most:
                self.shards.popitem(last=False)
            return shard

    def _open_whole(self, dataset: Dataset, number: int) -> Shard:
        """A shard of a dataset. Raises DataError where it is gone or of another size."""
        entry, path = dataset.manifest.shards[number], dataset.shard_path(number)
        try:
            shard = Shard(path, persist(lambda: dataset.open_shard(number)))
        except OSError as error:
            reason = errno.errorcode.get(error.errno or 0, "error")
            if error.errno in (errno.EMFILE, errno.ENFILE):  # nothing is wrong with the data
                raise InputError(
                    f"{path} cannot be opened ({reason}): a batch may read as many shards as it has samples; raise "
                    "`ulimit -n`, or set data.window"
                ) from None
            raise DataError(f"{path} cannot be opened ({reason}): {entry.samples} samples lost; restore it") from None
        if shard.size == entry.bytes or dataset.quarantine.explains(entry.name, shard.size):
            return shard
        if shard.size > entry.bytes:
            raise DataError(f"{path} has {shard.size} bytes, dataset.json says {entry.bytes}; restore the shard")
        names = self.stored.keys() & dataset.manifest.arrays.keys()
        ends = np.max([np.add(*dataset.places(number, name, ("offset", "size"))) for name in names], axis=0)
        raise DataError(
            f"{path} is cut at offset {shard.size} of {entry.bytes} bytes: {int((ends > shard.size).sum())} of "
            f"{entry.samples} samples lost; restore it"
        )
