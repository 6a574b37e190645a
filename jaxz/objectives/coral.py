"""Deep CORAL (Sun & Saenko 2016): labelled and unlabelled embeddings have the same covariance.

Aligned marginals are harmful where n(z) differs, which it mostly does: see docs/shift.md.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxz.data.prepare import Normalisation
from jaxz.models import Encoder
from jaxz.models.functional import Params
from jaxz.objectives import Extra, Loss, Prepared


class Objective:
    """|C_s - C_t|^2 / (4 D^2) of the embeddings of rows with a redshift and of those without, in the global batch; 0
    where either has fewer than two. Mix both kinds of rows with data.sources."""

    columns = ("z",)

    def __init__(self, encoder: Encoder, settings: ConfigDict, normalisation: Normalisation):
        self.encoder = encoder

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        return {}, {}

    def loss(self, params: Params, ema: Params, extra: Extra, batch: Prepared, key: jax.Array, step: jax.Array) -> Loss:
        embedding = self.encoder(params["encoder"], batch["image"], batch["mask"], columns=batch, key=key).cls
        loss = self.distance(embedding.astype(jnp.float32), jnp.isfinite(batch["z"]))
        return loss, {"metrics": {}, "extra": extra}

    def distance(self, embedding: jax.Array, labelled: jax.Array) -> jax.Array:
        return coral(embedding, labelled)

    def predict(self, params: Params, extra: Extra, batch: Prepared) -> dict[str, jax.Array]:
        return {}


def coral(embedding: jax.Array, labelled: jax.Array) -> jax.Array:
    """Of embedding [B,D] and labelled bool [B] (Sun & Saenko 2016, eqs. 1 to 3)."""
    gap = covariance(embedding, labelled) - covariance(embedding, ~labelled)
    both = (labelled.sum() > 1) & ((~labelled).sum() > 1)
    return jnp.where(both, (gap**2).sum() / (4 * embedding.shape[1] ** 2), 0)


def covariance(x: jax.Array, chosen: jax.Array) -> jax.Array:
    """[D,D] of the chosen rows of x [B,D], divided by their number less one."""
    count, weight = chosen.sum(), chosen[:, None].astype(jnp.float32)
    centred = (x - (x * weight).sum(0) / jnp.maximum(count, 1)) * weight
    return jnp.matmul(centred.T, centred, precision="highest") / jnp.maximum(count - 1, 1)
