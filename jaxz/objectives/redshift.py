"""Redshift as a softmax over bins (Pasquet et al. 2019), labels smoothed by their error; and what all heads that
predict p(z) share."""

import abc
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxz.checks import at_least
from jaxz.data.augment import hide_bands, turn
from jaxz.data.prepare import Normalisation
from jaxz.models import Encoder
from jaxz.models.functional import Functional, Params
from jaxz.objectives import Extra, Loss, Prepared
from jaxz.photoz.balance import BALANCES, label_weights

SHARED = dict(z_min=0.0, z_max=3.0, bins=150, band_mask=0.0, views=8, balance="")
SHARED_CHECKS = {
    "z_min": (lambda s: s.z_min > -1, "above -1"),
    "z_max": (lambda s: s.z_max > s.z_min, "above z_min"),
    "bins": (lambda s: 2 <= s.bins <= 10_000, "from 2 to 10000"),
    "band_mask": (lambda s: 0 <= s.band_mask < 1, "in [0, 1)"),
    "views": (lambda s: s.views in (1, 8), "1 or 8"),
    "balance": (lambda s: s.balance in ("", *BALANCES), f"'' or one of {', '.join(BALANCES)}"),
}
SETTINGS = SHARED | dict(norm=True, label_sigma=0.01, loss="ce", focal=0.0, logit_adjust=0.0)
CHECKS = SHARED_CHECKS | {
    "label_sigma": at_least("label_sigma", 0),
    "loss": (lambda s: s.loss in ("ce", "ordinal"), "'ce' or 'ordinal'"),
    "focal": (lambda s: s.focal == 0 or s.focal >= 1, "0, or at least 1"),
    "logit_adjust": at_least("logit_adjust", 0),
}
SHARPEST = 1e-6  # sigma of a label in z: one bin holds all of it
LARGEST_ERROR = 1e4  # of a label in z: it says nothing
LEAST_MASS = 1e-12  # of a bin: no p(z) says never


class Head(nnx.Module):
    """[B,width] -> [B,outputs]."""

    def __init__(self, width: int, outputs: int, norm: bool = True, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs) if norm else None
        self.out = nnx.Linear(width, outputs, kernel_init=nnx.initializers.normal(0.01), rngs=rngs)

    def __call__(self, embedding: jax.Array) -> jax.Array:
        return self.out(embedding if self.norm is None else self.norm(embedding))


class Redshift(abc.ABC):
    """A head: numbers read from an embedding, `errors` of them at the labels, and the `mass` of p(z) that they say.

    Rows without a redshift, or with one outside of [z_min, z_max), have no weight. settings: z_min, z_max, bins (equal
    ones, of p(z)), band_mask (chance of an observed band to be hidden in training: few labels are otherwise learned by
    heart), views (how many of the square's 8 symmetries a prediction is averaged over: which way the sky is up must not
    change a redshift), balance ("class_balanced" or "lds": rare redshifts count more, by the number of labels of each
    bin, see jaxz.photoz.balance)."""

    name: str
    columns: tuple[str, ...] = ("z", "z_err")

    def __init__(self, encoder: Encoder, settings: ConfigDict, head: Callable[[nnx.Rngs], nnx.Module]):
        self.encoder, self.settings = encoder, settings
        self.edges = np.linspace(settings.z_min, settings.z_max, settings.bins + 1)
        self.head = Functional(head)
        self.count_labels(np.empty(0), np.empty(0))

    def count_labels(self, z: np.ndarray, draws: np.ndarray) -> None:
        """Learn how often each redshift is trained on, before the first loss: z [M] of the rows (NaN: no label), and
        how often an epoch draws each [M]. Without it all are taken to be equally frequent."""
        known = np.isfinite(z)
        self.counts = np.histogram(z[known], self.edges, weights=draws[known])[0]
        self.weights = label_weights(self.counts, self.settings.balance)

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        return self.head.init(key), {}

    def read(self, params: Params, embedding: jax.Array) -> jax.Array:
        return self.head(params[self.name], embedding)

    @abc.abstractmethod
    def errors(self, read: jax.Array, z: jax.Array, weight: jax.Array, batch: Prepared) -> jax.Array:
        """[B]: how wrong what was read is of the labels z [B], of which each counts weight [B]."""

    @abc.abstractmethod
    def mass(self, read: jax.Array) -> jax.Array:
        """[B,bins]: the probability of each redshift bin."""

    def shown(self, mask: jax.Array, key: jax.Array) -> jax.Array:
        """[B,C,H,W]: the mask without the bands that are hidden in this step."""
        return mask & ~hide_bands(mask, self.settings.band_mask, key)[..., None, None]

    def labels(self, batch: Prepared) -> tuple[jax.Array, jax.Array]:
        """Labels z [B], z_min where it is unknown, and how much each row counts [B], 0 there."""
        z = batch["z"].astype(jnp.float32)
        labelled = (z >= self.settings.z_min) & (z < self.settings.z_max)  # false for NaN
        return jnp.where(labelled, z, self.settings.z_min), jnp.where(labelled, batch.get("bootstrap", 1.0), 0)

    def weight(self, batch: Prepared) -> jax.Array:
        return self.labels(batch)[1].sum()

    def mean_error(self, read: jax.Array, batch: Prepared) -> jax.Array:
        """Mean of `errors` over the labelled rows, each weighted by the balance of its redshift."""
        z, weight = self.labels(batch)
        bins = jnp.searchsorted(self.edges[1:-1].astype(np.float32), z, side="right")
        balanced = weight * jnp.asarray(self.weights, jnp.float32)[bins]
        return (balanced * self.errors(read, z, weight, batch)).sum() / jnp.maximum(weight.sum(), 1)

    def loss(self, params: Params, ema: Params, extra: Extra, batch: Prepared, key: jax.Array, step: jax.Array) -> Loss:
        mask, own = self.shown(batch["mask"], key), jax.random.fold_in(key, 1)
        embedding = self.encoder(params["encoder"], batch["image"], mask, columns=batch, key=own).cls
        loss = self.mean_error(self.read(params, embedding), batch)
        return loss, {"metrics": {"labelled": (self.labels(batch)[1] > 0).mean()}, "extra": extra}

    def predict(self, params: Params, extra: Extra, batch: Prepared) -> dict[str, jax.Array]:
        """`pdf` [B,bins]: the probability of each redshift bin, averaged over the views; `embedding` [B,D] of the
        first, the image as it is, which so need not be encoded once more."""

        def seen(view: jax.Array) -> tuple[jax.Array, jax.Array]:
            image, mask = (turn(batch[name], view) for name in ("image", "mask"))
            embedding = self.encoder(params["encoder"], image, mask, columns=batch).cls
            return self.mass(self.read(params, embedding)), embedding

        mass, embedding = jax.lax.map(seen, jnp.arange(self.settings.views))
        return {"pdf": mass.mean(0), "embedding": embedding[0]}


class Objective(Redshift):
    """Cross-entropy with p(z) in bins. settings, beside those of Redshift: norm (whether the embedding is normalised
    before the one layer to the bins; the published CNNs' is not), label_sigma (least smoothing of a label, in units of
    1+z; 0 leaves its own error), loss ("ce", or "ordinal": of the questions whether the redshift lies below each edge,
    Niu et al. 2016, with answers that one p(z) gives, so that they agree), focal (gamma of Lin et al. 2017: less weight
    on what is sure), logit_adjust (tau of Menon et al. 2021, eq. 10: p(z) is learned as times the labels' frequency to
    the power tau, and predicted without)."""

    name = "redshift"

    def __init__(self, encoder: Encoder, settings: ConfigDict, normalisation: Normalisation):
        super().__init__(encoder, settings, lambda rngs: Head(encoder.width, settings.bins, settings.norm, rngs=rngs))

    def errors(self, read: jax.Array, z: jax.Array, weight: jax.Array, batch: Prepared) -> jax.Array:
        """[B]: cross-entropies, the ordinal ones in the mean over the edges inside the range."""
        error = label_error(batch)
        sigma = jnp.maximum(error, jnp.maximum(self.settings.label_sigma * (1 + z), SHARPEST))
        target, focal = soft_labels(z, sigma, self.edges), self.settings.focal
        frequency = (self.counts + 1) / (self.counts.sum() + len(self.counts))
        log_p = jax.nn.log_softmax(read + self.settings.logit_adjust * np.log(frequency))
        if self.settings.loss == "ce":
            return entropy(target, log_p, focal).sum(1)
        below = jnp.minimum(target.cumsum(1)[:, :-1], 1)
        log_below = jax.lax.cumlogsumexp(log_p, axis=1)[:, :-1]
        log_above = jax.lax.cumlogsumexp(log_p, axis=1, reverse=True)[:, 1:]
        return (entropy(below, log_below, focal) + entropy(1 - below, log_above, focal)).mean(1)

    def mass(self, read: jax.Array) -> jax.Array:
        return jax.nn.softmax(read)


def label_error(batch: Prepared) -> jax.Array:
    """[B]: the labels' own errors, 0 where unknown: NaN, or what is none, such as -99. One that is infinite is as large
    as makes no difference: its square must be finite, also of rows that do not count."""
    return jnp.clip(jnp.nan_to_num(batch["z_err"].astype(jnp.float32)), 0, LARGEST_ERROR)


def entropy(target: jax.Array, log_p: jax.Array, focal: float) -> jax.Array:
    """-target (1 - p)^focal log(p), of the same shape (Lin et al. 2017, eq. 4)."""
    missing = jnp.maximum(1 - jnp.exp(log_p), 0) ** focal if focal else 1.0  # 0^0 has no gradient
    return -target * missing * log_p


def soft_labels(z: jax.Array, sigma: jax.Array, edges: np.ndarray) -> jax.Array:
    """[B,bins]: the mass of a Gaussian (z, sigma) in each bin, cut to the range and normalised."""
    return masses(jax.scipy.stats.norm.cdf((edges.astype(np.float32) - z[:, None]) / sigma[:, None]))


def masses(cdf: jax.Array) -> jax.Array:
    """[B,bins]: what each bin holds of a distribution, cut to the range and normalised, by its CDF at the edges
    [B,bins+1]; of one that lies outside, all bins hold the same."""
    mass = jnp.maximum(jnp.diff(cdf, axis=1), 0) + LEAST_MASS
    return mass / mass.sum(1, keepdims=True)
