"""The index of a shard as a Parquet file, its pages under checksums: no bit of it can change without being noticed.

Indices written before jaxz asked for checksums have none; they are read all the same.
"""

import io
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxz.data.manifest import Array, Column

PLACES = {"offset": pa.int64(), "size": pa.int64(), "crc32": pa.uint32()}  # of a payload: columns {array}_{name}
SHARD = b"jaxz"  # metadata: samples, bytes and sha256 of the tar that the index was written for
UNREADABLE = (OSError, pa.ArrowException, ValueError)  # ValueError: names that are no UTF-8


def column_type(column: Column) -> pa.DataType:
    return pa.string() if column.dtype == "string" else pa.from_numpy_dtype(np.dtype(column.dtype))


def place_types(array: Array) -> dict[str, pa.DataType]:
    """Of the columns {array}_{name} that say where an array's payloads are; of compact ones, how many exceptions."""
    return {**PLACES, "exceptions": pa.int32()} if array.compact else PLACES


def list_type(array: Array) -> pa.DataType:
    """Of an array that lives in the index: a list of fixed length."""
    return pa.list_(pa.from_numpy_dtype(np.dtype(array.dtype)), int(np.prod(array.shape)))


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
