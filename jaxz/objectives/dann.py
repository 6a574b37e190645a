"""Domain-adversarial training (Ganin et al. 2016): from the embedding no classifier tells labelled from unlabelled.

Aligned marginals are harmful where n(z) differs, which it mostly does: see docs/shift.md.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxz.checks import at_least
from jaxz.data.prepare import Normalisation
from jaxz.models import Encoder
from jaxz.models.functional import Functional, Params
from jaxz.models.heads import MLP
from jaxz.objectives import Extra, Loss, Prepared

SETTINGS = dict(hidden=128, ramp_steps=1000)
CHECKS = {
    "hidden": at_least("hidden", 1),
    "ramp_steps": at_least("ramp_steps", 1),
}


class Objective:
    """Cross-entropy of a classifier of rows with a redshift against those without, each kind with half the weight;
    towards the encoder its gradient is reversed, times 2 / (1 + exp(-10 p)) - 1, p rising to 1 over ramp_steps (Ganin
    et al. 2016, sec. 5.2.2). settings: hidden (the classifier's width), ramp_steps. Mix rows with data.sources."""

    columns = ("z",)

    def __init__(self, encoder: Encoder, settings: ConfigDict, normalisation: Normalisation):
        self.encoder, self.settings = encoder, settings
        self.head = Functional(lambda rngs: MLP((encoder.width, settings.hidden, 1), norm=True, rngs=rngs))

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        return self.head.init(key), {}

    def loss(self, params: Params, ema: Params, extra: Extra, batch: Prepared, key: jax.Array, step: jax.Array) -> Loss:
        embedding = self.encoder(params["encoder"], batch["image"], batch["mask"], columns=batch, key=key).cls
        strength = 2 / (1 + jnp.exp(-10 * jnp.minimum(step / self.settings.ramp_steps, 1))) - 1
        reversed_ = (1 + strength) * jax.lax.stop_gradient(embedding) - strength * embedding
        logit = self.head(params["dann"], reversed_)[:, 0].astype(jnp.float32)
        labelled = jnp.isfinite(batch["z"])
        share = lambda rows: rows / jnp.maximum(rows.sum(), 1) / 2
        weight = share(labelled) + share(~labelled)
        loss = (weight * jax.nn.softplus(jnp.where(labelled, -logit, logit))).sum()
        correct = (weight * ((logit > 0) == labelled)).sum()
        return loss, {"metrics": {"accuracy": correct, "strength": strength}, "extra": extra}

    def predict(self, params: Params, extra: Extra, batch: Prepared) -> dict[str, jax.Array]:
        return {}
