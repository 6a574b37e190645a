"""Reads samples by row number: `preadv` straight from the tars into page-aligned batch buffers."""

import collections
import errno
import math
import mmap
import os
import threading
import weakref
import zlib

import numpy as np

from jaxz.data.dataset import DataError, Dataset

OPEN_SHARDS = 256


class Buffers:
    """Page-aligned arrays whose memory is taken again once nothing refers to it.

    Aligned to a page because the kernel's copy is 3.3 times slower to NumPy's own offset of 16 bytes on Zen 3.
    """

    def __init__(self):
        self.free = collections.defaultdict(collections.deque)

    def take(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        nbytes = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
        pool = self.free[nbytes]
        try:
            memory = pool.pop()
        except IndexError:
            memory = mmap.mmap(-1, nbytes)
        base = np.frombuffer(memory, np.uint8)  # every view, a jax array's too, keeps this one alive
        weakref.finalize(base, pool.append, memory).atexit = False
        return base[: math.prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)


class Shard:
    """An open tar; closed when the last reader lets go of it."""

    def __init__(self, path, expected: int):
        self.fd = os.open(path, os.O_RDONLY)
        self.path, self.size, self.expected = path, os.fstat(self.fd).st_size, expected

    def __del__(self, close=os.close):  # bound here: at exit, globals may be gone first
        if hasattr(self, "fd"):
            close(self.fd)


class Reader:
    """Reads arrays of rows. check: "size" (every payload has the size its index says) or "crc" (and its checksum)."""

    def __init__(self, dataset: Dataset, arrays: tuple[str, ...], check: str = "size"):
        self.dataset, self.check = dataset, check
        specs = {name: dataset.manifest.arrays[name] for name in arrays}
        self.raw = {name: spec for name, spec in specs.items() if spec.encoding == "raw"}
        self.columns = {name: dataset.column(name) for name, spec in specs.items() if spec.encoding == "index"}
        self.specs, self.buffers = specs, Buffers()
        self.shards: collections.OrderedDict[int, Shard] = collections.OrderedDict()
        self.lock = threading.Lock()

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """{name: [B, *shape]} for int64 rows [B]; a variable axis is padded with zeros, and its `name`_mask,
        bool [B, max], says which entries are there. Raises DataError for what cannot be read whole."""
        batch = {name: self.buffers.take((len(rows), *spec.full_shape), spec.dtype) for name, spec in self.raw.items()}
        masks = {
            f"{name}_mask": np.zeros((len(rows), spec.max), bool) for name, spec in self.raw.items() if spec.variable
        }
        shards, within = self.dataset.locate(rows)
        for n in np.unique(shards) if self.raw else ():  # arrays of the index need no tar
            slots = np.flatnonzero(shards == n)
            shard = self._open(int(n))
            for name, spec in self.raw.items():
                places = self.dataset.places(int(n), name)
                for slot in slots[np.argsort(places[0][within[slots]])]:
                    offset, size, crc = (int(p[within[slot]]) for p in places)
                    if spec.variable:
                        self._read_variable(
                            shard, name, batch[name][slot], masks[f"{name}_mask"][slot], offset, size, crc
                        )
                    else:
                        self._read_payload(shard, name, batch[name][slot], offset, size, crc)
        for name, values in self.columns.items():
            batch[name] = values[rows]
        return {**{name: batch[name] for name in self.specs}, **masks}

    def _read_variable(self, shard, name, target, mask, offset, size, crc):
        spec = self.specs[name]
        try:
            shape = spec.shape_of(size)
        except ValueError as error:
            raise DataError(f"{shard.path}: {name} at offset {offset}: {error}; rebuild the index") from None
        value = np.empty(shape, spec.dtype)
        self._read_payload(shard, name, value, offset, size, crc)
        target[...] = 0
        target[tuple(slice(n) for n in shape)] = value
        mask[: shape[spec.shape.index(None)]] = True

    def _read_payload(self, shard, name, target, offset, size, crc):
        view = memoryview(target.reshape(-1).view(np.uint8))
        if size != len(view):
            raise DataError(
                f"{shard.path}: {name} at offset {offset} has {size} bytes, its shape takes {len(view)}; "
                "rebuild the index"
            )
        done = 0
        while done < size:
            got = os.preadv(shard.fd, [view[done:]], offset + done)
            if got == 0:
                raise DataError(
                    f"{shard.path}: {name} at offset {offset} ends {size - done} bytes early; restore the shard"
                )
            done += got
        if self.check == "crc" and zlib.crc32(view) != crc:
            raise DataError(f"{shard.path}: {name} at offset {offset} fails its checksum; restore the shard")

    def _open(self, n: int) -> Shard:
        with self.lock:
            if n in self.shards:
                self.shards.move_to_end(n)
                return self.shards[n]
            entry = self.dataset.manifest.shards[n]
            path = self.dataset.path / "shards" / f"{entry.name}.tar"
            try:
                shard = Shard(path, entry.bytes)
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
