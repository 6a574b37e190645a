"""The synthetic survey's filters, as data: add, drop or change a line of BANDS and everything else follows."""

import functools
from typing import NamedTuple

import numpy as np
import speclite.filters

from jaxz.data.manifest import ZERO_POINT_UJY, Band

PIXEL_SCALE = 0.2  # arcsec
FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))


class Filter(NamedTuple):
    name: str
    curve: str  # name in speclite
    depth: float  # AB magnitude of a point source detected at 5 sigma
    psf_fwhm: float  # arcsec, of the effective PSF: Gaussian, the pixel's own response included
    a_over_ebv: float  # Galactic extinction A / E(B-V): COSMOS2020, Weaver et al. 2022


# u from CFHT-MegaCam, g to y from HSC; Euclid's Y and 2MASS's J, H, Ks stand in for VISTA's
BANDS = (
    Filter("u", "cfht_megacam-u", 27.0, 0.85, 4.807),
    Filter("g", "hsc2017-g", 27.3, 0.75, 3.690),
    Filter("r", "hsc2017-r2", 26.9, 0.70, 2.715),
    Filter("i", "hsc2017-i2", 26.7, 0.60, 2.000),
    Filter("z", "hsc2017-z", 26.3, 0.65, 1.515),
    Filter("y", "hsc2017-y", 25.3, 0.65, 1.298),
    Filter("Y", "Euclid-Y", 25.0, 0.80, 1.213),
    Filter("J", "twomass-J", 24.8, 0.80, 0.874),
    Filter("H", "twomass-H", 24.5, 0.75, 0.565),
    Filter("Ks", "twomass-Ks", 24.3, 0.75, 0.365),
)
REFERENCE = [f.name for f in BANDS].index("i")  # selects the sample, is observed in every field

PSF_SIGMA = np.array([f.psf_fwhm for f in BANDS]) / FWHM_PER_SIGMA  # arcsec [C]
A_OVER_EBV = np.array([f.a_over_ebv for f in BANDS])  # [C]


def zero_points() -> np.ndarray:
    """[C]: AB magnitude of one stored unit, the unit being the sky noise of a pixel.

    A point source weighted by its PSF is measured with the noise of 4 pi sigma_psf^2 pixels (King 1983, PASP 95, 163).
    """
    depth = np.array([f.depth for f in BANDS])
    noise_pixels = 4 * np.pi * (PSF_SIGMA / PIXEL_SCALE) ** 2
    return depth + 2.5 * np.log10(5 * np.sqrt(noise_pixels))


def ujy_per_unit() -> np.ndarray:
    """[C]: microjansky of one stored unit."""
    return 10 ** (-0.4 * (zero_points() - ZERO_POINT_UJY))


@functools.cache
def curves() -> tuple:
    """The filters' response curves, from the files that speclite carries."""
    return tuple(speclite.filters.load_filter(f.curve) for f in BANDS)


def manifest_bands() -> tuple[Band, ...]:
    """The bands as dataset.json describes them; width_nm is the integral of a curve over its maximum."""
    return tuple(
        Band(
            name=f.name,
            wavelength_nm=round(float(curve.effective_wavelength.value) / 10, 2),
            width_nm=round(float(np.trapezoid(curve.response, curve.wavelength) / curve.response.max()) / 10, 2),
            zero_point_ab=float(zero_point),
            pixel_scale_arcsec=PIXEL_SCALE,
            a_over_ebv=f.a_over_ebv,
            sky_sigma=1.0,
            psf_fwhm_arcsec=f.psf_fwhm,
        )
        for f, curve, zero_point in zip(BANDS, curves(), zero_points(), strict=True)
    )
