"""Batches of arrays as a model takes them: what is wrong with them, what is missing, what holds no image."""

import warnings
from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np

from jaxz.data.compact import ZERO
from jaxz.data.manifest import EBV, Manifest
from jaxz.data.prepare import COMPACT
from jaxz.errors import InputError, suggest

READ = ("image", "image_mask", "bands_observed", *COMPACT)  # of the image, where they are there
SAME = 1e-5  # relative difference of stretched pixels that is rounding


def check(batch: Mapping, manifest: Manifest, deredden: bool, columns: Iterable[str] = ()) -> None:
    """Raises InputError for a batch without objects, of another shape than the manifest's images, with entries of
    another length, an E(B-V) that none has, or entries that nothing reads, but for those of a Stream, which has `row`.
    columns: those that the model reads. Warns where reddening is not known."""
    wanted = manifest.arrays["image"].shape
    shape = np.shape(batch["image"]) if "image" in batch else "missing"
    if shape == "missing" or len(shape) != 4 or shape[1:] != wanted:
        raise InputError(
            f"batch: image is {shape}, it must be [B, {', '.join(map(str, wanted))}]: the bands "
            f"{[band.name for band in manifest.bands]}, each {wanted[1]} x {wanted[2]} pixels"
        )
    if not shape[0]:
        raise InputError("batch: image holds no object; give one or more")
    known = {*READ, *columns, "ebv"}
    if "row" not in batch and (others := sorted(map(str, batch.keys() - known))):
        raise InputError(f"batch: {others[0]!r} is not read; leave it out.{suggest(others[0], known)}")
    for name in known & batch.keys():
        found = np.shape(batch[name])
        if name == "image_mask" and found != shape:
            raise InputError(f"batch: image_mask is {found}, it must be {shape} as image is")
        if found[:1] != shape[:1] or (name in ("ebv", "bands_observed") and len(found) > 1):
            raise InputError(f"batch: {name} is {found}, it must be [{shape[0]}], as many as image has objects")
    if not deredden:
        return
    ebv = np.asarray(batch.get("ebv", np.nan), np.float64)
    if (bad := ebv[(ebv < EBV[0]) | (ebv > EBV[1])]).size:
        raise InputError(f"batch: ebv of {bad[0]:g} must be E(B-V) in mag, from {EBV[0]} to {EBV[1]}; NaN if not known")
    if "ebv" not in batch:
        warnings.warn("batch has no 'ebv': Galactic reddening is not corrected", stacklevel=4)
    elif missing := np.isnan(ebv).sum():
        warnings.warn(f"'ebv' is NaN for {missing} objects: Galactic reddening is not corrected there", stacklevel=4)


def completed(
    batch: Mapping, manifest: Manifest, deredden: bool, columns: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """The entries of a batch that a model reads, with what is missing of them filled in as Model.predict says. columns:
    {what the model reads: what it is called in the batch}."""
    used = {name: np.asarray(batch[name]) for name in READ if name in batch}
    count, bands = len(used["image"]), len(manifest.bands)
    if "bands_observed" not in used:
        bits = np.uint32(1) << np.arange(bands, dtype=np.uint32)
        empty = ZERO if "image_dither" in used else 0  # of compact levels
        used["bands_observed"] = ((used["image"] != empty).any((2, 3)) * bits).sum(1, dtype=np.uint32)
    missing = np.full(count, np.nan)
    used |= {name: np.asarray(batch.get(own, missing), np.float32) for name, own in (columns or {}).items()}
    return used | ({"ebv": np.asarray(batch.get("ebv", np.zeros(count)), np.float32)} if deredden else {})


def without_constant(seen: dict) -> dict:
    """What Prepare gives of one view, in which a band whose observed pixels are all one number counts as not observed:
    no sky is so, but stamps off the edge of an image and failed ones are. Images of one pixel, which catalogues without
    images have, are left alone."""
    image, mask = seen["image"], seen["mask"]
    if image.shape[2:] == (1, 1):
        return seen
    low = jnp.where(mask, image, jnp.inf).min((2, 3), keepdims=True)
    high = jnp.where(mask, image, -jnp.inf).max((2, 3), keepdims=True)
    mask &= high - low > SAME * jnp.maximum(jnp.abs(low), jnp.abs(high))
    view = {"image": jnp.where(mask, image, 0), "mask": mask, "sky": seen["sky"]}
    return {**seen, **view, "views": [view]}
