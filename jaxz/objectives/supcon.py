"""Supervised contrast (Khosla et al. 2020): objects of the same redshift bin lie together, those of others apart."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxz.data.prepare import Normalisation
from jaxz.models import Encoder
from jaxz.models.functional import Params
from jaxz.objectives import Extra, Loss, Prepared, simclr
from jaxz.objectives.simclr import FAR, cosines, projector

SETTINGS = dict(projector=(512, 128), temperature=0.1, bin_width=0.05)
CHECKS = simclr.CHECKS | {"bin_width": (lambda s: s.bin_width > 0, "above 0")}


class Objective:
    """Views of the same bin attract, over the global batch; rows without a redshift take no part. settings: projector,
    temperature, bin_width (in ln(1+z): as wide in units of 1+z at every redshift)."""

    columns, views = ("z",), 2

    def __init__(self, encoder: Encoder, settings: ConfigDict, normalisation: Normalisation):
        self.encoder, self.settings = encoder, settings
        self.head = projector(encoder, settings)

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        return self.head.init(key), {}

    def loss(self, params: Params, ema: Params, extra: Extra, batch: Prepared, key: jax.Array, step: jax.Array) -> Loss:
        z = batch["z"].astype(jnp.float32)
        labelled = jnp.isfinite(z) & (z > -1)
        bins = jnp.floor(jnp.log1p(jnp.where(labelled, z, 0)) / self.settings.bin_width).astype(jnp.int32)
        embedded = self.encoder.views(params["encoder"], batch["views"][:2], columns=batch, key=key).cls
        loss = supcon(self.head(params["supcon"], embedded), bins, labelled, self.settings.temperature)
        return loss, {"metrics": {"labelled": labelled.mean()}, "extra": extra}

    def predict(self, params: Params, extra: Extra, batch: Prepared) -> dict[str, jax.Array]:
        return {}


def supcon(z: jax.Array, bins: jax.Array, labelled: jax.Array, temperature: float) -> jax.Array:
    """L_out (Khosla et al. 2020, eq. 2) of z [B,V,E] with bins int [B] where labelled [B], in the mean over the views
    of labelled objects instead of their sum; 0 where there are none."""
    bins, labelled = (jnp.repeat(x, z.shape[1]) for x in (bins, labelled))  # [BV]
    z = z.reshape(-1, z.shape[-1])
    other = (jnp.arange(len(z))[:, None] != jnp.arange(len(z))) & labelled
    log_share = jax.nn.log_softmax(jnp.where(other, cosines(z, z) / temperature, FAR))
    positive = other & (bins[:, None] == bins)
    per_view = -jnp.where(positive, log_share, 0).sum(1) / jnp.maximum(positive.sum(1), 1)
    return jnp.where(labelled, per_view, 0).sum() / jnp.maximum(labelled.sum(), 1)
