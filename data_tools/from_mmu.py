"""Multimodal Universe HDF5 files (SURVEY/healpix=N/001-of-001.hdf5) -> dataset of multi-band cutouts.

    python -m data_tools.from_mmu SURVEY --bands BANDS.toml --out DATASET

Every row says which bands its image has, and in which order: they are brought to the order of BANDS.toml, and those
that a row lacks are masked. docs/formats.md says what becomes of each field. An interrupted import goes on when the
same command is given again.
"""

import argparse
import json
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import astropy.units as u
import h5py
import numpy as np
from astropy_healpix import lonlat_to_healpix

from data_tools.bands import load_bands
from data_tools.importing import (
    Import,
    Names,
    Samples,
    add_arguments,
    check_arguments,
    described,
    import_dataset,
    row_shards,
)
from data_tools.measure import to_stored
from data_tools.splits import FRACTIONS, assign_splits
from data_tools.tiles import MASK_BITS
from jaxz.data.manifest import Array, Band, Column
from jaxz.data.writer import ENCODINGS
from jaxz.errors import DataError, InputError, run
from jaxz.progress import progress

IMAGE = ("image_band", "image_array")  # what a cutout must have
BESIDE = ("image_ivar", "image_mask", "image_mask_bits", "image_psf_fwhm", "image_scale")  # and may have
CHUNK_BYTES = 1 << 27  # of the files that are read at once
NODATA, BAD = np.uint8(MASK_BITS["nodata"]), np.uint8(MASK_BITS["bad"])
Kind = tuple[np.dtype, tuple[int, ...]]  # of a field: its dtype, and the shape of a row


class Files(NamedTuple):
    """paths [F] of the files below root, the first row of each and the number of all (starts [F + 1]), and the fields
    of the first: {name: (dtype, shape of a row)}, which all others have too."""

    root: Path
    paths: list[Path]
    starts: np.ndarray
    fields: dict[str, Kind]


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(prog="python -m data_tools.from_mmu", description=__doc__.split("\n\n")[0])
    parser.add_argument("source", type=Path, help="folder of one survey, with healpix=* folders")
    add_arguments(parser)
    parser.add_argument("--samples_per_shard", type=int, default=1000, help="default 1000")
    parser.add_argument("--split_order", type=int, default=9, help="HEALPix order of the splits' cells (default 9, 7')")
    parser.add_argument("--seed", type=int, default=0, help="of the splits (default 0)")
    args = parser.parse_args(argv)
    if args.bands is None:
        raise InputError("bands: none given, and these files hold no zero points; describe them in a TOML file")
    check_arguments(args)
    print(json.dumps(import_dataset(args, argv, plan_import(args)), indent=1))
    return None


def plan_import(args: argparse.Namespace) -> Import:
    """What is in the files, and how it is read."""
    names, (bands, sources) = Names(args), load_bands(args.bands)
    files = find_files(args.source, names.skipped)
    names.check([*files.fields, *names.skipped])
    check_image(files)
    dtype, (_, height, width) = ENCODINGS[args.encoding], files.fields["image_array"][1]
    shape = (len(bands), height, width)
    arrays = {
        "image": Array("image", dtype, shape, unit="flux: m_AB = zero_point_ab - 2.5 log10(image)"),
        "image_mask": Array("mask", "uint8", shape, bits=MASK_BITS),
    }
    with open_file(files.paths[0]) as file:
        kept = {field: dict(file[field].attrs) for field in files.fields}
    columns, other = {}, [name for name in files.fields if name not in {*IMAGE, *BESIDE}]
    for field in other:
        kind, row = files.fields[field]
        if row:
            arrays[names(field)] = Array("array", kind.name, row)
        elif field != "healpix":
            of = "string" if kind.kind in "SO" else "float32" if names(field) == "z" else kind.name
            columns[names(field)] = described(names(field), of, kept[field], f"{field} of the MMU file")
    made = made_columns(files, columns, bands)
    columns |= made
    rule = split_rule(args, bands, (height, width)) if "split" in made else {}
    shards, rows_of = row_shards(files.starts[-1], args.samples_per_shard)
    stored = tuple(as_stored(band) for band in bands)
    columns_of = {field: names(field) for field in other}
    reader = Rows(files, bands, sources, dtype, columns_of, frozenset(columns), args.split_order, args.seed)
    plan = {"files": [[str(path.relative_to(files.root)), path.stat().st_size] for path in files.paths]}
    plan |= {"split_order": args.split_order, "seed": args.seed}
    about = {"files": len(files.paths), "bands_left_out": sorted(left_out(files, sources))}
    shard = lambda n: reader.shard(rows_of(n))
    number = int(files.starts[-1])
    return Import("from_mmu", arrays, stored, columns, number, shards, shard, plan, about, splits=rule)


def find_files(root: Path, skipped: set[str]) -> Files:
    """All files of a survey, without the fields that are skipped. Raises InputError where there is no file, none of a
    field that is skipped, or one has other fields than the first."""
    if own := sorted(skipped & {*IMAGE, *BESIDE}):
        raise InputError(f"skip: {own[0]!r} belongs to the image; leave it in")
    paths = sorted(root.glob("healpix=*/*.hdf5"))
    if not paths:
        raise InputError(f"source: {str(root)!r} has no healpix=*/*.hdf5; name the folder of one survey")
    counts: list[int] = []
    first: dict[str, Kind] = {}
    for path in progress(paths, len(paths), "files"):
        with open_file(path) as file:
            if unknown := sorted(skipped - set(file)):
                raise InputError(f"skip: {unknown[0]!r} is no field of {path}; it has {sorted(file)}")
            found = {name: field_of(file, name, path) for name in file if name not in skipped}
            lengths = {one.shape[:1] for one in found.values()}
            fields = {name: (one.dtype, one.shape[1:]) for name, one in found.items()}
            if len(lengths) != 1 or lengths == {()}:
                raise DataError(f"{path}: its fields have {sorted(lengths)} rows; they must all have as many")
            first = first or fields
            if different := sorted(name for name in {*fields, *first} if not alike(fields.get(name), first.get(name))):
                raise InputError(f"source: {path}: {different[0]!r} is not as in {paths[0]}; import the two apart")
            counts.append(*next(iter(lengths)))
    if not sum(counts):
        raise InputError(f"source: the {len(paths)} files of {str(root)!r} have no rows; name another survey")
    return Files(root, paths, np.cumsum([0, *counts]), first)


def check_image(files: Files) -> None:
    """Raises InputError where the fields of the image are not there, or not of shapes that belong together."""
    for name in IMAGE:
        if name not in files.fields:
            raise InputError(f"source: {str(files.root)!r} has no {name!r}; these are no cutouts of the MMU layout")
    shape = files.fields["image_array"][1]
    bands = shape[:1]
    wanted = {
        "image_band": [bands],
        "image_psf_fwhm": [bands],
        "image_scale": [bands],
        "image_mask": [shape, shape[1:]],
    }
    for name in (name for name in (*IMAGE, *BESIDE) if name in files.fields):
        if len(shape) != 3 or files.fields[name][1] not in wanted.get(name, [shape]):
            raise InputError(f"source: {name!r} of {files.fields[name][1]} a row does not fit image_array's {shape}")


def field_of(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """A field that lies in the file itself. Raises InputError for one that points elsewhere, or holds no numbers or
    text."""
    inside = isinstance(file.get(name, getlink=True), h5py.HardLink)
    if not inside or not isinstance(one := file[name], h5py.Dataset) or one.is_virtual or one.external:
        raise InputError(
            f"source: {path}: {name!r} is no field of the file itself; write its values there, or --skip it"
        )
    if one.dtype.kind not in "fiubS" and h5py.check_string_dtype(one.dtype) is None:
        raise InputError(f"source: {path}: {name!r} holds {one.dtype}, neither numbers nor text; --skip it")
    return one


def alike(one: Kind | None, other: Kind | None) -> bool:
    """Whether two fields have values of one type; texts may be of different lengths."""
    if one is None or other is None or one[1] != other[1]:
        return False
    return one[0] == other[0] or (one[0].kind in "SO" and other[0].kind in "SO")


def open_file(path: Path) -> h5py.File:
    """Raises DataError where it is no HDF5 file, or damaged."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path} cannot be read as HDF5 ({error}); restore it or leave it out") from None


def made_columns(files: Files, columns: dict[str, Column], bands: tuple[Band, ...]) -> dict[str, Column]:
    """The columns that the files do not hold as they are."""
    made = {"bands_observed": Column("uint32", "", "bit b is set where band b has a good pixel")}
    if "survey" not in columns:
        made["survey"] = Column("string", "", "survey")
    if {"ra", "dec"} <= columns.keys():
        made["healpix"] = Column("int64", "", "order 29, nested, ICRS")
        if "split" not in columns:
            made["split"] = Column("string", "", "sky cell's split; gap: too near to another split to use")
    for band in bands:
        if "image_psf_fwhm" in files.fields and (name := f"psf_fwhm_{band.name}") not in columns:
            made[name] = Column("float32", "arcsec", "of this image's PSF")
        if "image_ivar" in files.fields and (name := f"sky_sigma_{band.name}") not in columns:
            made[name] = Column("float32", "", "median over this image, stored units")
    return made


def split_rule(args: argparse.Namespace, bands: tuple[Band, ...], shape: tuple[int, int]) -> dict:
    """What the manifest says of splits that are made here (see Rows.on_sky)."""
    scales = [band.pixel_scale_arcsec for band in bands]
    gap_px = math.hypot(*shape) * max(scales) / scales[0]
    order = {"rule": "hash", "healpix_order": args.split_order, "gap_px": gap_px}
    return {**order, "fractions": FRACTIONS, "seed": args.seed}


def as_stored(band: Band) -> Band:
    """The band of the stored values, which are those of the file over sky_sigma."""
    if not band.sky_sigma > 0:
        raise InputError(f"bands.{band.name}.sky_sigma: must be positive, in the files' units; measure it")
    zero_point = band.zero_point_ab - 2.5 * float(np.log10(band.sky_sigma))
    return Band(
        band.name, band.wavelength_nm, band.width_nm, zero_point, band.pixel_scale_arcsec, band.a_over_ebv, 1.0,
        band.psf_fwhm_arcsec,
    )  # fmt: skip


def read_fields(files: Files, fields: Iterable[str], rows: range) -> dict[str, np.ndarray]:
    """{field: [N, ...]} of consecutive rows, text as str. Raises DataError."""
    parts: dict[str, list] = {field: [] for field in fields}
    first, last = np.searchsorted(files.starts, (rows.start, rows.stop - 1), side="right") - 1
    for f in range(first, last + 1):
        here = slice(max(rows.start - files.starts[f], 0), rows.stop - files.starts[f])
        with open_file(files.paths[f]) as file:
            for field, values in parts.items():
                try:
                    values.append(as_text(file[field][here]))
                except (OSError, KeyError, UnicodeDecodeError) as error:
                    raise DataError(f"{files.paths[f]}: {field} cannot be read ({error}); restore the file") from None
    return {field: np.concatenate(values) for field, values in parts.items()}


def as_text(values: np.ndarray) -> np.ndarray:
    """Bytes as str; numbers in the machine's byte order."""
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8")
    if values.dtype.kind == "O":
        return np.array([one.decode() if isinstance(one, bytes) else str(one) for one in values.ravel()]).reshape(
            values.shape
        )
    return values.astype(values.dtype.newbyteorder("="))


def left_out(files: Files, sources: tuple[str, ...]) -> set[str]:
    """Bands of the first rows that BANDS.toml does not list. Raises InputError where it lists none of them."""
    found = set(np.unique(read_fields(files, ["image_band"], range(min(100, files.starts[-1])))["image_band"]).tolist())
    if found and not found & set(sources):
        raise InputError(f"bands: none of {list(sources)} is a band of the files, {sorted(found)}; set `source` to it")
    return found - set(sources)


@dataclass(frozen=True)
class Rows:
    """Reads rows of the files as samples. bands, sources [C]: as the user describes them; dtype: of the stored image;
    names: {field: name} of what is not the image; columns: the names of those that are scalars, and of what is made;
    order, seed: of the splits."""

    files: Files
    bands: tuple[Band, ...]
    sources: tuple[str, ...]
    dtype: str
    names: dict[str, str]
    columns: frozenset[str]
    order: int
    seed: int

    def shard(self, rows: range) -> Samples:
        """The samples of some rows, of which few are held as the files have them."""
        row_bytes = sum(math.prod(row) * kind.itemsize for kind, row in self.files.fields.values())
        step = max(1, CHUNK_BYTES // row_bytes)
        parts = [self.samples(rows[at : at + step]) for at in range(0, len(rows), step)]
        keys, arrays, columns = zip(*parts, strict=True)
        whole = lambda dicts: {name: np.concatenate([one[name] for one in dicts]) for name in dicts[0]}
        return [key for some in keys for key in some], whole(arrays), whole(columns)

    def samples(self, rows: range) -> Samples:
        """The samples of some rows, in the order of the files."""
        image_fields = [name for name in (*IMAGE, *BESIDE) if name in self.files.fields]
        found = read_fields(self.files, [*image_fields, *self.names], rows)
        place, there = band_places(found.pop("image_band"), self.sources, rows)
        image = {name: found.pop(name) for name in image_fields[1:]}
        check_scales(image, self.bands, place, there)
        pixels, flags, ivar = to_bands(image, place, there)
        found.pop("healpix", None)
        values = {self.names[field]: column for field, column in found.items()}
        arrays = {name: values.pop(name) for name in values.keys() - self.columns}
        stored = np.empty(pixels.shape, self.dtype)
        for c, band in enumerate(self.bands):
            stored[:, c], flags[:, c] = to_stored(pixels[:, c], flags[:, c], 1 / band.sky_sigma, self.dtype)
            made = of_band(image, band, place[:, c], there[:, c], None if ivar is None else ivar[:, c], flags[:, c])
            if (own := f"sky_sigma_{band.name}") in values:  # a jaxz dataset's own, in the units of its images
                made[own] = values.pop(own) / band.sky_sigma
            values = made | values
        values["bands_observed"] = ((flags == 0).any((2, 3)) << np.arange(len(self.bands))).sum(1)
        values.setdefault("survey", np.full(len(rows), self.files.root.resolve().name))
        if "healpix" in self.columns:
            values |= self.on_sky(values, rows, pixels.shape[2:])
        return [f"{row:09d}" for row in rows], {**arrays, "image": stored, "image_mask": flags}, values

    def on_sky(self, values: dict[str, np.ndarray], rows: range, shape: tuple[int, int]) -> dict[str, np.ndarray]:
        """Columns healpix and, where the files have none, split. Raises InputError for a row without a position."""
        ra, dec = values["ra"], values["dec"]
        if lost := np.flatnonzero(~(np.isfinite(ra) & (np.abs(dec) <= 90))).tolist():
            raise InputError(f"ra, dec: row {rows[lost[0]]} has no position on the sky; leave its file out, or mend it")
        found = {"healpix": lonlat_to_healpix(ra * u.deg, dec * u.deg, 2**29, order="nested")}
        if "split" not in values:
            diagonal = math.hypot(*shape) * max(band.pixel_scale_arcsec for band in self.bands)
            found["split"], _ = assign_splits(ra, dec, gap_arcsec=diagonal, order=self.order, seed=self.seed)
        return found


def band_places(found: np.ndarray, sources: tuple[str, ...], rows: range) -> tuple[np.ndarray, np.ndarray]:
    """Where in its own row's image each band is, int [N,C], and whether it is there, bool [N,C], of image_band [N,B].

    Raises DataError for a row that names a band twice."""
    hits = np.char.strip(found)[:, None, :] == np.array(sources)[None, :, None]
    if (twice := hits.sum(2) > 1).any():
        row, band = np.argwhere(twice)[0]
        raise DataError(f"image_band: row {rows[row]} names {sources[band]!r} twice; mend the file")
    return hits.argmax(2), hits.any(2)


def to_bands(
    image: dict[str, np.ndarray], place: np.ndarray, there: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(pixels float32, flags uint8 of MASK_BITS, inverse variance or None), [N,C,H,W] each, in the dataset's bands.

    image_mask is true where a pixel is good, [N,B,H,W] or [N,H,W] for all bands; image_mask_bits are a jaxz dataset's
    own flags, which data_tools.to_mmu writes."""
    take = lambda values: np.take_along_axis(values, place[:, :, None, None], 1)
    pixels = take(image["image_array"]).astype(np.float32)
    if "image_mask_bits" in image:
        flags = take(image["image_mask_bits"]).astype(np.uint8)
    else:
        flags = np.zeros(pixels.shape, np.uint8)
        if "image_mask" in image:
            good = image["image_mask"].astype(bool)
            flags[~(np.broadcast_to(good[:, None], flags.shape) if good.ndim == 3 else take(good))] |= BAD
    ivar = take(image["image_ivar"]).astype(np.float32) if "image_ivar" in image else None
    if ivar is not None and "image_mask_bits" not in image:
        flags[~(ivar > 0)] |= BAD
    flags[np.isnan(pixels)] |= NODATA
    flags[np.isinf(pixels)] |= BAD
    flags[~there] = NODATA
    return np.where(np.isfinite(pixels), pixels, np.float32(0)), flags, ivar


def of_band(
    image: dict[str, np.ndarray],
    band: Band,
    place: np.ndarray,
    there: np.ndarray,
    ivar: np.ndarray | None,
    flags: np.ndarray,
) -> dict[str, np.ndarray]:
    """The columns psf_fwhm_<band> and sky_sigma_<band>, float32 [N]; NaN where not known."""
    columns, row = {}, np.arange(len(place))
    if "image_psf_fwhm" in image:
        width = image["image_psf_fwhm"][row, place]
        columns[f"psf_fwhm_{band.name}"] = np.where(there & (width > 0), width, np.nan).astype(np.float32)
    if ivar is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of images without a good pixel: NaN
            median = np.nanmedian(np.where((flags == 0) & (ivar > 0), ivar, np.nan), (1, 2))
        columns[f"sky_sigma_{band.name}"] = (1 / np.sqrt(median) / band.sky_sigma).astype(np.float32)
    return columns


def check_scales(image: dict[str, np.ndarray], bands: tuple[Band, ...], place: np.ndarray, there: np.ndarray) -> None:
    """Raises InputError where the files have another pixel scale than BANDS.toml."""
    if "image_scale" not in image:
        return
    found = np.take_along_axis(image["image_scale"], place, 1)
    for c, band in enumerate(bands):
        wrong = there[:, c] & ~(np.abs(found[:, c] / band.pixel_scale_arcsec - 1) <= 0.01)
        if wrong.any():
            raise InputError(
                f"bands.{band.name}.pixel_scale_arcsec: {band.pixel_scale_arcsec} is not the files' "
                f"{found[wrong, c][0]:g}; correct it, or import surveys of different scales apart"
            )


if __name__ == "__main__":
    run(main, resumes=True)
