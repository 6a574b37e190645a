"""A token per patch and band (ChannelViT: Bao et al. 2024), for batches in which every image has its own bands."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from jaxz.models import Band
from jaxz.models.stems import Tokens, WavelengthKernel, patchify


class Stem(nnx.Module):
    """token_c = K . x_c + e(lambda_c) * observed fraction_c + bias, K the same for all bands. In training, where
    model.sample_bands, some bands of each image are left out (their sec. 3.2, for each image on its own)."""

    def __init__(self, bands: Sequence[Band], config: ConfigDict, dtype: DTypeLike, *, rngs: nnx.Rngs):
        self.patch, self.dtype, self.sample = config.patch, dtype, config.sample_bands
        self.pixels = nnx.Linear(config.patch**2, config.width, dtype=dtype, rngs=rngs)
        self.presence = WavelengthKernel(bands, (config.width,), 0.02, rngs=rngs)

    def __call__(self, image: jax.Array, mask: jax.Array, key: jax.Array | None) -> Tokens:
        if key is not None and self.sample:
            mask &= sampled_bands(mask.any((2, 3)), key)[..., None, None]
        pixels, seen = (patchify(x, self.patch).swapaxes(1, 2) for x in (jnp.where(mask, image, 0), mask))  # [B,C,N,PP]
        fraction = seen.astype(self.dtype).mean(-1, keepdims=True)
        return self.pixels(pixels) + fraction * self.presence().astype(self.dtype)[:, None], seen.any(-1)


def sampled_bands(observed: jax.Array, key: jax.Array) -> jax.Array:
    """[B,C] bool: some of the bands in `observed` [B,C], for each image; first their number is drawn, uniformly from 1
    to all, then which."""
    count, number = observed.sum(1), jax.random.uniform(jax.random.fold_in(key, 0), observed.shape[:1])
    draw = jnp.where(observed, jax.random.uniform(jax.random.fold_in(key, 1), observed.shape), 2)
    rank = draw.argsort(1).argsort(1)  # of each band in its image's random order, observed ones first
    return observed & (rank <= jnp.floor(number * count)[:, None])
