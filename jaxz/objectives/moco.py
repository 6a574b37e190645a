"""Momentum contrast (He et al. 2020; with an MLP head, Chen, Fan et al. 2020): a view finds the averaged encoder's key
of the other view among those of earlier batches. Many negatives for small batches."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxz.checks import at_least
from jaxz.data.prepare import Normalisation
from jaxz.models import Encoder
from jaxz.models.functional import Params
from jaxz.models.heads import unit
from jaxz.objectives import Extra, Loss, Prepared, simclr
from jaxz.objectives.simclr import cosines, projector

SETTINGS = dict(projector=(512, 128), temperature=0.2, queue=4096)
CHECKS = simclr.CHECKS | {"queue": at_least("queue", 1)}


class Objective:
    """InfoNCE against a queue of keys. settings: projector, temperature, queue (keys kept, of the last batches)."""

    columns, views, teacher = (), 2, True

    def __init__(self, encoder: Encoder, settings: ConfigDict, normalisation: Normalisation):
        self.encoder, self.settings = encoder, settings
        self.head = projector(encoder, settings)

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        head_key, queue_key = jax.random.split(key)
        queue = jax.random.normal(queue_key, (self.settings.queue, self.settings.projector[-1]))
        return self.head.init(head_key), {"queue": unit(queue)}

    def project(self, params: Params, view: Prepared, columns: Prepared, key: jax.Array | None) -> jax.Array:
        embedding = self.encoder(params["encoder"], view["image"], view["mask"], columns=columns, key=key).cls
        return self.head(params["moco"], embedding)  # [B,E]

    def loss(self, params: Params, ema: Params, extra: Extra, batch: Prepared, key: jax.Array, step: jax.Array) -> Loss:
        query = self.project(params, batch["views"][0], batch, key)
        keys = unit(jax.lax.stop_gradient(self.project(ema, batch["views"][1], batch, None)))
        loss, accuracy = info_nce(query, keys, extra["queue"], self.settings.temperature)
        return loss, {"metrics": {"accuracy": accuracy}, "extra": {"queue": enqueue(extra["queue"], keys)}}

    def predict(self, params: Params, extra: Extra, batch: Prepared) -> dict[str, jax.Array]:
        return {}


def info_nce(query: jax.Array, keys: jax.Array, queue: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    """(loss, accuracy) of query, keys [B,E] and queue [K,E]: the cross-entropy of finding a query's own key among the
    queue's (He et al. 2020, eq. 1), and how often it is nearer than all of them."""
    positive = (unit(query) * unit(keys)).sum(1, keepdims=True)
    logits = jnp.concatenate([positive, cosines(query, queue)], 1) / temperature  # [B,1+K]
    return -jax.nn.log_softmax(logits)[:, 0].mean(), (logits.argmax(1) == 0).mean()


def enqueue(queue: jax.Array, keys: jax.Array) -> jax.Array:
    """The queue [K,E] with keys [B,E] before its others, of which the oldest drop out."""
    return jnp.concatenate([keys, queue])[: len(queue)]
