"""One token per patch, from the observed pixels of all bands."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from jaxz.models import Band
from jaxz.models.stems import Tokens, WavelengthKernel, patchify


class Stem(nnx.Module):
    """token = K0 . m + sum_c K(lambda_c) . GAIN (x_c - m) + sum_c e(lambda_c) * observed fraction_c + bias, m the mean
    of the pixel's observed bands. Bands look alike: where what they share is not taken out, colours are learned several
    times slower.
    """

    GAIN = 3.0  # deviations are a few times smaller than the mean

    def __init__(self, bands: Sequence[Band], config: ConfigDict, dtype: DTypeLike, *, rngs: nnx.Rngs):
        self.patch, self.dtype = config.patch, dtype
        pixels, width = config.patch**2, config.width
        self.kernel = WavelengthKernel(bands, (pixels, width), (len(bands) * pixels) ** -0.5, rngs=rngs)
        self.mean = nnx.Linear(pixels, width, dtype=dtype, rngs=rngs)
        self.presence = WavelengthKernel(bands, (width,), 0.02, rngs=rngs)

    def __call__(self, image: jax.Array, mask: jax.Array, key: jax.Array | None) -> Tokens:
        return self.fuse(image, mask, self.kernel(), self.presence())[:, None], None

    def fuse(self, image: jax.Array, mask: jax.Array, kernel: jax.Array, presence: jax.Array) -> jax.Array:
        """Tokens [B,N,D] of the bands of image, mask [B,C,h,w], of kernel [C,PP,D] and presence [C,D]."""
        image = jnp.where(mask, image, 0)
        mean = image.sum(1, keepdims=True) / jnp.maximum(mask.sum(1, keepdims=True), 1)  # [B,1,h,w]
        colour = jnp.where(mask, self.GAIN * (image - mean), 0)
        pixels = patchify(colour, self.patch).astype(self.dtype)  # [B,N,C,PP]
        observed = patchify(mask.astype(self.dtype), self.patch).mean(-1)  # [B,N,C]
        kernel = kernel.astype(self.dtype)
        tokens = pixels.reshape(*pixels.shape[:2], -1) @ kernel.reshape(-1, kernel.shape[-1])
        tokens += self.mean(patchify(mean, self.patch)[:, :, 0])
        return tokens + observed @ presence.astype(self.dtype)
