"""Augmentation on the device, of linear fluxes: what keeps colours and brightness.

Every draw depends on the key, which is the view's, and on the sample's numbers (epoch, position, source) alone: a run
that goes on, on whatever number of devices, draws the same.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def augmented(flux, mask, sky, numbers, key, settings, size: int):
    """(flux, mask [B,C,size,size], sky [B,C]) of flux, mask [B,C,H,W]; numbers uint32 [B,n]; settings: the config's
    group `augment`; the middle of `size` pixels is cut out."""
    flux, mask = turn_and_shift(flux, mask, numbers, key, settings.shift, settings.square)
    low = (flux.shape[-1] - size) // 2
    return flux[..., low : low + size, low : low + size], mask[..., low : low + size, low : low + size], sky


def turn_and_shift(
    image: jax.Array, mask: jax.Array, numbers: jax.Array, key: jax.Array, shift: int, square: bool = True
):
    """One of the 8 symmetries of the square and a move by up to `shift` whole pixels along each axis, for each sample
    by the key and its numbers [B,n], such as (epoch, position): flux and noise stay exact, and what comes in from
    outside is not observed."""
    size, moves = image.shape[-1], 2 * shift + 1

    def draw(own):
        sample_key = functools.reduce(jax.random.fold_in, own, key)
        return jax.random.randint(sample_key, (3,), 0, jnp.array([8 if square else 1, moves, moves]))

    view, dy, dx = jax.vmap(draw)(numbers).T  # [B] each
    place = jnp.arange(size)
    rows, columns = (place + (d - shift)[:, None] for d in (dy, dx))  # [B,size]
    inside = ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[:, None]
    flat = (jnp.clip(rows, 0, size - 1)[:, :, None] * size + jnp.clip(columns, 0, size - 1)[:, None]).reshape(
        len(dy), -1
    )
    source = jnp.take_along_axis(jnp.asarray(eight_views(size))[view], flat, axis=1)[:, None]  # [B,1,H*W]
    take = lambda x: jnp.take_along_axis(x.reshape(*x.shape[:2], -1), source, axis=2).reshape(x.shape)
    return jnp.where(inside[:, None], take(image), 0), take(mask) & inside[:, None]


def eight_views(size: int) -> np.ndarray:
    """int32 [8, size*size]: which pixel each pixel is taken from.

    For a gather, since XLA fuses chains of flips with the random draw and draws anew for every pixel: 40 times slower
    on CPU.
    """
    pixels = np.arange(size * size, dtype=np.int32).reshape(size, size)
    turned = [np.rot90(view, k) for view in (pixels, pixels.T) for k in range(4)]
    return np.stack([view.ravel() for view in turned])


def turn(x: jax.Array, view: jax.Array) -> jax.Array:
    """[B,C,H,H] with every image in the given view of the eight."""
    return x.reshape(*x.shape[:2], -1)[..., jnp.asarray(eight_views(x.shape[-1]))[view]].reshape(x.shape)


def hide_bands(mask: jax.Array, chance: float, key: jax.Array) -> jax.Array:
    """bool [B,C]: observed bands to hide, each with `chance`, but never the last one that is left."""
    observed = mask.any((2, 3))
    draw = jnp.where(observed, jax.random.uniform(key, observed.shape), -1)
    last = jax.nn.one_hot(draw.argmax(1), observed.shape[1], dtype=bool)
    return observed & (draw < chance) & ~last
