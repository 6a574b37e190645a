"""What would make a job fail, found on the login node: all at once, each with its fix, before anything is submitted."""

import argparse
import importlib.metadata
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jaxz import objectives, train
from jaxz.config import parse
from jaxz.data.dataset import Dataset, open_dataset
from jaxz.data.transport import is_remote
from jaxz.errors import BESIDES, InputError
from jaxz.mesh import make_mesh
from jaxz.models import build
from jaxz.optim import make_optimizer
from jaxz.state import abstract_state
from jaxz.validate import validate
from launch.profile import expand
from launch.request import Request

INODES = 10_000  # that a run should find free
PURGE_MARGIN = 5  # days


def check(request: Request) -> None:
    """Raises InputError with everything that is wrong, a line each."""
    jax.config.update("jax_platforms", "cpu")  # nothing is computed, and a login node has no GPU
    problems = [*limits(request), *software(request)]
    seen: set[str] = set()
    for point, run in zip(request.points, request.runs, strict=True):
        try:
            options, rest = train.arguments([*request.arguments, *point.overrides, f"--workdir={run}"])
            config = parse(rest)
            validate(config)
        except InputError as error:
            problems.append(str(error))
            continue
        problems += [*precision(request, config), *division(request, config), *folders(request, run, config)]
        there = not (comes_first(request, config) or is_remote(config.data.path))
        for path in {config.data.path, *(source.get("path", "") for source in config.data.sources)} - {"", *seen}:
            problems += complete(request, path, config) if there else []
            seen.add(path)
        try:
            train.check_workdir(run, config, options["--allow_config_change"])
            if config.init.path and request.after:  # which that job is yet to train
                continue
            if there:
                problems += room(run, config)
            elif config.init.path and not absolute(request, config.init.path).exists():
                problems.append(f"init.path: {config.init.path!r} is not there; fetch it, which jobs cannot do")
        except InputError as error:
            problems.append(str(error))
    if problems := list(dict.fromkeys(problems)):
        raise InputError(BESIDES.join(problems))


def limits(request: Request) -> Iterator[str]:
    """Account, time and GPUs, as the cluster's rules are."""
    profile, suffix = request.profile, request.profile.account_suffix
    if profile.account and not request.account:
        yield f"--account: is missing; give the project that pays, without {suffix!r}"
    if suffix and request.account.endswith(suffix):
        yield f"--account: {request.account!r} has its suffix already; leave out {suffix!r}, which is added"
    if not request.qos:
        return
    qos = profile.qos.get(request.qos)
    if qos is None:
        yield f"--qos: {request.qos!r} is none of {profile.name}; choose from {', '.join(profile.qos)}"
        return
    if request.seconds > 3600 * qos.hours:
        longer = [name for name, other in profile.qos.items() if other.hours > qos.hours]
        yield (
            f"--time: {request.time} is above the {qos.hours:g} h of {request.qos}; ask for less, the job goes on by "
            f"itself{f', or for --qos {longer[0]}' if longer else ''}"
        )
    gpus = request.nodes[1] * request.gpus
    if qos.gpus and gpus > qos.gpus:
        nodes = qos.gpus // request.gpus
        yield f"--nodes: {gpus} GPUs are above the {qos.gpus} of {request.qos}; ask for at most {nodes} nodes"


def software(request: Request) -> Iterator[str]:
    """The GPU's packages, where the job runs the same Python as this."""
    extra = request.profile.jax_extra
    if extra and request.python == sys.executable and not installed(f"jax-{extra}-plugin"):
        name = request.profile.name
        yield f"jax[{extra}]: is not installed, and {name} needs it; run launch/setup_env.sh {name}, or give --python"


def installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def precision(request: Request, config: ConfigDict) -> Iterator[str]:
    allowed = request.profile.dtypes
    if config.model.get("dtype", allowed[0]) not in allowed:
        yield (
            f"model.dtype: {config.model.dtype!r} is not for {request.profile.gpu or 'CPUs'}; use "
            f"--config.model.dtype={allowed[0]}"
        )


def division(request: Request, config: ConfigDict) -> Iterator[str]:
    """The batch, and the mesh, over every number of nodes that the job may get."""
    batch, slices, fsdp = config.train.batch_size, config.train.accumulate, config.mesh.fsdp
    for nodes in range(request.nodes[0], request.nodes[1] + 1):
        devices = nodes * request.tasks
        told, whole = f"the {devices} devices of {nodes} node(s)", devices * slices
        if batch % whole:
            parts = f"{told} x train.accumulate {slices}" if slices > 1 else told
            near = batch // whole * whole or whole
            yield f"train.batch_size: {batch} is not divisible by {parts}; use {near}, or other --nodes"
        if devices % fsdp or config.mesh.data not in (-1, devices // fsdp):
            yield f"mesh: data {config.mesh.data} x fsdp {fsdp} is not {told}; use mesh.data=-1 and a divisor as fsdp"


def folders(request: Request, run: Path, config: ConfigDict) -> Iterator[str]:
    """Where the job may write, and what it can read."""
    files = request.profile.files
    parent = next(folder for folder in (run, *run.parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        yield f"--workdir: {str(parent)!r} cannot be written to; name another"
    for field, path in (("--workdir", run), ("data.path", config.data.path), ("init.path", config.init.path)):
        for place in files.avoid:
            if path and not is_remote(path) and absolute(request, path).is_relative_to(expand(place)):
                yield f"{field}: {str(path)!r} is in {place}, which is small or unreadable in jobs; use {files.scratch}"
    if request.profile.job.offline and is_remote(config.data.path):
        yield f"data.path: {config.data.path!r} is remote, and jobs have no internet; copy it to {files.scratch}"


def comes_first(request: Request, config: ConfigDict) -> bool:
    """Whether the dataset is yet to be made or copied by the jobs before."""
    made = [request.stage[1]] if request.stage else []
    if request.convert:
        parser = argparse.ArgumentParser(add_help=False)
        parser.add_argument("--out", default="")
        made = [absolute(request, parser.parse_known_args(request.convert)[0].out)]
    return absolute(request, config.data.path) in made


def complete(request: Request, path: str, config: ConfigDict) -> Iterator[str]:
    """That every shard of a dataset is there, has its size, and will stay."""
    if is_remote(path):
        return
    try:
        dataset = open_dataset(absolute(request, path), overlays=config.data.overlays, layers=config.data.layers)
    except InputError as error:
        yield f"data.path: {error}"
        return
    for part in (dataset, *dataset.layers.values()):
        yield from whole(request, part)


def whole(request: Request, dataset: Dataset) -> Iterator[str]:
    files, wrong, oldest = request.profile.files, [], time.time()
    for n, shard in enumerate(dataset.manifest.shards):
        try:
            found = dataset.shard_path(n).stat()
        except OSError:
            wrong.append(f"{shard.name}.tar is missing")
            continue
        oldest = min(oldest, max(found.st_atime, found.st_mtime))
        if found.st_size != shard.bytes:
            wrong.append(f"{shard.name}.tar has {found.st_size} of {shard.bytes} bytes")
    if wrong:
        more = f", and {len(wrong) - 1} more are wrong" if wrong[1:] else ""
        yield f"data.path: {str(dataset.path)!r}: {wrong[0]}{more}; copy them again (rsync --partial)"
    days = (time.time() - oldest) / 86400
    purged = files.purge_days and Path(dataset.path).is_relative_to(expand(files.scratch))
    if purged and days > files.purge_days - PURGE_MARGIN:
        yield (
            f"data.path: {str(dataset.path)!r} has files not read for {days:.0f} days, and {files.scratch} is purged "
            f"after {files.purge_days}; read them with `python -m data_tools.verify {dataset.path}`"
        )


def room(run: Path, config: ConfigDict) -> Iterator[str]:
    """Bytes and inodes for the checkpoints. Raises InputError for a model that cannot be made, or start as told."""
    dataset = open_dataset(config.data.path, config.data.cache, layers=config.data.layers)
    normalisation = train.starting_normalisation(run, config, dataset)
    objective = objectives.Objective(
        build(config.model, normalisation.bands, normalisation.size), config, normalisation
    )
    params = jax.eval_shape(lambda: objective.init(jax.random.key(0))[0])
    optimizer = make_optimizer(config.optim, config.train.steps, params)
    state = abstract_state(objective, optimizer, config, make_mesh(1, 1))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    needed = size * (config.checkpoint.keep + 1)  # one is written before one is deleted
    folder = next(folder for folder in (run, *run.parents) if folder.is_dir())
    free = os.statvfs(folder)
    if free.f_bavail * free.f_frsize < needed:
        left = free.f_bavail * free.f_frsize / 1e9
        yield f"--workdir: {str(run)!r} has {left:.1f} GB left, and checkpoints need {needed / 1e9:.1f}; make room"
    if free.f_files and free.f_favail < INODES:
        yield f"--workdir: {str(run)!r} has {free.f_favail} inodes left; make room for {INODES}"


def absolute(request: Request, path: str | Path) -> Path:
    return Path(os.path.normpath(request.folder / path))
