"""New columns for a dataset's objects: joined by id or by position, checked against the manifest, and what follows."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import Column as TableColumn
from astropy.table import Table

from data_tools.catalogs.catalog import COLUMNS
from data_tools.catalogs.columns import VALID, cleaned, to_float, to_text
from data_tools.catalogs.labels import REDSHIFTS, not_redshifts
from data_tools.splits import GAP, assign_splits, assign_splits_pixels
from jaxz.data.astropy_views import astropy_unit
from jaxz.data.dataset import Dataset
from jaxz.data.index import column_type
from jaxz.data.manifest import Column, Manifest
from jaxz.data.overlays import can_be_column
from jaxz.errors import InputError, suggest

LABELS = {name: COLUMNS[name] for name in ("z", "z_err", "z_kind")}
STANDARD = {name: column for name, column in COLUMNS.items() if name[:1] == "z"} | {"ebv": COLUMNS["ebv"]}
CELL_ORDER = 9  # HEALPix, of folds where the dataset's splits say nothing
# Columns that speak of z_spec: where it changes and TABLE says nothing of them, they are not known.
ABOUT_Z_SPEC = {"z_spec_err": np.nan, "z_quality": 0, "z_flag_orig": "", "z_source": ""}


def read_table(path: Path, argument: str) -> Table:
    """Raises InputError, which names the argument that gave the path, for what is no table or has no rows."""
    try:
        table = Table.read(path)
    except Exception as error:
        why = str(error).partition("\n")[0]  # Astropy goes on with a list of all formats
        problem = f"{str(path)!r} cannot be read as a table ({type(error).__name__}: {why})"
        raise InputError(f"{argument}: {problem}; give FITS, ECSV, CSV, VOTable or Parquet") from None
    if len(table) == 0:
        raise InputError(f"{argument}: {str(path)!r} has no rows; give a table that has some")
    return table


def column(table: Table, name: str, where: str, path: Path) -> TableColumn:
    """A column of scalars. Raises InputError."""
    if name not in table.colnames:
        raise InputError(f"{where}: {name!r} is not a column of {str(path)!r}.{suggest(name, table.colnames)}")
    if table[name].ndim != 1:
        raise InputError(f"{where}: {name!r} of {str(path)!r} holds several values a row; name a scalar column")
    return table[name]


def chosen_columns(
    wanted: Sequence[str], there: Sequence[str], manifest: Manifest, joining: set[str]
) -> dict[str, str]:
    """{new name: name in the table} of --column; by default the columns that the dataset has too and that may be set.
    Raises InputError for names that are not there, or may not be set."""
    skipped = joining | {"object_id", "key"} | (LABELS.keys() if "z_spec" in there else set())
    names = {
        name: name
        for name in there
        if name in manifest.columns and name not in skipped and not name.startswith("true_")
    }
    if wanted:
        names = {new: old or new for new, _, old in (text.partition("=") for text in wanted)}
    if not names:
        raise InputError(f"column: the table and the dataset share none; name some of {sorted(there)} with NEW=OLD")
    if wanted and len(names) < len(wanted):
        raise InputError(f"column: {list(wanted)} name a column twice; name each once")
    for new, old in names.items():
        if old not in there:
            raise InputError(f"column: {old!r} is not in the table.{suggest(old, there)}")
        if new in ("object_id", "key") or new.startswith("true_"):
            raise InputError(f"column: {new!r} says who an object is, or what a simulation knows; leave it out")
        if new in LABELS and "z_spec" in names:
            raise InputError(f"column: {new!r} follows z_spec; leave one of them out")
        if not can_be_column(new, manifest):
            raise InputError(
                f"column: {new!r} is no name that a column can have; use at most 32 letters, digits, '_' and '-', and "
                "no array's name"
            )
    return names


def read_columns(
    table: Table, names: dict[str, str], known: dict[str, Column], path: Path
) -> tuple[dict[str, pa.Array], dict[str, Column], dict[str, int]]:
    """{name: values [R]}, what they are, and how many numbers were not valid, such as a redshift of -99, which is then
    missing. Raises InputError where type or unit do not fit the dataset's."""
    values, columns, invalid = {}, {}, {}
    for new, old in names.items():
        found = column(table, old, "column", path)
        spec = known.get(new, STANDARD.get(new))
        array = to_arrow(found, spec, f"column: {old!r} of {str(path)!r}")
        if new in VALID:
            if not pa.types.is_floating(array.type):
                raise InputError(f"column: {new!r} is {array.type} in the dataset, no real number; name another")
            numbers = array.to_numpy(zero_copy_only=False)
            clean = cleaned(numbers, new, []).astype(numbers.dtype)
            invalid[new] = int((np.isnan(clean) & ~np.isnan(numbers)).sum())
            if new in REDSHIFTS and invalid[new]:
                if np.isnan(clean).all():  # they would take all redshifts away that are there
                    raise InputError(
                        f"column: {old!r} of {str(path)!r} holds no redshift. {not_redshifts(new, invalid[new])}"
                    )
                print(not_redshifts(new, invalid[new]), file=sys.stderr)
            array = pa.array(clean)
        if new == "z_quality" and not pc.all(pc.is_in(array, pa.array(range(5), array.type))).as_py():
            raise InputError(f"column: z_quality, from {old!r}, must be 0 to 4 in all rows; homogenise the flags first")
        if spec is None:
            dtype = "string" if pa.types.is_string(array.type) else str(np.dtype(array.type.to_pandas_dtype()))
            spec = Column(dtype, str(found.unit or ""), found.info.description or f"{old} of {path.name}")
        values[new], columns[new] = array, spec
    return values, columns, invalid


def to_arrow(found: TableColumn, spec: Column | None, where: str) -> pa.Array:
    """A column of a table in the type and unit of `spec`, or in its own. Missing real numbers are NaN, what else is
    missing is null. Raises InputError where it does not fit."""
    masked = np.ma.getmaskarray(np.ma.asarray(found))
    is_text = found.dtype.kind in "SUO"
    if spec is not None and is_text != (spec.dtype == "string"):
        raise InputError(f"{where} holds {found.dtype}, the dataset {spec.dtype}; name another")
    if is_text:
        return pa.array(to_text(np.ma.asarray(found)), mask=masked)
    if found.dtype.kind not in "fiub":
        raise InputError(f"{where} holds {found.dtype}; use numbers, booleans or text")
    if found.dtype.kind == "f" or (spec is not None and np.dtype(spec.dtype).kind == "f"):
        values = to_float(np.ma.asarray(found)) * unit_factor(found, spec, where)
        dtype = found.dtype.newbyteorder("=") if spec is None else np.dtype(spec.dtype)
        if dtype.kind == "f":
            return pa.array(values.astype(dtype))
        values = pa.array(values, mask=np.isnan(values))
    else:
        unit_factor(found, spec, where)
        values = pa.array(np.ma.getdata(np.ma.asarray(found)).astype(found.dtype.newbyteorder("=")), mask=masked)
    if spec is None:
        return values
    try:
        return values.cast(column_type(spec))
    except pa.ArrowException as error:
        raise InputError(f"{where} does not fit {spec.dtype}, as the dataset has it ({error}); name another") from None


def unit_factor(found: TableColumn, spec: Column | None, where: str) -> float:
    """From the table's unit to the dataset's; 1 where one of them says none. Raises InputError where there is none, or
    the numbers are whole."""
    unit = astropy_unit(spec.unit) if spec is not None else None
    if spec is None or unit is None or found.unit is None or found.unit == unit:
        return 1.0
    try:
        if isinstance(unit, u.FunctionUnitBase) or isinstance(found.unit, u.FunctionUnitBase):
            raise ValueError("magnitudes are no multiples of a flux")
        factor = found.unit.to(unit)
        if factor != 1 and np.dtype(spec.dtype).kind != "f":
            raise ValueError("whole numbers do not take a factor")
    except ValueError:  # what Astropy raises, too
        raise InputError(f"{where} is in {found.unit}, the dataset in {spec.unit!r}; convert it") from None
    return factor


def by_id(dataset: Dataset, table: Table, name: str, path: Path) -> np.ndarray:
    """int64 [R]: the dataset's row of each of the table's, -1 for none."""
    wanted = dataset.arrow(columns=["object_id"])["object_id"]
    found = column(table, name, "on", path)
    if (found.dtype.kind in "SUO") != pa.types.is_string(wanted.type) or found.dtype.kind not in "SUOiu":
        raise InputError(f"on: {name!r} holds {found.dtype}, object_id of the dataset {wanted.type}; give the same ids")
    masked = np.ma.getmaskarray(np.ma.asarray(found))
    numbers = found.dtype.kind in "iu"
    ids = (
        np.ma.getdata(np.ma.asarray(found)).astype(found.dtype.newbyteorder("="))
        if numbers
        else to_text(np.ma.asarray(found))
    )
    try:
        ids = pa.array(ids, mask=masked).cast(wanted.type)
    except pa.ArrowException as error:
        raise InputError(f"on: {name!r} is not {wanted.type}, as the dataset's object_id ({error})") from None
    place = pc.index_in(ids, value_set=wanted.combine_chunks(), skip_nulls=True)
    return place.fill_null(-1).to_numpy().astype(np.int64)


def by_position(
    dataset: Dataset, table: Table, ra: str, dec: str, radius_arcsec: float, usable: np.ndarray, path: Path
) -> tuple[np.ndarray, np.ndarray]:
    """int64 [R]: the row of the object nearest to each row of the table, -1 for none within the radius; and how far
    that is, arcsec. Each row goes to one object only: a spectrum is of one source, not of all its neighbours."""
    if lacking := {"ra", "dec"} - dataset.manifest.columns.keys():
        raise InputError(f"match: the dataset has no column {min(lacking)!r}; join by --on")
    index = dataset.arrow(columns=["ra", "dec", "object_id"])
    ours = np.stack([index[name].to_numpy() for name in ("ra", "dec")])
    known = np.flatnonzero(np.isfinite(ours).all(0) & index["object_id"].is_valid().to_numpy())
    degrees = Column("float64", "deg")
    theirs = np.stack([
        to_arrow(column(table, name, option, path), degrees, f"{option}: {name!r}").to_numpy()
        for option, name in (("ra", ra), ("dec", dec))
    ])  # fmt: skip
    rows = np.flatnonzero(np.isfinite(theirs).all(0) & (np.abs(theirs[1]) <= 90) & usable)
    place, separation = np.full(len(table), -1, np.int64), np.full(len(table), np.nan)
    if len(known) and len(rows):
        sky = lambda values: SkyCoord(*values, unit="deg", frame="icrs")
        nearest, distance, _ = sky(theirs[:, rows]).match_to_catalog_sky(sky(ours[:, known]))
        near = distance.arcsec <= radius_arcsec
        place[rows[near]], separation[rows[near]] = known[nearest[near]], distance.arcsec[near]
    return place, separation


def is_label(z_spec: pa.Array) -> np.ndarray:
    return np.isfinite(z_spec.to_numpy(zero_copy_only=False))


def has_redshift(values: dict[str, pa.Array], count: int) -> np.ndarray:
    """bool [R]: the rows of a table with a redshift, in z_spec or else z; all of `count` where it has neither."""
    given = next((values[name] for name in ("z_spec", "z") if name in values), None)
    return np.ones(count, bool) if given is None else is_label(given)


def best_rows(place: np.ndarray, separation: np.ndarray, values: dict[str, pa.Array]) -> np.ndarray:
    """int64 [K]: of each object's rows the one with a redshift before those without, then of the best quality, then the
    nearest, then the first; in the order of the objects."""
    labelled = has_redshift(values, len(place))
    quality = values["z_quality"].to_numpy() if "z_quality" in values else np.zeros(len(place))
    order = np.lexsort((separation, -quality, ~labelled, place))  # stable: the first row of equal ones
    order = order[place[order] >= 0]
    return order[np.diff(place[order], prepend=-1) > 0]


def follow(dataset: Dataset, place: np.ndarray, values: dict[str, pa.Array], columns: dict[str, Column]) -> dict:
    """Add to `values` and `columns` what z_spec decides for the objects in rows `place`: the labels z, z_err and z_kind
    and, where z_spec changes, that what the dataset says of the old one, and the table does not, is not known. How many
    redshifts were added, changed and removed."""
    known = dataset.manifest.columns
    there = [name for name in ("z_spec", *LABELS, *ABOUT_Z_SPEC) if name in known]
    old = dataset.arrow(columns=there).take(pa.array(place))
    numbers = lambda name: old[name].to_numpy().astype(np.float64) if name in there else np.full(len(place), np.nan)
    new, before = values["z_spec"].to_numpy().astype(np.float64), numbers("z_spec")
    has, had = np.isfinite(new), np.isfinite(before)
    moved = (has | had) & (new != before)
    for name, nothing in ABOUT_Z_SPEC.items():
        if name in there and name not in values:
            spec = columns[name] = known[name]
            values[name] = pc.if_else(pa.array(moved), pa.scalar(nothing, column_type(spec)), column_of(old, name))
    error = values["z_spec_err"].to_numpy().astype(np.float64) if "z_spec_err" in values else np.full(len(new), np.nan)
    touched = moved | (has & ~same(error, numbers("z_spec_err"))) | (not LABELS.keys() <= known.keys())
    fresh = {"z": new, "z_err": np.where(has, error, np.nan), "z_kind": np.where(has, "spec", "none")}
    for name, spec in LABELS.items():
        spec = columns[name] = known.get(name, spec)
        kind = column_type(spec)
        kept = column_of(old, name) if name in there else pa.scalar(None, kind)
        values[name] = pc.if_else(pa.array(touched), pa.array(fresh[name]).cast(kind), kept)
    counts = {"added": has & ~had, "changed": has & had & moved, "removed": had & ~has}
    return {"redshifts": {name: int(rows.sum()) for name, rows in counts.items()}}


def column_of(table: pa.Table, name: str) -> pa.Array:
    return table[name].combine_chunks()


def same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a == b) | (np.isnan(a) & np.isnan(b))


def assign_folds(dataset: Dataset, count: int, seed: int) -> tuple[np.ndarray, dict]:
    """int32 [N]: the fold of each object's sky cell, -1 within a cutout's diagonal of another fold or without a
    position; and what the cells are. The folds hold about as many objects each."""
    manifest = dataset.manifest
    sides = [array.full_shape[-2:] for array in manifest.arrays.values() if array.kind == "image"]
    gap_px = max((math.hypot(*side) for side in sides), default=0.0)
    fractions = {str(fold): 1 / count for fold in range(count)}
    columns = manifest.columns.keys()
    if {"ra", "dec"} <= columns:
        places = np.stack([dataset.column(name).astype(float) for name in ("ra", "dec")])
        scale = max((band.pixel_scale_arcsec for band in manifest.bands), default=0.0)
        order = manifest.splits.get("healpix_order", CELL_ORDER)
        if type(order) is not int or not 0 <= order <= 29:
            raise InputError(f"splits.healpix_order: {order!r} of dataset.json must lie in 0..29; mend it")
        cells = {"healpix_order": order, "gap_arcsec": gap_px * scale}
        assign = lambda at: assign_splits(
            *at, gap_arcsec=gap_px * scale, order=order, fractions=fractions, seed=seed, balanced=True
        )
    elif {"x", "y"} <= columns and isinstance(manifest.splits.get("cell_px"), int | float):  # of one tile
        places = np.stack([dataset.column(name).astype(float) for name in ("x", "y")])
        cells = {"cell_px": manifest.splits["cell_px"], "gap_px": gap_px}
        cell_px = float(manifest.splits["cell_px"])
        assign = lambda at: assign_splits_pixels(*at, cell_px=cell_px, gap_px=gap_px, fractions=fractions, seed=seed)
    else:
        raise InputError(
            "folds: the dataset has neither ra and dec nor cells in pixels to deal out; convert it with them"
        )
    fold, known = np.full(len(dataset), -1, np.int32), np.isfinite(places).all(0)
    names, _ = assign(places[:, known])
    fold[known] = np.where(names == GAP, "-1", names).astype(np.int32)
    return fold, cells
