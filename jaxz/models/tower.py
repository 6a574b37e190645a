"""The image towers of published models, with what tells them apart as data: DINOv2, CLIP and their kin.

Weights come from jaxz.pretrained: what is drawn here is only what an untrained model is like. The arithmetic is that of
the models' own code, in the parameters' type.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jaxz.errors import InputError
from jaxz.mesh import constrain_batch
from jaxz.models import Encoded, layers
from jaxz.models.attention import rotate
from jaxz.models.resize import resize
from jaxz.models.stems import patchify
from jaxz.models.vit import masked_mean

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": jax.nn.gelu,  # Hendrycks & Gimpel 2016, the approximation
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # the same paper's other one
    "silu": jax.nn.silu,
}


@dataclass(frozen=True)
class Blocks:
    """A stack of pre-norm transformer blocks."""

    width: int
    depth: int
    heads: int
    hidden: int  # width of the MLP
    activation: str = "gelu"  # a name in ACTIVATIONS
    gated: bool = False  # down(activation(gate(x)) * up(x)), SwiGLU with "silu" (Shazeer 2020, eq. 6)
    eps: float = 1e-6  # of every LayerNorm
    qkv_bias: tuple[bool, bool, bool] = (True, True, True)
    layer_scale: bool = False


@dataclass(frozen=True)
class Image:
    """What is around the blocks of an image tower."""

    blocks: Blocks
    patch: int
    bands: int = 3
    mixed: int = 0  # bands that a 1 x 1 projection makes of `bands` in front of the stem; 0: no projection
    band_tokens: bool = False  # a token per band and patch (Bao et al. 2024, sec. 3), all by one kernel
    stem_bias: bool = True
    cls: bool = True  # a token for the whole image
    registers: int = 0
    grid: tuple[int, int] | None = None  # of the table of positions; None: there is none
    interpolation: str = "bicubic"  # how that is resized, a name in resize.VARIANTS
    rope: tuple[float, ...] = ()  # periods of rotary positions
    stem_norm: bool = False  # LayerNorm in front of the blocks
    summary: str = "cls"  # "cls", "mean" (of patches, the only LayerNorm behind it) or "probe" (attention pooling)
    mask_token: bool = False
    classes: int = 0  # of a classifier on the summary; 0: none


def zeros(*shape: int) -> nnx.Param:
    """A parameter of this shape, 0 until a checkpoint fills it."""
    return nnx.Param(jnp.zeros(shape))


def ones(*shape: int) -> nnx.Param:
    """A parameter of this shape, 1 until a checkpoint fills it."""
    return nnx.Param(jnp.ones(shape))


def linear(given: int, out: int, rngs: nnx.Rngs, bias: bool = True) -> nnx.Linear:
    """A dense layer [..., given] -> [..., out]."""
    return nnx.Linear(given, out, use_bias=bias, rngs=rngs)


def layer_norm(s: Blocks, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A LayerNorm over the blocks' width, whose variance is the mean squared deviation."""
    return nnx.LayerNorm(s.width, epsilon=s.eps, use_fast_variance=False, rngs=rngs)


class Attention(nnx.Module):
    """Multi-head attention (Vaswani et al. 2017, eq. 1)."""

    def __init__(self, s: Blocks, *, rngs: nnx.Rngs):
        self.heads = s.heads
        self.query, self.key, self.value, self.out = (
            linear(s.width, s.width, rngs, bias) for bias in (*s.qkv_bias, True)
        )

    def __call__(
        self,
        x: jax.Array,
        context: jax.Array,
        angles: jax.Array | None = None,
        observed: jax.Array | None = None,
        causal: bool = False,
    ) -> jax.Array:
        """Tokens x [B,M,D] look at context [B,N,D], where `observed` bool [B,N] allows it; angles [B or 1,N,D/heads/2]
        turn both, where they are the same."""
        split = lambda y: y.reshape(*y.shape[:2], self.heads, -1)
        q, k, v = split(self.query(x)), split(self.key(context)), split(self.value(context))
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        mask: np.ndarray | jax.Array = np.array(True) if observed is None else observed[:, None, None]  # [B,1,1,N]
        if causal:
            mask = mask & np.tri(x.shape[1], context.shape[1], dtype=bool)
        exact = jnp.promote_types(x.dtype, jnp.float32)  # jax.nn.dot_product_attention rounds float64 to float32
        logits = jnp.einsum("bmhd,bnhd->bhmn", q, k, preferred_element_type=exact) * q.shape[-1] ** -0.5
        looks = jax.nn.softmax(jnp.where(mask, logits, jnp.finfo(exact).min), axis=-1).astype(x.dtype)
        return self.out(jnp.einsum("bhmn,bnhd->bmhd", looks, v).reshape(x.shape))


class Mlp(nnx.Module):
    """[..., width] -> [..., width] by way of `hidden` numbers, gated where the settings say so."""

    def __init__(self, s: Blocks, *, rngs: nnx.Rngs):
        self.activation = s.activation
        self.up = linear(s.width, s.hidden, rngs)
        self.gate = linear(s.width, s.hidden, rngs) if s.gated else None
        self.down = linear(s.hidden, s.width, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        activation = ACTIVATIONS[self.activation]
        return self.down(activation(self.up(x)) if self.gate is None else activation(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """A pre-norm transformer block, with LayerScale (Touvron et al. 2021, eq. 2) where the settings say so."""

    def __init__(self, s: Blocks, *, rngs: nnx.Rngs):
        self.norm1 = layer_norm(s, rngs)
        self.attention = Attention(s, rngs=rngs)
        self.attention_scale = ones(s.width) if s.layer_scale else None
        self.norm2 = layer_norm(s, rngs)
        self.mlp = Mlp(s, rngs=rngs)
        self.mlp_scale = ones(s.width) if s.layer_scale else None

    def __call__(
        self, x: jax.Array, angles: jax.Array | None = None, observed: jax.Array | None = None, causal: bool = False
    ) -> jax.Array:
        scaled = lambda branch, scale: branch if scale is None else branch * scale[...]
        y = self.norm1(x)
        x = x + scaled(self.attention(y, y, angles, observed, causal), self.attention_scale)
        return constrain_batch(x + scaled(self.mlp(self.norm2(x)), self.mlp_scale))


def run(
    blocks: Block,
    x: jax.Array,
    angles: jax.Array | None = None,
    observed: jax.Array | None = None,
    causal: bool = False,
    remat: str = "none",
) -> jax.Array:
    """Tokens x [B,N,D] behind the stacked blocks. angles, observed: see Attention; remat: a name in layers.REMAT."""
    body = lambda x, block: (block(x, angles, observed, causal), None)
    return jax.lax.scan(layers.REMAT[remat](body), x, blocks)[0]


class Probe(nnx.Module):
    """Attention pooling: one learned query looks at all tokens (Zhai et al. 2022, sec. 3.4: MAP head)."""

    def __init__(self, s: Blocks, *, rngs: nnx.Rngs):
        self.token = zeros(1, s.width)
        self.attention = Attention(s, rngs=rngs)
        self.norm = layer_norm(s, rngs)
        self.mlp = Mlp(s, rngs=rngs)

    def __call__(self, x: jax.Array, observed: jax.Array | None = None) -> jax.Array:
        query = jnp.broadcast_to(self.token[...], (len(x), *self.token.shape))
        x = self.attention(query, x, observed=observed)
        return (x + self.mlp(self.norm(x)))[:, 0]


class Stem(nnx.Module):
    """A token per patch, from all bands, or one per band and patch; what is masked counts as 0."""

    def __init__(self, s: Image, *, rngs: nnx.Rngs):
        self.patch = s.patch
        self.projection = linear(s.bands, s.mixed, rngs, False) if s.mixed else None
        shape = (1 if s.band_tokens else s.mixed or s.bands, s.patch**2, s.blocks.width)
        self.kernel = nnx.Param((shape[0] * shape[1]) ** -0.5 * jax.random.normal(rngs.params(), shape))
        self.bias = zeros(s.blocks.width) if s.stem_bias else None
        self.band_token = zeros(s.bands, s.blocks.width) if s.band_tokens else None

    def __call__(self, image: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """image, mask [B,C,H,W] -> tokens [B,G,N,D] and, where G is the number of bands and not 1, which of them hold
        an observed pixel, bool [B,G,N]."""
        image = jnp.where(mask, image, 0)
        if self.projection is not None:
            image = jnp.moveaxis(self.projection(jnp.moveaxis(image, 1, -1)), -1, 1)
        kernel = self.kernel[...]  # [C or 1,PP,D]
        pixels = patchify(image, self.patch)  # [B,N,C,PP]
        if self.band_token is None:
            tokens, observed = pixels.reshape(*pixels.shape[:2], -1) @ kernel.reshape(-1, kernel.shape[-1]), None
            tokens = tokens[:, None]
        else:
            tokens = (pixels @ kernel[0]).swapaxes(1, 2) + self.band_token[...][:, None]
            observed = patchify(jnp.broadcast_to(mask, image.shape), self.patch).any(-1).swapaxes(1, 2)
        return (tokens if self.bias is None else tokens + self.bias[...]), observed


class Embedded(NamedTuple):
    """What goes into the blocks: cls and registers, then patches, band by band where each has its own."""

    x: jax.Array  # [B,T,D]
    angles: jax.Array | None  # [B or 1,T,D/heads/2] by which they are turned
    observed: jax.Array | None  # bool [B,T], where some may not be looked at


class ImageTower(nnx.Module):
    """An encoder of images, as in jaxz.models."""

    def __init__(self, s: Image, *, rngs: nnx.Rngs):
        width = s.blocks.width
        self.settings = s
        self.stem = Stem(s, rngs=rngs)
        self.position = zeros(s.grid[0] * s.grid[1], width) if s.grid else None
        self.cls_token = zeros(1, width) if s.cls else None
        self.cls_position = zeros(1, width) if s.cls and s.grid else None
        self.register_token = zeros(s.registers, width) if s.registers else None
        self.mask_token = zeros(width) if s.mask_token else None
        self.stem_norm = layer_norm(s.blocks, rngs) if s.stem_norm else None
        self.blocks = layers.stack(s.blocks.depth, lambda r: Block(s.blocks, rngs=r), rngs)
        self.norm = layer_norm(s.blocks, rngs)
        self.probe = Probe(s.blocks, rngs=rngs) if s.summary == "probe" else None
        self.classifier = linear(width, s.classes, rngs) if s.classes else None

    def __call__(
        self,
        image: jax.Array,
        mask: jax.Array,
        keep: jax.Array | None = None,
        hidden: jax.Array | None = None,
        mask_token: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> Encoded:
        """image, mask [B,C,H,W] (mask: true where observed), of any size that the patches divide.

        keep int [B,K]: encode these patches only; hidden bool [B,N] and mask_token [D] (default: the model's own): what
        stands for these patches. key: there for encoders that are random in training; this one never is.
        Raises InputError for a size that the patches do not divide.
        """
        embedded = self.embed(image, mask, keep, hidden, mask_token)
        return self.summarise(run(self.blocks, *embedded), embedded.observed)

    def embed(
        self,
        image: jax.Array,
        mask: jax.Array,
        keep: jax.Array | None = None,
        hidden: jax.Array | None = None,
        mask_token: jax.Array | None = None,
    ) -> Embedded:
        """What goes into the blocks; arguments and errors as of the whole tower."""
        s = self.settings
        size = image.shape[2:]
        if size[0] % s.patch or size[1] % s.patch:
            raise InputError(f"image: {size[0]} x {size[1]} pixels are no multiple of the model's patches of {s.patch}")
        x, observed = self.stem(image, mask)  # [B,G,N,D], [B,G,N]
        if hidden is not None:
            if mask_token is None:
                assert self.mask_token is not None, "this model has no mask token of its own"
                mask_token = self.mask_token[...]
            x = jnp.where(hidden[:, None, :, None], mask_token.astype(x.dtype), x)
        grid = (size[0] // s.patch, size[1] // s.patch)
        if self.position is not None and s.grid is not None:
            x = x + resize(self.position[...], s.grid, grid, s.interpolation)
        angles = dinov3_angles(grid, s.rope, x.dtype)[None] if s.rope else None
        if keep is not None:
            x = jnp.take_along_axis(x, keep[:, None, :, None], axis=2)
            angles = None if angles is None else angles[0, keep]
            observed = None if observed is None else jnp.take_along_axis(observed, keep[:, None], axis=2)
        return self.with_own_tokens(x, angles, observed)

    def with_own_tokens(self, x: jax.Array, angles: jax.Array | None, observed: jax.Array | None) -> Embedded:
        """Patches [B,G,N,D] behind the tokens of no patch, which are not turned and always looked at."""
        batch, groups, _, width = x.shape
        own = []
        if self.cls_token is not None:
            own = [self.cls_token[...] if self.cls_position is None else self.cls_token[...] + self.cls_position[...]]
        if self.register_token is not None:
            own.append(self.register_token[...])
        first = [jnp.broadcast_to(token, (batch, *token.shape)) for token in own]
        x = jnp.concatenate([*first, x.reshape(batch, -1, width)], axis=1)
        if angles is not None:
            angles = jnp.pad(jnp.tile(angles, (1, groups, 1)), ((0, 0), (self.extra, 0), (0, 0)))
        if observed is not None:
            observed = jnp.pad(observed.reshape(batch, -1), ((0, 0), (self.extra, 0)), constant_values=True)
        return Embedded(x if self.stem_norm is None else self.stem_norm(x), angles, observed)

    @property
    def extra(self) -> int:
        """Tokens of no patch: they come first."""
        return self.settings.cls + self.settings.registers

    def summarise(self, x: jax.Array, observed: jax.Array | None = None) -> Encoded:
        """Of the tokens [B,T,D] behind the blocks; a patch with a token for each band is the mean of those observed."""
        mean = self.settings.summary == "mean"
        x = x if mean else self.norm(x)
        patches = x[:, self.extra :]
        seen = jnp.ones(patches.shape[:2], bool)
        if observed is not None:
            shape = (len(x), self.settings.bands, -1)
            of_bands = observed[:, self.extra :].reshape(shape)
            patches, seen = masked_mean(patches.reshape(*shape, x.shape[-1]), of_bands), of_bands.any(1)
        if mean:
            return Encoded(self.norm(patches.mean(1)), patches, seen)
        return Encoded(x[:, 0] if self.probe is None else self.probe(x, observed), patches, seen)


def dinov3_angles(grid: tuple[int, int], periods: tuple[float, ...], dtype: DTypeLike) -> jax.Array:
    """[N, 2 F] angles of F periods for each axis, of patch centres between -1 and 1 (Simeoni et al. 2025, sec. 3.2)."""
    axes = [2 * (np.arange(n) + 0.5) / n - 1 for n in grid]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2, 1)  # row, column
    return jnp.asarray((2 * np.pi * places / np.asarray(periods)).reshape(len(places), -1), dtype)
