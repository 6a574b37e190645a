"""Fluxes measured on images: Gaussian apertures matched between PSFs, a circular aperture for magnitudes."""

import numpy as np


def matched_fluxes(
    images: np.ndarray,
    centre: np.ndarray,
    psf_sigma: np.ndarray,
    aperture_sigma: float,
    sky_sigma: np.ndarray,
    correlation: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Fluxes and errors [B, C] of images [B, C, H, W] in a Gaussian aperture on the sky before the seeing.

    The weight (p^2 / v) exp(-r^2 / 2v), v = p^2 - s^2, on an image with a Gaussian PSF of sigma s measures what
    exp(-r^2 / 2p^2) would without a PSF (Kuijken 2008, A&A 482, 1053, sect. 2): colours are free of the seeing, and a
    point source keeps its whole flux. centre [B, 2] (x, y), psf_sigma [C] or [B, C] and aperture_sigma (p) in pixels;
    sky_sigma [C] or [B, C], noise of a pixel; correlation: of neighbours along an axis, 0 farther away. Raises
    ValueError where p is not wider than every PSF.
    """
    variance = aperture_sigma**2 - np.asarray(psf_sigma, float) ** 2
    if variance.min() <= 0:
        raise ValueError(f"aperture_sigma {aperture_sigma} must exceed every PSF's sigma, {np.max(psf_sigma)}")
    height, width = images.shape[-2:]

    def weight(n: int, middle: np.ndarray) -> np.ndarray:
        return np.exp(-0.5 * (np.arange(n) - middle[:, None, None]) ** 2 / variance[..., None])  # [B, C, n]

    along_x, along_y = weight(width, centre[:, 0]), weight(height, centre[:, 1])
    peak = aperture_sigma**2 / variance
    flux = peak * np.einsum("bchw,bch,bcw->bc", images, along_y, along_x)
    error = peak * sky_sigma * np.sqrt(noise_variance(along_y, correlation) * noise_variance(along_x, correlation))
    return flux, error


def noise_variance(weight: np.ndarray, correlation: float) -> np.ndarray:
    """[...] of the sum weight [..., n] times noise of unit variance and this correlation of neighbours."""
    return (weight**2).sum(-1) + 2 * correlation * (weight[..., 1:] * weight[..., :-1]).sum(-1)


def aperture_to_pixel_noise(psf_sigma: np.ndarray, aperture_sigma: float, correlation: float) -> np.ndarray:
    """[C]: noise in the aperture of `matched_fluxes` over that of white noise of the same pixels."""
    reach = np.arange(-10 * aperture_sigma, 10 * aperture_sigma + 1)
    weight = np.exp(-0.5 * reach**2 / (aperture_sigma**2 - psf_sigma[:, None] ** 2))
    return noise_variance(weight, correlation) / noise_variance(weight, 0.0)  # a root for each of two axes


def circular_flux(images: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    """Sum [B] of images [B, H, W] within `radius` of centre [B, 2] (x, y), pixels; border pixels count in part."""
    y, x = np.indices(images.shape[-2:])
    distance = np.hypot(x - centre[:, 0, None, None], y - centre[:, 1, None, None])
    return (images * np.clip(radius + 0.5 - distance, 0, 1)).sum((1, 2))
