"""Bootstrap your own latent (Grill et al. 2020): predict from one view what the averaged network says of another.

LayerNorm stands where the paper has BatchNorm, which the method does not need (Richemond et al. 2020). What BatchNorm
also did was to take out what all objects share; cutouts share much, and without that all projections soon were one
direction. Here the target is centred on its running mean, as a DINO teacher is (Caron et al. 2021, eq. 4).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxz.models import Encoder
from jaxz.models.functional import Functional
from jaxz.models.heads import MLP, unit

SETTINGS = dict(hidden_width=1024, width=128)
CHECKS = {
    "hidden_width": (lambda s: s.hidden_width >= 1, "at least 1"),
    "width": (lambda s: s.width >= 1, "at least 1"),
}
MEMORY = 0.9  # of the running mean of the targets


class Heads(nnx.Module):
    """The projector g, and the predictor q, which the online network alone has."""

    def __init__(self, settings, encoder: Encoder, *, rngs: nnx.Rngs):
        hidden, width = settings.hidden_width, settings.width
        self.projector = MLP((encoder.width, hidden, width), norm=True, dtype=encoder.dtype, rngs=rngs)
        self.predictor = MLP((width, hidden, width), norm=True, dtype=encoder.dtype, rngs=rngs)

    def __call__(self, embedding: jax.Array, predict: bool) -> jax.Array:
        projected = self.projector(embedding)
        return self.predictor(projected) if predict else projected


class Objective:
    """settings: hidden_width and width of projector and predictor."""

    columns, views, teacher = (), 2, True

    def __init__(self, encoder: Encoder, settings, normalisation):
        self.encoder, self.width = encoder, settings.width
        self.heads = Functional(lambda rngs: Heads(settings, encoder, rngs=rngs))

    def init(self, key):
        return self.heads.init(key), {"centre": jnp.zeros(self.width)}

    def loss(self, params, ema, extra, batch, key, step):
        views = batch["views"][:2]
        online = self.encoder.views(params["encoder"], views, key=key).cls  # [B,2,D]
        target = self.encoder.views(ema["encoder"], views).cls
        predicted = self.heads(params["byol"], online, predict=True)
        projected = jax.lax.stop_gradient(self.heads(ema["byol"], target, predict=False))
        projected, centre = projected.astype(jnp.float32), extra["centre"]
        kept = MEMORY * centre + (1 - MEMORY) * projected.mean((0, 1))
        loss = regression(predicted, projected[:, ::-1] - centre)
        return loss, {"metrics": {}, "extra": {"centre": kept}}

    def predict(self, params, extra, batch):
        return {}


def regression(predicted: jax.Array, projected: jax.Array) -> jax.Array:
    """Mean over objects of the sum over views of |q/|q| - z/|z||^2, from 0 to 8 (Grill et al. 2020, eq. 2 and the
    symmetric loss below it). predicted [B,2,K] of each view, projected [B,2,K], centred, of the other one."""
    return ((unit(predicted) - unit(projected)) ** 2).sum((1, 2)).mean()
