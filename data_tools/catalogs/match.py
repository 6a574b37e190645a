"""Redshifts of a second catalogue, the compilation, given to the objects of the first by position.

Each redshift goes to the object nearest to it in the whole catalogue, within the radius, and to no other (of objects at
the same distance, to the first). An object that several redshifts go to keeps the one of the best rank (a spectrum's
before a grism's, then by quality), of these the nearest, of these the first of the compilation. The compilation is held
in memory, the catalogue is not.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

ARCSEC = np.degrees(1) * 3600  # of a radian


@dataclass(frozen=True)
class Matched:
    """rows [M]: the catalogue's, increasing, each once; found [M]: the compilation's; arcsec [M]: how far apart."""

    rows: np.ndarray
    found: np.ndarray
    arcsec: np.ndarray

    def within(self, start: int, stop: int) -> slice:
        """The part that concerns the catalogue's rows start .. stop."""
        return slice(*np.searchsorted(self.rows, (start, stop)))


def match_positions(
    positions: Iterable[tuple[np.ndarray, np.ndarray]], ra: np.ndarray, dec: np.ndarray, rank: np.ndarray,
    radius_arcsec: float,
) -> Matched:  # fmt: skip
    """positions: the catalogue's (ra, dec), chunk by chunk; ra, dec (deg), rank [K]: the compilation's.

    Positions of NaN match nothing. The size of the chunks does not matter.
    """
    rows, arcsec = nearest(positions, unit_vectors(ra, dec), radius_arcsec)
    candidates = np.flatnonzero(rows >= 0)
    order = np.lexsort((candidates, arcsec[candidates], -rank[candidates], rows[candidates]))
    ordered = candidates[order]
    _, first = np.unique(rows[ordered], return_index=True)
    best = ordered[first]
    return Matched(rows[best], best, arcsec[best])


def nearest(
    positions: Iterable[tuple[np.ndarray, np.ndarray]], targets: np.ndarray, radius_arcsec: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of targets [K, 3], unit vectors: the nearest row of the catalogue within the radius, -1 for none, and how far."""
    rows, arcsec = np.full(len(targets), -1, np.int64), np.full(len(targets), np.inf)
    placed = np.flatnonzero(np.isfinite(targets).all(1))
    if not len(placed):
        return rows, arcsec
    tree = cKDTree(targets[placed])
    reach = 2 * np.sin(radius_arcsec / ARCSEC / 2) * 1.01  # the exact cut is made on `apart`
    start = 0
    for ra, dec in positions:
        vectors = unit_vectors(ra, dec)
        known = np.flatnonzero(np.isfinite(vectors).all(1))
        distance, _ = tree.query(vectors[known], distance_upper_bound=reach)
        near = known[np.isfinite(distance)]
        if len(near):
            pairs = tree.sparse_distance_matrix(cKDTree(vectors[near]), reach, output_type="ndarray")
            i, j = placed[pairs["i"]], near[pairs["j"]]
            apart = separation(targets[i], vectors[j])
            order = np.lexsort((j, apart, i))
            i, j, apart = i[order], j[order], apart[order]
            i, first = np.unique(i, return_index=True)
            j, apart = j[first], apart[first]
            better = (apart <= radius_arcsec) & (apart < arcsec[i])
            rows[i[better]], arcsec[i[better]] = start + j[better], apart[better]
        start += len(ra)
    return rows, arcsec


def unit_vectors(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """[N, 3] of degrees."""
    ra, dec = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], 1)


def separation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Arcsec [N] between unit vectors [N, 3]; of the chord, exact for small angles."""
    chord = np.sqrt(((a - b) ** 2).sum(1))
    return 2 * np.arcsin(np.minimum(chord / 2, 1)) * ARCSEC
