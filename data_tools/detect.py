"""Finds sources in one band, and measures them in fixed apertures."""

import numpy as np
from astropy.stats import gaussian_fwhm_to_sigma, mad_std, sigma_clip
from photutils.aperture import CircularAperture
from photutils.segmentation import SourceCatalog, detect_sources
from scipy.ndimage import gaussian_filter

from data_tools.survey import Detection
from data_tools.tiles import Sky
from jaxz.errors import InputError

EMPTY_APERTURES = 4000


def detect(pixels: np.ndarray, flags: np.ndarray, sky: Sky, settings: Detection, scale_arcsec: float) -> np.ndarray:
    """float64 [N, 2]: x, y (0-based pixels) of the sources, in raster order; isophotal flux-weighted centres.

    The image over its rms goes through a Gaussian matched filter before the threshold, which is in units of the
    filtered sky's sigma (Irwin 1985, MNRAS 214 575). Sources that touch are one source.
    Raises InputError where there is none.
    """
    good = flags == 0
    signal = np.where(good, (pixels - sky.level) / sky.rms, 0).astype(np.float32)
    filtered = gaussian_filter(signal, settings.filter_fwhm_arcsec / scale_arcsec * gaussian_fwhm_to_sigma)
    sigma = mad_std(filtered[good])
    segments = detect_sources(filtered, settings.threshold_sigma * sigma, settings.min_pixels)
    if segments is None:
        raise InputError(
            f"detection.threshold_sigma: {settings.threshold_sigma} finds no source in band {settings.band}; lower it"
        )
    found = SourceCatalog(np.where(good, pixels - sky.level, 0), segments, convolved_data=filtered.astype(np.float64))
    centres = np.stack([found.x_centroid, found.y_centroid], 1)
    return centres[np.isfinite(centres).all(1)]


def aperture_flux(residual: np.ndarray, flags: np.ndarray, xy: np.ndarray, radius_px: float) -> np.ndarray:
    """float64 [N]: the sum of sky-subtracted pixels [H, W] in circles (exact overlap); NaN where a pixel of the circle
    is flagged or outside of the tile."""
    apertures = CircularAperture(xy, radius_px)
    good = (flags == 0).astype(np.float64)
    flux = np.atleast_1d(apertures.do_photometry(np.where(good, residual, 0).astype(np.float64))[0])
    covered = np.atleast_1d(apertures.do_photometry(good)[0])
    return np.where(covered > apertures.area * (1 - 1e-9), flux, np.nan)


def noise_area(radius_px: float) -> float:
    """Variance of an aperture's sum over that of a pixel, were the pixels independent: the sum of squared overlaps."""
    return float((CircularAperture((0, 0), radius_px).to_mask().data ** 2).sum())


def aperture_noise(residual: np.ndarray, flags: np.ndarray, radius_px: float) -> float:
    """The sigma of apertures laid at random on the sky, sources clipped: it holds the noise's correlation between
    pixels, which the noise of one pixel does not (Labbe et al. 2003, AJ 125 1107)."""
    height, width = residual.shape
    edge = min(radius_px + 1, (min(height, width) - 1) / 2)
    rng = np.random.default_rng(0)
    xy = rng.uniform((edge, edge), (width - 1 - edge, height - 1 - edge), (EMPTY_APERTURES, 2))
    flux = aperture_flux(residual, flags, xy, radius_px)
    kept = sigma_clip(flux[np.isfinite(flux)], sigma=3, maxiters=10, stdfunc="mad_std", masked=False)
    return float(mad_std(kept))
