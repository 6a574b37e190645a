"""Adds arrays to a dataset without touching its shards: a layer, joined by object.

    python -m data_tools.add_layer DATASET --name NAME --from OTHER [--arrays NEW=OLD,...] [--on object_id|key]
        [--ids IDS.npy] [--missing refuse|mask] [--workers 2]

OTHER is a dataset, of which compact arrays are taken as they are, with the masks and bands of what is taken; a .parquet
table or .npz file with a column object_id (or key) and arrays with a row for each; or a .npy array, named NAME, whose
rows are of the object ids in --ids. Objects of DATASET that OTHER lacks are refused, or, with --missing mask, hold
zeros and a mask that says so. Writes DATASET/layers/NAME (docs/labels_and_layers.md) and a summary as JSON on stdout.
The same command finishes an interrupted layer.
"""

import argparse
import dataclasses
import json
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_tools.inputs import WRITING, versions
from data_tools.layer_sources import ABSENT, IDS, Source, Take, open_source
from jaxz.data import compact
from jaxz.data.dataset import Dataset, open_dataset
from jaxz.data.layers import entries
from jaxz.data.manifest import Array
from jaxz.data.transport import is_remote
from jaxz.data.writer import LayerWriter
from jaxz.errors import InputError, run, suggest
from jaxz.progress import in_threads

NODATA = "nodata"  # that of the masks that data_tools.convert writes


def main(argv: list[str]) -> int | None:
    args = parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's stop is a Ctrl-C
    if is_remote(args.dataset):
        raise InputError(f"dataset: {args.dataset!r} is remote; write the layer where it is")
    dataset = open_dataset(args.dataset)
    source = open_source(args.source, args.name, args.ids)
    names = with_masks(chosen(args.arrays, source), source)
    if not names:
        raise InputError(
            f"from: {args.source!r} has no arrays of plain numbers beside the ids; give some, or one value an object "
            "to data_tools.relabel"
        )
    on = join_column(args.on, dataset, source)
    rows = match(dataset, source, on)
    lacking = np.flatnonzero(rows < 0)
    if len(lacking) and (args.missing == "refuse" or len(lacking) == len(rows)):
        first = dataset.arrow(columns=["key"])["key"][int(lacking[0])].as_py()
        raise InputError(
            f"from: {args.source} lacks {len(lacking)} of {len(rows)} objects by {on}, first that of sample {first!r}; "
            "give one that has them, or --missing mask"
        )
    arrays = {new: source.arrays[old] for new, old in names.items()}
    arrays = masked(arrays) if len(lacking) else arrays
    if taken := entries(arrays) & (entries(dataset.arrays) | dataset.manifest.columns.keys()):
        raise InputError(f"arrays: {min(taken)!r} is in {args.dataset!r} already; rename it with --arrays NEW=OLD")
    plan = {"tool": "add_layer", "source": source.digest, "arrays": names, "on": on, "missing": args.missing}
    provenance = {"tool": "data_tools.add_layer", "arguments": argv, "versions": versions("numpy", *WRITING)}
    bands = source.bands if any(array.kind == "image" for array in arrays.values()) else ()
    writer = LayerWriter(dataset, args.name, arrays, plan, bands, provenance)
    if writer.complete:
        print(f"{writer.path} is complete already", file=sys.stderr)
    else:
        todo = [n for n in range(writer.shards) if not writer.done(n)]
        write = partial(write_shard, writer, source.reading(names), arrays, rows)
        with writer.alone():
            in_threads(write, todo, args.workers, "shards")
        writer.finish()
    described = {name: {"dtype": a.dtype, "shape": a.shape, "encoding": a.encoding} for name, a in arrays.items()}
    summary = {"layer": str(writer.path), "samples": len(rows), "missing": len(lacking), "on": on, "arrays": described}
    print(json.dumps({**summary, "bands": [band.name for band in bands]}, indent=1))
    return None


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data_tools.add_layer", description=__doc__.split("\n\n")[0])
    parser.add_argument("dataset")
    parser.add_argument("--name", required=True, help="of the layer")
    parser.add_argument("--from", dest="source", required=True, help="a dataset, or a .parquet, .npz or .npy file")
    parser.add_argument("--arrays", help="NEW=OLD,... or names; default all")
    parser.add_argument("--on", choices=IDS, help="the column to join by (default object_id where both have it)")
    parser.add_argument("--ids", type=Path, help="of a .npy file: a .npy array of its rows' object ids")
    parser.add_argument("--missing", choices=("refuse", "mask"), default="refuse", help="of objects (default refuse)")
    parser.add_argument("--workers", type=int, default=2, help="threads (default 2)")
    args = parser.parse_args(argv)
    if args.workers < 1:
        raise InputError(f"workers: {args.workers} must be at least 1")
    return args


def chosen(text: str | None, source: Source) -> dict[str, str]:
    """{new name: name in the source} of --arrays."""
    if text is None:
        return {name: name for name in source.arrays if not name.endswith("_mask")}
    names = {}
    for part in text.split(","):
        new, _, old = part.partition("=")
        if (old or new) not in source.arrays:
            raise InputError(f"arrays: {old or new!r} is not in the source.{suggest(old or new, source.arrays)}")
        names[new] = old or new
    return names


def with_masks(names: dict[str, str], source: Source) -> dict[str, str]:
    """`names` with the masks of these arrays: without it, a pixel that is not observed would be a flux of 0."""
    masks = {f"{new}_mask": f"{old}_mask" for new, old in names.items() if f"{old}_mask" in source.arrays}
    return {**names, **masks}


def join_column(on: str | None, dataset: Dataset, source: Source) -> str:
    ours = {"key", *dataset.manifest.columns}
    for name in IDS if on is None else (on,):
        if name in ours and name in source.ids:
            return name
    raise InputError(
        f"on: {on or ' or '.join(IDS)} is not in both; the dataset has {sorted(ours & set(IDS))}, the source "
        f"{sorted(source.ids)}"
    )


def match(dataset: Dataset, source: Source, on: str) -> np.ndarray:
    """int64 [N]: the source's row of each of the dataset's, -1 where it has none. Raises InputError for ids of another
    type, or that the source has more than once."""
    wanted, known = dataset.arrow(columns=[on])[on], source.ids[on]()
    if pa.types.is_string(wanted.type) != pa.types.is_string(known.type):
        raise InputError(f"on: {on} is {wanted.type} in the dataset and {known.type} in the source; give the same ids")
    try:
        known = known.cast(wanted.type)
    except pa.ArrowException as error:
        raise InputError(f"on: {on} of the source is not {wanted.type} as in the dataset ({error})") from None
    there = known.drop_null()
    if pc.count_distinct(there).as_py() != len(there):
        raise InputError(f"on: {on} stands more than once in the source for some objects; leave one row of each")
    found = pc.index_in(wanted, value_set=known, skip_nulls=True)
    return found.fill_null(-1).to_numpy().astype(np.int64)


def masked(arrays: dict[str, Array]) -> dict[str, Array]:
    """The arrays, with masks in which an object can be said to be absent: their own or, of one value a band of an image
    and one in all of others, new ones. An array of variable length has its own: there, length 0 says so."""
    found = {}
    for name, array in arrays.items():
        if name.endswith("_mask") and name.removesuffix("_mask") in arrays:
            bits = array.bits or {}
            if not {NODATA, ABSENT} & bits.keys():
                bits = {**bits, ABSENT: 1 << max([0, *bits.values()]).bit_length()}
            if np.dtype(array.dtype).kind not in "iu" or max(bits.values()) > np.iinfo(array.dtype).max:
                raise InputError(f"missing: {name}, of {array.dtype}, has no bit left to say so; use --missing refuse")
            found[name] = dataclasses.replace(array, bits=bits)
        elif array.variable or f"{name}_mask" in arrays:
            found[name] = array
        else:
            shape = (array.shape[0] if array.kind == "image" else 1, *[1] * (len(array.shape) - 1))
            found |= {name: array, f"{name}_mask": Array("mask", "uint8", shape, "index", bits={ABSENT: 1})}
    return found


def nothing(array: Array) -> np.ndarray | bytes:
    """What stands for an object that the source lacks."""
    bits = array.bits or {}
    value = np.full([n or 0 for n in array.shape], bits.get(NODATA, bits.get(ABSENT, 0)), array.dtype)
    return compact.encode(value, array.compact.steps, array.compact.seed) if array.compact else value


def write_shard(writer: LayerWriter, take: Take, arrays: dict[str, Array], rows: np.ndarray, n: int) -> None:
    """Write shard `n` of the layer. Raises InputError for what the writer refuses, such as values that are not
    finite."""
    rows = rows[slice(*writer.dataset.starts[n : n + 2])]
    there = np.flatnonzero(rows >= 0)
    found, values = take(rows[there]), {}
    for name, array in arrays.items():
        values[name] = [nothing(array)] * len(rows)
        seen = [np.zeros(array.full_shape, array.dtype)] * len(there)  # of a mask made here
        taken = found.get(name, seen)
        for at, value in zip(there.tolist(), taken, strict=True):
            values[name][at] = value
    try:
        writer.write_shard(n, values)
    except ValueError as error:
        raise InputError(f"from: {error}") from None


if __name__ == "__main__":
    run(main, resumes=True)
