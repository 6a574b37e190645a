"""Reads samples by row number: `preadv` straight from the tars into page-aligned batch buffers."""

import collections
import errno
import itertools
import math
import mmap
import operator
import os
import threading
import time
import weakref
import zlib

import numpy as np

from jaxz.data import compact
from jaxz.data.dataset import DataError, Dataset

OPEN_SHARDS = 256
TRIES, PAUSE = 4, 0.05  # reads of one stretch, and seconds before the second; each later one waits four times longer
MOST_PARTS = 512  # of one preadv; the system takes 1,024


class Buffers:
    """Page-aligned arrays whose memory is taken again once nothing refers to it.

    Aligned to a page because the kernel's copy is 3.3 times slower to NumPy's own offset of 16 bytes on Zen 3.
    """

    def __init__(self):
        self.free = collections.defaultdict(collections.deque)

    def take(self, shape: tuple[int, ...], dtype: str) -> tuple[np.ndarray, list[memoryview]]:
        """An array [B, ...] and the bytes of each of its B entries."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        pool = self.free[nbytes, shape[0]]
        try:
            memory, slots = pool.pop()
        except IndexError:
            memory = mmap.mmap(-1, max(1, nbytes))
            step = nbytes // max(1, shape[0])
            slots = [memoryview(memory)[n * step : (n + 1) * step] for n in range(shape[0])]
        base = np.frombuffer(memory, np.uint8)  # every view, a jax array's too, keeps this one alive
        weakref.finalize(base, pool.append, (memory, slots)).atexit = False
        return base[:nbytes].view(dtype).reshape(shape), slots


class Shard:
    """An open tar; closed when the last reader lets go of it."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDONLY)
        self.path, self.size = path, os.fstat(self.fd).st_size

    def __del__(self, close=os.close):  # bound here: at exit, globals may be gone first
        if hasattr(self, "fd"):
            close(self.fd)


class Places:
    """Offset, size and crc32 of every payload of one array, read shard by shard where they are first wanted."""

    def __init__(self, dataset: Dataset, name: str, crc: bool):
        self.dataset, self.name, self.spec = dataset, name, dataset.manifest.arrays[name]
        count = len(dataset)
        self.known = np.zeros(len(dataset.manifest.shards), bool)
        self.offset = np.zeros(count, np.int64)  # pages that are never touched take no memory
        least, most = self.spec.stored_bounds
        self.size = np.zeros(count, np.int32) if least < most else None
        self.exceptions = np.zeros(count, np.int32) if self.spec.compact else None
        self.crc = np.zeros(count, np.uint32) if crc else None

    def load(self, shard: int) -> None:
        """Raises DataError where a payload has a size that the array's shape does not have."""
        here = slice(*self.dataset.starts[shard : shard + 2])
        offset, size, crc = self.dataset.places(shard, self.name)
        least, most = self.spec.stored_bounds
        wrong = (size < least) | (size > most)
        if wrong.any():
            first = int(np.argmax(wrong))
            path = self.dataset.shard_path(shard)
            raise DataError(
                f"{path}: {self.name} at offset {offset[first]} has {size[first]} bytes, its shape takes "
                f"{least if least == most else f'{least} to {most}'}; rebuild the index"
            )
        self.offset[here] = offset
        if self.size is not None:
            self.size[here] = size
        if self.crc is not None:
            self.crc[here] = crc
        if self.exceptions is not None:
            self.exceptions[here] = self.dataset.exceptions(shard, self.name)
        self.known[shard] = True


class Reader:
    """Reads arrays of rows, from any number of threads.

    check: "size" (every payload has the size its index says) or "crc" (and its checksum). coalesce: payloads of a shard
    that lie at most so many bytes apart are read in one go; the default joins the arrays of one sample, network file
    systems want a megabyte.
    """

    def __init__(self, dataset: Dataset, arrays: tuple[str, ...], check: str = "size", coalesce: int = 4096):
        self.dataset, self.check, self.coalesce = dataset, check, coalesce
        specs = {name: dataset.manifest.arrays[name] for name in arrays}
        self.raw = {name: spec for name, spec in specs.items() if spec.in_tar}
        self.columns = {name: dataset.column(name) for name, spec in specs.items() if spec.encoding == "index"}
        self.places = {name: Places(dataset, name, check == "crc") for name in self.raw}
        self.specs, self.buffers = specs, Buffers()
        self.gap = memoryview(bytearray(max(1, coalesce)))  # where what lies between two payloads goes
        self.shards: collections.OrderedDict[int, Shard] = collections.OrderedDict()
        self.lock = threading.Lock()

    def read(self, rows: np.ndarray, whole: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """{name: [B, *shape]} for int64 rows [B]; a variable axis is padded with zeros, and its `name`_mask,
        bool [B, max], says which entries are there. A compact array comes as int16 levels, with `name`_dither uint32
        [B] and its exceptions, `name`_exception_at int32 [B,X] (pixels; their number where unused) and
        `name`_exception_value float32 [B,X]. X is that of the rows `whole` (default: `rows`), those of the global
        batch where several processes read parts of it. Raises DataError for what cannot be read whole."""
        batch, masks, jobs, later, packed = {}, {}, [], [], {}
        shards = self.dataset.locate(rows)[0]
        opened = {n: self._open(n) for n in np.unique(shards).tolist()} if self.raw else {}
        for name, spec in self.raw.items():
            dtype = "int16" if spec.compact else spec.dtype
            batch[name], views = self.buffers.take((len(rows), *spec.full_shape), dtype)
            places = self.places[name]
            if spec.compact:
                memory, payloads = self._room(places.size[rows])
                packed[name], views = (memory, payloads, views), payloads
            crcs = places.crc[rows].tolist() if places.crc is not None else itertools.repeat(0)
            if spec.variable:
                masks[f"{name}_mask"] = np.zeros((len(rows), spec.max), bool)
                values = [self._variable(name, row) for row in rows.tolist()]
                later += zip(itertools.repeat(name), range(len(rows)), values)
                views = [memoryview(value.reshape(-1).view(np.uint8)) for value in values]
            jobs += zip(shards.tolist(), places.offset[rows].tolist(), views, crcs, itertools.repeat(name))
        jobs.sort(key=operator.itemgetter(0, 1))
        self._read_stretches(opened, jobs)
        if self.check == "crc":
            for n, offset, view, crc, name in jobs:
                if zlib.crc32(view) != crc:
                    raise DataError(
                        f"{opened[n].path}: {name} at offset {offset} fails its checksum; restore the shard"
                    )
        for name, (_, payloads, slots) in packed.items():
            masks |= self._unpack(name, rows, payloads, slots, self._exceptions(name, rows if whole is None else whole))
        for name, slot, value in later:
            batch[name][slot] = 0
            batch[name][slot][tuple(slice(size) for size in value.shape)] = value
            masks[f"{name}_mask"][slot, : value.shape[self.raw[name].shape.index(None)]] = True
        for name, values in self.columns.items():
            batch[name] = values[rows]
        return {**{name: batch[name] for name in self.specs}, **masks}

    def _room(self, sizes: np.ndarray) -> tuple[np.ndarray, list[memoryview]]:
        """Memory, which must be kept as long as it is used, and in it the bytes of payloads of the given sizes. Each
        begins a line of the cache: the kernel's copy is slow elsewhere (see Buffers)."""
        ends = np.cumsum(-(-sizes.astype(np.int64) // 64) * 64)
        power = 1 << int(ends[-1] - 1).bit_length()  # few different ones, so that memory is used again
        memory, [view] = self.buffers.take((1, power), "uint8")
        starts = np.append(0, ends[:-1])
        return memory, [view[a : a + size] for a, size in zip(starts.tolist(), sizes.tolist(), strict=True)]

    def _exceptions(self, name: str, rows: np.ndarray) -> int:
        """Room for the exceptions of any of the rows."""
        places = self.places[name]
        with self.lock:
            for n in np.unique(self.dataset.locate(rows)[0]).tolist():
                self._know(n)
        return compact.room(int(places.exceptions[rows].max()), math.prod(places.spec.shape))

    def _unpack(self, name: str, rows: np.ndarray, payloads: list, slots: list, room: int) -> dict[str, np.ndarray]:
        """Decompress payloads into the slots of a batch; the entries that belong to it. Raises DataError."""
        places, shape = self.places[name], (len(rows), room)
        dither = np.empty(len(rows), np.uint32)
        at, value = np.full(shape, math.prod(places.spec.shape), np.int32), np.zeros(shape, np.float32)
        counts = places.exceptions[rows].tolist()
        for n, (payload, slot, count) in enumerate(zip(payloads, slots, counts, strict=True)):
            try:
                dither[n], found = compact.unpack(payload, slot)
                if len(found) != count or count > room:
                    raise ValueError(f"it has {len(found)} exceptions, the index says {count}, the batch takes {room}")
            except ValueError as error:
                path = self.dataset.shard_path(int(self.dataset.locate(rows[n : n + 1])[0][0]))
                raise DataError(
                    f"{path}: {name} at offset {places.offset[rows[n]]}: {error}; restore the shard"
                ) from None
            at[n, :count], value[n, :count] = found["at"], found["value"]
        return {f"{name}_{entry}": values for entry, values in zip(compact.ENTRIES, (dither, at, value), strict=True)}

    def _variable(self, name: str, row: int) -> np.ndarray:
        """Memory for one payload of a variable array."""
        places, spec = self.places[name], self.specs[name]
        try:
            return np.empty(spec.shape_of(int(places.size[row])), spec.dtype)
        except ValueError as error:
            path = self.dataset.shard_path(int(self.dataset.locate(np.array([row]))[0][0]))
            raise DataError(f"{path}: {name} at offset {places.offset[row]}: {error}; rebuild the index") from None

    def _read_stretches(self, opened: dict[int, Shard], jobs: list) -> None:
        """Read every (shard, offset, view, ...), which come in that order; near ones with one call."""
        parts, start, end, last = [], 0, 0, -1
        for n, offset, view, *_ in jobs:
            gap = offset - end
            if n == last and 0 <= gap <= self.coalesce and len(parts) < MOST_PARTS:
                if gap:
                    parts.append(self.gap[:gap])
                parts.append(view)
            else:
                if parts:
                    read_whole(opened[last], parts, start, end - start)
                parts, start, last = [view], offset, n
            end = offset + len(view)
        if parts:
            read_whole(opened[last], parts, start, end - start)

    def _know(self, n: int) -> None:
        """Load the places of shard n, unless they are known. Under the lock."""
        for places in self.places.values():
            if not places.known[n]:
                places.load(n)

    def _open(self, n: int) -> Shard:
        """Shard n, open, with its places known. Raises DataError where it is gone or of another size."""
        with self.lock:
            if n in self.shards:
                self.shards.move_to_end(n)
                return self.shards[n]
            self._know(n)
            entry, path = self.dataset.manifest.shards[n], self.dataset.shard_path(n)
            try:
                shard = Shard(path)
            except OSError as error:
                reason = errno.errorcode.get(error.errno, "error")
                raise DataError(
                    f"{path} cannot be opened ({reason}): {entry.samples} samples lost; restore it"
                ) from None
            if shard.size > entry.bytes:
                raise DataError(f"{path} has {shard.size} bytes, dataset.json says {entry.bytes}; restore the shard")
            if shard.size < entry.bytes:
                ends = np.max([np.add(*self.dataset.places(n, name)[:2]) for name in self.raw], axis=0)
                lost = int((ends > shard.size).sum())
                raise DataError(
                    f"{path} is cut at offset {shard.size} of {entry.bytes} bytes: {lost} of {entry.samples} "
                    "samples lost; restore it"
                )
            self.shards[n] = shard
            if len(self.shards) > OPEN_SHARDS:
                self.shards.popitem(last=False)
            return shard


def read_whole(shard: Shard, parts: list[memoryview], start: int, size: int) -> None:
    """Fill `parts`, `size` bytes in all, from offset `start`. A read that fails or gives nothing is tried again a few
    times; then DataError."""
    done, failed, reason = 0, 0, ""
    while done < size:
        try:
            got, reason = os.preadv(shard.fd, parts, start + done), "the file ends there"
        except OSError as error:
            got, reason = 0, error.strerror
        done += got
        if done < size:
            parts = skip(parts, got)
            failed = 0 if got else failed + 1
            if failed == TRIES:
                raise DataError(
                    f"{shard.path}: {size - done} bytes at offset {start + done} cannot be read ({reason}, "
                    f"{TRIES} tries); restore the shard"
                )
            if not got:
                time.sleep(PAUSE * 4 ** (failed - 1))


def skip(parts: list[memoryview], count: int) -> list[memoryview]:
    """What is left of `parts` after their first `count` bytes."""
    for place, part in enumerate(parts):
        if count < len(part):
            return [part[count:], *parts[place + 1 :]]
        count -= len(part)
    return []
