"""Mends a shard: its index from its tar, its tar from its index and payloads; lists what stays damaged."""

import dataclasses
import io
import json
import os
import shutil
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from data_tools.checks import Findings, check_shard, member_suffix, read, sha256_of, suffixes, tar_arrays, walk
from jaxz.data import compact
from jaxz.data.index import UNREADABLE, column_type, place_types, read_index, to_parquet
from jaxz.data.manifest import Array, Manifest, Shard
from jaxz.data.quarantine import Quarantine
from jaxz.data.writer import DatasetWriter, Stored
from jaxz.files import replace


class CannotMend(Exception):
    """Why a file cannot be rebuilt."""


def mend(dataset: Path, manifest: Manifest, shard: Shard) -> Findings:
    """What is wrong with a shard after all that could be rebuilt was, and in `mended`, what that is."""
    found = check_shard(dataset, manifest, shard)
    if not found.contradiction:
        return found
    try:
        if found.tar_is_whole:
            done = mend_index(dataset, manifest, found)
        elif found.tar_bytes is not None and not found.unusable and not found.lost:
            done = mend_tar(dataset, manifest, found)
        else:
            return found
    except CannotMend as reason:
        found.lines.append(f"shard {shard.name} cannot be rebuilt: {reason}")
        return found
    found = check_shard(dataset, manifest, shard)
    found.mended.append(done)
    return found


def write_list(dataset: Path, findings: list[Findings]) -> Quarantine:
    """Write quarantine.json, or remove it where nothing is damaged; a list that says the same is left alone."""
    damage = {found.shard.name: found.damage() for found in findings}
    listed = Quarantine({name: one for name, one in damage.items() if one})
    path, content = dataset / "quarantine.json", listed.to_json().encode()
    if not listed.shards:
        path.unlink(missing_ok=True)
    elif not path.exists() or path.read_bytes() != content:
        replace(path, content)
    return listed


def mend_index(dataset: Path, manifest: Manifest, found: Findings) -> str:
    """Rebuild the index of a tar whose sha256 is the manifest's; what it was is kept beside it. Raises CannotMend."""
    if inside := [name for name, array in manifest.arrays.items() if array.encoding == "index"]:
        raise CannotMend(f"array {inside[0]!r} stands in the index alone; restore {found.index}")
    try:
        content, path = rebuilt_index(dataset / found.tar, manifest, found.shard), dataset / found.index
    except OSError as error:
        raise CannotMend(f"its tar cannot be read ({error.strerror or error})") from None
    done = f"{found.index}, from its tar"
    if path.exists():
        if found.index_sha256 is None:
            raise CannotMend(f"what stands at {found.index} cannot be read, so it is not replaced")
        kept = path.with_name(f"{path.name}.{found.index_sha256[:8]}.bak")
        shutil.copy2(path, kept)
        done += f"; the one before is kept as {kept.name}"
    replace(path, content)
    return done


def rebuilt_index(path: Path, manifest: Manifest, shard: Shard) -> memoryview:
    """The index that the writer wrote beside a tar: keys, scalars from the meta.json, where the payloads are.

    Missing floats become NaN. Raises CannotMend where the tar is not of the manifest's samples, and OSError.
    """
    arrays, ends = tar_arrays(manifest), suffixes(manifest)
    keys, scalars = [], []
    places: dict[str, tuple[list[int], ...]] = {n: tuple([] for _ in place_types(array)) for n, array in arrays.items()}
    with open(path, "rb") as tar:
        members, error = walk(tar)
        if error or len(members) != shard.samples * len(ends):
            raise CannotMend(f"its tar has {len(members)} members, not {shard.samples * len(ends)} {error}")
        for at in range(0, len(members), len(ends)):
            sample = members[at : at + len(ends)]
            key = sample[0][0].partition(".")[0]
            if [name for name, *_ in sample] != [f"{key}.{end}" for end in ends]:
                raise CannotMend(f"its tar has other members than {', '.join(ends)} for {key!r}")
            where = {name[len(key) + 1 :]: (start, end) for name, start, end in sample}
            keys.append(key)
            scalars.append(read_scalars(read(tar, *where["meta.json"]), manifest, key))
            for name, array in arrays.items():
                start, end = where[member_suffix(name, array)]
                member = read(tar, start, end)
                exceptions, begin = examine(member, array, f"{key}.{name}")
                payload = memoryview(member)[begin:]
                place = (start + begin, len(payload), zlib.crc32(payload), *exceptions)
                for values, value in zip(places[name], place, strict=True):
                    values.append(value)
    table = {"key": pa.array(keys, pa.string())}
    table |= {name: as_column([one[name] for one in scalars], column_type(c)) for name, c in manifest.columns.items()}
    for name, found in places.items():
        types = place_types(arrays[name])
        table |= {f"{name}_{s}": pa.array(v, t) for (s, t), v in zip(types.items(), found, strict=True)}
    return to_parquet(pa.table(table), {"samples": shard.samples, "bytes": shard.bytes, "sha256": shard.sha256})


def read_scalars(content: bytes, manifest: Manifest, key: str) -> dict:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise CannotMend(f"{key}.meta.json is no JSON ({error})") from None
    if not isinstance(found, dict) or found.keys() != manifest.columns.keys():
        raise CannotMend(f"{key}.meta.json has other columns than dataset.json")
    return found


def examine(member: bytes, array: Array, name: str) -> tuple[list[int], int]:
    """The number of exceptions, for compact arrays only, and where the payload begins in a member of the tar. Raises
    CannotMend where it does not hold the array."""
    file = io.BytesIO(member)
    try:
        if array.compact:
            return [len(compact.unpack(member, np.empty(array.full_shape, np.int16))[1])], 0
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype != np.dtype(array.dtype) or array.shape_of(len(member) - file.tell()) != shape:
            raise ValueError(f"{dtype} {shape}")
    except ValueError as error:
        raise CannotMend(f"{name} is not the array of dataset.json ({error})") from None
    return [], file.tell()


def as_column(values: list, kind: pa.DataType) -> pa.Array:
    """The values of one column as the writer stores them."""
    try:
        if pa.types.is_floating(kind):
            return pa.array(np.array([np.nan if v is None else v for v in values], kind.to_pandas_dtype()))
        return pa.array(values, kind)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise CannotMend(f"its meta.json do not hold {kind} ({error})") from None


def mend_tar(dataset: Path, manifest: Manifest, found: Findings) -> str:
    """Write a tar again whose payloads are whole: headers, padding and copies of the scalars. It is taken only where
    its sha256 is the manifest's: then it is the lost one, byte for byte. Raises CannotMend."""
    folder = dataset / f".mending-{found.shard.name}"
    shutil.rmtree(folder, ignore_errors=True)  # of a repair that was killed
    try:
        index = read_index(dataset / found.index)
        columns = {name: index[name].to_pylist() for name in manifest.columns}
        with open(dataset / found.tar, "rb") as tar:
            arrays = {name: stored(tar, index, name, array) for name, array in manifest.arrays.items()}
    except UNREADABLE as error:
        raise CannotMend(f"its tar or index cannot be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        writer = DatasetWriter(folder, dataclasses.replace(manifest, shards=()), plan={})
        writer.write_shard(0, index["key"].to_pylist(), arrays, columns)
        path = folder / "shards" / "00000.tar"
        if sha256_of(path) != found.shard.sha256:
            raise CannotMend("written again from its index, its tar has another sha256 than dataset.json's")
        os.replace(path, dataset / found.tar)
    except ValueError as error:  # what the writer refuses
        raise CannotMend(str(error)) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return f"{found.tar}, from its index and payloads, to the sha256 of dataset.json"


def stored(tar: BinaryIO, index: pa.Table, name: str, array: Array) -> Stored:
    """The values of one array of every sample; of compact ones, the payloads. Raises OSError, and ValueError where the
    tar ends before them."""
    if array.encoding == "index":
        flat = index[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return list(flat.reshape(len(index), *array.shape))
    places = (index[f"{name}_{part}"].to_pylist() for part in ("offset", "size"))
    payloads = [read(tar, offset, offset + size) for offset, size in zip(*places, strict=True)]
    if array.compact:
        return payloads
    return [np.frombuffer(one, array.dtype).reshape(array.shape_of(len(one))) for one in payloads]
