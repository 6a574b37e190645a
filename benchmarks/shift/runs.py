"""Trains and predicts the arms of shift-v1, each in a process of its own; what is done is not done again."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.shift.arms import SPEC, Arm
from benchmarks.shift.labels import Protocol, templates_name, weights_name, write_labels
from jaxz import errors
from jaxz.data.staging import place_of

MEMBERS = 1000  # seeds lie so far apart: an ensemble takes one for each member


def call(*command: str) -> None:
    """Run a module. Raises InputError where it fails, Stopped where it saved its state and may go on."""
    done = subprocess.run([sys.executable, "-m", *command], stdout=sys.stderr)
    if done.returncode == errors.REQUEUE:
        raise errors.Stopped("a run saved its state; give the same command again")
    if done.returncode:
        raise errors.InputError(f"{' '.join(command)} ended with {done.returncode}")


def directory(scratch: Path, arm: str, seed: int) -> Path:
    """Of an arm's run."""
    return scratch / "runs" / f"{arm.replace('%', '')}_{seed}"


def overlays(protocol: Protocol, arm: Arm, seed: int) -> list[str]:
    """The names of an arm's overlays: of its labels, and of weights for the whole training split, written unless they
    are there, or of templates' redshifts, which the arm `templates` writes."""
    labels = write_labels(protocol, arm.labels, arm.fraction, seed)
    if not arm.overlay:
        return [labels]
    if arm.overlay == "templates":
        return [labels, templates_name(labels)]
    own = weights_name(labels)
    if not (protocol.dataset / place_of("overlays", own)).exists():
        train, target = f"split == 'train' and {SPEC}", "split == 'train'"
        where = ["--train", train, "--target", target, "--features", "flux", "--seed", str(seed)]
        call("jaxz.shift", str(protocol.dataset), "--name", own, "--overlay", labels, *where)
    return [labels, own]


def run(scratch: Path, protocol: Protocol, arm: Arm, seed: int, pretrained: Path) -> None:
    """Train an arm and predict every test object, to pdf.hdf5 in its directory, unless that was done."""
    workdir, dataset = directory(scratch, arm.name, seed), str(protocol.dataset)
    done = "evaluated.json" if not arm.config else "pdf.parquet" if arm.scored else "trained"
    if (workdir / done).exists():
        return
    names = overlays(protocol, arm, seed)
    if not arm.config:
        missing = arm.overlay and not (protocol.dataset / place_of("overlays", names[1])).exists()
        label = [f"--label={names[1]}"] if missing else []  # it was stopped between the overlay and its end
        where = ["--dataset", dataset, "--workdir", str(workdir), f"--overlay={names[0]}", *label]
        call("jaxz.photometry", *where, *arm.fields, "--seed", str(seed))
        return
    start = pretrained / arm.weights if arm.weights else directory(scratch, arm.start, seed)
    call("jaxz.train", f"--workdir={workdir}", *training_arguments(protocol, arm, seed, names, start))
    if arm.scored:
        where = ["--where", "split == 'test'", "--out", str(workdir / "pdf.parquet")]
        call("jaxz.predict", f"--workdir={workdir}", f"--dataset={dataset}", *where)
    else:
        (workdir / "trained").touch()


def training_arguments(protocol: Protocol, arm: Arm, seed: int, overlays: Sequence[str], start: Path) -> list[str]:
    """Those of jaxz.train but --workdir. start: the run or file that init.path names, if the arm begins from one."""
    file, _, argument = arm.config.partition(":")
    fields = [f"data.path={protocol.dataset}", f"data.overlays={tuple(overlays)!r}", f"seed={MEMBERS * seed}"]
    fields += arm.fields
    fields += [f"init.path={start}"] if arm.weights or arm.start else []
    fields += [f"{arm.head}.z_max={protocol.z_max}"] if arm.scored else []
    return [f"--config=configs/{file}.py{argument and f':{argument}'}", *(f"--config.{field}" for field in fields)]


def runnable(arms: Sequence[Arm], pretrained: Path) -> list[Arm]:
    """Those whose published weights, if they start from any, are there; says so of the others."""
    for arm in arms:
        if arm.weights and not (pretrained / arm.weights).exists():
            print(f"{arm.name}: not run: weights absent ({pretrained / arm.weights})")
    return [arm for arm in arms if not arm.weights or (pretrained / arm.weights).exists()]
