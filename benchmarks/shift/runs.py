"""Trains and predicts the arms of shift-v1, each in a process of its own; what is done is not done again."""

import math
import subprocess
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.shift.arms import SPEC, TEMPLATES, Arm
from benchmarks.shift.labels import CATALOG, SUFFIX, Protocol, labels_name, write_catalog, write_labels
from jaxz import errors
from jaxz.config import parse
from jaxz.correct import FEWEST, UNHELD
from jaxz.data.dataset import open_dataset
from jaxz.data.staging import place_of
from jaxz.photoz.shift import FOLDS

BINS, BINS_PER_Z = 150, 50  # of p(z), at least
KEPT = 4  # checkpoints, a quarter of the run apart
MOST = 100  # labels of a cell of redshift and magnitude in the near-balanced subset
MEMBERS = 1000  # seeds lie so far apart: an ensemble takes one for each member

# Trains in a directory by arguments of jaxz.train; yields while it waits for a job (benchmarks.shift.trainings).
Train = Callable[[Path, Sequence[str]], Iterator[None]]


def call(*command: str) -> None:
    """Run a module. Raises InputError where it fails, Stopped where it saved its state and may go on."""
    done = subprocess.run([sys.executable, "-m", *command], stdout=sys.stderr)
    if done.returncode == errors.REQUEUE:
        raise errors.Stopped("a run saved its state; give the same command again")
    if done.returncode:
        raise errors.InputError(f"{' '.join(command)} ended with {done.returncode}")


def directory(scratch: Path, arm: str, seed: int) -> Path:
    """Of the run of an arm, by Arm.run."""
    return scratch / "runs" / f"{arm.replace('%', '')}_{seed}"


def directories(scratch: Path, arm: str) -> list[Path]:
    """Those that are there, of all seeds and learning rates, its own and its start's."""
    names = (f"{arm.replace('%', '')}_{ending}" for ending in ("[0-9]*", "lr[0-9]*", "of_*"))
    return sorted(path for name in names for path in (scratch / "runs").glob(name))


def overlay_names(protocol: Protocol, arm: Arm, seed: int) -> list[str]:
    """Of the overlay of an arm's labels, and of the other one that it has: of templates that of the arm's own recipe,
    or, where it only learns from their redshifts, of that of the arm `templates`."""
    of = arm.labels, arm.fraction, seed
    names = [labels_name(protocol, *of)]
    if arm.overlay:
        maker = TEMPLATES if arm.config else arm
        recipe = " ".join(maker.fields) if arm.overlay == "templates" else ""
        names.append(labels_name(protocol, *of, recipe) + SUFFIX[arm.overlay])
    return names


def held(protocol: Protocol) -> tuple[str, np.ndarray]:
    """The filter of the validation objects whose labels the selection keeps, and their rows."""
    dataset = open_dataset(str(protocol.dataset))
    where = protocol.labelled(dataset, "val")
    return where, dataset.select(f"({where}) and isfinite(z)")


def write_overlays(protocol: Protocol, arm: Arm, seed: int) -> None:
    """An arm's overlays, unless they are there; the templates' redshifts are left to the arm `templates`."""
    write_labels(protocol, arm.labels, arm.fraction, seed)
    labels, *more = overlay_names(protocol, arm, seed)
    if arm.overlay == "catalog":
        write_catalog(protocol, labels)
    if not more or (protocol.dataset / place_of("overlays", more[0])).exists():
        return
    named = [str(protocol.dataset), "--name", more[0], "--overlay", labels, "--seed", str(seed)]
    if arm.overlay == "weights":
        where, rows = held(protocol)
        chosen = {"train": f"split == 'train' and {SPEC}", "target": "split == 'train'"}
        chosen["held"] = where if len(rows) >= FOLDS else ""  # by default it would weigh labels that are hidden
        call("jaxz.shift", *named, *(f"--{name}={text}" for name, text in chosen.items()), "--features", "flux")
    elif arm.overlay == "near_balanced":
        call("data_tools.relabel", *named, "--near_balanced", str(MOST))


def run(scratch: Path, protocol: Protocol, arm: Arm, seed: int, pretrained: Path, train: Train) -> Iterator[None]:
    """Train an arm and predict every test object, to pdf.hdf5 in its directory, unless that was done; yields as `train`
    does."""
    workdir, dataset = directory(scratch, arm.run, seed), str(protocol.dataset)
    done = "evaluated.json" if not arm.config else "pdf.parquet" if arm.scored else "trained"
    if (workdir / done).exists():
        return
    write_overlays(protocol, arm, seed)
    if arm.correct:
        where = ["--workdir", str(directory(scratch, arm.start, seed)), "--dataset", dataset, "--out", str(workdir)]
        needed = ["--held", held(protocol)[0]] if arm.correct not in UNHELD else []
        call("jaxz.correct", *where, "--method", arm.correct, *needed)
        return
    if not arm.config:
        labels, *more = overlay_names(protocol, arm, seed)
        missing = more and not (protocol.dataset / place_of("overlays", more[0])).exists()
        label = [f"--label={more[0]}"] if missing else []  # it was stopped between the overlay and its end
        where = ["--dataset", dataset, "--workdir", str(workdir), f"--overlay={labels}", *label]
        call("jaxz.photometry", *where, *arm.fields, "--seed", str(seed))
        return
    arguments = training_arguments(scratch, protocol, arm, seed, pretrained / arm.weights)
    yield from train(workdir, arguments)
    if arm.scored:
        # --overwrite: it was stopped between the two files, of which pdf.parquet is the last
        where = ["--where", "split == 'test'", "--out", str(workdir / "pdf.parquet"), "--overwrite"]
        call("jaxz.predict", f"--workdir={workdir}", f"--dataset={dataset}", *where)
    else:
        (workdir / "trained").touch()


def training_arguments(scratch: Path, protocol: Protocol, arm: Arm, seed: int, weights: Path) -> list[str]:
    """Those of jaxz.train but --workdir. weights: the file of published ones, of an arm that begins from it."""
    file, _, argument = arm.config.partition(":")
    overlays = tuple(overlay_names(protocol, arm, seed))
    fields = [f"data.path={protocol.dataset}", f"data.overlays={overlays!r}", f"seed={MEMBERS * seed}", *arm.fields]
    if arm.weights or arm.start:
        fields.append(f"init.path={weights if arm.weights else directory(scratch, arm.start, seed)}")
    bins = max(BINS, math.ceil(BINS_PER_Z * protocol.z_max))
    fields += [f"{arm.head}.z_max={protocol.z_max}", f"{arm.head}.bins={bins}"] if arm.scored else []
    arguments = [f"--config=configs/{file}.py{argument and f':{argument}'}", *(f"--config.{f}" for f in fields)]
    config = parse(arguments)
    arguments += [f"--config.optim.lr={arm.rate * config.optim.lr}"] if arm.rate != 1 else []
    every = -(-config.train.steps // KEPT)
    return [*arguments, f"--config.checkpoint.every={every}", f"--config.checkpoint.keep={KEPT}"]


def not_run(arms: Sequence[Arm], pretrained: Path, columns: Container[str], count: int) -> dict[str, str]:
    """{arm: why it cannot be run}. columns: of the dataset; count: of its labelled validation objects."""
    found = {}
    for arm in arms:
        if arm.weights and not (pretrained / arm.weights).exists():
            found[arm.name] = f"weights absent ({pretrained / arm.weights})"
        elif arm.overlay == "catalog" and (missing := [column for column in CATALOG if column not in columns]):
            found[arm.name] = f"the dataset has no {missing[0]}"
        elif arm.correct and arm.correct not in UNHELD and count < FEWEST:
            found[arm.name] = f"the split 'val' has {count} labels to learn from, at least {FEWEST} are needed"
        elif arm.start in found:
            found[arm.name] = f"{arm.start}, from which it begins, is not run"
    return found
