"""Multi-head self-attention, the kernel that computes it, and rotary positions."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jaxz.errors import InputError

BASE = 100.0  # of the rotary wavelengths: a patch to some hundred patches
Kernel = Literal["auto", "xla", "cudnn"]
KERNELS = get_args(Kernel)


class Attention(nnx.Module):
    """Multi-head self-attention (Vaswani et al. 2017, eq. 1). kernel: "auto", "xla" or "cudnn"."""

    def __init__(self, width: int, heads: int, dtype: DTypeLike, kernel: Kernel = "auto", *, rngs: nnx.Rngs):
        self.heads, self.kernel = heads, kernel
        self.qkv = nnx.Linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, angles: jax.Array | None = None) -> jax.Array:
        """Tokens x [B,N,D]; mask bool [B,N]: the tokens that may be looked at; angles [B or 1,N,D/heads/2] of `rotate`.

        Where no token may be looked at, all are alike: finite, and no more than that.
        """
        batch, tokens, _ = x.shape
        q, k, v = jnp.split(self.qkv(x).reshape(batch, tokens, 3 * self.heads, -1), 3, axis=2)  # [B,N,heads,D/heads]
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        if mask is not None:
            mask = jnp.broadcast_to(mask[:, None, None], (batch, 1, tokens, tokens))
        kernel = choose_kernel(self.kernel, q.dtype, q.shape[-1], mask is not None and tokens % 2 == 1)
        if q.dtype == jnp.float16 and jax.default_backend() == "cpu":  # where XLA has no float32 products of float16
            q, k, v = (a.astype(jnp.float32) for a in (q, k, v))
        return self.out(jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=kernel).reshape(x.shape))


def choose_kernel(kernel: Kernel, dtype: DTypeLike, head: int, odd: bool) -> Literal["xla", "cudnn"]:
    """ "xla" or "cudnn". The flash attention of cuDNN wants an NVIDIA GPU from the A100 on, 16-bit numbers, heads of a
    multiple of 8 up to 128 wide and, under a mask, an even number of tokens (`odd` is false); "auto" takes it where it
    can. Raises InputError where "cudnn" cannot be had."""
    if kernel == "xla":
        return kernel
    able = jax.default_backend() == "gpu" and float(jax.devices()[0].compute_capability) >= 8
    if able and jnp.dtype(dtype).itemsize == 2 and head % 8 == 0 and head <= 128 and not odd:
        return "cudnn"
    if kernel == "auto":
        return "xla"
    raise InputError(
        "model.attention: 'cudnn' needs an A100 or newer, model.dtype bfloat16 or float16, heads of a multiple of 8 up "
        "to 128 wide and, with stems that mask tokens, an even number of them; choose 'auto'"
    )


def rotary_angles(place: np.ndarray | jax.Array, head: int) -> np.ndarray | jax.Array:
    """[...,head/2] angles for heads of `head` numbers of tokens at `place` [...,2], in patches: axial rotary positions
    (Su et al. 2021, eq. 15, along each axis; Heo et al. 2024, eq. 6). Only differences of places matter to attention,
    so that crops and images of other sizes need nothing new."""
    frequencies = BASE ** -(np.arange(head // 4, dtype=np.float32) / (head // 4))
    return (place[..., None] * frequencies).reshape(*place.shape[:-1], head // 2)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Queries or keys x [B,N,heads,2F] turned by angles [B or 1,N,F], in float32 at least: the first half of each head
    with the second (Su et al. 2021, eq. 15)."""
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    a, b = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)
