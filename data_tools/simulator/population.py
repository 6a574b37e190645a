"""The galaxies of the synthetic survey: where they are and what they are.

Every random number is a function of (seed, object), so that any object can be made alone.
"""

import functools
from typing import NamedTuple

import numpy as np
from astropy.cosmology import FlatLambdaCDM
from scipy.special import ndtri

from data_tools.simulator import bands, spectra

COSMOLOGY = FlatLambdaCDM(H0=70, Om0=0.3)
I_BRIGHT, I_FAINT = 17.0, 25.0  # the sample's limits in the reference band; brighter would overflow float16
FIELDS = 24
FIELD_RADIUS = 0.5  # deg
MISSING = 0.12  # chance that a field lacks a band; every third field is complete
TEMPLATE_SCATTER = 0.04  # mag, of each colour with the reference band, that no template has


class Population(NamedTuple):
    """A Schechter function and the galaxies that follow it; M is the AB magnitude at 4450 A, L* that of -20.5."""

    density: float  # 1/Mpc^3 at z = 0
    density_slope: float  # of log10(density) with z ...
    density_from: float  # ... beyond this z
    m_star: float
    m_star_slope: float  # with z ...
    m_star_until: float  # ... up to this z
    alpha: float
    kinds: tuple[float, float]  # uniform in spectral kind ...
    dust: tuple[float, float]  # ... and E(B-V)
    re_kpc: float  # half-light radius at z = 0 and L*, major axis
    re_slope: float  # with log10(L)
    re_evolution: float  # with log10(1 + z)


# Luminosity functions close to Faber et al. 2007; sizes close to van der Wel et al. 2014
POPULATIONS = (
    Population(0.0026, -0.45, 0.0, -20.4, -0.9, 1.5, -0.5, (0.0, 0.8), (0.0, 0.1), 4.0, 0.6, -1.3),  # red
    Population(0.0030, -0.15, 1.0, -19.5, -1.4, 2.4, -1.3, (0.8, 4.0), (0.0, 0.3), 6.0, 0.3, -0.8),  # blue
)
RE_SCATTER = 0.2  # dex
RE_RANGE = 0.06, 1.6  # arcsec; larger would not fit the smallest cutout
DISK_THICKNESS, BULGE_AXIS_RATIO = 0.2, 0.8

# What an object's uniform random numbers decide, by column
CELL, KIND, DUST, Z, LUMINOSITY, SIZE, BULGE, INCLINATION, ANGLE = range(9)
X, Y, LABEL, SPEC_Z, EBV, FIELD, RADIUS, AZIMUTH = range(9, 17)
SCATTER = 20  # and the next, one a band
OBJECTS, SKY, SOURCES, NEIGHBOURS, TILES = range(1, 6)  # independent streams
GALAXY, AGN, STAR = range(3)  # obj_class
CHUNK = 1 << 16  # objects whose numbers are drawn at once


def uniforms(seed: int, stream: int, first: int, count: int, numbers: int) -> np.ndarray:
    """[count, numbers] uniform in [0, 1): row i is a function of (seed, stream, first + i).

    numbers: a multiple of 4.
    """
    generator = np.random.Philox(key=np.array([seed, 2**63 + stream], np.uint64))
    generator.advance(first * numbers // 4)  # a counter step gives four numbers
    return np.random.Generator(generator).random((count, numbers))


def normal(uniform: np.ndarray) -> np.ndarray:
    return ndtri(np.clip(uniform, 1e-12, 1 - 1e-12))


class Fields(NamedTuple):
    ra: np.ndarray  # deg [F], centres
    dec: np.ndarray
    ebv: np.ndarray  # mag [F], mean Galactic E(B-V)
    observed: np.ndarray  # bool [F, C]


def fields(seed: int) -> Fields:
    """The survey's fields: evenly over |dec| < 60 deg (a Fibonacci lattice), so that none overlap."""
    u = uniforms(seed, SKY, 0, FIELDS, numbers())
    number = np.arange(FIELDS)
    golden = (1 + 5**0.5) / 2
    ra = (360 * (number / golden + u[0, 0])) % 360
    dec = np.degrees(np.arcsin(np.sin(np.radians(60)) * (2 * (number + 0.5) / FIELDS - 1)))
    observed = u[:, SCATTER : SCATTER + len(bands.BANDS)] >= MISSING
    observed[::3] = True
    observed[:, bands.REFERENCE] = True
    return Fields(ra, dec, 0.03 * np.exp(0.6 * normal(u[:, 1])), observed)


def positions(seed: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Field number, ra and dec (deg) of objects, uniform over the fields' discs."""
    u = np.empty((count, 3))
    for start in range(0, count, CHUNK):  # an object's numbers are drawn all together, and most are not wanted here
        drawn = uniforms(seed, OBJECTS, first + start, min(CHUNK, count - start), numbers())
        u[start : start + CHUNK] = drawn[:, [FIELD, RADIUS, AZIMUTH]]
    sky = fields(seed)
    field = (u[:, 0] * FIELDS).astype(int)
    radius, azimuth = FIELD_RADIUS * np.sqrt(u[:, 1]), 2 * np.pi * u[:, 2]
    dec = sky.dec[field] + radius * np.sin(azimuth)
    return field, (sky.ra[field] + radius * np.cos(azimuth) / np.cos(np.radians(dec))) % 360, dec


class Galaxies(NamedTuple):
    """N galaxies, or stars and nuclei in their stead; magnitudes are AB, total, before Galactic extinction."""

    z: np.ndarray
    kind: np.ndarray  # 0 elliptical ... 4 starburst
    red: np.ndarray  # bool: of the first population
    obj_class: np.ndarray  # GALAXY, AGN or STAR
    mag: np.ndarray  # [N, C]
    bulge: np.ndarray  # fraction of light in the de Vaucouleurs component
    re_disk: np.ndarray  # arcsec, half-light radii along the major axis
    re_bulge: np.ndarray
    q_disk: np.ndarray  # axis ratios
    q_bulge: np.ndarray
    angle: np.ndarray  # rad, of the major axis from +x towards +y
    offset: np.ndarray  # pixels [N, 2], (x, y) of the centre from the stamp's centre, under half a pixel
    ebv: np.ndarray  # mag, Galactic
    field: np.ndarray
    ra: np.ndarray  # deg
    dec: np.ndarray


def galaxies(seed: int, first: int, count: int) -> Galaxies:
    """Objects first ... first + count - 1 of the survey `seed`."""
    u = uniforms(seed, OBJECTS, first, count, numbers())
    field, ra, dec = positions(seed, first, count)
    ebv = fields(seed).ebv[field] * (0.8 + 0.4 * u[:, EBV])
    return drawn(u, ebv=ebv, field=field, ra=ra, dec=dec)


def drawn(u: np.ndarray, **place: np.ndarray) -> Galaxies:
    """The galaxies that uniform numbers u [N, ...] decide; place: ebv, field, ra and dec [N]."""
    red, kind, dust, z = _cells(u)
    shape = spectra.flux_grid().magnitudes(kind, dust, z)  # [N, C]
    modulus = np.interp(z, *_table("modulus"))
    absolute = _absolute_magnitude(red, z, modulus + shape[:, bands.REFERENCE], u[:, LUMINOSITY])
    scatter = TEMPLATE_SCATTER * normal(u[:, SCATTER : SCATTER + len(bands.BANDS)])
    scatter[:, bands.REFERENCE] = 0.0
    mag = (absolute + modulus)[:, None] + shape + scatter

    bulge = np.clip(0.75 - 0.18 * kind + 0.12 * normal(u[:, BULGE]), 0.02, 0.98)
    re = _half_light_radius(red, z, absolute, u[:, SIZE])
    cos_inclination = u[:, INCLINATION]
    return Galaxies(
        z=z,
        kind=kind,
        red=red,
        obj_class=np.full(len(z), GALAXY),
        mag=mag,
        bulge=bulge,
        re_disk=re,
        re_bulge=re * (0.4 + 0.6 * bulge),  # small in disks; the galaxy itself where there is no disk
        q_disk=np.sqrt(cos_inclination**2 * (1 - DISK_THICKNESS**2) + DISK_THICKNESS**2),
        q_bulge=np.full(len(z), BULGE_AXIS_RATIO),
        angle=np.pi * u[:, ANGLE],
        offset=u[:, [X, Y]] - 0.5,
        **place,
    )


def density() -> float:
    """Galaxies per square degree within the sample's magnitude limits."""
    return float(_cumulative_density()[-1]) / (KIND_CELLS * DUST_CELLS)  # which share a population's density


def numbers() -> int:
    """Uniform numbers drawn per object or field: a multiple of 4."""
    return SCATTER + 4 * -(-len(bands.BANDS) // 4)


@functools.cache
def _table(quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """(z, values) for interpolation. modulus: mag; kpc: of an arcsec; volume: Mpc^3 / deg^2 per unit z."""
    z = np.expm1(np.linspace(np.log1p(0.01), np.log1p(spectra.Z_MAX), 400))
    if quantity == "modulus":
        return z, COSMOLOGY.distmod(z).value
    if quantity == "kpc":
        return z, 1e3 * COSMOLOGY.angular_diameter_distance(z).value / np.degrees(1) / 3600
    return z, COSMOLOGY.differential_comoving_volume(z).value * np.radians(1) ** 2


def _m_star(p: Population, z: np.ndarray) -> np.ndarray:
    return p.m_star + p.m_star_slope * np.minimum(z, p.m_star_until)


@functools.cache
def _schechter(alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """(ln x, integral of t^alpha e^-t dt from x = L / L* to infinity), x increasing. Schechter 1976, eq. 1."""
    ln_x = np.linspace(-16, np.log(60), 4000)
    x = np.exp(ln_x)
    density = x ** (alpha + 1) * np.exp(-x)
    steps = 0.5 * (density[1:] + density[:-1]) * np.diff(ln_x)
    return ln_x, np.append(np.cumsum(steps[::-1])[::-1], 0.0)


def _brighter(p: Population, z: np.ndarray, mag_of_zero: np.ndarray, limit: float) -> np.ndarray:
    """Schechter integral of the galaxies brighter than `limit`; mag_of_zero: the magnitude seen where M = 0."""
    ln_x, integral = _schechter(p.alpha)
    return np.interp(-0.4 * np.log(10) * (limit - mag_of_zero - _m_star(p, z)), ln_x, integral)


# A cell is a population, a kind, a dust and a redshift bin; within a cell the density is taken as flat
KIND_CELLS, DUST_CELLS, Z_CELLS = 8, 3, 200
Z_EDGES = np.expm1(np.linspace(np.log1p(0.03), np.log1p(4.5), Z_CELLS + 1))


@functools.cache
def _cumulative() -> np.ndarray:
    """[cells + 1]: cumulative share of the galaxies inside the magnitude limits, over all cells."""
    total = _cumulative_density()
    return np.append(0.0, total) / total[-1]


@functools.cache
def _cumulative_density() -> np.ndarray:
    """[cells]: cumulative number per deg^2 inside the magnitude limits, as if a cell were its population's only one."""
    kind, dust, bin_ = np.meshgrid(*map(np.arange, (KIND_CELLS, DUST_CELLS, Z_CELLS)), indexing="ij")
    z = 0.5 * (Z_EDGES[:-1] + Z_EDGES[1:])[bin_]
    volume = np.interp(z, *_table("volume")) * np.diff(Z_EDGES)[bin_]
    counts = []
    for p in POPULATIONS:
        shape = spectra.flux_grid().magnitudes(
            _between(p.kinds, (kind + 0.5) / KIND_CELLS), _between(p.dust, (dust + 0.5) / DUST_CELLS), z
        )[..., bands.REFERENCE]
        zero = shape + np.interp(z, *_table("modulus"))
        number = _brighter(p, z, zero, I_FAINT) - _brighter(p, z, zero, I_BRIGHT)
        counts.append(number * volume * p.density * 10 ** (p.density_slope * np.maximum(z - p.density_from, 0)))
    return np.cumsum(np.array(counts))


def _between(limits: tuple[float, float] | np.ndarray, share: np.ndarray) -> np.ndarray:
    return limits[0] + (limits[1] - limits[0]) * share


def _cells(u: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Whether red, spectral kind, E(B-V) and redshift [N] of objects with uniform numbers u [N, ...]."""
    cell = np.searchsorted(_cumulative(), u[:, CELL], side="right") - 1
    population, kind, dust, bin_ = np.unravel_index(cell, (len(POPULATIONS), KIND_CELLS, DUST_CELLS, Z_CELLS))
    red = population == 0
    kinds, dusts = (np.array([getattr(p, name) for p in POPULATIONS])[population].T for name in ("kinds", "dust"))
    z = Z_EDGES[bin_] + np.diff(Z_EDGES)[bin_] * u[:, Z]
    return red, _between(kinds, (kind + u[:, KIND]) / KIND_CELLS), _between(dusts, (dust + u[:, DUST]) / DUST_CELLS), z


def _absolute_magnitude(red: np.ndarray, z: np.ndarray, mag_of_zero: np.ndarray, u: np.ndarray) -> np.ndarray:
    """M [N]: a draw from the Schechter function between the sample's magnitude limits."""
    magnitude = np.empty_like(z)
    for p, chosen in zip(POPULATIONS, (red, ~red), strict=True):
        ln_x, integral = _schechter(p.alpha)
        bright, faint = (_brighter(p, z[chosen], mag_of_zero[chosen], limit) for limit in (I_BRIGHT, I_FAINT))
        drawn = np.interp(bright + u[chosen] * (faint - bright), integral[::-1], ln_x[::-1])
        magnitude[chosen] = _m_star(p, z[chosen]) - 2.5 / np.log(10) * drawn
    return magnitude


def _half_light_radius(red: np.ndarray, z: np.ndarray, absolute: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Arcsec [N], along the major axis."""
    at_zero, slope, evolution = (
        np.where(red, *(getattr(p, name) for p in POPULATIONS)) for name in ("re_kpc", "re_slope", "re_evolution")
    )
    log_kpc = np.log10(at_zero) - 0.4 * slope * (absolute + 20.5) + evolution * np.log10(1 + z) + RE_SCATTER * normal(u)
    return np.clip(10**log_kpc / np.interp(z, *_table("kpc")), *RE_RANGE)
