"""Any TensorFlow dataset (TFDS) that can be read at random -> dataset, without TensorFlow.

    python -m data_tools.from_tfds NAME|FOLDER --out DATASET [--bands BANDS.toml] [--rename z=redshift] [--skip FIELD]

FOLDER is one that holds dataset_info.json. Arrays and scalars of every split are taken by their own names; --rename and
--skip say otherwise. docs/formats.md says what becomes of each feature. An interrupted import goes on when the same
command is given again.
"""

import argparse
import json
import math
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data_tools.bands import load_bands
from data_tools.importing import (
    Import,
    Names,
    Samples,
    add_arguments,
    add_array_arguments,
    array_kind,
    check_arguments,
    described,
    import_dataset,
    row_shards,
)
from jaxz.data.manifest import Array, Column
from jaxz.errors import InputError, run

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder
    from tensorflow_datasets.core.features import FeaturesDict

NO_NAME = -1  # of a class, in TFDS


class Field(NamedTuple):
    """One leaf of a feature spec: dtype "string" or NumPy's; names of classes, if it has any."""

    dtype: str
    shape: tuple[int | None, ...]
    names: list[str]
    image: bool


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(prog="python -m data_tools.from_tfds", description=__doc__.split("\n\n")[0])
    parser.add_argument("source", help="name of a TFDS dataset, such as mnist, or a folder with dataset_info.json")
    parser.add_argument("--data_dir", help="where TFDS keeps its datasets (default its own)")
    add_arguments(parser)
    add_array_arguments(parser)
    parser.add_argument("--samples_per_shard", type=int, default=1000, help="default 1000")
    parser.add_argument(
        "--max",
        action="append",
        default=[],
        metavar="FIELD=N",
        help="entries of the variable axis, at most; repeatable",
    )
    args = parser.parse_args(argv)
    check_arguments(args)
    print(json.dumps(import_dataset(args, argv, plan_import(args)), indent=1))
    return None


def tfds() -> ModuleType:
    """Raises InputError where it is not installed: it is an extra."""
    try:
        import tensorflow_datasets

        return tensorflow_datasets
    except ImportError as error:
        raise InputError(f"tensorflow-datasets: not installed ({error}); pip install 'jaxz[tfds]'") from None


def plan_import(args: argparse.Namespace) -> Import:
    """What the dataset's own description says, and how it is read."""
    builder = open_builder(args)
    names, bands = Names(args), load_bands(args.bands)[0] if args.bands else ()
    fields = leaves(builder.info.features)
    names.check(fields)
    taken = {path: field for path, field in fields.items() if path not in names.skipped}
    last = channels_last(args, taken)
    arrays, columns, longest = {}, {}, maxima(args, taken)
    kept = (builder.info.metadata or {}).get("columns", {})  # of a dataset that to_tfds wrote
    for path, field in taken.items():
        if field.shape == ():
            of = f"{path} of {builder.info.full_name}"
            columns[names(path)] = described(names(path), field.dtype, kept.get(path, {}), of)
            continue
        shape = (field.shape[-1], *field.shape[:-1]) if path in last else field.shape
        arrays[names(path)] = Array(array_kind(names(path), shape, bands), field.dtype, shape, max=longest.get(path))
    columns.setdefault("object_id", Column("string", "", "split and position in it"))
    columns.setdefault("split", Column("string", "", "of the TFDS dataset"))
    parts = {name: len_of(builder, name) for name, info in builder.info.splits.items() if info.num_examples}
    starts = np.cumsum([0, *parts.values()])
    shards, rows_of = row_shards(int(starts[-1]), args.samples_per_shard)
    sources = {split: builder.as_data_source(split) for split in parts}
    read = partial(read_shard, sources, starts, taken, names, last, longest)
    about = {
        "name": builder.info.full_name, "splits": parts, "channels_last": sorted(last),
        "description": builder.info.description, "citation": builder.info.citation,
    }  # fmt: skip
    plan = {"name": builder.info.full_name, "splits": parts, "max": sorted(args.max)}
    return Import("from_tfds", arrays, bands, columns, int(starts[-1]), shards, lambda n: read(rows_of(n)), plan, about)


def open_builder(args: argparse.Namespace) -> "DatasetBuilder":
    """The TFDS builder of a prepared dataset. Raises InputError where there is none."""
    library, folder = tfds(), Path(args.source)
    try:
        if (folder / "dataset_info.json").exists():
            builder = library.builder_from_directory(folder)
        else:
            builder = library.builder(args.source, data_dir=args.data_dir, try_gcs=False)
    except Exception as error:  # TFDS has no common one
        first = str(error).strip().split("\n")[0]
        raise InputError(f"source: {args.source!r} is no TFDS dataset ({type(error).__name__}: {first})") from None
    if not builder.info.splits:
        raise InputError(
            f"source: {args.source!r} is not prepared in {builder.data_dir}; run `tfds build "
            "--file_format=array_record`"
        )
    return builder


def len_of(builder: "DatasetBuilder", split: str) -> int:
    """The samples of a split. Raises InputError where its files cannot be read at random."""
    try:
        return len(builder.as_data_source(split))
    except Exception as error:  # TFDS has no common one
        first = str(error).strip().split("\n")[0]
        raise InputError(
            f"source: split {split!r} cannot be read at random ({type(error).__name__}: {first}); write it again with "
            "`tfds convert_format --out_file_format=array_record`"
        ) from None


def leaves(features: "FeaturesDict", path: str = "") -> dict[str, Field]:
    """{path: Field}, depth first; the features of a dict inside another are named outer/inner."""
    found: dict[str, Field] = {}
    library = tfds().features
    for name, feature in sorted(features.items()):  # TFDS keeps no order
        where = f"{path}{name}"
        if isinstance(feature, library.FeaturesDict):
            found |= leaves(feature, f"{where}/")
        elif isinstance(feature, library.Dataset) or not isinstance(feature.shape, tuple):
            raise InputError(
                f"source: feature {where!r} ({type(feature).__name__}) holds several arrays; none can be it"
            )
        elif isinstance(feature, library.Text):
            found[where] = Field("string", (), [], False)
        elif isinstance(feature, library.ClassLabel) and feature.names is not None:
            found[where] = Field("string", (), list(feature.names), False)
        else:
            dtype = np.dtype(feature.np_dtype)
            dtype = "string" if dtype.kind in "OSU" else dtype.name
            found[where] = Field(dtype, feature.shape, [], isinstance(feature, library.Image))
    return found


def channels_last(args: argparse.Namespace, fields: dict[str, Field]) -> set[str]:
    """The fields that are stored [C,H,W] and come [H,W,C]: TFDS's images, and those that the user names."""
    for path in args.channels_last:
        if path not in fields or len(fields[path].shape) != 3:
            raise InputError(f"channels_last: {path!r} is no field of three axes; there are {sorted(fields)}")
    return {path for path, field in fields.items() if field.image} | set(args.channels_last)


def maxima(args: argparse.Namespace, fields: dict[str, Field]) -> dict[str, int]:
    """The most entries of each field with a variable axis. Raises InputError for what cannot be stored."""
    given = {}
    for pair in args.max:
        path, _, number = pair.partition("=")
        if path not in fields or None not in fields[path].shape or not number.isdigit():
            raise InputError(f"max: {pair!r} must be FIELD=N of a field with a variable axis")
        given[path] = int(number)
    for path, field in fields.items():
        if field.dtype == "string" and field.shape:
            raise InputError(f"source: {path!r} is a list of texts, which no array holds; add --skip {path}")
        if field.shape.count(None) > 1:
            raise InputError(f"source: {path!r} is {field.shape}; one axis at most may vary; add --skip {path}")
        if None in field.shape and path not in given:
            raise InputError(f"max: {path!r} is {field.shape}; say how long it may be with --max {path}=N, or skip it")
    return given


def read_shard(
    sources: dict[str, Any],
    starts: np.ndarray,
    fields: dict[str, Field],
    names: Names,
    last: set[str],
    longest: dict[str, int],
    rows: range,
) -> Samples:
    """The samples of some rows, split after split."""
    ids, splits = [], []
    examples: list[dict[str, Any]] = []
    for (split, source), start, stop in zip(sources.items(), starts[:-1], starts[1:], strict=True):
        positions = range(max(rows.start, start) - start, max(min(rows.stop, stop) - start, 0))
        examples += source.__getitems__(list(positions)) if positions else []
        ids += [f"{split}-{position}" for position in positions]
        splits += [split] * len(positions)
    arrays: dict[str, list] = {}
    columns: dict[str, list] = {}
    for path, field in fields.items():
        values = [value_at(example, path) for example in examples]
        if field.shape == ():
            columns[names(path)] = [scalar(value, field) for value in values]
            continue
        values = [np.asarray(value, field.dtype).reshape(fitting(field.shape, np.shape(value))) for value in values]
        if path in longest and (most := max(value.shape[field.shape.index(None)] for value in values)) > longest[path]:
            raise InputError(
                f"max: {path!r} has {most} entries in a sample of {splits[0]!r}; give --max {path}={most} or more"
            )
        arrays[names(path)] = [value.transpose(2, 0, 1) for value in values] if path in last else values
    columns.setdefault("object_id", ids)
    columns.setdefault("split", splits)
    return [f"{row:09d}" for row in rows], arrays, columns


def value_at(example: dict[str, Any], path: str) -> Any:
    """Of a leaf, in what TFDS gives: an array, a number, bytes, or a list of them."""
    for name in path.split("/"):
        example = example[name]
    return example


def fitting(shape: tuple[int | None, ...], found: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one value: an empty list has lost its other axes."""
    return tuple(0 if n is None else n for n in shape) if math.prod(found) == 0 else found


def scalar(value: Any, field: Field) -> str | bool | int | float | None:
    """What a column takes of one value."""
    if field.names:
        return None if value == NO_NAME else field.names[int(value)]
    if field.dtype == "string":
        return value.decode() if isinstance(value, bytes) else str(value)
    return np.asarray(value, field.dtype).item()


if __name__ == "__main__":
    run(main, resumes=True)
