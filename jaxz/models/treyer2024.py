"""The inception network of Treyer et al. 2024 (MNRAS 527, 651), in which E(B-V) shifts the first maps and all that is
known of a redshift passes through 16 numbers.

Its head is one layer to the bins' softmax: redshift.norm=False. Open in the description, and chosen here: the 16
numbers have no activation, both hidden layers around them ReLU, and means before them take in no border.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from jaxz.errors import InputError
from jaxz.models import Band, Encoded, inception
from jaxz.models.inception import CHECKS, Conv, Inception  # noqa: F401  the checks are this module's too

SETTINGS = inception.SETTINGS | dict(
    bottleneck=True,  # whether all passes through the 16 numbers; else cls is what is before, as CLAP has its own
)
MAPS, HIDDEN, LATENT = 96, 1024, 16


def columns(bands: Sequence[Band]) -> tuple[str, ...]:
    """Of the catalogue: the Galactic reddening E(B-V), mag."""
    return ("ebv",)


class First(nnx.Module):
    """[B,H,W,C], E(B-V) [B,1] -> [B,H/2,W/2,96]."""

    def __init__(self, bands: int, dtype: DTypeLike, *, rngs: nnx.Rngs):
        self.reddening = inception.dense(1, MAPS, dtype, rngs)
        self.conv0 = Conv(bands, MAPS, 5, "relu", dtype, rngs=rngs)
        self.conv1 = Conv(MAPS, MAPS, 3, "tanh", dtype, rngs=rngs)

    def __call__(self, x: jax.Array, ebv: jax.Array) -> jax.Array:
        return inception.mean_pool(self.conv1(self.conv0(x, self.reddening(ebv))), stride=2)


class Backbone(nnx.Module):
    """Six inception layers, halved in size twice between, three convolutions without padding, and hidden layers of
    1024, 16 and 1024, of which the last is cls; of 1024 alone without the bottleneck. Raises InputError for images that
    are too small for these."""

    parts = False

    def __init__(self, config: ConfigDict, bands: Sequence[Band], size: int, *, rngs: nnx.Rngs):
        side = -(-size // 8) - 7  # halved three times, rounded up; three convolutions, and a mean
        if side < 1:
            raise InputError(f"model.name: treyer2024 needs images of at least 57 pixels, not {size}; use pasquet2019")
        self.dtype = dtype = jnp.dtype(config.dtype)
        make = lambda count: First(count, dtype, rngs=rngs)
        self.first = inception.FirstLayers(make, MAPS, bands, tuple(config.subsets))
        inner = self.first.outer
        for n in range(6):
            layer = Inception(inner, 101, 156, 109, (5, 3), "relu", dtype, rngs=rngs)
            setattr(self, f"inception{n}", layer)
            inner = layer.outer
        for n in range(3):
            setattr(self, f"conv{n}", Conv(inner, MAPS, 3, "relu", dtype, padding="VALID", rngs=rngs))
            inner = MAPS
        self.dense0 = inception.dense(MAPS * side**2, HIDDEN, dtype, rngs)
        self.bottleneck = config.bottleneck
        if self.bottleneck:
            self.latent = inception.dense(HIDDEN, LATENT, dtype, rngs)
            self.dense1 = inception.dense(LATENT, HIDDEN, dtype, rngs)

    def __call__(self, image: jax.Array, mask: jax.Array, columns: Mapping, key: jax.Array | None = None) -> Encoded:
        """image, mask [B,C,H,W]; columns: ebv [B]; nothing is drawn from key."""
        x = self.first(inception.pixels(image, mask, self.dtype), inception.reddening(columns, self.dtype))
        for n in range(6):
            x = inception.mean_pool(x, stride=2) if n in (3, 5) else x
            x = getattr(self, f"inception{n}")(x)
        for n in range(3):
            x = getattr(self, f"conv{n}")(x)
        maps = inception.mean_pool(x, stride=1, padding="VALID")
        x = jax.nn.relu(self.dense0(maps.reshape(len(maps), -1)))
        if self.bottleneck:
            x = jax.nn.relu(self.dense1(self.latent(x)))
        return inception.encoded(x, maps)
