"""Surveys with an image an object instead of tiles: "{image}" in the survey file's patterns is the catalogue's column
`image`, or object_id where it has none.

Each image is a tile of its own, read by the same code. Objects are dealt out at random to groups, which stand where a
tile stands in the plan: so the dataset's order is random and a group's cutouts lie in one file a band.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from astropy.stats import mad_std
from numpy.typing import ArrayLike

from data_tools.cutting import check_level, header_number, keep, plane_path, shared, to_ujy, write_plane, zero_point
from data_tools.measure import aperture_flux, cut, noise_area, to_stored
from data_tools.plan import objects_of
from data_tools.planes import read_band
from data_tools.splits import assign_splits, healpix_order
from data_tools.survey import BandSource, Survey, inside
from data_tools.tiles import MASK_BITS, Grid, Tile, band_grid, named, packed, to_pixels
from jaxz.data.order import derive, permute
from jaxz.errors import InputError

GROUP, MOST_GROUPS = 1000, 8000  # objects in a group, more where there would be too many groups
SAMPLED = 300  # objects whose sky says what the stored numbers are in
EDGE = 8  # the sky is what lies within 1 / EDGE of a stamp's side from its edges


def groups(survey: Survey, objects: int) -> list[Tile]:
    """What stands for tiles: as many as the objects need."""
    files = {band.name: Path(band.file) for band in survey.bands}
    return [Tile("", files, Grid((0, 0), None)) for _ in range(math.ceil(objects / group_size(objects)))]


def group_size(objects: int) -> int:
    return max(GROUP, math.ceil(objects / MOST_GROUPS))


class Placed:
    """Deals the objects of a catalogue out to groups, as they come."""

    def __init__(self, survey: Survey, objects: int, size: int, sky: bool):
        self.survey, self.objects, self.sky, self.seen = survey, objects, sky, 0
        self.gap_arcsec = size * math.sqrt(2) * survey.coarsest_arcsec
        self.key = derive(survey.splits.seed, objects)

    def place(self, chunk: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """All objects, with tile (int32), the number of the group, and split."""
        number = len(chunk["object_id"])
        known = np.isfinite(chunk["ra"]) if self.sky else np.ones(number, bool)
        at = np.arange(self.seen, self.seen + number)
        self.seen += number
        placed = {**chunk, "tile": (permute(at, self.objects, self.key) // group_size(self.objects)).astype(np.int32)}
        placed = {name: values[known] for name, values in placed.items()}
        rule = self.survey.splits
        if self.sky:
            placed["split"], _ = assign_splits(
                placed["ra"], placed["dec"], gap_arcsec=self.gap_arcsec, order=healpix_order(rule.cell_arcmin),
                fractions=rule.fractions, seed=rule.seed,
            )  # fmt: skip
        else:  # nothing is known of who is near to whom
            share = permute(at, self.objects, derive(rule.seed, self.objects, 1)) / self.objects
            borders = np.cumsum([*rule.fractions.values()])[:-1]
            placed["split"] = np.array([*rule.fractions])[np.searchsorted(borders, share, side="right")]
        return placed, {"without a position": int((~known).sum())}


def names_of(columns: Mapping[str, ArrayLike]) -> list[str]:
    """The image of each object of a chunk, or of the plan's table."""
    return np.asarray(columns["image" if "image" in columns else "object_id"]).astype(str).tolist()


def read_stamp(
    survey: Survey, images: Path, band: BandSource, name: str
) -> tuple[Tile, BandSource, np.ndarray, np.ndarray] | None:
    """One object's image in one band: what stands for its tile, the band with its HDU, pixels float32 and flags uint8
    [H, W]; None where there is none. Raises InputError."""
    if not inside(name):
        raise InputError(f"catalog.image: {name!r} leaves the images folder as a part of a path; mend it")
    path = packed(images / named(band.file, band, name))
    if not path.is_file():
        return None
    if "{image}" in str(band.hdu):
        number = str(band.hdu).replace("{image}", name)
        band = dataclasses.replace(band, hdu=int(number) if number.isdecimal() else number)
    tile = Tile(name, {band.name: path}, band_grid(band, path))
    pixels, flags, _ = read_band(survey, images, tile, band)
    return tile, band, pixels, flags


def measure_border(pixels: np.ndarray, flags: np.ndarray) -> tuple[float, float]:
    """Level and sigma of the good pixels near the edges; a sigma of NaN where these have no noise, as a padded edge."""
    width = max(1, min(pixels.shape) // EDGE)
    ring = np.ones(pixels.shape, bool)
    ring[width:-width, width:-width] = False
    sky = pixels[ring & (flags == 0)]
    if not len(sky):
        return 0.0, math.nan
    return float(np.median(sky)), float(mad_std(sky)) or math.nan


def typical_sigma(survey: Survey, images: Path, names: list[str], band: BandSource) -> float:
    """Sigma of the sky per pixel, in microjansky: the median over some objects. Raises InputError where no one has an
    image with noise."""
    chosen = np.unique(np.linspace(0, len(names) - 1, min(SAMPLED, len(names))).astype(int))
    sigmas = []
    for n in chosen.tolist():
        if (found := read_stamp(survey, images, band, names[n])) is not None:
            tile, own, pixels, flags = found
            level, sigma = measure_border(pixels, flags)
            check_level(survey, tile.files[band.name], level, sigma)
            sigmas.append(np.nan_to_num(sigma) * to_ujy(zero_point(tile, own)))
    if not any(sigma > 0 for sigma in sigmas):
        path = str(images / named(band.file, band, "{image}"))
        raise InputError(
            f"bands.{band.name}.file: {path!r} is there for {len(sigmas)} of {len(chosen)} objects, none with noise "
            "around it; correct the pattern or drop the band"
        )
    return float(np.median([sigma for sigma in sigmas if sigma > 0]))


def cut_group(block: int, group: int, band_number: int) -> None:
    """Cut one band for the objects of one group, unless that was done."""
    job = shared["job"]
    path, band = plane_path(job.work, block, group, band_number), job.survey.bands[band_number]
    if path.with_suffix(".arrow").exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = objects_of(job.work, block, where=pc.field("tile") == group)
    shape = (len(objects), job.size, job.size)
    image, mask = np.zeros(shape, job.dtype), np.full(shape, MASK_BITS["nodata"], np.uint8)
    columns = {name: np.full(len(objects), np.nan, np.float32) for name in ("flux", "fluxerr", "sky_sigma")}
    columns |= {"x": np.full(len(objects), np.nan), "y": np.full(len(objects), np.nan)}
    radius = job.survey.photometry.aperture_diameter_arcsec / 2 / job.survey.stored_scale(band)
    spread = math.sqrt(noise_area(radius))
    given = {name: objects[name].to_numpy() for name in ("ra", "dec", "x", "y") if name in objects.column_names}
    for row, name in enumerate(names_of({name: objects[name] for name in objects.column_names})):
        if (found := read_stamp(job.survey, job.images, band, name)) is None:
            continue
        tile, own, pixels, flags = found
        x, y = centre(tile.grid, {name: values[row] for name, values in given.items()})
        unit, (level, sigma) = to_ujy(zero_point(tile, own)), measure_border(pixels, flags)
        residual = np.where(flags & (MASK_BITS["bad"] | MASK_BITS["nodata"]) > 0, 0, pixels - level).astype(np.float32)
        flux = aperture_flux(residual, flags, np.array([[x, y]]), radius)[0]
        noise = sigma * spread if math.isfinite(flux) else math.nan
        scale = unit / job.sigma_ujy[band.name]
        stored, flags = to_stored(residual if job.survey.subtract_background else pixels, flags, scale, job.dtype)
        at = np.array([x]), np.array([y])
        image[row], mask[row] = cut(stored, *at, job.size)[0], cut(flags, *at, job.size, MASK_BITS["nodata"])[0]
        if band.psf_fwhm_header:
            columns.setdefault("psf_fwhm", np.full(len(objects), np.nan))[row] = header_number(
                tile, own, "psf_fwhm_header"
            )
        measured = {"flux": flux * unit, "fluxerr": noise * unit, "sky_sigma": sigma * scale, "x": x, "y": y}
        for column, value in measured.items():
            columns[column][row] = value
    columns["observed"] = (mask == 0).any((1, 2))
    nowhere = np.zeros(len(objects))  # these are cutouts already
    keep(path.with_suffix(".flags.npy"), mask, nowhere, nowhere, job.size, 0)
    keep(path.with_suffix(".pixels.npy"), image, nowhere, nowhere, job.size, 0)
    write_plane(path, {"sigma": job.sigma_ujy[band.name], "noise_ratio": 1.0}, columns)


def centre(grid: Grid, given: dict[str, float]) -> tuple[float, float]:
    """Of the object in its image: where the catalogue says, else where its WCS says, else the middle."""
    if "x" in given:
        return given["x"], given["y"]
    if grid.wcs is not None and "ra" in given:
        x, y = to_pixels(grid, np.array([given["ra"]]), np.array([given["dec"]]))
        return float(x[0]), float(y[0])
    return (grid.shape[1] - 1) / 2, (grid.shape[0] - 1) / 2
