"""From linear fluxes to what a model of photographs takes: their size and their numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxz.errors import InputError, suggest
from jaxz.models.resize import matrix

LEAST = 0.5  # of what a resized pixel is made of must be observed


def lupton_rgb(flux: jax.Array, stretch: float, q: float) -> jax.Array:
    """Linear flux [B,3,H,W], red first, as a colour picture in [0, 1] (Lupton et al. 2004, eq. 2, with softening and
    slope as Astropy's make_lupton_rgb has them). It suits a model of photographs; a bright pixel's flux is lost."""
    flux = jnp.maximum(flux, 0)
    intensity = flux.mean(1, keepdims=True)
    slope = 0.1 / math.asinh(0.1 * q)
    safe = jnp.where(intensity > 0, intensity, 1)
    rgb = flux * jnp.where(intensity > 0, slope * jnp.arcsinh(q * safe / stretch) / safe, 0)
    return rgb / jnp.maximum(rgb.max(1, keepdims=True), 1)


def normalise(flux: jax.Array, normalisation: dict) -> jax.Array:
    """Linear flux [B,C,H,W] -> the input of an imported encoder. There is no default: the mean and deviation of
    photographs do not fit fluxes, and what was chosen belongs into the config.

    normalisation: dict(kind="asinh", scale=[C]): asinh(flux / scale), as jaxz.data.prepare does;
    dict(kind="affine", mean=[C], std=[C]): (flux - mean) / std;
    dict(kind="lupton", stretch=, q=, mean=[3], std=[3]): the picture of three bands, red first, then as "affine".
    Raises InputError for another kind, or numbers that are missing, too many or not one a band.
    """
    numbers = {"asinh": ("scale",), "affine": ("mean", "std"), "lupton": ("stretch", "q", "mean", "std")}
    kind = normalisation.get("kind")
    if kind not in numbers:
        raise InputError(f"normalisation.kind: {kind!r} must be said.{suggest(kind, numbers)}")
    if set(normalisation) != {"kind", *numbers[kind]}:
        raise InputError(f"normalisation: {sorted(normalisation)} must be kind, {', '.join(numbers[kind])} and no more")
    given = {}
    for name in numbers[kind]:
        value = np.asarray(normalisation[name], np.float32)
        if value.shape != (() if name in ("stretch", "q") else flux.shape[1:2]):
            raise InputError(f"normalisation.{name}: {normalisation[name]!r} must be a number for each of the bands")
        given[name] = value if value.ndim == 0 else value[:, None, None]
    if kind == "asinh":
        return jnp.arcsinh(flux / given["scale"])
    if kind == "lupton":
        flux = lupton_rgb(flux, float(given["stretch"]), float(given["q"]))
    return (flux - given["mean"]) / given["std"]


def resize_images(
    image: jax.Array, mask: jax.Array, factor: float, least: float = LEAST
) -> tuple[jax.Array, jax.Array]:
    """image, mask [B,C,H,W] with sides `factor` times as long, bilinear between the centres of pixels (smaller ones:
    antialiased). A pixel is the mean of the observed ones that it is made of, and observed where `least` of it is."""
    down, across = (
        jnp.asarray(matrix(side, round(side * factor), "bilinear_antialias"), image.dtype) for side in image.shape[2:]
    )
    resized = lambda x: jnp.einsum("hr,wc,bkrc->bkhw", down, across, x, precision=jax.lax.Precision.HIGHEST)
    share = resized(mask.astype(image.dtype))
    observed = share >= least
    return jnp.where(observed, resized(jnp.where(mask, image, 0)) / jnp.maximum(share, least), 0), observed
