"""What a converted dataset is going to be: its manifest, its policy, and what it takes on a disk."""

import argparse
import math
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy_healpix import lonlat_to_healpix

from data_tools.catalogs.catalog import COLUMNS
from data_tools.cutting import measured_name
from data_tools.plan import Plan, objects_of
from data_tools.splits import GAP, healpix_order
from data_tools.survey import Survey
from data_tools.tiles import MASK_BITS, Tile
from jaxz.data.manifest import ZERO_POINT_UJY, Array, Band, Column, Manifest
from jaxz.data.writer import ENCODINGS, with_images

FIRST = (
    "object_id", "ra", "dec", "healpix", "x", "y", "survey", "field", "split", "bands_observed", "mag_ref",
)  # fmt: skip
CELLS_A_SPLIT = 5  # of the smallest fraction, with which it is not far off
COMPACT_BYTES = 0.8  # of a pixel, about
POLICY = {
    "centring": "integer: the nearest pixel to (x, y) is pixel [size // 2, size // 2]; x, y keep the exact centre",
    "edges": "past the edge of its tile a cutout is 0 with the bit nodata",
    "overlaps": "an object on several tiles is cut from that with the most good pixels in its cutout, to about 1 % of "
    "those of all bands, of equal ones from that whose centre is nearest",
    "order": "blocks of tiles drawn at random from the survey; the objects of a block are shuffled",
    "unit": "stored = flux in units of the survey's typical background sigma per pixel, one zero point a band",
    "mask": "nodata: NaN in the file, or past its edge; bad: infinite or without weight, or as the survey's mask says; "
    "saturated: past the survey's level or float16's",
    "photometry": "circular apertures on the exact centres, sky subtracted; fluxerr is that of empty apertures",
}
RESAMPLED = {
    "no": "none: all bands of a tile lie on one pixel grid",
    "reproject": "bicubic, or averaged to larger pixels, flux conserved, to the grid of the band at pixel_scale_arcsec",
    "native": "none: every band is cut at its own pixel scale; x_<band>, y_<band> are the centres on its own tile",
}


def policy(survey: Survey) -> dict[str, str]:
    background = "subtracted" if survey.subtract_background else "not subtracted from the cutouts"
    return {**POLICY, "background": background, "resampling": RESAMPLED[survey.resample]}


def make_manifest(survey: Survey, plan: Plan, placed: set[str], args: argparse.Namespace) -> Manifest:
    """placed: the columns that the plan has for each object."""
    shape = (len(survey.bands), args.size, args.size)
    bands = tuple(
        Band(
            name=band.name,
            wavelength_nm=band.wavelength_nm,
            width_nm=band.width_nm,
            zero_point_ab=ZERO_POINT_UJY - 2.5 * math.log10(plan.sigma_ujy[band.name]),
            pixel_scale_arcsec=survey.stored_scale(band),
            a_over_ebv=band.a_over_ebv,
            sky_sigma=1.0,
            psf_fwhm_arcsec=band.psf_fwhm_arcsec,
        )
        for band in survey.bands
    )
    unit = "flux: m_AB = zero_point_ab - 2.5 log10(image)"
    arrays = {
        "image": Array("image", ENCODINGS[args.encoding], shape, unit=unit),
        "image_mask": Array("mask", "uint8", shape, bits=MASK_BITS),
    }
    columns = describe_columns(survey, plan, placed)
    return with_images(Manifest(arrays=arrays, bands=bands, columns=columns), args.encoding)


def describe_columns(survey: Survey, plan: Plan, placed: set[str]) -> dict[str, Column]:
    """What each scalar column is, in the order in which they are written. placed: those that the plan has."""
    reference, aperture = survey.photometry.band, f"{survey.photometry.aperture_diameter_arcsec:g} arcsec aperture"
    of = plan.columns[own].description if (own := f"flux_{reference}") in plan.columns else f"{aperture}, not total"
    made = {
        "survey": Column("string", "", "survey"),
        "field": Column("string", "", "tile"),
        "split": Column("string", "", "sky cell's split; gap: too near to another split to use"),
        "bands_observed": Column("uint32", "", "bit b is set where band b has a good pixel"),
        "mag_ref": Column("float32", "AB mag", f"{reference} band, {of}; NaN without a positive flux"),
    }
    if "ra" in placed:
        made["healpix"] = Column("int64", "", "order 29, nested, ICRS")
    position = {"ra", "dec", "x", "y"} & placed
    given = {name: column for name, column in COLUMNS.items() if name in position} | plan.columns
    given.pop("tile", None)
    known = made | given
    found = {name: known[name] for name in FIRST if name in known}
    found |= {name: column for name, column in given.items() if name not in found}
    kind = measured_name(given)
    for band in survey.bands:
        found[kind("flux", band.name)] = Column("float32", "uJy", f"{aperture}, sky subtracted, not dereddened")
        found[kind("fluxerr", band.name)] = Column("float32", "uJy", "background noise of the aperture")
        found[f"sky_sigma_{band.name}"] = Column("float32", "stored", "background sigma per pixel at the object")
        if band.psf_fwhm_header:
            found[f"psf_fwhm_{band.name}"] = Column("float32", "arcsec", "of the tile, as its header says")
        if survey.resample == "native":
            for axis in "xy":
                found[f"{axis}_{band.name}"] = Column(
                    "float64", "pixel", "exact centre on the band's own tile, 0-based"
                )
    return found


def count_splits(work: Path, plan: Plan, survey: Survey) -> dict:
    """{splits: {name: objects}, cells: those of the sky or of the tiles that hold an object, labelled: objects}, before
    anything is cut. Without positions there are no cells."""
    counts, cells, labelled = dict.fromkeys((*survey.splits.fractions, GAP), 0), [], 0
    for n in range(len(plan.blocks)):
        table = objects_of(work, n)
        columns = {name: table[name].to_numpy() for name in table.column_names if name not in ("object_id", "image")}
        for name, number in zip(*np.unique(columns["split"], return_counts=True), strict=True):
            counts[name] += int(number)
        labelled += int(np.isfinite(columns["z"]).sum())
        if "ra" in columns:
            order = healpix_order(survey.splits.cell_arcmin)
            place = lonlat_to_healpix(columns["ra"] * u.deg, columns["dec"] * u.deg, 2**order, order="nested")[None]
        elif "x" in columns:
            cell_px = survey.splits.cell_arcmin * 60 / survey.pixel_scale_arcsec
            place = np.stack([columns["tile"], columns["x"] // cell_px, columns["y"] // cell_px])
        else:
            continue
        cells.append(np.unique(place, axis=1))
    found = {"cells": np.unique(np.concatenate(cells, 1), axis=1).shape[1]} if cells else {}
    return {"splits": counts, **found, "labelled": labelled}


def split_problem(found: dict, survey: Survey, size: int) -> str:
    """What is wrong with the splits that `count_splits` found, and what to do; empty where each has at least half of
    its fraction, of the objects outside of the gap."""
    fractions, counts = survey.splits.fractions, found["splits"]
    total = sum(counts[name] for name in fractions)
    if "cells" not in found or all(counts[name] >= 0.5 * fraction * total > 0 for name, fraction in fractions.items()):
        return ""
    cell = survey.splits.cell_arcmin
    wanted = cell * math.sqrt(found["cells"] * min(fractions.values()) / CELLS_A_SPLIT)
    least = math.ceil(100 * least_cell_arcmin(size, survey)) / 100
    fix = (
        f"splits.cell_arcmin = {max(math.floor(100 * wanted) / 100, least)}" if least < 0.75 * cell else "fewer splits"
    )
    return (
        f"splits: {counts} in {found['cells']} cells of {cell:g} arcmin, asked for {fractions}; try {fix}, or folds of "
        "balanced cells (data_tools.relabel --folds)"
    )


def least_cell_arcmin(size: int, survey: Survey) -> float:
    """Side of the smallest cells of which the gap, a cutout's diagonal at the coarsest scale, takes a quarter."""
    return 4 * size * math.sqrt(2) * survey.coarsest_arcsec / 60


def estimate(manifest: Manifest, plan: Plan, tiles: list[Tile]) -> dict:
    """What the dataset and, beside it, the largest block take: bytes and files."""
    images = manifest.arrays["image"]
    pixels = math.prod(images.full_shape)
    arrays = [COMPACT_BYTES * pixels if images.compact else images.nbytes, pixels]
    members = [512 + math.ceil((128 + size) / 512) * 512 for size in arrays]
    scalars = 512 + -(-32 * len(manifest.columns) // 512) * 512
    largest = max(block.objects for block in plan.blocks)
    largest_block = max(len(block.tiles) for block in plan.blocks)
    return {
        "samples": plan.objects,
        "shards": plan.shards,
        "tiles": len(tiles),
        "blocks": len(plan.blocks),
        "bands": [
            {"name": band.name, "tiles": sum(band.name in tile.files for tile in tiles),
             "zero_point_ab": round(band.zero_point_ab, 4)}
            for band in manifest.bands
        ],
        "bytes": plan.objects * (sum(members) + scalars),
        "work_bytes": largest * (images.nbytes + pixels),
        "files": 2 * plan.shards + len(plan.blocks) + (3 * largest_block + len(tiles)) * len(manifest.bands),
    }  # fmt: skip
