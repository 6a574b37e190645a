"""Splits by sky cell, never by object, with a gap between them: neighbouring cutouts share pixels.

The split of a cell is a function of the cell and the seed alone: an object has the same one in every catalogue that
holds it, but the fractions hold only in the mean over many cells. balanced=True keeps the fractions of the given
objects to about half a cell's objects; with other objects beside it, a cell may then go to another split.
"""

import math
from collections.abc import Callable
from functools import partial

import astropy.units as u
import numpy as np
from astropy_healpix import HEALPix

from jaxz.errors import InputError

FRACTIONS = {"train": 0.75, "val": 0.05, "test": 0.20}
GAP = "gap"  # the split of objects too near to a cell of another one
NO_SPLIT = -1
BASE_CELL_ARCMIN = 58.632 * 60  # side of a base cell of HEALPix; it halves with each order
DIRECTIONS = 16  # of the points around an object that look for another split


def healpix_order(cell_arcmin: float) -> int:
    """The order whose cells are nearest to, and not smaller than, `cell_arcmin`."""
    return max(0, math.floor(math.log2(BASE_CELL_ARCMIN / cell_arcmin)))


def assign_splits(
    ra: np.ndarray,
    dec: np.ndarray,
    *,
    gap_arcsec: float,
    order: int = 9,
    fractions: dict[str, float] = FRACTIONS,
    seed: int,
    balanced: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Split (str) and nested HEALPix cell (int64) of each object at ra, dec (deg) [N].

    Objects of two different splits are at least gap_arcsec apart, those of GAP excepted, which no split may use. Unless
    balanced, this holds between catalogues too. Raises InputError where cells are too small for the gap, or fractions
    do not sum to one.
    """
    healpix = HEALPix(2**order, order="nested")
    side = healpix.pixel_resolution.to_value(u.arcsec)
    if not 0 <= gap_arcsec <= side / 4:
        raise InputError(f"gap_arcsec: {gap_arcsec} must lie in 0 .. {side / 4:.3g}, a quarter cell; lower the order")
    ra, dec = np.radians(np.asarray(ra, float)), np.radians(np.asarray(dec, float))
    centre = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])
    east = np.stack([-np.sin(ra), np.cos(ra), np.zeros_like(ra)])
    north = np.cross(centre, east, axis=0)
    gap = np.radians(gap_arcsec / 3600)

    def cell(shift: float, azimuth: float) -> np.ndarray:
        x, y, z = np.cos(shift) * centre + np.sin(shift) * (np.cos(azimuth) * east + np.sin(azimuth) * north)
        return healpix.lonlat_to_healpix(np.arctan2(y, x) * u.rad, np.arctan2(z, np.hypot(x, y)) * u.rad)

    return _assign(cell, gap, fractions, seed, balanced)


def assign_splits_pixels(
    x: np.ndarray,
    y: np.ndarray,
    *,
    gap_px: float,
    cell_px: float,
    fractions: dict[str, float] = FRACTIONS,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """As balanced `assign_splits`, for an image without sky coordinates: square cells of cell_px pixels, x, y [N] in
    pixels. No other image shares these pixels, so nothing has to agree."""
    if not 0 <= gap_px <= cell_px / 4:
        raise InputError(f"gap_px: {gap_px} must lie in 0 .. cell_px / 4 = {cell_px / 4:.3g}; use larger cells")
    x, y = np.asarray(x, float), np.asarray(y, float)

    def cell(shift: float, azimuth: float) -> np.ndarray:
        column = np.floor((x + shift * np.cos(azimuth)) / cell_px).astype(np.int64)
        row = np.floor((y + shift * np.sin(azimuth)) / cell_px).astype(np.int64)
        return (row << 32) + column

    return _assign(cell, gap_px, fractions, seed, balanced=True)


def _assign(
    cell: Callable[[float, float], np.ndarray], gap: float, fractions: dict[str, float], seed: int, balanced: bool
) -> tuple[np.ndarray, np.ndarray]:
    """cell(shift, azimuth): the cells of the objects, moved. Half the gap on either side of a border would do; looking
    the whole gap ahead also finds corners that reach in between two of the DIRECTIONS."""
    if not fractions or min(fractions.values()) < 0 or abs(sum(fractions.values()) - 1) > 1e-6 or GAP in fractions:
        raise InputError(f"fractions: {fractions} must be non-negative, sum to 1 and not name {GAP!r}")
    own, borders = cell(0.0, 0.0), np.cumsum([*fractions.values()])[:-1]
    split_of = _balanced(own, borders, seed) if balanced else partial(_hashed, borders, seed)
    split, near_other = split_of(own), np.zeros(len(own), bool)
    for direction in range(DIRECTIONS if gap else 0):
        other = split_of(cell(gap, 2 * np.pi * direction / DIRECTIONS))
        near_other |= (other != split) & (other != NO_SPLIT)
    return np.where(near_other, GAP, np.array([*fractions])[split]), own


def _hashed(borders: np.ndarray, seed: int, cells: np.ndarray) -> np.ndarray:
    """Number of the split of each cell: where its hash, as a number in 0 .. 1, lies among the cumulative fractions."""
    return np.searchsorted(borders, _hash(cells, seed) / 2.0**64, side="right")


def _balanced(own: np.ndarray, borders: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """The function from cells to numbers of splits, NO_SPLIT for a cell without objects, that puts the cells `own` of
    the objects in the order of a hash and cuts where the objects so far reach the fractions."""
    cells, counts = np.unique(own, return_counts=True)
    order = np.argsort(_hash(cells, seed), kind="stable")
    # an object count of a cell stands at its middle, so that no fraction is short of half a cell in the mean
    middle = np.empty(len(cells))
    middle[order] = (np.cumsum(counts[order]) - 0.5 * counts[order]) / max(counts.sum(), 1)
    numbers = np.searchsorted(borders, middle, side="right")

    def split_of(wanted: np.ndarray) -> np.ndarray:
        place = np.minimum(np.searchsorted(cells, wanted), len(cells) - 1)
        return np.where(cells[place] == wanted, numbers[place], NO_SPLIT)

    return split_of


def _hash(cells: np.ndarray, seed: int) -> np.ndarray:
    """uint64, well mixed (the finalizer of SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = cells.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(2 * seed + 1)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
