"""Stars, active nuclei and blends: what the sky holds beside one galaxy a stamp."""

import numpy as np
from scipy.special import gammainc, gammaincinv
from scipy.stats import poisson

from data_tools.simulator import bands, population, spectra
from data_tools.simulator.population import AGN, GALAXY, STAR, Galaxies

CLASSES = ("galaxy", "agn", "star")
SHARES = {STAR: 0.05, AGN: 0.03}  # of all objects
COUNTS = {STAR: 0.10, AGN: 0.30}  # log10(number) per magnitude
POINT_BRIGHT = 18.0  # in the reference band: a brighter one would overflow float16
POINT_RE = 1e-3  # arcsec
COOLEST, HOTTEST = spectra.TEMPERATURES[[0, -1]]  # K
AGN_Z_SCALE, AGN_Z_MAX = 0.6, 4.9  # dN/dz ~ z^2 exp(-z / 0.6): most between 0.6 and 2.8
SLOPE_SCATTER = 0.3  # of the nuclei's power laws
MOST_NEIGHBOURS = 64  # in a stamp: twice the mean of the largest

# What an object's numbers of the stream SOURCES decide
CLASS, MAGNITUDE, Z, COLOUR, CROWD = range(5)
NUMBERS = 8  # the others: see simulator.spectroscopy


def sources(seed: int, first: int, count: int) -> Galaxies:
    """`population.galaxies`, some of them replaced by stars and active nuclei."""
    u = population.uniforms(seed, population.SOURCES, first, count, NUMBERS)
    return with_points(population.galaxies(seed, first, count), u)


def with_points(galaxies: Galaxies, u: np.ndarray) -> Galaxies:
    """Stars and nuclei, which are points, in the stead of some galaxies. u [N, NUMBERS], uniform. z of a star is 0."""
    limit = SHARES[STAR] + SHARES[AGN]
    obj_class = np.where(u[:, CLASS] < SHARES[STAR], STAR, np.where(u[:, CLASS] < limit, AGN, GALAXY))
    star, agn = obj_class == STAR, obj_class == AGN
    mag, z = galaxies.mag.copy(), galaxies.z.copy()
    z[star] = 0.0
    z[agn] = AGN_Z_SCALE * gammaincinv(3, u[agn, Z] * gammainc(3, AGN_Z_MAX / AGN_Z_SCALE))
    for chosen, colours, which in (
        (star, star_colours(u[star, COLOUR]), STAR),
        (agn, agn_colours(u[agn, COLOUR], z[agn]), AGN),
    ):
        mag[chosen] = magnitudes(u[chosen, MAGNITUDE], COUNTS[which])[:, None] + colours
    points = star | agn
    return galaxies._replace(
        z=z,
        kind=np.where(points, np.nan, galaxies.kind),
        red=galaxies.red & ~points,
        obj_class=obj_class,
        mag=mag,
        bulge=np.where(points, 0.0, galaxies.bulge),
        re_disk=np.where(points, POINT_RE, galaxies.re_disk),
        re_bulge=np.where(points, POINT_RE, galaxies.re_bulge),
    )


def magnitudes(u: np.ndarray, slope: float) -> np.ndarray:
    """Reference magnitudes [N] with log10(counts) rising by `slope` per magnitude."""
    bright, faint = 10 ** (slope * np.array([POINT_BRIGHT, population.I_FAINT]))
    return np.log10(bright + u * (faint - bright)) / slope


def star_colours(u: np.ndarray) -> np.ndarray:
    """[N, C]: magnitudes relative to the reference band's; most stars are cool dwarfs."""
    temperature = COOLEST * (HOTTEST / COOLEST) ** (u**2)
    grid, colours = np.log(spectra.TEMPERATURES), spectra.star_colours()
    return np.stack([np.interp(np.log(temperature), grid, band) for band in colours.T], 1)


def agn_colours(u: np.ndarray, z: np.ndarray) -> np.ndarray:
    """[N, C]: magnitudes relative to the reference band's, of power laws with broad lines."""
    step = spectra.QUASAR_SLOPES[1] - spectra.QUASAR_SLOPES[0]
    kind = np.clip(1 + SLOPE_SCATTER * population.normal(u) / step, 0, 2)
    magnitude = spectra.flux_grid(spectra.quasars).magnitudes(kind, np.zeros_like(z), z)
    return magnitude - magnitude[:, [bands.REFERENCE]]


def neighbours(galaxies: Galaxies, seed: int, first: int, size: int) -> tuple[Galaxies, np.ndarray]:
    """M sources of the same population anywhere in the stamps of N objects (first ... of survey `seed`), as many as the
    counts to I_FAINT say; and whose stamp [M], increasing. They are not clustered."""
    count, most = len(galaxies.z), MOST_NEIGHBOURS
    mean = population.density() * (size * bands.PIXEL_SCALE / 3600) ** 2
    crowd = population.uniforms(seed, population.SOURCES, first, count, NUMBERS)[:, CROWD]
    there = np.arange(most) < np.minimum(poisson.ppf(crowd, mean), most)[:, None]  # [N, most]
    numbers = population.numbers()
    u = population.uniforms(seed, population.NEIGHBOURS, first * most, count * most, numbers + NUMBERS)[there.ravel()]
    owner = np.nonzero(there)[0]
    place = {name: getattr(galaxies, name)[owner] for name in ("ebv", "field", "ra", "dec")}
    drawn = with_points(population.drawn(u[:, :numbers], **place), u[:, numbers:])
    return drawn._replace(offset=drawn.offset * size), owner
