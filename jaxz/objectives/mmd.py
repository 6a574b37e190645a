"""Maximum mean discrepancy (Gretton et al. 2012; Long et al. 2015) between labelled and unlabelled embeddings.

Aligned marginals are harmful where n(z) differs, which it mostly does: see docs/shift.md.
"""

import jax
import jax.numpy as jnp

from jaxz.mesh import constrain_batch
from jaxz.objectives import coral

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the Gaussian kernels, in units of the batch's mean squared distance


class Objective(coral.Objective):
    """MMD^2 of the embeddings of rows with a redshift and of those without, in the global batch; 0 where either has
    none. Mix both kinds of rows with data.sources."""

    def distance(self, embedding: jax.Array, labelled: jax.Array) -> jax.Array:
        return mmd(embedding, labelled)


def mmd(x: jax.Array, labelled: jax.Array) -> jax.Array:
    """The biased estimate (Gretton et al. 2012, eq. 5) of x [B,D], labelled bool [B], in the mean over the kernels
    exp(-d^2 / (w mean d^2)), w in WIDTHS; the mean distance has no gradient."""
    square = (x**2).sum(1)
    inner = constrain_batch(jnp.matmul(x, x.T, precision="highest"))
    distance = jnp.maximum(square[:, None] + square - 2 * inner, 0)
    scale = jnp.maximum(jax.lax.stop_gradient(distance.mean()), 1e-12)
    kernel = sum(jnp.exp(-distance / (width * scale)) for width in WIDTHS) / len(WIDTHS)
    count = labelled.sum(), (~labelled).sum()
    sign = jnp.where(labelled, 1 / jnp.maximum(count[0], 1), -1 / jnp.maximum(count[1], 1))
    found = jnp.einsum("a,ab,b->", sign, kernel, sign, precision="highest")  # a small difference of large sums
    return jnp.where((count[0] > 0) & (count[1] > 0), found, 0)
