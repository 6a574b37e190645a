"""Self-training: the averaged network's p(z) is the label of unlabelled objects where it is sure (FixMatch, Sohn et al.
2020, with p(z) for classes), and only where labelled objects are near: elsewhere it would confirm its own prior."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxz.checks import at_least
from jaxz.data.prepare import Normalisation
from jaxz.models import Encoder
from jaxz.models.functional import Params
from jaxz.objectives import Extra, Loss, Prepared, redshift
from jaxz.photoz.pdf import ODDS_HALF_WIDTH

SETTINGS = redshift.SETTINGS | dict(band_mask=0.2, odds=0.8, pseudo_weight=1.0, ramp_steps=500)
CHECKS = redshift.CHECKS | {
    "odds": (lambda s: 0 <= s.odds <= 1, "in [0, 1]"),
    "pseudo_weight": at_least("pseudo_weight", 0),
    "ramp_steps": at_least("ramp_steps", 1),
}


class Objective(redshift.Objective):
    """Cross-entropy of labelled rows, plus that of unlabelled ones, in another view, with the averaged network's p(z)
    of the first view: of rows whose column `coverage` is 1 (`jaxz.shift`) and of which p(z) holds `odds` or more within
    0.06 (1 + z) of its mode, over the number of all unlabelled rows. The learner's views are the stronger ones: bands
    are hidden from it (band_mask), never from the averaged network. Mix both kinds with data.sources. settings, beside
    those of redshift: odds, pseudo_weight, ramp_steps (over which that weight rises from 0)."""

    name, views, teacher = "self_training", 2, True
    columns = (*redshift.Objective.columns, "coverage")

    def __init__(self, encoder: Encoder, settings: ConfigDict, normalisation: Normalisation):
        super().__init__(encoder, settings, normalisation)
        centres = (self.edges[1:] + self.edges[:-1]) / 2
        self.near = (np.abs(centres[:, None] - centres) <= ODDS_HALF_WIDTH * (1 + centres)).astype(np.float32)

    def weight(self, batch: Prepared) -> jax.Array:
        return jnp.ones(())  # one part is a mean over labelled rows, the other over unlabelled ones

    def loss(self, params: Params, ema: Params, extra: Extra, batch: Prepared, key: jax.Array, step: jax.Array) -> Loss:
        first, second = batch["views"][:2]
        keys = jax.random.split(key, 3)
        shown = [{**v, "mask": self.shown(v["mask"], own)} for v, own in zip((first, second), keys, strict=False)]
        seen = self.encoder.views(params["encoder"], shown, columns=batch, key=keys[2]).cls  # [B,2,D]
        labelled = self.mean_error(self.read(params, seen[:, 0]), batch)

        taught = self.encoder(ema["encoder"], first["image"], first["mask"], columns=batch).cls
        target = jax.lax.stop_gradient(self.mass(self.read(ema, taught)))
        unlabelled = jnp.isnan(batch["z"])
        sure = unlabelled & (batch["coverage"] == 1) & (self.odds(target) >= self.settings.odds)
        entropy = -(target * jax.nn.log_softmax(self.read(params, seen[:, 1]))).sum(1)
        pseudo = jnp.where(sure, entropy, 0).sum() / jnp.maximum(unlabelled.sum(), 1)
        ramp = jnp.minimum(step / self.settings.ramp_steps, 1)
        metrics = {"entropy": labelled, "pseudo": pseudo, "sure": sure.sum() / jnp.maximum(unlabelled.sum(), 1)}
        return labelled + self.settings.pseudo_weight * ramp * pseudo, {"metrics": metrics, "extra": extra}

    def odds(self, mass: jax.Array) -> jax.Array:
        """[B]: what p(z) [B,bins] holds in the bins whose middles are within 0.06 (1 + z) of its mode."""
        return (mass @ self.near)[jnp.arange(len(mass)), mass.argmax(1)]
