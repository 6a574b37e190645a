"""From stored numbers to what a model sees, on the device: mask, microjansky, dereddening, stretch, symmetries."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from numpy.typing import ArrayLike

from jaxz.data import compact
from jaxz.data.augment import Augment
from jaxz.data.manifest import EBV, Band, Compact, Manifest
from jaxz.errors import InputError, suggest

COMPACT = tuple(f"image_{entry}" for entry in compact.ENTRIES)
SAME_SCALE = 0.01  # relative difference of pixel scales that is none
Batch = Mapping[str, np.ndarray | jax.Array]  # entries [B, ...] by name, as a Stream makes them

# What becomes of flux over the softening, and the slope at zero: that of the published CNNs is log or sqrt.
STRETCHES = {
    "asinh": (jnp.arcsinh, 1.0),
    "log": (lambda x: jnp.sign(x) * jnp.log1p(jnp.abs(x)), 1.0),
    "sqrt": (lambda x: jnp.sign(x) * (jnp.sqrt(1 + jnp.abs(x)) - 1), 0.5),
}


@dataclass(frozen=True)
class Normalisation:
    """How pixels become numbers of order one: asinh(flux / scale) per band, or another of STRETCHES, flux in
    microjansky, dereddened if so said.

    Made once, from the dataset of the first training, and kept in every checkpoint: the same flux gives the same number
    for every dataset that the model sees later.
    """

    bands: tuple[Band, ...]  # of the first dataset
    scale_ujy: tuple[float, ...]  # softening per band
    size: int  # pixels on a side
    pixel_scale_arcsec: float
    deredden: bool
    stretch: str = "asinh"

    @classmethod
    def create(
        cls, manifest: Manifest, bands: tuple[str, ...], softening: float, deredden: bool, stretch: str = "asinh"
    ) -> "Normalisation":
        """Softening is in units of the sky sigma per pixel. Raises InputError for bands that the dataset lacks."""
        if "image" not in manifest.arrays:
            raise InputError(
                f"data.path: the dataset has no array 'image' but {sorted(manifest.arrays)}; choose another"
            )
        by_name = {band.name: band for band in manifest.bands}
        for name in bands:
            if name not in by_name:
                raise InputError(f"data.bands: {name!r} is not a band of the dataset.{suggest(name, by_name)}")
        chosen = tuple(by_name[name] for name in bands or by_name)
        check_sky(chosen)
        scale = tuple(softening * band.sky_sigma * band.ujy_per_unit for band in chosen)
        size, width = manifest.arrays["image"].shape[1:]
        if size is None or size != width:
            raise InputError(f"arrays.image.shape: cutouts of {size} x {width} are not square; convert with --size")
        return cls(chosen, scale, size, chosen[0].pixel_scale_arcsec, deredden, stretch)

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, raw: dict) -> "Normalisation":
        return cls(
            tuple(Band(**band) for band in raw["bands"]),
            tuple(raw["scale_ujy"]),
            raw["size"],
            raw["pixel_scale_arcsec"],
            raw["deredden"],
            raw.get("stretch", "asinh"),
        )


class Prepare:
    """The jittable step from a host batch of one dataset to the float batch that a model sees.

    Bands are matched by name; one that the dataset lacks counts as not observed. Raises InputError where no band
    matches, or the cutouts have another size or pixel scale than the model's.
    """

    def __init__(
        self,
        manifest: Manifest,
        normalisation: Normalisation,
        augment: ConfigDict | None = None,
        views: int = 1,
        crops: tuple[int, int] = (0, 0),
    ):
        """augment: the config's group, None for images as they are. views: how many differently augmented images of
        each object there are; crops: (number, pixels) of smaller ones beside them."""
        names = [band.name for band in manifest.bands]
        wanted = [band.name for band in normalisation.bands]
        self.index = [names.index(name) if name in names else -1 for name in wanted]
        if max(self.index) < 0:
            raise InputError(f"bands: the dataset has {names}, the model wants {wanted}; none match by name")
        size = normalisation.size
        for name in ("image", "image_mask"):
            array = manifest.arrays.get(name)
            if (array is None and name == "image") or (array and array.shape != (len(names), size, size)):
                shape = list(array.shape) if array else "none"
                raise InputError(
                    f"arrays.{name}.shape: {shape} is not {len(names)} bands of the model's {size} x {size} pixels; "
                    "convert it so"
                )
        for band in manifest.bands:
            if band.name in wanted and abs(band.pixel_scale_arcsec / normalisation.pixel_scale_arcsec - 1) > SAME_SCALE:
                raise InputError(
                    f"bands.{band.name}.pixel_scale_arcsec: {band.pixel_scale_arcsec} is not the model's "
                    f"{normalisation.pixel_scale_arcsec}; convert with resample = 'reproject', or name bands of one "
                    "scale in data.bands"
                )
        check_sky([band for band in manifest.bands if band.name in wanted])
        self.compact = manifest.arrays["image"].compact
        bands = [manifest.bands[i] for i in self.index]
        there = np.array([i >= 0 for i in self.index])
        factor = [b.ujy_per_unit / s for b, s in zip(bands, normalisation.scale_ujy, strict=True)]
        self.factor = np.where(there, factor, 0).astype(np.float32)
        self.sky = np.where(there, [b.sky_sigma for b in bands] * self.factor, 1).astype(np.float32)
        self.there, self.deredden, self.stretch = there, normalisation.deredden, normalisation.stretch
        least = crops[1] if crops[0] else normalisation.size
        self.augment = augment and Augment(augment, bands, normalisation.size, least)
        self.views, self.crops = views, crops
        if self.deredden and "ebv" not in manifest.columns:
            raise InputError(
                "data.deredden: the dataset has no column 'ebv', which the model's inputs are corrected by; convert it "
                "with E(B-V), or train with data.deredden=False"
            )
        known = [own if here else wanted for own, here, wanted in zip(bands, there, normalisation.bands, strict=True)]
        self.extinction = np.array([band.a_over_ebv for band in known], np.float32)  # filters of one name differ
        self.fluxes = [
            (c, f"{kind}_{band.name}") for c, band in enumerate(normalisation.bands) for kind in ("flux", "fluxerr")
        ]
        arrays = ["image", *(["image_mask"] if "image_mask" in manifest.arrays else [])]
        columns = [name for name in ("bands_observed",) if name in manifest.columns] + ["ebv"] * self.deredden
        self.arrays, self.columns = tuple(arrays), tuple(columns)  # of the dataset: what the stream must carry

    def __call__(self, batch: Batch, key: jax.Array) -> dict:
        """`image` [B,C,H,W], in stored units or compact levels with their entries, becomes float32, mask [B,C,H,W] is
        true where observed, sky [B,C] is the background's sigma in the same unit; the catalog's flux_<band> and
        fluxerr_<band> are dereddened where the image is; an ebv that is unknown, NaN or a catalogue's -99, is 0;
        nonfinite [B] is the share of the observed pixels that hold NaN or inf and are therefore masked; other entries
        pass. views and crops: lists of {image, mask, sky}, the first view being the one above. `key` moves only
        augmentation, which depends on (key, number of the view, epoch, position)."""
        stored = in_stored_units(batch, self.compact)[:, self.index].astype(jnp.float32)
        mask = jnp.broadcast_to(self.there[:, None, None], stored.shape)
        if "bands_observed" in batch:
            bits = batch["bands_observed"].astype(jnp.uint32)[:, None] >> np.array(np.maximum(self.index, 0), np.uint32)
            mask &= (bits & 1).astype(bool)[..., None, None]
        if "image_mask" in batch:
            mask &= batch["image_mask"][:, self.index] == 0
        observed = mask.sum((1, 2, 3))
        mask &= jnp.isfinite(stored)
        nonfinite = (observed - mask.sum((1, 2, 3))) / jnp.maximum(observed, 1)
        flux = jnp.where(mask, stored, 0) * self.factor[:, None, None]
        rest = {name: value for name, value in batch.items() if name not in ("image", "image_mask", *COMPACT)}
        sky = jnp.broadcast_to(self.sky, flux.shape[:2])
        if "ebv" in batch:
            ebv = batch["ebv"].astype(jnp.float32)
            rest["ebv"] = jnp.where((ebv >= EBV[0]) & (ebv <= EBV[1]), ebv, 0)
        if self.deredden:
            brighter = 10 ** (0.4 * rest["ebv"][:, None] * self.extinction)  # [B,C]
            flux, sky = flux * brighter[..., None, None], sky * brighter
            rest |= {name: rest[name] * brighter[:, c] for c, name in self.fluxes if name in rest}
        if self.augment is None:
            views, crops = [self.seen(flux, mask, sky)], []
        else:
            numbers = [batch[name].astype(jnp.uint32) for name in ("epoch", "position", "source") if name in batch]
            look = lambda n, size: self.seen(
                *self.augment(flux, mask, sky, jnp.stack(numbers, 1), jax.random.fold_in(key, n), size)
            )
            views = [look(n, flux.shape[-1]) for n in range(self.views)]
            crops = [look(self.views + n, self.crops[1]) for n in range(self.crops[0])]
        return {**rest, **views[0], "views": views, "crops": crops, "nonfinite": nonfinite}

    def seen(self, flux: jax.Array, mask: jax.Array, sky: jax.Array) -> dict[str, jax.Array]:
        """What a model sees of flux [B,C,H,W] and the sky's sigma [B,C] in units of the softening."""
        stretch, slope = STRETCHES[self.stretch]
        return {"image": stretch(flux), "mask": mask, "sky": slope * sky}


def check_sky(bands: Iterable[Band]) -> None:
    """Raises InputError for a band without noise, which losses and the stretch divide by."""
    for band in bands:
        if not band.sky_sigma > 0:
            raise InputError(
                f"bands.{band.name}.sky_sigma: {band.sky_sigma} must be positive; measure it and fix dataset.json"
            )


def in_stored_units(batch: Batch, how: Compact | None) -> jax.Array:
    """The images [B,C,H,W] of a batch, float32 where they are compact levels. Raises InputError for levels that the
    dataset's manifest does not say how to read."""
    image = jnp.asarray(batch["image"])
    if "image_dither" not in batch:
        return image
    if how is None:
        raise InputError("batch: image_dither belongs to compact images, and these are stored raw; leave it out")
    return restore(how.steps, image, *(jnp.asarray(batch[name]) for name in COMPACT))


def restore(steps: ArrayLike, levels: jax.Array, seed: jax.Array, at: jax.Array, value: jax.Array) -> jax.Array:
    """Stored units, float32 [B,C,H,W], of steps [C], int16 levels, dither seeds [B] and exceptions [B,X]."""
    image = compact.restore(levels, seed, steps)
    put = jax.vmap(lambda flat, at, value: flat.at[at].set(value, mode="drop"))  # unused ones lie outside
    return put(image.reshape(len(image), -1), at, value).reshape(image.shape)
