"""Cuts the objects of a block out of its tiles, plane by plane, and gathers them into shards.

A plane is one band of one tile: read once, measured, scaled, and put into DATASET/work/planes/BLOCK/, from where each
shard takes its share: whole, or as cutouts where these are smaller. What is complete there is not done again, and it
goes once the block's shards are written.
"""

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import astropy.units as u
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from astropy.io import fits
from astropy_healpix import lonlat_to_healpix

from data_tools.measure import (
    aperture_flux,
    aperture_noise,
    cut,
    cut_into,
    measure_sky,
    nearest_pixel,
    noise_area,
    sampled_sky,
    to_stored,
)
from data_tools.plan import Block, objects_of, rows_of_tile
from data_tools.planes import read_band
from data_tools.survey import BandSource, Survey
from data_tools.tiles import MASK_BITS, Tile, common_grid, read_hdu, to_pixels
from jaxz.data.manifest import ZERO_POINT_UJY
from jaxz.data.writer import DatasetWriter
from jaxz.errors import InputError
from jaxz.files import replace

SAMPLED_TILES = 4  # whose sky says what the stored numbers are in
CUT_AT_ONCE = 512
HIGHEST_SKY = 512  # sigma: from here on float16 is in steps of half of one
MEASURED = ("flux", "fluxerr", "sky_sigma")  # float32 [N] a plane, in stored units but for the fluxes (microjansky)


@dataclass(frozen=True)
class Job:
    """Everything that the processes of one conversion share."""

    survey: Survey
    images: Path
    work: Path
    tiles: list[Tile]
    size: int
    samples_per_shard: int
    dtype: str  # that cutouts are written in
    sigma_ujy: dict[str, float]
    field: str


shared: dict[str, Job] = {}  # of this process


def zero_point(tile: Tile, band: BandSource) -> float:
    """m_AB = zero_point - 2.5 log10(value in the file). Raises InputError where its header lacks the keyword."""
    return band.zero_point_ab + header_number(tile, band, "zero_point_header")


def header_number(tile: Tile, band: BandSource, field: str) -> float:
    """The number that the header of a tile's band has under the keyword of a field; 0 where none is named."""
    keyword = getattr(band, field)
    if not keyword:
        return 0.0
    path, where = tile.files[band.name], f"bands.{band.name}."
    header = read_hdu(path, band.hdu, where, lambda image: image.header)
    value = header.get(keyword, fits.getheader(path, 0).get(keyword))
    if type(value) not in (int, float) or not math.isfinite(value):
        raise InputError(f"{where}{field}: {keyword!r} of {str(path)!r} is {value!r}, no number; correct it")
    return float(value)


def typical_sigma(survey: Survey, images: Path, tiles: list[Tile], band: BandSource) -> float:
    """Sigma of the sky per pixel, in microjansky, on the cutouts' grid: the median over a few tiles. Raises InputError
    where no tile has a sky with noise, or its level is too high."""
    holding = [tile for tile in tiles if band.name in tile.files]
    chosen = np.unique(np.linspace(0, len(holding) - 1, min(SAMPLED_TILES, len(holding))).astype(int))
    sigmas, problems = [], []
    for tile in (holding[n] for n in chosen):
        pixels, flags, _ = read_band(survey, images, tile, band)
        try:
            sky = sampled_sky(pixels, flags, survey.photometry.background_box_px, f"bands.{band.name}.file")
        except InputError as error:
            problems.append(error)
            continue
        check_level(survey, tile.files[band.name], sky.level, sky.sigma)
        sigmas.append(sky.sigma * to_ujy(zero_point(tile, band)))
    if not sigmas:
        raise problems[-1]
    return float(np.median(sigmas))


def check_level(survey: Survey, path: Path, level: float, sigma: float) -> None:
    """Raises InputError for a sky that stays in the cutouts and is so high that float16 would not resolve its noise."""
    if not survey.subtract_background and abs(level) > HIGHEST_SKY * sigma:
        raise InputError(
            f"subtract_background: false, but the sky of {str(path)!r} lies {level / sigma:.0f} sigma from 0, where "
            "float16 does not resolve it; say true"
        )


def measured_name(columns: Iterable[str]) -> Callable[[str, str], str]:
    """(quantity, band) -> the column of what is measured in a band: of fluxes it says so where the catalogue has its
    own, whose columns are given."""
    own = any(name.startswith("flux_") for name in columns)
    return lambda what, band: f"{what}_aper_{band}" if own and what.startswith("flux") else f"{what}_{band}"


def to_ujy(zero_point_ab: float) -> float:
    """Microjansky of one unit."""
    return 10 ** (-0.4 * (zero_point_ab - ZERO_POINT_UJY))


def plane_path(work: Path, block: int, tile: int, band: int) -> Path:
    """Of a plane, less its suffix: .pixels.npy, .flags.npy and, written last, .arrow."""
    return work / "planes" / f"{block:05d}" / f"{tile:05d}_{band:02d}"


def share(job: Job) -> None:
    """Called first by each process of a conversion: the job is too long to go with every piece of work."""
    shared["job"] = job
    block_objects.cache_clear()


def cut_plane(block: int, tile_number: int, band_number: int) -> None:
    """Cut one plane for the objects of its block, unless that was done."""
    job = shared["job"]
    path = plane_path(job.work, block, tile_number, band_number)
    if path.with_suffix(".arrow").exists():
        return
    tile, band = job.tiles[tile_number], job.survey.bands[band_number]
    objects = objects_of(job.work, block, where=pc.field("tile") == tile_number)
    path.parent.mkdir(parents=True, exist_ok=True)
    if job.survey.resample != "no":  # built in every process alike: a WCS loses digits on the way to another
        tile = dataclasses.replace(tile, grid=common_grid(job.survey, tile.files))
    pixels, flags, grid = read_band(job.survey, job.images, tile, band)
    x, y = objects["x"].to_numpy(), objects["y"].to_numpy()
    if job.survey.resample == "native":
        x, y = to_pixels(grid, objects["ra"].to_numpy(), objects["dec"].to_numpy())
    where = f"bands.{band.name}.file: {str(tile.files[band.name])!r}"
    try:
        sky = measure_sky(pixels, flags, job.survey.photometry.background_box_px, where)
    except InputError as error:  # of one tile of many, it is as if the band were not there
        if len(job.tiles) == 1:
            raise
        write_plane(path, {"blank": str(error)}, {})
        return
    residual, sigma, unit = sky.subtracted(pixels, flags), sky.sigma, to_ujy(zero_point(tile, band))
    radius = job.survey.photometry.aperture_diameter_arcsec / 2 / job.survey.stored_scale(band)
    noise, uncorrelated = aperture_noise(residual, flags, sky.rms, radius), sigma * math.sqrt(noise_area(radius))
    facts = {"sigma": sigma, "noise_ratio": noise / uncorrelated}
    noise = noise if math.isfinite(noise) else uncorrelated
    flux = aperture_flux(residual, flags, np.stack([x, y], 1), radius)
    column = np.clip(nearest_pixel(x), 0, pixels.shape[1] - 1)
    row = np.clip(nearest_pixel(y), 0, pixels.shape[0] - 1)
    rms = sky.rms[row, column]  # the depth varies over a tile, the correlation of its noise hardly
    scale = unit / job.sigma_ujy[band.name]
    fluxerr = np.where(np.isfinite(flux), noise * rms / sigma * unit, np.nan)
    columns = {"flux": flux * unit, "fluxerr": fluxerr, "sky_sigma": rms * scale}
    columns = {name: values.astype(np.float32) for name, values in columns.items()}
    if job.survey.resample == "native":
        columns |= {"x": x, "y": y}
    del sky
    stored, flags = to_stored(residual if job.survey.subtract_background else pixels, flags, scale, job.dtype)
    del residual, pixels
    columns["observed"] = is_observed(flags, x, y, job.size)
    keep(path.with_suffix(".flags.npy"), flags, x, y, job.size, MASK_BITS["nodata"])
    keep(path.with_suffix(".pixels.npy"), stored, x, y, job.size, 0)
    if band.psf_fwhm_header:
        columns["psf_fwhm"] = np.full(len(x), header_number(tile, band, "psf_fwhm_header"), np.float32)
    write_plane(path, facts, columns)


def is_observed(flags: np.ndarray, x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    """bool [N]: whether a cutout has a good pixel. Most have one in the middle: only the others are looked at whole."""
    (height, width), column, row = flags.shape, nearest_pixel(x), nearest_pixel(y)
    found = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    found[found] = flags[row[found], column[found]] == 0
    others = np.flatnonzero(~found)
    for start in range(0, len(others), CUT_AT_ONCE):
        part = others[start : start + CUT_AT_ONCE]
        found[part] = (cut(flags, x[part], y[part], size, MASK_BITS["nodata"]) == 0).any((1, 2))
    return found


def keep(path: Path, plane: np.ndarray, x: np.ndarray, y: np.ndarray, size: int, fill: int) -> None:
    """Write cutouts [N, size, size], or a plane [H, W], or its cutouts where these are smaller. What is not forced to
    the disk is gone after a crash of the system: np.load then says that it is too short."""
    whole = plane.ndim == 3 or len(x) * size**2 > plane.size
    aside = path.with_name(f"{path.stem}.{os.getpid()}.npy")  # a process that outlives its parent may write it, too
    np.save(aside, plane if whole else cut(plane, x, y, size, fill))
    aside.replace(path)


def fetch(
    path: Path, x: np.ndarray, y: np.ndarray, rows: slice, size: int, fill: int, out: Sequence[np.ndarray]
) -> None:
    """Copy, of what `keep` wrote for a plane, the cutouts of the objects `rows`, which lie at x, y [N], to `out`, N
    arrays [size, size]. Raises InputError where it is damaged."""
    try:
        values = np.load(path, mmap_mode="r").view(np.ndarray)  # whose slices take a third of a memmap's time
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); delete its folder and give the same command again") from None
    if values.ndim == 2:
        cut_into(out, values, x, y, size, fill)
        return
    for into, value in zip(out, values[rows], strict=True):
        into[:] = value


def write_plane(path: Path, facts: dict, columns: dict[str, np.ndarray]) -> None:
    """What was measured: `columns` [N] of the objects, and what holds for the whole plane."""
    facts_path = path.parents[2] / "measured" / f"{path.parent.name}_{path.name}.json"
    facts_path.parent.mkdir(exist_ok=True)
    replace(facts_path, json.dumps(facts).encode())
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    replace(path.with_suffix(".arrow"), sink.getvalue())


@lru_cache(maxsize=1)
def block_objects(work: Path, block: int) -> pa.Table:
    """One block at a time is read by a process again and again."""
    return objects_of(work, block)


@lru_cache(maxsize=1)
def buffers(shape: tuple[int, ...], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and masks of a shard, which the next takes again: new memory costs as much as what is written to it."""
    return np.empty(shape, dtype), np.empty(shape, np.uint8)


def write_shard(writer: DatasetWriter, number: int, block: Block, n: int) -> None:
    """Write shard n, which is one of block `number`'s, of the cutouts of its objects that have a good pixel."""
    job = shared["job"]
    objects = block_objects(job.work, number)
    start = (n - block.first_shard) * job.samples_per_shard
    rows = np.arange(start, min(start + job.samples_per_shard, len(objects)))
    columns = {name: objects.column(name).slice(start, len(rows)).to_numpy() for name in objects.column_names}
    shape, bands = (len(rows), len(job.survey.bands), job.size, job.size), job.survey.bands
    suffixes = tuple(f"_{band.name}" for band in bands)
    image, mask = (buffer[: len(rows)] for buffer in buffers((job.samples_per_shard, *shape[1:]), job.dtype))
    image[:], mask[:] = 0, MASK_BITS["nodata"]
    observed = np.zeros((len(rows), len(bands)), bool)
    named = measured_name(columns)
    measured = {named(what, band.name): np.full(len(rows), np.nan, np.float32) for band in bands for what in MEASURED}
    for b, tile in itertools.product(range(len(bands)), block.tiles):  # one band at a time is mapped to memory
        places = rows_of_tile(objects, tile)
        low, high = np.searchsorted(places, (start, start + len(rows)))
        here, path = places[low:high] - start, plane_path(job.work, number, tile, b)
        if bands[b].name not in job.tiles[tile].files or not len(here):
            continue
        found = pa.ipc.open_file(path.with_suffix(".arrow")).read_all()
        if not found.num_columns:
            continue
        found = {what: found[what].to_numpy()[low:high] for what in found.column_names}
        x, y = (found[axis] if axis in found else columns[axis][here] for axis in "xy")
        for suffix, array, fill in ((".pixels.npy", image, 0), (".flags.npy", mask, MASK_BITS["nodata"])):
            out = [array[row, b] for row in here.tolist()]
            fetch(path.with_suffix(suffix), x, y, slice(low, high), job.size, fill, out)
        observed[here, b] = found.pop("observed")
        for what, values in found.items():
            measured.setdefault(named(what, bands[b].name), np.full(len(rows), np.nan))[here] = values
    columns = measured | columns
    lacking = [name for name in writer.manifest.columns if name.endswith(suffixes) and name not in columns]
    columns |= {name: np.full(len(rows), np.nan) for name in lacking}  # of bands without a plane here
    columns["bands_observed"] = (observed << np.arange(len(bands), dtype=np.uint32)).sum(1).astype(np.uint32)
    columns |= describe(columns, job)
    good = np.flatnonzero(observed.any(1))
    keys = [f"{block.first + start + i:09d}" for i in good.tolist()]
    columns = {name: columns[name][good] for name in writer.manifest.columns}
    if len(good) < len(rows):
        image, mask = image[good], mask[good]
    writer.write_shard(n, keys, {"image": image, "image_mask": mask}, columns)


def describe(columns: dict[str, np.ndarray], job: Job) -> dict[str, np.ndarray]:
    """survey, field, mag_ref and, where the sky position is known, healpix."""
    number = len(columns["object_id"])
    names = np.array([tile.name or job.field for tile in job.tiles])
    made = {"survey": np.full(number, job.survey.name), "field": names[columns["tile"]]}
    if "mag_ref" not in columns:  # of the catalogue
        reference = job.survey.photometry.band
        own = f"flux_{reference}"
        flux = columns[own if own in columns else f"flux_aper_{reference}"].astype(np.float64)
        magnitude = ZERO_POINT_UJY - 2.5 * np.log10(flux, where=flux > 0, out=np.full(number, np.nan))
        made["mag_ref"] = magnitude.astype(np.float32)
    if "ra" in columns:
        made["healpix"] = lonlat_to_healpix(columns["ra"] * u.deg, columns["dec"] * u.deg, 2**29, order="nested")
    return made
