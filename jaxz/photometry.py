"""Baseline: redshifts from the catalogue's fluxes alone, by nearest neighbours, boosted trees or templates, with p(z).

    python -m jaxz.photometry --dataset DATASET --workdir RUN --model gbt
    python -m jaxz.photometry --dataset DATASET --workdir RUN --model template [--filters g=hsc2017-g r=hsc2017-r2 ...]

Trains on the sure spectroscopic labels of the training split, predicts every test object, and writes a run directory
that `jaxz.report` compares with those of the image models. Fluxes are corrected for Galactic reddening where the
dataset has `ebv`, as the image models' inputs are. Templates learn zero points alone from the labels, if there are any.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import speclite.filters
from astropy.io.registry import IORegistryError
from astropy.table import Table
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from jaxz.data.dataset import Dataset, open_dataset
from jaxz.data.manifest import ZERO_POINT_UJY, Band
from jaxz.errors import InputError, run
from jaxz.files import read_json, replace
from jaxz.photoz import spectra, templates
from jaxz.photoz.pdf import PDF
from jaxz.results import CATALOG_COLUMNS, claim_scores, sure_labels, truths_of, write_results

POGSON = 2.5 / np.log(10)
FOLDS, REDSHIFT_BINS, FEWEST = 5, 300, 50
TEMPLATE_Z_MAX, CALIBRATORS = 6.0, 500  # labelled objects that zero points are from
PRIOR_NM = 800.0  # of the I band that the prior is for
SMALL = 20_000  # training objects: below, threads cost the trees more than they save
MOST_GROUPS, GROUP, LEVELS = 10, 100, 51  # of residuals: groups, objects in one at least, quantiles kept of each


def asinh_magnitudes(flux: np.ndarray, softening: np.ndarray) -> np.ndarray:
    """[N, C] AB magnitudes of fluxes in microjansky, finite at zero and below.

    softening: [C] microjansky, about the noise: m = zp - 2.5 log10(b) - (2.5 / ln 10) asinh(f / 2b). NaN stays NaN
    (Lupton, Gunn & Szalay 1999, AJ 118, 1406, eq. 3).
    """
    return ZERO_POINT_UJY - 2.5 * np.log10(softening) - POGSON * np.arcsinh(flux / (2 * softening))


def features(flux: np.ndarray, softening: np.ndarray, reference: int) -> np.ndarray:
    """[N, 2C-1]: the magnitude of band `reference`, the colours of adjacent bands, and those against the reference.

    NaN where a band is absent: the colours against the reference outlive the absence of a neighbour.
    """
    magnitudes = asinh_magnitudes(flux, softening)
    chosen, adjacent = magnitudes[:, reference], magnitudes[:, :-1] - magnitudes[:, 1:]
    return np.column_stack([chosen, adjacent, np.delete(magnitudes, reference, axis=1) - chosen[:, None]])


def make_model(name: str, seed: int):
    """The regressor; both fit in seconds to minutes on 1e5 objects."""
    if name == "gbt":
        trees = HistGradientBoostingRegressor(max_iter=300, learning_rate=0.06, early_stopping=False, random_state=seed)
        # Errors are judged in units of 1 + z: the squared loss must be, too.
        return TransformedTargetRegressor(trees, func=np.log1p, inverse_func=np.expm1)
    # Neighbours need complete vectors: an absent colour is taken as the training median, which says nothing of z.
    imputer = SimpleImputer(strategy="median", keep_empty_features=True)
    return make_pipeline(imputer, StandardScaler(), KNeighborsRegressor(n_neighbors=20))


def out_of_fold(name: str, x: np.ndarray, z: np.ndarray, seed: int) -> np.ndarray:
    """[N] predictions of each training object by a model that has not seen it (5 folds)."""
    fold = np.random.default_rng(seed).permutation(len(z)) % FOLDS
    predicted = np.empty(len(z))
    for number in range(FOLDS):
        held = fold == number
        predicted[held] = make_model(name, seed).fit(x[~held], z[~held]).predict(x[held])
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


def load(dataset: Dataset, where: str, bands: list[Band], extra: list[str]) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """The columns `extra` as a table, and dereddened flux and its error, both [N, C] float64 in microjansky, NaN where
    absent."""
    reddened = ["ebv"] if "ebv" in dataset.manifest.columns else []
    names = [f"{kind}_{band.name}" for kind in ("flux", "fluxerr") for band in bands]
    table = dataset.arrow(where, list(dict.fromkeys([*extra, *names, *reddened])))
    ebv = np.nan_to_num(table["ebv"].to_numpy().astype(np.float64)) if reddened else np.zeros(len(table))
    factor = 10 ** (0.4 * np.outer(ebv, [band.a_over_ebv for band in bands]))

    def stack(kind: str) -> np.ndarray:
        return factor * np.column_stack([table[f"{kind}_{b.name}"].to_numpy().astype(np.float64) for b in bands])

    return table.select(extra), stack("flux"), stack("fluxerr")


def flux_bands(dataset: Dataset) -> list[Band]:
    """Raises InputError where fewer than two bands have fluxes with errors."""
    columns = dataset.manifest.columns
    bands = [b for b in dataset.manifest.bands if {f"flux_{b.name}", f"fluxerr_{b.name}"} <= columns.keys()]
    if len(bands) < 2:
        raise InputError(
            "flux_<band>: fewer than two bands have flux_ and fluxerr_ columns; convert with a flux catalogue"
        )
    return bands


def training_objects(dataset: Dataset, bands: list[Band]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z [N], flux and error [N,C] of the sure labels of the training split. Raises InputError for labels without z."""
    train, flux, error = load(dataset, f"split == 'train' and {sure_labels(dataset.manifest.columns)}", bands, ["z"])
    z = np.asarray(train["z"].to_numpy(), np.float64)
    if not np.isfinite(z).all():
        raise InputError(f"z: {int((~np.isfinite(z)).sum())} 'spec' training objects have none; set z_kind to 'none'")
    return z, flux, error


def test_objects(dataset: Dataset, bands: list[Band]) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """Their catalogue, flux and error [M,C]. Raises InputError where there are none."""
    columns = dataset.manifest.columns
    known = [name for name in CATALOG_COLUMNS if name == "key" or name in columns]
    catalog, flux, error = load(dataset, "split == 'test'", bands, known)
    if not len(catalog):
        raise InputError(
            "split: no object is 'test', so there is nothing to predict; convert the dataset with a test split"
        )
    if "n_bands" not in known:
        catalog = catalog.append_column("n_bands", pa.array(np.isfinite(flux).sum(axis=1)))
    return catalog, flux, error


def predict(dataset: Dataset, model: str, seed: int) -> tuple[pa.Table, PDF]:
    """Catalogue and p(z) of every test object. Raises InputError where fluxes or labels are missing."""
    bands = flux_bands(dataset)
    z_train, flux, error = training_objects(dataset, bands)
    if len(z_train) < FEWEST:
        raise InputError(
            f"z_kind: {len(z_train)} training objects are 'spec', at least {FEWEST} are needed; add labels"
        )
    seen = np.isfinite(flux).any(axis=0)  # a band without training photometry teaches nothing
    bands, flux, error = [b for b, s in zip(bands, seen, strict=True) if s], flux[:, seen], error[:, seen]
    softening = np.nanmedian(error, axis=0)
    # Absent counts as no signal: the reference is a deep band that nearly every object has.
    reference = int(np.argmax(np.median(np.nan_to_num(flux) / softening, axis=0)))
    x_train = features(flux, softening, reference)
    catalog, flux, _ = test_objects(dataset, bands)
    with threadpool_limits(1 if len(z_train) < SMALL else None):
        z_fold = out_of_fold(model, x_train, z_train, seed)
        z_point = make_model(model, seed).fit(x_train, z_train).predict(features(flux, softening, reference))
    edges = np.linspace(0, np.ceil(12 * z_train.max()) / 10, REDSHIFT_BINS + 1)
    return catalog, residual_pdf(z_point, z_fold, z_train, edges)


def predict_by_templates(
    dataset: Dataset, filters: list[str], table: str | None, prior: bool, seed: int
) -> tuple[pa.Table, PDF]:
    """Catalogue and p(z) of every test object. filters: BAND=CURVE of speclite; bands without one are boxes of the
    manifest's wavelength and width. table: of spectra, in place of jaxz's own; prior: that of Benitez 2000."""
    bands = flux_bands(dataset)
    curves = filter_curves(bands, filters)
    wavelength, f_lambda = (spectra.WAVELENGTH, spectra.templates()) if table is None else read_spectra(table)
    edges = np.linspace(0, TEMPLATE_Z_MAX, REDSHIFT_BINS + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    models = templates.model_fluxes(wavelength, f_lambda, curves, middles)
    z, flux, error = training_objects(dataset, bands)
    chosen = np.random.default_rng(seed).permutation(len(z))[:CALIBRATORS]
    factor = templates.zero_points(flux[chosen], error[chosen], z[chosen], models, middles)
    print(
        "zero points, mag: "
        + ", ".join(f"{b.name} {-2.5 * np.log10(f):+.3f}" for b, f in zip(bands, factor, strict=True)),
        file=sys.stderr,
    )
    catalog, flux, error = test_objects(dataset, bands)
    chi2 = templates.fit(flux * factor, error * factor, models)
    if not prior:
        return catalog, templates.posterior(chi2, edges)
    red = int(np.argmin([abs(band.wavelength_nm - PRIOR_NM) for band in bands]))
    magnitude = ZERO_POINT_UJY - 2.5 * np.log10(np.maximum(flux[:, red], error[:, red]))
    return catalog, templates.posterior(chi2, edges, templates.magnitude_prior(magnitude, middles))


def filter_curves(bands: list[Band], filters: list[str]) -> list[templates.Curve]:
    """Raises InputError for a filter that speclite does not know, or of no band."""
    named = dict(text.split("=", 1) for text in filters if "=" in text)
    known = [band.name for band in bands]
    if wrong := [text for text in filters if text.split("=", 1)[0] not in known or "=" not in text]:
        raise InputError(f"--filters: {wrong[0]!r} is not BAND=CURVE with a band of {known}; mend it")
    curves = []
    for band in bands:
        middle, half = 10 * band.wavelength_nm, 5 * band.width_nm
        curve = templates.Curve(np.array([middle - half, middle + half]), np.ones(2))
        if band.name in named:
            try:
                found = speclite.filters.load_filter(named[band.name])
            except ValueError as error:
                raise InputError(f"--filters: {named[band.name]!r} is no curve of speclite ({error})") from None
            curve = templates.Curve(np.asarray(found.wavelength), np.asarray(found.response))
        curves.append(curve)
    return curves


def read_spectra(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Wavelengths [W] in angstrom, of the first column, and F_lambda [T,W], of the others. Raises InputError."""
    try:
        table = Table.read(path)
        columns = [np.asarray(table[name], np.float64) for name in table.colnames]
    except (OSError, ValueError, IORegistryError) as error:
        raise InputError(f"--templates: {path!r} cannot be read as a table of numbers ({error}); mend it") from None
    wavelength, f_lambda = columns[0], np.array(columns[1:])
    if not len(f_lambda) or not (np.diff(wavelength) > 0).all() or not (f_lambda >= 0).all():
        raise InputError(f"--templates: {path!r} must hold ascending wavelengths, then columns of F_lambda >= 0")
    return wavelength, f_lambda


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m jaxz.photometry", description=__doc__.split("\n\n")[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--workdir", required=True, help="run directory to write")
    parser.add_argument("--model", choices=("knn", "gbt", "template"), default="gbt")
    parser.add_argument(
        "--filters", nargs="+", default=[], metavar="BAND=CURVE", help="of templates: speclite's curves"
    )
    parser.add_argument(
        "--templates", metavar="TABLE", help="wavelength (angstrom) and F_lambda, in place of jaxz's own"
    )
    parser.add_argument("--prior", action="store_true", help="of templates: p(z | I magnitude) of Benitez 2000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overlay", action="append", default=[], help="one of the dataset's overlays; may be repeated")
    options = parser.parse_args(argv)
    started, workdir = time.monotonic(), Path(options.workdir)
    dataset = open_dataset(options.dataset, overlays=options.overlay)

    config = {"model": options.model, "data": {"path": options.dataset}, "seed": options.seed}
    config["data"] |= {"overlays": options.overlay} if options.overlay else {}
    chosen = {"filters": options.filters, "templates": options.templates, "prior": options.prior}
    if options.model == "template":
        config |= chosen
    elif any(chosen.values()):
        raise InputError(f"--model: {options.model!r} takes no --filters, --templates or --prior; name 'template'")
    path = workdir / "config.json"
    if workdir.is_dir() and not path.exists() and any(workdir.iterdir()):
        raise InputError(f"workdir: {options.workdir!r} holds files but no config.json; name an empty directory")
    if path.exists() and read_json(path, "the run's config") != config:
        raise InputError(f"workdir: {options.workdir!r} holds a run of another configuration; choose another directory")
    if not 0 <= options.seed < 2**32:
        raise InputError(f"--seed: {options.seed} must lie in 0..{2**32 - 1}")
    evaluated = claim_scores(workdir, dataset, overwrite=False)
    if options.model == "template":
        catalog, pdf = predict_by_templates(dataset, *chosen.values(), options.seed)
    else:
        catalog, pdf = predict(dataset, options.model, options.seed)
    workdir.mkdir(parents=True, exist_ok=True)
    replace(workdir / "config.json", json.dumps(config, indent=1).encode())
    truths = truths_of(dataset, catalog["key"])
    report = write_results(workdir, workdir.resolve().name, catalog, pdf, truths, seed=options.seed)
    cost = {"steps": 0, "batch_size": 0, "images": 0, "seconds": time.monotonic() - started}
    cost |= {"parameters": 0, "devices": "cpu"}
    replace(workdir / "compute.json", json.dumps(cost, indent=1).encode())
    replace(workdir / "evaluated.json", json.dumps(evaluated, indent=1).encode())
    for name, metrics in report[workdir.resolve().name].items():
        sigma, eta = (metrics[key]["value"] for key in ("sigma_mad", "eta_15"))
        if sigma is not None:
            print(f"{name}: {metrics['objects']['value']} objects, sigma_mad {sigma:.4f}, eta_15 {eta:.2%}")


if __name__ == "__main__":
    run(main)
