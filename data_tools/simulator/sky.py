"""The sky through which objects are seen: seeing, depth and zero points of tiles, correlated noise, neighbours."""

from typing import NamedTuple

import numpy as np

from data_tools.simulator import bands, population, sources, spectroscopy
from data_tools.simulator.population import Galaxies

SKIES = ("ideal", "survey")
TILES_PER_FIELD = 4  # quadrants
SEEING = 0.95, 1.30  # times a band's PSF FWHM; sharper would alias
DEPTH_SCATTER = 0.15  # mag
ZERO_POINT_SCATTER = 0.015  # mag
DEEP_SIGMA, DEEP_SEEING = 0.5, 1.15  # of the fields with spectra of S3: 0.75 mag deeper, of poorer seeing


class Tiles(NamedTuple):
    """T tiles, or N objects on them."""

    psf_fwhm: np.ndarray  # arcsec [T, C]
    sky_sigma: np.ndarray  # of a pixel, in stored units [T, C]
    zero_point_error: np.ndarray  # mag [T, C]: images are fainter by so much than their zero points say


class Sky(NamedTuple):
    """What is between N objects and their stamps."""

    tile: np.ndarray  # [N]
    seen: Tiles  # of each object
    correlated: bool  # noise
    neighbours: Galaxies | None
    owner: np.ndarray  # [M], whose stamp a neighbour is in


def over(galaxies: Galaxies, seed: int, first: int, size: int, kind: str, selection: str) -> Sky | None:
    """The sky over objects first ... of survey `seed`; None where it is the same over all, and ideal."""
    if is_plain(kind, selection):
        return None
    tile = tile_of(galaxies, seed)
    seen = Tiles(*(values[tile] for values in tiles(seed, kind, selection)))
    survey = kind == "survey"
    crowd, owner = sources.neighbours(galaxies, seed, first, size) if survey else (None, np.empty(0, int))
    return Sky(tile, seen, survey, crowd, owner)


def is_plain(kind: str, selection: str) -> bool:
    """Whether PSFs, depths and zero points are the same everywhere."""
    return kind == "ideal" and selection != "S3"


def tiles(seed: int, kind: str, selection: str) -> Tiles:
    """All tiles of survey `seed`; those of the fields with spectra of S3 are deep."""
    count, channels = population.FIELDS * TILES_PER_FIELD, len(bands.BANDS)
    fwhm, sigma = np.tile([band.psf_fwhm for band in bands.BANDS], (count, 1)), np.ones((count, channels))
    zero_point = np.zeros((count, channels))
    if kind == "survey":
        u = population.uniforms(seed, population.TILES, 0, count, 4 * channels).reshape(
            count, 4, channels
        )  # the last are spare
        fwhm = fwhm * (SEEING[0] + (SEEING[1] - SEEING[0]) * u[:, 0])
        sigma = 10 ** (0.4 * DEPTH_SCATTER * population.normal(u[:, 1]))
        zero_point = ZERO_POINT_SCATTER * population.normal(u[:, 2])
    if selection == "S3":
        deep = np.isin(np.arange(count) // TILES_PER_FIELD, spectroscopy.DEEP_FIELDS)
        fwhm[deep] *= DEEP_SEEING
        sigma[deep] *= DEEP_SIGMA
    return Tiles(fwhm, sigma, zero_point)


def tile_of(galaxies: Galaxies, seed: int) -> np.ndarray:
    """[N]: the quadrant of its field that an object is in."""
    fields = population.fields(seed)
    east = (galaxies.ra - fields.ra[galaxies.field] + 180) % 360 > 180
    north = galaxies.dec > fields.dec[galaxies.field]
    return TILES_PER_FIELD * galaxies.field + 2 * north + east
