"""The index of a shard as a Parquet file, its pages under checksums: no bit of it can change without being noticed.

Indices written before jaxz asked for checksums have none; they are read all the same.
"""

import io
import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxz.data.manifest import Array, Column, Manifest, Shard

PLACES = {"offset": pa.int64(), "size": pa.int64(), "crc32": pa.uint32()}  # of a payload: columns {array}_{name}
SHARD = b"jaxz"  # metadata: samples, bytes and sha256 of the tar that the index was written for
UNREADABLE = (OSError, pa.ArrowException, ValueError)  # ValueError: names that are no UTF-8


def column_type(column: Column) -> pa.DataType:
    """What a column of the manifest is in the index."""
    return pa.string() if column.dtype == "string" else pa.from_numpy_dtype(np.dtype(column.dtype))


def place_types(array: Array) -> dict[str, pa.DataType]:
    """Of the columns {array}_{name} that say where an array's payloads are; of compact ones, how many exceptions."""
    return {**PLACES, "exceptions": pa.int32()} if array.compact else PLACES


def list_type(array: Array) -> pa.DataType:
    """Of an array that lives in the index: a list of fixed length."""
    return pa.list_(pa.from_numpy_dtype(np.dtype(array.dtype)), math.prod(array.full_shape))


def to_parquet(table: pa.Table, shard: dict) -> memoryview:
    """The bytes of an index file. shard: {samples, bytes, sha256} of its tar."""
    sink = io.BytesIO()
    table = table.replace_schema_metadata({SHARD: json.dumps(shard)})
    text = [field.name for field in table.schema if pa.types.is_string(field.type) and field.name != "key"]
    pq.write_table(table, sink, compression="zstd", use_dictionary=text, write_page_checksum=True)
    return sink.getbuffer()


def read_index(path: Path, columns: Iterable[str] | None = None) -> pa.Table:
    """The index, or the named columns of those that it has. Raises one of UNREADABLE."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:  # a third of pq.read_table's time
        return file.read(None if columns is None else list(columns), use_threads=False)


def shard_of(table: pa.Table) -> dict:
    """What the index says of the tar that it was written for; empty where it says nothing."""
    try:
        found = json.loads((table.schema.metadata or {}).get(SHARD, b"{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def index_types(manifest: Manifest) -> dict[str, pa.DataType]:
    """The columns that every index of the dataset has."""
    types = {"key": pa.string(), **{name: column_type(column) for name, column in manifest.columns.items()}}
    for name, array in manifest.arrays.items():
        if array.in_tar:
            types |= {f"{name}_{place}": kind for place, kind in place_types(array).items()}
        else:
            types[name] = list_type(array)
    return types


def index_problem(path: Path, shard: Shard, types: dict[str, pa.DataType]) -> str:
    """What is wrong with the index of a shard; "" where nothing is. All of it is read: its pages are under checksums,
    and of what is not, the names and types of the columns are known."""
    try:
        table = read_index(path)
    except UNREADABLE as error:
        return f"cannot be read ({error})"
    if table.num_rows != shard.samples:
        return f"has {table.num_rows} rows, dataset.json says {shard.samples}"
    if shard_of(table).get("sha256", shard.sha256) != shard.sha256:
        return "was written for a tar of another sha256 than dataset.json's"
    for name, kind in types.items():
        if table.column_names.count(name) != 1:
            return f"has no column {name!r}"
        if (found := table.schema.field(name).type) != kind:
            return f"has {found} in the column {name!r}, not {kind}"
    return ""
