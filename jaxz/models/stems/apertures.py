"""The fused stem and, in every token, the brightness of the cutout's middle in apertures: what photometry measures.

Colours of an object are ratios of sums over many pixels. From pixels on a compressed scale, a patch at a time, a
network learns such sums slowly, and from few labels by heart.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from jaxz.models import Band
from jaxz.models.stems import Tokens, WavelengthKernel, fused

SIGMAS = (1.5, 3.0, 6.0)  # pixels, of Gaussian apertures
LEAST = 0.5  # of an aperture's weight that must be observed


class Stem(fused.Stem):
    """token + sum_ck K(lambda_c, k) . GAIN (a_ck - m_k) + K0 . m + bias: a_ck is asinh of band c's flux in aperture k,
    in units of the softening times its noise over that of a pixel, m_k the mean of the observed bands. For images with
    data.stretch="asinh" and their object in the middle."""

    def __init__(self, bands: Sequence[Band], config: ConfigDict, dtype: DTypeLike, *, rngs: nnx.Rngs):
        super().__init__(bands, config, dtype, rngs=rngs)
        count, width = len(SIGMAS), config.width
        self.colour = WavelengthKernel(bands, (count, width), (len(bands) * count) ** -0.5, rngs=rngs)
        self.level = nnx.Linear(count, width, rngs=rngs)

    def __call__(self, image: jax.Array, mask: jax.Array, key: jax.Array | None) -> Tokens:
        tokens = self.fuse(image, mask, self.kernel(), self.presence())
        bright, known = apertures(image, mask)
        level = bright.sum(1, keepdims=True) / jnp.maximum(known.sum(1, keepdims=True), 1)  # [B,1,K]
        colour = jnp.where(known, self.GAIN * (bright - level), 0)
        own = jnp.einsum("bck,ckd->bd", colour, self.colour()) + self.level(level[:, 0])
        return (tokens + own[:, None].astype(self.dtype))[:, None], None


def apertures(image: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Asinh fluxes [B,C,K] of asinh pixels [B,C,h,w] in Gaussian apertures about the middle, and which are known: those
    of which the mask leaves half or more, scaled to the whole; 0 else. The middle is (n - 1) / 2, which the square's
    symmetries leave in place: of an even side n it lies between the pixels n / 2 - 1 and n / 2."""
    y, x = (np.arange(n) - (n - 1) / 2 for n in image.shape[-2:])
    weight = np.exp(-0.5 * (y[:, None] ** 2 + x**2) / np.square(SIGMAS)[:, None, None])  # [K,h,w]
    seen = jnp.einsum("bchw,khw->bck", mask.astype(jnp.float32), weight / weight.sum((1, 2), keepdims=True))
    weight /= np.sqrt((weight**2).sum((1, 2), keepdims=True))  # the noise of a sum is that of a pixel
    pixels = jnp.where(mask, jnp.sinh(jnp.where(mask, image, 0).astype(jnp.float32)), 0)
    flux = jnp.einsum("bchw,khw->bck", pixels, weight.astype(np.float32))
    known = seen >= LEAST
    return jnp.where(known, jnp.arcsinh(flux / jnp.maximum(seen, LEAST)), 0), known
