"""A multi-layer perceptron over the catalogue's fluxes and their errors: no pixel enters."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxz.checks import at_least, one_of
from jaxz.models import Band, Encoded
from jaxz.models.heads import MLP

SETTINGS = dict(
    width=128,
    depth=3,  # hidden layers
    dtype="float32",  # of the computation; parameters and results are float32
)
CHECKS = {
    "width": at_least("width", 1),
    "depth": at_least("depth", 1),
    "dtype": one_of("dtype", "float32", "bfloat16", "float16"),
}
SOFTENING = 3.0  # in sky sigmas of a pixel: an aperture holds some ten pixels of noise in quadrature
GAIN = 3.0  # of colours, which vary less than brightness and say more
KINDS = ("flux", "fluxerr")


def columns(bands: Sequence[Band]) -> tuple[str, ...]:
    """Of the catalogue: the flux and its error in every band, microjansky."""
    return tuple(f"{kind}_{band.name}" for kind in KINDS for band in bands)


class Backbone(nnx.Module):
    """cls [B,width] and as the one token, of features(flux, error). Of the image only the number of rows is used."""

    parts = False

    def __init__(self, config: ConfigDict, bands: Sequence[Band], size: int, *, rngs: nnx.Rngs):
        self.names = tuple(tuple(f"{kind}_{band.name}" for band in bands) for kind in KINDS)
        self.scale = tuple(SOFTENING * band.sky_sigma * band.ujy_per_unit for band in bands)
        widths = (4 * len(bands) + 1, *[config.width] * config.depth)
        self.mlp = MLP(widths, norm=True, dtype=jnp.dtype(config.dtype), rngs=rngs)

    def __call__(self, image: jax.Array, mask: jax.Array, columns: Mapping, key: jax.Array | None = None) -> Encoded:
        """columns: flux_<band> and fluxerr_<band> [B], microjansky, not finite where missing; nothing is drawn from
        key."""
        flux, error = (jnp.stack([columns[name] for name in names], 1) for names in self.names)
        scale = np.array(self.scale, np.float32)
        cls = jax.nn.gelu(self.mlp(features(flux / scale, error / scale))).astype(jnp.float32)
        return Encoded(cls, cls[:, None], jnp.isfinite(flux).any(1)[:, None])


def features(flux: jax.Array, error: jax.Array) -> jax.Array:
    """[B,4C+1] of flux and error [B,C] in units of the softening: asinh of the flux (the magnitudes of Lupton, Gunn &
    Szalay 1999), as its mean over the measured bands and each band's difference from it; asinh of the error; and which
    of them are there. What is missing is zero."""
    measured, known = jnp.isfinite(flux), jnp.isfinite(error)
    bright = jnp.where(measured, jnp.arcsinh(jnp.where(measured, flux, 0)), 0)
    mean = bright.sum(1, keepdims=True) / jnp.maximum(measured.sum(1, keepdims=True), 1)
    colour = GAIN * jnp.where(measured, bright - mean, 0)
    noise = jnp.where(known, jnp.arcsinh(jnp.where(known, error, 0)), 0)
    return jnp.concatenate([mean, colour, noise, measured, known], axis=1)
