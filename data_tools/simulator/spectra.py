"""Spectra seen through the survey's filters: galaxies, quasars, stars; dust, intergalactic absorption, the flux grid.

A galaxy's spectral kind is a number from 0 (elliptical) to 4 (starburst), its dust an E(B-V) in magnitudes.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from data_tools.simulator import bands
from jaxz.photoz.spectra import WAVELENGTH, calzetti, igm_transmission, star

KINDS = ("elliptical", "Sbc", "Scd", "irregular", "starburst")
DUST = np.array([0.0, 0.15, 0.3])  # E(B-V) of the grid
STEP = 0.001  # of ln(wavelength): redshifting is then a shift by whole samples
Z_STEP = 6 * STEP  # of ln(1 + z)
Z_MAX = 5.0
NORM = 4450.0  # angstrom, rest frame: absolute magnitudes are AB magnitudes there

# Continuum F_lambda of five kinds, 1 at 5500 A, at the wavelengths (angstrom) of the first row. Between 3960 and 4060 A
# old stars have their break, below 3850 A young ones the Balmer break. Shapes after Coleman, Wu & Weedman 1980.
# fmt: off
CONTINUUM = np.array(
    [
        [912, 1216, 1500, 2000, 2600, 3200, 3600, 3850, 3960, 4060, 4500, 5500, 6500, 8000, 10000, 12500, 16500, 22000],
        [.020, .030, .035, .030, .040, .20, .32, .40, .42, .70, .90, 1, 1.02, .98, .88, .68, .44, .180],
        [.060, .080, .100, .120, .20, .36, .46, .58, .62, .86, 1.0, 1, .94, .82, .68, .50, .31, .128],
        [.420, .450, .470, .450, .50, .62, .70, .86, .90, 1.06, 1.12, 1, .85, .68, .52, .36, .22, .090],
        [2.60, 2.40, 1.90, 1.35, 1.05, 1.00, 1.02, 1.22, 1.25, 1.33, 1.28, 1, .78, .56, .40, .27, .155, .062],
    ]
)
# fmt: on
STARBURST_SLOPE = -0.6  # the starburst is the irregular, steeper by this power of wavelength
LYMAN_BREAK = 0.05  # of the light below 912 A that leaves the galaxy
# Emission lines: rest wavelength (angstrom), rest equivalent width (angstrom) for each kind.
LINES = (
    (3728.0, (0, 5, 15, 40, 70)),  # [O II]
    (4861.0, (0, 2, 6, 15, 30)),  # H beta
    (4959.0, (0, 1, 3, 15, 40)),  # [O III]
    (5007.0, (0, 2, 9, 45, 120)),  # [O III]
    (6563.0, (0, 15, 35, 80, 180)),  # H alpha
)
# Quasars: power laws F_lambda ~ lambda^slope and broad lines of these rest equivalent widths: Vanden Berk et al. 2001
QUASAR_SLOPES = (-2.1, -1.5, -0.9)  # the kinds 0, 1, 2
QUASAR_LINES = ((1216.0, 93), (1549.0, 24), (1909.0, 21), (2798.0, 32), (4861.0, 46), (6563.0, 195))
QUASAR_SIGMA = 0.008  # of ln(wavelength): 2400 km/s
TEMPERATURES = np.geomspace(2900, 10000, 40)  # K, of stars


def templates(wavelength: np.ndarray) -> np.ndarray:
    """F_lambda [5, W] (any unit) of the dust-free kinds at rest wavelengths [W] in angstrom."""
    knots, values = np.log(CONTINUUM[0]), np.log(CONTINUUM[1:])
    starburst = values[-1] + STARBURST_SLOPE * (knots - np.log(5500))
    ln_wave = np.log(wavelength)
    spectra = np.exp([np.interp(ln_wave, knots, row) for row in (*values, starburst)])
    spectra *= np.where(wavelength > 22000, (wavelength / 22000) ** -4.0, 1.0)  # Rayleigh-Jeans tail
    spectra *= np.where(wavelength < 912, LYMAN_BREAK, 1.0)
    continuum = spectra.copy()
    sigma = 2 * STEP  # 600 km/s: narrow for any broad band, resolved by the grid
    for line, widths in LINES:
        spectra += continuum * np.array(widths)[:, None] * _line(wavelength, line, sigma)
    return spectra


def quasars(wavelength: np.ndarray) -> np.ndarray:
    """F_lambda [3, W] (any unit) of QUASAR_SLOPES at rest wavelengths [W] in angstrom; no host galaxy."""
    continuum = (wavelength / 5500) ** np.array(QUASAR_SLOPES)[:, None]
    return continuum * (1 + sum(width * _line(wavelength, line, QUASAR_SIGMA) for line, width in QUASAR_LINES))


def _line(wavelength: np.ndarray, line: float, sigma: float) -> np.ndarray:
    """Profile [W], per angstrom, of unit integral."""
    return np.exp(-0.5 * (np.log(wavelength / line) / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma * line)


class FluxGrid(NamedTuple):
    """ln of (1 + z) <f_nu>_band / f_nu(NORM) for all kinds, dusts, redshifts and bands: [K, D, Z, C]."""

    ln_ratio: np.ndarray

    def magnitudes(self, kind: np.ndarray, dust: np.ndarray, z: np.ndarray) -> np.ndarray:
        """[..., C]: apparent minus absolute (AB, at NORM) magnitude minus distance modulus.

        Linear in ln(flux) between the grid's points, along kind, E(B-V) and ln(1 + z), which broadcast.
        """
        axes = np.broadcast_arrays(kind, dust / (DUST[1] - DUST[0]), np.log1p(z) / Z_STEP)
        low = [np.clip(np.floor(x).astype(int), 0, n - 2) for x, n in zip(axes, self.ln_ratio.shape, strict=False)]
        weight = [x - k for x, k in zip(axes, low, strict=True)]
        total = 0.0
        for corner in np.ndindex(2, 2, 2):
            share = np.prod([w if up else 1 - w for w, up in zip(weight, corner, strict=True)], axis=0)
            index = tuple(k + up for k, up in zip(low, corner, strict=True))
            total = total + share[..., None] * self.ln_ratio[index]
        return -2.5 / np.log(10) * total


@functools.cache
def star_colours() -> np.ndarray:
    """AB magnitudes [TEMPERATURES, C] relative to the reference band's."""
    observed, response = _responses()
    f_lambda = [np.interp(np.log(observed), np.log(WAVELENGTH), star(temperature)) for temperature in TEMPERATURES]
    magnitude = -2.5 * np.log10((np.array(f_lambda) * observed**2) @ response.T)
    return magnitude - magnitude[:, [bands.REFERENCE]]


def _responses() -> tuple[np.ndarray, np.ndarray]:
    """Wavelengths [W] in angstrom, even in ln by STEP, and the filters' responses [C, W] of unit sum."""
    curves = bands.curves()
    reddest = max(curve.wavelength[-1] for curve in curves)
    bluest = min(curve.wavelength[0] for curve in curves)
    observed = np.exp(np.arange(np.log(bluest), np.log(reddest) + STEP, STEP))
    response = np.array([np.interp(observed, c.wavelength, c.response, left=0, right=0) for c in curves])
    return observed, response / response.sum(1, keepdims=True)  # <f_nu> of a photon counter: weights R d(ln lambda)


@functools.cache
def flux_grid(shapes: Callable = templates) -> FluxGrid:
    """The grid of `templates` or `quasars`: kinds x 3 dusts x ~300 redshifts (0 to Z_MAX) x all bands; takes a fraction
    of a second."""
    observed, response = _responses()
    shifts = np.arange(round(np.log1p(Z_MAX) / Z_STEP) + 1) * round(Z_STEP / STEP)
    rest = observed[0] * np.exp(STEP * np.arange(-shifts[-1], len(observed)))
    reddening = 10 ** (-0.4 * DUST[:, None] * calzetti(rest))
    f_nu = shapes(rest)[:, None] * reddening * rest**2  # [K, D, W]
    norm = [[np.exp(np.interp(np.log(NORM), np.log(rest), np.log(row))) for row in dusts] for dusts in f_nu]
    f_nu /= np.array(norm)[..., None]

    ratio = np.empty((*f_nu.shape[:2], len(shifts), len(response)))
    for n, shift in enumerate(shifts):
        start = shifts[-1] - shift
        seen = f_nu[..., start : start + len(observed)] * igm_transmission(observed, np.expm1(shift * STEP))
        ratio[:, :, n] = np.exp(shift * STEP) * (seen @ response.T)
    return FluxGrid(np.log(np.maximum(ratio, 1e-12)))
