"""Transformer blocks, stacked and scanned."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxz.mesh import constrain_batch
from jaxz.models.attention import Attention, Kernel

B = TypeVar("B", bound=nnx.Module)
UNROLL = 4  # blocks a scan step holds on CPU: a backward pass took 0.7 of the time of 1, which compiles fastest

# What of a block the backward pass computes again: nothing; all; all but matrix products.
REMAT = {
    "none": lambda body: body,
    "block": lambda body: jax.checkpoint(body, prevent_cse=False),  # a scan keeps forward and backward apart
    "dots": lambda body: jax.checkpoint(body, prevent_cse=False, policy=jax.checkpoint_policies.checkpoint_dots),
}


class Block(nnx.Module):
    """Pre-norm transformer block.

    mlp: "gelu", four times as wide, or "swiglu" (Shazeer 2020, eq. 6) with as many parameters; layer_scale: what a
    learned factor of each branch begins with (Touvron et al. 2021, eq. 2), 0 for none; attention: its kernel.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dtype: DTypeLike,
        mlp: str = "gelu",
        layer_scale: float = 0.0,
        attention: Kernel = "auto",
        *,
        rngs: nnx.Rngs,
    ):
        scale = lambda: nnx.Param(jnp.full(width, layer_scale)) if layer_scale else None
        self.norm1 = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.attention = Attention(width, heads, dtype, attention, rngs=rngs)
        self.attention_scale = scale()
        self.norm2 = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.gated = mlp == "swiglu"
        hidden = -(-8 * width // 24) * 8 if self.gated else 4 * width  # 8/3 of the width, rounded up to eights
        self.up = nnx.Linear(width, 2 * hidden if self.gated else hidden, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(hidden, width, dtype=dtype, rngs=rngs)
        self.mlp_scale = scale()

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        angles: jax.Array | None = None,
        rate: jax.Array | float = 0.0,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Of tokens x [B,N,D]; mask, angles: see Attention; rate [], key: of `drop_path`, without a key none drops."""
        keys = (None, None) if key is None else jax.random.split(key)
        x = x + branch(self.attention(self.norm1(x), mask, angles), self.attention_scale, rate, keys[0])
        return constrain_batch(x + branch(self.mlp(self.norm2(x)), self.mlp_scale, rate, keys[1]))

    def mlp(self, x: jax.Array) -> jax.Array:
        x = self.up(x)
        if not self.gated:
            return self.down(jax.nn.gelu(x))
        gate, value = jnp.split(x, 2, axis=-1)
        return self.down(jax.nn.silu(gate) * value)


def branch(x: jax.Array, scale: nnx.Param | None, rate: jax.Array | float, key: jax.Array | None) -> jax.Array:
    """What a branch's result x [B,N,D] adds to the block's input."""
    if scale is not None:
        x = (x * scale[...]).astype(x.dtype)
    return x if key is None else drop_path(x, rate, key)


def drop_path(x: jax.Array, rate: jax.Array | float, key: jax.Array) -> jax.Array:
    """A branch's x [B,N,D] / (1 - rate), but nothing of a sample with the chance `rate` [] (Huang et al. 2016)."""
    kept = jax.random.bernoulli(key, 1 - rate, (len(x), 1, 1))
    return jnp.where(kept, x / jnp.asarray(1 - rate, x.dtype), 0)


def stack(depth: int, make: Callable[[nnx.Rngs], B], rngs: nnx.Rngs) -> B:
    """`depth` blocks as one whose parameters have a leading axis; `make(rngs)` builds one."""
    return nnx.vmap(make)(rngs.split(depth))


def scan(
    blocks: Block,
    x: jax.Array,
    mask: jax.Array | None = None,
    angles: jax.Array | None = None,
    drop: float = 0.0,
    key: jax.Array | None = None,
    remat: str = "none",
) -> jax.Array:
    """Apply stacked blocks in turn, compiled once.

    mask, angles: see Attention. drop: the chance of a branch of the last block to be dropped for a sample, in
    proportion less before; nothing is without a key. remat: a name in REMAT.
    """
    depth = len(jax.tree.leaves(blocks)[0])
    drawn = None if key is None or not drop else (jnp.linspace(0, drop, depth), jax.random.split(key, depth))

    def body(x: jax.Array, layer: tuple) -> tuple[jax.Array, None]:
        block, drawn = layer
        return block(x, mask, angles, *(drawn or ())), None

    unroll = UNROLL if jax.default_backend() == "cpu" and remat == "none" else 1
    return jax.lax.scan(REMAT[remat](body), x, (blocks, drawn), unroll=unroll)[0]
