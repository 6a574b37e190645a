"""Transformer blocks, stacked and scanned."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxz.mesh import constrain_batch

UNROLL = 4  # blocks a scan step holds: on CPU a backward pass took 0.7 of the time of unroll = 1


class Attention(nnx.Module):
    """Multi-head self-attention (Vaswani et al. 2017, eq. 1)."""

    def __init__(self, width: int, heads: int, dtype, *, rngs: nnx.Rngs):
        self.heads = heads
        self.qkv = nnx.Linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, tokens, width = x.shape
        q, k, v = jnp.split(self.qkv(x).reshape(batch, tokens, 3 * self.heads, -1), 3, axis=2)  # [B,N,heads,D/heads]
        return self.out(jax.nn.dot_product_attention(q, k, v).reshape(batch, tokens, width))


class Block(nnx.Module):
    """Pre-norm transformer block with a GELU MLP four times as wide."""

    def __init__(self, width: int, heads: int, dtype, *, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.attention = Attention(width, heads, dtype, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm1(x))
        return constrain_batch(x + self.down(jax.nn.gelu(self.up(self.norm2(x)))))


def stack(depth: int, make, rngs: nnx.Rngs):
    """`depth` blocks as one whose parameters have a leading axis; `make(rngs)` builds one."""
    return nnx.vmap(make)(rngs.split(depth))


def scan(blocks, x: jax.Array) -> jax.Array:
    """Apply stacked blocks in turn, compiled once for every UNROLL of them."""
    return jax.lax.scan(lambda x, block: (block(x), None), x, blocks, unroll=UNROLL)[0]
