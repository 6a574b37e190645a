"""VICReg (Bardes et al. 2022): two views agree, while every dimension varies over the batch and no two vary together.
No negatives, no teacher."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxz.checks import at_least
from jaxz.data.prepare import Normalisation
from jaxz.models import Encoder
from jaxz.models.functional import Params
from jaxz.objectives import Extra, Loss, Prepared, simclr
from jaxz.objectives.simclr import projector

SETTINGS = dict(projector=(512, 512, 512), invariance=25.0, variance=25.0, covariance=1.0)
CHECKS = {
    "projector": simclr.CHECKS["projector"],
    "invariance": (lambda s: s.invariance > 0, "above 0"),
    "variance": at_least("variance", 0),
    "covariance": at_least("covariance", 0),
}


class Objective:
    """settings: projector (widths of the expander), and the weights invariance, variance and covariance (lambda, mu and
    nu of eq. 6)."""

    columns, views = (), 2

    def __init__(self, encoder: Encoder, settings: ConfigDict, normalisation: Normalisation):
        self.encoder, self.settings = encoder, settings
        self.head = projector(encoder, settings)

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        return self.head.init(key), {}

    def loss(self, params: Params, ema: Params, extra: Extra, batch: Prepared, key: jax.Array, step: jax.Array) -> Loss:
        embedding = self.encoder.views(params["encoder"], batch["views"][:2], columns=batch, key=key).cls
        z = self.head(params["vicreg"], embedding).astype(jnp.float32)  # [B,2,E]
        # the mean over dimensions too, as in the paper's algorithm 1; its eq. 5 sums over them
        terms = {
            "invariance": ((z[:, 0] - z[:, 1]) ** 2).mean(),
            "variance": variance(z[:, 0]) + variance(z[:, 1]),
            "covariance": covariance(z[:, 0]) + covariance(z[:, 1]),
        }
        loss = sum(self.settings[name] * value for name, value in terms.items())
        return loss, {"metrics": terms, "extra": extra}

    def predict(self, params: Params, extra: Extra, batch: Prepared) -> dict[str, jax.Array]:
        return {}


def variance(z: jax.Array) -> jax.Array:
    """The mean over dimensions of how far the standard deviation over the batch of z [B,E] stays below 1 (eq. 1)."""
    return jax.nn.relu(1 - jnp.sqrt(z.var(0, ddof=1) + 1e-4)).mean()


def covariance(z: jax.Array) -> jax.Array:
    """The sum of the squared covariances of different dimensions of z [B,E], over E (eqs. 3 and 4)."""
    z = z - z.mean(0)
    matrix = jnp.matmul(z.T, z, precision="highest") / (len(z) - 1)  # [E,E]
    return ((matrix**2).sum() - (jnp.diagonal(matrix) ** 2).sum()) / z.shape[1]
