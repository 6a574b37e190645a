r"""Weights and coverage under covariate shift, as an overlay of a dataset that training reads by data.weights.

    python -m jaxz.shift DATASET --name NAME --train "split == 'train' and z_kind == 'spec'" \
        --target "split == 'train'" --features flux [--method knn|classifier] [--held WHERE]

Features are `flux` (a magnitude and colours, dereddened, of all bands with flux_ and fluxerr_), `embedding` (of the run
--workdir), and numeric columns. Writes DATASET/overlays/NAME.parquet with the columns weight (p_target / p_train of the
objects of --train, and of --held, by default the sure labels of the split val; of mean 1 in each; 0 for those of
--target alone), coverage (1 where an object has training neighbours, else 0) and stratum (0 to 4: fifths by the
probability to be a target object, 0 the likest to training), and prints the effective sample size, the AUC of the
domain classifier (0.5: no shift) and the share of the target that is uncovered. See docs/shift.md.
"""

import argparse
import functools
import json
from typing import NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score

from jaxz.catalog_fluxes import features, flux_bands, load
from jaxz.data.dataset import Dataset, open_dataset
from jaxz.data.manifest import Column
from jaxz.data.overlays import overlay_ids, overlay_path, write_overlay
from jaxz.data.where import negated, option_filter
from jaxz.errors import InputError, run
from jaxz.inference import load_run
from jaxz.photoz import shift
from jaxz.provenance import versions
from jaxz.results import sure_labels

MOST = 200_000  # target objects that weights are estimated from; coverage and strata are of all
COLUMNS = {
    "weight": Column("float32", "", "density ratio of target to training objects; 0: no training object"),
    "coverage": Column("int8", "", "1: has training neighbours in feature space; 0: none, no label speaks for it"),
    "stratum": Column("int8", "", "fifth of the probability to be a target object, from 0, the likest to training"),
}


class Domain(NamedTuple):
    """rows [N] of the dataset and their features [N,F]."""

    rows: np.ndarray
    x: np.ndarray


def domains(dataset: Dataset, where: dict[str, str], names: list[str], workdir: str | None) -> list[Domain]:
    """Training and target objects. Raises InputError for features that there are not, or that are the truth."""
    columns = dataset.manifest.columns
    parts: dict[str, list[np.ndarray]] = {kind: [] for kind in where}
    rows = {kind: dataset.select(text) for kind, text in where.items()}
    if few := [kind for kind in where if len(rows[kind]) < shift.FOLDS]:
        raise InputError(f"--{few[0]}: {where[few[0]]!r} chooses {len(rows[few[0]])} objects; choose more")
    for name in names:
        if name == "flux":
            found = fluxes(dataset, where)
        elif name == "embedding":
            found = embeddings(dataset, where, workdir)
        elif name in columns and columns[name].dtype != "string" and not name.startswith("true_"):
            found = [np.asarray(dataset.arrow(text, [name])[name], np.float64) for text in where.values()]
        else:
            raise InputError(f"--features: {name!r} is neither 'flux', 'embedding' nor a numeric column; name another")
        for kind, values in zip(where, found, strict=True):
            parts[kind].append(values.reshape(len(values), -1))
    return [Domain(rows[kind], np.concatenate(parts[kind], axis=1)) for kind in where]


def fluxes(dataset: Dataset, where: dict[str, str]) -> list[np.ndarray]:
    """A magnitude and the colours against it [N,C] of each domain; the softening is that of the training objects."""
    bands = flux_bands(dataset)
    loaded = [load(dataset, text, bands, [])[1:] for text in where.values()]
    flux, error = loaded[0]
    softening = np.nanmedian(np.where(np.isfinite(error).any(axis=0), error, 1.0), axis=0)
    reference = int(np.argmax(np.median(np.nan_to_num(flux) / softening, axis=0)))
    chosen = [0, *range(len(bands), 2 * len(bands) - 1)]  # each band once
    return [features(flux, softening, reference)[:, chosen] for flux, _ in loaded]


def embeddings(dataset: Dataset, where: dict[str, str], workdir: str | None) -> list[np.ndarray]:
    """[N,D] of each domain, by a run."""
    if workdir is None:
        raise InputError("--workdir: the feature 'embedding' is of a run; name its directory")
    model = load_run(workdir)
    return [model.predict_dataset(dataset, text, ("embedding",))[1]["embedding"] for text in where.values()]


def overlay(dataset: Dataset, options: argparse.Namespace) -> tuple[np.ndarray, dict[str, np.ndarray], dict]:
    """Rows [K] of training, held-out and target objects, their columns [K], and what was found."""
    where = filters(dataset, options)
    overlay_ids(dataset, functools.reduce(np.union1d, map(dataset.select, where.values())))
    train, target, *kept = domains(dataset, where, options.features, options.workdir)
    labels, others = (np.concatenate([part.rows for part in parts]) for parts in ((train, *kept), (target, *kept)))
    labelled, reached = (np.concatenate([part.x for part in parts]) for parts in ((train, *kept), (target, *kept)))
    some = target.x[np.random.default_rng(options.seed).permutation(len(target.x))[:MOST]]
    try:
        probability = shift.domain_probability(labelled, some, options.seed)
        own, likest = probability[: len(labelled)], probability[len(labelled) :][shift.nearest(some, target.x)]
        weight = shift.odds(own) if options.method == "classifier" else shift.density_ratio_knn(labelled, some)
        covered = shift.covered(train.x, reached)
    except ValueError as error:
        raise InputError(f"--features: {error}; choose others, or other --train and --target") from None
    parts = np.split(weight, [len(train.x)])[: 1 + len(kept)]
    if empty := [option for option, part in zip(("--train", "--held"), parts, strict=False) if not part.any()]:
        raise InputError(f"{empty[0]}: no target object lies near any of its objects: none has a weight; choose others")
    weights = [part / part.mean() for part in parts]
    stratum = shift.propensity_strata(np.concatenate([own, likest]))
    rows = np.union1d(labels, others)
    values: dict[str, np.ndarray] = {
        "weight": np.zeros(len(rows)),
        "coverage": np.ones(len(rows), np.int8),
        "stratum": np.zeros(len(rows)),
    }
    place = lambda chosen: np.searchsorted(rows, chosen)
    values["weight"][place(labels)] = np.concatenate(weights)
    values["coverage"][place(others)] = covered
    values["coverage"][place(train.rows)] = 1
    values["stratum"][place(target.rows)] = stratum[len(own) :]
    values["stratum"][place(labels)] = stratum[: len(own)]
    is_target = np.repeat([False, True], [len(own), len(some)])
    summary = {
        "train": len(train.x), "held": len(own) - len(train.x), "target": len(target.x), "method": options.method,
        "effective_sample_size": shift.effective_sample_size(weights[0]), "largest_weight": float(weights[0].max()),
        "auc": float(roc_auc_score(is_target, probability)),
        "uncovered": float(1 - values["coverage"][place(target.rows)].mean()),
        "train_by_stratum": np.bincount(stratum[: len(train.x)], minlength=5).tolist(),
    }  # fmt: skip
    return rows, values, summary


def filters(dataset: Dataset, options: argparse.Namespace) -> dict[str, str]:
    """{"train", "target" and, where there are labelled objects that are weighted beside the training ones, "held"}."""
    columns, given = dataset.manifest.columns, options.held
    where = {name: option_filter(f"--{name}", getattr(options, name)) for name in ("train", "target")}
    if given is None and {"split", "z_kind"} <= columns.keys():
        given = f"split == 'val' and {sure_labels(columns)}"
    if given:
        held = option_filter("--held", given, negated(where["train"]))
        if options.held or len(dataset.select(held)) >= shift.FOLDS:
            where["held"] = held
    return where


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m jaxz.shift", description=__doc__.split("\n\n")[0])
    parser.add_argument("dataset")
    parser.add_argument("--name", required=True, help="of the overlay")
    parser.add_argument("--train", required=True, metavar="WHERE", help="filter of the labelled objects")
    parser.add_argument(
        "--target", required=True, metavar="WHERE", help="filter of the objects that predictions are for"
    )
    parser.add_argument("--held", metavar="WHERE", help="filter of labelled objects to validate by, weighted too")
    parser.add_argument("--features", nargs="+", required=True, help="flux, embedding, or numeric columns")
    parser.add_argument("--workdir", help="the run that embeds")
    parser.add_argument("--method", choices=("knn", "classifier"), default="classifier")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overlay", action="append", default=[], help="an overlay that is read first; may be repeated")
    options = parser.parse_args(argv)
    if not 0 <= options.seed < 2**32:
        raise InputError(f"--seed: {options.seed} must lie in 0..{2**32 - 1}")
    dataset = open_dataset(options.dataset, overlays=options.overlay)
    overlay_path(dataset, options.name)
    rows, values, summary = overlay(dataset, options)
    provenance = {"tool": "jaxz.shift", "arguments": argv, "rows": dataset.fingerprint()["rows"], "summary": summary}
    path = write_overlay(dataset, options.name, rows, values, COLUMNS, provenance | {"versions": versions()})
    print(json.dumps({"overlay": str(path), **summary}, indent=1))


if __name__ == "__main__":
    run(main)
