"""What all importers share: the command line, names, labels, and the writing of shards that can be resumed."""

import argparse
import math
import platform
import re
import signal
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from data_tools.catalogs.catalog import COLUMNS
from data_tools.catalogs.columns import cleaned
from data_tools.inputs import WRITING, check_begun, check_out, versions
from data_tools.tiles import MASK_BITS
from jaxz.data.index import PLACES, read_index
from jaxz.data.manifest import Array, Band, Column, Manifest
from jaxz.data.writer import ENCODINGS, DatasetWriter, encoding_plan, with_images
from jaxz.errors import InputError
from jaxz.progress import in_threads

Samples = tuple[list[str], dict, dict]  # keys [N], arrays {name: [N, ...]}, columns {name: [N]}

OF_SOME = ("samples_per_shard", "channels_last", "nan_mask", "split", "link")  # arguments that not every importer has


@dataclass(frozen=True)
class Import:
    """What is to be written. read(n): the samples of shard n of `shards`. plan: what decides the content, beside the
    shared arguments; an interrupted import goes on only where it is the same. about: the source, for people and for
    the provenance. put(writer, n, *samples): writes shard n."""

    tool: str
    arrays: dict[str, Array]
    bands: tuple[Band, ...]
    columns: dict[str, Column]
    samples: int
    shards: int
    read: Callable[[int], Samples]
    plan: dict
    about: dict
    put: Callable[..., None] = DatasetWriter.write_shard
    splits: dict = field(default_factory=dict)  # by which rule they were made, where the import made them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", required=True, type=Path, help="dataset to write")
    add("--bands", type=Path, help="TOML file of the bands, in the order of the image's channels")
    add("--rename", action="append", default=[], metavar="NEW=FIELD", help="name of an array or column; repeatable")
    add("--skip", action="append", default=[], metavar="FIELD", help="field to leave out; repeatable")
    add("--z_kind", default="spec", help="of the labels, where there is a column z and no z_kind (default spec)")
    add("--encoding", choices=ENCODINGS, default="raw", help="of images of floats (default raw)")
    add("--workers", type=int, default=2, help="threads (default 2)")
    add("--dry_run", action="store_true", help="say what would be written, and write nothing")


def add_array_arguments(parser: argparse.ArgumentParser) -> None:
    """Of sources whose arrays do not say what their axes and their missing values are."""
    parser.add_argument(
        "--channels_last", action="append", default=[], metavar="FIELD", help="is [H,W,C], store [C,H,W]; repeatable"
    )
    parser.add_argument(
        "--nan_mask", action="store_true", help="store 0 for NaN and inf in images, and say so in IMAGE_mask"
    )


def check_arguments(args: argparse.Namespace) -> None:
    """What can be told before the source is read. Raises InputError for numbers out of range, and where nothing can be
    written."""
    for name in ("workers", "samples_per_shard"):
        if getattr(args, name, 1) < 1:
            raise InputError(f"{name}: {getattr(args, name)} must be at least 1")
    if not args.dry_run:
        check_out(args.out)


class Names:
    """The names of a source's fields in the dataset, as --rename and --skip say; `key` is the dataset's own. `check`
    raises InputError where these name fields that there are not, or two fields have one name."""

    def __init__(self, args: argparse.Namespace):
        self.skipped: set[str] = set(args.skip)
        self.renamed: dict[str, str] = {}
        for pair in args.rename:
            new, equals, field = pair.partition("=")
            if not equals or not re.fullmatch("[A-Za-z0-9_-]{1,32}", new) or field in self.renamed:
                raise InputError(f"rename: {pair!r} must be NEW=FIELD, each field once; write for example z=redshift")
            self.renamed[field] = new

    def __call__(self, field: str) -> str:
        plain = "key_orig" if field == "key" else re.sub("[^A-Za-z0-9_-]", "_", field)
        return self.renamed.get(field, plain)

    def check(self, fields: Collection[str]) -> None:
        for option, named in (("rename", self.renamed), ("skip", self.skipped)):
            if unknown := sorted(set(named) - set(fields)):
                raise InputError(f"{option}: {unknown[0]!r} is no field of the source; it has {sorted(fields)}")
        taken: dict[str, str] = {}
        for name in fields:
            other = taken.setdefault(self(name), name)
            if name not in self.skipped and other not in self.skipped and other != name:
                raise InputError(f"rename: fields {other!r} and {name!r} are both {self(name)!r}; rename one")


def described(name: str, dtype: str, kept: dict, otherwise: str) -> Column:
    """A column with the unit and the description that the source keeps; else the unit of its fixed meaning, and
    `otherwise`."""
    fixed = COLUMNS[name].unit if name in COLUMNS else ""
    return Column(dtype, str(kept.get("unit") or fixed), str(kept.get("description") or otherwise))


def array_kind(name: str, shape: tuple, bands: tuple[Band, ...]) -> str:
    """What an imported array is: an image where it has three axes and the first is that of the bands, or, where no
    bands are given, it is called so; a mask by its name."""
    if name.endswith("_mask"):
        return "mask"
    image = len(shape) == 3 and (shape[0] == len(bands) if bands else name == "image")
    return "image" if image else "array"


def import_dataset(args: argparse.Namespace, argv: list[str], source: Import) -> dict:
    """Write the dataset, or finish it, and say what was done. Raises InputError."""
    columns = dict(source.columns)
    if "z" in columns and columns["z"].dtype in ("string", "bool"):
        raise InputError(f"z: the source's is {columns['z'].dtype}, no redshift; --rename it, or --skip it")
    labelled = "z" in columns and "z_kind" not in columns and np.dtype(columns["z"].dtype).kind == "f"
    if labelled:
        columns["z_kind"] = Column("string", "", "where z comes from: as the import said, or none")
    arrays = dict(source.arrays)
    to_mask = images_without_mask(arrays) if getattr(args, "nan_mask", False) else []
    arrays |= {f"{name}_mask": Array("mask", "uint8", arrays[name].shape, bits=MASK_BITS) for name in to_mask}
    check_names(arrays, columns)
    manifest = Manifest(arrays, source.bands, columns)
    if args.encoding == "compact":
        manifest = with_images(manifest, "compact")
    summary = {
        "out": str(args.out), "samples": source.samples, "shards": source.shards,
        "arrays": {name: [array.dtype, list(array.shape)] for name, array in manifest.arrays.items()},
        "columns": {name: column.dtype for name, column in columns.items()},
        "bands": [band.name for band in source.bands], **source.about,
    }  # fmt: skip
    if not source.samples:
        raise InputError("source: there is no sample in it; name another")
    if args.dry_run:
        return {**summary, "dry_run": True}
    plan = {"tool": source.tool, **source.plan, "rename": sorted(args.rename), "skip": sorted(args.skip)}
    plan |= {"bands": args.bands.read_text() if args.bands else "", "z_kind": args.z_kind}
    plan |= {name: getattr(args, name) for name in OF_SOME if hasattr(args, name)}
    plan |= encoding_plan(args.encoding)
    check_begun(args.out, plan)
    provenance = {
        "tool": f"data_tools.{source.tool}", "arguments": argv, "source": source.about,
        "versions": {"python": platform.python_version(), **versions("numpy", *WRITING)},
        "linked_tars": getattr(args, "link", False),
    }  # fmt: skip
    writer = DatasetWriter(args.out, replace(manifest, provenance=provenance), plan)
    if writer.complete:
        print(f"{args.out} is complete already", file=sys.stderr)
        return summary

    reals = {name: np.dtype(column.dtype) for name, column in columns.items() if column.dtype.startswith("float")}

    def write(n: int) -> None:
        keys, stored, values = source.read(n)
        values |= {name: finite(np.asarray(values[name], dtype)) for name, dtype in reals.items()}
        for name in to_mask:
            stored[name], stored[f"{name}_mask"] = masked(np.asarray(stored[name]))
        if labelled:
            z = cleaned(np.asarray(values["z"]), "z_spec", [], 1.0).astype(columns["z"].dtype)
            values |= {"z": z, "z_kind": np.where(np.isfinite(z), args.z_kind, "none")}
        try:
            source.put(writer, n, keys, stored, values)
        except ValueError as error:
            raise InputError(f"shard {n:05d}: {error}") from None

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's stop is a Ctrl-C
    with writer.alone():
        in_threads(write, [n for n in range(source.shards) if not writer.done(n)], args.workers, "shards")
    written = writer.finish(source.shards, count_splits(args.out, columns, source.shards) | source.splits)
    return {**summary, "splits": written.splits, "bytes": sum(shard.bytes for shard in written.shards)}


def finite(values: np.ndarray) -> np.ndarray:
    """Reals with NaN where they are infinite, such as the magnitude of a flux of 0: JSON has no such number."""
    return np.where(np.isinf(values), values.dtype.type(np.nan), values)


def check_names(arrays: dict[str, Array], columns: dict[str, Column]) -> None:
    """Raises InputError where a column has a name that the index has taken."""
    taken = {f"{name}_{place}" for name in arrays for place in (*PLACES, "exceptions")} | arrays.keys() | {"key"}
    if clash := sorted(taken & columns.keys()):
        raise InputError(f"rename: a column cannot be called {clash[0]!r} here; give it another name, or --skip it")


def count_splits(path: Path, columns: dict[str, Column], shards: int) -> dict:
    """What the manifest says of the splits: how many samples each has."""
    if "split" not in columns:
        return {}
    counts: dict[str, int] = {}
    for n in range(shards):
        for one in read_index(path / "index" / f"{n:05d}.parquet", ["split"])["split"].value_counts().to_pylist():
            counts[str(one["values"])] = counts.get(str(one["values"]), 0) + one["counts"]
    return {"counts": dict(sorted(counts.items()))}


def row_shards(samples: int, samples_per_shard: int) -> tuple[int, Callable[[int], range]]:
    """The number of shards of so many rows, and the rows of each."""
    step = samples_per_shard
    return math.ceil(samples / step), lambda n: range(n * step, min((n + 1) * step, samples))


def images_without_mask(arrays: dict[str, Array]) -> list[str]:
    """The images of floats that no mask belongs to."""
    images = (name for name, array in arrays.items() if array.kind == "image" and np.dtype(array.dtype).kind == "f")
    return [name for name in images if f"{name}_mask" not in arrays]


def masked(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels with 0 where they are not finite, and uint8 MASK_BITS that say so: NaN is nodata, infinite is bad."""
    flags = np.isnan(pixels) * np.uint8(MASK_BITS["nodata"]) | np.isinf(pixels) * np.uint8(MASK_BITS["bad"])
    return np.where(flags, pixels.dtype.type(0), pixels), flags
