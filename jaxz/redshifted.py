"""Labelled photometry moved to other redshifts, as an overlay that a source of training reads.

    python -m jaxz.redshifted DATASET --name NAME --where "split == 'train' and z_kind == 'spec'" [--scatter 0.07]
        [--filters g=hsc2017-g ...] [--templates TABLE]

Writes DATASET/overlays/NAME.parquet: for the objects of --where a redshift z, whose ln(1+z) is drawn --scatter around
their own (a standard deviation), and flux_<band> and fluxerr_<band> as they would be there, equally bright in all (see
jaxz/photoz/redshifted.py); z is missing where it came out below 0, or no spectrum fits. For models of catalogue fluxes:
images do not move. Training mixes it with the objects as they are:

    config.data.sources = (dict(name="labelled"), dict(name="redshifted", overlays=("NAME",)))
"""

import argparse
import json

import numpy as np
import pyarrow as pa

from jaxz.data.dataset import Dataset, open_dataset
from jaxz.data.index import column_type
from jaxz.data.overlays import to_parquet
from jaxz.data.staging import place_of
from jaxz.data.transport import is_remote
from jaxz.errors import InputError, run
from jaxz.files import replace
from jaxz.photometry import FEWEST, filter_curves, flux_bands, load, read_spectra
from jaxz.photoz import redshifted, spectra, templates
from jaxz.provenance import versions

STEP = 0.004  # in redshift, of the models


def moved(dataset: Dataset, options: argparse.Namespace) -> tuple[pa.Array, dict[str, np.ndarray]]:
    """object_id [N] of the objects of --where; z and the fluxes with their errors [N] each, elsewhere. Raises
    InputError where the objects are few, or have no redshift or fluxes."""
    bands = flux_bands(dataset)
    table, flux, error = load(dataset, options.where, bands, ["object_id", "z"])
    z = np.asarray(table["z"].to_numpy(), np.float64)
    if len(z) < FEWEST or not np.isfinite(z).all():
        raise InputError(
            f"--where: {options.where!r} chooses {len(z)} objects, {int(np.isfinite(z).sum())} of them with a "
            f"redshift; choose {FEWEST} or more, all of which have one"
        )
    curves = filter_curves(bands, options.filters)
    wavelength = np.array([np.average(curve.wavelength, weights=curve.response) for curve in curves])
    rest, f_lambda = read_spectra(options.templates) if options.templates else (spectra.WAVELENGTH, spectra.templates())
    to = np.expm1(np.log1p(z) + options.scatter * np.random.default_rng(options.seed).normal(size=len(z)))
    grid = np.arange(0, max(z.max(), to.max()) + STEP, STEP)
    models = templates.band_fluxes(rest, f_lambda, curves, grid)
    models /= models.mean(axis=(0, 2))[:, None]  # numbers of order one
    try:
        models = redshifted.trained(flux, error, z, models, grid, wavelength)
    except ValueError as failed:
        raise InputError(f"--where: {failed}; choose brighter ones") from None
    factor = redshifted.redshifted(flux, error, z, to, models, grid)
    known = np.isfinite(factor).all(axis=1) & (to >= 0)
    stored = dataset.arrow(options.where, [f"{kind}_{band.name}" for kind in ("flux", "fluxerr") for band in bands])
    values = {"z": np.where(known, to, np.nan)}
    for c, band in enumerate(bands):
        for name in (f"flux_{band.name}", f"fluxerr_{band.name}"):
            values[name] = np.where(known, factor[:, c], 1) * stored[name].to_numpy()
    return table["object_id"].combine_chunks(), values


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m jaxz.redshifted", description=__doc__.split("\n\n")[0])
    parser.add_argument("dataset")
    parser.add_argument("--name", required=True, help="of the overlay")
    parser.add_argument("--where", required=True, help="filter of the objects with redshifts")
    parser.add_argument("--scatter", type=float, default=0.07, help="of ln(1+z), a standard deviation")
    parser.add_argument("--filters", nargs="+", default=[], metavar="BAND=CURVE", help="speclite's curves")
    parser.add_argument("--templates", metavar="TABLE", help="wavelength (angstrom) and F_lambda to begin with")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if is_remote(options.dataset):
        raise InputError(f"dataset: {options.dataset!r} is remote; write the overlay where it is")
    dataset = open_dataset(options.dataset)
    known = dataset.manifest.columns
    if lacking := [name for name in ("object_id", "z") if name not in known]:
        raise InputError(f"dataset: {options.dataset!r} has no column {lacking[0]}; convert it with redshifts")
    path = dataset.path / place_of("overlays", options.name)
    if path.exists():
        raise InputError(f"--name: {path} exists; choose another name")
    ids, values = moved(dataset, options)
    arrays = {name: pa.array(v, column_type(known[name]), from_pandas=True) for name, v in values.items()}
    summary = {"objects": len(ids), "moved": int(np.isfinite(values["z"]).sum()), "scatter": options.scatter}
    provenance = {"tool": "jaxz.redshifted", "arguments": argv, "rows": dataset.fingerprint()["rows"]}
    path.parent.mkdir(exist_ok=True)
    columns = {name: known[name] for name in values}
    replace(path, to_parquet(ids, arrays, columns, provenance | {"summary": summary, "versions": versions()}))
    print(json.dumps({"overlay": str(path), **summary}, indent=1))


if __name__ == "__main__":
    run(main)
