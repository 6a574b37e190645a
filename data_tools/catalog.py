"""Reads a catalogue into the dataset's own columns."""

from pathlib import Path

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import Table

from data_tools.survey import CatalogColumns
from data_tools.tiles import Grid, sky_to_pixel
from jaxz.data.manifest import Column
from jaxz.errors import InputError, suggest

VALID = {  # any other number stands for "not known" (-99, 99, 1e20 ...)
    "z_spec": lambda z: (z > -0.01) & (z < 20),
    "z_spec_err": lambda error: (error > 0) & (error < 10),
    "ebv": lambda ebv: (ebv >= 0) & (ebv < 20),
}
LABELS = {
    "z": Column("float32", "", "the label: z_spec where there is one, else NaN"),
    "z_err": Column("float32", "", "error of z; NaN where not known"),
    "z_kind": Column("string", "", "where z comes from: spec or none"),
}
OPTIONAL = {
    "z_spec": Column("float32", "", "spectroscopic redshift; NaN where there is none"),
    "z_spec_err": Column("float32", "", "error of z_spec; NaN where not known"),
    "z_quality": Column("int32", "", "4 at least 99 % sure, 3 95 %, 2 75 %, 1 below, 0 unknown"),
    "z_flag_orig": Column("string", "", "the catalogue's own quality flag"),
    "ebv": Column("float32", "mag", "Galactic E(B-V) of the catalogue; NaN where it has none"),
    "obj_class": Column("string", "", "the catalogue's own object class"),
}


def read_catalog(path: Path, columns: CatalogColumns, grid: Grid) -> dict[str, np.ndarray]:
    """The catalogue as dataset columns [N]: object_id, x, y (0-based pixels), ra, dec (degrees, where known), labels.

    Rows without a finite position keep NaN in x and y. Raises InputError for a table that cannot be read, lacks a
    column, repeats an object_id or needs a WCS that the tiles do not have.
    """
    if columns.sky and grid.wcs is None:
        raise InputError(f"catalog.ra: {columns.ra!r} needs a WCS, and the tiles have none; name x and y instead")
    table = read_table(path, "catalog")
    get = lambda name: column(table, getattr(columns, name), f"catalog.{name}", path)
    numbers = lambda name: to_float(get(name), f"catalog.{name}")

    sources = {"object_id": object_ids(get("object_id"), columns.object_id)}
    if columns.sky:
        sources["ra"], sources["dec"] = numbers("ra"), numbers("dec")
        sources["x"], sources["y"] = to_pixels(grid, sources["ra"], sources["dec"])
    else:
        sources["x"], sources["y"] = numbers("x") - columns.pixel_origin, numbers("y") - columns.pixel_origin
        sources.update(to_sky(grid, sources["x"], sources["y"]))
    sources.update({name: numbers(name) for name in VALID if getattr(columns, name)})
    if columns.obj_class:
        sources["obj_class"] = to_text(get("obj_class"))
    if columns.z_quality:
        sources["z_flag_orig"] = to_text(get("z_quality"))
        sources["z_quality"] = quality(sources["z_flag_orig"], columns.z_quality_map)
    return sources


def read_table(path: Path, argument: str) -> Table:
    """Raises InputError, which names the argument that gave the path, for what is no table or has no rows."""
    try:
        table = Table.read(path)
    except Exception as error:
        problem = f"{str(path)!r} cannot be read as a table ({type(error).__name__}: {error})"
        raise InputError(f"{argument}: {problem}; give FITS, ECSV, CSV, VOTable or Parquet") from None
    if len(table) == 0:
        raise InputError(f"{argument}: {str(path)!r} has no rows; give a table that has some")
    return table


def drop_invalid(sources: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """`sources` with float32 columns of VALID, NaN where a number is not valid, and how many numbers that were."""
    columns, invalid = dict(sources), {}
    for name in (name for name in VALID if name in sources):
        values, valid = sources[name], VALID[name](sources[name])
        columns[name] = np.where(valid, values, np.nan).astype(np.float32)
        invalid[name] = int((~valid & ~np.isnan(values)).sum())
    return columns, invalid


def label(sources: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`sources` with the label columns z, z_err and z_kind."""
    missing = np.full(len(sources["x"]), np.nan, np.float32)
    z = sources.get("z_spec", missing)
    z_err = np.where(np.isfinite(z), sources.get("z_spec_err", missing), np.float32(np.nan))
    return {**sources, "z": z, "z_err": z_err, "z_kind": np.where(np.isfinite(z), "spec", "none")}


def to_pixels(grid: Grid, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """0-based pixels of ICRS positions; NaN where the projection has none or the position is none."""
    x, y = np.full(len(ra), np.nan), np.full(len(ra), np.nan)
    valid = (np.abs(ra) <= 360) & (np.abs(dec) <= 90)
    x[valid], y[valid] = sky_to_pixel(grid.wcs, SkyCoord(ra[valid], dec[valid], unit="deg", frame="icrs"))
    return x, y


def to_sky(grid: Grid, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """{ra, dec}, ICRS in degrees, of 0-based pixels; nothing without a WCS."""
    if grid.wcs is None:
        return {}
    sky = grid.wcs.pixel_to_world(x, y).icrs
    return {"ra": sky.ra.deg, "dec": sky.dec.deg}


def column(table: Table, name: str, where: str, path: Path):
    if name not in table.colnames:
        raise InputError(f"{where}: {name!r} is not a column of {str(path)!r}.{suggest(name, table.colnames)}")
    if table[name].ndim != 1:
        raise InputError(f"{where}: {name!r} of {str(path)!r} holds several values a row; name a scalar column")
    return table[name]


def to_float(values, where: str) -> np.ndarray:
    """float64 [N]; masked values become NaN."""
    try:
        return np.ma.filled(np.ma.asarray(values).astype(np.float64), np.nan)
    except (TypeError, ValueError):
        raise InputError(f"{where}: {values.name!r} holds {values.dtype}, not numbers; name a numeric column") from None


def to_text(values) -> np.ndarray:
    """str [N]; masked values become empty."""
    texts = np.array([v.decode() if isinstance(v, bytes) else str(v) for v in np.ma.getdata(np.ma.asarray(values))])
    return np.where(np.ma.getmaskarray(np.ma.asarray(values)), "", np.char.strip(texts))


def object_ids(values, name: str) -> np.ndarray:
    """int64 or str [N], unique."""
    ids = np.asarray(values, np.int64) if np.ma.asarray(values).dtype.kind in "iu" else to_text(values)
    if np.ma.is_masked(values):
        raise InputError(f"catalog.object_id: {name!r} has rows without a value; name a complete column")
    unique, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        twice = unique[counts > 1][0].item()
        raise InputError(f"catalog.object_id: {name!r} holds {twice!r} more than once; name a column of unique ids")
    return ids


def quality(flags: np.ndarray, mapping: dict[str, int]) -> np.ndarray:
    """int32 [N], 0..4: the homogenised quality of the original flags; without a mapping they are taken as they are."""
    if mapping:
        return np.array([mapping.get(flag, 0) for flag in flags], np.int32)
    try:
        values = np.array([float(flag or 0) for flag in flags])
    except ValueError:
        values = np.array([-1.0])
    if not np.isin(values, (0, 1, 2, 3, 4)).all():
        raise InputError(
            f"catalog.z_quality: the flags {sorted(set(flags.tolist()))[:8]} are not 0 to 4; add catalog.z_quality_map"
        )
    return values.astype(np.int32)
