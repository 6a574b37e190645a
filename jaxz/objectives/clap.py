"""CLAP's supervised contrastive latent (Lin et al. 2024, A&A 691, A331): few numbers that know the redshift, the same
for an object, its other view and its own reconstruction, and other numbers for other objects.

p(z) is then better read from neighbours in `latent` than from the estimator: `jaxz.correct --method clap`. Other than
the paper's code: cross-entropy and disagreement are means over a batch whose halves are its two batches, and rows
without a redshift have no part in the former.
"""

import types

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from jaxz.checks import at_least
from jaxz.data.prepare import Normalisation
from jaxz.models import Encoder
from jaxz.models.functional import Functional, Params
from jaxz.models.heads import MLP
from jaxz.models.stems import patchify, unpatchify
from jaxz.objectives import Extra, Loss, Prepared, redshift
from jaxz.objectives.autoencoder import Decoder

SETTINGS = redshift.SETTINGS | dict(latent=16, extended=512, hidden=1024, decoder=128, reconstruction=1.0)
CHECKS = redshift.CHECKS | {
    **{name: at_least(name, 1) for name in ("latent", "extended", "hidden", "decoder")},
    "reconstruction": at_least("reconstruction", 0),
}
TINY = 1e-12  # under a root, whose gradient at 0 is infinite


class Objective(redshift.Objective):
    """Cross-entropy of the redshift from the latent's main part, reconstruction from all of it, agreement in p(z) and
    contrast in the main part between an object, its cycle (the reconstruction, encoded again) and its other view. Needs
    two views, and a batch of two objects at least. settings, beside those of redshift: latent (numbers of the main
    part), extended (further ones, for the reconstruction alone), hidden and decoder (widths of estimator and decoder),
    reconstruction (its weight; 100 or 1 in the paper, by survey)."""

    name, views = "clap", 2

    def __init__(self, encoder: Encoder, settings: ConfigDict, normalisation: Normalisation):
        super().__init__(encoder, settings, normalisation)
        self.patch, whole = encoder.patch, settings.latent + settings.extended
        decoder = types.SimpleNamespace(latent=whole, hidden=settings.decoder)
        self.head = Functional(
            lambda rngs: MLP((settings.latent, settings.hidden, settings.bins), norm=False, rngs=rngs)
        )
        self.networks = {
            "latent": Functional(lambda rngs: nnx.Linear(encoder.width, whole, rngs=rngs)),
            "decoder": Functional(lambda rngs: Decoder(decoder, encoder, self.patch, rngs=rngs)),
            "estimator": self.head,
        }

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        keys = jax.random.split(key, len(self.networks))
        return {name: net.init(own) for (name, net), own in zip(self.networks.items(), keys, strict=True)}, {}

    def apply(self, name: str, params: Params, *inputs: jax.Array) -> jax.Array:
        return self.networks[name](params["clap"][name], *inputs)

    def weight(self, batch: Prepared) -> jax.Array:
        return jnp.ones(())  # all but the cross-entropy are means over all rows

    def main(self, latent: jax.Array) -> jax.Array:
        return latent[..., : self.settings.latent]

    def read(self, params: Params, embedding: jax.Array) -> jax.Array:
        return self.apply("estimator", params, self.main(self.apply("latent", params, embedding)))

    def loss(self, params: Params, ema: Params, extra: Extra, batch: Prepared, key: jax.Array, step: jax.Array) -> Loss:
        keys = jax.random.split(key, 4)
        pair = [{**v, "mask": self.shown(v["mask"], own)} for v, own in zip(batch["views"][:2], keys, strict=False)]
        seen = self.encoder.views(params["encoder"], pair, columns=batch, key=keys[2]).cls
        latent = self.apply("latent", params, seen)  # [B,2,L]
        rebuilt = [self.apply("decoder", params, latent[:, view]) for view in range(2)]
        image, mask = unpatchify(rebuilt[0], self.patch), pair[0]["mask"]
        again = self.encoder(params["encoder"], image, mask, columns=batch, key=keys[3]).cls
        cycle = self.apply("latent", params, again)

        latents = latent[:, 0], cycle, latent[:, 1]
        logits = [self.apply("estimator", params, self.main(one)) for one in latents]
        entropy = self.mean_error(logits[0], batch) + self.mean_error(logits[1], batch)
        pixels = (
            self.missed(rebuilt[0], batch["views"][0])
            + self.missed(self.apply("decoder", params, cycle), batch["views"][0])
            + self.missed(rebuilt[1], batch["views"][1])
        )
        agreement = disagreement(logits[0], logits[1]) + disagreement(logits[0], logits[2])
        contrast = contrasted(*(self.main(one) for one in latents))
        metrics = dict(entropy=entropy, pixels=pixels, agreement=agreement, contrast=contrast)
        loss = entropy + self.settings.reconstruction * pixels + agreement + contrast
        return loss, {"metrics": metrics, "extra": extra}

    def missed(self, rebuilt: jax.Array, view: Prepared) -> jax.Array:
        """Mean squared error of the observed pixels of rebuilt [B,N,C,PP], stretched as the image is."""
        observed = patchify(view["mask"], self.patch)
        error = jnp.where(observed, rebuilt - patchify(view["image"], self.patch), 0)
        return (error**2).sum() / jnp.maximum(observed.sum(), 1)

    def predict(self, params: Params, extra: Extra, batch: Prepared) -> dict[str, jax.Array]:
        """`pdf` [B,bins] of the estimator, and `latent` [B,L], the main part that jaxz.photoz.clap compares objects
        by."""
        embedding = self.encoder(params["encoder"], batch["image"], batch["mask"], columns=batch).cls
        main = self.main(self.apply("latent", params, embedding))
        return super().predict(params, extra, batch) | {"latent": main}


def disagreement(a: jax.Array, b: jax.Array) -> jax.Array:
    """Mean cross-entropy of softmax(a) and softmax(b) [B,n], each told the other as it stands."""
    one = lambda target, logits: -(jax.lax.stop_gradient(jax.nn.softmax(target)) * jax.nn.log_softmax(logits)).sum(1)
    return (one(a, b) + one(b, a)).mean()


def contrasted(own: jax.Array, cycle: jax.Array, morph: jax.Array) -> jax.Array:
    """-log(e+ / (e+ + e-)) of latents [B,L], e(a, b) = exp(-mean RMS(a - b)): e+ between an object and its cycle and
    its other view, in both halves of the batch, e- between the halves."""
    half = len(own) // 2
    closeness = lambda a, b: jnp.exp(-jnp.sqrt(((a - b) ** 2).mean(1) + TINY).mean())
    halves = slice(0, half), slice(half, 2 * half)
    alike = sum(closeness(own[rows], other[rows]) for rows in halves for other in (cycle, morph))
    return -jnp.log(alike / (alike + closeness(own[halves[0]], own[halves[1]])))
