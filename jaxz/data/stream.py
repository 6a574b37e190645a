"""Batches of datasets in an order that is a pure function of (seed, epoch, position): exact to resume, elastic."""

import collections
import itertools
import logging
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from jaxz.data.columns import is_whole
from jaxz.data.dataset import DataError
from jaxz.data.mixture import Stage, check_sources, check_stages, joined_columns
from jaxz.data.order import derive
from jaxz.data.reader import Reader
from jaxz.data.sampling import Sampler, Source
from jaxz.errors import InputError

log = logging.getLogger("jaxz")
T = TypeVar("T")
STATE_VERSION = 1
MISFITS = 100  # rows with too many exceptions for their batch, before one of them is tried
LIMIT = 1e-3  # replaced samples in an epoch's worth, before it is no accident
CHECKS, ON_ERROR = ("size", "crc"), ("raise", "replace")
AHEAD = 2  # batches read ahead beside those being read
SETTINGS = ("name", "where", "window", "weights", "balance", "seed", "shuffle")  # beside rows and columns


class Cursor(NamedTuple):
    """Before which batch a stream stands: batches so far, and of each source epoch * rows + position."""

    step: int
    positions: tuple[int, ...]


class Coming(NamedTuple):
    """The shards that a source is read from next, and the positions from which on that is out of date: where the first
    batch in flight leaves a window, and the last one enters another."""

    shards: tuple[int, ...] | list[int] = ()
    left_at: float = 0
    entered_at: float = 0


class Stream:
    """Iterates over batches, dicts of NumPy arrays [B, ...]: the sources' arrays and columns (a variable array with its
    `<array>_mask`), `row` (global row number in its dataset, int64), `epoch` (int32) and `position` in the epoch
    (uint32).

    Several sources share each batch in the proportions of the stages, which follow one another by the number of
    batches (default: one stage, equal shares); each fills one run of entries, and `source` (int32) says which. Their
    arrays must be alike; a column of real numbers that one lacks is NaN there.
    epochs=None: endless, an epoch's tail goes on into the next epoch. epochs=1, for one source: every row once; the
    last batch is filled up with repeats, and `valid` (bool) says which rows count. `local` is the slice of every global
    batch that this process reads: processes that read all slices read the same global batches as one process does.
    on_error: "raise" (DataError where a sample cannot be read whole) or "replace": another row stands in for it, which
    one being a function of (seed, epoch, position); each is counted in `replaced`, each file named once in the log, and
    above 0.1 % (of an epoch, or of all so far) DataError after all. check: "size" or "crc" of every payload; only the
    latter tells another shard of the same size. Raises InputError for unknown names, settings out of range or no rows.
    """

    def __init__(
        self,
        sources: Source | Sequence[Source],
        batch_size: int,
        *,
        stages: Sequence[Stage] = (),
        seed: int = 0,
        shuffle: bool = True,
        epochs: int | None = None,
        local: slice = slice(None),
        check: str = "size",
        coalesce: int = 4096,
        on_error: str = "raise",
        threads: int = 2,
    ):
        self.sources = (sources,) if isinstance(sources, Source) else as_tuple(sources, Source, "sources")
        check_settings(locals())
        arrays = check_sources(self.sources, epochs)
        self.batch_size, self.seed, self.epochs = batch_size, seed, epochs
        self.stages = as_tuple(stages, Stage, "stages") or (Stage((1,) * len(self.sources)),)
        check_stages(self.stages, len(self.sources))
        self.counts = [stage.counts(batch_size) for stage in self.stages]
        self.seeds = [int(derive(seed, s)) if s else seed for s in range(len(self.sources))]  # independent draws
        self.samplers = [Sampler(source, own, shuffle) for source, own in zip(self.sources, self.seeds, strict=True)]
        self.columns = joined_columns(self.sources, self.samplers)
        self.described = [describe(*each, seed) for each in zip(self.sources, self.samplers, strict=True)]
        datasets = list(dict.fromkeys(source.dataset for source in self.sources))
        self.reader = Reader(datasets, arrays, check, coalesce)
        self.first_rows = np.array([self.reader.first_row(source.dataset) for source in self.sources])
        self.on_error, self.replaced, self.lock = on_error, 0, threading.Lock()
        self.complained: set[int] = set()  # shards
        self.slots, self.threads = np.arange(batch_size)[local], threads
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="jaxz-read")
        self.now = self.planned = Cursor(0, (0,) * len(self.sources))  # batches handed out, batches being read
        self.pending: collections.deque[tuple[Future[dict[str, np.ndarray]], Cursor]] = collections.deque()
        for sampler in self.samplers:
            sampler.check_cache((threads + AHEAD) * batch_size)
        self.coming = [Coming()] * len(self.sources)

    def __len__(self) -> int:
        """Positions of one epoch, of all sources."""
        return sum(map(len, self.samplers))

    def drawn(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """A column's values [M] in the rows that all sources draw, and how often an epoch of its source draws each."""
        each = [values[s.rows] for values, s in zip(self.columns[column], self.samplers, strict=True)]
        return np.concatenate(each), np.concatenate([s.draws for s in self.samplers])

    @property
    def batches(self) -> int | None:
        """Batches in all; None for an endless stream."""
        return None if self.epochs is None else -(-self.epochs * len(self) // self.batch_size)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        while len(self.pending) < self.threads + AHEAD and not self._ended(self.planned):
            future = self.pool.submit(self._batch, self.planned)
            self.planned = self._after(self.planned)
            self.pending.append((future, self.planned))
        self._look_ahead()
        if not self.pending:
            raise StopIteration
        future, after = self.pending[0]
        try:
            batch = future.result()
        except BaseException:
            self._drain()  # asked again, it is this batch that is tried again
            raise
        self.pending.popleft()
        self.now = after
        return batch

    def fetch(self, rows: np.ndarray, source: int = 0) -> dict[str, np.ndarray]:
        """The arrays and columns of rows [K] of a source's dataset, by number, and `row`. Raises InputError for what is
        no row number of it."""
        rows = np.asarray(rows)
        if rows.ndim != 1 or (rows.dtype.kind not in "iu" and len(rows)):
            raise InputError(f"rows: {rows!r:.80} must be whole numbers [K]; np.flatnonzero makes them of a mask")
        if not (is_whole(source) and 0 <= source < len(self.sources)):
            raise InputError(f"source: {source!r} must be the number of a source, 0..{len(self.sources) - 1}")
        rows = rows.astype(np.int64)
        count = len(self.sources[source].dataset)
        if len(rows) and not (rows.min() >= 0 and rows.max() < count):
            raise InputError(f"rows: {rows.min()}..{rows.max()} are not all row numbers of the dataset, 0..{count - 1}")
        for name, filled in self.samplers[source].filled.items():
            if filled[rows].any():
                raise InputError(
                    f"rows: column {name!r} is missing for {int(filled[rows].sum())} of them; leave it out of columns"
                )
        numbers = rows + self.first_rows[source]
        shards, batch = self.reader.shard_numbers(numbers), {} if len(rows) else self.reader.read(numbers)
        for n in np.unique(shards).tolist():  # by shard: of a remote dataset not all have to be there at once
            here = np.flatnonzero(shards == n)
            for name, values in self.reader.read(numbers[here], numbers).items():
                batch.setdefault(name, np.empty((len(rows), *values.shape[1:]), values.dtype))[here] = values
            self.reader.release(n)
        return batch | {name: values[source][rows] for name, values in self.columns.items()} | {"row": rows}

    def state(self) -> dict:
        """Where the stream stands, as JSON; the same on every process. Batches read ahead do not count."""
        sources = []
        for described, sampler, at in zip(self.described, self.samplers, self.now.positions, strict=True):
            epoch, position = divmod(at, len(sampler))
            sources.append({**described, "epoch": epoch, "position": position})
        stage, step = self._stage(self.now.step), self.now.step
        return {
            "version": STATE_VERSION,
            "batch_size": self.batch_size,
            "sources": sources,
            "stage": stage,
            "step": step,
        }

    def restore(self, state: dict) -> None:
        """Go on from `state()`, in O(1); batch size, stages and epochs may be others. Raises InputError where rows,
        columns or the sources' settings are not those it is of."""
        if state.get("version") != STATE_VERSION:
            raise InputError(f"stream state version {state.get('version')!r} is not {STATE_VERSION}; start a new run")
        if len(state["sources"]) != len(self.sources):
            raise InputError(
                f"the stream had {len(state['sources'])} source(s) and now has {len(self.sources)}; undo it or start "
                "a new run"
            )
        for source, then, now in zip(self.sources, state["sources"], self.described, strict=True):
            check_same(source, then, now)
        self._drain()
        positions = [
            then["epoch"] * len(sampler) + then["position"]
            for then, sampler in zip(state["sources"], self.samplers, strict=True)
        ]
        step = state.get("step", positions[0] // state["batch_size"])  # states of one source once had none
        self.now = self.planned = Cursor(step, tuple(positions))
        self.coming = [Coming()] * len(self.sources)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._drain()
        self.pool.shutdown(cancel_futures=True)
        self.reader.close()

    def _drain(self) -> None:
        for future, _ in self.pending:
            future.cancel()
        self.pending.clear()
        self.planned = self.now

    def _stage(self, step: int) -> int:
        """The stage of a step."""
        ends = itertools.accumulate(stage.steps or 0 for stage in self.stages[:-1])  # the last alone has no number
        return sum(end <= step for end in ends)

    def _look_ahead(self) -> None:
        """Where the batches in flight enter or leave a window: tell the reader which shards come."""
        end = math.inf if self.epochs is None else self.epochs * len(self)
        before = list(self.coming)
        for s, sampler in enumerate(self.samplers):
            start, stop = self.now.positions[s], self.planned.positions[s]
            if start == stop:
                self.coming[s] = Coming()
            elif sampler.windowed and (start >= before[s].left_at or stop > before[s].entered_at):
                self.coming[s] = Coming(*sampler.ahead(start, stop, end))
        if self.coming != before:
            self.reader.ahead([
                self.reader.first_shard(source.dataset) + n
                for source, coming in zip(self.sources, self.coming, strict=True)
                for n in coming.shards
            ])  # fmt: skip

    def _after(self, cursor: Cursor) -> Cursor:
        counts = self.counts[self._stage(cursor.step)]
        positions = (at + count for at, count in zip(cursor.positions, counts, strict=True))
        return Cursor(cursor.step + 1, tuple(positions))

    def _ended(self, cursor: Cursor) -> bool:
        return self.epochs is not None and cursor.positions[0] >= self.epochs * len(self)

    def _batch(self, cursor: Cursor) -> dict[str, np.ndarray]:
        draw = Draw(self, cursor, self.slots)
        whole = Draw(self, cursor, np.arange(self.batch_size)) if len(self.slots) < self.batch_size else draw
        try:
            batch = self.reader.read(draw.numbers, whole.numbers)
        except DataError as error:
            if self.on_error == "raise":
                raise
            batch = self._read_around(error, draw, whole.numbers)
        for name, values in self.columns.items():
            parts = [values[s][draw.rows[part]] for s, part in draw.parts]
            batch[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        batch |= {"row": draw.rows, "epoch": draw.epochs, "position": draw.positions}
        if len(self.sources) > 1:
            batch["source"] = draw.sources
        if self.epochs is not None:
            batch["valid"] = cursor.positions[0] + self.slots < self.epochs * len(self)
        return batch

    def _read_around(self, error: DataError, draw: "Draw", whole: np.ndarray) -> dict[str, np.ndarray]:
        """Read the drawn rows; in place of those that cannot be read others, which `draw.rows` then says."""
        for slot in range(len(draw.rows)):
            others = self._stand_ins(draw, slot, whole)
            while True:
                try:
                    self.reader.read(draw.numbers[slot : slot + 1], whole)
                    break
                except DataError as failure:
                    self._count(failure, error, int(self.reader.shard_numbers(draw.numbers[slot])), len(draw.rows))
                    draw.rows[slot] = next(others)
        return self.reader.read(draw.numbers, whole)

    def _stand_ins(self, draw: "Draw", slot: int, whole: np.ndarray) -> Iterator[int]:
        """Rows from anywhere in the epoch of the slot's source, for as long as there are some that fit its batch."""
        s, epoch, position = draw.sources[slot], int(draw.epochs[slot]), int(draw.positions[slot])
        sampler, misfits = self.samplers[s], 0
        for attempt in itertools.count():
            at = int(derive(self.seeds[s], epoch, position, attempt) % np.uint64(len(sampler)))
            row = int(sampler(np.array([epoch * len(sampler) + at]))[0])
            fits = self.reader.fits(row + self.first_rows[s], whole)
            misfits += not fits
            if fits or misfits > MISFITS:
                yield row

    def _count(self, failure: DataError, first: DataError, shard: int, local: int) -> None:
        with self.lock:
            self.replaced += 1
            if shard not in self.complained:
                self.complained.add(shard)
                log.warning("%s; other samples stand in", failure)
            if self.replaced > LIMIT * max(len(self), self.planned.step * self.batch_size) * local / self.batch_size:
                raise DataError(f"{first}; {self.replaced} samples could not be read, above {LIMIT:.1%}")


class Draw:
    """What stands in some slots [b] of one batch: sources (int32), rows, epochs and positions. parts: (source, slice of
    the b) of every source among them."""

    def __init__(self, stream: Stream, cursor: Cursor, slots: np.ndarray):
        ends = np.cumsum(stream.counts[stream._stage(cursor.step)])
        self.sources = np.searchsorted(ends, slots, side="right").astype(np.int32)
        self.rows, self.epochs, positions = np.empty((3, len(slots)), np.int64)
        self.first_rows, self.parts = stream.first_rows[self.sources], []
        for s in np.unique(self.sources).tolist():
            here = slice(*np.searchsorted(self.sources, (s, s + 1)))
            at = cursor.positions[s] + slots[here] - (ends[s - 1] if s else 0)
            self.rows[here] = stream.samplers[s](at)
            self.epochs[here], positions[here] = np.divmod(at, len(stream.samplers[s]))
            self.parts.append((s, here))
        self.epochs, self.positions = self.epochs.astype(np.int32), positions.astype(np.uint32)

    @property
    def numbers(self) -> np.ndarray:
        """The rows as the reader numbers them, through all datasets."""
        return self.rows + self.first_rows


def describe(source: Source, sampler: Sampler, seed: int) -> dict:
    """What a state says of a source, beside where it stands."""
    return {
        "name": source.name,
        "fingerprint": source.dataset.fingerprint(sampler.digests),
        "where": source.where,
        "window": source.window,
        "weights": source.weights,
        "balance": source.balance and [source.balance, source.bins],
        "seed": seed,
        "shuffle": sampler.shuffle,
    }


def told_of(name: str, before: dict, after: dict) -> str:
    """What became of a column, whose digests are given."""
    if name not in after:
        return "is no longer read"
    return "its values changed" if name in before else "was not read"


def as_tuple(items: object, kind: type[T], name: str) -> tuple[T, ...]:
    """Raises InputError for items of another kind."""
    given = tuple(items) if isinstance(items, Iterable) else (items,)
    found = tuple(item for item in given if isinstance(item, kind))
    if len(found) < len(given):
        raise InputError(f"{name}: {items!r:.80} must be jaxz.{kind.__name__} objects")
    return found


def check_settings(given: dict) -> None:
    """Raises InputError for arguments of a Stream that are out of range."""
    for name, least in (("batch_size", 1), ("threads", 1), ("coalesce", 0), ("seed", 0)):
        if not (is_whole(given[name]) and given[name] >= least):
            raise InputError(f"{name}: {given[name]!r} must be a whole number of at least {least}")
    if given["epochs"] is not None and not (is_whole(given["epochs"]) and given["epochs"] >= 1):
        raise InputError(f"epochs: {given['epochs']!r} must be a whole number of at least 1, or None for no end")
    for name, known in (("check", CHECKS), ("on_error", ON_ERROR)):
        if given[name] not in known:
            raise InputError(f"{name}: {given[name]!r} must be one of {', '.join(map(repr, known))}")


def check_same(source: Source, then: dict, now: dict) -> None:
    """Raises InputError where a source is not the one that a state is of."""
    if then["fingerprint"]["rows"] != now["fingerprint"]["rows"]:
        was, out = (state["fingerprint"].get("quarantined", 0) for state in (then, now))
        listed = f", of which quarantine.json leaves out {out} (then {was})," if was or out else ""
        raise InputError(
            f"data.path: the rows of {str(source.dataset.path)!r}{listed} are not those the run was started with; "
            "restore that dataset or start a new run"
        )
    before, after = then["fingerprint"]["columns"], now["fingerprint"]["columns"]
    inside = {name for name, spec in source.dataset.arrays.items() if not spec.in_tar}
    young = inside - before.keys()  # older states had no digests of arrays
    changed = sorted(name for name in {*before, *after} - young if before.get(name) != after.get(name))
    then = {"shuffle": True, **then}  # of which older states say nothing
    settings = [name for name in SETTINGS if then.get(name) != now[name]]
    if changed or settings:
        told = [f"{name}: {told_of(name, before, after)}" for name in changed]
        details = ", ".join(told + [f"{name}: {then.get(name)!r} -> {now[name]!r}" for name in settings])
        raise InputError(f"the stream changed since the checkpoint ({details}); undo it or start a new run")
