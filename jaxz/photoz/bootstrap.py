"""Errors of metrics by a hierarchical bootstrap over sky cells and training seeds, paired between arms."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from astropy import units as u
from astropy_healpix import lonlat_to_healpix

Arm = TypeVar("Arm", bound=Hashable)  # what an arm is called
CELL_ORDER = 9  # of HEALPix: sky cells of 7 arcmin
ENOUGH_CELLS = 5  # below, a bootstrap over them means nothing


class Estimate(NamedTuple):
    """A number with its bootstrap resamples. Those of all arms are of the same draws, so that the error of a difference
    is that of `first - second`, in which what both share cancels."""

    value: float
    draws: np.ndarray  # [R]

    @property
    def error(self) -> float:
        """Standard deviation of the resamples in which the statistic is defined; NaN for fewer than two."""
        defined = self.draws[np.isfinite(self.draws)]
        return float(np.std(defined, ddof=1)) if len(defined) > 1 else np.nan

    def __sub__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.value - other.value, self.draws - other.draws)


def hierarchical_bootstrap(
    statistic: Callable[[dict[str, np.ndarray]], Mapping[str, float | np.ndarray]],
    arms: Mapping[Arm, Sequence[Mapping[str, np.ndarray]]],
    cells: np.ndarray,
    *,
    resamples: int = 200,
    seed: int = 0,
) -> dict[Arm, dict[str, Estimate]]:
    """{arm: {metric: Estimate}} of `statistic`({column: [M]}) -> {metric: number}, in the mean over an arm's seeds.

    arms: {arm: [{column: [N]} of each training seed]}, all of the same N objects in the same order; cells: [N], the sky
    cell of each. A resample draws cells, with all objects in them, since neighbours share zero points, depth and
    large-scale structure, and of each arm seeds; both are drawn alike for all arms, so that what two arms share
    cancels in their difference (seeds: where they have as many, which should then share number and labels).
    Of n cells or seeds n - 1 are drawn, with replacement: with n, the variance would come out (n - 1) / n too small
    (Rao & Wu 1988), a third for three seeds. Of one seed, the spread between seeds is not known and not in the error.
    Raises ValueError where columns have another length, or there are fewer than two cells.
    """
    lengths = {len(values) for runs in arms.values() for run in runs for values in run.values()}
    if lengths != {len(cells)}:
        raise ValueError(f"arms: columns of {sorted(lengths)} objects do not fit the {len(cells)} of cells")
    order = np.argsort(cells, kind="stable")
    _, first, sizes = np.unique(np.asarray(cells)[order], return_index=True, return_counts=True)
    if len(first) < 2:
        raise ValueError("cells: all objects are in one, which leaves nothing to draw; use smaller ones")

    def measure(runs: Sequence[Mapping[str, np.ndarray]], rows: slice | np.ndarray) -> dict[str, float]:
        found = [statistic({name: values[rows] for name, values in run.items()}) for run in runs]
        return {metric: float(np.mean([one[metric] for one in found])) for metric in found[0]}

    draw, everything = np.random.default_rng(seed), slice(None)
    values = {arm: measure(runs, everything) for arm, runs in arms.items()}
    draws = {arm: {metric: np.empty(resamples) for metric in found} for arm, found in values.items()}
    for resample in range(resamples):
        chosen = draw.integers(0, len(first), len(first) - 1)
        before = np.cumsum(sizes[chosen]) - sizes[chosen]  # objects of the cells drawn so far
        rows = order[np.arange(sizes[chosen].sum()) + np.repeat(first[chosen] - before, sizes[chosen])]
        lot = draw.uniform(size=max(map(len, arms.values())))
        for arm, runs in arms.items():
            picked = [runs[int(u * len(runs))] for u in lot[: max(1, len(runs) - 1)]]
            for metric, value in measure(picked, rows).items():
                draws[arm][metric][resample] = value
    return {
        arm: {metric: Estimate(value, draws[arm][metric]) for metric, value in found.items()}
        for arm, found in values.items()
    }


def sky_cells(ra: np.ndarray, dec: np.ndarray) -> np.ndarray | None:
    """[N] int: the HEALPix cell of each position in degrees (ICRS); None where one is unknown, or all lie in fewer than
    five cells: errors are then of objects drawn one by one."""
    if not (np.isfinite(ra) & np.isfinite(dec)).all():
        return None
    cells = lonlat_to_healpix(np.asarray(ra, float) * u.deg, np.asarray(dec, float) * u.deg, 2**CELL_ORDER)
    return cells if len(np.unique(cells)) >= ENOUGH_CELLS else None
