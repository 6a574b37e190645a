"""A run's p(z) of the test objects corrected, mostly by held-out objects of known redshift, as a run of its own.

    python -m jaxz.correct --workdir RUN --dataset DATASET --method pit --out NEWRUN [--held "split == 'val'"]
    python -m jaxz.correct --workdir RUN0 RUN1 ... --dataset DATASET --method strata --out NEWRUN --overlay NAME

pit          p(z) by the distribution of PIT of the held-out objects
conformal    the intervals z_l68 to z_u68 and z_l95 to z_u95, so that they hold the truth that often; p(z) stays
label_shift  p(z) for the test objects' own n(z), found from p(z) and the n(z) of the labels trained on
cells        p(z) moved by the mean residual of the object's cell of magnitude and colours
lin_z_phot   p(z) moved by the mean of z_phot - z_spec in cells of magnitude and z_phot (Lin et al. 2022, step 4)
strata       p(z) of each object by the run of its stratum (jaxz.shift): RUN0 of stratum 0, and so on
clap         p(z) of neighbours in the latents of runs of configs/redshift_clap.py, their harmonic mean over the runs

NEWRUN holds what jaxz.photometry writes, and is an arm of jaxz.report. docs/shift.md says when each of them helps.
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxz import runtime
from jaxz.data.dataset import Dataset
from jaxz.data.stream import Stream
from jaxz.data.transport import place
from jaxz.errors import InputError, run
from jaxz.files import read_json, replace
from jaxz.held import TEST, Held, held_out, labels_of
from jaxz.inference import BATCH, Model, load_run
from jaxz.photoz import calibration, clap, shift
from jaxz.photoz.pdf import PDF
from jaxz.report_data import read_scores
from jaxz.results import (
    catalog_of,
    claim_scores,
    claimed,
    main_scores,
    test_sets,
    truths_of,
    write_compute,
    write_results,
)
from jaxz.shift import domains

KNOWN, UNLABELLED = "split == 'train' and isfinite(z)", "split == 'train' and not isfinite(z)"
HELD = "split == 'val'"  # unless others are named
FEWEST, PER_CELL = 100, 25  # held-out objects: in all, and in a cell of colours on average
Z_BINS, MAGNITUDES = 40, 0.5  # of lin_z_phot: how many bins of z_phot, and how wide a row of magnitude is
UNEVEN = ("weights", "balance", "logit_adjust")  # settings with which p(z) is not of the labels' n(z)
MOST_POOL = 50_000  # unlabelled objects that CLAP's last network learns from


class Task(NamedTuple):
    """What is corrected, by the options of the command line."""

    models: list[Model]
    edges: np.ndarray  # [bins+1] of the p(z) of all of them
    dataset: Dataset
    options: argparse.Namespace


class Found(NamedTuple):
    """p(z) of rows [N], ascending; an ensemble's spread [N]; {column: [N]} of the ends of intervals of another kind."""

    rows: np.ndarray
    pdf: PDF
    spread: np.ndarray | None = None
    intervals: dict[str, np.ndarray] | None = None


def predicted(model: Model, dataset: Dataset, where: str) -> Found:
    rows, found = model.predict_dataset(dataset, where, ("pdf",))
    return Found(rows, *model.densities(found["pdf"]))


def held_out_of(task: Task) -> Held:
    return held_out(task.dataset, task.models, task.options.held, task.options.weights, FEWEST)


def both(task: Task) -> tuple[Found, Held, Found]:
    """What one run says of the test objects; the held-out ones, and what it says of them."""
    own, [model] = held_out_of(task), task.models
    return predicted(model, task.dataset, TEST), own, predicted(model, task.dataset, own.where)


def pit(task: Task) -> Found:
    test, held, known = both(task)
    return test._replace(pdf=calibration.recalibrate(test.pdf, known.pdf.cdf(held.z), held.weights))


def conformal(task: Task) -> Found:
    """A test object counts as much as the heaviest held-out one, which weights are cut at: a little too wide."""
    test, held, known = both(task)
    own = np.full(len(test.pdf), held.weights.max())
    intervals: dict[str, np.ndarray] = {}
    for name, level in (("68", 0.68), ("95", 0.95)):
        ends = calibration.conformal_intervals(test.pdf, known.pdf, held.z, level, held.weights, own)
        intervals |= dict(zip((f"z_l{name}", f"z_u{name}"), ends, strict=True))
    return test._replace(intervals=intervals)


def label_shift(task: Task) -> Found:
    [model], dataset = task.models, task.dataset
    groups = [model.config.data, *model.config.data.sources, *(model.config.get(n, {}) for n in model.config.losses)]
    if uneven := [name for name in UNEVEN for group in groups if group.get(name)]:
        raise InputError(
            f"--method: label_shift needs p(z) of the labels' n(z), but {uneven[0]} is set; name another run"
        )
    if (count := sum(len(rows) > 0 for _, rows in model.source_rows())) > 1:
        raise InputError(
            f"--method: label_shift needs the n(z) of one labelled source, but {count} of data.sources have redshifts, "
            "mixed at ratios of their own; name another run"
        )
    prior = np.histogram(labels_of(dataset, model)[1], task.edges)[0]
    test = predicted(model, dataset, TEST)
    adapted, _ = shift.label_shift(test.pdf.probability, prior.astype(np.float64))
    return test._replace(pdf=PDF(task.edges, adapted))


def cells(task: Task) -> Found:
    """Where a cell has too few held-out objects, p(z) stays."""
    test, held, known = both(task)
    if len(test.rows) < shift.FOLDS:
        raise InputError(
            f"--dataset: {len(test.rows)} test objects, but cells divides them and needs {shift.FOLDS}; take pit"
        )
    train, target = domains(task.dataset, {"train": held.where, "target": TEST}, ["flux"], None)
    residual = (known.pdf.median() - held.z) / (1 + held.z)
    try:
        found = shift.calibrate_cells(train.x, residual, target.x, max(1, len(held.z) // PER_CELL), seed=0)
    except ValueError as error:
        raise InputError(f"--method: cells has no colours to divide objects by ({error}); take pit") from None
    bias = np.nan_to_num(found.bias[found.target])[:, None]
    before = test.pdf.edges + bias * (1 + test.pdf.edges)  # from z = (before - bias) / (1 + bias)
    return test._replace(pdf=calibration.moved(test.pdf, before))


def lin_z_phot(task: Task) -> Found:
    """Objects without a magnitude stay as they are, and correct nothing."""
    if "mag_ref" not in task.dataset.manifest.columns:
        raise InputError("--method: lin_z_phot needs the column mag_ref; add it with an --overlay")
    test, held, known = both(task)
    bright = [task.dataset.column("mag_ref")[found.rows].astype(np.float64) for found in (test, known)]
    seen, used = map(np.isfinite, bright)
    if not (seen.any() and used.any()):
        whose = "held-out" if seen.any() else "test"
        raise InputError(f"--method: lin_z_phot needs mag_ref, which no {whose} object has; add it with an --overlay")
    steps = np.concatenate([bright[0][seen], bright[1][used]]) // MAGNITUDES
    rows = MAGNITUDES * np.arange(steps.min(), steps.max() + 2)
    edges = np.linspace(task.edges[0], task.edges[-1], Z_BINS + 1)
    z_phot, train = test.pdf.median(), (known.pdf.median()[used], held.z[used], bright[1][used])
    bias = np.zeros(len(z_phot))
    bias[seen] = z_phot[seen] - calibration.subtract_phot_bias(z_phot[seen], bright[0][seen], train, edges, rows)
    return test._replace(pdf=calibration.moved(test.pdf, test.pdf.edges + bias[:, None]))


def strata(task: Task) -> Found:
    every = [(model, f"{TEST} and stratum == {number}") for number, model in enumerate(task.models)]
    some = [(model, where) for model, where in every if len(task.dataset.select(where))]
    if lost := len(task.dataset.select(TEST)) - sum(len(task.dataset.select(where)) for _, where in some):
        raise InputError(
            f"--workdir: {lost} test objects are in no stratum below {len(every)}; name a run for each, and let the "
            "--target of jaxz.shift choose the test objects"
        )
    parts = [predicted(model, task.dataset, where) for model, where in some]
    rows, mass = (np.concatenate(part) for part in zip(*((p.rows, p.pdf.probability) for p in parts), strict=True))
    return Found(np.sort(rows), PDF(task.edges, mass[np.argsort(rows)]))


def neighbours(task: Task) -> Found:
    """CLAP, each member of an ensemble for itself."""
    held, dataset = held_out_of(task), task.dataset
    known = dataset.select(KNOWN)
    members: list[PDF] = []
    for model in task.models:
        rows, z = labels_of(dataset, model)
        used = np.isin(known, rows)
        if lost := len(rows) - used.sum():
            raise InputError(
                f"--dataset: {lost} objects that a run learned from have no redshift in its split 'train'; add the "
                "--overlay that has them"
            )
        train, of_held, wanted = (latents(model, dataset, where) for where in (KNOWN, held.where, TEST))
        pool = latents(model, dataset, UNLABELLED, MOST_POOL)
        for member in zip(train[:, used], of_held, pool, wanted, strict=True):
            members.append(clap.estimate(*member, z, held.z, task.edges, seed=len(members)))
    return Found(dataset.select(TEST), clap.harmonic_mean(members))


def latents(model: Model, dataset: Dataset, where: str, most: int | None = None) -> np.ndarray:
    """[E,N,L] of the run's members: of all objects that pass `where`, in order, or of about `most` drawn at random."""
    with Stream(model.source(dataset, where), BATCH, shuffle=most is not None, epochs=1) as stream:
        parts = itertools.islice(model.predictions(stream, ("latent",)), most and -(-most // BATCH))
        found = np.concatenate([found["latent"] for _, found in parts])
    return found[None] if model.members == 1 else found.swapaxes(0, 1)


METHODS = dict(pit=pit, conformal=conformal, label_shift=label_shift, cells=cells, lin_z_phot=lin_z_phot, strata=strata)
METHODS |= dict(clap=neighbours)
UNHELD = ("label_shift", "strata")  # of them, those that learn from no held-out objects


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jaxz.correct", description=__doc__.split("\n\n")[0])
    parser.add_argument("--workdir", required=True, nargs="+", help="the run; of strata and clap several")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--method", required=True, choices=METHODS)
    parser.add_argument("--out", required=True, type=Path, help="run directory to write")
    parser.add_argument("--held", metavar="WHERE", help=f"of which the sure labels are taken; default {HELD}")
    parser.add_argument("--weights", metavar="COLUMN", help="of pit and conformal: of the held-out objects")
    parser.add_argument("--overlay", action="append", default=[], help="beside the run's own; may be repeated")
    parser.add_argument("--item", choices=("params", "ema"), default="params", help="ema: the averaged weights")
    parser.add_argument("--step", type=int, help="of the checkpoint, such as jaxz.select's; default the newest")
    options = parser.parse_args(argv)
    if len(options.workdir) > 1 and options.method not in ("strata", "clap"):
        raise InputError(f"--workdir: {len(options.workdir)} runs, but {options.method} corrects one; name one")
    if options.weights and options.method not in ("pit", "conformal"):
        raise InputError(f"--weights: {options.method} takes none; leave it out")
    if options.method in UNHELD:
        if options.held is not None:
            raise InputError(f"--held: {options.method} needs no held-out objects; leave it out")
    else:
        options.held = HELD if options.held is None else options.held
    return options


def described(options: argparse.Namespace, first: Model) -> dict:
    """config.json of NEWRUN; strata are chosen by the test objects, so that its runs' training knew of them (C1)."""
    runs = [place(path) for path in options.workdir]
    data = {"path": place(options.dataset), "overlays": options.overlay, "transductive": options.method == "strata"}
    return {
        "method": options.method, "init": {"path": runs[0], "item": options.item, "step": options.step},
        "others": runs[1:], "seed": first.config.seed, "data": data, "held": options.held, "weights": options.weights,
    }  # fmt: skip


def check_objects(dataset: Dataset, method: str) -> None:
    """Raises InputError where there is nothing to correct or to score, or to learn it from."""
    test_sets(dataset)
    if not len(dataset.select(TEST)):
        raise InputError(f"--dataset: {str(dataset.path)!r} has no object of the split 'test' to correct; name another")
    if method == "clap" and not len(dataset.select(UNLABELLED)):
        raise InputError(
            "--method: clap learns from training objects without a redshift, and the dataset has none; take another"
        )


def scores_before(workdir: Path, evaluated: dict, options: argparse.Namespace) -> list[str]:
    """Lines for people of a run's own scores, where it was evaluated at the same checkpoint on the same dataset."""
    name, path = workdir.resolve().name, workdir / "evaluated.json"
    then = read_json(path, "the record of an evaluation") if path.exists() else {}
    wanted = evaluated["rows"], options.item, options.step
    if (then.get("rows"), then.get("item"), then.get("step")) != wanted:
        return [f"{name}: not scored on this dataset; python -m jaxz.evaluate tells what the correction changes"]
    return main_scores(name, read_scores(workdir / "report.json", name))


def main(argv: list[str]) -> None:
    started, options = time.monotonic(), arguments(argv)
    runtime.alone("jaxz.correct")
    loaded = {path: load_run(path, options.item, options.step) for path in dict.fromkeys(options.workdir)}
    models = [loaded[path] for path in options.workdir]
    edges = [model.edges for model in models if model.edges is not None]
    if len(edges) < len(models) or any(not np.array_equal(edges[0], other) for other in edges):
        raise InputError("--workdir: a run predicts no p(z), or in other bins than the first; name runs that are alike")
    dataset = models[0].open_dataset(options.dataset, options.overlay)
    check_objects(dataset, options.method)
    with claimed(options.out, described(options, models[0])):
        evaluated = claim_scores(options.out, dataset, overwrite=False)
        found = METHODS[options.method](Task(models, edges[0], dataset, options))
        catalog, name = catalog_of(dataset, found.rows, {}), options.out.resolve().name
        write_compute(options.out, time.monotonic() - started, f"1 x {jax.devices()[0].device_kind}")
        told = catalog, found.pdf, truths_of(dataset, catalog["key"]), found.spread
        report = write_results(options.out, name, *told, intervals=found.intervals)
        replace(options.out / "evaluated.json", json.dumps(evaluated, indent=1).encode())
    for path in loaded:
        print(*scores_before(Path(path), evaluated, options), sep="\n")
    print(*main_scores(name, report[name]), sep="\n")


if __name__ == "__main__":
    run(main)
