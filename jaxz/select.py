"""Which checkpoint of which run to take: the CDE loss of p(z) on validation objects, weighted under covariate shift.

    python -m jaxz.select RUN [RUN ...] --dataset DATASET [--weights COLUMN --overlay NAME] [--json FILE]

Prints every kept checkpoint of every run, the best first, with the errors of its loss and of its difference to the best
(bootstrap over sky cells, or objects), and the weights' effective sample size. Without --weights the loss is of the
labelled validation objects; with them, the density ratios of jaxz.shift, of all validation objects (Freeman, Izbicki &
Lee 2017, eq. 7). jaxz.evaluate and jaxz.predict take the chosen one by --step.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxz import runtime
from jaxz.checkpoint import Checkpoints
from jaxz.data.dataset import Dataset
from jaxz.errors import InputError, run
from jaxz.files import replace
from jaxz.held import held_out
from jaxz.inference import Model, load_run
from jaxz.photoz import shift
from jaxz.photoz.bootstrap import Estimate, hierarchical_bootstrap, sky_cells
from jaxz.photoz.terms import squared

FEWEST = 20  # labelled objects that count


def opened(path: str, item: str) -> Model:
    """A run's model. Raises InputError for what keeps no checkpoints, or predicts no redshifts."""
    if not (Path(path) / "checkpoints").is_dir():
        raise InputError(f"RUN: {path!r} holds no checkpoints to choose from; name a run that was trained")
    model = load_run(path, item)
    if model.edges is None:
        raise InputError(f"RUN: {path!r} predicts no redshifts; name another run")
    return model


def checkpoints(path: str, model: Model, item: str) -> Iterator[tuple[int, Model]]:
    """(step, model) of each whole one that a run keeps, the oldest first; the model is `model`, with its parameters."""
    with Checkpoints(Path(path)) as kept:
        for step, params in kept.whole(model.abstract, item):
            model.params = params
            yield step, model


def validation(dataset: Dataset, models: Sequence[Model], where: str, weights: str | None) -> dict[str, np.ndarray]:
    """Columns [N] of the objects that pass `where`: z, weight (0: no label, or none that counts), wanted (whether p(z)
    counts without a label) and cell. Raises InputError as held_out does."""
    rows, held = dataset.select(where), held_out(dataset, models, where, weights, FEWEST, unlabelled=bool(weights))
    known = np.isin(rows, held.rows)
    z, weight = np.zeros((2, len(rows)))
    z[known], weight[known] = held.z, held.weights
    place = [dataset.column(name)[rows] for name in ("ra", "dec") if name in dataset.manifest.columns]
    cells = sky_cells(*place) if len(place) == 2 else None
    return {
        "z": z, "weight": weight,
        "wanted": np.ones(len(rows), bool) if weights else known,
        "cell": np.arange(len(rows)) if cells is None else cells,
    }  # fmt: skip


def loss(c: dict[str, np.ndarray]) -> dict[str, float]:
    """`shift.weighted_cde_loss` of columns [N]; NaN where no object of a resample counts."""
    counts = c["weight"] > 0
    if not counts.any():
        return {"cde_loss": np.nan}
    at_truth = np.average(c["at_truth"][counts], weights=c["weight"][counts])
    return {"cde_loss": c["squared"][c["wanted"]].mean() - 2 * at_truth}


def losses(options: argparse.Namespace) -> tuple[dict[tuple[str, int], Estimate], float]:
    """{(run, step): CDE loss} of the same objects, drawn alike; and the weights' effective sample size. Raises
    InputError for runs of other redshift bins."""
    models = {path: opened(path, options.item) for path in options.runs}
    first = models[options.runs[0]]
    edges = first.edges
    assert edges is not None  # `opened` refuses others
    for path, model in models.items():
        if model.edges is None or not np.array_equal(edges, model.edges):
            raise InputError(f"RUN: {path!r} has other redshift bins than {options.runs[0]!r}; leave it out")
    dataset = first.open_dataset(options.dataset, options.overlay)
    columns = validation(dataset, list(models.values()), options.held, options.weights)
    arms: dict[tuple[str, int], list[dict[str, np.ndarray]]] = {}
    for path, own in models.items():
        for step, model in checkpoints(path, own, options.item):
            pdf, _ = model.densities(model.predict_dataset(dataset, options.held, ("pdf",))[1]["pdf"])
            arms[path, step] = [{**columns, "squared": squared(pdf), "at_truth": pdf.density(columns["z"])}]
    if not arms:
        raise InputError(f"RUN: {', '.join(options.runs)} hold no whole checkpoint; name runs that were trained")
    found = hierarchical_bootstrap(loss, arms, columns["cell"])
    return {arm: metrics["cde_loss"] for arm, metrics in found.items()}, shift.effective_sample_size(columns["weight"])


def table(found: dict[tuple[str, int], Estimate]) -> list[dict]:
    """A row for each checkpoint, the best first."""
    rows, best = [], min(found.values(), key=lambda one: one.value)
    for (path, step), one in sorted(found.items(), key=lambda item: item[1].value):
        gap = one - best
        rows.append({"run": path, "step": step, "cde_loss": one.value, "error": one.error})
        rows[-1] |= {"difference": gap.value, "difference_error": gap.error}
    return rows


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m jaxz.select", description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--held", default="split == 'val'", metavar="WHERE", help="the validation objects")
    parser.add_argument("--weights", metavar="COLUMN", help="of the labelled ones: density ratios")
    parser.add_argument("--overlay", action="append", default=[], help="beside the runs' own; may be repeated")
    parser.add_argument("--item", choices=("params", "ema"), default="params", help="ema: the averaged weights")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the table, to be read by others")
    options = parser.parse_args(argv)
    runtime.alone("jaxz.select")
    found, size = losses(options)
    rows = table(found)
    print(f"{'cde_loss':>20} {'less the best':>20} {'step':>9}  run   (effective sample size {size:.0f})")
    for row in rows:
        pairs = (row["cde_loss"], row["error"]), (row["difference"], row["difference_error"])
        own, gap = (f"{value:.4f} +- {error:.4f}" for value, error in pairs)
        print(f"{own:>20} {gap:>20} {row['step']:>9}  {row['run']}")
    if options.json:
        replace(options.json, json.dumps({"effective_sample_size": size, "checkpoints": rows}, indent=1).encode())


if __name__ == "__main__":
    run(main)
