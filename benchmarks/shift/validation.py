"""The loss of labelled validation objects, which no arm learns from: whether an arm has converged, and which learning
rate it gets. A module of its own process, as trainings are: python -m benchmarks.shift.validation RUN DATASET WHERE"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.shift.arms import Arm
from benchmarks.shift.labels import Protocol
from benchmarks.shift.runs import call, directory, run
from jaxz import errors
from jaxz.checkpoint import Checkpoints
from jaxz.data.dataset import open_dataset
from jaxz.files import read_json, replace
from jaxz.inference import load_run
from jaxz.photoz.terms import pdf_terms

FILE = "validation.json"
Curve = dict[int, float]  # {step: mean of -log p(z)}


def curve(workdir: Path, protocol: Protocol) -> Curve:
    """Of the kept checkpoints of a trained run that is done, by the objects of the validation split that are selected
    as the labelled ones are; {} without any. Measured once."""
    path, dataset = workdir / FILE, open_dataset(str(protocol.dataset))
    where = protocol.labelled(dataset, "val")
    if not len(dataset.select(where)):
        return {}
    if not path.exists():
        call("benchmarks.shift.validation", str(workdir), str(protocol.dataset), where)
    return {int(step): loss for step, loss in read_json(path, "the validation loss of a run").items()}


def main(argv: list[str]) -> None:
    """Write RUN/validation.json."""
    workdir, where, losses = Path(argv[0]), argv[2], {}
    dataset, model = open_dataset(argv[1]), load_run(workdir)
    z = dataset.column("z")[dataset.select(where)]
    with Checkpoints(workdir) as checkpoints:
        for step in checkpoints.steps():
            model.params = checkpoints.params(model.abstract, step=step)
            _, found = model.predict_dataset(dataset, where, ("pdf",))
            losses[step] = float(pdf_terms(model.densities(found["pdf"])[0], z)["nll"].mean())
    replace(workdir / FILE, json.dumps(losses).encode())


def tuned(
    scratch: Path, protocol: Protocol, arms: Sequence[Arm], rates: Sequence[float], seed: int, pretrained: Path
) -> tuple[list[Arm], dict[str, dict[float, float]]]:
    """Run all arms of one seed, those that are trained and scored at each of `rates` times their learning rate; the
    arms at the rate of the least validation loss, and {arm: {rate: loss}}. Of one rate nothing is chosen.

    Raises InputError where rates are to be chosen without a labelled validation object.
    """
    chosen: dict[str, Arm] = {}
    losses: dict[str, dict[float, float]] = {}
    for arm in arms:
        begun = arm._replace(start=chosen[arm.start].run) if arm.start else arm
        several = arm.config and arm.scored and len(rates) > 1
        tried = [begun._replace(rate=rate) for rate in rates] if several else [begun]
        for one in tried:
            run(scratch, protocol, one, seed, pretrained)
        if several:
            curves = {one.rate: curve(directory(scratch, one.run, seed), protocol) for one in tried}
            if not all(curves.values()):
                raise errors.InputError(
                    "split: no labelled object is in 'val', by which learning rates are chosen; add some"
                )
            losses[arm.name] = {rate: found[max(found)] for rate, found in curves.items()}
        chosen[arm.name] = min(tried, key=lambda one: losses[one.name][one.rate]) if several else begun
    return list(chosen.values()), losses


def last_change(curves: Sequence[Curve]) -> tuple[float, float, float] | None:
    """Of the curves of an arm's seeds: how far into the training the checkpoint before the last is (1: its end), and
    the change of the loss since, in the mean over the seeds, with its error (NaN for one seed). None where fewer than
    two are kept."""
    steps = sorted(set.intersection(*map(set, curves)))[-2:]
    if len(steps) < 2:
        return None
    changes = [found[steps[1]] - found[steps[0]] for found in curves]
    error = np.std(changes, ddof=1) / np.sqrt(len(changes)) if len(changes) > 1 else np.nan
    return steps[0] / steps[1], float(np.mean(changes)), float(error)


if __name__ == "__main__":
    errors.run(main)
