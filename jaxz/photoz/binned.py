"""Metrics in bins of redshift, magnitude and whatever else errors depend on; and of redshift distributions."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxz.photoz.bootstrap import ENOUGH_CELLS
from jaxz.photoz.metrics import Metric, Metrics, all_metrics, evaluate_metrics, main_metrics, residuals
from jaxz.photoz.pdf import PDF

ENOUGH = 25  # objects of a bin that says something
EQUAL_BINS = 10  # of redshift, up to what 99.8 % of the objects have
DEPENDENCE = {  # what dependence_metrics finds, as a report shows it
    "slope_z_true": Metric(
        "slope in z<sub>true</sub>", "of the mean e given the true redshift; below 0: to the mean", None
    ),
    "slope_z_phot": Metric("slope in z<sub>estimated</sub>", "of the mean e given the estimated redshift", None),
    "macro_sigma_mad": Metric("macro σ<sub>MAD</sub>", "mean over ten equal bins of true redshift", None),
    "spread_sigma_mad": Metric("spread of σ<sub>MAD</sub>", "largest less smallest of those bins", None),
    "macro_bias_median": Metric("macro |bias|", "mean size of the median e over ten equal bins of true redshift", None),
    "spread_bias_median": Metric("spread of bias", "largest less smallest of those bins", None),
    "macro_eta_15": Metric("macro η<sub>0.15</sub>", "mean over ten equal bins of true redshift", None, percent=True),
    "spread_eta_15": Metric("spread of η<sub>0.15</sub>", "largest less smallest of those bins", None, percent=True),
}


Edges = np.ndarray | Sequence[float]  # [n+1], ascending


def bins_of(by: np.ndarray, edges: Edges) -> list[np.ndarray]:
    """The rows [M] of each bin [low, high), the last closed; those with a NaN are in none."""
    lows, highs = edges[:-1], [*edges[1:-1], np.nextafter(edges[-1], np.inf)]
    return [np.flatnonzero((by >= low) & (by < high)) for low, high in zip(lows, highs, strict=True)]


def binned_metrics(
    z_phot: np.ndarray,
    z_true: np.ndarray,
    by: np.ndarray,
    edges: Edges,
    pdf: PDF | None = None,
    *,
    cells: np.ndarray | None = None,
    metrics: Metrics = all_metrics,
    resamples: int = 100,
    seed: int = 0,
) -> list[dict]:
    """evaluate_metrics in bins of `by` [N] (z_true, z_phot, a magnitude, the number of bands, E(B-V), the coverage by
    training objects), a dict a bin [low, high), the last closed: {"low", "high", "centre": median of `by`, None where
    empty, "objects": count, metric: {"value", "error"}, ...}.

    cells: [N], which the bootstrap of a bin draws whole where it has at least five of them, see evaluate_metrics.
    Binning in z_true and in z_phot differ where the estimate regresses to the mean: look at both (Lin et al. 2022).
    """
    z_phot, z_true, by = np.asarray(z_phot), np.asarray(z_true), np.asarray(by)
    bins = []
    for rows, low, high in zip(bins_of(by, edges), edges[:-1], edges[1:], strict=True):
        own = None if pdf is None else pdf[rows]
        drawn = None if cells is None or len(np.unique(cells[rows])) < ENOUGH_CELLS else cells[rows]
        found = evaluate_metrics(
            z_phot[rows], z_true[rows], own, cells=drawn, metrics=metrics, resamples=resamples, seed=seed
        )
        centre = float(np.median(by[rows])) if len(rows) else None
        bins.append({"low": float(low), "high": float(high), "centre": centre, **found, "objects": len(rows)})
    return bins


def macro_metrics(z_phot: np.ndarray, z_true: np.ndarray, edges: Edges) -> dict[str, float]:
    """main_metrics of [N] objects averaged over bins of z_true, each counting the same, as macro_<metric> (of biases
    their size), and the largest less the smallest of the bins as spread_<metric> (ICT-ConvEntion's measure of
    imbalance). Bins with fewer than 25 objects are left out; NaN where none is left."""
    rows = [rows for rows in bins_of(z_true, edges) if len(rows) >= ENOUGH]
    if not rows:
        names = main_metrics(np.zeros(1), np.zeros(1))
        return {f"{kind}_{name}": np.nan for name in names for kind in ("macro", "spread")}
    found = [main_metrics(z_phot[own], z_true[own]) for own in rows]
    result = {}
    for name in found[0]:
        values = np.array([metrics[name] for metrics in found])
        result[f"macro_{name}"] = float(np.mean(np.abs(values) if "bias" in name else values))
        result[f"spread_{name}"] = float(np.ptp(values))
    return result


def equal_bins(z_true: np.ndarray) -> np.ndarray:
    """[11] edges of ten bins of equal width, from the least of the redshifts [N] to what 99.8 % of them have."""
    return np.linspace(np.min(z_true), np.quantile(z_true, 0.998), EQUAL_BINS + 1)


def dependence_metrics(z_phot: np.ndarray, z_true: np.ndarray, edges: Edges) -> dict[str, float]:
    """macro_metrics in bins of z_true, and the slopes of E[e | z_true] and E[e | z_phot], per unit of redshift, as
    slope_z_true and slope_z_phot (Lin et al. 2022)."""
    by = {"slope_z_true": z_true, "slope_z_phot": z_phot}
    slopes = {name: residual_slope(residual_curve(z_phot, z_true, z, edges))[0] for name, z in by.items()}
    return macro_metrics(z_phot, z_true, edges) | slopes


def residual_curve(z_phot: np.ndarray, z_true: np.ndarray, by: np.ndarray, edges: Edges) -> dict[str, np.ndarray]:
    """E[e | by], by being z_true or z_phot: {"centre", "mean", "error", "objects"}, each [n], of bins with at least 25
    objects: the mean of `by`, the mean of e and its standard error."""
    e = residuals(z_phot, z_true)
    kept = [rows for rows in bins_of(by, edges) if len(rows) >= ENOUGH]
    return {
        "centre": np.array([by[rows].mean() for rows in kept]),
        "mean": np.array([e[rows].mean() for rows in kept]),
        "error": np.array([e[rows].std(ddof=1) / np.sqrt(len(rows)) for rows in kept]),
        "objects": np.array([len(rows) for rows in kept]),
    }


def residual_slope(curve: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Slope of the line through a residual_curve, bins weighted by 1 / error^2, and its error (Lin et al. 2022): below
    0 in z_true, redshifts regress to the mean. NaN for fewer than two bins."""
    if len(curve["centre"]) < 2:
        return np.nan, np.nan
    weight = 1 / np.maximum(curve["error"], 1e-12) ** 2
    lever = curve["centre"] - np.average(curve["centre"], weights=weight)
    spread = np.sum(weight * lever**2)
    return float(np.sum(weight * lever * curve["mean"]) / spread), float(spread**-0.5)


def tomography(pdf: PDF, z_phot: np.ndarray, z_true: np.ndarray, edges: Edges) -> list[dict]:
    """n(z) of tomographic bins of z_phot: the stacked p(z) of their objects against the truth.

    A dict a bin:

    low, high, objects
    mean_bias     (mean of the stack - mean z_true) / (1 + mean z_true)
    wasserstein   the integral of |CDF of the stack - that of z_true|, in redshift
    kld           sum of q_b log(q_b / p_b) over the grid's bins, q the histogram of z_true and p the stack: about
                  (bins - 1) / (2 objects) for the right one; infinite where p is 0 and q is not, as off the grid
    of which a bin without objects has None.
    """
    bins = []
    for rows, low, high in zip(bins_of(z_phot, edges), edges[:-1], edges[1:], strict=True):
        found: Mapping[str, float | None] = dict.fromkeys(("mean_bias", "wasserstein", "kld"))
        if len(rows):
            found = stack_metrics(PDF(pdf.edges, pdf[rows].probability.mean(axis=0, dtype=float)[None]), z_true[rows])
        bins.append({"low": float(low), "high": float(high), "objects": len(rows), **found})
    return bins


def stack_metrics(stack: PDF, z_true: np.ndarray) -> dict[str, float]:
    """mean_bias, wasserstein and kld, see tomography. stack: one density; z_true: [N]."""
    mean, z = z_true.mean(), np.sort(z_true)
    nodes = np.unique(np.concatenate([stack.edges, z]))
    steps = np.searchsorted(z, nodes[:-1], side="right") / len(z)
    cdf = np.interp(nodes, stack.edges, stack.cumulative[0])
    a, b = np.abs(cdf[:-1] - steps), np.abs(cdf[1:] - steps)
    crosses = (cdf[:-1] - steps) * (cdf[1:] - steps) < 0
    with np.errstate(divide="ignore", invalid="ignore"):
        height = np.where(crosses, (a * a + b * b) / (a + b), a + b) / 2  # of |line from -a to b|, or from a to b
        q, p = np.histogram(z, stack.edges)[0] / len(z), stack.probability[0]
        kld = np.where(q > 0, q * np.log(q / p), 0).sum()
    if z[0] < stack.edges[0] or z[-1] > stack.edges[-1]:
        kld = np.inf
    return {
        "mean_bias": float((stack.mean()[0] - mean) / (1 + mean)),
        "wasserstein": float(np.sum(height * np.diff(nodes))),
        "kld": float(kld),
    }
