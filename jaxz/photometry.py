"""Baseline: redshifts from the catalogue's fluxes alone, by nearest neighbours, boosted trees or templates, with p(z).

    python -m jaxz.photometry --dataset DATASET --workdir RUN --model gbt
    python -m jaxz.photometry --dataset DATASET --workdir RUN --model template [--repair] [--filters g=hsc2017-g ...]

Trains on the sure spectroscopic labels of the training split, predicts every test object, and writes a run directory
that `jaxz.report` compares with those of the image models. Fluxes are corrected for Galactic reddening where the
dataset has `ebv`, as the image models' inputs are. Of templates the labels, if there are any, set the zero points, and
with --repair their spectra too. --label NAME writes what they say of training objects of z_kind 'none' as an
overlay: redshifts of z_kind 'phot', for networks to learn from (docs/shift.md).
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from sklearn.base import RegressorMixin
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from jaxz.catalog_fluxes import features, flux_bands, test_objects, training_objects
from jaxz.data.dataset import Dataset, open_dataset
from jaxz.data.manifest import Column
from jaxz.data.overlays import overlay_ids, overlay_path, write_overlay
from jaxz.data.transport import place
from jaxz.errors import InputError, run
from jaxz.files import replace
from jaxz.photoz.pdf import PDF
from jaxz.results import claim_scores, claimed, main_scores, truths_of, write_compute, write_results
from jaxz.template_fit import UNLABELLED, Templates

FOLDS, REDSHIFT_BINS, FEWEST = 5, 300, 50
SMALL = 20_000  # training objects: below, threads cost the trees more than they save
LABELS = {"z": Column("float32"), "z_err": Column("float32"), "z_kind": Column("string")}  # that --label gives
MOST_GROUPS, GROUP, LEVELS = 10, 100, 51  # of residuals: groups, objects in one at least, quantiles kept of each


def make_model(name: str, seed: int) -> RegressorMixin:
    """The regressor; both fit in seconds to minutes on 1e5 objects."""
    if name == "gbt":
        trees = HistGradientBoostingRegressor(max_iter=300, learning_rate=0.06, early_stopping=False, random_state=seed)
        # Errors are judged in units of 1 + z: the squared loss must be, too.
        return TransformedTargetRegressor(trees, func=np.log1p, inverse_func=np.expm1)
    # Neighbours need complete vectors: an absent colour is taken as the training median, which says nothing of z.
    imputer = SimpleImputer(strategy="median", keep_empty_features=True)
    return make_pipeline(imputer, StandardScaler(), KNeighborsRegressor(n_neighbors=20))


def fitted(name: str, x: np.ndarray, z: np.ndarray, wanted: np.ndarray, seed: int) -> np.ndarray:
    """[M] predictions of wanted [M,F] by a model of x [N,F] and z [N]. A feature that no object of x has, such as the
    colour of a rare band in a fold, teaches nothing; trees would not take it."""
    known = np.isfinite(x).any(axis=0)
    return make_model(name, seed).fit(x[:, known], z).predict(wanted[:, known])


def out_of_fold(name: str, x: np.ndarray, z: np.ndarray, seed: int) -> np.ndarray:
    """[N] predictions of each training object by a model that has not seen it (5 folds)."""
    fold = np.random.default_rng(seed).permutation(len(z)) % FOLDS
    predicted = np.empty(len(z))
    for number in range(FOLDS):
        held = fold == number
        predicted[held] = fitted(name, x[~held], z[~held], x[held], seed)
        print(f"fold {number + 1} of {FOLDS}", file=sys.stderr, flush=True)
    return predicted


def residual_pdf(z_point: np.ndarray, z_fold: np.ndarray, z_train: np.ndarray, edges: np.ndarray) -> PDF:
    """p(z) about each point estimate [M], from held-out training residuals of objects predicted alike.

    The residuals e = (z_fold - z_train) / (1 + z_train) are grouped by quantiles of z_fold; a point z_point then says
    z = (z_point - e) / (1 + e), so P(z < edge) = P(e > (z_point - edge) / (1 + edge)), cut to the grid. The weight
    of one object goes evenly over the grid: an outlier of a kind not yet seen.
    """
    residual = (z_fold - z_train) / (1 + z_train)
    groups = min(MOST_GROUPS, max(1, len(residual) // GROUP))
    limits = np.unique(np.quantile(z_fold, np.linspace(0, 1, groups + 1)[1:-1]))
    limits = limits[limits < z_fold.max()]  # with ties, no group is empty
    probability = np.empty((len(z_point), len(edges) - 1), np.float32)
    for group in range(len(limits) + 1):
        seen = residual[np.searchsorted(limits, z_fold) == group]
        levels = np.linspace(0, 1, min(LEVELS, len(seen)))  # few enough for a smooth CDF
        rows = np.flatnonzero(np.searchsorted(limits, z_point) == group)
        threshold = (z_point[rows, None] - edges) / (1 + edges)
        mass = -np.diff(np.interp(threshold, np.quantile(seen, levels), levels), axis=1)
        total = mass.sum(axis=1, keepdims=True)
        flat = np.diff(edges) / (edges[-1] - edges[0])
        mass = np.where(total > 0, mass / np.where(total > 0, total, 1), flat)
        probability[rows] = (len(seen) * mass + flat) / (len(seen) + 1)
    return PDF(edges, probability)


def predict(dataset: Dataset, model: str, seed: int) -> tuple[pa.Table, PDF]:
    """Catalogue and p(z) of every test object. Raises InputError where fluxes or labels are missing."""
    bands = flux_bands(dataset)
    z_train, flux, error = training_objects(dataset, bands)
    if len(z_train) < FEWEST:
        raise InputError(
            f"z_kind: {len(z_train)} training objects are 'spec', at least {FEWEST} are needed; add labels"
        )
    seen = (np.isfinite(flux) & np.isfinite(error)).any(axis=0)  # a band without training photometry teaches nothing
    if not seen.any():
        raise InputError("flux_<band>: no labelled training object has a flux with an error above 0; add fluxes")
    bands, flux, error = [b for b, s in zip(bands, seen, strict=True) if s], flux[:, seen], error[:, seen]
    softening = np.nanmedian(error, axis=0)
    # Absent counts as no signal: the reference is a deep band that nearly every object has.
    reference = int(np.argmax(np.median(np.nan_to_num(flux) / softening, axis=0)))
    x_train = features(flux, softening, reference)
    catalog, flux, _ = test_objects(dataset, bands)
    with threadpool_limits(1 if len(z_train) < SMALL else None):
        z_fold = out_of_fold(model, x_train, z_train, seed)
        z_point = fitted(model, x_train, z_train, features(flux, softening, reference), seed)
    edges = np.linspace(0, np.ceil(12 * z_train.max()) / 10, REDSHIFT_BINS + 1)
    return catalog, residual_pdf(z_point, z_fold, z_train, edges)


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jaxz.photometry", description=__doc__.split("\n\n")[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--workdir", required=True, type=Path, help="run directory to write")
    parser.add_argument("--model", choices=("knn", "gbt", "template"), default="gbt")
    parser.add_argument(
        "--filters", nargs="+", default=[], metavar="BAND=CURVE", help="of templates: speclite's curves"
    )
    parser.add_argument(
        "--templates", metavar="TABLE", help="wavelength (angstrom) and F_lambda, in place of jaxz's own"
    )
    parser.add_argument("--prior", action="store_true", help="of templates: p(z | I magnitude) of Benitez 2000")
    parser.add_argument("--repair", action="store_true", help="of templates: their spectra learn from the labels")
    parser.add_argument(
        "--label", metavar="NAME", help="of templates: an overlay to write, redshifts of unlabelled objects"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overlay", action="append", default=[], help="one of the dataset's overlays; may be repeated")
    options = parser.parse_args(argv)
    of_templates = (options.filters, options.templates, options.prior, options.repair, options.label)
    if options.model != "template" and any(of_templates):
        raise InputError(
            f"--model: {options.model!r} takes no --filters, --templates, --prior, --repair or --label; name 'template'"
        )
    if not 0 <= options.seed < 2**32:
        raise InputError(f"--seed: {options.seed} must lie in 0..{2**32 - 1}")
    return options


def main(argv: list[str]) -> None:
    started, options = time.monotonic(), arguments(argv)
    dataset = open_dataset(options.dataset, overlays=options.overlay)
    config = {"model": options.model, "data": {"path": place(options.dataset)}, "seed": options.seed}
    config["data"] |= {"overlays": options.overlay} if options.overlay else {}
    if options.model == "template":
        config |= {name: getattr(options, name) for name in ("filters", "prior", "repair")}
        config["templates"] = options.templates and place(options.templates)
    if options.label:
        overlay_path(dataset, options.label)
        overlay_ids(dataset, dataset.select(UNLABELLED))
    with claimed(options.workdir, config):
        evaluated = claim_scores(options.workdir, dataset, overwrite=False)
        report = write_run(dataset, options, started, argv)
        replace(options.workdir / "evaluated.json", json.dumps(evaluated, indent=1).encode())
    print(*main_scores(options.workdir.resolve().name, report), sep="\n")


def write_run(dataset: Dataset, options: argparse.Namespace, started: float, argv: list[str]) -> dict:
    """Fit, predict and write the results and the overlay, in a directory that is claimed; the scores by test set."""
    workdir, own = options.workdir, (options.filters, options.templates, options.prior, options.repair)
    if options.model == "template":
        fitted = Templates(dataset, *own, options.seed)
        catalog, pdf = fitted.predict_test(dataset)
    else:
        catalog, pdf = predict(dataset, options.model, options.seed)
    write_compute(workdir, time.monotonic() - started, "cpu")
    arm, truths = workdir.resolve().name, truths_of(dataset, catalog["key"])
    report = write_results(workdir, arm, catalog, pdf, truths, seed=options.seed)
    if options.label:
        rows, values = fitted.labels(dataset)
        columns = {name: dataset.manifest.columns.get(name, spec) for name, spec in LABELS.items()}
        print(
            write_overlay(dataset, options.label, rows, values, columns, {"tool": "jaxz.photometry", "arguments": argv})
        )
    return report[arm]


if __name__ == "__main__":
    run(main)
