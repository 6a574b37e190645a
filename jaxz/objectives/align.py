"""Alignment of images with photometry (as CLIP, Radford et al. 2021, of images with texts): an object's image and its
catalog fluxes find each other among those of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxz.checks import at_least
from jaxz.data.prepare import Normalisation
from jaxz.models import Encoder
from jaxz.models.functional import Functional, Params
from jaxz.models.heads import MLP
from jaxz.models.stems import WavelengthKernel
from jaxz.objectives import Extra, Loss, Prepared
from jaxz.objectives.fluxes import SOFTENING
from jaxz.objectives.simclr import FAR, cosines

SETTINGS = dict(width=128, hidden=256, temperature=0.07, errors=True)
CHECKS = {
    "width": at_least("width", 1),
    "hidden": at_least("hidden", 1),
    "temperature": at_least("temperature", 0.01),
}


class Towers(nnx.Module):
    """From an image's embedding and from its photometry to where they are compared."""

    def __init__(self, settings: ConfigDict, encoder: Encoder, features: int, *, rngs: nnx.Rngs):
        self.image = nnx.Linear(encoder.width, settings.width, rngs=rngs)
        shape, size = (features, settings.hidden), features * len(encoder.bands)
        self.kernel = WavelengthKernel(encoder.bands, shape, size**-0.5, rngs=rngs)
        self.photometry = MLP((settings.hidden, settings.hidden, settings.width), norm=True, rngs=rngs)
        self.scale = nnx.Param(-jnp.log(jnp.float32(settings.temperature)))  # ln(1 / temperature)

    def __call__(self, embedding: jax.Array, features: jax.Array):
        """(image, photometry [B,E], what their cosines are multiplied by) of embedding [B,D], features [B,C,F]."""
        hidden = jax.nn.gelu(jnp.einsum("bcf,cfd->bd", features, self.kernel()))
        above = jax.nn.relu(self.scale[...] - jnp.log(100.0))  # a gradient brings it back
        scale = jnp.exp(self.scale[...] - jax.lax.stop_gradient(above))
        return self.image(embedding), self.photometry(hidden), scale


class Objective:
    """Symmetric InfoNCE over the global batch; rows without any measured flux have no weight. settings: width of the
    common space, hidden (width of the photometry's MLP), temperature (where the learned one starts; it stays above
    0.01), errors (whether the MLP is told the fluxes' errors, from the columns fluxerr_<band>)."""

    def __init__(self, encoder: Encoder, settings: ConfigDict, normalisation: Normalisation):
        self.encoder = encoder
        self.kinds = ("flux", "fluxerr") if settings.errors else ("flux",)
        self.columns = tuple(f"{kind}_{band.name}" for band in normalisation.bands for kind in self.kinds)
        self.inputs = self.columns
        self.scale = SOFTENING * np.array(normalisation.scale_ujy, np.float32)[:, None]
        self.towers = Functional(lambda rngs: Towers(settings, encoder, 2 * len(self.kinds), rngs=rngs))

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        return self.towers.init(key), {}

    def features(self, batch: Prepared) -> tuple[jax.Array, jax.Array]:
        """[B,C,F]: asinh(flux / scale) and that of its error, 0 where missing, and which are there; and which rows have
        any flux, bool [B]."""
        values = jnp.stack([batch[name].astype(jnp.float32) for name in self.columns], 1)
        values = values.reshape(len(values), -1, len(self.kinds)) / self.scale  # [B,C,kinds]
        there = jnp.isfinite(values)
        features = jnp.concatenate([jnp.arcsinh(jnp.where(there, values, 0)), there], 2)
        return features, there[..., 0].any(1)

    def loss(self, params: Params, ema: Params, extra: Extra, batch: Prepared, key: jax.Array, step: jax.Array) -> Loss:
        embedding = self.encoder(params["encoder"], batch["image"], batch["mask"], columns=batch, key=key).cls
        features, measured = self.features(batch)
        image, photometry, scale = self.towers(params["align"], embedding, features)
        loss, accuracy = symmetric_info_nce(image, photometry, scale, measured)
        return loss, {"metrics": {"accuracy": accuracy, "temperature": 1 / scale}, "extra": extra}

    def predict(self, params: Params, extra: Extra, batch: Prepared) -> dict[str, jax.Array]:
        """`aligned_image` and `aligned_photometry` [B,E], to be compared by their cosines; the second is NaN without
        any measured flux."""
        embedding = self.encoder(params["encoder"], batch["image"], batch["mask"], columns=batch).cls
        features, measured = self.features(batch)
        image, photometry, _ = self.towers(params["align"], embedding, features)
        return {"aligned_image": image, "aligned_photometry": jnp.where(measured[:, None], photometry, jnp.nan)}


def symmetric_info_nce(a: jax.Array, b: jax.Array, scale: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(loss, accuracy) of a, b [B,E] over the rows that are valid [B]: the mean cross-entropy of finding a row's b by
    its a among all, and its a by its b (Radford et al. 2021, fig. 3), from cosines times `scale`; and how often a row's
    b is the nearest to its a."""
    logits = jnp.where(valid[:, None] & valid, scale * cosines(a, b), FAR)
    number = jnp.arange(len(a))
    matched = jnp.where(number[:, None] == number, logits, 0).sum(1)
    entropy = (jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0)) / 2 - matched
    mean = lambda x: jnp.where(valid, x, 0).sum() / jnp.maximum(valid.sum(), 1)
    return mean(entropy), mean(logits.argmax(1) == number)
