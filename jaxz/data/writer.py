"""Writes datasets: a shard appears complete, with its index, or not at all; an interrupted writing goes on."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import math
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from jaxz.data import compact
from jaxz.data.dataset import Dataset
from jaxz.data.index import column_type, place_types, read_index, shard_of, to_parquet
from jaxz.data.layers import LAYER_OF, alignment
from jaxz.data.manifest import KEY, Array, Band, Compact, Manifest, Shard
from jaxz.data.staging import place_of
from jaxz.errors import InputError
from jaxz.files import read_json, replace, replacing

# Of images, with the dtype that the writer is given: float16 would round bright pixels by more than compact does.
ENCODINGS = {"raw": "float16", "compact": "float32"}
DIGEST = re.compile("'[0-9a-f]{64}'")  # which tells people nothing
Stored = np.ndarray | Sequence[np.ndarray | bytes]  # one array of some samples: values, or payloads of a compact one
STEP_SIGMA = 0.125  # of a compact image: the noise grows by 0.065 % (a variance of step^2 / 12)


class DatasetWriter:
    """Writes the shards of one dataset, in any order and from any number of processes.

        writer = DatasetWriter(path, manifest, plan={...})
        for n in range(shards):
            if not writer.done(n):
                writer.write_shard(n, keys, arrays, columns)
        writer.finish(shards, splits)

    plan: JSON that says what is being written (arguments, inputs). A directory that holds another plan is refused,
    one that holds the same plan is completed; `complete` says that nothing is left to do.
    Raises InputError for a directory that holds something else.
    """

    def __init__(self, path: Path | str, manifest: Manifest, plan: dict):
        self.path, self.manifest, self.plan = Path(path), manifest, json.loads(json.dumps(plan))
        marker, self.began, self.existed = self.path / "writing.json", False, self.path.exists()
        if (self.path / "dataset.json").exists():
            found = Manifest.load(self.path).provenance.get("plan")
        elif marker.exists():
            found = read_json(marker, "the plan of a dataset being written")
        elif self.path.exists() and (not self.path.is_dir() or any(map(is_strange, self.path.iterdir()))):
            raise InputError(f"out: {str(path)!r} exists and is not a dataset being written; choose an empty directory")
        else:
            found, self.began = self.plan, True
            self.path.mkdir(parents=True, exist_ok=True)
            replace(marker, json.dumps(self.plan, indent=1).encode())  # first: what a crash leaves can be completed
        if found != self.plan:
            was = found if isinstance(found, dict) else {}
            first = min((k for k in {*was, *self.plan} if was.get(k) != self.plan.get(k)), default="plan")
            now, then = (repr(values[first]) if first in values else "nothing" for values in (self.plan, was))
            differs = f"{now}, but {str(path)!r} was begun with {then}"
            if DIGEST.search(now + then):
                differs = f"its content is not that with which {str(path)!r} was begun"
            raise InputError(f"{first}: {differs}; choose another directory or the same arguments and inputs")
        for folder in ("shards", "index"):
            (self.path / folder).mkdir(exist_ok=True)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Of writing that no other process shares: where input is refused before a shard was done, what this writer
        began goes again, since what is given once that is mended is another plan."""
        try:
            yield
        except InputError:
            if self.began and not any((self.path / "index").iterdir()):
                for folder in ("shards", "index"):
                    shutil.rmtree(self.path / folder, ignore_errors=True)
                with contextlib.suppress(OSError):
                    (self.path / "writing.json").unlink()
                    if not self.existed:
                        self.path.rmdir()
            raise

    @property
    def complete(self) -> bool:
        return (self.path / "dataset.json").exists()

    def done(self, n: int) -> bool:
        """Whether shard `n` is complete: its index is written last, but the system may crash before the tar, which it
        gives the size of, is on the disk."""
        if not self._index(n).exists():
            return False
        tar = self._tar(n)
        return tar.exists() and tar.stat().st_size == shard_of(read_index(self._index(n), [])).get("bytes")

    def write_shard(
        self,
        n: int,
        keys: Sequence[str],
        arrays: Mapping[str, Stored],
        columns: Mapping[str, np.ndarray | Sequence],
    ) -> None:
        """Write shard `n`: arrays[name][i] has the manifest's shape and dtype, or is the payload (bytes) of a compact
        array; columns[name][i] is a scalar.

        Raises ValueError where names, counts, dtypes or shapes do not fit the manifest, or a value is not finite
        in an array of floats (say "not observed" by a mask).
        """
        specs = self.manifest.arrays
        if set(arrays) != set(specs):
            raise ValueError(f"arrays {sorted(arrays)} are not the manifest's {sorted(specs)}")
        if set(columns) != set(self.manifest.columns):
            raise ValueError(f"columns {sorted(columns)} are not the manifest's {sorted(self.manifest.columns)}")
        if bad := next((k for k in keys if not KEY.fullmatch(k)), None):
            raise ValueError(f"key {bad!r} must match {KEY.pattern}")
        if len(set(keys)) != len(keys):
            raise ValueError("keys repeat within the shard")
        for name, values in (*arrays.items(), *columns.items()):
            if len(values) != len(keys):
                raise ValueError(f"{name} has {len(values)} rows, there are {len(keys)} keys")

        table = {"key": pa.array(keys, pa.string())}
        for array in (a for a, spec in specs.items() if spec.encoding == "index"):
            table[array] = to_lists(arrays[array], specs[array], array)
        for column, spec in self.manifest.columns.items():
            table[column] = pa.array(columns[column], column_type(spec))
        lists = {c: table[c].to_pylist() for c in self.manifest.columns}
        scalars = [{c: values[i] for c, values in lists.items()} for i in range(len(keys))]

        stored = sorted(a for a, spec in specs.items() if spec.in_tar)
        where: dict[str, tuple[list[int], ...]] = {a: tuple([] for _ in place_types(specs[a])) for a in stored}
        with replacing(self._tar(n), durable=False) as file:
            tar = Tar(file)
            for i, key in enumerate(keys):
                members: dict[str, tuple[str | None, bytes, bytes | memoryview]] = {
                    f"{a}.{specs[a].suffix}": (a, *encode(arrays[a][i], specs[a], key, a)) for a in stored
                }
                members["meta.json"] = None, b"", meta_json(scalars[i])
                for member, (a, header, payload) in sorted(members.items()):  # the order of webdataset
                    start = tar.add(f"{key}.{member}", header, payload)
                    if a is not None:
                        place = [start + len(header), len(payload), zlib.crc32(payload)]
                        if specs[a].compact:
                            place.append(len(compact.exceptions(payload)))
                        for values, value in zip(where[a], place, strict=True):
                            values.append(value)
            tar.end()
        for a in stored:
            for (suffix, kind), values in zip(place_types(specs[a]).items(), where[a], strict=True):
                table[f"{a}_{suffix}"] = pa.array(values, kind)
        shard = {"samples": len(keys), "bytes": tar.size, "sha256": tar.sha256.hexdigest()}
        replace(self._index(n), to_parquet(pa.table(table), shard))

    def finish(self, shards: int, splits: dict, provenance: dict | None = None) -> Manifest:
        """Write dataset.json over shards 0..shards-1, once all are there and no key stands twice. Those without a
        sample are left out. provenance: more of it."""
        found, hashes = [], []
        for n in range(shards):
            index = read_index(self._index(n), ["key"])
            if not self.done(n):
                raise InputError(f"{self._tar(n)}: is not the tar of its index; give the same command again")
            if len(index):
                found.append(Shard(name=f"{n:05d}", **shard_of(index)))
                hashes.append(hash_keys(index["key"].to_pylist()))
        keys = lambda n: read_index(self._index(int(found[n].name)), ["key"])["key"].to_pylist()
        for n, _, key, _ in repeated_keys(hashes, keys):
            raise InputError(f"key {key!r} of shard {found[n].name} stands in an earlier shard; ids must be unique")
        empty = {*range(shards)} - {int(shard.name) for shard in found}
        killed = [left for folder in ("shards", "index") for left in (self.path / folder).glob(".*.tmp")]
        for path in (*map(self._index, empty), *map(self._tar, empty), *killed):  # first: a kill here leaves no stray
            path.unlink(missing_ok=True)
        provenance = {**self.manifest.provenance, **(provenance or {}), "plan": self.plan}
        manifest = dataclasses.replace(self.manifest, shards=tuple(found), splits=splits, provenance=provenance)
        replace(self.path / "dataset.json", manifest.to_json().encode())
        (self.path / "writing.json").unlink(missing_ok=True)
        return manifest

    def _index(self, n: int) -> Path:
        return self.path / "index" / f"{n:05d}.parquet"

    def _tar(self, n: int) -> Path:
        return self.path / "shards" / f"{n:05d}.tar"


class Tar:
    """A tar being written to a file: byte for byte what webdataset.TarWriter(mtime=0) writes, which takes four times as
    long."""

    def __init__(self, file: BinaryIO):
        self.file, self.size, self.sha256 = file, 0, hashlib.sha256()

    def add(self, name: str, *parts: bytes | memoryview) -> int:
        """Write a member of several parts; where its content begins."""
        size = sum(map(len, parts))
        self.write(tar_header(name, size))
        start = self.size
        for part in parts:
            self.write(part)
        self.write(bytes(-size % tarfile.BLOCKSIZE))
        return start

    def end(self) -> None:
        self.write(bytes(2 * tarfile.BLOCKSIZE))
        self.write(bytes(-self.size % tarfile.RECORDSIZE))

    def write(self, part: bytes | memoryview) -> None:
        self.file.write(part)
        self.sha256.update(part)
        self.size += len(part)


def tar_header(name: str, size: int) -> bytes:
    """Of a member of a tar, as tarfile makes it. Where its name fits the field, an empty one's is filled in, in a fifth
    of the time."""
    own = name.encode("utf-8", "surrogateescape")
    if not own or len(own) > tarfile.LENGTH_NAME or size >= 8**11:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.uname, info.gname = size, 0o444, "bigdata", "bigdata"
        return info.tobuf(tarfile.USTAR_FORMAT)
    header = bytearray(NAMELESS)
    header[: len(own)] = own
    header[124:136] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:155] = b"%06o\0" % sum(header)
    return bytes(header)


NAMELESS = tar_header("", 0)


class LayerWriter:
    """Writes layers/NAME of a dataset in a directory: arrays for all of its rows, shard for shard.

        writer = LayerWriter(dataset, "dino", {"embedding": Array("vector", "float32", (384,))}, plan={...})
        for n in range(writer.shards):
            if not writer.done(n):
                writer.write_shard(n, {"embedding": values})    # of dataset.starts[n] .. dataset.starts[n + 1] - 1
        writer.finish()

    bands: of an array of kind "image", a new band for instance. plan and `done` are as of a DatasetWriter. Raises
    InputError where the layer was written otherwise, or the dataset is remote or lacks a shard.
    """

    def __init__(
        self,
        dataset: Dataset,
        name: str,
        arrays: dict[str, Array],
        plan: dict,
        bands: Sequence[Band] = (),
        provenance: dict | None = None,
    ):
        if isinstance(dataset.path, str):
            raise InputError(f"dataset: {dataset.path!r} is remote; write the layer where it is")
        if gone := [shard.name for shard in dataset.manifest.shards if dataset.quarantine.whole(shard.name)]:
            raise InputError(f"dataset: shard {gone[0]} is quarantined as a whole; restore it first")
        of = alignment(dataset)
        manifest = Manifest(arrays, tuple(bands), {}, provenance={**(provenance or {}), LAYER_OF: of})
        self.dataset, self.shards = dataset, len(dataset.manifest.shards)
        path = dataset.path / place_of("layers", name)
        path.parent.mkdir(exist_ok=True)
        self.writer = DatasetWriter(path, manifest, {**plan, "rows": of["keys"]})
        self.path, self.done, self.alone = path, self.writer.done, self.writer.alone

    @property
    def complete(self) -> bool:
        return self.writer.complete

    def write_shard(self, n: int, arrays: Mapping[str, Stored]) -> None:
        """As DatasetWriter.write_shard, for the rows of the dataset's shard `n`."""
        keys = self.dataset.shard_table(n, ("key",))["key"].to_pylist()
        if wrong := [name for name, values in arrays.items() if len(values) != len(keys)]:
            raise ValueError(f"{wrong[0]} has {len(arrays[wrong[0]])} rows, shard {n} has {len(keys)}")
        self.writer.write_shard(n, keys, arrays, {})

    def finish(self) -> Manifest:
        """Write the layer's dataset.json, once all shards are there."""
        return self.writer.finish(self.shards, {})


def with_images(manifest: Manifest, encoding: str, step_sigma: float = STEP_SIGMA) -> Manifest:
    """The manifest with its images of floats stored "raw" or "compact", in steps of `step_sigma` of each band's sky.
    Those that are stored so already stay as they are, and so do those in the index.

    Raises InputError where there is no such image, or compact is asked for and a sky_sigma is not known.
    """
    is_float = lambda array: array.kind == "image" and np.dtype(array.dtype) in (np.float16, np.float32)
    is_image = lambda array: is_float(array) and array.in_tar and not array.variable
    images = {name: array for name, array in manifest.arrays.items() if is_image(array)}
    if not images:
        raise InputError(f"encoding: there is no image of floats in the tars, of the arrays {sorted(manifest.arrays)}")
    images = {name: array for name, array in images.items() if array.encoding != encoding}
    how = None
    if images and encoding == "compact":
        if unknown := [band.name for band in manifest.bands if not band.sky_sigma > 0]:
            raise InputError(f"bands.{unknown[0]}.sky_sigma: must be positive for compact images; measure it")
        # The key decides a sample's dither; one seed for all lets datasets of equal sky share a batch.
        how = Compact(compact.VERSION, tuple(step_sigma * band.sky_sigma for band in manifest.bands), seed=0)
    changed = {name: dataclasses.replace(array, encoding=encoding, compact=how) for name, array in images.items()}
    return dataclasses.replace(manifest, arrays=manifest.arrays | changed)


def encoding_plan(encoding: str) -> dict:
    """What a plan says of the images' encoding: nothing of raw, so that plans from before compact still agree."""
    return {} if encoding == "raw" else {"encoding": encoding}


def is_strange(path: Path) -> bool:
    """Whether a file is something else than the half-written marker of a writing that was killed at its start."""
    return not (path.name.startswith(".writing.json.") and path.name.endswith(".tmp"))


def hash_keys(keys: Sequence[str]) -> np.ndarray:
    """int64 [N]: Python's hashes, the same within one process."""
    return np.fromiter(map(hash, keys), np.int64, len(keys))


def repeated_keys(
    hashes: Sequence[np.ndarray], keys: Callable[[int], list[str]]
) -> Iterator[tuple[int, int, str, int]]:
    """(shard, row, key, earlier shard) of each key that stands before in the dataset. hashes: of each shard's keys.

    Only keys whose hashes are equal are asked for and held: all keys of a survey would take gigabytes."""
    ordered = np.sort(np.concatenate([np.empty(0, np.int64), *hashes]))
    suspects = ordered[1:][ordered[1:] == ordered[:-1]]
    seen: dict[str, int] = {}  # and the shard of each
    for n, values in enumerate(hashes):
        rows = np.flatnonzero(np.isin(values, suspects)) if len(suspects) else ()
        names = keys(n) if len(rows) else []
        for row in rows:
            if names[row] in seen:
                yield n, int(row), names[row], seen[names[row]]
            seen.setdefault(names[row], n)


def to_lists(values: Stored, spec: Array, array: str) -> pa.Array:
    """The column of the index that holds an array, checked as `encode` checks those of the tar."""
    with np.errstate(over="ignore", invalid="ignore"):  # of what is then infinite, or another integer
        flat = np.ascontiguousarray(values, spec.dtype)
    if flat.dtype.kind in "iu" and not np.array_equal(flat, np.asarray(values)):
        raise ValueError(f"{array} holds a value that {spec.dtype} cannot; give the manifest a wider type")
    length = math.prod(spec.full_shape)
    if flat.size != len(values) * length:
        raise ValueError(f"{array} has shape {flat.shape[1:]}, the manifest says {spec.shape}")
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        raise ValueError(f"{array} holds NaN or inf; store a finite value and say so in {array}_mask")
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), length)


def encode(value: np.ndarray | bytes, spec: Array, key: str, array: str) -> tuple[bytes, bytes | memoryview]:
    """Header and payload of the member of the tar that holds one array of the sample `key`, checked against its
    specification."""
    name = f"{key}.{array}"
    if isinstance(value, bytes):
        if not spec.compact:
            raise ValueError(f"{name} is bytes, the manifest says {spec.dtype}")
        compact.unpack(value, np.empty(spec.full_shape, np.int16))
        return b"", value
    if value.dtype != np.dtype(spec.dtype):
        raise ValueError(f"{name} is {value.dtype}, the manifest says {spec.dtype}")
    if value.ndim != len(spec.shape) or spec.shape_of(value.nbytes) != value.shape:
        raise ValueError(f"{name} has shape {value.shape}, the manifest says {spec.shape}")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ValueError(f"{name} holds NaN or inf; store a finite value and say so in {array}_mask")
    if spec.compact:
        return b"", compact.encode(value, spec.compact.steps, compact.sample_seed(spec.compact.seed, key))
    return npy_header(value.dtype.str, value.shape), np.ascontiguousarray(value).reshape(-1).view(np.uint8).data


@functools.lru_cache(maxsize=256)
def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The header of an .npy file of version 1.0, of an array of this type and shape."""
    sink = io.BytesIO()
    np.lib.format.write_array_header_1_0(sink, {"descr": dtype, "fortran_order": False, "shape": shape})
    return sink.getvalue()


def meta_json(scalars: dict) -> bytes:
    """The scalars of one sample as strict JSON: NaN, which JSON lacks, becomes null. Raises ValueError for infinity."""
    try:
        return json.dumps({k: None if v != v else v for k, v in scalars.items()}, allow_nan=False).encode()
    except ValueError:
        name = next(name for name, value in scalars.items() if value in (math.inf, -math.inf))
        raise ValueError(f"column {name} is infinite, which JSON cannot say; store NaN") from None
