"""What decides the content of a converted dataset, and whether it can be written where it is wanted."""

import argparse
import hashlib
import importlib.metadata
import os
import re
import tempfile
from pathlib import Path

import jaxz
from data_tools.survey import Survey
from data_tools.tiles import Tile, companion
from jaxz.data.manifest import Manifest
from jaxz.data.writer import DatasetWriter, encoding_plan
from jaxz.errors import InputError
from jaxz.progress import in_threads

MEASURING = ("numpy", "scipy", "astropy", "astropy-healpix", "sep", "reproject")  # packages that decide the content
WRITING = ("pyarrow", "webdataset")
FITS = re.compile(r"\.(fits|fit|fts)(\.fz|\.gz)?$", re.IGNORECASE)
ENDS = 1 << 20  # bytes at the beginning and at the end of a file that its digest is of


def input_paths(survey: Survey, args: argparse.Namespace, tiles: list[Tile]) -> dict[str, Path]:
    """{role: path} of every file, or folder of a catalogue, that decides the content. Raises InputError."""
    paths = {"survey": Path(args.survey)}
    for tile in tiles if not survey.stamped else ():  # a stamp is not read for its digest
        for band in survey.bands:
            if band.name not in tile.files:
                continue
            role = f"bands.{band.name}.{{}}" + (f" of {tile.name}" if tile.name else "")
            paths[role.format("file")] = tile.files[band.name]
            for field in ("weight_file", "mask_file"):
                if getattr(band, field):
                    paths[role.format(field)] = companion(args.images, band, field, tile.name)
    paths |= {role: path for role in ("catalog", "match") if (path := getattr(args, role)) is not None}
    for role, path in paths.items():
        if not path.exists():
            raise InputError(f"{role}: {str(path)!r} is not there; check the path")
    return paths


def unmatched(images: Path, paths: dict[str, Path]) -> list[Path]:
    """The FITS files below a folder that the survey does not read, in order."""
    read = {os.path.realpath(file) for path in paths.values() for file in files_of(path)}
    names = (Path(folder, name) for folder, _, files in os.walk(images) for name in files if FITS.search(name))
    return sorted(path for path in names if os.path.realpath(path) not in read)


def inputs(paths: dict[str, Path]) -> list[dict]:
    """Role, name, bytes and digest of every file."""
    files = sorted({file for path in paths.values() for file in files_of(path)})  # several bands may be HDUs of one
    digests = dict(zip(files, in_threads(digest, files, 8, "inputs"), strict=True))
    listed = []
    for role, path in paths.items():
        for file in files_of(path):
            listed.append({"role": role, "name": file.name, "bytes": file.stat().st_size, "digest": digests[file]})
    return listed


def files_of(path: Path) -> list[Path]:
    """A file, or those of a partitioned table."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def digest(path: Path) -> str:
    """sha256 of a file's length, first and last megabyte: a survey's tiles are too long to be read for it."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(ENDS)
            file.seek(max(size - ENDS, 0))
            return hashlib.sha256(b"%d\n" % size + head + file.read(ENDS)).hexdigest()
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read ({error.strerror}); check the path") from None


def sha256(path: Path) -> str:
    """Of a whole file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Those of jaxz and of the packages: without an argument, all that measure or write."""
    names = packages or (*MEASURING, *WRITING)
    return {"jaxz": jaxz.__version__, **{name: importlib.metadata.version(name) for name in names}}


def identity(args: argparse.Namespace, read: list[dict]) -> dict:
    """What decides the content: a directory begun with another one is refused. read: the files."""
    what = {name: getattr(args, name) for name in ("size", "samples_per_shard", "tiles_per_block")}
    what |= {"field": args.images.resolve().name} | encoding_plan(args.encoding)
    if len(read) <= 1000:
        what |= {f"input {file['role']}": file["digest"] for file in read}
    else:  # one digest of all: the plan is kept in dataset.json
        what["inputs"] = hashlib.sha256("".join(sorted(f["role"] + f["digest"] for f in read)).encode()).hexdigest()
    return what | {f"version of {name}": version for name, version in versions(*MEASURING).items()}


def check_out(out: Path) -> None:
    """Raises InputError where nothing can be written at `out`. Leaves nothing there."""
    folder = next(path for path in (out, *out.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"out: {str(out)!r} cannot be written ({error.strerror}); choose another directory") from None


def check_begun(out: Path, plan: dict) -> None:
    """Raises InputError where `out` holds something else, or was begun with another plan. Writes nothing."""
    if out.is_dir() and any(out.iterdir()):
        DatasetWriter(out, Manifest({}, (), {}), plan)


def check_space(out: Path, needed: int, fix: str = "choose another disk", files: int = 0) -> None:
    """Raises InputError where the file system has not the room, in bytes or files, for what is going to be written;
    what is at `out` already is a part of it."""
    folder = next(path for path in (out, *out.absolute().parents) if path.exists())
    system = os.statvfs(folder)
    free = system.f_bavail * system.f_frsize
    needed -= sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if needed > free:
        has, wanted = (f"{n / 1e6:.3g} MB" if n < 1e9 else f"{n / 1e9:.1f} GB" for n in (free, needed))
        raise InputError(f"out: {str(out)!r} has {has} free, and {wanted} are needed; make room, {fix}")
    if system.f_files and files > system.f_favail:
        raise InputError(
            f"out: {str(out)!r} has {system.f_favail} inodes free, and {files} are needed; give more samples_per_shard"
        )
