"""Some rows of a dataset, for the exporters: which they are, and their arrays and scalars, batch by batch."""

import argparse
import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa

from data_tools.inputs import check_space
from jaxz.data import compact
from jaxz.data.dataset import Dataset
from jaxz.data.manifest import Manifest
from jaxz.data.stream import Source, Stream
from jaxz.errors import InputError

BATCH = 256  # samples that are held at once

Named = dict[str, np.ndarray]  # {name: [N, ...]} of the samples of a batch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset")
    parser.add_argument("--where", help="only rows that pass this filter, such as \"z_kind == 'spec' and z < 1\"")
    parser.add_argument("--ids", type=Path, help="only objects whose object_id stands in this text file, one a line")
    parser.add_argument("--rows", help="only these row numbers, such as 0:100,205 (100 is not among them)")


def select(dataset: Dataset, args: argparse.Namespace) -> np.ndarray:
    """int64 [M]: the rows that pass --where, --ids and --rows, in order; quarantined ones never. Raises InputError for
    an id or a row that there is not, and where none is left."""
    rows = dataset.select(args.where)
    if args.ids is not None:
        rows = np.intersect1d(rows, rows_of_ids(dataset, args.ids), assume_unique=True)
    if args.rows is not None:
        rows = np.intersect1d(rows, row_numbers(args.rows, len(dataset)), assume_unique=True)
    if not len(rows):
        raise InputError(f"where, ids, rows: they select none of the {len(dataset)} rows; loosen them")
    return rows


def rows_of_ids(dataset: Dataset, path: Path) -> np.ndarray:
    """int64: the rows of the objects that a text file names."""
    if "object_id" not in dataset.manifest.columns:
        raise InputError("ids: the dataset has no column 'object_id'; select by --where or --rows")
    try:
        wanted = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"ids: {str(path)!r} is no text ({error}); give a file of object_id, one a line") from None
    known = dataset.arrow(columns=["object_id"])["object_id"].cast(pa.string())
    found = np.flatnonzero(pa.compute.is_in(known, value_set=pa.array(wanted, pa.string())).to_numpy())
    if missing := sorted(set(wanted) - set(known.take(pa.array(found)).to_pylist())):
        raise InputError(f"ids: {len(missing)} of {path} are not in the dataset, such as {missing[0]!r}; remove them")
    return found


def row_numbers(text: str, count: int) -> np.ndarray:
    """int64, ascending: the numbers that a text such as 0:100,205 says."""
    chosen = np.zeros(count, bool)
    for part in text.split(","):
        start, colon, stop = part.strip().partition(":")
        try:
            first = int(start)
            last = int(stop) if colon else first + 1
        except ValueError:
            raise InputError(
                f"rows: {part!r} is neither a number nor START:STOP; write for example 0:100,205"
            ) from None
        if not 0 <= first < last <= count:
            raise InputError(f"rows: {part!r} does not lie within the {count} rows of the dataset; correct it")
        chosen[first:last] = True
    return np.flatnonzero(chosen)


def reading(dataset: Dataset) -> contextlib.closing[Stream]:
    """A context with what reads the arrays of a dataset."""
    return contextlib.closing(Stream(Source(dataset), BATCH))


def output_bytes(manifest: Manifest, count: int) -> int:
    """Of the arrays of so many rows as the exporters write them: images of floats as float32, the others as they are,
    variable ones padded."""
    wide = {name for name, array in manifest.arrays.items() if array.kind == "image" and array.dtype == "float16"}
    return count * sum(array.nbytes * (2 if name in wide else 1) for name, array in manifest.arrays.items())


@contextlib.contextmanager
def room_at(out: Path, needed: int) -> Iterator[None]:
    """Where a library writes: raises InputError where there is no room for so many bytes, and OSError that names `out`
    where there is none any more, whichever error the library has for it."""
    check_space(out, needed)
    try:
        yield
    except Exception as error:
        if os.strerror(errno.ENOSPC) in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out)) from None
        raise


def batches(stream: Stream, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Named, Named]]:
    """(rows [N], arrays {name: [N, ...]}, scalars {name: [N]} with key) of ascending rows, at most BATCH at once.

    Compact images are decoded to float32; a variable array is padded and has its <name>_mask."""
    dataset = stream.sources[0].dataset
    shards, within = dataset.locate(rows)
    for shard in np.unique(shards):
        here = np.flatnonzero(shards == shard)
        table = dataset.shard_table(int(shard), ("key", *dataset.manifest.columns)).take(pa.array(within[here]))
        for at in range(0, len(here), BATCH):
            some = rows[here[at : at + BATCH]]
            arrays = stream.fetch(some)
            del arrays["row"]
            yield some, decoded(arrays, dataset.manifest), scalars(table.slice(at, BATCH))


def count(dataset: Dataset, rows: np.ndarray) -> int:
    """How many batches that is."""
    return int((-(-np.bincount(dataset.locate(rows)[0]) // BATCH)).sum())


def decoded(arrays: Named, manifest: Manifest) -> Named:
    """The arrays of a batch with compact ones as float32 [N, ...], without what decodes them."""
    found = dict(arrays)
    for name, spec in manifest.arrays.items():
        if spec.compact:
            seed, at, value = (found.pop(f"{name}_{entry}") for entry in compact.ENTRIES)
            image = compact.restore(found[name], seed, spec.compact.steps)
            flat = image.reshape(len(image), -1)
            sample, slot = np.nonzero(at < flat.shape[1])
            flat[sample, at[sample, slot]] = value[sample, slot]
            found[name] = image
    return found


def scalars(table: pa.Table) -> Named:
    """NumPy columns: numbers and booleans as they are, missing reals NaN, text as str, missing text empty.

    Raises InputError where a whole number or a boolean is missing: no such value says so."""
    columns = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_string(column.type):
            columns[name] = np.array(column.fill_null("").to_pylist(), str)
        elif pa.types.is_floating(column.type):
            columns[name] = column.to_numpy(zero_copy_only=False)
        elif column.null_count:
            raise InputError(
                f"column {name!r} is missing in {column.null_count} rows; add --where 'not isnull({name})'"
            )
        else:
            columns[name] = column.to_numpy(zero_copy_only=False)
    return columns


def append(file: h5py.Group, name: str, values: np.ndarray, at: int, count: int) -> None:
    """Write rows at, at + 1, ... of field `name`, of `count` in all."""
    if values.dtype.kind == "U":
        values = values.astype(h5py.string_dtype())
    if name not in file:
        file.create_dataset(name, (count, *values.shape[1:]), values.dtype)
    file[name][at : at + len(values)] = values
