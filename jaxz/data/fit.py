"""Images of any survey as a model takes them: its bands, its pixel scale, its size."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxz.data.manifest import Array, Band, Manifest
from jaxz.data.prepare import COMPACT, SAME_SCALE, Batch, Normalisation, in_stored_units
from jaxz.errors import InputError, suggest

LARGEST_RATIO = 4.0  # of pixel scales: beyond it a PSF is less than a pixel, or its noise all that is seen
NODES = np.arange(4)  # of the cubic through the flux below four pixel edges


class Fit:
    """The jittable step from a host batch of a dataset to one that Prepare takes with `manifest`.

    Bands are matched by name, or as band_map says, {band of the dataset: band of the model}, which goes before names.
    Where the dataset has another size or pixel scale, images [B,C,h,w] become float32 [B,C,H,W] in stored units:
    resampled, with flux conserved, about pixel size // 2, which holds the object, and cut to the model's size. A pixel
    is NaN where it is made from one that is masked or not finite, or lies beyond the stamp. The noise of resampled
    pixels is correlated; manifest has the sigma of one.

    manifest: the dataset's with the model's names, size and scale; arrays, columns: what a batch must carry, {name in
    the dataset: name in what Prepare takes}; told: what was done, for people. Raises InputError for bands that do not
    match or are not there, wavelengths of other bands, or pixels over four times larger or smaller.
    """

    def __init__(self, manifest: Manifest, normalisation: Normalisation, band_map: Mapping[str, str] | None = None):
        image = manifest.arrays.get("image")
        if image is None or len(image.shape) != 3 or image.variable:
            raise InputError(
                "arrays.image: the dataset has no image [C,H,W] of one size, its arrays are "
                f"{sorted(manifest.arrays)}; name another"
            )
        band_map = band_map or {}
        names = renamed(manifest.bands, normalisation.bands, band_map)
        ours = {band.name: band for band in normalisation.bands}
        used = [band.name for band in manifest.bands if names[band.name] in ours]
        check_bands([band for band in manifest.bands if band.name not in band_map], ours, names)
        ratios = [
            scale_ratio(band, normalisation.pixel_scale_arcsec) if band.name in used else 1.0 for band in manifest.bands
        ]
        _, height, width = image.full_shape
        size, self.compact = normalisation.size, image.compact
        self.arrays = tuple(name for name in ("image", "image_mask") if name in manifest.arrays)
        self.columns = {name: column_of(name, names, ours) for name in manifest.columns}
        mapped = {new for name, new in self.columns.items() if new != name}  # goes before one of that name
        self.columns = {name: new for name, new in self.columns.items() if new and (new != name or new not in mapped)}
        scales = {b.pixel_scale_arcsec for b, ratio in zip(manifest.bands, ratios, strict=True) if ratio != 1}
        resampled = f"{', '.join(map(str, sorted(scales)))} -> {normalisation.pixel_scale_arcsec}" if scales else ""
        self.told = list(told(manifest.bands, ours, names, resampled, (height, width), size))
        bands = [dataclasses.replace(band, name=names[band.name]) for band in manifest.bands]
        arrays: dict[str, Array] = {name: manifest.arrays[name] for name in self.arrays}
        self.weights: tuple[np.ndarray, np.ndarray] | None = None  # along y and x, where images are resampled
        if (height, width) != (size, size) or any(ratio != 1 for ratio in ratios):
            along = lambda side: np.stack([remap(side, ratio, size) for ratio in ratios]).astype(np.float32)
            down, across = along(height), along(width)
            self.weights = down, across
            arrays = {"image": Array("image", "float32", (len(bands), size, size))}
            noise = noise_factor(down) * noise_factor(across)
            bands = [
                dataclasses.replace(
                    band, pixel_scale_arcsec=normalisation.pixel_scale_arcsec, sky_sigma=float(factor * band.sky_sigma)
                )
                for band, factor in zip(bands, noise, strict=True)
            ]
        columns = {new: manifest.columns[name] for name, new in self.columns.items()}
        self.manifest = Manifest(arrays, tuple(bands), columns)

    def __call__(self, batch: Batch) -> Batch:
        if self.weights is None:
            return batch
        down, across = self.weights
        stored = in_stored_units(batch, self.compact)
        rest = {name: values for name, values in batch.items() if name not in ("image", *COMPACT)}
        good = jnp.isfinite(stored)
        if "image_mask" in rest:
            good &= rest.pop("image_mask") == 0
        image = separable(jnp.where(good, stored, 0).astype(jnp.float32), down, across)
        lost = separable((~good).astype(jnp.float32), down != 0, across != 0) > 0
        inside = np.any(down, 2)[:, :, None] & np.any(across, 2)[:, None]
        return {**rest, "image": jnp.where(lost | ~inside, jnp.nan, image)}


def renamed(theirs: tuple[Band, ...], ours: tuple[Band, ...], band_map: Mapping[str, str]) -> dict[str, str]:
    """{band of the dataset: its name for the model}. Raises InputError for what a band_map may not say."""
    own, wanted = [band.name for band in theirs], [band.name for band in ours]
    for name, target in band_map.items():
        if name not in own:
            raise InputError(f"band_map: {name!r} is no band of the dataset.{suggest(name, own)}")
        if target not in wanted:
            raise InputError(f"band_map: {target!r} is no band of the model.{suggest(target, wanted)}")
    if twice := [target for target in band_map.values() if list(band_map.values()).count(target) > 1]:
        raise InputError(f"band_map: two bands are named the model's {twice[0]!r}; keep one of them")
    names = {name: f"{name} (not used)" if name in band_map.values() else name for name in own} | dict(band_map)
    if not set(names.values()) & set(wanted):
        raise InputError(
            f"bands: the dataset has {own}, the model wants {wanted}; none match by name: say which is which with "
            f"--band_map {own[0]}={wanted[0]},..."
        )
    return names


def check_bands(theirs: Iterable[Band], ours: Mapping[str, Band], names: Mapping[str, str]) -> None:
    """Raises InputError where one of their bands, matched by its name alone, is another filter: the centre lies outside
    of ours."""
    for band in theirs:
        known = ours.get(names[band.name])
        if known and abs(band.wavelength_nm - known.wavelength_nm) > known.width_nm:
            raise InputError(
                f"bands.{band.name}.wavelength_nm: {band.wavelength_nm:g} is another filter than the model's "
                f"{known.name!r} at {known.wavelength_nm:g}; say which band it is with --band_map"
            )


def scale_ratio(band: Band, scale_arcsec: float) -> float:
    """The model's pixel in units of the band's, exactly 1 where they are the same to 1 %. Raises InputError."""
    ratio = scale_arcsec / band.pixel_scale_arcsec
    if not 1 / LARGEST_RATIO <= ratio <= LARGEST_RATIO:
        raise InputError(
            f"bands.{band.name}.pixel_scale_arcsec: {band.pixel_scale_arcsec} is over {LARGEST_RATIO:g} times from the "
            f"model's {scale_arcsec}; convert at that scale"
        )
    return 1.0 if abs(1 / ratio - 1) <= SAME_SCALE else ratio


def column_of(name: str, names: Mapping[str, str], ours: Mapping[str, Band]) -> str:
    """What a column is called for the model: those of a band by its new name, or "" where the model has no such band
    but another band would then be taken for it."""
    for kind in ("flux_", "fluxerr_"):
        if name.startswith(kind) and (band := name.removeprefix(kind)) in names:
            return kind + names[band] if names[band] in ours or band not in ours else ""
    return name


def told(
    theirs: Iterable[Band],
    ours: Mapping[str, Band],
    names: Mapping[str, str],
    resampled: str,
    shape: tuple[int, int],
    size: int,
) -> Iterator[str]:
    """What is done to the images, for people."""
    new = {new: name for name, new in names.items() if new in ours}
    if other := [f"{name} = {own}" for own, name in new.items() if name != own]:
        yield f"bands of the dataset and what they are for the model: {', '.join(other)}"
    if lacking := [name for name in ours if name not in new]:
        yield f"bands that the dataset lacks count as not observed: {', '.join(lacking)}"
    if unused := [band.name for band in theirs if names[band.name] not in ours]:
        yield f"bands that the model does not know are not used: {', '.join(unused)}"
    if resampled:
        yield f"pixels of {resampled} arcsec are resampled"
    if shape != (size, size):
        yield f"stamps of {shape[0]} x {shape[1]} pixels become {size} x {size}; what is beyond a stamp is masked"


def remap(old: int, ratio: float, new: int) -> np.ndarray:
    """[new, old]: weights that make `new` pixels, `ratio` times as long, of `old` ones; pixel old // 2 and new // 2
    have one centre. Rows of zeros where a new pixel lies beyond the old ones.

    The flux below a pixel's edge is known at all edges; between them it is the cubic through the four nearest, and a
    new pixel has the difference between its own two edges (in the way of Colella & Woodward 1984, sec. 1,
    without limiter). Flux, centroid and size of what stays inside are conserved: x^2 is, in the mean over a pixel.
    """
    edges = old // 2 + 0.5 + (np.arange(new + 1) - new // 2 - 0.5) * ratio
    within = np.clip(edges, 0, old)
    first = np.clip(np.floor(within).astype(int) - 1, 0, old - len(NODES) + 1)
    at = within - first
    below = np.zeros((new + 1, old))  # weights of the flux below each new edge
    for node in NODES:
        others = np.delete(NODES, node)
        weight = np.prod((at[:, None] - others) / (node - others), axis=1)
        below += weight[:, None] * (np.arange(old) < (first + node)[:, None])
    weights = np.diff(below, axis=0)
    weights[np.abs(weights) < 1e-9] = 0  # rounding, by which a NaN would spread
    inside = (edges[:-1] > -1e-9) & (edges[1:] < old + 1e-9)
    return np.where(inside[:, None], weights, 0)


def noise_factor(weights: np.ndarray) -> np.ndarray:
    """[C]: sigma of a pixel made by weights [C,new,old] along one axis from white noise of sigma 1, in the quadratic
    mean over the pixels inside."""
    inside = weights.any(2)
    return np.sqrt((weights**2).sum((1, 2)) / np.maximum(inside.sum(1), 1))


def separable(image: jax.Array, down: np.ndarray, across: np.ndarray) -> jax.Array:
    """[B,C,H,W] of image [B,C,h,w] by weights [C,H,h] and [C,W,w]."""
    y, x = jnp.asarray(down, jnp.float32), jnp.asarray(across, jnp.float32)
    return jnp.einsum("cyh,bchw,cxw->bcyx", y, image, x, precision=jax.lax.Precision.HIGHEST)
