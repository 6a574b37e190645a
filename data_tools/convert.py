"""Catalogue and aligned image tiles -> dataset of multi-band cutouts.

    python -m data_tools.convert --survey SURVEY.toml [--catalog CATALOG] --images DIR --out DATASET

Without a catalogue the sources are detected. docs/adding_a_survey.md explains the survey file, docs/dataset_format.md
what is written. An interrupted conversion goes on when the same command is given again.
"""

import argparse
import dataclasses
import json
import math
import platform
import signal
import sys
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.utils.exceptions import AstropyWarning
from astropy_healpix import lonlat_to_healpix

from data_tools.catalogs.catalog import COLUMNS, open_catalog
from data_tools.catalogs.labels import label
from data_tools.detect import aperture_flux, aperture_noise, detect, noise_area
from data_tools.plan import MEASURING, WRITING, check_begun, check_out, inputs, make_plan, versions
from data_tools.splits import GAP, assign_splits, assign_splits_pixels
from data_tools.survey import BandSource, Survey, load_survey, survey_path
from data_tools.tiles import (
    MASK_BITS,
    Grid,
    check_aligned,
    cut,
    find_file,
    find_files,
    fits_inside,
    flag_pixels,
    measure_sky,
    nearest_pixel,
    read_image,
    sky_to_pixel,
    to_stored,
)
from jaxz.data.manifest import ZERO_POINT_UJY, Array, Band, Column, Manifest
from jaxz.data.writer import ENCODINGS, DatasetWriter, with_images
from jaxz.errors import InputError, run
from jaxz.progress import in_threads

HEALPIX_SIDE_ARCMIN = 58.632 * 60  # side of a base cell; halves with each order
COMPACT_BYTES = 0.8  # of a pixel, about
POLICY = {
    "centring": "integer: the nearest pixel to (x, y) is pixel [size // 2, size // 2]; x, y keep the exact centre",
    "unit": "stored = file value * scale, so that the background sigma per pixel over the tile is 1",
    "mask": "nodata: NaN in the file; bad: infinite or without weight; saturated: past the survey's level or float16's",
    "photometry": "circular apertures on the exact centres, sky subtracted; fluxerr is that of empty apertures",
}


@dataclass(frozen=True)
class Plane:
    """One band of the tile, measured: stored float16 or float32 [H, W], flags uint8 [H, W], flux and fluxerr float32
    [N] in microjansky; sigma is the sky's per pixel in the file's units, noise_ratio is the sigma of empty apertures
    over what independent pixels of that sigma would give."""

    band: BandSource
    stored: np.ndarray
    flags: np.ndarray
    sigma: float
    flux: np.ndarray
    fluxerr: np.ndarray
    noise_ratio: float

    @property
    def zero_point_ab(self) -> float:
        """Of the stored values: those of the file divided by sigma."""
        return self.band.zero_point_ab - 2.5 * math.log10(self.sigma)


def main(argv: list[str]) -> int | None:
    args = parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's stop is a Ctrl-C
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)  # of headers that it mends; what it cannot read is an error
        summary = convert(args, argv)
    print(json.dumps(summary, indent=1))
    return None


def convert(args: argparse.Namespace, argv: list[str]) -> dict:
    """Do all that the command line asks for, and say what was done."""
    survey = load_survey(args.survey)
    files = find_files(survey, args.images)
    grid = check_aligned(survey, files)
    check_size(args.size, survey, grid)
    field = args.images.resolve().name
    if not args.dry_run:
        check_out(args.out)

    sources, known, invalid = find_sources(survey, args, files, grid)
    sources, dropped = keep_whole(sources, args.size, grid)
    if not args.dry_run:
        read = inputs(survey, args)
        plan = make_plan(args, field, read)
        check_begun(args.out, plan)
    dtype = ENCODINGS[args.encoding]
    measure = partial(measure_band, survey, args.images, dtype, xy=np.stack([sources["x"], sources["y"]], 1))
    planes = in_threads(measure, survey.bands, args.workers, "bands")
    sources, blank = keep_observed(sources, planes, args.size)
    sources = describe(sources, survey, field)
    sources["split"], splits = split(sources, survey, args.size)

    manifest = with_images(make_manifest(survey, planes, sources, known, args.size), args.encoding)
    shards = math.ceil(len(sources["x"]) / args.samples_per_shard)
    summary = {
        "out": str(args.out), "samples": len(sources["x"]), "shards": shards,
        "dropped": {**dropped, "without a good pixel": blank}, "invalid": invalid, "size": args.size,
        "tile": list(grid.shape), "wcs": grid.wcs is not None, "splits": splits["counts"],
        "labelled": int(np.isfinite(sources["z"]).sum()),
        "bands": [{"name": p.band.name, "file": files[p.band.name].name, "zero_point_ab": round(p.zero_point_ab, 4),
                   "aperture_to_pixel_noise": round(p.noise_ratio, 3)} for p in planes],
    }  # fmt: skip
    if args.dry_run:
        return {**summary, "dry_run": True, "bytes": estimate_bytes(manifest, summary["samples"])}
    provenance = {
        "tool": "data_tools.convert", "arguments": argv, "survey": survey.text, "policy": policy(survey),
        "inputs": read, "versions": {"python": platform.python_version(), **versions(*MEASURING, *WRITING)},
        "dropped": summary["dropped"], "invalid": invalid,
        "bands": {p.band.name: {"scale": 1 / p.sigma, "aperture_to_pixel_noise": p.noise_ratio,
                                "uncertain": p.band.uncertain} for p in planes},
    }  # fmt: skip
    manifest = dataclasses.replace(manifest, provenance=provenance)
    written = write(manifest, plan, sources, planes, args, shards, splits)
    return {**summary, "bytes": sum(shard.bytes for shard in written.shards)}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data_tools.convert", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--survey", required=True, help="TOML file that describes the survey, or the name of a built-in one"
    )
    parser.add_argument("--catalog", type=Path, help="table of the objects; without it sources are detected")
    parser.add_argument("--images", required=True, type=Path, help="folder of the tiles")
    parser.add_argument("--out", required=True, type=Path, help="dataset to write")
    parser.add_argument("--size", type=int, default=64, help="side of a cutout in pixels, even (default 64)")
    parser.add_argument("--workers", type=int, default=2, help="threads (default 2)")
    parser.add_argument("--samples_per_shard", type=int, default=1000, help="default 1000")
    parser.add_argument("--encoding", choices=ENCODINGS, default="raw", help="of the images (default raw)")
    parser.add_argument("--dry_run", action="store_true", help="say what would be written, and write nothing")
    args = parser.parse_args(argv)
    args.survey = str(survey_path(args.survey))
    if args.size < 2 or args.size % 2:
        raise InputError(f"size: {args.size} must be even and at least 2; the centre is pixel size / 2")
    for name in ("workers", "samples_per_shard"):
        if getattr(args, name) < 1:
            raise InputError(f"{name}: {getattr(args, name)} must be at least 1")
    return args


def check_size(size: int, survey: Survey, grid: Grid) -> None:
    """Raises InputError for cutouts that do not fit the tile or, with the gap around them, the cells of the splits."""
    if size > min(grid.shape):
        raise InputError(f"size: {size} is larger than the tile, {list(grid.shape)} pixels; give a smaller size")
    needed = 4 * size * math.sqrt(2) * survey.pixel_scale_arcsec / 60
    if survey.splits.cell_arcmin < needed:
        cell = survey.splits.cell_arcmin
        raise InputError(
            f"splits.cell_arcmin: {cell} is too small for cutouts of {size} pixels; use at least {needed:.3g}"
        )


def find_sources(survey: Survey, args: argparse.Namespace, files: dict[str, Path], grid: Grid) -> tuple:
    """Columns object_id, x, y, label and what else the catalogue holds, [N] each; what they are; numbers that became
    missing. Detected where there is no catalogue."""
    if args.catalog is not None:
        if survey.catalog is None:
            raise InputError(f"catalog: {args.survey!r} has no [catalog] section; add one that names the columns")
        return read_catalog(args.catalog, survey, grid)
    if survey.detection is None:
        raise InputError(f"catalog: none given, and {args.survey!r} has no [detection] section; give one of the two")
    band = survey.bands[survey.band_number(survey.detection.band)]
    pixels, flags = read_band(band, args.images)
    sky = measure_sky(pixels, flags, survey.photometry.background_box_px, band.name)
    x, y = detect(pixels, flags, sky, survey.detection, survey.pixel_scale_arcsec).T
    found = {"object_id": np.arange(len(x), dtype=np.int64), "x": x, "y": y, **to_sky(grid, x, y)}
    return found | label(found, ["spec"]), {}, {}


def read_catalog(path: Path, survey: Survey, grid: Grid) -> tuple:
    """What find_sources returns, of a catalogue. Raises InputError also for a repeated object_id."""
    if survey.catalog.sky and grid.wcs is None:
        raise InputError("catalog.ra: positions on the sky need a WCS, and the tiles have none; name x and y instead")
    catalog = open_catalog(path, survey.catalog, match=survey.match, say=lambda text: print(text, file=sys.stderr))
    chunks = list(catalog.chunks())
    found = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in catalog.columns}
    unique, counts = np.unique(found["object_id"], return_counts=True)
    if (counts > 1).any():
        twice = unique[counts > 1][0].item()
        raise InputError(f"catalog.object_id: {twice!r} stands more than once; name a column of unique ids")
    if survey.catalog.sky:
        found["x"], found["y"] = to_pixels(grid, found["ra"], found["dec"])
    else:
        found |= to_sky(grid, found["x"], found["y"])
    return (
        found,
        catalog.columns,
        {name: number for name, number in catalog.invalid.items() if name not in ("ra", "dec")},
    )


def to_pixels(grid: Grid, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """0-based pixels of ICRS positions; NaN where the projection has none or the position is none."""
    x, y = np.full(len(ra), np.nan), np.full(len(ra), np.nan)
    valid = np.isfinite(ra)
    x[valid], y[valid] = sky_to_pixel(grid.wcs, SkyCoord(ra[valid], dec[valid], unit="deg", frame="icrs"))
    return x, y


def to_sky(grid: Grid, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """{ra, dec}, ICRS in degrees, of 0-based pixels; nothing without a WCS."""
    if grid.wcs is None:
        return {}
    sky = grid.wcs.pixel_to_world(x, y).icrs
    return {"ra": sky.ra.deg, "dec": sky.dec.deg}


def keep_whole(sources: dict[str, np.ndarray], size: int, grid: Grid) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The sources whose cutout lies in the tile, and how many were dropped, by reason."""
    placed = np.isfinite([sources[name] for name in ("x", "y", "ra", "dec") if name in sources]).all(0)
    inside = placed & fits_inside(sources["x"], sources["y"], size, grid.shape)
    if not inside.any():
        fix = "check the position columns, or give a smaller size"
        raise InputError(f"catalog: none of {len(placed)} objects has its cutout of {size} pixels in the tile; {fix}")
    dropped = {"without a position": int((~placed).sum()), "cutout leaves the tile": int((placed & ~inside).sum())}
    return {name: values[inside] for name, values in sources.items()}, dropped


def read_band(band: BandSource, images: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels float32 and flags uint8, [H, W] each, of one band."""
    path, where = find_file(images, band, "file"), f"bands.{band.name}."
    pixels = read_image(path, band.hdu, where)
    weight = None
    if band.weight_file:
        path = find_file(images, band, "weight_file")
        weight = read_image(path, band.weight_hdu, f"{where}weight_")
        if weight.shape != pixels.shape:
            sizes = f"{list(weight.shape)}, but its image is {list(pixels.shape)}"
            raise InputError(f"{where}weight_file: {str(path)!r} is {sizes}; give the weights of this image")
    return pixels, flag_pixels(pixels, weight, band.saturation)


def measure_band(survey: Survey, images: Path, dtype: str, band: BandSource, xy: np.ndarray) -> Plane:
    """Read one band, measure its sky and the sources at xy [N, 2] (0-based pixels), and scale it for storage."""
    pixels, flags = read_band(band, images)
    sky = measure_sky(pixels, flags, survey.photometry.background_box_px, band.name)
    residual, sigma = pixels - sky.level, sky.sigma
    radius = survey.photometry.aperture_diameter_arcsec / 2 / survey.pixel_scale_arcsec
    flux, noise = aperture_flux(residual, flags, xy, radius), aperture_noise(residual, flags, radius)
    column, row = nearest_pixel(xy).T
    local = sky.rms[row, column] / sigma  # the depth varies over a tile, the correlation of its noise hardly
    ujy = 10 ** (-0.4 * (band.zero_point_ab - ZERO_POINT_UJY))
    fluxerr = np.where(np.isfinite(flux), noise * local * ujy, np.nan)
    stored, flags = to_stored(residual if survey.subtract_background else pixels, flags, 1 / sigma, dtype)
    noise_ratio = noise / (sigma * math.sqrt(noise_area(radius)))
    return Plane(band, stored, flags, sigma, (flux * ujy).astype(np.float32), fluxerr.astype(np.float32), noise_ratio)


def keep_observed(sources: dict[str, np.ndarray], planes: list[Plane], size: int) -> tuple[dict[str, np.ndarray], int]:
    """The sources with a good pixel in any band, and how many have none; adds bands_observed, flux and fluxerr."""
    bits = np.zeros(len(sources["x"]), np.uint32)
    for n, (x, y) in enumerate(zip(sources["x"], sources["y"], strict=True)):
        good = (cut([plane.flags for plane in planes], x, y, size) == 0).any((1, 2))
        bits[n] = (good << np.arange(len(planes))).sum()
    columns = {**sources, "bands_observed": bits}
    for plane in planes:
        columns[f"flux_{plane.band.name}"], columns[f"fluxerr_{plane.band.name}"] = plane.flux, plane.fluxerr
    if not bits.any():
        raise InputError(f"catalog: none of {len(bits)} objects has a good pixel; check the positions and the tiles")
    return {name: values[bits > 0] for name, values in columns.items()}, int((bits == 0).sum())


def describe(sources: dict[str, np.ndarray], survey: Survey, field: str) -> dict[str, np.ndarray]:
    """`sources` with survey, field, mag_ref and, where the sky position is known, healpix."""
    number = len(sources["x"])
    flux = sources[f"flux_{survey.photometry.band}"].astype(np.float64)
    magnitude = ZERO_POINT_UJY - 2.5 * np.log10(flux, where=flux > 0, out=np.full(number, np.nan))
    columns = {**sources, "mag_ref": magnitude.astype(np.float32)}
    columns["survey"] = np.full(number, survey.name)
    columns["field"] = np.full(number, field)
    if "ra" in sources:
        columns["healpix"] = lonlat_to_healpix(sources["ra"] * u.deg, sources["dec"] * u.deg, 2**29, order="nested")
    return columns


def split(sources: dict[str, np.ndarray], survey: Survey, size: int) -> tuple[np.ndarray, dict]:
    """The split of each source [N], and what the manifest says of the splits. The gap is a cutout's diagonal."""
    rule, gap_px = survey.splits, size * math.sqrt(2)
    if "ra" in sources:
        order = max(0, math.floor(math.log2(HEALPIX_SIDE_ARCMIN / rule.cell_arcmin)))
        names, _ = assign_splits(
            sources["ra"], sources["dec"], gap_arcsec=gap_px * survey.pixel_scale_arcsec, order=order,
            fractions=rule.fractions, seed=rule.seed,
        )  # fmt: skip
        cells = {"rule": "hash", "healpix_order": order}
    else:
        cell_px = rule.cell_arcmin * 60 / survey.pixel_scale_arcsec
        names, _ = assign_splits_pixels(
            sources["x"], sources["y"], gap_px=gap_px, cell_px=cell_px, fractions=rule.fractions, seed=rule.seed
        )
        cells = {"rule": "balanced", "cell_px": cell_px}
    counts = {name: int(np.sum(names == name)) for name in (*rule.fractions, GAP)}
    return names, {"counts": counts, **cells, "gap_px": gap_px, "fractions": rule.fractions, "seed": rule.seed}


def make_manifest(survey: Survey, planes: list[Plane], sources: dict, known: dict[str, Column], size: int) -> Manifest:
    shape = (len(planes), size, size)
    bands = tuple(
        Band(
            name=plane.band.name,
            wavelength_nm=plane.band.wavelength_nm,
            width_nm=plane.band.width_nm,
            zero_point_ab=plane.zero_point_ab,
            pixel_scale_arcsec=survey.pixel_scale_arcsec,
            a_over_ebv=plane.band.a_over_ebv,
            sky_sigma=1.0,
            psf_fwhm_arcsec=plane.band.psf_fwhm_arcsec,
        )
        for plane in planes
    )
    arrays = {
        "image": Array(
            "image", planes[0].stored.dtype.name, shape, unit="flux: m_AB = zero_point_ab - 2.5 log10(image)"
        ),
        "image_mask": Array("mask", "uint8", shape, bits=MASK_BITS),
    }
    return Manifest(arrays=arrays, bands=bands, columns=columns(survey, sources, known))


def columns(survey: Survey, sources: dict[str, np.ndarray], of_catalog: dict[str, Column]) -> dict[str, Column]:
    """What each scalar column is, in the order in which they are written."""
    reference, aperture = survey.photometry.band, f"{survey.photometry.aperture_diameter_arcsec:g} arcsec aperture"
    known = {
        **COLUMNS,
        "object_id": Column("int64", "", "number of the detection"),
        **of_catalog,
        "healpix": Column("int64", "", "order 29, nested, ICRS"),
        "survey": Column("string", "", "survey"),
        "field": Column("string", "", "tile"),
        "split": Column("string", "", "sky cell's split; gap: too near to another split to use"),
        "bands_observed": Column("uint32", "", "bit b is set where band b has a good pixel"),
        "mag_ref": Column("float32", "AB mag", f"{reference} band, {aperture}, not total; NaN without a positive flux"),
    }
    for band in survey.bands:
        known[f"flux_{band.name}"] = Column("float32", "uJy", f"{aperture}, sky subtracted, not dereddened")
        known[f"fluxerr_{band.name}"] = Column("float32", "uJy", "background noise of the aperture")
    return {name: column for name, column in known.items() if name in sources}


def estimate_bytes(manifest: Manifest, samples: int) -> int:
    """Bytes of the tars: a header of 512 and 128 of npy a member, padded to 512, and the scalars' copy."""
    arrays = manifest.arrays.values()
    sizes = [COMPACT_BYTES * math.prod(array.shape) if array.compact else array.nbytes for array in arrays]
    members = [512 + math.ceil((128 + size) / 512) * 512 for size in sizes]
    scalars = 512 + -(-32 * len(manifest.columns) // 512) * 512
    return samples * (sum(members) + scalars)


def policy(survey: Survey) -> dict[str, str]:
    return {**POLICY, "background": "subtracted" if survey.subtract_background else "not subtracted from the cutouts"}


def write(manifest, plan, sources, planes, args, shards, splits) -> Manifest:
    """Write what is not there yet."""
    writer = DatasetWriter(args.out, manifest, plan)
    if writer.complete:
        print(f"{args.out} is complete already", file=sys.stderr)
        return Manifest.load(args.out)
    todo = [n for n in range(shards) if not writer.done(n)]
    in_threads(partial(write_shard, writer, sources, planes, args), todo, args.workers, "shards")
    return writer.finish(shards, splits)


def write_shard(writer: DatasetWriter, sources, planes: list[Plane], args: argparse.Namespace, n: int) -> None:
    rows = slice(n * args.samples_per_shard, (n + 1) * args.samples_per_shard)
    part = {name: sources[name][rows] for name in writer.manifest.columns}
    keys = [f"{rows.start + i:09d}" for i in range(len(part["x"]))]
    centres = list(zip(part["x"], part["y"], strict=True))
    arrays = {
        "image": [cut([plane.stored for plane in planes], x, y, args.size) for x, y in centres],
        "image_mask": [cut([plane.flags for plane in planes], x, y, args.size) for x, y in centres],
    }
    writer.write_shard(n, keys, arrays, part)


if __name__ == "__main__":
    run(main, resumes=True)
