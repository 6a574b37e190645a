"""Batches of a dataset in an order that is a pure function of (seed, epoch, position): exact to resume, elastic."""

import collections
import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from jaxz.data.dataset import DataError
from jaxz.data.order import derive
from jaxz.data.reader import Reader
from jaxz.data.sampling import Sampler, Source
from jaxz.errors import InputError, suggest

log = logging.getLogger("jaxz")
STATE_VERSION = 1
REPLACEMENTS = 8  # tried for one sample
LIMIT = 1e-3  # replaced samples in an epoch's worth, before it is no accident
AHEAD = 2  # batches read ahead beside those being read
SETTINGS = ("name", "where", "window", "weights", "balance", "seed")  # of a source, beside its rows and columns
OWN = ("row", "epoch", "position", "valid")  # entries that the stream adds to a batch


class Stream:
    """Iterates over batches, dicts of NumPy arrays [B, ...]: the source's arrays and columns (a variable array with its
    `<array>_mask`), `row` (global row number, int64), `epoch` (int32) and `position` in the epoch (uint32).

    epochs=None: endless, an epoch's tail goes on into the next epoch. epochs=1: every row once; the last batch
    is filled up with repeats, and `valid` (bool) says which rows count. `local` is the slice of every global batch that
    this process reads: processes that read all slices read the same global batches as one process does.
    on_error: "raise" (DataError where a sample cannot be read whole) or "replace": another row stands in for it, which
    one being a function of (seed, epoch, position); each is counted in `replaced`, each file named once in the log, and
    above 0.1 % (of an epoch, or of all so far) DataError after all. Raises InputError for unknown names or no rows.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        epochs: int | None = None,
        local: slice = slice(None),
        check: str = "size",
        coalesce: int = 4096,
        on_error: str = "raise",
        threads: int = 2,
    ):
        dataset = source.dataset
        arrays = tuple(dataset.manifest.arrays) if source.arrays is None else source.arrays
        for name in arrays:
            if name not in dataset.manifest.arrays:
                raise InputError(
                    f"array {name!r} is not in {str(dataset.path)!r}.{suggest(name, dataset.manifest.arrays)}"
                )
        if taken := [name for name in (*arrays, *source.columns) if name in OWN]:
            raise InputError(f"column {taken[0]!r} has a name that the stream itself uses; rename it in the dataset")
        self.source, self.batch_size, self.seed, self.epochs = source, batch_size, seed, epochs
        self.slots = np.arange(batch_size)[local]
        self.sampler = Sampler(source, seed, shuffle)
        self.columns = {name: self._column(name) for name in source.columns}
        self.reader = Reader(dataset, arrays, check, coalesce)
        self.on_error, self.replaced, self.complained, self.lock = on_error, 0, set(), threading.Lock()
        self.threads = threads
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="jaxz-read")
        self.fingerprint = dataset.fingerprint(source.used_columns)
        self.next = 0  # global position of the next batch: epoch * rows + position
        self.pending: collections.deque[Future] = collections.deque()

    def __len__(self) -> int:
        """Positions of one epoch."""
        return len(self.sampler)

    @property
    def batches(self) -> int | None:
        """Batches in all; None for an endless stream."""
        return None if self.epochs is None else -(-self.epochs * len(self) // self.batch_size)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        wanted = self.threads + AHEAD
        while len(self.pending) < wanted:
            start = self.next + len(self.pending) * self.batch_size
            if self._ended(start):
                break
            self.pending.append(self.pool.submit(self._batch, start))
        if not self.pending:
            raise StopIteration
        batch = self.pending.popleft().result()
        self.next += self.batch_size
        return batch

    def state(self) -> dict:
        """Where the stream stands, as JSON; the same on every process. Batches read ahead do not count."""
        epoch, position = divmod(self.next, len(self))
        source = {
            "name": self.source.name,
            "fingerprint": self.fingerprint,
            "where": self.source.where,
            "window": self.source.window,
            "weights": self.source.weights,
            "balance": self.source.balance and [self.source.balance, self.source.bins],
            "seed": self.seed,
            "epoch": epoch,
            "position": position,
        }
        return {"version": STATE_VERSION, "batch_size": self.batch_size, "sources": [source], "stage": 0}

    def restore(self, state: dict) -> None:
        """Go on from `state()`, in O(1). Raises InputError where rows, columns or settings are not those it is of."""
        if state.get("version") != STATE_VERSION:
            raise InputError(f"stream state version {state.get('version')!r} is not {STATE_VERSION}; start a new run")
        [then], [now] = state["sources"], self.state()["sources"]
        if then["fingerprint"]["rows"] != now["fingerprint"]["rows"]:
            raise InputError(
                f"data.path: the rows of {str(self.source.dataset.path)!r} are not those the run was started with; "
                "restore that dataset or start a new run"
            )
        before, after = then["fingerprint"]["columns"], now["fingerprint"]["columns"]
        changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
        changed += [name for name in SETTINGS if then.get(name) != now[name]]
        if changed:
            details = ", ".join(
                f"{name}: {then.get(name, 'column')!r} -> {now.get(name, 'column')!r}" for name in changed
            )
            raise InputError(f"the stream changed since the checkpoint ({details}); undo it or start a new run")
        self._drain()
        self.next = then["epoch"] * len(self) + then["position"]

    def close(self) -> None:
        self._drain()
        self.pool.shutdown(cancel_futures=True)

    def _drain(self):
        for future in self.pending:
            future.cancel()
        self.pending.clear()

    def _ended(self, start: int) -> bool:
        return self.epochs is not None and start >= self.epochs * len(self)

    def _batch(self, start: int) -> dict[str, np.ndarray]:
        at = start + self.slots
        valid = ~np.zeros(len(at), bool)
        if self.epochs is not None:
            valid = at < self.epochs * len(self)
        epochs, positions = np.divmod(at, len(self))
        whole = self.sampler(start + np.arange(self.batch_size))
        rows = whole[self.slots]
        try:
            batch = self.reader.read(rows, whole)
        except DataError as error:
            if self.on_error == "raise":
                raise
            batch = self._read_around(error, rows, whole, epochs, positions)
        batch |= {name: values[rows] for name, values in self.columns.items()}
        batch |= {"row": rows, "epoch": epochs.astype(np.int32), "position": positions.astype(np.uint32)}
        return batch if self.epochs is None else {**batch, "valid": valid}

    def _read_around(
        self, error: DataError, rows: np.ndarray, whole: np.ndarray, epochs: np.ndarray, positions: np.ndarray
    ) -> dict:
        """Read `rows`, in place of those that cannot be read others; `rows` is changed to what was read."""
        for slot in range(len(rows)):
            for attempt in range(REPLACEMENTS + 1):
                try:
                    self.reader.read(rows[slot : slot + 1], whole)
                    break
                except DataError as failure:
                    self._count(failure, error, len(rows))
                    draw = derive(self.seed, int(epochs[slot]), int(positions[slot]), attempt)
                    rows[slot] = self.sampler.rows[int(draw % np.uint64(len(self)))]
        return self.reader.read(rows, whole)

    def _count(self, failure: DataError, first: DataError, local: int) -> None:
        with self.lock:
            self.replaced += 1
            file = str(failure).split(" ")[0]
            if file not in self.complained:
                self.complained.add(file)
                log.warning("%s; other samples stand in", failure)
            if self.replaced > LIMIT * max(len(self), self.next) * local / self.batch_size:
                raise DataError(f"{first}; {self.replaced} samples could not be read, above {LIMIT:.1%}")

    def _column(self, name: str) -> np.ndarray:
        values = self.source.dataset.column(name)
        if values.dtype.kind not in "fiub":
            raise InputError(f"column {name!r} holds text; a batch carries numbers only (use it in `where`)")
        return values
