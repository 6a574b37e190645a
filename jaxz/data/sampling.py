"""Which row of a source stands at each position of an epoch: a pure function of (seed, epoch, position)."""

import math
import threading
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from jaxz.data.columns import as_names, is_whole
from jaxz.data.dataset import Dataset
from jaxz.data.order import Order, derive
from jaxz.data.staging import check_limit
from jaxz.errors import InputError, suggest

BLOCK = 8192  # positions whose rows are drawn together
KEPT = 16  # blocks, for the threads that read ahead
OFFSET_KEY = 2**40  # beside the keys that Order derives, which are small


@dataclass(frozen=True)
class Source:
    """What a stream takes of a dataset: arrays (those named, default all, its layers' too), scalar columns, the rows
    that pass `where`, shuffled in windows of `window` shards (0: over everything).

    weights: a column; a row is drawn in proportion to it, those of weight 0 never. balance: a column whose values
    (classes; with bins, so many equal bins of numbers) are drawn equally often. Of both, the product counts.
    An epoch then has as many draws as there are rows to draw from, and each row comes floor or ceil of its share.
    """

    dataset: Dataset
    arrays: tuple[str, ...] | None = None
    columns: tuple[str, ...] = ()
    where: str | None = None
    window: int = 0
    name: str = "data"
    weights: str | None = None
    balance: str | None = None
    bins: int = 0

    def __post_init__(self):
        if not isinstance(self.dataset, Dataset):
            raise InputError(f"dataset: {self.dataset!r:.80} is no dataset; open it with jaxz.open_dataset")
        for name in ("window", "bins"):
            if not (is_whole(value := getattr(self, name)) and value >= 0):
                raise InputError(f"{name}: {value!r} must be a whole number of at least 0")
        for name in ("arrays", "columns"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, as_names(value))


class Sampler:
    """len: positions of an epoch; columns: those of the source, of all rows of the dataset; filled: where rows that are
    not drawn lack them (see Scan); digests: of all that is read of the index.

    Raises InputError where no row can be drawn, weights are no weights, or a column holds text."""

    def __init__(self, source: Source, seed: int, shuffle: bool):
        dataset = source.dataset
        self.dataset = dataset
        self.seed, self.window, self.shuffle, self.ends = seed, source.window, shuffle, None
        self.windowed = dataset.remote or (shuffle and source.window > 0)  # few shards at a time: worth looking ahead
        chosen = {name for name in (source.weights, source.balance) if name is not None}
        arrays, columns = dataset.arrays, dataset.manifest.columns
        for field in ("weights", "balance"):
            if (name := getattr(source, field)) and name not in columns:
                raise InputError(f"{field}: column {name!r} is not in {str(dataset.path)!r}.{suggest(name, columns)}")
        for name in source.columns:
            if name == "key" or (name in columns and columns[name].dtype == "string"):
                raise InputError(f"column {name!r} holds text; a batch carries numbers only (use it in `where`)")
        wanted = [name for name in (arrays if source.arrays is None else source.arrays) if name in arrays]
        inside = [name for name in wanted if not arrays[name].in_tar]
        scan = dataset.scan(source.where, sorted({*source.columns, *chosen}), inside)
        self.rows, self.digests = scan.rows, scan.digests
        for name in wanted:  # what is in a layer's tars can change without the dataset
            if name in dataset.owners and name not in inside:
                self.digests[name] = dataset.owner(name).fingerprint()["rows"]
        self.columns = {name: scan.columns[name] for name in source.columns}
        self.filled = {name: where for name, where in scan.filled.items() if name in source.columns}
        if not len(self.rows):
            counts = dataset.manifest.splits.get("counts")  # which any writer of datasets may have left out
            told = f" (splits: {', '.join(f'{n} {m}' for n, m in counts.items())})" if isinstance(counts, dict) else ""
            raise InputError(
                f"where: {source.where!r} selects none of the {len(dataset)} rows of {str(dataset.path)!r}{told}; "
                "select others"
            )
        if source.weights or source.balance:
            weights = row_weights(source, scan.columns, self.rows)
            self.rows, weights = self.rows[weights > 0], weights[weights > 0]
            self.ends = np.cumsum(weights)  # [M]: where each row's share ends, in units of draws
            self.ends *= len(self.rows) / self.ends[-1]
            self.ends[-1] = len(self.rows)
        self.parts = {dataset.owner(name) for name in wanted if arrays[name].in_tar}  # whose tars are read
        self.last = rows_before(self.rows, dataset.starts[1:])  # rows up to and with each shard
        self.blocks: dict[tuple[int, int], np.ndarray] = {}
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def draws(self) -> np.ndarray:
        """float64 [M]: how often an epoch draws each of `rows`, in the mean."""
        return np.ones(len(self.rows)) if self.ends is None else np.diff(self.ends, prepend=0)

    def __call__(self, at: np.ndarray) -> np.ndarray:
        """int64 [K]: the rows at global positions (epoch * len + position)."""
        epochs, positions = np.divmod(at, len(self))
        rows = np.empty(len(at), np.int64)
        numbers = positions // BLOCK
        for epoch, number in {*zip(epochs.tolist(), numbers.tolist(), strict=True)}:
            here = (epochs == epoch) & (numbers == number)
            rows[here] = self._block(epoch, number)[positions[here] - number * BLOCK]
        return rows

    def _block(self, epoch: int, number: int) -> np.ndarray:
        """The rows of BLOCK positions: drawn together, they cost a tenth of what they do batch by batch."""
        with self.lock:  # threads that need the same block would each draw it
            if (epoch, number) not in self.blocks:
                positions = np.arange(number * BLOCK, min((number + 1) * BLOCK, len(self)))
                if len(self.blocks) >= KEPT:
                    self.blocks.clear()
                self.blocks[epoch, number] = self.rows[self._draw(epoch, positions)]
            return self.blocks[epoch, number]

    def _draw(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Places among `rows`. With weights, systematic sampling: draw k falls where k + offset lies in the shares."""
        places = self._order(epoch)(epoch, positions)
        if self.ends is None:
            return places
        places = np.searchsorted(self.ends, places + self._offset(epoch), side="right")
        return np.minimum(places, len(self) - 1)

    def _offset(self, epoch: int) -> float:
        return float(derive(self.seed, epoch, OFFSET_KEY) >> np.uint64(11)) * 2.0**-53

    def _order(self, epoch: int) -> Order:
        """The order over the draws of an epoch."""
        last = self.last
        if self.ends is not None:
            share = np.append(0, self.ends)[self.last]  # of all rows up to and with each shard
            last = np.clip(np.ceil(share - self._offset(epoch)), 0, len(self)).astype(np.int64)
        return Order(tuple(np.diff(last, prepend=0).tolist()), self.seed, self.window, self.shuffle)

    def ahead(self, start: int, stop: int, end: float = math.inf) -> tuple[list[int], float, float]:
        """The shards, in order of need, of the windows that global positions start..stop-1 lie in, and of the window
        after them unless that begins at `end`. They are others once start reaches the second number or stop passes the
        third."""
        shards: dict[int, None] = {}
        ends, at = list[int](), start
        while at < end and (len(ends) < 2 or ends[-2] < stop):
            epoch, position = divmod(at, len(self))
            window, at = self._order(epoch).window_at(epoch, position)
            at += epoch * len(self)
            shards |= dict.fromkeys(window.tolist())
            ends.append(at)
        return list(shards), ends[0], ends[-2] if at < end else end

    def check_cache(self, in_flight: int) -> None:
        """Raises InputError where the limit of a remote dataset's cache is below what is read at once, with so many
        positions being read."""
        shards = np.flatnonzero(np.diff(self.last, prepend=0))
        sizes = [sum(part.manifest.shards[n].bytes for part in self.parts) for n in shards]
        check_limit(self.dataset.store, sizes, self.window if self.shuffle else 1, len(self), in_flight)


def rows_before(rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """int64 [S]: how many of the rows stand before each start. They are sorted, and of a type that holds the starts."""
    return np.searchsorted(rows, starts.astype(rows.dtype))  # of another type, all the rows would be copied to it


def row_weights(source: Source, columns: dict[str, np.ndarray | pa.ChunkedArray], rows: np.ndarray) -> np.ndarray:
    """float64 [M]: how often each of the rows is wanted, relative to the others."""
    weights = np.ones(len(rows))
    if source.weights:
        if not isinstance(columns[source.weights], np.ndarray):
            raise InputError(f"weights: column {source.weights!r} holds text; name a column of numbers")
        weights = columns[source.weights][rows].astype(np.float64)
        if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
            raise InputError(
                f"weights: column {source.weights!r} has values that are missing, negative or all zero; mend it, or "
                "leave such rows out with where"
            )
    return weights * balancing(source, columns[source.balance], rows) if source.balance else weights


def balancing(source: Source, column: np.ndarray | pa.ChunkedArray, rows: np.ndarray) -> np.ndarray:
    """float64 [M]: one over the number of rows of the same class or bin."""
    if text := not isinstance(column, np.ndarray):  # as numbers: many millions of strings would fill the memory
        column = column.dictionary_encode().combine_chunks().indices.fill_null(-1).to_numpy()
    values = column[rows]
    if missing := np.count_nonzero(values == -1 if text else ~np.isfinite(values)):  # an overlay may hold inf
        raise InputError(
            f"balance: column {source.balance!r} is missing for {missing} rows, or infinite; leave them out with where"
        )
    if source.bins:
        if text or values.dtype.kind not in "fiu":
            raise InputError(f"balance: column {source.balance!r} holds no numbers; set bins=0 to balance its classes")
        edges = np.linspace(values.min(), values.max(), source.bins + 1)
        values = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, source.bins - 1)
    elif values.dtype.kind == "f":
        raise InputError(f"balance: column {source.balance!r} holds real numbers; say how many bins with bins=20")
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return 1.0 / counts[place]
