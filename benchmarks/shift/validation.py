"""The loss of validation objects, which no training learns from: whether an arm has converged, and which learning rate
it gets. In a process of its own, as trainings: python -m benchmarks.shift.validation RUN DATASET COLUMN WHERE FILE"""

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.shift.arms import Arm
from benchmarks.shift.labels import Protocol, truth
from benchmarks.shift.runs import call, directory
from benchmarks.shift.trainings import in_turn
from jaxz import errors
from jaxz.checkpoint import Checkpoints
from jaxz.data.dataset import open_dataset
from jaxz.files import read_json, replace
from jaxz.inference import load_run
from jaxz.photoz.terms import pdf_terms

Curve = dict[int, float]  # {step: mean of -log p(z)}


def curve(workdir: Path, protocol: Protocol, labels: str) -> Curve:
    """Of the kept checkpoints of a trained run that is done, by the objects of the validation split that are selected
    as the labels are that it learned from: "survey", or "oracle", all whose truth is known; {} without any. Measured
    once."""
    path, dataset = workdir / f"validation_{labels}.json", open_dataset(str(protocol.dataset))
    column, known = truth(dataset)
    of = {"survey": ("z", protocol.labelled(dataset, "val")), "oracle": (column, f"split == 'val' and {known}")}
    if not len(dataset.select(of[labels][1])):
        return {}
    if not path.exists():
        call("benchmarks.shift.validation", str(workdir), str(protocol.dataset), *of[labels], path.name)
    return {int(step): loss for step, loss in read_json(path, "the validation loss of a run").items()}


def main(argv: list[str]) -> None:
    """Write RUN/FILE: the loss by the redshifts in a column of the objects that pass a filter."""
    workdir, (column, where, name), losses = Path(argv[0]), argv[2:], {}
    dataset, model = open_dataset(argv[1]), load_run(workdir)
    z = dataset.column(column)[dataset.select(where)]
    with Checkpoints(workdir) as checkpoints:
        for step in checkpoints.steps():
            model.params = checkpoints.params(model.abstract, step=step)
            _, found = model.predict_dataset(dataset, where, ("pdf",))
            losses[step] = float(pdf_terms(model.densities(found["pdf"])[0], z)["nll"].mean())
    replace(workdir / name, json.dumps(losses).encode())


def tuned(
    scratch: Path,
    protocol: Protocol,
    arms: Sequence[Arm],
    rates: Sequence[float],
    seed: int,
    work: Callable[[Arm, int], Iterator[None]],
    jobs: int,
) -> Iterator[tuple[Arm, dict[float, float]]]:
    """Run all arms of one seed by `work`, `jobs` at once, those that are trained and scored at each of `rates` times
    their learning rate. Each, once its runs are done: the arm at the rate of the least validation loss, and
    {rate: loss}, {} where none is chosen.

    There must be labelled validation objects where there are several rates.
    """
    chosen: dict[str, Arm] = {}

    def choose(arm: Arm) -> Generator[None, None, dict[float, float]]:
        begun = arm._replace(start=chosen[arm.start].run) if arm.start else arm
        several = arm.config and arm.scored and len(rates) > 1
        tried = [begun._replace(rate=rate) for rate in rates] if several else [begun]
        for one in tried:
            yield from work(one, seed)
        losses = {}
        for one in tried if several else ():
            found = curve(directory(scratch, one.run, seed), protocol, one.labels)
            losses[one.rate] = found[max(found)]
        chosen[arm.name] = begun._replace(rate=min(losses, key=losses.get)) if several else begun
        return losses

    for arm, losses in in_turn(arms, jobs, choose):
        yield chosen[arm.name], losses


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
