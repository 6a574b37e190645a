"""Labelled photometry moved to other redshifts, as an overlay that a source of training reads.

    python -m jaxz.redshifted DATASET --name NAME --where "z_kind == 'spec'" [--scatter 0.07]
        [--filters g=hsc2017-g ...] [--templates TABLE]

Writes DATASET/overlays/NAME.parquet: for the training objects of --where a redshift z, whose ln(1+z) is drawn
--scatter around their own (a standard deviation), and flux_<band> and fluxerr_<band> as they would be there, equally
bright in all (see docs/shift.md); z is missing where it came out below 0, or no spectrum fits. For models of catalogue
fluxes: images do not move. Training mixes it with the objects as they are:

    config.data.sources = (dict(name="labelled"), dict(name="redshifted", overlays=("NAME",)))
"""

import argparse
import json
from collections.abc import Sequence

import numpy as np

from jaxz.catalog_fluxes import flux_bands, load
from jaxz.data.dataset import Dataset, open_dataset
from jaxz.data.manifest import Band
from jaxz.data.overlays import overlay_ids, overlay_path, write_overlay
from jaxz.data.where import training_filter
from jaxz.errors import InputError, run
from jaxz.photoz import spectra, templates
from jaxz.provenance import versions
from jaxz.template_fit import FEWEST, MENDERS, filter_curves, read_spectra

STEP = 0.004  # in redshift, of the models
MOST_Z = 20.0  # what is beyond, or not above -1, is a catalogue's word for none
SURE = 5.0  # sigmas of a flux that teaches the spectra: a catalogue may lack what scattered below


def moved(dataset: Dataset, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """z and the fluxes with their errors [N] each of the objects of --where, elsewhere. Raises InputError where the
    objects are few, or have no redshift or fluxes."""
    bands = flux_bands(dataset)
    table, flux, error = load(dataset, options.where, bands, ["z"])
    z = np.asarray(table["z"].to_numpy(), np.float64)
    known = (z > -1) & (z < MOST_Z)
    if len(z) < FEWEST or not known.all():
        raise InputError(
            f"--where: {options.where!r} chooses {len(z)} objects, {int(known.sum())} of them with a redshift above -1 "
            f"and below {MOST_Z:g}; choose {FEWEST} or more, all of which have one"
        )
    draw = np.random.default_rng(options.seed)
    to = np.expm1(np.log1p(z) + options.scatter * draw.normal(size=len(z)))
    grid = np.arange(0, max(z.max(), to.max()) + STEP, STEP)
    models = taught(bands, flux, error, z, grid, draw, options)
    factor = templates.redshifted(flux, error, z, to, models, grid)
    known = np.isfinite(factor).all(axis=1) & (to >= 0)
    stored = dataset.arrow(options.where, [f"{kind}_{band.name}" for kind in ("flux", "fluxerr") for band in bands])
    values = {"z": np.where(known, to, np.nan)}
    for c, band in enumerate(bands):
        for name in (f"flux_{band.name}", f"fluxerr_{band.name}"):
            values[name] = np.where(known, factor[:, c], 1) * stored[name].to_numpy()
    return values


def taught(
    bands: Sequence[Band],
    flux: np.ndarray,
    error: np.ndarray,
    z: np.ndarray,
    grid: np.ndarray,
    draw: np.random.Generator,
    options: argparse.Namespace,
) -> np.ndarray:
    """`band_fluxes` [Z,T,C] at redshifts `grid` [Z] of spectra that have learned from flux and error [N,C] at z [N]."""
    curves = filter_curves(bands, options.filters)
    rest, f_lambda = read_spectra(options.templates) if options.templates else (spectra.WAVELENGTH, spectra.templates())
    models = templates.band_fluxes(rest, f_lambda, curves, grid)
    models /= np.maximum(models.mean(axis=(0, 2)), 1e-30)[:, None]  # numbers of order one
    wavelength = np.array([np.average(curve.wavelength, weights=curve.response) for curve in curves])
    some = draw.permutation(len(z))[:MENDERS]
    flux, error = flux[some], np.where(flux[some] > SURE * error[some], error[some], np.inf)
    return templates.repair(flux, error, z[some], models, grid, wavelength)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m jaxz.redshifted", description=__doc__.split("\n\n")[0])
    parser.add_argument("dataset")
    parser.add_argument("--name", required=True, help="of the overlay")
    parser.add_argument("--where", required=True, help="filter of the training objects with redshifts")
    parser.add_argument("--scatter", type=float, default=0.07, help="of ln(1+z), a standard deviation")
    parser.add_argument("--filters", nargs="+", default=[], metavar="BAND=CURVE", help="speclite's curves")
    parser.add_argument("--templates", metavar="TABLE", help="wavelength (angstrom) and F_lambda to begin with")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if not 0 <= options.scatter <= 1:
        raise InputError(f"--scatter: {options.scatter} must lie in 0..1")
    if not 0 <= options.seed < 2**32:
        raise InputError(f"--seed: {options.seed} must lie in 0..{2**32 - 1}")
    options.where = training_filter("split == 'train'", options.where)
    dataset = open_dataset(options.dataset)
    overlay_path(dataset, options.name)
    columns = dataset.manifest.columns
    if "z" not in columns:
        raise InputError(f"dataset: {options.dataset!r} has no column z; convert it with redshifts")
    rows = dataset.select(options.where)
    overlay_ids(dataset, rows)
    values = moved(dataset, options)
    summary = {"objects": len(rows), "moved": int(np.isfinite(values["z"]).sum()), "scatter": options.scatter}
    provenance = {"tool": "jaxz.redshifted", "arguments": argv, "rows": dataset.fingerprint()["rows"]}
    provenance |= {"summary": summary, "versions": versions()}
    path = write_overlay(dataset, options.name, rows, values, {name: columns[name] for name in values}, provenance)
    print(json.dumps({"overlay": str(path), **summary}, indent=1))


if __name__ == "__main__":
    run(main)
