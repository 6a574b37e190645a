"""Shifted labels for a last layer free of bias given z_spec (Lin et al. 2022, A&A 662, A36, step 3), as an overlay.

    python -m jaxz.lin RUN --dataset DATASET --name OVERLAY [--cap 100] [--held "split == 'val'"]

RUN is that of step 2 (configs/redshift_balanced.py). The objects it was trained on get the label 2z - z_cm, where z_cm
is what estimates of their redshift are drawn to, and the error sigma by which z_phot of the held-out objects is likest
to their z_spec; z_phot is the median of p(z) (in the paper its mode). Prints the extended redshift axis on which
the last layer is to be trained anew.
"""

import argparse
import json

import numpy as np

from jaxz import runtime
from jaxz.correct import FEWEST, predicted
from jaxz.data.manifest import Column
from jaxz.data.overlays import overlay_path, write_overlay
from jaxz.errors import InputError, run
from jaxz.held import held_out, labels_of
from jaxz.inference import load_run
from jaxz.photoz import calibration
from jaxz.provenance import versions

LOWEST = -0.95  # redshift of the extended axis: 1 + z stays positive, a little beyond it too


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m jaxz.lin", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--name", required=True, help="of the overlay")
    parser.add_argument("--cap", type=int, default=100, help="MOST of data_tools.relabel --near_balanced")
    parser.add_argument("--held", default="split == 'val'", metavar="WHERE", help="of which the sure labels are taken")
    parser.add_argument("--overlay", action="append", default=[], help="beside the run's own; may be repeated")
    options = parser.parse_args(argv)
    runtime.alone("jaxz.lin")
    if options.cap < 1:
        raise InputError(f"--cap: {options.cap} must be at least 1")
    model = load_run(options.run)
    if model.edges is None:
        raise InputError(f"RUN: {options.run!r} predicts no redshifts; name another run")
    dataset = model.open_dataset(options.dataset, options.overlay)
    overlay_path(dataset, options.name)
    held, edges = held_out(dataset, [model], options.held, None, FEWEST), model.edges
    rows, z = labels_of(dataset, model)
    z_phot = predicted(model, dataset, held.where).pdf.median()
    sigma = calibration.label_width(z_phot, held.z, edges)
    scatter = calibration.scatter_profile(z_phot, held.z, edges, sigma)
    z_cm = calibration.centre_of_mass(edges, np.histogram(z, edges)[0], options.cap, scatter)
    axis = calibration.extended_edges(edges)
    axis = axis[axis > LOWEST]
    values = {"z": calibration.shifted(z, z_cm, edges), "z_err": np.full(len(z), sigma)}
    summary = {
        "objects": len(rows),
        "held": len(held.z),
        "z_err": sigma,
        "largest_shift": float(np.abs(values["z"] - z).max()),
    }
    summary |= {"z_min": round(float(axis[0]), 6), "z_max": round(float(axis[-1]), 6), "bins": len(axis) - 1}
    provenance = {"tool": "jaxz.lin", "arguments": argv, "rows": dataset.fingerprint()["rows"], "summary": summary}
    columns = {name: dataset.manifest.columns.get(name, Column("float32")) for name in values}
    path = write_overlay(dataset, options.name, rows, values, columns, provenance | {"versions": versions()})
    print(json.dumps({"overlay": str(path), **summary}, indent=1))


if __name__ == "__main__":
    run(main)
