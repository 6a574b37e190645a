"""Fluxes measured on images: Gaussian apertures matched between PSFs, a circular aperture for magnitudes."""

import numpy as np


def matched_fluxes(
    images: np.ndarray, centre: np.ndarray, psf_sigma: np.ndarray, aperture_sigma: float, sky_sigma: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fluxes and errors [B, C] of images [B, C, H, W] in a Gaussian aperture on the sky before the seeing.

    The weight (p^2 / v) exp(-r^2 / 2v), v = p^2 - s^2, on an image with a Gaussian PSF of sigma s measures what
    exp(-r^2 / 2p^2) would without a PSF (Kuijken 2008, A&A 482, 1053, sect. 2): colours are free of the seeing, and a
    point source keeps its whole flux. centre [B, 2] (x, y), psf_sigma [C] and aperture_sigma (p) in pixels;
    sky_sigma [C], white noise of a pixel. Raises ValueError where p is not wider than every PSF.
    """
    variance = aperture_sigma**2 - np.asarray(psf_sigma, float) ** 2
    if variance.min() <= 0:
        raise ValueError(f"aperture_sigma {aperture_sigma} must exceed every PSF's sigma, {np.max(psf_sigma)}")
    height, width = images.shape[-2:]

    def weight(n: int, middle: np.ndarray) -> np.ndarray:
        return np.exp(-0.5 * (np.arange(n) - middle[:, None, None]) ** 2 / variance[:, None])  # [B, C, n]

    along_x, along_y = weight(width, centre[:, 0]), weight(height, centre[:, 1])
    peak = aperture_sigma**2 / variance
    flux = peak * np.einsum("bchw,bch,bcw->bc", images, along_y, along_x)
    error = peak * sky_sigma * np.sqrt((along_y**2).sum(-1) * (along_x**2).sum(-1))
    return flux, error


def circular_flux(images: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    """Sum [B] of images [B, H, W] within `radius` of centre [B, 2] (x, y), pixels; border pixels count in part."""
    y, x = np.indices(images.shape[-2:])
    distance = np.hypot(x - centre[:, 0, None, None], y - centre[:, 1, None, None])
    return (images * np.clip(radius + 0.5 - distance, 0, 1)).sum((1, 2))
