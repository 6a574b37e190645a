"""Resizing of position tables as the code bases of published models do it, each in its own way.

PyTorch's interpolation as a matrix per axis. `jax.image.resize` is another function where it does not antialias: its
cubic kernel has a = -0.5 and weights past the edge are dropped; PyTorch's has a = -0.75 and repeats the edge.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxz.errors import InputError, suggest

# kernel, antialias, and what is added to the new size where the scale is computed from it (DINO and DINOv2 do so)
VARIANTS = {
    "offset0.1": ("cubic", False, 0.1),
    "bicubic": ("cubic", False, 0.0),
    "bicubic_antialias": ("cubic", True, 0.0),
    "bilinear": ("linear", False, 0.0),
    "bilinear_antialias": ("linear", True, 0.0),
}
REACH = {"cubic": 2.0, "linear": 1.0}


def cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys 1981, eq. 15 with a free `a`."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def linear(x: np.ndarray) -> np.ndarray:
    """The triangle of bilinear interpolation: 1 at 0, and 0 from a distance of 1 on."""
    return np.maximum(0, 1 - np.abs(x))


def matrix(old: int, new: int, variant: str) -> np.ndarray:
    """float64 [new, old]: what turns `old` samples of an axis into `new`."""
    kind, antialias, offset = VARIANTS[variant]
    step = old / (new + offset)  # old samples a new one
    centres = (np.arange(new) + 0.5) * step - 0.5
    weights = np.zeros((new, old))
    if antialias:  # the kernel as wide as a new sample, cut at the edges
        wide = max(step, 1.0)
        x = (np.arange(old) - centres[:, None]) / wide
        weights = np.where(np.abs(x) < REACH[kind], cubic(x, -0.5) if kind == "cubic" else linear(x), 0)
        return weights / weights.sum(1, keepdims=True)
    first = np.floor(centres).astype(int)
    for tap in range(-1, 3):
        x = first + tap - centres
        weight = cubic(x, -0.75) if kind == "cubic" else linear(x)
        np.add.at(weights, (np.arange(new), np.clip(first + tap, 0, old - 1)), weight)
    return weights


def resize(table: jax.Array, grid: tuple[int, int], new: tuple[int, int], variant: str) -> jax.Array:
    """The position table [rows * columns, D] of `grid` for another grid, [new rows * new columns, D].

    Raises InputError for a variant that is not in VARIANTS.
    """
    if variant not in VARIANTS:
        raise InputError(f"pos_interp: {variant!r} is no way to resize positions.{suggest(variant, VARIANTS)}")
    if grid == new:
        return table
    down, across = (jnp.asarray(matrix(o, n, variant), table.dtype) for o, n in zip(grid, new, strict=True))
    table = jnp.einsum("hr,wc,rcd->hwd", down, across, table.reshape(*grid, -1), precision=jax.lax.Precision.HIGHEST)
    return table.reshape(new[0] * new[1], -1)
