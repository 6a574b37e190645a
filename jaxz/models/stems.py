"""How bands become tokens: filters are told apart by their wavelength, so that one never seen can be tried."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

SPACING = 0.04  # in ln(wavelength): neighbouring broad bands differ by 0.1 to 0.3, and must be told apart easily
CENTRES = np.arange(np.log(150.0), np.log(30_000.0), SPACING)  # far ultraviolet to mid infrared, nm


def wavelength_features(wavelength_nm) -> np.ndarray:
    """[C, F] smooth bumps in ln(wavelength) for C filters, each row of unit norm."""
    distance = (np.log(np.asarray(wavelength_nm, float))[:, None] - CENTRES) / SPACING
    features = np.exp(-0.5 * distance**2)
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


class WavelengthKernel(nnx.Module):
    """A weight for every filter, [C, *shape], smooth in its wavelength: features [C,F] @ basis [F, *shape]."""

    def __init__(self, bands, shape: tuple[int, ...], scale: float, *, rngs: nnx.Rngs):
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


class FusedStem(nnx.Module):
    """One token per patch, from the observed pixels of all bands: what is masked enters nowhere, whatever it holds.

    token = K0 . m + sum_c K(lambda_c) . GAIN (x_c - m) + sum_c e(lambda_c) * observed fraction_c + bias, m the mean of
    the pixel's observed bands. Bands look alike: where what they share is not taken out, colours are learned several
    times slower.
    """

    GAIN = 3.0  # deviations are a few times smaller than the mean

    def __init__(self, bands, patch: int, width: int, dtype, *, rngs: nnx.Rngs):
        self.patch, self.dtype = patch, dtype
        pixels = patch * patch
        self.kernel = WavelengthKernel(bands, (pixels, width), (len(bands) * pixels) ** -0.5, rngs=rngs)
        self.mean = nnx.Linear(pixels, width, dtype=dtype, rngs=rngs)
        self.presence = WavelengthKernel(bands, (width,), 0.02, rngs=rngs)

    def __call__(self, image: jax.Array, mask: jax.Array) -> jax.Array:
        image = jnp.where(mask, image, 0)
        mean = image.sum(1, keepdims=True) / jnp.maximum(mask.sum(1, keepdims=True), 1)  # [B,1,H,W]
        colour = jnp.where(mask, self.GAIN * (image - mean), 0)
        pixels = patchify(colour, self.patch).astype(self.dtype)  # [B,N,C,PP]
        observed = patchify(mask.astype(self.dtype), self.patch).mean(-1)  # [B,N,C]
        kernel = self.kernel().astype(self.dtype)  # [C,PP,D]
        tokens = pixels.reshape(*pixels.shape[:2], -1) @ kernel.reshape(-1, kernel.shape[-1])
        tokens += self.mean(patchify(mean, self.patch)[:, :, 0])
        return tokens + observed @ self.presence().astype(self.dtype)
