"""Bootstrap your own latent (Grill et al. 2020): predict from one view what the averaged network says of another.

LayerNorm stands where the paper has BatchNorm: no statistics of the batch enter, which the method does not need
(Richemond et al. 2020). A target centred on its running mean, as a DINO teacher's output is, was tried and left out:
after 200 steps it had helped one of four redshift probes, and no other.
"""

import jax
from flax import nnx
from ml_collections import ConfigDict

from jaxz.checks import at_least
from jaxz.data.prepare import Normalisation
from jaxz.models import Encoder
from jaxz.models.functional import Functional, Params
from jaxz.models.heads import MLP, unit
from jaxz.objectives import Extra, Loss, Prepared

SETTINGS = dict(hidden_width=1024, width=128)
CHECKS = {
    "hidden_width": at_least("hidden_width", 1),
    "width": at_least("width", 1),
}


class Heads(nnx.Module):
    """The projector g, and the predictor q, which the online network alone has."""

    def __init__(self, settings: ConfigDict, encoder: Encoder, *, rngs: nnx.Rngs):
        hidden, width = settings.hidden_width, settings.width
        self.projector = MLP((encoder.width, hidden, width), norm=True, dtype=encoder.dtype, rngs=rngs)
        self.predictor = MLP((width, hidden, width), norm=True, dtype=encoder.dtype, rngs=rngs)

    def __call__(self, embedding: jax.Array, predict: bool) -> jax.Array:
        projected = self.projector(embedding)
        return self.predictor(projected) if predict else projected


class Objective:
    """settings: hidden_width and width of projector and predictor."""

    columns, views, teacher = (), 2, True

    def __init__(self, encoder: Encoder, settings: ConfigDict, normalisation: Normalisation):
        self.encoder = encoder
        self.heads = Functional(lambda rngs: Heads(settings, encoder, rngs=rngs))

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        return self.heads.init(key), {}

    def loss(self, params: Params, ema: Params, extra: Extra, batch: Prepared, key: jax.Array, step: jax.Array) -> Loss:
        views = batch["views"][:2]
        online = self.encoder.views(params["encoder"], views, columns=batch, key=key).cls  # [B,2,D]
        target = self.encoder.views(ema["encoder"], views, columns=batch).cls
        predicted = self.heads(params["byol"], online, predict=True)
        projected = jax.lax.stop_gradient(self.heads(ema["byol"], target, predict=False))
        return regression(predicted, projected[:, ::-1]), {"metrics": {}, "extra": extra}

    def predict(self, params: Params, extra: Extra, batch: Prepared) -> dict[str, jax.Array]:
        return {}


def regression(predicted: jax.Array, projected: jax.Array) -> jax.Array:
    """Mean over objects of the sum over views of |q/|q| - z/|z||^2, from 0 to 8 (Grill et al. 2020, eq. 2 and the
    symmetric loss below it). predicted [B,2,K] of each view, projected [B,2,K] of the other one."""
    return ((unit(predicted) - unit(projected)) ** 2).sum((1, 2)).mean()
