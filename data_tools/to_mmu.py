"""Dataset -> Multimodal Universe HDF5 files: FOLDER/healpix=N/001-of-001.hdf5, N of nside 16, nested.

    python -m data_tools.to_mmu DATASET --out FOLDER [--where FILTER] [--ids FILE] [--rows 0:100]

The name of FOLDER is that of the survey. FOLDER/bands.toml holds the zero points, which the layout has no place for,
and is what data_tools.from_mmu needs. An interrupted export goes on when the same command is given again.
"""

import argparse
import hashlib
import json
import math
import os
import signal
from pathlib import Path

import astropy.units as u
import h5py
import numpy as np
from astropy_healpix import lonlat_to_healpix

from data_tools import selection
from data_tools.bands import bands_toml
from data_tools.inputs import versions
from data_tools.selection import Named
from data_tools.tiles import MASK_BITS
from jaxz.data.dataset import Dataset, open_dataset
from jaxz.data.manifest import Manifest
from jaxz.data.stream import Stream
from jaxz.errors import InputError, run
from jaxz.files import read_json, replace
from jaxz.progress import progress

NSIDE = 16
OWN = ("image", "image_mask", "bands_observed", "key")  # which the layout has its own of, or makes anew


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(prog="python -m data_tools.to_mmu", description=__doc__.split("\n\n")[0])
    selection.add_arguments(parser)
    parser.add_argument("--out", required=True, type=Path, help="folder to write, named as the survey")
    parser.add_argument("--dry_run", action="store_true", help="say what would be written, and write nothing")
    args = parser.parse_args(argv)
    dataset = open_dataset(args.dataset)
    check(dataset.manifest)
    rows = selection.select(dataset, args)
    position = dataset.scan(columns=("ra", "dec")).columns
    ra, dec = position["ra"][rows], position["dec"][rows]
    if not (np.isfinite(ra) & np.isfinite(dec)).all():
        raise InputError("where: some rows have no position, by which the files are laid out; add 'isfinite(ra)'")
    pixels = lonlat_to_healpix(ra * u.deg, dec * u.deg, NSIDE, order="nested")
    cells = np.unique(pixels)
    summary = {"out": str(args.out), "samples": len(rows), "files": len(cells)}
    if args.dry_run:
        print(json.dumps({**summary, "dry_run": True}, indent=1))
        return None
    begin(args.out, dataset, rows, argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's stop is a Ctrl-C
    pixels_beside = len(rows) * math.prod(dataset.manifest.arrays["image"].full_shape) * 5  # ivar, image_mask
    needed = selection.output_bytes(dataset.manifest, len(rows)) + pixels_beside
    with selection.reading(dataset) as stream, selection.room_at(args.out, needed):
        for cell in progress(cells.tolist(), len(cells), "files"):
            path = args.out / f"healpix={cell}" / "001-of-001.hdf5"
            if not path.exists():
                write_file(path, stream, rows[pixels == cell], cell)
    print(json.dumps(summary, indent=1))
    return None


def check(manifest: Manifest) -> None:
    """Raises InputError for a dataset that is no catalogue of images of the sky."""
    image = manifest.arrays.get("image")
    if image is None or np.dtype(image.dtype).kind != "f" or not manifest.bands:
        raise InputError("dataset: it has no image of fluxes with bands; export it with data_tools.export")
    if missing := {"ra", "dec", "object_id"} - manifest.columns.keys():
        raise InputError(f"dataset: it has no column {sorted(missing)[0]!r}, which this layout needs")
    if "image_mask" in manifest.arrays and manifest.arrays["image_mask"].shape != image.shape:
        raise InputError(f"arrays.image_mask.shape: {manifest.arrays['image_mask'].shape} is not the image's")
    if unknown := [band.name for band in manifest.bands if not band.sky_sigma > 0]:
        raise InputError(f"bands.{unknown[0]}.sky_sigma: must be positive, the inverse variances need it; measure it")


def begin(out: Path, dataset: Dataset, rows: np.ndarray, argv: list[str]) -> None:
    """Write what says which export this is. Raises InputError where `out` holds another, or something else."""
    digest = hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:16]
    plan = {"dataset": dataset.fingerprint()["rows"], "selection": digest}
    marker = out / "export.json"
    if marker.exists():
        if read_json(marker, "what an export to MMU says of itself").get("plan") != plan:
            raise InputError(f"out: {str(out)!r} holds an export of other rows; choose another folder")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out: {str(out)!r} exists and is no export to MMU; choose an empty folder")
    out.mkdir(parents=True, exist_ok=True)
    about = {"plan": plan, "tool": "data_tools.to_mmu", "arguments": argv, "versions": versions("numpy", "h5py")}
    replace(out / "bands.toml", bands_toml(dataset.manifest.bands).encode())
    replace(marker, json.dumps(about, indent=1).encode())


def write_file(path: Path, stream: Stream, rows: np.ndarray, cell: int) -> None:
    """Write the file of one HEALPix cell: there whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    manifest = stream.sources[0].dataset.manifest
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            at = 0
            for some, arrays, scalars in selection.batches(stream, rows):
                for name, values in fields(manifest, arrays, scalars, cell).items():
                    selection.append(file, name, values, at, len(rows))
                at += len(some)
            for name in manifest.columns.keys() & file.keys() - {"healpix"}:
                column = manifest.columns[name]
                file[name].attrs.update({"unit": column.unit, "description": column.description})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def fields(manifest: Manifest, arrays: Named, scalars: Named, cell: int) -> Named:
    """{field: [N, ...]} of the MMU layout."""
    image, bands = arrays["image"].astype(np.float32), manifest.bands
    flags = observed(manifest, arrays, scalars)
    good = flags == 0
    sigma = per_band(scalars, "sky_sigma", [band.sky_sigma for band in bands], manifest)
    found = {
        "image_band": np.tile(np.char.encode([band.name for band in bands], "utf-8"), (len(image), 1)),
        "image_array": np.where(np.isfinite(image), image, np.float32(0)),
        "image_ivar": np.where(good, (1 / sigma**2)[:, :, None, None], 0).astype(np.float32),
        "image_mask": good,
        "image_mask_bits": flags,
        "image_psf_fwhm": per_band(scalars, "psf_fwhm", [band.psf_fwhm_arcsec for band in bands], manifest),
        "image_scale": np.tile(np.array([band.pixel_scale_arcsec for band in bands], np.float32), (len(image), 1)),
        "healpix": np.full(len(image), cell, np.int64),
    }
    rest = {name: values for name, values in {**arrays, **scalars}.items() if name not in OWN}
    return found | {name: values for name, values in rest.items() if name not in found}


def observed(manifest: Manifest, arrays: Named, scalars: Named) -> np.ndarray:
    """uint8 [N,C,H,W] of MASK_BITS; those of a dataset whose mask has other bits are all bad."""
    image = arrays["image"]
    flags = arrays.get("image_mask", np.zeros(image.shape, np.uint8))
    if "image_mask" in arrays and manifest.arrays["image_mask"].bits != MASK_BITS:
        flags = (flags != 0) * np.uint8(MASK_BITS["bad"])
    flags = flags | ~np.isfinite(image) * np.uint8(MASK_BITS["nodata"])
    if "bands_observed" in scalars:
        lacking = (scalars["bands_observed"][:, None] >> np.arange(len(manifest.bands), dtype=np.uint32) & 1) == 0
        flags |= (lacking[:, :, None, None] & (flags == 0)) * np.uint8(MASK_BITS["nodata"])
    return flags


def per_band(scalars: Named, what: str, constant: list[float], manifest: Manifest) -> np.ndarray:
    """float32 [N,C] of a quantity: the column <what>_<band> where there is one and it is known, else the band's."""
    count = len(scalars["key"])
    columns = []
    for band, value in zip(manifest.bands, constant, strict=True):
        own = scalars.get(f"{what}_{band.name}", np.full(count, np.nan))
        columns.append(np.where(np.isfinite(own) & (own > 0), own, value))
    return np.stack(columns, 1).astype(np.float32)


if __name__ == "__main__":
    run(main, resumes=True)
