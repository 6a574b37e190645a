"""Corrections of p(z) and of point estimates after training, from held-out objects of known redshift.

PIT recalibration, split-conformal intervals, and what is a function of arrays in Lin et al. 2022 (A&A 662, A36). The
two biases of Lin et al. stay apart: E[z_phot - z_spec | z_spec], which step 3 removes by shifted labels, and
E[z_phot - z_spec | z_phot], which step 4 subtracts. Removing one does not remove the other.
"""

import numpy as np
from scipy import stats
from scipy.optimize import minimize_scalar

from jaxz.photoz.pdf import PDF

MOST_KNOTS = 100  # of the distribution of PIT
TAIL = 1e-6  # of a CDF, where redshifts beyond its p(z) are put


def recalibrate(pdf: PDF, pit: np.ndarray, weights: np.ndarray | None = None) -> PDF:
    """p(z) whose CDF is R(CDF), R being the distribution of `pit` [N]: CDF(z_true) of held-out objects under p(z)
    of the same model, with weights [N] where these stand for others (Bordoloi et al. 2010; Kuleshov et al. 2018).

    R is linear between quantiles of `pit`, about sqrt(N) of them; what was possible stays so. It mends p(z) on average
    over objects like the held-out ones, not for each kind of them.
    """
    weights, order = np.ones(len(pit)) if weights is None else weights, np.argsort(pit)
    reached = (np.cumsum(weights[order]) - weights[order] / 2) / weights.sum()
    count = min(MOST_KNOTS, max(2, round(len(pit) ** 0.5)))
    levels = (np.arange(count) + 0.5) / count
    knots = np.interp(levels, reached, np.asarray(pit)[order]).clip(TAIL, 1 - TAIL)
    mass = np.diff(np.interp(pdf.cumulative, [0, *knots, 1], [0, *levels, 1]), axis=1)
    return PDF(pdf.edges, mass / mass.sum(axis=1, keepdims=True))


def conformal_intervals(
    pdf: PDF,
    held: PDF,
    z_held: np.ndarray,
    level: float,
    weights: np.ndarray | None = None,
    own: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """low, high [M]: central intervals of p(z) widened (or narrowed) in proportion, so that they hold the true redshift
    with a probability of `level` at least, whatever p(z) is worth, if `held` [N] with its redshifts is exchangeable
    with the objects of `pdf`: drawn alike, and not used in training.

    Conformalised quantile regression with scores in units of the interval (Romano, Patterson & Candes 2019, eqs. 6-8;
    Sesia & Candes 2020, CQR-r). Under covariate shift give the density ratios, `weights` [N] of the held-out objects
    and `own` [M] of those of `pdf` (Tibshirani et al. 2019, cor. 1). Intervals are infinite where too few objects, or
    too little weight, were held out. The probability is over all objects, not for each kind.
    """
    low, high = held.interval(level)
    score = np.maximum(low - z_held, z_held - high) / (high - low)
    weights, own = (np.ones(len(held)), np.ones(len(pdf))) if weights is None else (weights, own)
    order = np.argsort(score)
    reached = np.cumsum(weights[order])
    rank = np.searchsorted(reached, level * (reached[-1] + own) * (1 - 1e-12))
    stretch = np.append(score[order], np.inf)[rank]
    low, high = pdf.interval(level)
    margin = stretch * (high - low)
    return low - margin, high + margin


def moved(pdf: PDF, before: np.ndarray) -> PDF:
    """p(z) of redshifts that are corrected: its CDF at each edge is that of `pdf` at `before` [N,n+1], ascending, the
    redshift that the correction takes to the edge. What it takes off the grid counts in the outermost bins."""
    cumulative = np.array([np.interp(z, pdf.edges, cdf) for z, cdf in zip(before, pdf.cumulative, strict=True)])
    cumulative[:, 0], cumulative[:, -1] = 0, 1
    return PDF(pdf.edges, np.diff(cumulative, axis=1))


def label_width(z_phot: np.ndarray, z_spec: np.ndarray, edges: np.ndarray) -> float:
    """sigma_k: the Gaussian by which the histogram of z_phot must be smoothed to be likest to that of z_spec, in cross-
    entropy (Lin et al. 2022, step 3). edges [n+1] equally spaced; from a hundredth of a bin to the range's quarter."""
    n_spec, n_phot = (np.histogram(z, edges)[0] / len(z) for z in (z_spec, z_phot))
    centres = (edges[1:] + edges[:-1]) / 2

    def cross_entropy(ln_sigma: float) -> float:
        smooth = n_phot @ gaussian_bins(centres, np.exp(ln_sigma), edges)
        return -(n_spec * np.log(smooth + 1e-9)).sum()

    bounds = np.log([0.01 * (edges[1] - edges[0]), (edges[-1] - edges[0]) / 4])
    return float(np.exp(minimize_scalar(cross_entropy, bounds=bounds, method="bounded").x))


def gaussian_bins(mean: np.ndarray, sigma: np.ndarray | float, edges: np.ndarray) -> np.ndarray:
    """[N,n]: the mass of Gaussians (mean [N], sigma [N] or one) in each bin, cut to the edges [n+1]."""
    mass = np.diff(stats.norm.cdf(edges, mean[:, None], np.reshape(sigma, (-1, 1))), axis=1) + 1e-12
    return mass / mass.sum(axis=1, keepdims=True)


def scatter_profile(z_phot: np.ndarray, z_spec: np.ndarray, edges: np.ndarray, sigma: float) -> np.ndarray:
    """[n] sigma_scatter in bins of z_spec: its square is half the median plus half the mean of (z_phot - z_spec)^2,
    plus sigma^2 of the labels, smoothed over two bins (Lin et al. 2022, step 3); empty bins are as those around."""
    square, centres = (z_phot - z_spec) ** 2, (edges[1:] + edges[:-1]) / 2
    number = np.digitize(z_spec, edges) - 1
    filled = [n for n in range(len(centres)) if (number == n).any()]
    values = [(np.median(square[number == n]) + square[number == n].mean()) / 2 for n in filled]
    count = np.bincount(number[(number >= 0) & (number < len(centres))], minlength=len(centres))
    near = stats.norm.pdf(np.subtract.outer(np.arange(len(centres)), np.arange(len(centres))) / 2) * count
    total = near.sum(axis=1)
    profile = np.zeros(len(centres))
    profile[filled] = values
    return np.sqrt(np.divide(near @ profile, total, where=total > 0, out=np.zeros_like(profile)) + sigma**2)


def centre_of_mass(edges: np.ndarray, count: np.ndarray, cap: int, scatter: np.ndarray) -> np.ndarray:
    """[n] z_cm: where the estimates of objects of each redshift bin are drawn to, the mean of N(z, scatter) over the
    bins as full as a subset capped at `cap` has them, min(count, cap) / cap (Lin et al. 2022, step 3).

    edges [n+1], count [n] training objects, scatter [n]. Empty surroundings draw nowhere: z_cm is then z.
    """
    centres = (edges[1:] + edges[:-1]) / 2
    pull = stats.norm.pdf(centres, centres[:, None], scatter[:, None]) * np.minimum(count, cap) / cap
    total = pull.sum(axis=1)
    return np.divide(pull @ centres, total, where=total > 0, out=centres.copy())


def extended_edges(edges: np.ndarray, right: float = 0.5) -> np.ndarray:
    """Edges with half as many bins more on the left, and `right` times as many on the right (Lin et al. 2022, step 3:
    half, or 1 where redshifts are deep): room for labels z' = 2z - z_cm beyond the range. edges equally spaced."""
    n, width = len(edges) - 1, edges[1] - edges[0]
    left, more = n // 2, round(n * right)
    return np.concatenate([edges[0] + width * np.arange(-left, 0), edges, edges[-1] + width * np.arange(1, more + 1)])


def shifted(z: np.ndarray, z_cm: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """[N] labels 2z - z_cm(z) of redshifts z [N], for z_cm [n] of `centre_of_mass` in bins of edges [n+1]."""
    centres = (edges[1:] + edges[:-1]) / 2
    return z + np.interp(z, centres, centres - z_cm)


def subtract_phot_bias(
    z_phot: np.ndarray,
    magnitude: np.ndarray,
    train: tuple[np.ndarray, np.ndarray, np.ndarray],
    edges: np.ndarray,
    rows: np.ndarray,
    fewest: int = 5,
) -> np.ndarray:
    """[M] z_phot minus the mean of z_phot - z_spec of training objects in the same cell of (magnitude row, z_phot bin)
    (Lin et al. 2022, step 4).

    train: z_phot, z_spec and magnitude, [N] each, of held-out predictions whose bias in z_spec is gone; edges, rows:
    of the redshift bins (40 in the paper) and of the magnitude rows (0.5 mag). The training objects count by weights
    that give their histogram of (magnitude, z_spec) the shape of the target's of (magnitude, z_phot), in place of the
    paper's resampling. Cells of fewer than `fewest` training objects (one in the paper) correct nothing.
    """
    phot, spec, bright = train

    def cell(z: np.ndarray, m: np.ndarray) -> np.ndarray:
        return np.digitize(m, rows[1:-1]) * (len(edges) - 1) + np.digitize(z, edges[1:-1])

    def total(cells: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(cells, weights, (len(rows) - 1) * (len(edges) - 1))

    true, seen, own = cell(spec, bright), cell(phot, bright), cell(z_phot, magnitude)
    weights = (total(own) / np.maximum(total(true), 1))[true]
    weight = total(seen, weights)
    bias = total(seen, weights * (phot - spec)) / np.where(weight > 0, weight, 1)
    return z_phot - np.where(total(seen) >= fewest, bias, 0)[own]
