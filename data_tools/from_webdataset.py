"""An existing set of WebDataset tars -> dataset: its index and its manifest, and tars of its own or the very same ones.

    python -m data_tools.from_webdataset TAR [TAR ...] --out DATASET [--bands BANDS.toml] [--split train] [--link]

Members .npy and .npz become arrays, .json, .cls, .txt and .id columns; pickles are refused. By default the samples are
written again, as every dataset has them; --link makes hard links to tars whose arrays are .npy, and rewrites no byte.
docs/formats.md says more. An interrupted import goes on when the same command is given again.
"""

import argparse
import errno
import hashlib
import json
import math
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from data_tools.bands import load_bands
from data_tools.catalogs.catalog import COLUMNS
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
)
from data_tools.webdataset_tars import (
    PICTURES,
    SCALARS,
    Header,
    Member,
    clean_key,
    extension,
    npy_header,
    npz_entries,
    printable,
    read_array,
    read_scalars,
    samples,
)
from jaxz.data.index import PLACES, column_type, to_parquet
from jaxz.data.manifest import Array, Band, Column
from jaxz.data.writer import DatasetWriter, hash_keys
from jaxz.errors import InputError, run
from jaxz.files import replace
from jaxz.progress import in_threads

Place = tuple[int, int, int]  # offset, size and crc32 of a payload


@dataclass
class Schema:
    """What the samples of one tar hold, or of all: the dtypes and shapes of every array, the types of every column,
    all fields, of members and in them, and how many samples have each array. hashes: int64 [N], of the keys."""

    arrays: dict[str, set[tuple[np.dtype, tuple[int, ...]]]] = field(default_factory=dict)
    columns: dict[str, set[type]] = field(default_factory=dict)
    fields: set[str] = field(default_factory=set)
    present: Counter = field(default_factory=Counter)
    hashes: list[np.ndarray] = field(default_factory=list)
    wide: set[str] = field(default_factory=set)  # with numbers that float32 does not hold exactly
    encoded: str = ""  # a member that has to be decoded, and so cannot be linked

    def join(self, other: "Schema") -> None:
        for name, shapes in other.arrays.items():
            self.arrays.setdefault(name, set()).update(shapes)
        for name, kinds in other.columns.items():
            self.columns.setdefault(name, set()).update(kinds)
        self.fields |= other.fields
        self.wide |= other.wide
        self.present += other.present
        self.hashes += other.hashes
        self.encoded = self.encoded or other.encoded


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(prog="python -m data_tools.from_webdataset", description=__doc__.split("\n\n")[0])
    parser.add_argument("tars", nargs="+", type=Path)
    add_arguments(parser)
    add_array_arguments(parser)
    parser.add_argument("--split", help="of all samples, where no column is called so")
    parser.add_argument("--link", action="store_true", help="hard links instead of new tars; .npy arrays only")
    args = parser.parse_args(argv)
    check_arguments(args)
    if args.link and (args.channels_last or args.nan_mask or args.encoding != "raw"):
        raise InputError("link: linked tars stay as they are; leave out --channels_last, --nan_mask and --encoding")
    print(json.dumps(import_dataset(args, argv, plan_import(args)), indent=1))
    return None


def plan_import(args: argparse.Namespace) -> Import:
    """What is in the tars, and how it is read."""
    names, bands = Names(args), load_bands(args.bands)[0] if args.bands else ()
    schema = Schema()
    for one in in_threads(partial(scan, skipped=names.skipped), args.tars, args.workers, "tars"):
        schema.join(one)
    names.check(sorted(schema.fields))
    if both := sorted(schema.arrays.keys() & schema.columns.keys()):
        raise InputError(f"tars: {both[0]!r} is an array and a scalar of .json; add --skip of one member")
    if args.link and schema.encoded:
        raise InputError(f"link: {schema.encoded} has to be decoded; leave --link out, or --skip it")
    total = sum(map(len, schema.hashes))
    for path in args.channels_last:
        if path not in schema.arrays:
            raise InputError(f"channels_last: {path!r} is no array of the tars, which have {sorted(schema.arrays)}")
    arrays = {
        names(path): array_of(names(path), path, kinds, schema.present[path], total, bands, path in args.channels_last)
        for path, kinds in sorted(schema.arrays.items())
    }
    if not arrays:
        raise InputError(f"tars: their fields {sorted(schema.fields)} hold no array; write .npy members")
    columns = {
        names(path): column_of(names(path), path, kinds, path in schema.wide)
        for path, kinds in sorted(schema.columns.items())
    }
    repeated = len(np.unique(np.concatenate(schema.hashes))) < total
    if "key_orig" in columns:
        raise InputError(
            "rename: 'key_orig' is the key in the tar; call the scalar otherwise, --rename NEW=key for one"
        )
    columns["key_orig"] = Column("string", "", "the key in the tar that it comes from")
    if args.split and "split" not in columns:
        columns["split"] = Column("string", "", "as the import said")
    read = partial(read_tar, args, names, [*arrays], columns, repeated)
    plan = {"tars": [[path.name, path.stat().st_size] for path in args.tars]}
    about = {"tars": [path.name for path in args.tars], "channels_last": sorted(args.channels_last)}
    put = link_tar(args.tars) if args.link else DatasetWriter.write_shard
    return Import("from_webdataset", arrays, bands, columns, total, len(args.tars), read, plan, about, put)


def scan(path: Path, skipped: set[str]) -> Schema:
    """What a tar holds. Reads headers and scalars, no array but those of .npz."""
    found, keys = Schema(), []
    with open(path, "rb") as file:
        for key, members in samples(path):
            keys.append(key)
            seen: set[str] = set()
            for member in members:
                if member.field in skipped:
                    found.fields.add(member.field)
                    continue
                where = f"{path}: {printable(key)}.{member.field}"
                for name, value in contents(file, member, where):
                    found.fields.add(name)
                    if name in skipped:
                        continue
                    if name in seen:
                        raise InputError(
                            f"{where}: the sample has {name!r} in another member too; --skip {member.field}"
                        )
                    seen.add(name)
                    if isinstance(value, Header):
                        found.arrays.setdefault(name, set()).add((value.dtype, value.shape))
                        found.present[name] += 1
                        plain = extension(member.field) == "npy" and value.dtype.isnative and not value.fortran
                        found.encoded = found.encoded or ("" if plain else where)
                    elif isinstance(value, bool | int | float | str | None):
                        found.columns.setdefault(name, set()).add(type(value))
                        if isinstance(value, int | float) and not is_float32(value):
                            found.wide.add(name)
                    else:
                        raise InputError(f"{where}: {name!r} is no scalar; write lists as .npy, or --skip {name}")
    found.hashes = [hash_keys(keys)]
    return found


def contents(file: BinaryIO, member: Member, where: str) -> Iterator[tuple[str, object]]:
    """(field, header of an array or scalar) of all that a member holds. Raises InputError for what cannot be read."""
    kind = extension(member.field)
    if kind == "npy":
        yield array_field(member), npy_header(file, member, where)
    elif kind == "npz":
        for name, header, _ in npz_entries(file, member, where):
            yield entry_field(member, name), header
    elif kind in SCALARS:
        yield from read_scalars(file, member, where).items()
    elif kind in PICTURES:
        raise InputError(f"{where}: a picture holds no fluxes; decode it to .npy, or --skip {member.field}")
    else:
        raise InputError(f"{where}: .{kind} is not read; write it as .npy or .json, or --skip {member.field}")


def array_field(member: Member) -> str:
    """image of image.npy; npy of npy."""
    return member.field.rpartition(".")[0] or member.field


def entry_field(member: Member, entry: str) -> str:
    """entry of npz, a/entry of a.npz."""
    prefix = member.field.rpartition(".")[0]
    return f"{prefix}/{entry}" if prefix else entry


def array_of(
    name: str, path: str, kinds: set, present: int, total: int, bands: tuple[Band, ...], channels_last: bool
) -> Array:
    """The array that all samples have. Raises InputError where some lack it, or they differ in more than the length of
    one axis."""
    if present != total:
        raise InputError(f"tars: {path!r} is missing in {total - present} of {total} samples; add --skip of its member")
    dtypes = {dtype.newbyteorder("=") for dtype, _ in kinds}
    shapes = [(s[-1], *s[:-1]) if channels_last and len(s) == 3 else s for s in sorted({shape for _, shape in kinds})]
    varying = [len(set(axis)) > 1 for axis in zip(*shapes, strict=False)]
    if len(dtypes) > 1 or len({len(shape) for shape in shapes}) > 1 or sum(varying) > 1:
        raise InputError(
            f"tars: {path!r} is {sorted(map(str, dtypes))} of shapes {shapes[:3]}; make them alike, or skip it"
        )
    shape = tuple(None if varies else n for n, varies in zip(shapes[0], varying, strict=True))
    longest = max((s[shape.index(None)] for s in shapes), default=0) if None in shape else None
    return Array(array_kind(name, shape, bands), dtypes.pop().name, shape, max=longest)


def is_float32(value: float) -> bool:
    """Whether float32 holds a number exactly, as it does all that come from float32; NaN and inf count."""
    with np.errstate(over="ignore"):
        return not math.isfinite(value) or float(np.float32(value)) == value


def column_of(name: str, path: str, kinds: set[type], wide: bool) -> Column:
    """The column of values of some Python types. wide: they need float64. Raises InputError where they do not go
    together."""
    real, about = kinds - {type(None)}, f"{path} of the tars"
    if real <= {int, float}:
        exact = wide or (name in COLUMNS and COLUMNS[name].dtype == "float64")  # positions that happen to be round
        return described(name, "int64" if real == {int} else "float64" if exact else "float32", {}, about)
    if real in ({str}, {bool}):
        return described(name, "string" if real == {str} else "bool", {}, about)
    raise InputError(f"tars: {path!r} holds {sorted(kind.__name__ for kind in real)}; make them alike, or skip it")


def read_tar(
    args: argparse.Namespace, names: Names, stored: list[str], columns: dict[str, Column], repeated: bool, n: int
) -> Samples:
    """The samples of tar n, which may be none; with --link, of the arrays (offset, size, crc32) of each payload.
    stored: the names of the arrays."""
    path, keys = args.tars[n], []
    arrays: dict[str, list] = {name: [] for name in stored}
    values: dict[str, list] = {name: [] for name in columns}
    take: Callable[[BinaryIO, Member, str], np.ndarray | Place] = place_of if args.link else read_array
    with open(path, "rb") as file:
        for key, members in samples(path):
            keys.append(clean_key(f"{n:05d}-{key}" if repeated else key))
            scalars: dict[str, object] = {"key_orig": printable(key), "split": args.split}
            for member in (member for member in members if member.field not in names.skipped):
                where, kind = f"{path}: {printable(key)}.{member.field}", extension(member.field)
                found: dict[str, Callable[[], np.ndarray | Place]] = {}
                if kind == "npy":
                    found[array_field(member)] = partial(take, file, member, where)
                elif kind == "npz":
                    found |= {entry_field(member, entry): get for entry, _, get in npz_entries(file, member, where)}
                else:
                    told = read_scalars(file, member, where)
                    scalars |= {names(name): told[name] for name in told.keys() - names.skipped}
                for name in found.keys() - names.skipped:
                    value = found[name]()
                    if isinstance(value, np.ndarray) and name in args.channels_last:
                        value = value.transpose(2, 0, 1)
                    arrays[names(name)].append(value)
            for name, column in values.items():
                column.append(scalars.get(name))
    return keys, arrays, values


def place_of(file: BinaryIO, member: Member, where: str) -> Place:
    """Offset, size and crc32 of the values of a .npy member. Raises InputError where they are not all finite."""
    values, start = read_array(file, member, where), npy_header(file, member, where).start
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(f"link: {where} holds NaN or inf; leave --link out and use --nan_mask")
    return member.offset + start, values.nbytes, zlib.crc32(values.data)


def link_tar(tars: list[Path]) -> Callable[..., None]:
    """How a shard is written that is a hard link to its tar, as DatasetWriter.write_shard is called."""

    def put(writer: DatasetWriter, n: int, keys: list[str], places: dict[str, list], columns: dict) -> None:
        target = writer.path / "shards" / f"{n:05d}.tar"
        target.unlink(missing_ok=True)  # of an import that was interrupted
        try:
            os.link(tars[n].resolve(), target)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
            raise InputError(f"link: {tars[n]} cannot be linked there ({error.strerror}); leave --link out") from None
        with open(target, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        shard = {"samples": len(keys), "bytes": target.stat().st_size, "sha256": sha256}
        table = {"key": pa.array(keys, pa.string())}
        for name, spec in writer.manifest.columns.items():
            table[name] = pa.array(columns[name], column_type(spec))
        for name, where in places.items():
            for part, (suffix, kind) in enumerate(PLACES.items()):
                table[f"{name}_{suffix}"] = pa.array([place[part] for place in where], kind)
        replace(writer.path / "index" / f"{n:05d}.parquet", to_parquet(pa.table(table), shard))

    return put


if __name__ == "__main__":
    run(main, resumes=True)
