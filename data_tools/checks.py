"""What can be wrong with one shard: its tar and its index against the manifest and against each other."""

import hashlib
import math
import os
import stat
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jaxz.data import compact
from jaxz.data.index import PLACES, UNREADABLE, column_type, list_type, place_types, read_index, shard_of
from jaxz.data.manifest import Array, Manifest, Shard
from jaxz.data.quarantine import Damage
from jaxz.data.writer import hash_keys, meta_json
from jaxz.files import persist


@dataclass
class Findings:
    """Of one shard: a line for each problem, and what it costs. Rows are numbered within the shard."""

    shard: Shard
    lines: list[str] = field(default_factory=list)
    lost: set[int] = field(default_factory=set)  # rows of which an array or the key cannot be used
    doubtful: set[int] = field(default_factory=set)  # rows whose tar and index contradict each other
    unusable: bool = False  # nothing can be read: the tar is gone, or the index does not say where things are
    contradiction: bool = False  # tar and index do not fit together: one of them may be rebuilt from the other
    tar_bytes: int | None = None  # None: not there
    tar_sha256: str | None = None
    index_sha256: str | None = None
    hashes: np.ndarray | None = None  # of the keys, int64
    mended: list[str] = field(default_factory=list)  # what was rebuilt

    @property
    def tar(self) -> str:
        return f"shards/{self.shard.name}.tar"

    @property
    def index(self) -> str:
        return f"index/{self.shard.name}.parquet"

    @property
    def tar_is_whole(self) -> bool:
        return self.tar_sha256 == self.shard.sha256

    def damage(self) -> Damage | None:
        """What the quarantine list says of the shard; None where nothing is wrong."""
        if not self.lines:
            return None
        rows = tuple(sorted(self.lost | self.doubtful))
        whole = self.unusable or len(rows) == self.shard.samples > 0
        return Damage(None if whole else rows, tuple(self.lines), self.tar_bytes, self.tar_sha256, self.index_sha256)


def member_suffix(name: str, array: Array) -> str:
    """What follows the key in the name of the tar's member that holds an array."""
    return f"{name}.{array.suffix}"


def tar_arrays(manifest: Manifest) -> dict[str, Array]:
    """The arrays that lie in the tar, in the order of their members."""
    found = {name: array for name, array in manifest.arrays.items() if array.in_tar}
    return dict(sorted(found.items(), key=lambda item: member_suffix(*item)))


def suffixes(manifest: Manifest) -> list[str]:
    """Of a sample's members, in the order of the tar."""
    return sorted([*(member_suffix(*item) for item in tar_arrays(manifest).items()), "meta.json"])


def check_sizes(dataset: Path, manifest: Manifest, shard: Shard) -> Findings:
    """Whether the tar and the index are there, of the right size and number of rows. Opens no tar."""
    found = Findings(shard)

    def index() -> pa.Table | None:
        try:
            return read_index(dataset / found.index)
        except UNREADABLE:
            return None  # told below

    check_tar_size(dataset, manifest, found, index)
    try:
        rows = pq.read_metadata(dataset / found.index).num_rows
    except UNREADABLE as error:
        found.unusable = True
        found.lines.append(f"{found.index}: cannot be read ({error}); all {shard.samples} samples out of reach")
    else:
        check_rows(found, rows)
    return found


def check_shard(dataset: Path, manifest: Manifest, shard: Shard) -> Findings:
    """Every byte of a shard and its index."""
    found = Findings(shard)
    index, reason = None, ""
    try:
        content = persist((dataset / found.index).read_bytes)
        found.index_sha256 = hashlib.sha256(content).hexdigest()
        index = read_index(pa.BufferReader(content))
    except UNREADABLE as error:
        reason = getattr(error, "strerror", None) or str(error)
    check_tar_size(dataset, manifest, found, lambda: index)
    if index is None:
        found.unusable = found.contradiction = True
        found.lines.append(f"{found.index}: cannot be read ({reason}); all {shard.samples} samples out of reach")
    else:
        check_index(found, index, manifest)
    if found.tar_bytes:
        try:
            check_tar(found, dataset / found.tar, index, manifest)
        except OSError as error:
            found.unusable = True
            found.lines.append(
                f"{found.tar}: cannot be read ({error.strerror or error}); all {shard.samples} samples out of reach"
            )
    return found


def check_tar_size(dataset: Path, manifest: Manifest, found: Findings, index: Callable[[], pa.Table | None]) -> None:
    """Whether the tar is there and of the manifest's size; index() knows what else is lost."""
    shard = found.shard
    try:
        status = persist((dataset / found.tar).stat)
        reason = "" if stat.S_ISREG(status.st_mode) else "not a file"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        found.unusable = True
        found.lines.append(f"{found.tar}: {reason}; all {shard.samples} samples lost")
        return
    found.tar_bytes = status.st_size
    if found.tar_bytes != shard.bytes:
        found.unusable |= not found.tar_bytes
        gone = gone_past(found.tar_bytes, index(), manifest)
        found.lines.append(f"{found.tar}: {found.tar_bytes} bytes, dataset.json says {shard.bytes}{gone}")


def gone_past(size: int, index: pa.Table | None, manifest: Manifest) -> str:
    """Which samples have payloads past the end of a tar of `size` bytes, as the end of a sentence."""
    arrays = tar_arrays(manifest)
    if index is None or wrong_columns("", index, manifest) or not arrays:
        return ""  # where the payloads are is not known
    ends = [index[f"{name}_offset"].to_numpy() + index[f"{name}_size"].to_numpy() for name in arrays]
    gone = np.flatnonzero(np.max(ends, axis=0) > size) if len(index) else np.empty(0, np.int64)
    if not len(gone):
        return "; no payload lost"
    first = index["key"][int(gone[0])].as_py()
    return f"; cut at offset {size}: {len(gone)} of {len(index)} samples lost, from {first!r} on"


def check_rows(found: Findings, rows: int) -> None:
    if rows != found.shard.samples:
        found.unusable = found.contradiction = True
        found.lines.append(f"{found.index}: {rows} rows, dataset.json says {found.shard.samples}")


def check_index(found: Findings, index: pa.Table, manifest: Manifest) -> None:
    """Rows, columns, the tar it was written for, and the arrays that live in it."""
    check_rows(found, len(index))
    wrong = wrong_columns(found.index, index, manifest)
    found.lines += wrong
    sha256 = shard_of(index).get("sha256")
    if sha256 != found.shard.sha256:
        found.lines.append(
            f"{found.index}: stale: written for a tar of another sha256 than dataset.json's; "
            f"all {found.shard.samples} samples in doubt"
        )
    if wrong or sha256 != found.shard.sha256:
        found.unusable = found.contradiction = True
    if not wrong:
        found.hashes = hash_keys(index["key"].to_pylist())
        for name, array in manifest.arrays.items():
            if array.encoding == "index":
                check_list(found, index, name, array)


def wrong_columns(path: str, index: pa.Table, manifest: Manifest) -> list[str]:
    """Columns of the index that are missing, of another type than the writer's, or lack values they must have."""
    types, complete = {"key": pa.string()}, {"key"}
    types |= {name: column_type(column) for name, column in manifest.columns.items()}
    for name, array in manifest.arrays.items():
        places = {f"{name}_{s}": t for s, t in place_types(array).items()}
        stored = places if array.in_tar else {name: list_type(array)}
        types |= stored
        complete |= stored.keys()
    problems = []
    for name, kind in types.items():
        if (times := index.column_names.count(name)) != 1:
            problems.append(f"{path}: column {name!r} is {'there twice' if times else 'missing'}; {OTHER}")
        elif not (found := index[name].type).equals(kind):
            problems.append(f"{path}: column {name!r} holds {found}, dataset.json says {kind}; rebuild the index")
        elif name in complete and index[name].null_count:
            problems.append(f"{path}: column {name!r} lacks {index[name].null_count} values; rebuild the index")
    return problems


OTHER = "the index is damaged or of another dataset"


def check_list(found: Findings, index: pa.Table, name: str, array: Array) -> None:
    """Whether an array that lives in the index has finite values only."""
    stored = index[name].combine_chunks().flatten()
    values, good = (a.to_numpy(zero_copy_only=False) for a in (stored, stored.is_valid()))
    if values.dtype.kind == "f":
        good = good & np.isfinite(values)
    bad = np.flatnonzero(~good.reshape(len(index), math.prod(array.full_shape)).all(1))
    if len(bad):
        found.lost.update(bad.tolist())
        first = index["key"][int(bad[0])].as_py()
        found.lines.append(
            f"{found.index}: {name}: {len(bad)} of {len(index)} samples hold NaN, inf or no value; first: {first!r}"
        )


def check_tar(found: Findings, path: Path, index: pa.Table | None, manifest: Manifest) -> None:
    """The digest, the payloads and the members of a tar that is there. Raises OSError where it cannot be read."""
    found.tar_sha256 = persist(lambda: sha256_of(path))
    usable, payloads, members = False, list[str](), list[str]()
    if index is not None and not wrong_columns("", index, manifest):  # it says where things are
        usable = True
        with open(path, "rb") as tar:
            for name, array in tar_arrays(manifest).items():
                payloads += check_payloads(found, tar, index, name, array)
            linked = manifest.provenance.get("linked_tars") is True  # another writer's: only the payloads are ours
            members = [] if linked else check_members(found, tar, index, manifest)
    if not found.tar_is_whole:
        note = "; no sample is known to be affected" if usable and not (payloads or members) else ""
        if others := [shard.name for shard in manifest.shards if shard.sha256 == found.tar_sha256]:
            note = f"; it is the tar of shard {others[0]}"
        found.lines.append(f"{found.tar}: sha256 is {found.tar_sha256}, dataset.json says {found.shard.sha256}{note}")
    found.contradiction |= bool(not found.tar_is_whole or members)
    found.lines += payloads + members


def sha256_of(path: Path) -> str:
    """Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(tar: BinaryIO, start: int, end: int) -> bytes:
    """Bytes start to end of a tar, fewer where it ends before. Not of a memory map: a tar that is cut meanwhile, or
    that its storage loses, would end the process. Raises OSError."""

    def once() -> bytes:
        tar.seek(start)
        return tar.read(end - start)

    return persist(once)


def check_payloads(found: Findings, tar: BinaryIO, index: pa.Table, name: str, array: Array) -> list[str]:
    """The size and crc32 of every payload of one array, whether it is inside of the tar, and finite."""
    for size in pc.unique(index[f"{name}_size"]).to_pylist():
        try:
            array.shape_of(size)
        except ValueError as error:
            found.unusable = found.contradiction = True
            return [f"{found.tar}: {name}: the index says {error}; rebuild the index"]
    wrong, broken, infinite = [], [], []
    places = [index[f"{name}_{part}"].to_pylist() for part in PLACES]
    for row, (offset, size, crc) in enumerate(zip(*places, strict=True)):
        payload = read(tar, offset, offset + size) if 0 <= offset <= found.tar_bytes - size else None
        if payload is None or zlib.crc32(payload) != crc:
            wrong.append(row)
        else:
            try:
                values = floats(payload, array)
            except ValueError:
                broken.append(row)
                continue
            if array.compact and len(values) != index[f"{name}_exceptions"][row].as_py():
                broken.append(row)
            elif not np.isfinite(values).all():
                infinite.append(row)
    found.lost.update(wrong, broken, infinite)
    found.contradiction |= bool(wrong or broken)
    told = ("do not have the checksum of the index", "cannot be decoded as the index says", "hold NaN or inf")
    lines = []
    for rows, what in zip((wrong, broken, infinite), told, strict=True):
        if rows:
            last = f" to {index['key'][rows[-1]].as_py()!r}" if len(rows) > 1 else ""
            first = f"{index['key'][rows[0]].as_py()!r} at offset {places[0][rows[0]]}"
            lines.append(f"{found.tar}: {name}: {len(rows)} of {len(index)} samples {what}: {first}{last}")
    return lines


def floats(payload: bytes, array: Array) -> np.ndarray:
    """The numbers of a payload that may be NaN or inf: none of whole numbers, of a compact one the exceptions. Raises
    ValueError for a compact payload that cannot be decoded."""
    if array.compact:
        return compact.unpack(payload, np.empty(array.full_shape, np.int16))[1]["value"]
    return np.frombuffer(payload if np.dtype(array.dtype).kind == "f" else b"", array.dtype)


def check_members(found: Findings, tar: BinaryIO, index: pa.Table, manifest: Manifest) -> list[str]:
    """The members of the tar against the index: names in order, payloads at the offsets, copies of the scalars."""
    arrays = {member_suffix(*item): item[0] for item in tar_arrays(manifest).items()}
    expected = [(row, key, suffix) for row, key in enumerate(index["key"].to_pylist()) for suffix in suffixes(manifest)]
    rows = index.select(["key", *manifest.columns]).to_pylist()
    scalars = [{name: row[name] for name in manifest.columns} for row in rows]
    ends = {name: [index[f"{name}_{part}"].to_pylist() for part in ("offset", "size")] for name in arrays.values()}
    members, error = walk(tar)
    wrong, lines = [], []  # wrong: (row, line) of samples in doubt
    for (row, key, suffix), (name, start, end) in zip(expected, members, strict=False):
        sample = f"{found.tar}: sample {row} of {len(index)}, {key!r}, at offset {start}"
        if name != f"{key}.{suffix}":
            lines.append(f"{sample}: the tar holds {name!r}, the index says {key}.{suffix}")
            break
        if suffix == "meta.json":
            if not is_copy(read(tar, start, end), scalars[row]):
                wrong.append((row, f"{sample}: meta.json is not a copy of the index's scalars"))
        else:
            offset, size = (values[row] for values in ends[arrays[suffix]])
            if not start <= offset or offset + size != end:
                place = f"{arrays[suffix]} lies at {offset} for the index, outside of its member ({start} to {end})"
                wrong.append((row, f"{sample}: {place}"))
    else:
        lines += count_members(found, members, error, len(expected), len(suffixes(manifest)))
    found.doubtful.update(row for row, _ in wrong)
    more = f"; and {len(wrong) - 1} more of its {len(index)} samples" if len(wrong) > 1 else ""
    return [line + more for _, line in wrong[:1]] + lines


def count_members(
    found: Findings, members: list[tuple[str, int, int]], error: str, expected: int, each: int
) -> list[str]:
    """Whether a tar, whose members fit as far as they go, ends where it should; each: members of a sample."""
    if not error and len(members) == expected:
        return []
    line = f"{found.tar}: {len(members)} members, the index says {expected}" + (f" ({error})" if error else "")
    if len(members) < expected:
        read, end = len(members) // each, members[-1][2] if members else 0
        line += f"; without the index, {read} of {expected // each} samples are read, up to offset {end}"
    return [line]


def is_copy(content: bytes, scalars: dict) -> bool:
    """Whether a meta.json says what the index says."""
    try:
        return content == meta_json(scalars)
    except ValueError:  # an infinity, which no meta.json holds
        return False


def walk(file: BinaryIO) -> tuple[list[tuple[str, int, int]], str]:
    """(name, first byte, end) of each whole member of a tar, and what ended the walk early, if anything did."""
    members: list[tuple[str, int, int]] = []
    at, size = 0, file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                start, end = member.offset_data, member.offset_data + member.size
                if not at < start <= end <= size:  # tarfile goes round for ever where a size is negative
                    return members, f"the member at offset {start} has {member.size} bytes, the tar {size}"
                members.append((member.name, start, end))
                at = end
    except (tarfile.TarError, ValueError, OSError) as error:
        return members, str(error)
    except (OverflowError, MemoryError, RecursionError):  # sizes and chains of headers that no writer makes
        return members, "a header of no tar"
    return members, ""
