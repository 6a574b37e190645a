"""The order of samples: a pure function of (seed, epoch, position). A contract: changing it needs a new state version.

Shards are permuted, then the rows inside windows of `window` permuted shards (0: one window over everything). Nothing
else decides the order, and nothing of the size of the dataset is held in memory.
"""

from dataclasses import dataclass

import numpy as np

ROUNDS = 6  # Luby & Rackoff (1988): 4 are pseudo-random; two more for small domains


def mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele et al. 2014): a bijection on uint64, all input bits reach all output bits."""
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def derive(*numbers: int) -> np.uint64:
    """A 64-bit key from a tuple of integers, such as (seed, epoch, window)."""
    key = np.zeros(1, np.uint64)
    for number in numbers:
        key = mix(key + np.uint64(0x9E3779B97F4A7C15) + np.array([number & (2**64 - 1)], np.uint64))
    return key[0]


def permute(index: np.ndarray, n: int, key: np.uint64) -> np.ndarray:
    """Where `index` (int64 [K], each in 0..n-1) stands in a permutation of n: a Feistel network with cycle walking.

    Memory and time are those of `index`, not of n.
    """
    half = max(3, (int(n - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    keys = [mix(np.array([key], np.uint64) + np.uint64(r + 1))[0] for r in range(ROUNDS)]
    result = np.array(index, np.uint64)
    todo = np.arange(len(result))
    while len(todo):
        left, right = result[todo] >> np.uint64(half), result[todo] & low
        for k in keys:
            left, right = right, left ^ (mix(right + k) & low)
        result[todo] = (left << np.uint64(half)) | right
        todo = todo[result[todo] >= n]
    return result.astype(np.int64)


@dataclass(frozen=True)
class Order:
    """The order over the selected rows of a dataset, `counts[s]` of them in shard s."""

    counts: tuple[int, ...]
    seed: int
    window: int = 0
    shuffle: bool = True

    def _layout(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """The epoch's shards in order, the position where each ends, the bounds of the windows, and shards a window."""
        counts, size = np.asarray(self.counts, np.int64), 1
        shards = np.arange(len(counts))
        if self.shuffle:
            keys = mix(shards.astype(np.uint64) + derive(self.seed, epoch, 0))
            shards, size = np.argsort(keys, kind="stable"), self.window or len(shards)
        ends = np.cumsum(counts[shards])
        bounds = np.append(0, ends[size - 1 :: size])
        return shards, ends, bounds if bounds[-1] == ends[-1] else np.append(bounds, ends[-1]), size

    def window_at(self, epoch: int, position: int) -> tuple[np.ndarray, int]:
        """The shards, in order, that the rows of a position's window lie in, and the position where it ends. In an
        order that is not shuffled, a window is a shard."""
        shards, _, bounds, size = self._layout(epoch)
        window = int(np.searchsorted(bounds, position, side="right")) - 1
        shards = shards[window * size : (window + 1) * size]
        return shards[np.asarray(self.counts)[shards] > 0], int(bounds[window + 1])

    def __call__(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """int64 [K]: the place among the selected rows (in shard order) of each position (0..N-1) of an epoch."""
        if not self.shuffle:
            return np.asarray(positions, np.int64)
        counts = np.asarray(self.counts, np.int64)
        shards, ends, bounds, _ = self._layout(epoch)
        first = (np.cumsum(counts) - counts)[shards]  # of each permuted shard, its first place among the selected rows
        result = np.empty(len(positions), np.int64)
        windows = np.searchsorted(bounds, positions, side="right") - 1
        for w in np.unique(windows):
            here = windows == w
            start, stop = bounds[w], bounds[w + 1]
            inside = start + permute(positions[here] - start, int(stop - start), derive(self.seed, epoch, 1 + int(w)))
            shard = np.searchsorted(ends, inside, side="right")
            result[here] = first[shard] + inside - (ends[shard] - counts[shards[shard]])
        return result
