"""Redshift as a mixture of Gaussians in ln(1+z) (Bishop 1994; D'Isanto & Polsterer 2018)."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxz.data.prepare import Normalisation
from jaxz.models import Encoder
from jaxz.objectives import Prepared
from jaxz.objectives.redshift import SHARED, SHARED_CHECKS, Head, Redshift, label_error, masses

SETTINGS = SHARED | dict(components=5)
CHECKS = SHARED_CHECKS | {"components": (lambda s: 1 <= s.components <= 100, "from 1 to 100")}
LEAST_SIGMA = 1e-3  # of a component: the likelihood of a single label would grow without bound


class Objective(Redshift):
    """-log p(ln(1+z)), each component widened by the label's own error. p(z) is the mixture's mass in each bin.
    settings, beside those of Redshift: components."""

    name = "redshift_mixture"

    def __init__(self, encoder: Encoder, settings: ConfigDict, normalisation: Normalisation):
        outputs = 3 * settings.components
        super().__init__(encoder, settings, lambda rngs: Head(encoder.width, outputs, rngs=rngs))
        low, high = np.log1p([settings.z_min, settings.z_max])
        step = (high - low) / settings.components
        self.means, self.sigma = low + step * (np.arange(settings.components) + 0.5), step / 2  # before training

    def components(self, read: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Log weights, means and sigmas [B,K], of ln(1+z)."""
        weight, mean, sigma = jnp.split(read, 3, axis=1)
        return jax.nn.log_softmax(weight), self.means + mean, positive(sigma, self.sigma, LEAST_SIGMA)

    def errors(self, read: jax.Array, z: jax.Array, weight: jax.Array, batch: Prepared) -> jax.Array:
        log_weight, mean, sigma = self.components(read)
        error = label_error(batch) / (1 + z)
        sigma = jnp.sqrt(sigma**2 + error[:, None] ** 2)
        log_p = jax.scipy.stats.norm.logpdf(jnp.log1p(z)[:, None], mean, sigma)
        return -jax.nn.logsumexp(log_weight + log_p, axis=1)

    def mass(self, read: jax.Array) -> jax.Array:
        log_weight, mean, sigma = (x[..., None] for x in self.components(read))
        cdf = jax.scipy.stats.norm.cdf((np.log1p(self.edges).astype(np.float32) - mean) / sigma)  # [B,K,bins+1]
        return masses((jnp.exp(log_weight) * cdf).sum(1))


def positive(x: jax.Array, start: float, least: float) -> jax.Array:
    """A width above `least` that is `start` more where x is 0."""
    return least + start * jax.nn.softplus(x) / np.log(2)
