"""How bands become tokens, found by the module's name: stems/<name>.py defines `Stem`.

    class Stem(nnx.Module):
        def __init__(self, bands, config, dtype, *, rngs)      # config: the group `model`
        def __call__(self, image, mask, key)                   # [B,C,h,w] -> tokens [B,G,N,D], observed [B,G,N] or None

G tokens for each of N patches. Filters are told apart by their wavelength, so that one never seen can be tried; what is
masked enters nowhere, whatever it holds. A token that is not `observed` takes no part in attention or means; None: all
do. key: of what is random in training, or None.
"""

import importlib
import pkgutil
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import ArrayLike

from jaxz.models import Band

NAMES = tuple(module.name for module in pkgutil.iter_modules(__path__))

SPACING = 0.04  # in ln(wavelength): neighbouring broad bands differ by 0.1 to 0.3, and must be told apart easily
CENTRES = np.arange(np.log(150.0), np.log(30_000.0), SPACING)  # far ultraviolet to mid infrared, nm


Tokens = tuple[jax.Array, jax.Array | None]  # of a Stem: tokens [B,G,N,D] and observed [B,G,N]


def wavelength_features(wavelength_nm: ArrayLike) -> np.ndarray:
    """[C, F] smooth bumps in ln(wavelength) for C filters, each row of unit norm."""
    distance = (np.log(np.asarray(wavelength_nm, float))[:, None] - CENTRES) / SPACING
    features = np.exp(-0.5 * distance**2)
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


class WavelengthKernel(nnx.Module):
    """A weight for every filter, [C, *shape], smooth in its wavelength: features [C,F] @ basis [F, *shape]."""

    def __init__(self, bands: Sequence[Band], shape: tuple[int, ...], scale: float, *, rngs: nnx.Rngs):
        self.features = tuple(map(tuple, wavelength_features([band.wavelength_nm for band in bands]).tolist()))
        self.basis = nnx.Param(scale * jax.random.normal(rngs.params(), (len(CENTRES), *shape)))

    def __call__(self) -> jax.Array:
        return jnp.tensordot(jnp.asarray(self.features, jnp.float32), self.basis[...], 1)


def patchify(image: jax.Array, patch: int) -> jax.Array:
    """[B,C,H,W] -> [B,N,C,P*P], patches row by row."""
    batch, bands, height, width = image.shape
    grid = image.reshape(batch, bands, height // patch, patch, width // patch, patch)
    return grid.transpose(0, 2, 4, 1, 3, 5).reshape(batch, -1, bands, patch * patch)


def unpatchify(patches: jax.Array, patch: int) -> jax.Array:
    """The inverse of `patchify` for square images."""
    batch, tokens, bands, _ = patches.shape
    side = int(tokens**0.5)
    grid = patches.reshape(batch, side, side, bands, patch, patch).transpose(0, 3, 1, 4, 2, 5)
    return grid.reshape(batch, bands, side * patch, side * patch)


def find(name: str) -> type:
    """The `Stem` of stems/<name>.py."""
    return importlib.import_module(f"jaxz.models.stems.{name}").Stem
