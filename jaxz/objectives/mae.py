"""Masked autoencoding of multi-band cutouts (He et al. 2022): hide patches and whole bands, predict their pixels.

The loss is in units of the background variance before the stretch: on empty sky noise sets a floor just below 1 (0.91
with the default softening), in bright pixels, which the stretch compresses, a lower one. Weights from the source's own
photons would bias faint pixels.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from jaxz.checks import at_least
from jaxz.data.augment import hide_bands
from jaxz.data.prepare import Normalisation
from jaxz.models import Encoder, layers
from jaxz.models.functional import Functional, Params
from jaxz.models.stems import WavelengthKernel, patchify, unpatchify
from jaxz.objectives import Extra, Loss, Prepared

SETTINGS = dict(mask_ratio=0.75, band_mask=0.2, decoder_width=128, decoder_depth=2, decoder_heads=4)
CHECKS = {
    "mask_ratio": (lambda s: 0 < s.mask_ratio < 1, "between 0 and 1"),
    "band_mask": (lambda s: 0 <= s.band_mask < 1, "in [0, 1)"),
    "decoder_width": at_least("decoder_width", 1),
    "decoder_depth": at_least("decoder_depth", 1),
    "decoder_heads": (
        lambda s: s.decoder_heads >= 1 and s.decoder_width % s.decoder_heads == 0,
        "a divisor of mae.decoder_width",
    ),
}


class Decoder(nnx.Module):
    """A narrow transformer from the kept tokens to the pixels of all patches and bands."""

    def __init__(self, settings: ConfigDict, encoder: Encoder, patch: int, *, rngs: nnx.Rngs):
        inner = settings.decoder_width
        self.embed = nnx.Linear(encoder.token_width, inner, dtype=encoder.dtype, rngs=rngs)
        self.mask_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (inner,)))
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (encoder.tokens, inner)))
        block = lambda r: layers.Block(inner, settings.decoder_heads, encoder.dtype, rngs=r)
        self.blocks = layers.stack(settings.decoder_depth, block, rngs)
        self.norm = nnx.LayerNorm(inner, rngs=rngs)
        self.kernel = WavelengthKernel(encoder.bands, (inner, patch * patch), inner**-0.5, rngs=rngs)

    def __call__(self, tokens: jax.Array, place: jax.Array) -> jax.Array:
        """Of tokens [B,K,D]; place int [B,N]: where each patch stands in the shuffled order whose first K were kept.
        Returns pixels [B,N,C,PP]."""
        x = self.embed(tokens)
        batch, count = place.shape
        hidden = jnp.broadcast_to(self.mask_token[...].astype(x.dtype), (batch, count - x.shape[1], x.shape[2]))
        x = jnp.take_along_axis(jnp.concatenate([x, hidden], 1), place[..., None], axis=1)
        x = self.norm(layers.scan(self.blocks, x + self.position[...].astype(x.dtype)).astype(jnp.float32))
        return jnp.einsum("bnd,cdp->bncp", x, self.kernel())


class Objective:
    """settings: mask_ratio of patches hidden, band_mask (chance of an observed band to be hidden), decoder_*."""

    columns, tokens_only, parts, reconstructs = (), True, True, True

    def __init__(self, encoder: Encoder, settings: ConfigDict, normalisation: Normalisation):
        self.encoder, self.settings = encoder, settings
        self.tokens, self.patch = encoder.tokens, encoder.patch
        self.keep = max(1, round(self.tokens * (1 - settings.mask_ratio)))
        self.decoder = Functional(lambda rngs: Decoder(settings, encoder, self.patch, rngs=rngs))

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        return self.decoder.init(key), {}

    def reconstruct(
        self, params: Params, batch: Prepared, key: jax.Array, training: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Pixels [B,N,C,PP] predicted from a random part of the image, and which were hidden, bool [B,N,C,PP]; whole
        bands are in training alone."""
        image, mask = batch["image"], batch["mask"]
        patches_key, bands_key, encoder_key = jax.random.split(key, 3)
        order = jnp.argsort(jax.random.uniform(patches_key, (image.shape[0], self.tokens)), axis=1)
        place = jnp.argsort(order, axis=1)
        hidden_band = hide_bands(mask, self.settings.band_mask if training else 0.0, bands_key)
        shown = mask & ~hidden_band[..., None, None]
        kept, encoder_key = order[:, : self.keep], encoder_key if training else None
        tokens = self.encoder(params["encoder"], image, shown, kept, columns=batch, key=encoder_key).tokens
        hidden = (place >= self.keep)[..., None, None] | hidden_band[:, None, :, None]  # [B,N,C,1]
        return self.decoder(params["mae"], tokens, place), hidden & patchify(mask, self.patch)

    def loss(self, params: Params, ema: Params, extra: Extra, batch: Prepared, key: jax.Array, step: jax.Array) -> Loss:
        predicted, hidden = self.reconstruct(params, batch, key, training=True)
        return pixel_error(predicted, batch, hidden, self.patch), {"metrics": {}, "extra": extra}

    def predict(self, params: Params, extra: Extra, batch: Prepared) -> dict[str, jax.Array]:
        """`reconstruction` [B,C,H,W] from a part of each image, and which pixels were hidden: the same draw for all."""
        return one_by_one(self, params, batch)


class Reconstructs(Protocol):
    """An objective that hides parts of images, of images [B,C,H,W] or of one of them."""

    encoder: Encoder
    patch: int

    def reconstruct(self, params: Params, batch: Prepared, key: jax.Array) -> tuple[jax.Array, jax.Array]: ...


def one_by_one(objective: Reconstructs, params: Params, batch: Prepared) -> dict[str, jax.Array]:
    """What `objective` reconstructs of each image and which pixels were hidden [B,C,H,W]: as if it were alone."""

    def of_one(row: Prepared) -> tuple[jax.Array, jax.Array]:
        alone = jax.tree.map(lambda a: a[None], row)
        return jax.tree.map(lambda a: a[0], objective.reconstruct(params, alone, jax.random.key(0)))

    predicted, hidden = jax.vmap(of_one)({name: batch[name] for name in ("image", "mask", *objective.encoder.columns)})
    return {"reconstruction": unpatchify(predicted, objective.patch), "hidden": unpatchify(hidden, objective.patch)}


def pixel_error(predicted: jax.Array, batch: Prepared, hidden: jax.Array, patch: int) -> jax.Array:
    """Mean of ((predicted - image) / sky)^2 over the hidden pixels of the batch, 0 where there are none. predicted,
    hidden (true: hidden and observed) [B,N,C,PP]."""
    target = patchify(jnp.where(batch["mask"], batch["image"], 0), patch)  # what is not observed may be NaN
    error = jnp.where(hidden, ((predicted - target) / batch["sky"][:, None, :, None]) ** 2, 0)
    return error.sum() / jnp.maximum(hidden.sum(), 1)
