"""The inception network of Pasquet et al. 2019 (A&A 621, A26) for redshifts of SDSS galaxies.

Its head is one layer to the bins' softmax: redshift.norm=False. Where the paper leaves it open: ReLU after the hidden
layers, slopes of PReLU from 0, biases from 0.1.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from jaxz.models import Band, Encoded, inception
from jaxz.models.inception import CHECKS, SETTINGS, Conv, Inception  # noqa: F401  the settings are this module's too

HIDDEN = 1024


def columns(bands: Sequence[Band]) -> tuple[str, ...]:
    """Of the catalogue: the Galactic reddening E(B-V), mag."""
    return ("ebv",)


class First(nnx.Module):
    """[B,H,W,C] -> [B,H/2,W/2,64]."""

    maps = 64

    def __init__(self, bands: int, dtype: DTypeLike, *, rngs: nnx.Rngs):
        self.conv = Conv(bands, self.maps, 5, "prelu", dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return inception.mean_pool(self.conv(x), stride=2)


class Backbone(nnx.Module):
    """Five inception layers, halved in size twice between; what they give, flat, with E(B-V) beside it, through two
    hidden layers, of which the second is cls. Images may have any size."""

    parts = False

    def __init__(self, config: ConfigDict, bands: Sequence[Band], size: int, *, rngs: nnx.Rngs):
        self.dtype = dtype = jnp.dtype(config.dtype)
        make = lambda count: First(count, dtype, rngs=rngs)
        self.first = inception.FirstLayers(make, First.maps, bands, tuple(config.subsets))
        layer = lambda inner, narrow, wide, sides=(5, 3): Inception(
            inner, narrow, wide, wide, sides, "prelu", dtype, rngs=rngs
        )
        self.inception0 = layer(self.first.outer, 48, 64)
        self.inception1 = layer(self.inception0.outer, 64, 92)
        self.inception2 = layer(self.inception1.outer, 92, 128)
        self.inception3 = layer(self.inception2.outer, 92, 128)
        self.inception4 = layer(self.inception3.outer, 92, 128, sides=(3,))
        side = -(-size // 8)  # halved three times, rounded up
        flat = self.inception4.outer * side**2 + 1
        self.dense0 = inception.dense(flat, HIDDEN, dtype, rngs)
        self.dense1 = inception.dense(HIDDEN, HIDDEN, dtype, rngs)

    def __call__(self, image: jax.Array, mask: jax.Array, columns: Mapping, key: jax.Array | None = None) -> Encoded:
        """image, mask [B,C,H,W]; columns: ebv [B]; nothing is drawn from key."""
        x = self.first(inception.pixels(image, mask, self.dtype))
        x = inception.mean_pool(self.inception1(self.inception0(x)), stride=2)
        x = inception.mean_pool(self.inception3(self.inception2(x)), stride=2)
        maps = self.inception4(x)
        flat = jnp.concatenate([maps.reshape(len(maps), -1), inception.reddening(columns, self.dtype)], axis=1)
        return inception.encoded(jax.nn.relu(self.dense1(jax.nn.relu(self.dense0(flat)))), maps)
