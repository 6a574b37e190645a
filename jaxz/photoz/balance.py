"""Weights and subsets against the imbalance of labels: redshifts that few objects have, learned as well as others."""

import numpy as np

BETA = 0.999  # of class_balanced: above some 1000 labels a bin has enough
KERNEL_SIGMA, KERNEL_REACH = 2.0, 2  # of lds, in bins (Yang et al. 2021, sec. 3.1)
BALANCES = ("class_balanced", "lds")


def label_weights(counts: np.ndarray, balance: str) -> np.ndarray:
    """[n]: how much a label in each bin counts, 1 in the mean over the labels; bins without labels have 1.

    counts: [n] labels in each bin; balance: "" (all 1), or
    class_balanced   (1 - beta) / (1 - beta^count), beta = 0.999 (Cui et al. 2019, eq. 5)
    lds              1 / sqrt(smoothed count): by a Gaussian of sigma 2 bins, cut at 5 bins (Yang et al. 2021)
    """
    counts, weights = np.asarray(counts, np.float64), np.ones(len(counts))
    labelled = counts > 0
    if not balance or not labelled.any():
        return weights
    if balance == "class_balanced":
        weights[labelled] = (1 - BETA) / -np.expm1(counts[labelled] * np.log(BETA))
    else:
        weights[labelled] = smoothed(counts)[labelled] ** -0.5
    weights[labelled] *= counts.sum() / (counts * weights)[labelled].sum()
    return weights


def smoothed(counts: np.ndarray) -> np.ndarray:
    """[n]: the effective label density of lds, mirrored at both ends so that they do not look rare."""
    steps = np.arange(-KERNEL_REACH, KERNEL_REACH + 1)
    kernel = np.exp(-((steps / KERNEL_SIGMA) ** 2) / 2)
    padded = np.pad(counts, KERNEL_REACH, mode="symmetric")
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")


def near_balanced(
    z: np.ndarray, magnitude: np.ndarray, z_edges: np.ndarray, magnitude_edges: np.ndarray, most: int, seed: int = 0
) -> np.ndarray:
    """[N] bool: a random subset with at most `most` objects in each cell of redshift and magnitude, all of a cell that
    has fewer; none of those outside of the edges, or with a number that is not finite (Lin et al. 2022, step 2)."""
    inside, cell = np.ones(len(z), bool), np.zeros(len(z), np.int64)
    for values, edges in ((z, z_edges), (magnitude, magnitude_edges)):
        place = np.searchsorted(edges, values, side="right") - 1  # of NaN: the last
        inside &= np.isfinite(values) & (place >= 0) & (place < len(edges) - 1)
        cell = cell * len(edges) + np.clip(place, 0, len(edges) - 1)
    order = np.random.default_rng(seed).permutation(len(z))
    order = order[inside[order]]
    order = order[np.argsort(cell[order], kind="stable")]  # by cell, at random within
    _, first, counts = np.unique(cell[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(first, counts)
    chosen = np.zeros(len(z), bool)
    chosen[order[rank < most]] = True
    return chosen
