"""Gives a dataset new labels, weights or folds as an overlay, which no shard is rewritten for.

    python -m data_tools.relabel DATASET --name NAME --from TABLE [--column NEW=OLD ...] [--on COLUMN | --match ARCSEC]
    python -m data_tools.relabel DATASET --name NAME --folds 5 [--seed 0]
    python -m data_tools.relabel DATASET --name NAME --near_balanced 100 [--z_step 0.02] [--mag_step 0.5] [--seed 0]

TABLE is FITS, ECSV, CSV, VOTable or Parquet. Its columns, by default those that the dataset has too, become columns of
the dataset for the objects of its rows: those with the object_id in COLUMN, or, with --match, the object nearest to
--ra and --dec (deg, ICRS), if it is within so many arcseconds; by default in columns of the usual names. Of several
rows of one object the best z_quality wins, then the nearest, then the first. Where z_spec changes, z, z_err and z_kind
follow it. --folds deals sky cells out to as many folds for cross-validation, with the gap of the splits between them.
--near_balanced chooses labelled training objects at random so that no cell of redshift and mag_ref has more than so
many of them: the subset on which Lin et al. (2022) train the last layer anew.

Writes DATASET/overlays/NAME.parquet (docs/labels_and_layers.md), and what was done as JSON on stdout.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
from astropy.table import Table

from data_tools import labels as of
from data_tools.catalogs.aliases import matching
from data_tools.inputs import WRITING, sha256, versions
from jaxz.data.dataset import Dataset, open_dataset
from jaxz.data.index import column_type
from jaxz.data.manifest import Column
from jaxz.data.overlays import overlay_ids, overlay_path, to_parquet
from jaxz.errors import InputError, run
from jaxz.files import replace
from jaxz.photoz.balance import near_balanced
from jaxz.results import sure_labels

SHOWN = 3  # ids that found no object


def main(argv: list[str]) -> int | None:
    args = parse(argv)
    dataset = open_dataset(args.dataset, overlays=args.overlay)
    path = overlay_path(dataset, args.name, replace=True)
    if path.exists() and not args.replace:
        raise InputError(f"name: {path} exists; choose another name, or give --replace")
    make = folds if args.folds else subset if args.near_balanced else labels
    ids, values, columns, summary = make(dataset, args)
    provenance = {
        "tool": "data_tools.relabel", "arguments": argv, "rows": dataset.fingerprint()["rows"],
        "overlays": args.overlay, "summary": summary, "versions": versions("numpy", "astropy", *WRITING),
    }  # fmt: skip
    if args.table:
        size, digest = args.table.stat().st_size, sha256(args.table)
        provenance["input"] = {"name": args.table.name, "bytes": size, "sha256": digest}
    path.parent.mkdir(exist_ok=True)
    replace(path, to_parquet(ids, values, columns, provenance))
    print(json.dumps({"overlay": str(path), **summary}, indent=1))
    return None


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data_tools.relabel", description=__doc__.split("\n\n")[0])
    parser.add_argument("dataset")
    parser.add_argument("--name", required=True, help="of the overlay")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--from", dest="table", type=Path, metavar="TABLE", help="the new columns, a row an object")
    what.add_argument("--folds", type=int, metavar="K", help="write the column fold, 0 to K - 1, by sky cell")
    parser.add_argument("--column", nargs="+", action="extend", default=[], metavar="NEW=OLD", help="columns of TABLE")
    what.add_argument(
        "--near_balanced", type=int, metavar="MOST", help="write the column near_balanced, 1 for at most so many a cell"
    )
    parser.add_argument("--z_step", type=float, default=0.02, help="of the cells, in redshift (default 0.02)")
    parser.add_argument("--mag_step", type=float, default=0.5, help="of the cells, in mag_ref (default 0.5)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--on", metavar="COLUMN", help="TABLE's object ids (default by its usual names)")
    how.add_argument("--match", type=float, metavar="ARCSEC", help="join by position, within so many arcseconds")
    parser.add_argument("--ra", help="column of TABLE for --match (default by its usual names)")
    parser.add_argument("--dec", help="column of TABLE for --match (default by its usual names)")
    parser.add_argument("--seed", type=int, default=0, help="of folds and near_balanced (default 0)")
    parser.add_argument("--overlay", action="append", default=[], help="an overlay that the new one is laid over")
    parser.add_argument("--replace", action="store_true", help="where the overlay exists already")
    args = parser.parse_args(argv)
    if args.folds is not None and not 2 <= args.folds <= 1000:
        raise InputError(f"folds: {args.folds} must lie in 2 .. 1000")
    if args.near_balanced is not None and args.near_balanced < 1:
        raise InputError(f"near_balanced: {args.near_balanced} must be at least 1")
    for name in ("z_step", "mag_step"):
        if not 1e-4 <= getattr(args, name) <= 100:
            raise InputError(f"{name}: {getattr(args, name)} must lie in 0.0001 .. 100")
    if not 0 <= args.seed < 2**63:
        raise InputError(f"seed: {args.seed} must lie in 0 .. 2^63 - 1")
    if args.match is not None and not 0 < args.match <= 3600:
        raise InputError(f"match: {args.match} must lie in 0 .. 3600 arcseconds")
    if args.name in args.overlay:
        raise InputError(f"overlay: {args.name!r} is the one to write; name those below it")
    return args


def labels(dataset: Dataset, args: argparse.Namespace) -> tuple[pa.Array, dict[str, pa.Array], dict[str, Column], dict]:
    """object_id [K], {column: values [K]}, what the columns are, and a summary: of the objects that TABLE names."""
    table = of.read_table(args.table, "from")
    manifest = dataset.manifest
    for option, name in {"ra": "ra", "dec": "dec"}.items() if args.match else [("on", "object_id")]:
        setattr(args, option, getattr(args, option) or joined_by(table, option, name, args.table))
    joining = {args.ra, args.dec} if args.match else {args.on}
    names = of.chosen_columns(args.column, table.colnames, manifest, joining)
    values, columns, invalid = of.read_columns(table, names, manifest.columns, args.table)
    usable = np.ones(len(table), bool)
    if args.match:
        usable = of.has_redshift(values, len(table))  # without one, a row nearby would take the object's own away
        place, separation = of.by_position(dataset, table, args.ra, args.dec, args.match, usable, args.table)
        columns["match_sep"] = Column("float32", "arcsec", f"from the position in {args.table.name}")
        values["match_sep"] = pa.array(separation.astype(np.float32))
    else:
        place, separation = of.by_id(dataset, table, args.on, args.table), np.zeros(len(table))
    if not (place >= 0).any():
        raise InputError(f"from: none of the {len(table)} rows of {str(args.table)!r} is of an object; check the ids")
    rows = of.best_rows(place, separation, values)
    ids = overlay_ids(dataset, place[rows])
    values = {name: found.take(pa.array(rows)) for name, found in values.items()}
    changes = {}
    if "z_spec" in values:
        changes = of.follow(dataset, place[rows], values, columns)
    lost = np.flatnonzero(usable & (place < 0))
    shown = [str(value) for value in table[args.on][lost[:SHOWN]]] if not args.match else lost[:SHOWN].tolist()
    if len(lost):
        what = "rows" if args.match else f"ids in {args.on!r}"
        print(f"{len(lost)} of {len(table)} {what} are of no object, first: {shown}", file=sys.stderr)
    summary = {
        "rows": len(table), "matched": len(rows), "unmatched": len(lost), "unmatched_first": shown,
        "not the best of their object": int((place >= 0).sum()) - len(rows), "without a redshift": int((~usable).sum()),
        "invalid": invalid, "columns": {name: f"{c.dtype} {c.unit}".strip() for name, c in columns.items()}, **changes,
    }  # fmt: skip
    return ids, values, columns, summary


def joined_by(table: Table, option: str, name: str, path: Path) -> str:
    """The column of a table that has the name, or else a usual name of it. Raises InputError where there is no one."""
    found = [name] if name in table.colnames else matching(name, table.colnames)
    if len(found) != 1:
        which = f"{found} may all be" if found else f"of {table.colnames} none is known as"
        raise InputError(f"{option}: in {str(path)!r} {which} {name}; name the column with --{option} COLUMN")
    return found[0]


def folds(dataset: Dataset, args: argparse.Namespace) -> tuple[pa.Array, dict[str, pa.Array], dict[str, Column], dict]:
    """As `labels`: the column fold of all objects."""
    number, cells = of.assign_folds(dataset, args.folds, args.seed)
    column = Column("int32", "", f"fold of the sky cell, of {args.folds}; -1: too near to another fold to use")
    counts = {str(fold): int((number == fold).sum()) for fold in range(-1, args.folds)}
    return *of_all(dataset, "fold", number, column), {"folds": counts, "seed": args.seed, **cells}


def subset(dataset: Dataset, args: argparse.Namespace) -> tuple[pa.Array, dict[str, pa.Array], dict[str, Column], dict]:
    """As `labels`: the column near_balanced of all objects."""
    columns = dataset.manifest.columns
    for name in ("split", "z", "z_kind", "mag_ref"):
        if name not in columns:
            raise InputError(f"near_balanced: the dataset has no column {name!r}; add it with another overlay")
    rows = dataset.select(f"split == 'train' and {sure_labels(columns)}")
    z, magnitude = (dataset.column(name)[rows].astype(float) for name in ("z", "mag_ref"))
    known = np.isfinite(z) & np.isfinite(magnitude)
    if not known.any():
        raise InputError("near_balanced: no training object has a sure redshift and a mag_ref; add labels")
    z_edges, mag_edges = (
        np.arange(np.floor(values[known].min() / step), np.floor(values[known].max() / step) + 2) * step
        for values, step in ((z, args.z_step), (magnitude, args.mag_step))
    )
    chosen = np.zeros(len(dataset), np.int32)
    chosen[rows[near_balanced(z, magnitude, z_edges, mag_edges, args.near_balanced, args.seed)]] = 1
    column = Column("int32", "", f"1 in a subset with at most {args.near_balanced} objects a cell of z and mag_ref")
    summary = {"labelled": int(known.sum()), "chosen": int(chosen.sum()), "seed": args.seed}
    summary |= {"z_step": args.z_step, "mag_step": args.mag_step}
    return *of_all(dataset, "near_balanced", chosen, column), summary


def of_all(
    dataset: Dataset, name: str, values: np.ndarray, column: Column
) -> tuple[pa.Array, dict[str, pa.Array], dict[str, Column]]:
    """object_id [K], {name: values [K]} and {name: column} of all objects that have an id."""
    rows = np.flatnonzero(dataset.arrow(columns=["object_id"])["object_id"].is_valid())
    return overlay_ids(dataset, rows), {name: pa.array(values[rows], column_type(column))}, {name: column}


if __name__ == "__main__":
    run(main)
