"""What the published redshift networks are made of: convolutions side by side, on images [B,H,W,C].

They know no masks: what is not observed is a flux of zero to them.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jaxz.checks import one_of
from jaxz.errors import InputError
from jaxz.models import Band, Encoded

SETTINGS = dict(
    subsets=(),  # sizes of the subsets of adjacent bands that have first layers of their own, such as (2, 3); (): none
    dtype="float32",  # of the computation; parameters and results are float32
)
CHECKS = {
    "subsets": (lambda s: all(isinstance(n, int) and n >= 1 for n in s.subsets), "() or numbers of bands"),
    "dtype": one_of("dtype", "float32", "bfloat16", "float16"),
}

ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh}
KERNEL, BIAS = nnx.initializers.glorot_uniform(), nnx.initializers.constant(0.1)  # what layers begin with


class Conv(nnx.Module):
    """A convolution of `side` x `side` pixels and its activation: one of ACTIVATIONS, or "prelu", whose slope below
    zero is learned for each map (He et al. 2015, eq. 1)."""

    def __init__(
        self,
        inner: int,
        outer: int,
        side: int,
        activation: str,
        dtype: DTypeLike,
        padding: str = "SAME",
        *,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            inner, outer, (side, side), padding=padding, dtype=dtype, kernel_init=KERNEL, bias_init=BIAS, rngs=rngs
        )
        self.slope_scale = nnx.Param(jnp.zeros(outer)) if activation == "prelu" else None
        self.activation = activation

    def __call__(self, x: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        """[B,H,W,inner] -> [B,H,W,outer]; bias [B,outer]: added to the maps before the activation."""
        x = self.conv(x)
        x = x if bias is None else x + bias[:, None, None]
        if self.slope_scale is None:
            return ACTIVATIONS[self.activation](x)
        return jnp.maximum(x, 0) + self.slope_scale[...].astype(x.dtype) * jnp.minimum(x, 0)


class Inception(nnx.Module):
    """Side by side: 1 x 1 to `single` maps; 1 x 1 to `narrow` and from there, for each of `sides`, side x side to
    `wide`; 1 x 1 to `narrow` and a mean over 2 x 2 (Szegedy et al. 2015, with means for maxima)."""

    def __init__(
        self,
        inner: int,
        narrow: int,
        wide: int,
        single: int,
        sides: Sequence[int],
        activation: str,
        dtype: DTypeLike,
        *,
        rngs: nnx.Rngs,
    ):
        conv = lambda inner, outer, side: Conv(inner, outer, side, activation, dtype, rngs=rngs)
        self.sides, self.outer = tuple(sides), single + wide * len(sides) + narrow
        self.single, self.pooled = conv(inner, single, 1), conv(inner, narrow, 1)
        for side in self.sides:
            setattr(self, f"reduce{side}", conv(inner, narrow, 1))
            setattr(self, f"conv{side}", conv(narrow, wide, side))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B,H,W,inner] -> [B,H,W,outer]."""
        wide = [getattr(self, f"conv{side}")(getattr(self, f"reduce{side}")(x)) for side in self.sides]
        return jnp.concatenate([self.single(x), *wide, mean_pool(self.pooled(x), stride=1)], axis=3)


def dense(inner: int, outer: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer that begins with KERNEL and BIAS."""
    return nnx.Linear(inner, outer, dtype=dtype, kernel_init=KERNEL, bias_init=BIAS, rngs=rngs)


class FirstLayers(nnx.Module):
    """The first layers of a network, once for all bands, or for each subset of bands adjacent in wavelength, their maps
    side by side (Ait Ouahmed et al. 2024): sizes (2, 3) are all pairs and triples. make(bands): those of so many bands;
    maps: how many one gives. Raises InputError for subsets larger than the bands."""

    def __init__(self, make: Callable[[int], nnx.Module], maps: int, bands: Sequence[Band], sizes: tuple[int, ...]):
        if max(sizes, default=0) > len(bands):
            raise InputError(f"model.subsets: {max(sizes)} is more than the {len(bands)} bands; lower it")
        order = np.argsort([band.wavelength_nm for band in bands], kind="stable").tolist()
        subsets = [tuple(order[n : n + size]) for size in sizes for n in range(len(bands) - size + 1)]
        self.subsets = tuple(subsets) or (tuple(range(len(bands))),)
        self.outer = maps * len(self.subsets)
        for n, subset in enumerate(self.subsets):
            setattr(self, f"subset{n}", make(len(subset)))

    def __call__(self, x: jax.Array, *more: jax.Array) -> jax.Array:
        """[B,H,W,C], and what else the layers take, -> [B,H',W',outer]."""
        maps = [getattr(self, f"subset{n}")(x[..., list(subset)], *more) for n, subset in enumerate(self.subsets)]
        return jnp.concatenate(maps, axis=3)


def mean_pool(x: jax.Array, stride: int, padding: str = "SAME") -> jax.Array:
    """Means over 2 x 2 of [B,H,W,D]; at the border of what there is."""
    return nnx.avg_pool(x, (2, 2), (stride, stride), padding, count_include_pad=False)


def pixels(image: jax.Array, mask: jax.Array, dtype: DTypeLike) -> jax.Array:
    """[B,H,W,C] of image, mask [B,C,H,W], zero where not observed."""
    return jnp.where(mask, image, 0).transpose(0, 2, 3, 1).astype(dtype)


def reddening(columns: Mapping[str, jax.Array], dtype: DTypeLike) -> jax.Array:
    """E(B-V) [B,1], mag; unknown is taken as none."""
    return jnp.nan_to_num(columns["ebv"]).astype(dtype)[:, None]


def encoded(summary: jax.Array, maps: jax.Array) -> Encoded:
    """Of the last layer before the redshift's [B,D] and the last maps [B,H,W,M], whose places are the tokens."""
    tokens = maps.reshape(len(maps), -1, maps.shape[3]).astype(jnp.float32)
    return Encoded(summary.astype(jnp.float32), tokens, jnp.ones(tokens.shape[:2], bool))
