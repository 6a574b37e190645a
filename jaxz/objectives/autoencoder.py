"""Autoencoder with a bottleneck, and beta-VAE (Kingma & Welling 2014; Higgins et al. 2017): an image through few
numbers and back.

The loss is in units of the background variance, as in masked autoencoding.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from jaxz.checks import at_least
from jaxz.data.prepare import Normalisation
from jaxz.models import Encoder
from jaxz.models.functional import Functional, Params
from jaxz.models.heads import MLP
from jaxz.models.stems import WavelengthKernel, patchify, unpatchify
from jaxz.objectives import Extra, Loss, Prepared

SETTINGS = dict(latent=32, beta=0.0, hidden=128)
CHECKS = {
    "latent": at_least("latent", 1),
    "beta": at_least("beta", 0),
    "hidden": at_least("hidden", 1),
}


class Decoder(nnx.Module):
    """From the latent numbers to the pixels of all patches and bands: features of every patch, an MLP on each."""

    def __init__(self, settings: ConfigDict, encoder: Encoder, patch: int, *, rngs: nnx.Rngs):
        self.tokens, hidden = encoder.tokens, settings.hidden
        self.patches = nnx.Linear(settings.latent, encoder.tokens * hidden, rngs=rngs)
        self.mlp = MLP((hidden, hidden, hidden), norm=True, rngs=rngs)
        self.kernel = WavelengthKernel(encoder.bands, (hidden, patch * patch), hidden**-0.5, rngs=rngs)

    def __call__(self, latent: jax.Array) -> jax.Array:
        """Pixels [B,N,C,PP] of latent [B,L]."""
        x = self.mlp(self.patches(latent).reshape(len(latent), self.tokens, -1))
        return jnp.einsum("bnd,cdp->bncp", x, self.kernel())


class Objective:
    """Squared error of the observed pixels in units of the sky's variance. settings: latent (how many numbers the
    bottleneck has), hidden (width of the decoder), beta (0: they are plain numbers; else they are drawn from a Gaussian
    posterior, whose divergence from the unit normal counts beta times; at beta 1 the loss is twice the negative
    evidence bound a pixel, up to a constant)."""

    columns = ()

    def __init__(self, encoder: Encoder, settings: ConfigDict, normalisation: Normalisation):
        self.encoder, self.settings = encoder, settings
        self.patch = encoder.patch
        outputs = settings.latent * (2 if settings.beta else 1)
        self.bottleneck = Functional(lambda rngs: nnx.Linear(encoder.width, outputs, rngs=rngs))
        self.decoder = Functional(lambda rngs: Decoder(settings, encoder, self.patch, rngs=rngs))

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        bottleneck_key, decoder_key = jax.random.split(key)
        return {"bottleneck": self.bottleneck.init(bottleneck_key), "decoder": self.decoder.init(decoder_key)}, {}

    def encode(self, params: Params, batch: Prepared, key: jax.Array | None = None) -> list[jax.Array]:
        """The latent's mean and log variance [B,L], the latter empty [B,0] without a posterior."""
        embedding = self.encoder(params["encoder"], batch["image"], batch["mask"], columns=batch, key=key).cls
        return jnp.split(self.bottleneck(params["autoencoder"]["bottleneck"], embedding), [self.settings.latent], 1)

    def loss(self, params: Params, ema: Params, extra: Extra, batch: Prepared, key: jax.Array, step: jax.Array) -> Loss:
        encoder_key, noise_key = jax.random.split(key)
        mean, log_variance = self.encode(params, batch, encoder_key)
        latent, kl = mean, jnp.float32(0)
        if self.settings.beta:
            latent = mean + jnp.exp(log_variance / 2) * jax.random.normal(noise_key, mean.shape)
            kl = divergence(mean, log_variance).mean()
        predicted = self.decoder(params["autoencoder"]["decoder"], latent)
        observed = patchify(batch["mask"], self.patch)
        error = (predicted - patchify(batch["image"], self.patch)) / batch["sky"][:, None, :, None]
        count = jnp.maximum(observed.sum(), 1)
        pixels = (jnp.where(observed, error, 0) ** 2).sum() / count
        loss = pixels + 2 * self.settings.beta * kl * len(mean) / count
        return loss, {"metrics": {"pixels": pixels, "kl": kl}, "extra": extra}

    def predict(self, params: Params, extra: Extra, batch: Prepared) -> dict[str, jax.Array]:
        """`latent` [B,L], the posterior's mean, and `reconstruction` [B,C,H,W] from it, in the image's unit."""
        latent, _ = self.encode(params, batch)
        pixels = self.decoder(params["autoencoder"]["decoder"], latent)
        return {"latent": latent, "reconstruction": unpatchify(pixels, self.patch)}


def divergence(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """[B]: the Kullback-Leibler divergence of the Gaussian posterior [B,L] from the unit normal, in nats (Kingma &
    Welling 2014, appendix B)."""
    return 0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance).sum(1)
