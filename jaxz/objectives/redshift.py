"""Redshift as a softmax over bins (Pasquet et al. 2019), labels smoothed by their error."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxz.data.augment import hide_bands, turn
from jaxz.models import Encoder
from jaxz.models.functional import Functional

SETTINGS = dict(z_min=0.0, z_max=3.0, bins=150, label_sigma=0.01, band_mask=0.0, views=8)
CHECKS = {
    "z_max": (lambda s: s.z_max > s.z_min, "above redshift.z_min"),
    "bins": (lambda s: 2 <= s.bins <= 10_000, "from 2 to 10000"),
    "label_sigma": (lambda s: s.label_sigma > 0, "above 0"),
    "band_mask": (lambda s: 0 <= s.band_mask < 1, "in [0, 1)"),
    "views": (lambda s: s.views in (1, 8), "1 or 8"),
}


class Head(nnx.Module):
    def __init__(self, width: int, bins: int, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.out = nnx.Linear(width, bins, kernel_init=nnx.initializers.normal(0.01), rngs=rngs)

    def __call__(self, embedding: jax.Array) -> jax.Array:
        return self.out(self.norm(embedding))


class Objective:
    """Cross-entropy with p(z) in `bins` equal bins over [z_min, z_max]; rows without a redshift, or with one outside of
    the range, have no weight. settings: z_min, z_max, bins, label_sigma (least smoothing, in units of 1+z), band_mask
    (chance of an observed band to be hidden in training: few labels are otherwise learned by heart), views (how many of
    the square's 8 symmetries a prediction is averaged over: which way the sky is up must not change a redshift)."""

    columns = ("z", "z_err")

    def __init__(self, encoder: Encoder, settings, normalisation):
        self.encoder, self.settings = encoder, settings
        self.edges = np.linspace(settings.z_min, settings.z_max, settings.bins + 1, dtype=np.float32)
        self.head = Functional(lambda rngs: Head(encoder.width, settings.bins, rngs=rngs))

    def init(self, key):
        return self.head.init(key), {}

    def logits(self, params, image, mask, key=None):
        return self.head(params["redshift"], self.encoder(params["encoder"], image, mask, key=key).cls)

    def loss(self, params, ema, extra, batch, key, step):
        z, error = batch["z"].astype(jnp.float32), batch["z_err"].astype(jnp.float32)
        labelled = (z >= self.settings.z_min) & (z < self.settings.z_max)  # false for NaN
        z = jnp.where(labelled, z, self.settings.z_min)
        sigma = jnp.maximum(jnp.nan_to_num(error), self.settings.label_sigma * (1 + z))
        target = soft_labels(z, sigma, self.edges)
        hidden = hide_bands(batch["mask"], self.settings.band_mask, key)
        shown = batch["mask"] & ~hidden[..., None, None]
        logits = self.logits(params, batch["image"], shown, jax.random.fold_in(key, 1))
        entropy = -(target * jax.nn.log_softmax(logits)).sum(1)
        weight = jnp.where(labelled, batch.get("weight", 1.0), 0)
        loss = (weight * entropy).sum() / jnp.maximum(weight.sum(), 1)
        return loss, {"metrics": {"labelled": labelled.mean()}, "extra": extra}

    def predict(self, params, extra, batch):
        """pdf [B,bins]: the probability of each redshift bin, averaged over the views."""

        def seen(view):
            return jax.nn.softmax(self.logits(params, turn(batch["image"], view), turn(batch["mask"], view)))

        return {"pdf": jax.lax.map(seen, jnp.arange(self.settings.views)).mean(0)}


def soft_labels(z: jax.Array, sigma: jax.Array, edges) -> jax.Array:
    """[B,bins]: the mass of a Gaussian (z, sigma) in each bin, cut to the range and normalised."""
    cdf = jax.scipy.stats.norm.cdf((edges - z[:, None]) / sigma[:, None])
    mass = jnp.diff(cdf, axis=1) + 1e-12
    return mass / mass.sum(1, keepdims=True)
