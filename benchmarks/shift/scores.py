"""Arms scored on subsets of the test objects, with errors over sky cells and seeds, paired between arms."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.shift.labels import Subset
from jaxz.errors import InputError
from jaxz.photoz.binned import ENOUGH, bins_of, dependence_metrics, equal_bins
from jaxz.photoz.bootstrap import Estimate, hierarchical_bootstrap
from jaxz.photoz.metrics import main_metrics, pit_ks, residuals
from jaxz.photoz.pdf import PDF, read_qp

METRICS = ("sigma_mad", "eta_15", "bias_median", "abs_bias", "pit_ks", "tomography")
DEPENDENCE = (
    "slope_z_true", "slope_z_phot", "macro_sigma_mad", "spread_sigma_mad", "macro_bias_median", "spread_bias_median",
)  # fmt: skip
CLOSED = ("sigma_mad", "eta_15", "abs_bias")  # metrics whose gap to the oracle is looked at: 0 is perfect
SIGNIFICANT = 3.0  # errors of the gap, below which there is none to close
TOMOGRAPHIC = 5  # bins, of as many objects by their true redshift

Columns = dict[str, np.ndarray]
Scores = dict[str, dict[str, dict[str, Estimate]]]  # {subset: {arm: {metric: Estimate}}}


def read_run(path: Path, keys: np.ndarray, z_true: np.ndarray) -> Columns:
    """What metrics are made of, of all test objects, {column: [N]}: z_phot, the median of p(z); mean, its expectation;
    pit, its CDF at z_true; and z_true, NaN where it is unknown, as pit is then.

    Raises InputError where a run's predictions are not of the objects `keys` [N].
    """
    pdf, ancil = read_qp(path / "pdf.hdf5")
    if not np.array_equal(np.asarray(ancil["key"]).astype(str), keys):
        raise InputError(f"{path}/pdf.hdf5: its objects are not the dataset's test objects; remove the directory")
    return predicted(pdf, z_true)


def predicted(pdf: PDF, z_true: np.ndarray) -> Columns:
    z_phot, mean = (np.concatenate([point(block) for block in pdf.blocks()]) for point in (PDF.median, PDF.mean))
    return {"z_phot": z_phot, "mean": mean, "pit": pdf.cdf(z_true), "z_true": z_true}


def columns_of(run: Columns, subset: Subset) -> Columns:
    """{column: [M]} of the objects of a subset."""
    return {name: values[subset.rows] for name, values in run.items()}


def statistic(edges: np.ndarray, bins: np.ndarray) -> Callable[[Columns], dict[str, float]]:
    """METRICS of columns, and DEPENDENCE in bins of redshift with the edges `bins`. tomography: the mean over bins of
    z_phot with the edges `edges`, at least 25 objects each, of |<z> of the stacked p(z) - <z_true>| / (1 + <z_true>);
    the stack's mean is the mean of the means."""

    def measure(c: Columns) -> dict[str, float]:
        points = main_metrics(c["z_phot"], c["z_true"])
        dependence = dependence_metrics(c["z_phot"], c["z_true"], bins)
        rows = [rows for rows in bins_of(c["z_phot"], edges) if len(rows) >= ENOUGH]
        true = np.array([c["z_true"][r].mean() for r in rows])
        stacked = np.array([c["mean"][r].mean() for r in rows])
        return {
            **{name: float(points[name]) for name in ("sigma_mad", "eta_15", "bias_median")},
            "abs_bias": float(abs(points["bias_median"])),
            "pit_ks": float(pit_ks(c["pit"])),
            "tomography": float(np.mean(np.abs(stacked - true) / (1 + true))) if rows else np.nan,
            **{name: dependence[name] for name in DEPENDENCE},
        }

    return measure


def scored(arms: Mapping[str, Sequence[Columns]], cells: np.ndarray, subsets: Mapping[str, Subset]) -> Scores:
    """{subset: {arm: {metric: Estimate}}} of arms of the same seeds; subsets of fewer than 25 objects, or of one sky
    cell, are left out."""
    result = {}
    for name, subset in subsets.items():
        if len(subset.rows) < ENOUGH or len(np.unique(cells[subset.rows])) < 2:
            continue
        of = {arm: [columns_of(run, subset) for run in runs] for arm, runs in arms.items()}
        z_true = next(iter(of.values()))[0]["z_true"]
        edges = np.quantile(z_true, np.linspace(0, 1, TOMOGRAPHIC + 1))
        edges[[0, -1]] = -np.inf, np.inf
        result[name] = hierarchical_bootstrap(statistic(edges, equal_bins(z_true)), of, cells[subset.rows])
    return result


def gap_closure(none: Estimate, arm: Estimate, oracle: Estimate) -> Estimate | None:
    """(m_none - m) / (m_none - m_oracle): 0 for an arm no better than the baseline, 1 for one as good as the oracle.

    None where the gap is below 3 of its errors: there is then nothing to close. Resamples in which the gap is not
    positive say nothing, and are left out of the error.
    """
    gap, closed = none - oracle, none - arm
    if not gap.value > SIGNIFICANT * gap.error:
        return None
    draws = np.divide(closed.draws, gap.draws, where=gap.draws > 0, out=np.full(len(gap.draws), np.nan))
    return Estimate(closed.value / gap.value, draws)


def relative_loss(none: Estimate, arm: Estimate) -> Estimate:
    """m / m_none - 1."""
    return Estimate(arm.value / none.value - 1, arm.draws / none.draws - 1)


def binned_bias(by: str, edges: np.ndarray) -> Callable[[Columns], dict[str, float]]:
    """{bin number: mean e} of columns in bins of `by`; NaN for a bin of fewer than 25 objects."""

    def measure(c: Columns) -> dict[str, float]:
        e = residuals(c["z_phot"], c["z_true"])
        rows = bins_of(c[by], edges)
        return {str(n): float(e[r].mean()) if len(r) >= ENOUGH else np.nan for n, r in enumerate(rows)}

    return measure


def residual_curves(
    arms: Mapping[str, Sequence[Columns]], cells: np.ndarray, subset: Subset, by: str
) -> tuple[np.ndarray, dict[str, list[Estimate]]]:
    """Edges [n+1] in redshift, and E[e | by] of each arm, by being z_true or z_phot (Lin et al. 2022)."""
    of = {arm: [columns_of(run, subset) for run in runs] for arm, runs in arms.items()}
    z_true = next(iter(of.values()))[0]["z_true"]
    edges = equal_bins(z_true)
    found = hierarchical_bootstrap(binned_bias(by, edges), of, cells[subset.rows])
    return edges, {arm: [curve[str(n)] for n in range(len(edges) - 1)] for arm, curve in found.items()}
