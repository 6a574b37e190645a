"""What decides the content of a converted dataset, and whether it can be written where it is wanted."""

import argparse
import hashlib
import importlib.metadata
import tempfile
from pathlib import Path

import jaxz
from data_tools.survey import Survey
from data_tools.tiles import find_file
from jaxz.data.manifest import Manifest
from jaxz.data.writer import DatasetWriter, encoding_plan
from jaxz.errors import InputError

MEASURING = ("numpy", "scipy", "astropy", "astropy-healpix", "photutils")  # packages that decide the content
WRITING = ("pyarrow", "webdataset")


def inputs(survey: Survey, args: argparse.Namespace) -> list[dict]:
    """Role, name, bytes and sha256 of every file that decides the content."""
    paths = {"survey": Path(args.survey)}
    for band in survey.bands:
        for field in ("file", "weight_file"):
            if getattr(band, field):
                paths[f"bands.{band.name}.{field}"] = find_file(args.images, band, field)
    if args.catalog is not None:
        paths["catalog"] = args.catalog
    digests = {path: sha256(path) for path in set(paths.values())}  # several bands may be HDUs of one file
    return [
        {"role": role, "name": path.name, "bytes": path.stat().st_size, "sha256": digests[path]}
        for role, path in paths.items()
    ]


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions(*packages: str) -> dict[str, str]:
    return {"jaxz": jaxz.__version__, **{name: importlib.metadata.version(name) for name in packages}}


def make_plan(args: argparse.Namespace, field: str, read: list[dict]) -> dict:
    """What decides the content: a directory begun with another plan is refused. read: the files."""
    plan = {"size": args.size, "samples_per_shard": args.samples_per_shard, "field": field}
    plan |= encoding_plan(args.encoding)
    plan.update({f"input {file['role']}": file["sha256"] for file in read})
    plan.update({f"version of {name}": version for name, version in versions(*MEASURING).items()})
    return plan


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
