"""Vision transformer over multi-band cutouts (Dosovitskiy et al. 2021)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxz.models import layers
from jaxz.models.stems import FusedStem

SETTINGS = dict(width=384, depth=12, heads=6, patch=8, dtype="float32")
CHECKS = {
    "width": (lambda s: s.width >= 1, "at least 1"),
    "depth": (lambda s: s.depth >= 1, "at least 1"),
    "heads": (lambda s: s.heads >= 1 and s.width % s.heads == 0, "a divisor of model.width"),
    "patch": (lambda s: s.patch >= 1, "at least 1"),
    "dtype": (lambda s: s.dtype in ("float32", "bfloat16", "float16"), "float32, bfloat16 or float16"),
}


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

    def __call__(
        self,
        image: jax.Array,
        mask: jax.Array,
        keep: jax.Array | None = None,
        hidden: jax.Array | None = None,
        mask_token: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> Encoded:
        """image, mask [B,C,h,w] (mask: true where observed), of the model's size or a crop from about its middle.

        keep int [B,K]: encode these patches only; hidden bool [B,N] and mask_token [D]: what stands for these patches.
        key: of what is random in training; without it nothing is.
        """
        x = self.stem(image, mask)
        if hidden is not None:
            x = jnp.where(hidden[..., None], mask_token.astype(x.dtype), x)
        x = x + middle(self.position[...], x.shape[1]).astype(x.dtype)
        if keep is not None:
            x = jnp.take_along_axis(x, keep[..., None], axis=1)
        tokens = self.norm(layers.scan(self.blocks, x).astype(jnp.float32))
        return Encoded(tokens.mean(1), tokens)


def middle(position: jax.Array, tokens: int) -> jax.Array:
    """[tokens, D]: the positions of a square crop of the image, as if cut from its middle: only what lies where to one
    another counts."""
    side, own = int(len(position) ** 0.5), int(tokens**0.5)
    low = (side - own) // 2
    return position.reshape(side, side, -1)[low : low + own, low : low + own].reshape(tokens, -1)
