"""Who has a spectrum, and what redshift it gives.

The ladder of selections, each harder than the one before:

S0  random, as many as S2 has in the mean: labels are fair.
S1  by the measured magnitude `mag_ref` alone: a true covariate shift. p(z given what is seen) is the same with and
    without spectra, and importance weights are consistent.
S2  by magnitude, type and emission lines (the redshift desert): p(z given what is seen) itself differs between objects
    with and without spectra, and no weights are consistent.
S3  as S2, in four fields alone, of other depth and seeing: what is seen differs, too.
"""

import functools
from typing import NamedTuple

import numpy as np

from data_tools.simulator import bands, population, sources
from data_tools.simulator.population import AGN, STAR, Galaxies

SELECTIONS = ("S0", "S1", "S2", "S3")
DEEP_FIELDS = (0, 6, 12, 18)  # of S3; complete in bands
Z_ERROR = 5e-4  # of (1 + z)

WRONG = 0.015  # of the redshifts
WINDOW = 3800.0, 9800.0  # angstrom, where lines are seen
# Of a line alone in a spectrum, what it is and what it is taken for (angstrom)
CONFUSIONS = np.array([(3728.0, 6563.0), (6563.0, 3728.0), (5007.0, 6563.0), (1216.0, 3728.0)])
# Shares of z_quality 2, 3, 4, such that 78, 95.5 and 99.7 % of each are right: at least 75, 95 and 99 %
QUALITY = {False: (0.03, 0.08, 0.89), True: (0.55, 0.25, 0.20)}  # by whether the redshift is wrong

# What an object's numbers of the stream SOURCES decide, beside those of simulator.sources
IS_WRONG, CONFUSION, SURENESS = 5, 6, 7
REFERENCE_SAMPLE = 1 << 15  # objects, whose mean chance S0 gives to all


class Spectra(NamedTuple):
    """N objects' spectra; z_spec and z_quality hold where `taken`."""

    taken: np.ndarray  # bool
    z_spec: np.ndarray
    z_quality: np.ndarray  # 2 ... 4
    wrong: np.ndarray  # bool: z_spec is off by a confusion of lines


def observe(galaxies: Galaxies, mag_ref: np.ndarray, seed: int, first: int, selection: str, errors: bool) -> Spectra:
    """Spectra of objects first ... of survey `seed` with measured magnitudes [N]; errors: some redshifts are wrong."""
    count = len(galaxies.z)
    u = population.uniforms(seed, population.OBJECTS, first, count, population.numbers())
    taken = u[:, population.LABEL] < chance(galaxies, mag_ref, seed, selection)
    z_spec, wrong = galaxies.z, np.zeros(count, bool)
    quality = np.full(count, 4)
    if errors:
        u_error = population.uniforms(seed, population.SOURCES, first, count, sources.NUMBERS)
        confused = confused_redshift(galaxies.z, u_error[:, CONFUSION])
        wrong = (u_error[:, IS_WRONG] < WRONG) & (galaxies.obj_class != STAR) & np.isfinite(confused)
        z_spec = np.where(wrong, confused, z_spec)
        edges = np.cumsum(np.array([QUALITY[False], QUALITY[True]]), 1)[wrong.astype(int), :2]
        quality = 2 + (u_error[:, [SURENESS]] >= edges).sum(1)
    z_spec = z_spec + Z_ERROR * (1 + z_spec) * population.normal(u[:, population.SPEC_Z])
    return Spectra(taken, z_spec, quality, wrong)


def chance(galaxies: Galaxies, mag_ref: np.ndarray, seed: int, selection: str) -> np.ndarray:
    """[N]: of having a spectrum. mag_ref: measured, NaN where no flux is. Raises ValueError for no SELECTIONS."""
    match selection:
        case "S0":
            return np.full(len(galaxies.z), share(seed))
        case "S1":
            return np.nan_to_num(by_magnitude(mag_ref))
        case "S2":
            return success(galaxies)
        case "S3":
            return np.where(np.isin(galaxies.field, DEEP_FIELDS), success(galaxies), 0.0)
    raise ValueError(f"selection {selection!r} must be one of {SELECTIONS}")


def by_magnitude(mag: np.ndarray) -> np.ndarray:
    """Chance of a secure redshift: nearly all bright objects, 2 % of the faint."""
    logistic = lambda x: 1 / (1 + np.exp(-x))
    return np.maximum(logistic((22.3 - mag) / 0.25), 0.02 * logistic((24.6 - mag) / 0.2))


def success(galaxies: Galaxies) -> np.ndarray:
    """Chance by total magnitude; less in the redshift desert of blue galaxies (1.5 < z < 2.2: no [O II] in the optical)
    and among red ones beyond z = 1.1. Broad lines and stars are always known."""
    z, red = galaxies.z, galaxies.red
    chance = by_magnitude(galaxies.mag[:, bands.REFERENCE])
    chance = np.where(~red & (z > 1.5) & (z < 2.2) & (galaxies.obj_class != AGN), 0.25 * chance, chance)
    return np.where(red & (z > 1.1), 0.4 * chance, chance)


@functools.cache
def share(seed: int) -> float:
    """Mean chance of S2 among the galaxies of survey `seed`."""
    return float(success(population.galaxies(seed, 0, REFERENCE_SAMPLE)).mean())


def confused_redshift(z: np.ndarray, u: np.ndarray) -> np.ndarray:
    """[N]: with one of the lines in WINDOW taken for another, (1 + z) true / taken - 1; NaN where none can be.

    u: uniform, chooses among the CONFUSIONS of positive redshift.
    """
    true, taken = CONFUSIONS.T
    seen = true * (1 + z[:, None])
    wrong = seen / taken - 1
    possible = (seen > WINDOW[0]) & (seen < WINDOW[1]) & (wrong > 0.01)
    number = possible.sum(1)
    chosen = np.argsort(~possible, axis=1, kind="stable")[np.arange(len(z)), (u * number).astype(int)]
    return np.where(number > 0, wrong[np.arange(len(z)), chosen], np.nan)
