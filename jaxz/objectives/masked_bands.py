"""Masked band modelling: hide whole bands, predict their pixels from those that are left.

What makes a redshift is how bands differ; hidden patches can be guessed from their neighbours in the same band. How
many bands are hidden is drawn first, then which, so that every number is met equally often (the hierarchical sampling
of Bao et al. 2024, ChannelViT, sec. 3.3). The loss is in units of the background variance, as in masked autoencoding.
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
from jaxz.models.stems import WavelengthKernel, patchify
from jaxz.objectives import Extra, Loss, Prepared
from jaxz.objectives.mae import one_by_one, pixel_error

SETTINGS = dict(head_width=256)
CHECKS = {"head_width": at_least("head_width", 1)}


class Head(nnx.Module):
    """From each token to the pixels of its patch in all bands, [B,N,D] -> [B,N,C,PP]."""

    def __init__(self, width: int, encoder: Encoder, patch: int, *, rngs: nnx.Rngs):
        self.mlp = MLP((encoder.token_width, width, width), norm=False, dtype=encoder.dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.kernel = WavelengthKernel(encoder.bands, (width, patch * patch), width**-0.5, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.norm(self.mlp(tokens).astype(jnp.float32))
        return jnp.einsum("bnd,cdp->bncp", x, self.kernel())


class Objective:
    """settings: head_width. An object with one observed band has no weight."""

    columns, tokens_only, reconstructs = (), True, True

    def __init__(self, encoder: Encoder, settings: ConfigDict, normalisation: Normalisation):
        self.encoder, self.patch = encoder, encoder.patch
        self.head = Functional(lambda rngs: Head(settings.head_width, encoder, self.patch, rngs=rngs))

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        return self.head.init(key), {}

    def reconstruct(
        self, params: Params, batch: Prepared, key: jax.Array, training: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Pixels [B,N,C,PP] predicted from some of the bands, and which were hidden, bool [B,N,C,PP]."""
        bands_key, encoder_key = jax.random.split(key)
        hidden = draw_bands(batch["mask"], bands_key)[..., None, None]
        shown = batch["mask"] & ~hidden
        own = encoder_key if training else None
        encoded = self.encoder(params["encoder"], batch["image"], shown, columns=batch, key=own)
        return self.head(params["masked_bands"], encoded.tokens), patchify(batch["mask"] & hidden, self.patch)

    def loss(self, params: Params, ema: Params, extra: Extra, batch: Prepared, key: jax.Array, step: jax.Array) -> Loss:
        predicted, hidden = self.reconstruct(params, batch, key, training=True)
        return pixel_error(predicted, batch, hidden, self.patch), {"metrics": {}, "extra": extra}

    def predict(self, params: Params, extra: Extra, batch: Prepared) -> dict[str, jax.Array]:
        """`reconstruction` [B,C,H,W] from some of the bands of each image, and which pixels were hidden."""
        return one_by_one(self, params, batch)


def draw_bands(mask: jax.Array, key: jax.Array) -> jax.Array:
    """[B,C] bool: observed bands to hide of mask [B,C,H,W]: from 1 to all but one, each number equally likely, then
    each set of that number."""
    count_key, which_key = jax.random.split(key)
    observed = mask.any((2, 3))
    count = jax.random.randint(count_key, observed.shape[:1], 1, jnp.maximum(observed.sum(1), 2))
    draw = jnp.where(observed, jax.random.uniform(which_key, observed.shape), 2)
    rank = draw.argsort(1).argsort(1)  # of the observed bands the first
    return observed & (rank < count[:, None]) & (observed.sum(1) > 1)[:, None]
