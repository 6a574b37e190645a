"""Several sources in one batch: in which proportions, and what they must have in common."""

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from jaxz.data.sampling import Sampler, Source
from jaxz.errors import InputError, suggest

OWN = ("row", "epoch", "position", "valid", "source")  # entries that the stream adds to a batch
TRAINING = ("mask", "sky", "views", "crops", "nonfinite", "share", "bootstrap")  # and what is made of it in training


@dataclass(frozen=True)
class Stage:
    """So many batches (None: all that follow) that hold the sources in these proportions, such as (1, 3)."""

    ratios: tuple[float, ...]
    steps: int | None = None

    def counts(self, batch_size: int) -> list[int]:
        """How many entries of a batch each source fills: the proportions, rounded so that they make a whole batch
        (largest remainders). Raises InputError for ratios that are none, or too small for the batch."""
        if not all(math.isfinite(ratio) and ratio >= 0 for ratio in self.ratios) or not sum(self.ratios) > 0:
            raise InputError(f"ratios: {self.ratios} must be numbers of at least 0, not all 0")
        exact = np.array(self.ratios) * batch_size / sum(self.ratios)
        counts = np.floor(exact).astype(int)
        counts[np.argsort(counts - exact, kind="stable")[: batch_size - counts.sum()]] += 1
        if any(ratio and not count for ratio, count in zip(self.ratios, counts, strict=True)):
            raise InputError(f"ratios: {self.ratios} leave a source without a place in a batch of {batch_size}")
        return counts.tolist()


def check_sources(sources: tuple[Source, ...], epochs: int | None) -> tuple[str, ...]:
    """The arrays that are read. Raises InputError for sources that are none, or that cannot share a batch."""
    if not sources or (epochs is not None and len(sources) > 1):
        raise InputError(f"sources: {len(sources)} of them; give at least one, and just one where epochs are counted")
    first = sources[0].dataset
    wanted = tuple(first.arrays) if sources[0].arrays is None else sources[0].arrays
    for source in sources:
        known = source.dataset.arrays
        for name in source.arrays or ():
            if name not in known:
                raise InputError(f"array {name!r} is not in {str(source.dataset.path)!r}.{suggest(name, known)}")
        arrays = tuple(known) if source.arrays is None else source.arrays
        if taken := [name for name in (*arrays, *source.columns) if name in OWN]:
            raise InputError(f"column {taken[0]!r} has a name that the stream itself uses; rename it in the dataset")
        same = arrays == wanted and all(known[name] == first.arrays[name] for name in arrays)
        if not same or source.dataset.manifest.bands != first.manifest.bands:
            raise InputError(
                f"sources: {str(source.dataset.path)!r} has other arrays or bands than "
                f"{str(sources[0].dataset.path)!r}; convert both alike, or name the arrays that they share"
            )
    return wanted


def untaken(arrays: Collection[str]) -> Collection[str]:
    """The arrays of a dataset's layers. Raises InputError for a name that is another thing's in training."""
    if taken := sorted(set(TRAINING).intersection(arrays)):
        raise InputError(f"data.layers: the array {taken[0]!r} has a name that training itself uses; rename it there")
    return arrays


def check_stages(stages: tuple[Stage, ...], sources: int) -> None:
    """Raises InputError for stages that do not fit the sources or do not follow one another."""
    for number, stage in enumerate(stages):
        last = number == len(stages) - 1
        if len(stage.ratios) != sources:
            raise InputError(f"stages[{number}].ratios: {stage.ratios} must be {sources}, one for each source")
        if stage.steps is not None if last else not stage.steps or stage.steps < 1:
            rule = "be absent from the last stage, which goes on" if last else "be at least 1"
            raise InputError(f"stages[{number}].steps: {stage.steps} must {rule}")


def joined_columns(sources: tuple[Source, ...], samplers: list[Sampler]) -> dict[str, list[np.ndarray]]:
    """{name: [values [N] of all rows of each source]}. Raises InputError for whole numbers that a source lacks."""
    columns: dict[str, list[np.ndarray]] = {}
    for name in dict.fromkeys(name for source in sources for name in source.columns):
        found = [sampler.columns.get(name) for sampler in samplers]
        kind = np.result_type(*(values.dtype for values in found if values is not None))
        if any(values is None for values in found) and kind.kind != "f":
            raise InputError(f"column {name!r} is not in every source, and {kind} has no value for missing; add it")
        columns[name] = []
        for source, values in zip(sources, found, strict=True):
            if values is None:
                values = np.broadcast_to(np.array(np.nan, kind), len(source.dataset))
            columns[name].append(values.astype(kind, copy=False))
    return columns
