"""What metrics of p(z) are made of, object by object: averages of them are then cheap to resample."""

from collections.abc import Callable

import numpy as np

from jaxz.photoz.pdf import PDF

BRIER_BIN = 0.02  # in z
DENSITY_FLOOR = 1e-6  # nll of an object whose p(z) is zero at the truth is -log of this, not infinite
BLOCK = 2_000_000  # numbers held at once by the integrals over p(z)


def crps(pdf: PDF, z_true: np.ndarray) -> np.ndarray:
    """[N] continuous ranked probability score, the integral of (CDF(z) - [z >= z_true])^2 dz, in redshift.

    Exact for the piecewise-linear CDF (Gneiting & Raftery 2007, JASA 102, 359, eq. 20); past the grid it is 0 or 1.
    """
    return distance_from_step(pdf, z_true, lambda a, b: (a * a + a * b + b * b) / 3)


def wasserstein(pdf: PDF, z_true: np.ndarray) -> np.ndarray:
    """[N] the integral of |CDF(z) - [z >= z_true]| dz = E|z - z_true|, in redshift: distance of p(z) from the truth."""
    return distance_from_step(pdf, z_true, lambda a, b: (a + b) / 2)


def distance_from_step(pdf: PDF, z_true: np.ndarray, mean: Callable) -> np.ndarray:
    """[N] integral of m(CDF) below z_true and of m(1 - CDF) above; mean(a, b) is m's mean over a linear rise a to b."""
    result = np.empty(len(pdf))
    step = max(1, BLOCK // len(pdf.edges))
    for start in range(0, len(pdf), step):
        part = pdf[start : start + step]
        z = np.asarray(z_true[start : start + step], np.float64)
        inside = np.clip(z, pdf.edges[0], pdf.edges[-1])
        rows, bins, at = np.arange(len(part)), part.locate(z)[0], part.cdf(z)
        low, high = part.cumulative[:, :-1], part.cumulative[:, 1:]
        columns = np.arange(low.shape[1])
        whole = np.where(columns < bins[:, None], mean(low, high), mean(1 - low, 1 - high)) * pdf.widths
        whole[rows, bins] = mean(low[rows, bins], at) * (inside - pdf.edges[bins])
        whole[rows, bins] += mean(1 - at, 1 - high[rows, bins]) * (pdf.edges[bins + 1] - inside)
        result[start : start + step] = whole.sum(axis=1) + np.abs(z - inside)
    return result


def brier(pdf: PDF, z_true: np.ndarray) -> np.ndarray:
    """[N] Brier scores over bins of fixed width, from 0 to 2: those of the grid would depend on how fine it is."""
    first, last = np.floor(pdf.edges[0] / BRIER_BIN + 1e-9), np.ceil(pdf.edges[-1] / BRIER_BIN - 1e-9)
    edges = np.clip(BRIER_BIN * np.arange(first, last + 1), pdf.edges[0], pdf.edges[-1])
    bins = np.clip(np.searchsorted(pdf.edges, edges, side="right") - 1, 0, len(pdf.widths) - 1)
    part = (edges - pdf.edges[bins]) / pdf.widths[bins]
    mass = np.diff(pdf.cumulative[:, bins] + part * pdf.probability[:, bins], axis=1)
    place = np.floor(np.asarray(z_true, np.float64) / BRIER_BIN).astype(int) - int(first)
    inside = (place >= 0) & (place < mass.shape[1])
    hit = np.where(inside, mass[np.arange(len(mass)), np.clip(place, 0, mass.shape[1] - 1)], 0)
    return (mass**2).sum(axis=1) - 2 * hit + 1


def squared(pdf: PDF) -> np.ndarray:
    """[N] the integral of p(z)^2 dz."""
    return np.einsum("ij,ij,j->i", pdf.probability, pdf.probability, 1 / pdf.widths)


def pdf_terms(pdf: PDF, z_true: np.ndarray) -> dict[str, np.ndarray]:
    """The `block_terms` of all objects, computed block by block to bound the memory."""
    z_true = np.asarray(z_true, np.float64)
    ends = np.cumsum([len(block) for block in pdf.blocks()])[:-1]
    terms = [block_terms(*part) for part in zip(pdf.blocks(), np.split(z_true, ends), strict=True)]
    return {name: np.concatenate([part[name] for part in terms]) for name in terms[0]}


def block_terms(pdf: PDF, z_true: np.ndarray) -> dict[str, np.ndarray]:
    """What the metrics of p(z) need of each object, {name: [N]}.

    pit        CDF(z_true), linear inside the bin
    credibility  mass of the smallest region that holds z_true
    crps, wasserstein
    cde_loss   integral of p^2 dz - 2 p(z_true) (Izbicki & Lee 2017, EJS 11, 2800)
    brier      sum over bins b of 0.02 in z of (P_b - [z_true in b])^2, from 0 to 2 (Brier 1950), whatever the grid is
    nll        -log max(p(z_true), 1e-6)
    pdf_mean   expectation of z
    """
    at_truth = pdf.density(z_true)
    return {
        "pit": pdf.cdf(z_true),
        "credibility": pdf.credibility(z_true),
        "crps": crps(pdf, z_true),
        "wasserstein": wasserstein(pdf, z_true),
        "cde_loss": squared(pdf) - 2 * at_truth,
        "brier": brier(pdf, z_true),
        "nll": -np.log(np.maximum(at_truth, DENSITY_FLOOR)),
        "pdf_mean": pdf.mean(),
    }
