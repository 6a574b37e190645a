"""Draws galaxies: mixtures of Gaussians in Fourier space, where a PSF is a product (Hogg & Lang 2013, PASP 125, 719).

The profile is evaluated once a galaxy, multiplied by each band's PSF, and transformed once a band.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from scipy.optimize import nnls

EXPONENTIAL, DE_VAUCOULEURS = 1, 4  # Sersic indices
PROFILE_REACH = 8.0  # half-light radii: a profile ends here
KERNEL = np.cos(np.radians([15, 75])).astype(np.float32)  # see `resampled`
CORRELATION = float(KERNEL.prod())  # 1/4, of neighbouring pixels along an axis
MARGIN = 32  # pixels: the periodic box is so much wider than the stamp; wrapped light comes from 8 arcsec and beyond


class Shapes(NamedTuple):
    """B galaxies of C bands, lengths in pixels: what `render` needs to know."""

    flux: np.ndarray  # [B, C], in stored units
    bulge: np.ndarray  # [B], fraction of light in the de Vaucouleurs component
    re_disk: np.ndarray  # [B], half-light radii along the major axis
    re_bulge: np.ndarray
    q_disk: np.ndarray  # [B], axis ratios
    q_bulge: np.ndarray
    angle: np.ndarray  # [B], rad, of the major axis from +x towards +y
    offset: np.ndarray  # [B, 2], (x, y) from the stamp's centre


@functools.cache
def mixture(sersic: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights (sum 1) and sigmas (half-light radii) of round Gaussians that make a Sersic profile.

    Non-negative least squares of the surface brightness exp(-b (r / r_e)^(1/n)), weighted by the radius so that light
    counts, not the peak. b: Ciotti & Bertin 1999, eq. 18. The profiles end at PROFILE_REACH, which is all of an
    exponential and 94 % of a de Vaucouleurs; images are right to 1e-4 and 4e-3 of their peak.
    """
    n = sersic
    b = 2 * n - 1 / 3 + 4 / (405 * n) + 46 / (25515 * n**2)
    sigma = np.geomspace(*((0.02, 3.0) if n == DE_VAUCOULEURS else (0.1, 2.0)), 10)
    r = np.geomspace(1e-3, PROFILE_REACH, 400)
    gaussians = np.exp(-0.5 * (r[:, None] / sigma) ** 2) / (2 * np.pi * sigma**2)
    profile = np.exp(-b * r ** (1 / n))
    weight, _ = nnls(gaussians * r[:, None], profile * r)
    kept = weight > 1e-4 * weight.sum()
    return weight[kept] / weight[kept].sum(), sigma[kept]


def box(size: int) -> int:
    """Pixels a side of the periodic box in which a stamp of `size` pixels is drawn."""
    return scipy.fft.next_fast_len(size + MARGIN, real=True)


def stamps(shapes: Shapes, psf_sigma: Sequence[float] | jax.Array, size: int) -> jax.Array:
    """Noise-free stamps [B, C, size, size] (y, x), surface brightness at the pixels' centres, in stored units.

    psf_sigma [C] or [B, C], pixels: Gaussian PSFs, the pixel's response included; at least 1.2, or the sampling
    aliases. The centre stands at (size - 1) / 2 + offset.
    """
    period = box(size)
    ky = 2 * jnp.pi * jnp.fft.fftfreq(period)[:, None]
    kx = 2 * jnp.pi * jnp.fft.rfftfreq(period)[None, :]
    s = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), shapes)
    cos, sin = jnp.cos(s.angle)[:, None, None], jnp.sin(s.angle)[:, None, None]
    along, across = kx * cos + ky * sin, ky * cos - kx * sin  # [B, K, K / 2]

    def transform(sersic: float, re: jax.Array, q: jax.Array) -> jax.Array:
        k2 = re[:, None, None] ** 2 * (along**2 + (q[:, None, None] * across) ** 2)
        weights, sigmas = mixture(sersic)
        parts = (float(w) * jnp.exp(-0.5 * float(s) ** 2 * k2) for w, s in zip(weights, sigmas, strict=True))
        return functools.reduce(jnp.add, parts)

    bulge = s.bulge[:, None, None]
    profile = bulge * transform(DE_VAUCOULEURS, s.re_bulge, s.q_bulge)
    profile += (1 - bulge) * transform(EXPONENTIAL, s.re_disk, s.q_disk)
    centre = (size - 1) / 2 + s.offset
    shift = jnp.exp(-1j * ky * centre[:, 1, None, None]) * jnp.exp(-1j * kx * centre[:, 0, None, None])
    psf = jnp.exp(-0.5 * jnp.array(psf_sigma)[..., None, None] ** 2 * (kx**2 + ky**2))  # [..., C, K, K / 2]
    spectrum = (profile * shift)[:, None] * (s.flux[:, :, None, None] * psf)
    return jnp.fft.irfft2(spectrum, s=(period, period))[..., :size, :size]


render = jax.jit(stamps, static_argnames=("size", "psf_sigma"))  # of a tuple of PSFs, the same for all
render_each = jax.jit(stamps, static_argnames="size")  # of PSFs [B, C]


def sky_noise(shape: tuple[int, ...], seed: int, first: int, correlated: bool = False) -> np.ndarray:
    """Gaussian noise float32 [B, C, H, W] of sigma 1, white or `resampled`; row i is that of (seed, first + i)."""
    count, channels, height, width = shape
    noise = np.empty(shape, np.float32)
    for i in range(count):
        generator = np.random.Generator(np.random.Philox(key=np.array([seed, first + i], np.uint64)))
        white = generator.standard_normal((channels, height + correlated, width + correlated), dtype=np.float32)
        noise[i] = resampled(white) if correlated else white
    return noise


def resampled(white: np.ndarray) -> np.ndarray:
    """White noise [..., H + 1, W + 1] convolved with KERNEL along both axes: [..., H, W], of the same sigma.

    A stack of many exposures at random sub-pixel phases a, each interpolated linearly, has the autocorrelation
    E[a^2 + (1 - a)^2] = 2/3 and E[a (1 - a)] = 1/6 along an axis. KERNEL = (cos 15, sin 15 deg) has the same: 1, 1/4.
    """
    a, b = KERNEL
    rows = a * white[..., 1:, :] + b * white[..., :-1, :]
    return a * rows[..., 1:] + b * rows[..., :-1]
