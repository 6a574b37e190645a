"""Augmentation on the device, of linear fluxes: what keeps colours and brightness.

Every draw depends on the key, which is the view's, and on the sample's numbers (epoch, position, source) alone: a run
that goes on, on whatever number of devices, draws the same. Colour jitter, gains, clipping, standardisation of single
images and zooming are left out on purpose: they destroy what tells a redshift.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxz.data.manifest import Band
from jaxz.data.resample import ANGLES, TAPS, blurred, gaussian_kernels, power, rotate, slide
from jaxz.errors import InputError

FWHM = math.sqrt(8 * math.log(2))  # of a Gaussian, over its sigma


class Draws(NamedTuple):
    """What is drawn for a sample beside symmetry and move: float32 in [0, 1), but for `noise`."""

    angle: jax.Array  # [B]
    ebv: jax.Array  # [B]
    part: jax.Array  # [B,2] of a pixel
    hole: jax.Array  # [B,2]
    fwhm: jax.Array  # [B,C]
    depth: jax.Array  # [B,C]
    band: jax.Array  # [B,C]
    noise: jax.Array  # [B] keys

    @classmethod
    def make(cls, keys: jax.Array, bands: int) -> "Draws":
        """Of each sample's key; the same whatever is used of it."""
        numbers = jax.vmap(lambda own: jax.random.uniform(jax.random.fold_in(own, 0), (6 + 3 * bands,)))(keys)
        ends = [1, 2, 4, 6, 6 + bands, 6 + 2 * bands]
        angle, ebv, part, hole, fwhm, depth, band = jnp.split(numbers, ends, axis=1)
        noise = jax.vmap(lambda own: jax.random.fold_in(own, 1))(keys)
        return cls(angle[:, 0], ebv[:, 0], part, hole, fwhm, depth, band, noise)


class Augment:
    """The augmentation of cutouts of `size` pixels in `bands`, by the config's group `augment`. What is not observed
    is NaN between here and the end: it spreads to all that is made from it.

    Raises InputError for moves and holes that would take the object out of an image, or of a crop of the size `least`,
    and where a band's PSF is to be widened that is not known, or beyond half the image.
    """

    def __init__(self, settings: ConfigDict, bands: Sequence[Band], size: int, least: int):
        self.settings, self.size = settings, size
        for name, limit in (("shift", size), ("hole", least)):
            if settings[name] >= limit / 2:
                raise InputError(
                    f"augment.{name}: {settings[name]} would hide the object in {limit} pixels; lower it below half"
                )
        self.extinction = np.array([band.a_over_ebv for band in bands], np.float32)
        self.scale = np.array([band.pixel_scale_arcsec for band in bands], np.float32)
        self.fwhm = np.array([band.psf_fwhm_arcsec for band in bands], np.float32)
        self.reach = 0  # pixels that the widest blur takes in on either side
        if settings.psf_fwhm:
            for band in bands:
                if band.psf_fwhm_arcsec == 0:
                    raise InputError(
                        f"augment.psf_fwhm: bands.{band.name}.psf_fwhm_arcsec is 0, which is unknown; measure it and "
                        "fix dataset.json"
                    )
            widest = widening(settings.psf_fwhm[1], self.fwhm) / self.scale
            self.reach = math.ceil(3.5 * float(widest.max()))
            if self.reach >= size / 2 or self.reach >= ANGLES / 2:
                raise InputError(
                    f"augment.psf_fwhm: {settings.psf_fwhm[1]} arcsec would blur over {self.reach} of {size} pixels; "
                    "lower it"
                )

    def __call__(
        self, flux: jax.Array, mask: jax.Array, sky: jax.Array, numbers: jax.Array, key: jax.Array, size: int
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(flux, mask [B,C,size,size], sky [B,C]) of flux, mask [B,C,H,H] and the sky's sigma per pixel; numbers
        uint32 [B,n], such as (epoch, position). An image of a smaller size is cut at random, not zoomed: the middle of
        the cutout, where the object is, stays at least a quarter of the size away from its border.
        """
        settings, full = self.settings, sky
        keys = jax.vmap(lambda own: functools.reduce(jax.random.fold_in, own, key))(numbers)
        draws = Draws.make(keys, flux.shape[1])
        whole = flux.shape[-1]
        window = whole if settings.orientation == "any" else min(size + len(TAPS) * settings.subpixel, whole)
        flux, blur = self.widened(jnp.where(mask, flux, jnp.nan), draws)
        flux, down, across = self.resampled(self.moved(flux, keys, size, window), draws)
        sky = sky * jnp.sqrt((blur * down).mean(-1) * (blur * across).mean(-1))
        flux, sky = self.reddened(flux, sky, draws)
        low = (window - size) // 2
        flux, sky = self.deepened(flux[..., low : low + size, low : low + size], sky, full, draws)
        mask = self.hidden(jnp.isfinite(flux), draws)
        return jnp.where(mask, flux, 0), mask, sky

    def widened(self, flux: jax.Array, draws: Draws) -> tuple[jax.Array, jax.Array]:
        """Blurred, where a band is sharper, to a FWHM drawn for each band, both PSFs taken for Gaussians; and the power
        of the blur along each axis [B,C,ANGLES]."""
        if not self.reach:
            return flux, jnp.ones((*flux.shape[:2], 1))
        fwhm = between(self.settings.psf_fwhm, draws.fwhm)
        kernels = gaussian_kernels(widening(fwhm, self.fwhm) / self.scale, self.reach)  # [B,C,K]
        return blurred(flux, kernels), power(kernels)

    def moved(self, flux: jax.Array, keys: jax.Array, size: int, window: int) -> jax.Array:
        """[B,C,window,window] around where an image of `size` pixels is cut: in one of the 8 symmetries of the square
        and moved by whole pixels along each axis, which leaves flux and noise exact. What comes in from outside is not
        observed."""
        whole, square = flux.shape[-1], self.settings.orientation != "none"
        free = (whole - size) // 2
        reach = min(free + self.settings.shift, size // 4) if free else self.settings.shift
        moves = 2 * reach + 1
        draw = lambda own: jax.random.randint(own, (3,), 0, jnp.array([8 if square else 1, moves, moves]))
        view, dy, dx = jax.vmap(draw)(keys).T  # [B] each
        place = jnp.arange(window) + (whole - window) // 2
        rows, columns = (place + (d - reach)[:, None] for d in (dy, dx))  # [B,window]
        inside = ((rows >= 0) & (rows < whole))[:, :, None] & ((columns >= 0) & (columns < whole))[:, None]
        rows, columns = jnp.clip(rows, 0, whole - 1), jnp.clip(columns, 0, whole - 1)
        flat = (rows[:, :, None] * whole + columns[:, None]).reshape(len(rows), -1)
        source = jnp.take_along_axis(jnp.asarray(eight_views(whole))[view], flat, axis=1)[:, None]  # [B,1,window^2]
        taken = jnp.take_along_axis(flux.reshape(*flux.shape[:2], -1), source, axis=2)
        return jnp.where(inside[:, None], taken.reshape(*flux.shape[:2], window, window), jnp.nan)

    def resampled(self, flux: jax.Array, draws: Draws) -> tuple[jax.Array, jax.Array | int, jax.Array | int]:
        """Turned by up to 45 degrees either way, and moved by up to half a pixel along each axis; and the power of the
        filters along y and x [B,1,ANGLES], which tells the noise of a turned image within 2 %."""
        dy, dx = (draws.part - 0.5).T * self.settings.subpixel
        if self.settings.orientation == "any":
            flux, down, across = rotate(flux, (draws.angle - 0.5) * jnp.pi / 2, dy, dx)
        elif self.settings.subpixel:
            along = lambda d: jnp.broadcast_to(d[:, None], (len(d), flux.shape[-1]))
            flux, across = slide(flux, along(dx))
            flux, down = slide(flux.swapaxes(2, 3), along(dy))
            flux = flux.swapaxes(2, 3)
        else:
            return flux, 1, 1
        return flux, down[:, None], across[:, None]

    def reddened(self, flux: jax.Array, sky: jax.Array, draws: Draws) -> tuple[jax.Array, jax.Array]:
        """Behind up to augment.ebv magnitudes of E(B-V) more Galactic dust."""
        if not self.settings.ebv:
            return flux, sky
        fainter = 10 ** (-0.4 * self.settings.ebv * draws.ebv[:, None] * self.extinction)  # [B,C]
        return flux * fainter[..., None, None], sky * fainter

    def deepened(self, flux: jax.Array, sky: jax.Array, full: jax.Array, draws: Draws) -> tuple[jax.Array, jax.Array]:
        """With white noise up to a sky sigma drawn for each band in units of its own, `full`, where it has less."""
        if not self.settings.noise:
            return flux, sky
        target = full * between(self.settings.noise, draws.depth)
        added = jnp.sqrt(jnp.maximum(target**2 - sky**2, 0))
        normal = jax.vmap(lambda own: jax.random.normal(own, flux.shape[1:]))(draws.noise)
        return flux + added[..., None, None] * normal, jnp.maximum(target, sky)

    def hidden(self, mask: jax.Array, draws: Draws) -> jax.Array:
        """Without some bands, never the last one, and without a square of all bands."""
        settings, size = self.settings, mask.shape[-1]
        if settings.band_dropout:
            observed = mask.any((2, 3))
            dropped = spare_last(observed, draws.band, settings.band_dropout)
            mask &= ~dropped[..., None, None]
        if settings.hole:
            low = jnp.floor(draws.hole * (size - settings.hole + 1))[..., None]
            across = (jnp.arange(size) >= low) & (jnp.arange(size) < low + settings.hole)  # [B,2,size]
            mask &= ~(across[:, 0, :, None] & across[:, 1, None, :])[:, None]
        return mask


def between(ends: tuple[float, float], drawn: jax.Array) -> jax.Array:
    """Numbers drawn from [0, 1) as ones between the two ends."""
    return ends[0] + (ends[1] - ends[0]) * drawn


def widening(target: jax.Array | float, fwhm: np.ndarray) -> jax.Array:
    """The sigma, in the unit of the FWHMs, of the Gaussian that makes one of `fwhm` one of `target`; 0 if wider."""
    return jnp.sqrt(jnp.maximum(target**2 - fwhm**2, 0)) / FWHM


def eight_views(size: int) -> np.ndarray:
    """int32 [8, size*size]: which pixel each pixel is taken from.

    For a gather, since XLA fuses chains of flips with the random draw and draws anew for every pixel: 40 times slower
    on CPU. A switch on the view would under vmap make all eight.
    """
    pixels = np.arange(size * size, dtype=np.int32).reshape(size, size)
    turned = [np.rot90(view, k) for view in (pixels, pixels.T) for k in range(4)]
    return np.stack([view.ravel() for view in turned])


def turn(x: jax.Array, view: jax.Array) -> jax.Array:
    """[B,C,H,H] with every image in the given view of the eight."""
    return x.reshape(*x.shape[:2], -1)[..., jnp.asarray(eight_views(x.shape[-1]))[view]].reshape(x.shape)


def hide_bands(mask: jax.Array, chance: float, key: jax.Array) -> jax.Array:
    """[B,C] bool: observed bands to hide, each with `chance`, but never the last one that is left."""
    observed = mask.any((2, 3))
    return spare_last(observed, jax.random.uniform(key, observed.shape), chance)


def spare_last(observed: jax.Array, drawn: jax.Array, chance: float) -> jax.Array:
    """[B,C] bool: the observed bands whose number, drawn in [0, 1), is below `chance`, without the largest one."""
    drawn = jnp.where(observed, drawn, -1)
    last = jax.nn.one_hot(drawn.argmax(1), observed.shape[1], dtype=bool)
    return observed & (drawn < chance) & ~last
