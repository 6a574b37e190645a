"""Redshift as a number, ln(1+z), with a p(z) as wide as its errors were."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from jaxz.data.prepare import Normalisation
from jaxz.models import Encoder
from jaxz.objectives import Prepared
from jaxz.objectives.redshift import SHARED, SHARED_CHECKS, Head, Redshift, masses
from jaxz.objectives.redshift_mixture import positive

SETTINGS = SHARED | dict(loss="huber", delta=0.15)
CHECKS = SHARED_CHECKS | {
    "loss": (lambda s: s.loss in ("huber", "balanced_mse"), "'huber' or 'balanced_mse'"),
    "delta": (lambda s: s.delta > 0, "above 0"),
}
START_SPREAD, LEAST_SPREAD = 0.05, 1e-3  # of ln(1+z)
FAR = -1e9  # logit of a target that is none


class Heads(nnx.Module):
    """[B,width] -> [B,2]: the point, and how far it errs, which teaches the encoder nothing; with `noise` [B,3]: also a
    number that is learned for all objects."""

    def __init__(self, width: int, noise: bool, *, rngs: nnx.Rngs):
        self.point, self.spread = Head(width, 1, rngs=rngs), Head(width, 1, rngs=rngs)
        self.noise_scale = nnx.Param(jnp.zeros(1)) if noise else None

    def __call__(self, embedding: jax.Array) -> jax.Array:
        read = [self.point(embedding), self.spread(jax.lax.stop_gradient(embedding))]
        if self.noise_scale is not None:
            read.append(jnp.broadcast_to(self.noise_scale[...], (len(embedding), 1)))
        return jnp.concatenate(read, 1)


class Objective(Redshift):
    """Huber loss of ln(1+z), quadratic up to delta, in units of delta^2. p(z) is a logistic distribution around the
    point, whose scale another head fits by likelihood to the residuals that the point had in training, without moving
    it: too narrow where labels are learned by heart; recalibrate it on others. settings, beside those of Redshift:
    loss ("huber", or "balanced_mse": see there), delta."""

    name, columns = "redshift_regression", ("z",)

    def __init__(self, encoder: Encoder, settings: ConfigDict, normalisation: Normalisation):
        noise = settings.loss == "balanced_mse"
        super().__init__(encoder, settings, lambda rngs: Heads(encoder.width, noise, rngs=rngs))
        self.middle = np.log1p([settings.z_min, settings.z_max]).mean()  # before training

    def errors(self, read: jax.Array, z: jax.Array, weight: jax.Array, batch: Prepared) -> jax.Array:
        point, spread = self.point_and_spread(read)
        target, delta = jnp.log1p(z), self.settings.delta
        if self.settings.loss == "huber":
            of_point = optax.losses.huber_loss(point / delta, target / delta)
        else:
            noise = positive(read[:, 2], START_SPREAD, LEAST_SPREAD)
            of_point = balanced_mse(point, target, weight, noise) / (2 * delta**2)
        residual = jax.lax.stop_gradient(point) - target
        return of_point - jax.scipy.stats.logistic.logpdf(residual, scale=spread)

    def mass(self, read: jax.Array) -> jax.Array:
        point, spread = (x[:, None] for x in self.point_and_spread(read))
        return masses(jax.nn.sigmoid((np.log1p(self.edges).astype(np.float32) - point) / spread))

    def point_and_spread(self, read: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B] each, of ln(1+z)."""
        return self.middle + read[:, 0], positive(read[:, 1], START_SPREAD, LEAST_SPREAD)


def balanced_mse(point: jax.Array, target: jax.Array, weight: jax.Array, noise: jax.Array) -> jax.Array:
    """[B]: the squared error as if targets were equally frequent, by the batch's own (BMC; Ren et al. 2022, eq. 10):
    2 s^2 times the cross-entropy of finding a row's target among those of all rows that count, by the logits
    -(point - target)^2 / (2 s^2). s, the noise [B], is learned by the cross-entropy, not by the factor."""
    square = (point[:, None] - target) ** 2
    logits = jnp.where(weight > 0, -square / (2 * noise[:, None] ** 2), FAR)
    return -2 * jax.lax.stop_gradient(noise) ** 2 * jnp.diag(jax.nn.log_softmax(logits))
