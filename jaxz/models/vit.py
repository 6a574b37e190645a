"""Vision transformer over multi-band cutouts (Dosovitskiy et al. 2021)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxz.models import layers
from jaxz.models.stems import FusedStem


class Encoded(NamedTuple):
    cls: jax.Array  # [B,D] the whole image, float32
    tokens: jax.Array  # [B,N,D] one per patch (those kept)


class Backbone(nnx.Module):
    """ViT with the fused stem. config: width, depth, heads, patch, dtype.

    cls is the mean of the normalised tokens: in few steps it learned redshifts better than a token of its own.
    """

    def __init__(self, config, bands, size: int, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.stem = FusedStem(bands, config.patch, config.width, dtype, rngs=rngs)
        tokens = (size // config.patch) ** 2
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (tokens, config.width)))
        block = lambda r: layers.Block(config.width, config.heads, dtype, rngs=r)
        self.blocks = layers.stack(config.depth, block, rngs)
        self.norm = nnx.LayerNorm(config.width, rngs=rngs)

    def __call__(self, image: jax.Array, mask: jax.Array, keep: jax.Array | None = None) -> Encoded:
        """image, mask [B,C,H,W] (mask: true where observed); keep int [B,K]: encode these patches only."""
        x = self.stem(image, mask)
        x = x + self.position[...].astype(x.dtype)
        if keep is not None:
            x = jnp.take_along_axis(x, keep[..., None], axis=1)
        tokens = self.norm(layers.scan(self.blocks, x).astype(jnp.float32))
        return Encoded(tokens.mean(1), tokens)
