"""Checks a dataset against its own manifest and index.

    python -m data_tools.verify DATASET [--sizes] [--workers 2]

Every byte is read: sizes and sha256 of the shards, the members of each tar, the crc32 of every payload, the copies of
the scalars, keys, and the index: types of the columns, finite values in the arrays that it holds. --sizes opens no tar:
sizes and row counts only. Exit 0: clean; 1: problems, one a line on stdout; 2: not a dataset, or one without shards.
"""

import argparse
import hashlib
import math
import mmap
import sys
import tarfile
import zlib
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_tools.progress import in_threads
from jaxz.data.manifest import Array, Manifest, Shard
from jaxz.data.writer import meta_json
from jaxz.errors import FAILED, InputError, run

CHUNK = 1 << 22


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(prog="python -m data_tools.verify", description=__doc__.split("\n\n")[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--sizes", action="store_true", help="only sizes and row counts; opens no tar")
    parser.add_argument("--workers", type=int, default=2, help="threads (default 2)")
    args = parser.parse_args(argv)
    if args.workers < 1:
        raise InputError(f"workers: {args.workers} must be at least 1")
    manifest = Manifest.load(args.dataset)
    check = partial(check_sizes if args.sizes else check_shard, args.dataset, manifest)
    problems = strangers(args.dataset, manifest)
    problems += [line for found in in_threads(check, manifest.shards, args.workers, "shards") for line in found]
    if not args.sizes:
        problems += repeated_keys(args.dataset, manifest)
    for problem in problems:
        print(problem)
    count = f"{len(problems)} problem{'s' * (len(problems) != 1)}" if problems else "no problem found"
    print(f"{args.dataset}: {manifest.samples} samples in {len(manifest.shards)} shards: {count}", file=sys.stderr)
    return FAILED if problems else None


def strangers(dataset: Path, manifest: Manifest) -> list[str]:
    """Shards and indices that dataset.json does not know: no reader sees their samples."""
    known = {shard.name for shard in manifest.shards}
    files = [*dataset.glob("shards/*.tar"), *dataset.glob("index/*.parquet")]
    return [f"{path.relative_to(dataset)}: not in dataset.json" for path in sorted(files) if path.stem not in known]


def check_sizes(dataset: Path, manifest: Manifest, shard: Shard) -> list[str]:
    """Whether the tar and the index of a shard are there, of the right size and number of rows."""
    tar, index = f"shards/{shard.name}.tar", f"index/{shard.name}.parquet"
    problems = []
    try:
        size = (dataset / tar).stat().st_size
    except OSError as error:
        problems.append(f"{tar}: {error.strerror}; all {shard.samples} samples lost")
    else:
        if size != shard.bytes:
            gone = lost(dataset / index, size, manifest)
            problems.append(f"{tar}: {size} bytes, dataset.json says {shard.bytes}{gone}")
    try:
        rows = pq.read_metadata(dataset / index).num_rows
    except (OSError, pa.ArrowException) as error:
        return [*problems, f"{index}: cannot be read ({error}); all {shard.samples} samples out of reach"]
    if rows != shard.samples:
        problems.append(f"{index}: {rows} rows, dataset.json says {shard.samples}")
    return problems


def lost(index: Path, size: int, manifest: Manifest) -> str:
    """Which samples have payloads past the end of a tar of `size` bytes, as the end of a sentence."""
    try:
        table = pq.read_table(index)
    except (OSError, pa.ArrowException):
        return ""
    raw = [name for name, array in manifest.arrays.items() if array.in_tar]
    if wrong_columns("", table, manifest) or not raw:
        return ""  # where the payloads are is not known
    ends = [table[f"{name}_offset"].to_numpy() + table[f"{name}_size"].to_numpy() for name in raw]
    gone = np.flatnonzero(np.max(ends, axis=0) > size) if len(table) else []
    if not len(gone):
        return "; no payload lost"
    first = int(gone[0])
    return f"; cut at offset {size}: {len(gone)} of {len(table)} samples lost, from {table['key'][first].as_py()!r} on"


def check_shard(dataset: Path, manifest: Manifest, shard: Shard) -> list[str]:
    """All that can be wrong with one shard, a line each."""
    problems = check_sizes(dataset, manifest, shard)
    tar, path = f"shards/{shard.name}.tar", dataset / "shards" / f"{shard.name}.tar"
    try:
        index = pq.read_table(dataset / "index" / f"{shard.name}.parquet")
    except (OSError, pa.ArrowException):
        return problems  # check_sizes has told
    wrong = wrong_columns(f"index/{shard.name}.parquet", index, manifest)
    problems += wrong
    if f'"{shard.sha256}"'.encode() not in (index.schema.metadata or {}).get(b"jaxz", b""):
        problems.append(f"index/{shard.name}.parquet: stale: written for a tar of another sha256 than dataset.json's")
    for array, spec in manifest.arrays.items():
        if spec.encoding == "index" and not wrong:
            problems += check_finite(f"index/{shard.name}.parquet", index, array, spec)
    if not path.is_file() or path.stat().st_size == 0:
        return problems
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        digest = hashlib.sha256()
        for start in range(0, len(content), CHUNK):
            digest.update(content[start : start + CHUNK])
        if digest.hexdigest() != shard.sha256:
            problems.append(f"{tar}: sha256 is {digest.hexdigest()}, dataset.json says {shard.sha256}")
        if wrong:
            return problems  # the index does not say where things are
        for array, spec in manifest.arrays.items():
            if spec.in_tar:
                problems += check_payloads(tar, content, index, array, spec)
        problems += check_members(tar, file, content, index, manifest)
    return problems


def wrong_columns(path: str, index: pa.Table, manifest: Manifest) -> list[str]:
    """Columns of the index that are missing, of another type than the writer's, or lack values they must have."""
    number = lambda dtype: pa.from_numpy_dtype(np.dtype(dtype))
    types, complete = {"key": pa.string()}, {"key"}
    for name, column in manifest.columns.items():
        types[name] = pa.string() if column.dtype == "string" else number(column.dtype)
    for name, array in manifest.arrays.items():
        if array.in_tar:
            places = {f"{name}_offset": pa.int64(), f"{name}_size": pa.int64(), f"{name}_crc32": pa.uint32()}
            places |= {f"{name}_exceptions": pa.int32()} if array.compact else {}
        else:
            places = {name: pa.list_(number(array.dtype), math.prod(array.shape))}
        types |= places
        complete |= places.keys()
    problems = []
    for name, kind in types.items():
        if name not in index.column_names:
            problems.append(f"{path}: column {name!r} is missing; the index is of another dataset")
        elif not (found := index[name].type).equals(kind):
            problems.append(f"{path}: column {name!r} holds {found}, dataset.json says {kind}; rebuild the index")
        elif name in complete and index[name].null_count:
            problems.append(f"{path}: column {name!r} lacks {index[name].null_count} values; rebuild the index")
    return problems


def check_finite(path: str, index: pa.Table, array: str, spec: Array) -> list[str]:
    """Whether an array that lives in the index, which no checksum guards, has finite values only."""
    stored = index[array].combine_chunks().flatten()
    values, good = (a.to_numpy(zero_copy_only=False) for a in (stored, stored.is_valid()))
    if values.dtype.kind == "f":
        good = good & np.isfinite(values)
    bad = np.flatnonzero(~good.reshape(len(index), math.prod(spec.shape)).all(1))
    if not len(bad):
        return []
    first = index["key"][int(bad[0])].as_py()
    return [f"{path}: {array}: {len(bad)} of {len(index)} samples hold NaN, inf or no value; first: {first!r}"]


def check_payloads(tar: str, content: mmap.mmap, index: pa.Table, array: str, spec: Array) -> list[str]:
    """The size and crc32 of every payload of one array, and whether it is inside of the tar."""
    for size in pc.unique(index[f"{array}_size"]).to_pylist():
        try:
            spec.shape_of(size)
        except ValueError as error:
            return [f"{tar}: {array}: the index says {error}; rebuild the index"]
    places = zip(*(index[f"{array}_{suffix}"].to_pylist() for suffix in ("offset", "size", "crc32")), strict=True)
    bad = [
        (row, offset)
        for row, (offset, size, crc) in enumerate(places)
        if offset < 0 or offset + size > len(content) or zlib.crc32(content[offset : offset + size]) != crc
    ]
    if not bad:
        return []
    (row, offset), last = bad[0], f" to {index['key'][bad[-1][0]].as_py()!r}" if len(bad) > 1 else ""
    which = f"{index['key'][row].as_py()!r} at offset {offset}{last}"
    return [f"{tar}: {array}: {len(bad)} of {len(index)} samples do not have the checksum of the index: {which}"]


def check_members(tar: str, file: BinaryIO, content: mmap.mmap, index: pa.Table, manifest: Manifest) -> list[str]:
    """The members of the tar against the index: names in order, payloads at the offsets, copies of the scalars."""
    names = {f"{name}.{array.suffix}": name for name, array in manifest.arrays.items() if array.in_tar}
    suffixes = sorted([*names, "meta.json"])
    expected = [(row, key, suffix) for row, key in enumerate(index["key"].to_pylist()) for suffix in suffixes]
    scalars = index.select(list(manifest.columns)).to_pylist()
    found, error = walk(file)
    for (row, key, suffix), (name, start, end) in zip(expected, found, strict=False):
        sample = f"{tar}: sample {row} of {len(index)}, {key!r}, at offset {start}"
        if name != f"{key}.{suffix}":
            return [f"{sample}: the tar holds {name!r}, the index says {key}.{suffix}"]
        if suffix == "meta.json":
            if not is_copy(content[start:end], scalars[row]):
                return [f"{sample}: meta.json is not a copy of the index's scalars"]
            continue
        array = names[suffix]
        offset, size = (index[f"{array}_{suffix}"][row].as_py() for suffix in ("offset", "size"))
        if not start <= offset or offset + size != end:
            return [f"{sample}: {array} lies at {offset} for the index, outside of its member ({start} to {end})"]
    if error or len(found) != len(expected):
        reason = f" ({error})" if error else ""
        return [f"{tar}: {len(found)} members, the index says {len(expected)}{reason}"]
    return []


def is_copy(content: bytes, scalars: dict) -> bool:
    """Whether a meta.json says what the index says."""
    try:
        return content == meta_json(scalars)
    except ValueError:  # an infinity, which no meta.json holds
        return False


def walk(file: BinaryIO) -> tuple[list[tuple[str, int, int]], str]:
    """(name, first byte, end) of each member of a tar, and what ended the walk early, if anything did."""
    members = []
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                members.append((member.name, member.offset_data, member.offset_data + member.size))
    except tarfile.TarError as error:
        return members, str(error)
    return members, ""


def repeated_keys(dataset: Path, manifest: Manifest) -> list[str]:
    """Keys that stand more than once in the dataset."""
    tables = []
    for shard in manifest.shards:
        try:
            table = pq.read_table(dataset / "index" / f"{shard.name}.parquet", columns=["key"])
        except (OSError, pa.ArrowException):
            continue  # check_sizes has told
        if [field.type for field in table.schema] == [pa.string()]:  # else wrong_columns has told
            tables.append(table)
    keys = pa.concat_tables(tables)["key"].drop_null() if tables else pa.chunked_array([], pa.string())
    if pc.count_distinct(keys).as_py() == len(keys):
        return []
    counts = pc.value_counts(keys)
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    return [f"index: {len(twice)} keys stand more than once in the dataset; first: {twice[0]['values'].as_py()!r}"]


if __name__ == "__main__":
    run(main)
