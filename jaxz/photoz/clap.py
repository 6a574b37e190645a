"""p(z) from neighbours in a latent space: CLAP (Lin et al. 2024, A&A 691, A331) after its contrastive network.

Adaptive neighbours, local recalibration, refit and harmonic ensemble. Other than the paper's code: an object is no
neighbour of its own; PIT comes from objects held out of the training alone, not from training objects too; the refit
learns on a pool that has no test object in it; the fitted polynomial is cut at zero; at most 3 sqrt(N) neighbours are
tried. The refit minimises the cross-entropy, each object counting the same (theirs: times its 1-Wasserstein distance),
by 10,000 steps of Adam at scikit-learn's rate of 1e-3 (40,000 at 1e-4), and what it says is not smoothed (by 0.05 of
the standard deviation of p(z)).
"""

from collections.abc import Sequence

import numpy as np
from scipy.spatial import KDTree
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from jaxz.photoz.pdf import PDF

NEIGHBOURS = (*range(5, 200, 5), *range(200, 600, 10), *range(600, 1000, 20), *range(1000, 2001, 50))
PIT_BINS = 100
BLOCK = 1000  # objects whose neighbours are held at once
HIDDEN, BATCH = 1024, 128  # of the refit
LEAST = 1e-9  # mass of a bin in the harmonic mean: one member alone does not forbid a redshift


def estimate(
    train: np.ndarray,
    held: np.ndarray,
    pool: np.ndarray,
    wanted: np.ndarray,
    z: np.ndarray,
    z_held: np.ndarray,
    edges: np.ndarray,
    seed: int,
) -> PDF:
    """p(z) of `wanted` [M,L], all that CLAP does behind its network: neighbours among `train` [N,L] of redshifts z [N]
    give p(z) to `pool` [P,L], objects without a label and not wanted; the PIT of `held` [H,L] of z_held [H], which the
    network has not seen, calibrates it; and `refit` learns it."""
    of_pool, of_held = (adaptive_neighbours(train, z, objects, edges)[0] for objects in (pool, held))
    return refit(pool, recalibrate_locally(of_pool, pool, held, of_held.cdf(z_held)), wanted, seed)


def adaptive_neighbours(
    latent: np.ndarray, z: np.ndarray, wanted: np.ndarray, edges: np.ndarray
) -> tuple[PDF, np.ndarray]:
    """p(z) of objects `wanted` [M,L], the histogram of the redshifts of their k nearest among `latent` [N,L] of
    z [N], and k [M]: of NEIGHBOURS the one at which the PIT of those neighbours is nearest to uniform (1-Wasserstein).

    The PIT of an object with z under k is the share of its own k neighbours, without itself, below z, ties by halves.
    At most 3 sqrt(N) neighbours are tried, the paper's 2,000 for its 393,219 objects: of a large share of all objects
    PIT is uniform whatever p(z) is worth. Redshifts beyond edges [n+1] count in the outermost bins. Raises ValueError
    for fewer than 6 objects with z.
    """
    choices = np.array([k for k in NEIGHBOURS if k < min(len(z), max(3 * len(z) ** 0.5, 6))])
    if not len(choices):
        raise ValueError(f"{len(z)} objects with redshift: more than {NEIGHBOURS[0]} are needed")
    tree, bins = KDTree(latent), len(edges) - 1
    number = np.digitize(z, edges[1:-1])
    pit = np.concatenate([own_pit(tree, rows, z, choices) for rows in _blocks(len(z))])  # [N,K]
    level = np.minimum((pit * PIT_BINS).astype(np.int64), PIT_BINS - 1)
    chosen, mass = np.empty(len(wanted), np.int64), np.empty((len(wanted), bins))
    for rows in _blocks(len(wanted)):
        near = nearest(tree, wanted[rows], choices[-1])
        distance = [from_uniform(level[near[:, :k], n]) for n, k in enumerate(choices)]
        chosen[rows] = choices[np.argmin(distance, axis=0)]
        used = np.arange(choices[-1]) < chosen[rows, None]
        mass[rows] = counts(np.where(used, number[near], bins), bins + 1)[:, :bins]
    return PDF(edges, mass / chosen[:, None]), chosen


def own_pit(tree: KDTree, rows: slice, z: np.ndarray, choices: np.ndarray) -> np.ndarray:
    """[B,K]: the PIT of objects `rows` of the tree with redshifts z [N], under each number of neighbours [K]."""
    near = nearest(tree, tree.data[rows], choices[-1] + 1)
    itself = near == np.arange(len(z))[rows, None]
    itself[~itself.any(axis=1), -1] = True  # among copies of an object it may stand behind the last
    near = near[~itself].reshape(len(near), -1)
    below = (z[near] < z[rows, None]) + 0.5 * (z[near] == z[rows, None])
    return np.cumsum(below, axis=1)[:, choices - 1] / choices


def nearest(tree: KDTree, latent: np.ndarray, k: int) -> np.ndarray:
    """[B,k] int: the nearest objects of the tree, in order of distance."""
    return tree.query(latent, range(1, k + 1), workers=-1)[1]  # by all cores


def _blocks(n: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]


def counts(number: np.ndarray, n: int) -> np.ndarray:
    """[B,n]: how often each of 0..n-1 stands in a row of number int [B,k]."""
    offset = n * np.arange(len(number))[:, None]
    return np.bincount((number + offset).ravel(), minlength=n * len(number)).reshape(-1, n)


def from_uniform(level: np.ndarray) -> np.ndarray:
    """[B]: the 1-Wasserstein distance to uniform of PIT in PIT_BINS bins, their numbers int [B,k]."""
    reached = np.cumsum(counts(level, PIT_BINS), axis=1) / level.shape[1]
    return np.abs(reached - np.arange(1, PIT_BINS + 1) / PIT_BINS).mean(axis=1)


def recalibrate_locally(pdf: PDF, latent: np.ndarray, held: np.ndarray, pit: np.ndarray, neighbours: int = 200) -> PDF:
    """p(z) [M] times a parabola in its own CDF, fitted to the PIT histogram of the nearest held-out objects, cut at 0.

    latent: [M,L] of the objects, held: [H,L] of objects of known redshift that trained neither the latent nor p(z),
    and pit [H], theirs. A row that the parabola would empty stays as it is.
    """
    neighbours = min(neighbours, len(held))
    level = np.minimum((pit * PIT_BINS).astype(np.int64), PIT_BINS - 1)
    fit = np.linalg.pinv(np.vander((np.arange(PIT_BINS) + 0.5) / PIT_BINS, 3))  # [3,PIT_BINS]
    tree, result = KDTree(held), np.empty(pdf.probability.shape)
    for rows in _blocks(len(pdf)):
        part = pdf[rows]
        share = counts(level[nearest(tree, latent[rows], neighbours)], PIT_BINS) * PIT_BINS / neighbours
        a, b, c = (share @ fit.T).T[..., None]
        u = (part.cumulative[:, 1:] + part.cumulative[:, :-1]) / 2
        mass = part.probability * np.maximum(a * u**2 + b * u + c, 0)
        total = mass.sum(axis=1, keepdims=True)
        result[rows] = np.where(total > 0, mass / np.where(total > 0, total, 1), part.probability)
    return PDF(pdf.edges, result)


def refit(pool: np.ndarray, pdf: PDF, wanted: np.ndarray, seed: int, steps: int = 10_000) -> PDF:
    """p(z) of `wanted` [M,L] by an MLP that learned p(z) [P] of `pool` [P,L], which must hold no wanted object: smooth
    where neighbours are few. In each pass redshifts are drawn from p(z): on average, soft labels' cross-entropy."""
    draw, bins = np.random.default_rng(seed), np.arange(len(pdf.edges) - 1)
    scaler, batch = StandardScaler().fit(pool), min(BATCH, len(pool))
    model, x = MLPClassifier(HIDDEN, batch_size=batch, random_state=seed), scaler.transform(pool)
    for _ in range(-(-steps * batch // len(pool))):
        drawn = (pdf.cumulative[:, 1:-1] <= draw.uniform(size=(len(pool), 1))).sum(axis=1)
        model.partial_fit(x, drawn, classes=bins)
    return PDF(pdf.edges, model.predict_proba(scaler.transform(wanted)))


def harmonic_mean(members: Sequence[PDF]) -> PDF:
    """p(z) proportional to n / sum_i 1 / p_i(z), of members trained apart: what all of them hold possible."""
    inverse = sum(1 / np.maximum(member.probability, LEAST) for member in members)
    return PDF(members[0].edges, 1 / inverse / (1 / inverse).sum(axis=1, keepdims=True))
