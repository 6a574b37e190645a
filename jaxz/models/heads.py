"""What objectives put behind an encoder."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


class MLP(nnx.Module):
    """Linear layers from widths[0] to widths[-1] with GELU between, [..., widths[0]] -> [..., widths[-1]].

    norm: a LayerNorm before each GELU, which unlike BatchNorm keeps no statistics of batches.
    """

    def __init__(self, widths: Sequence[int], *, norm: bool, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.hidden = len(widths) - 2
        for n, (inner, outer) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            setattr(self, f"linear{n}", nnx.Linear(inner, outer, dtype=dtype, rngs=rngs))
            if norm and n < self.hidden:
                setattr(self, f"norm{n}", nnx.LayerNorm(outer, dtype=dtype, rngs=rngs))

    def __call__(self, x: jax.Array) -> jax.Array:
        for n in range(self.hidden + 1):
            x = getattr(self, f"linear{n}")(x)
            if n < self.hidden:
                x = jax.nn.gelu(getattr(self, f"norm{n}")(x) if hasattr(self, f"norm{n}") else x)
        return x


class Prototypes(nnx.Module):
    """Cosines with `count` learned directions, [..., width] -> [..., count]: a linear layer of unit-norm inputs and
    weights of unit norm (Caron et al. 2021, sec. 3.1 and appendix C)."""

    def __init__(self, width: int, count: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.dtype = dtype
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (width, count)))

    def __call__(self, x: jax.Array) -> jax.Array:
        cosines = unit(x).astype(self.dtype) @ unit(self.kernel[...], axis=0).astype(self.dtype)
        return cosines.astype(jnp.float32)


def unit(x: jax.Array, axis: int = -1, floor: float = 1e-6) -> jax.Array:
    """Vectors x over their Euclidean norm along `axis`, float32; the gradient at zero is finite."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(axis, keepdims=True), floor**2))
