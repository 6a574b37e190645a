"""Predict the catalog's measured fluxes of every object, labelled or not, from its image with some bands hidden.

A supervised target that all objects carry: it teaches colours where spectroscopic labels are missing.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxz.data.augment import hide_bands
from jaxz.data.prepare import Normalisation
from jaxz.models import Band, Encoder
from jaxz.models.functional import Functional, Params
from jaxz.models.stems import WavelengthKernel
from jaxz.objectives import Extra, Loss, Prepared

SOFTENING = 3.0  # in units of the image's softening: an aperture holds some ten pixels of noise in quadrature

SETTINGS = dict(band_mask=0.2)
CHECKS = {"band_mask": (lambda s: 0 <= s.band_mask < 1, "in [0, 1)")}


class Head(nnx.Module):
    """[B,D] -> asinh(flux / scale) [B,C]: a linear layer, smooth in wavelength, of the normalised embedding."""

    def __init__(self, width: int, bands: Sequence[Band], *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.kernel = WavelengthKernel(bands, (width,), width**-0.5, rngs=rngs)
        self.offset = WavelengthKernel(bands, (), 0.02, rngs=rngs)

    def __call__(self, embedding: jax.Array) -> jax.Array:
        return self.norm(embedding) @ self.kernel().T + self.offset()  # [B,C]


class Objective:
    """Huber loss on asinh(flux / scale) over the bands that have a measured flux. settings: band_mask."""

    def __init__(self, encoder: Encoder, settings: ConfigDict, normalisation: Normalisation):
        self.encoder, self.settings = encoder, settings
        self.columns = tuple(f"flux_{band.name}" for band in normalisation.bands)
        self.scale = SOFTENING * np.array(normalisation.scale_ujy, np.float32)
        self.head = Functional(lambda rngs: Head(encoder.width, encoder.bands, rngs=rngs))

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        return self.head.init(key), {}

    def measured(self, batch: Prepared) -> tuple[jax.Array, jax.Array]:
        """Flux / scale and how much it counts [B,C], both 0 where there is none."""
        flux = jnp.stack([batch[name] for name in self.columns], 1).astype(jnp.float32) / self.scale
        there = jnp.isfinite(flux)
        return jnp.where(there, flux, 0), there * batch.get("bootstrap", jnp.ones(len(flux)))[:, None]

    def weight(self, batch: Prepared) -> jax.Array:
        return self.measured(batch)[1].sum()

    def loss(self, params: Params, ema: Params, extra: Extra, batch: Prepared, key: jax.Array, step: jax.Array) -> Loss:
        hidden = hide_bands(batch["mask"], self.settings.band_mask, key)
        shown = batch["mask"] & ~hidden[..., None, None]
        encoded = self.encoder(params["encoder"], batch["image"], shown, columns=batch, key=jax.random.fold_in(key, 1))
        predicted = self.head(params["fluxes"], encoded.cls)
        flux, weight = self.measured(batch)
        error = jnp.where(weight > 0, predicted - jnp.arcsinh(flux), 0)
        huber = jnp.where(jnp.abs(error) < 1, 0.5 * error**2, jnp.abs(error) - 0.5)
        return (weight * huber).sum() / jnp.maximum(weight.sum(), 1), {"metrics": {}, "extra": extra}

    def predict(self, params: Params, extra: Extra, batch: Prepared) -> dict[str, jax.Array]:
        """`flux` [B,C] in microjansky, of the bands that the model knows; dereddened where the run's images are."""
        encoded = self.encoder(params["encoder"], batch["image"], batch["mask"], columns=batch)
        return {"flux": jnp.sinh(self.head(params["fluxes"], encoded.cls)) * self.scale}
