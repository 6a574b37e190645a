"""Some objects of a dataset -> a folder of FITS cubes, or one HDF5 file, in microjansky.

    python -m data_tools.export DATASET --out FOLDER    [--where FILTER] [--ids FILE] [--rows 0:100]
    python -m data_tools.export DATASET --out FILE.hdf5 [--where FILTER] [--ids FILE] [--rows 0:100]

A FITS file per object: the cube with its WCS, its mask, other arrays, a table of the scalars. The output appears whole
or not at all; one that exists is refused. docs/formats.md has the layouts.
"""

import argparse
import csv
import dataclasses
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from data_tools import selection
from data_tools.inputs import versions
from data_tools.selection import Named
from jaxz.data.astropy_views import fits_unit
from jaxz.data.dataset import open_dataset
from jaxz.data.manifest import ZERO_POINT_UJY, Array, Band, Manifest
from jaxz.data.stream import Stream
from jaxz.errors import InputError, run
from jaxz.progress import progress

UNIT = "uJy"
HDF5 = (".hdf5", ".h5")
WIDER = {"float16": "float32", "int8": "int16", "bool": "uint8"}  # what FITS images lack

Scalars = Mapping[str, Any]  # of one object


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(prog="python -m data_tools.export", description=__doc__.split("\n\n")[0])
    selection.add_arguments(parser)
    parser.add_argument("--out", required=True, type=Path, help="folder of FITS files, or FILE.hdf5")
    parser.add_argument("--dry_run", action="store_true", help="say what would be written, and write nothing")
    args = parser.parse_args(argv)
    if args.out.suffix and args.out.suffix not in HDF5:
        raise InputError(f"out: {str(args.out)!r} must be a folder, for FITS, or end in {' or '.join(HDF5)}")
    if args.out.exists():
        raise InputError(f"out: {str(args.out)!r} exists; choose another name")
    if not args.out.absolute().parent.is_dir():
        raise InputError(f"out: {str(args.out.parent)!r} is no folder; make it first")
    dataset = open_dataset(args.dataset)
    rows = selection.select(dataset, args)
    nbytes = selection.output_bytes(dataset.manifest, len(rows))
    summary = {"out": str(args.out), "objects": len(rows), "bytes_of_arrays": nbytes}
    if not args.dry_run:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's stop is a Ctrl-C
        with selection.reading(dataset) as stream, selection.room_at(args.out, nbytes):
            if args.out.suffix:
                whole(args.out, lambda path: write_hdf5(path, stream, rows, argv))
            else:
                whole(args.out, lambda path: write_fits(path, stream, rows))
    print(json.dumps(summary | ({"dry_run": True} if args.dry_run else {}), indent=1))
    return None


def whole(out: Path, write: Callable[[Path], None]) -> None:
    """write(path) to a file or folder beside `out`, which becomes `out` once it is whole."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.rename(temporary, out)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def in_units(manifest: Manifest, arrays: Named, scalars: Named) -> dict[str, tuple[np.ndarray, str]]:
    """{name: (values [N, ...], unit)}: images of fluxes as float32 in microjansky, NaN where nothing was observed;
    saturated pixels keep their value. Other arrays are as they are stored."""
    found = {}
    for name, values in arrays.items():
        array = manifest.arrays.get(name)
        if array is None or not is_flux(array, manifest):
            found[name] = (values, array.unit if array else "")
            continue
        factor = np.array([band.ujy_per_unit for band in manifest.bands], np.float32)[:, None, None]
        unseen = ~np.isfinite(values)
        if f"{name}_mask" in arrays:
            unseen |= lost(arrays[f"{name}_mask"], manifest.arrays[f"{name}_mask"])
        if "bands_observed" in scalars:
            seen = scalars["bands_observed"][:, None] >> np.arange(len(manifest.bands), dtype=np.uint32) & 1
            unseen |= (seen == 0)[:, :, None, None]
        found[name] = (np.where(unseen, np.float32(np.nan), values.astype(np.float32) * factor), UNIT)
    return found


def lost(mask: np.ndarray, spec: Array) -> np.ndarray:
    """bool [N,C,H,W], or [N,1,H,W] of a mask of all bands: where any bit is set but that of saturation. A mask of other
    writers may have any type and number of bits."""
    if mask.dtype.kind in "iub":
        mask = mask.astype(np.int64) & ~(spec.bits or {}).get("saturated", 0)
    return (mask != 0)[:, None] if mask.ndim == 3 else mask != 0


def is_flux(array: Array, manifest: Manifest) -> bool:
    return (
        array.kind == "image" and np.dtype(array.dtype).kind == "f" and len(array.shape) == 3 and bool(manifest.bands)
    )


def write_fits(folder: Path, stream: Stream, rows: np.ndarray) -> None:
    """A file per object, and index.csv, which says whose each is."""
    folder.mkdir()
    names = []
    for arrays, scalars in progress(each(stream, rows), len(rows), "objects"):
        hdus = cube(stream.sources[0].dataset.manifest, arrays, scalars)
        for hdu in hdus:
            hdu.add_checksum(when="of this HDU")  # instead of the time: equal content is an equal file
        path = file_name(folder, scalars)
        hdus.writeto(path)
        names.append((path.name, scalars["key"], scalars.get("object_id", "")))
    with open(folder / "index.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "key", "object_id"), *names])


def each(stream: Stream, rows: np.ndarray) -> Iterator[tuple[dict[str, tuple[np.ndarray, str]], Scalars]]:
    """(arrays {name: (values, unit)}, scalars {name: value}) of every object."""
    for some, arrays, scalars in selection.batches(stream, rows):
        values = in_units(stream.sources[0].dataset.manifest, arrays, scalars)
        for n in range(len(some)):
            yield {name: (a[n], unit) for name, (a, unit) in values.items()}, {k: v[n] for k, v in scalars.items()}


def file_name(folder: Path, scalars: Scalars) -> Path:
    """Of an object: its object_id where that is a plain name, else what is plain of it and the key, which is unique."""
    object_id = str(scalars.get("object_id", scalars["key"]))
    plain = re.sub("[^A-Za-z0-9_+-]+", "_", object_id)[:100]
    path = folder / f"{plain}.fits"
    return path if plain == object_id != "" and not path.exists() else folder / f"{plain}-{scalars['key']}.fits"


def cube(manifest: Manifest, arrays: dict[str, tuple[np.ndarray, str]], scalars: Scalars) -> fits.HDUList:
    """The file of one object: `image` in the primary HDU, every other array in one of its name, CATALOG. Fluxes on
    several grids are in an HDU a band."""
    hdus = [fits.PrimaryHDU()]
    for name, (values, unit) in sorted(arrays.items()):
        values = np.atleast_1d(values.astype(WIDER.get(values.dtype.name, values.dtype.name)))  # FITS has an axis
        array = manifest.arrays.get(name)
        header = fits.Header()
        if array is not None and is_flux(array, manifest):
            header = flux_header(manifest.bands, values.shape, scalars)
            if has_own_grids(manifest):
                hdus += one_by_one(manifest.bands, name, values, scalars)
                continue
        for bit, value in ((array.bits if array else None) or {}).items():
            header[f"BIT_{value}"] = (bit, "set where a pixel is so")
        if unit == UNIT:
            header["BUNIT"] = unit
        if name == "image":
            hdus[0] = fits.PrimaryHDU(values, header)
        else:
            hdus.append(fits.ImageHDU(values, header, name=name))
    hdus[0].header["OBJECT"] = printable(str(scalars.get("object_id", scalars["key"])))[:68]
    return fits.HDUList([*hdus, fits.table_to_hdu(catalog(manifest, scalars))])


def has_own_grids(manifest: Manifest) -> bool:
    """Whether each band was cut on a pixel grid of its own, with its scale and its centre, x_<band> and y_<band>."""
    return len({b.pixel_scale_arcsec for b in manifest.bands}) > 1 or f"x_{manifest.bands[0].name}" in manifest.columns


def one_by_one(bands: Sequence[Band], name: str, values: np.ndarray, scalars: Scalars) -> list[fits.ImageHDU]:
    """The planes [C,H,W] of bands on grids of their own, each with its WCS: HDUs of one name, by version from 1."""
    hdus = []
    for n, (band, plane) in enumerate(zip(bands, values, strict=True), 1):
        header = flux_header([band], plane.shape, scalars, f"_{band.name}")
        header["BUNIT"] = UNIT
        hdus.append(fits.ImageHDU(plane, header, name=name, ver=n))
    return hdus


def flux_header(bands: Sequence[Band], shape: tuple[int, ...], scalars: Scalars, own: str = "") -> fits.Header:
    """WCS and bands of a cube [C,H,W], or of the image [H,W] of one, the columns of whose centre are x<own> and y<own>.
    The cutout's own rotation is not stored: north is up, as in the tile it is cut from."""
    header, scale, axes = fits.Header(), bands[0].pixel_scale_arcsec / 3600, len(shape)
    ra, dec = scalars.get("ra", np.nan), scalars.get("dec", np.nan)
    if np.isfinite(ra) and np.isfinite(dec):
        wcs = WCS(naxis=axes)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN", "BAND"][:axes]
        wcs.wcs.crval, wcs.wcs.cdelt = [ra, dec, 1][:axes], [-scale, scale, 1][:axes]
        wcs.wcs.cunit = ["deg", "deg", ""][:axes]
        wcs.wcs.crpix = [*centre(shape[-2:], scalars, own), 1][:axes]
        wcs.wcs.radesys = "ICRS"
        header.update(wcs.to_header())
    header["ZP_AB"] = (ZERO_POINT_UJY, "AB magnitude of 1 uJy")
    for n, band in enumerate(bands, 1):
        header[f"BAND{n}"] = (printable(band.name), f"plane {n}")
        header[f"WAVE{n}"] = (band.wavelength_nm, "[nm] effective wavelength")
        header[f"SKY{n}"] = (band.sky_sigma * band.ujy_per_unit, "[uJy] sky sigma per pixel")
        header[f"PSF{n}"] = (band.psf_fwhm_arcsec, "[arcsec] FWHM")
    return header


def centre(shape: tuple[int, ...], scalars: Scalars, own: str = "") -> tuple[float, float]:
    """The 1-based pixel of (ra, dec): the middle one, and how far x, y are from the pixel nearest to them; 0 where a
    band was not observed."""
    places = [np.nan_to_num(scalars.get(f"{axis}{own}", 0.0)) for axis in "xy"]
    off = [place - np.floor(place + 0.5) for place in places]
    return shape[1] // 2 + 1 + float(off[0]), shape[0] // 2 + 1 + float(off[1])


def catalog(manifest: Manifest, scalars: Scalars) -> Table:
    """One row, of all scalars; units where FITS knows them. Names that differ in case alone, such as flux_y and flux_Y,
    are one for FITS: the later one gets _2."""
    table, taken = Table(meta={"EXTNAME": "CATALOG"}), set()
    for name, value in scalars.items():
        value = np.array([printable(value) if isinstance(value, str) else value])
        column = f"{name}_2" if name.lower() in taken else name
        taken.add(name.lower())
        table[column] = value.astype(WIDER[value.dtype.name]) if value.dtype.name in ("float16", "int8") else value
        table[column].unit = fits_unit(manifest.columns[name].unit) if name in manifest.columns else None
    return table


def printable(text: str) -> str:
    """FITS holds ASCII only."""
    return text.encode("ascii", "backslashreplace").decode()


def write_hdf5(path: Path, stream: Stream, rows: np.ndarray, argv: list[str]) -> None:
    """Arrays at the root, scalars below columns/, what the manifest says of the bands below bands/."""
    dataset = stream.sources[0].dataset
    manifest = dataset.manifest
    with h5py.File(path, "w") as file:
        columns, bands = file.create_group("columns"), file.create_group("bands")
        for name in (field.name for field in dataclasses.fields(Band)):
            bands[name] = [getattr(band, name) for band in manifest.bands]
        at = 0
        for some, arrays, scalars in progress(
            selection.batches(stream, rows), selection.count(dataset, rows), "batches"
        ):
            values = in_units(manifest, arrays, scalars)
            for name, (one, unit) in values.items():
                selection.append(file, name, one, at, len(rows))
                file[name].attrs["unit"] = unit
            for name, column in scalars.items():
                selection.append(columns, name, column, at, len(rows))
            at += len(some)
        for name, spec in manifest.columns.items():
            columns[name].attrs.update({"unit": spec.unit, "description": spec.description})
        for name, array in manifest.arrays.items():
            file[name].attrs["bits"] = json.dumps(array.bits or {})
        about = {"tool": "data_tools.export", "arguments": argv, "versions": versions("numpy", "h5py")}
        file.attrs["provenance"] = json.dumps({**about, "dataset": dataset.fingerprint()["rows"]})


if __name__ == "__main__":
    run(main)
