"""Vision transformer over multi-band cutouts (Dosovitskiy et al. 2021)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxz.checks import at_least, one_of
from jaxz.errors import InputError
from jaxz.models import Band, Encoded, attention, layers, stems

SETTINGS = dict(
    width=384,
    depth=12,
    heads=6,
    patch=8,
    mlp="gelu",  # or "swiglu"
    stem="fused",  # how bands become tokens: a module of jaxz/models/stems ...
    groups=3,  # ... of bands, for the stem "grouped"
    sample_bands=True,  # for "per_band": leave some bands of each image out in training
    position="learned",  # or "rope": rotary
    summary="mean",  # of the patches, or "cls": a token of its own
    registers=0,  # tokens to compute with (Darcet et al. 2024)
    layer_scale=0.0,  # what LayerScale begins with; 0: none
    drop_path=0.0,  # chance of the last block's branches to be dropped in training (stochastic depth)
    dtype="float32",  # of the computation; parameters and results are float32
    attention="auto",  # its kernel: "xla", "cudnn", or the faster one that there is
    remat="none",  # what the backward pass computes again: "block", or all but matrix products, "dots"
)

CHECKS = {
    "width": at_least("width", 1),
    "depth": at_least("depth", 1),
    "heads": (lambda s: s.heads >= 1 and s.width % s.heads == 0, "a divisor of model.width"),
    "patch": at_least("patch", 1),
    "mlp": one_of("mlp", "gelu", "swiglu"),
    "stem": one_of("stem", *stems.NAMES),
    "groups": at_least("groups", 1),
    "position": (
        lambda s: s.position == "learned" or (s.position == "rope" and s.heads >= 1 and s.width % (4 * s.heads) == 0),
        "learned, or rope with heads of a multiple of 4",
    ),
    "summary": one_of("summary", "mean", "cls"),
    "registers": at_least("registers", 0),
    "layer_scale": at_least("layer_scale", 0),
    "drop_path": (lambda s: 0 <= s.drop_path < 1, "in [0, 1)"),
    "dtype": one_of("dtype", "float32", "bfloat16", "float16"),
    "attention": one_of("attention", *attention.KERNELS),
    "remat": one_of("remat", *layers.REMAT),
}

# config.model.update(SIZES["B"]): Dosovitskiy et al. 2021, table 1; Touvron et al. 2021; g is DINOv2's.
SIZES: dict[str, dict[str, Any]] = {
    "Ti": dict(width=192, depth=12, heads=3),
    "S": dict(width=384, depth=12, heads=6),
    "B": dict(width=768, depth=12, heads=12),
    "L": dict(width=1024, depth=24, heads=16),
    "g": dict(width=1536, depth=40, heads=24, mlp="swiglu"),
}


Places = np.ndarray | jax.Array  # [N,2], of chosen patches [B,N,2]


class Backbone(nnx.Module):
    """ViT with the settings above. With summary="mean", cls is the mean of the normalised tokens: in few steps it
    learned redshifts better than a token of its own. Raises InputError for a size that the patches do not divide.
    """

    def __init__(self, config: ConfigDict, bands: Sequence[Band], size: int, *, rngs: nnx.Rngs):
        if size % config.patch:
            raise InputError(
                f"model.patch: {config.patch} does not divide the cutouts' {size} pixels; choose a divisor"
            )
        dtype = jnp.dtype(config.dtype)
        self.stem = stems.find(config.stem)(bands, config, dtype, rngs=rngs)
        self.patch, self.head = config.patch, config.width // config.heads
        token = lambda count: nnx.Param(0.02 * jax.random.normal(rngs.params(), (count, config.width)))
        self.position = token((size // config.patch) ** 2) if config.position == "learned" else None
        self.cls_token = token(1) if config.summary == "cls" else None
        self.register_token = token(config.registers) if config.registers else None
        block = lambda r: layers.Block(
            config.width, config.heads, dtype, config.mlp, config.layer_scale, config.attention, rngs=r
        )
        self.blocks = layers.stack(config.depth, block, rngs)
        self.drop_path, self.remat = config.drop_path, config.remat
        self.norm = nnx.LayerNorm(config.width, rngs=rngs)

    def __call__(
        self,
        image: jax.Array,
        mask: jax.Array,
        keep: jax.Array | None = None,
        hidden: jax.Array | None = None,
        mask_token: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> Encoded:
        """image, mask [B,C,h,w] (mask: true where observed), of the model's size or a crop from about its middle.

        keep int [B,K]: encode these patches only; hidden bool [B,N] and mask_token [D], given together: what stands for
        the tokens of these patches, of all bands that are observed in others. key: of what is random in training;
        without it nothing is.
        """
        stem_key, path_key = (None, None) if key is None else jax.random.split(key)
        mask = shown(mask, self.patch, keep, hidden)
        x, observed = self.stem(image, mask, stem_key)  # [B,G,N,D], [B,G,N]
        if hidden is not None:
            assert mask_token is not None
            x = jnp.where(hidden[:, None, :, None], mask_token.astype(x.dtype), x)
            if observed is not None:  # of the bands, or groups of bands, that are observed somewhere in the image
                observed |= hidden[:, None] & observed.any(2, keepdims=True)
        if self.position is not None:
            x = x + middle(self.position[...], x.shape[2]).astype(x.dtype)
        place: Places = places(image.shape[2] // self.patch, image.shape[3] // self.patch)  # [N,2]
        if keep is not None:
            x, place = jnp.take_along_axis(x, keep[:, None, :, None], axis=2), jnp.asarray(place)[keep]
            observed = None if observed is None else jnp.take_along_axis(observed, keep[:, None], axis=2)
        own, x = self.transform(x, observed, place, path_key)
        return summarise(own, x, observed)

    def transform(
        self, x: jax.Array, observed: jax.Array | None, place: Places, key: jax.Array | None
    ) -> tuple[jax.Array | None, jax.Array]:
        """The cls token [B,D], where there is one, and tokens [B,G,N,D], both normalised and float32, of tokens x,
        observed [B,G,N] or None, at place [N,2] or [B,N,2]."""
        batch, groups, patches, width = x.shape
        own = [token[...] for token in (self.cls_token, self.register_token) if token is not None]
        own = [jnp.broadcast_to(token, (batch, *token.shape)).astype(x.dtype) for token in own]
        x = jnp.concatenate([*own, x.reshape(batch, groups * patches, width)], axis=1)
        count = x.shape[1] - groups * patches  # tokens of no patch, which all look at
        mask = angles = None
        if observed is not None:
            mask = jnp.pad(observed.reshape(batch, -1), ((0, 0), (count, 0)), constant_values=True)
        if self.position is None:
            angles = jnp.tile(attention.rotary_angles(place, self.head), (groups, 1))
            angles = jnp.pad(angles.reshape(-1, *angles.shape[-2:]), ((0, 0), (count, 0), (0, 0)))
        x = layers.scan(self.blocks, x, mask, angles, self.drop_path, key, self.remat)
        x = self.norm(x.astype(jnp.float32))
        cls = None if self.cls_token is None else x[:, 0]
        return cls, x[:, count:].reshape(batch, groups, patches, width)


def summarise(cls: jax.Array | None, x: jax.Array, observed: jax.Array | None) -> Encoded:
    """Encoded of the cls token [B,D], if any, and tokens x [B,G,N,D], of which those `observed` [B,G,N] count."""
    if observed is None:
        observed = jnp.ones(x.shape[:3], bool)
    tokens = masked_mean(x, observed)
    observed = observed.any(1)
    return Encoded(masked_mean(tokens, observed) if cls is None else cls, tokens, observed)


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean over axis 1 of x [B,M,...,D] where mask [B,M,...] says so; 0 where it nowhere does."""
    mask = mask[..., None]
    return jnp.where(mask, x, 0).sum(1) / jnp.maximum(mask.sum(1), 1)


def shown(mask: jax.Array, patch: int, keep: jax.Array | None, hidden: jax.Array | None) -> jax.Array:
    """The mask [B,C,h,w] without the patches that are hidden or not kept: a stem may look beyond a token's own."""
    if keep is None and hidden is None:
        return mask
    batch, _, height, width = mask.shape
    rows, columns = height // patch, width // patch
    seen = jnp.ones((batch, rows * columns), bool) if hidden is None else ~hidden
    if keep is not None:
        seen &= (keep[:, :, None] == jnp.arange(rows * columns)).any(1)  # a scatter would gather all devices' rows
    return mask & seen.reshape(batch, 1, rows, columns).repeat(patch, 2).repeat(patch, 3)


def places(rows: int, columns: int) -> np.ndarray:
    """float32 [N,2]: row and column of every patch from the middle, where tokens of no patch are."""
    middle = np.array([[rows - 1], [columns - 1]], np.float32) / 2
    return (np.indices((rows, columns), np.float32).reshape(2, -1) - middle).T


def middle(position: jax.Array, tokens: int) -> jax.Array:
    """[tokens, D]: the positions of a square crop of the image, as if cut from its middle: only what lies where to one
    another counts."""
    side, own = int(len(position) ** 0.5), int(tokens**0.5)
    low = (side - own) // 2
    return position.reshape(side, side, -1)[low : low + own, low : low + own].reshape(tokens, -1)
