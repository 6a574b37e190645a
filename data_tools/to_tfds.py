"""Dataset -> TFDS dataset of ArrayRecord files, without TensorFlow.

    python -m data_tools.to_tfds DATASET --out DATA_DIR --name my_survey [--where FILTER] [--ids FILE] [--rows 0:100]

DATA_DIR/my_survey/1.0.0 then opens with tensorflow_datasets.builder_from_directory. It appears whole or not at all.
"""

import argparse
import contextlib
import json
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from data_tools import selection
from data_tools.bands import bands_toml
from data_tools.from_tfds import tfds
from jaxz.data.dataset import Dataset, open_dataset
from jaxz.errors import InputError, run
from jaxz.files import replace


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(prog="python -m data_tools.to_tfds", description=__doc__.split("\n\n")[0])
    selection.add_arguments(parser)
    parser.add_argument("--out", required=True, type=Path, help="folder of TFDS datasets (its data_dir)")
    parser.add_argument("--name", required=True, help="of the TFDS dataset: lower case, digits and '_'")
    parser.add_argument("--version", default="1.0.0", help="of the TFDS dataset (default 1.0.0)")
    parser.add_argument("--dry_run", action="store_true", help="say what would be written, and write nothing")
    args = parser.parse_args(argv)
    for name, rule in (("name", "[a-z][a-z0-9_]*"), ("version", r"\d+\.\d+\.\d+")):
        if not re.fullmatch(rule, getattr(args, name)):
            raise InputError(f"{name}: {getattr(args, name)!r} must match {rule}")
    out = args.out / args.name / args.version
    if out.exists():
        raise InputError(f"out: {str(out)!r} exists; give another --version")
    tfds()
    from data_tools.tfds_builder import JaxzDataset  # which imports tensorflow_datasets

    dataset = open_dataset(args.dataset)
    splits = rows_of_splits(dataset, selection.select(dataset, args))
    summary = {"out": str(out), "splits": {name: len(rows) for name, rows in splits.items()}}
    if args.dry_run:
        print(json.dumps({**summary, "dry_run": True}, indent=1))
        return None
    builder = JaxzDataset(dataset, splits, name=args.name, version=args.version, data_dir=str(args.out))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's stop is a Ctrl-C
    needed = selection.output_bytes(dataset.manifest, sum(map(len, splits.values())))
    with contextlib.redirect_stdout(sys.stderr), selection.room_at(args.out, needed):  # stdout: its own words
        builder.download_and_prepare()
    replace(out / "bands.toml", bands_toml(dataset.manifest.bands).encode())
    print(json.dumps(summary, indent=1))
    return None


def rows_of_splits(dataset: Dataset, rows: np.ndarray) -> dict[str, np.ndarray]:
    """{split: rows} by the column `split`; without one, all are "train"."""
    if "split" not in dataset.manifest.columns:
        return {"train": rows}
    column = dataset.scan(columns=("split",)).columns["split"]
    found = {
        name: np.flatnonzero(pc.fill_null(pc.equal(column, name), False))
        for name in pc.unique(column).to_pylist()
        if name
    }
    found = {name: np.intersect1d(rows, those, assume_unique=True) for name, those in sorted(found.items())}
    if lost := len(rows) - sum(map(len, found.values())):
        raise InputError(f"where: {lost} of the {len(rows)} rows have no split; add --where 'not isnull(split)'")
    found = {name: those for name, those in found.items() if len(those)}
    if bad := [name for name in found if not re.fullmatch(r"[\w-]+", name) or name == "all"]:
        raise InputError(
            f'split: {bad[0]!r} cannot be a split of TFDS; leave it out with --where "split != {bad[0]!r}"'
        )
    return found


if __name__ == "__main__":
    run(main)
