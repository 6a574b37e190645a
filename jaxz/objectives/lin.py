"""p(z) by magnitude: several heads, each taught by the objects of its magnitudes (Lin et al. 2022, step 1).

Steps 2 and 3 train the last layer alone (configs/redshift_balanced.py:lin), on a near-balanced subset and with the
shifted labels of jaxz.lin; step 4 is jaxz.correct --method lin_z_phot (docs/shift.md).
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxz.checks import at_least
from jaxz.data.prepare import Normalisation
from jaxz.models import Encoder
from jaxz.objectives import Prepared, redshift
from jaxz.objectives.redshift import SHARPEST, Head, Redshift, label_error, soft_labels

SETTINGS = redshift.SHARED | dict(label_sigma=0.01, heads=6, magnitude_min=12.5, magnitude_max=18.0)
CHECKS = redshift.SHARED_CHECKS | {
    "label_sigma": at_least("label_sigma", 0),
    "heads": (lambda s: 2 <= s.heads <= 100, "from 2 to 100"),
    "magnitude_max": (lambda s: s.magnitude_max > s.magnitude_min, "above lin.magnitude_min"),
}


class Objective(Redshift):
    """The sum of the heads' cross-entropies, with the label for those that the object's magnitude belongs to and with a
    flat p(z) for others, and of a magnitude classifier's; p(z) is the heads' mean weighted by the classifier. settings,
    beside those of Redshift: label_sigma, heads (K), magnitude_min, magnitude_max (of mag_ref: the range is cut into
    2K - 1 rows, 0.5 mag each in the paper, of which a head sees up to three and shares the outer two)."""

    name, columns = "lin", ("z", "z_err", "mag_ref")

    def __init__(self, encoder: Encoder, settings: ConfigDict, normalisation: Normalisation):
        outputs = settings.heads * (settings.bins + 1)
        super().__init__(encoder, settings, lambda rngs: Head(encoder.width, outputs, rngs=rngs))

    def labels(self, batch: Prepared) -> tuple[jax.Array, jax.Array]:
        z, weight = super().labels(batch)
        return z, jnp.where(jnp.isfinite(batch["mag_ref"]), weight, 0)

    def split(self, read: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Log p(z) of each head [B,K,bins], and log of each head's share [B,K]."""
        heads, share = jnp.split(read, [self.settings.heads * self.settings.bins], axis=1)
        return jax.nn.log_softmax(heads.reshape(len(read), self.settings.heads, -1)), jax.nn.log_softmax(share)

    def errors(self, read: jax.Array, z: jax.Array, weight: jax.Array, batch: Prepared) -> jax.Array:
        s, error = self.settings, label_error(batch)
        target = soft_labels(z, jnp.maximum(error, jnp.maximum(s.label_sigma * (1 + z), SHARPEST)), self.edges)
        magnitude = jnp.nan_to_num(batch["mag_ref"].astype(jnp.float32))
        share = magnitude_heads(magnitude, s.magnitude_min, s.magnitude_max, s.heads)
        taught = jnp.where(share[..., None] > 0, target[:, None], 1 / s.bins)  # [B,K,bins]
        log_p, log_share = self.split(read)
        return -(taught * log_p).sum((1, 2)) - (share * log_share).sum(1)

    def mass(self, read: jax.Array) -> jax.Array:
        log_p, log_share = self.split(read)
        return jnp.exp(log_p + log_share[..., None]).sum(1)


def magnitude_heads(magnitude: jax.Array, low: float, high: float, heads: int) -> jax.Array:
    """[B,K]: the share of each head in an object of magnitude [B], summing to 1.

    [low, high] is cut into 2K - 1 rows. An even row is of one head; an odd one is shared by halves with the next.
    Magnitudes beyond belong to the outermost rows.
    """
    row = jnp.clip(jnp.floor((magnitude - low) / (high - low) * (2 * heads - 1)), 0, 2 * heads - 2)
    return jnp.maximum(0, 1 - jnp.abs(row[:, None] / 2 - jnp.arange(heads)))
