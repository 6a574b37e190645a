"""Redshifts from catalogue fluxes: jaxz's perceptrons beside nearest neighbours and boosted trees, on real catalogues.

    python -m benchmarks.photometry SCRATCH [--data ../shared/data] [--seeds 0,1,2] [--json FILE]

Three training sets, each made a dataset of one-pixel cutouts in SCRATCH: BOSS galaxies drawn as those of the test are;
BOSS galaxies chosen by colour, which those of the test are not; LSST DC2, simulated. On each an ensemble of perceptrons
is trained by configs/baseline_photometry.py, kNN and gradient boosting by jaxz.photometry, and scored on all test
objects. On the colour-chosen ones also two corrected ensembles: of one, objects are drawn by domain-classifier weights,
for which the fluxes of the test objects are looked at, not their redshifts (the catalogue's own reference for
reweighting is brighter than they are); of the other, half of the objects are moved to other redshifts by
jaxz.redshifted, for which nothing of the test is looked at. Interrupted, it goes on when the same command is given
again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from benchmarks.arms import parse_seeds
from jaxz import errors
from jaxz.data.manifest import Array, Band, Column, Manifest
from jaxz.data.writer import DatasetWriter

BOSS, DC2 = "annz_boss_dr10_ugriz", "rail_dc2_9816_sim"
BANDS = {"u": 365.0, "g": 475.0, "r": 622.0, "i": 760.0, "z": 900.0, "y": 1000.0}  # nm
UNDETECTED = 90.0  # magnitudes above: none was measured, and the "error" is the limit's magnitude
# z_max and bins fit the survey; chosen with label_sigma, steps and the rest on a fifth of the training objects.
SURVEYS = {
    "boss": ["--config.redshift.z_max=1.0"],
    "boss_cut": ["--config.redshift.z_max=1.0"],
    "dc2": ["--config.redshift.z_max=3.1"],
}
ANCHORS = {"boss": "gbt 0.0193", "boss_cut": "gbt 0.0273, bias -0.0111", "dc2": "gbt 0.0296, knn 0.0246"}
METRICS = ("sigma_mad", "bias_median", "eta_15")


class Catalog(NamedTuple):
    """Of N objects in C bands."""

    flux: np.ndarray  # [N,C] microjansky
    error: np.ndarray  # [N,C]
    z: np.ndarray  # [N]


def from_magnitudes(magnitude: np.ndarray, error: np.ndarray, z: np.ndarray) -> Catalog:
    """AB magnitudes and their errors [N,C]; what was not detected is a flux of zero, its error that of the limit."""
    detected = magnitude < UNDETECTED
    to_flux = lambda m: 10 ** (-0.4 * (m - 23.9))
    flux = np.where(detected, to_flux(magnitude), 0)
    return Catalog(flux, np.where(detected, flux * error * np.log(10) / 2.5, to_flux(error)), z)


def read_boss(folder: Path, *names: str) -> Catalog:
    parts = [np.loadtxt(folder / BOSS / f"{name}.csv", delimiter=",", skiprows=1) for name in names]
    table = np.concatenate(parts)
    return from_magnitudes(table[:, :10:2], table[:, 1:10:2], table[:, 10])


def read_dc2(folder: Path, part: str) -> Catalog:
    with h5py.File(folder / DC2 / f"test_dc2_{part}_9816.hdf5") as file:
        group = file["photometry"]
        columns = lambda kind: np.column_stack([group[f"{kind}_{band}_lsst"] for band in BANDS])
        return from_magnitudes(columns("mag"), columns("mag_err"), np.asarray(group["redshift"]))


def read(folder: Path, survey: str) -> tuple[Catalog, Catalog]:
    """(training, test) objects. Raises InputError where the data are not there."""
    if missing := [name for name in (BOSS, DC2) if not (folder / name).is_dir()]:
        raise errors.InputError(
            f"--data: {str(folder)!r} has no {missing[0]}; name the folder of the public catalogues"
        )
    if survey == "dc2":
        return read_dc2(folder, "training"), read_dc2(folder, "validation")
    names = ["train/boss_dr10_colorCuts"] if survey == "boss_cut" else [f"train/boss_dr10_{n}" for n in range(4)]
    return read_boss(folder, *names), read_boss(folder, "eval/boss_dr10_eval0", "eval/boss_dr10_eval1")


def write(path: Path, survey: str, train: Catalog, test: Catalog) -> None:
    """A dataset whose cutouts are one pixel, the flux: so a catalogue goes the way of images. The sky's sigma is the
    median error of a training object."""
    names = list(BANDS)[: train.flux.shape[1]]
    bands = tuple(
        Band(name, BANDS[name], 100.0, 23.9, 1.0, 0.0, float(np.median(error)), 1.0)
        for name, error in zip(names, train.error.T, strict=True)
    )
    kinds = {"object_id": "int64", "split": "string", "z_kind": "string", "z": "float32", "z_err": "float32"}
    kinds |= {f"{kind}_{name}": "float32" for kind in ("flux", "fluxerr") for name in names}
    image = Array("image", "float32", (len(names), 1, 1), encoding="index")
    manifest = Manifest(arrays={"image": image}, bands=bands, columns={name: Column(k) for name, k in kinds.items()})
    writer = DatasetWriter(path, manifest, plan={"survey": survey})
    if writer.complete:
        return
    flux, error, z = (np.concatenate(parts) for parts in zip(train, test, strict=True))
    count = len(z)
    columns = {"object_id": np.arange(count), "z": z, "z_err": np.full(count, 1e-4), "z_kind": np.full(count, "spec")}
    columns["split"] = np.repeat(["train", "test"], [len(train.z), len(test.z)])
    for c, name in enumerate(names):
        columns |= {f"flux_{name}": flux[:, c], f"fluxerr_{name}": error[:, c]}
    if not writer.done(0):
        keys = [f"{survey}{n:06d}" for n in range(count)]
        writer.write_shard(0, keys, {"image": flux[:, :, None, None].astype(np.float32)}, columns)
    writer.finish(1, {})


def weigh(dataset: Path) -> None:
    """The overlay `shift`: column weight, how much more frequent fluxes like a training object's are in the test."""
    if not (dataset / "overlays/shift.parquet").exists():
        where = ["--train", "split == 'train'", "--target", "split == 'test'"]
        run("jaxz.shift", str(dataset), "--name", "shift", *where, "--features", "flux")


def move(dataset: Path) -> None:
    """The overlay `redshifted`: the training objects at other redshifts, which the test has no part in."""
    if not (dataset / "overlays/redshifted.parquet").exists():
        filters = [f"{band}=sdss2010-{band}" for band in "ugriz"]
        run(
            "jaxz.redshifted",
            str(dataset),
            "--name",
            "redshifted",
            "--where",
            "split == 'train'",
            "--filters",
            *filters,
        )


def run(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], stdout=sys.stderr)
    if done.returncode:
        raise errors.InputError(f"{' '.join(command)} ended with {done.returncode}")


def scored(scratch: Path, dataset: Path, arm: str, survey: str, seed: int) -> dict:
    """{metric: {"value", "error"}} over the test objects, of an arm trained and evaluated unless that was done."""
    workdir = scratch / f"{survey}_{arm.replace(' ', '_')}_{seed}"
    if not (workdir / "report.json").exists():
        if arm in ("knn", "gbt"):
            own = ["--dataset", str(dataset), "--workdir", str(workdir)]
            run("jaxz.photometry", *own, "--model", arm, "--seed", str(seed))
        else:
            fields = [f"--config.data.path={dataset}", "--config.data.deredden=False", f"--config.seed={1000 * seed}"]
            if arm == "mlp weighted":
                fields += ["--config.data.overlays=('shift',)", "--config.data.weights=weight"]
            if arm == "mlp redshifted":
                moved = ({"name": "labelled"}, {"name": "redshifted", "overlays": ("redshifted",)})
                fields += [f"--config.data.sources={moved!r}"]
            config = "--config=configs/baseline_photometry.py"
            run("jaxz.train", config, f"--workdir={workdir}", *fields, *SURVEYS[survey])
            run("jaxz.evaluate", f"--workdir={workdir}", f"--dataset={dataset}")
    [report] = json.loads((workdir / "report.json").read_bytes()).values()
    return {name: report["spec_like"][name] for name in METRICS}


def line(survey: str, arm: str, results: list[dict]) -> str:
    """Means over the seeds, with their scatter and the bootstrap's error over the test objects."""
    parts = []
    for name in METRICS:
        values = np.array([result[name]["value"] for result in results])
        scatter = f" +- {values.std(ddof=1):.4f} (seeds)" if len(values) > 1 else ""
        error = np.mean([result[name]["error"] for result in results])
        parts.append(f"{name} {values.mean():.4f}{scatter} +- {error:.4f} (objects)")
    return f"{survey:9}{arm:15}{', '.join(parts)}"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photometry", description=__doc__.split("\n\n")[0])
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the public catalogues")
    parser.add_argument("--seeds", default="0,1,2", type=parse_seeds)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    found: dict = {}
    for survey in SURVEYS:
        train, test = read(options.data, survey)
        dataset = options.scratch / survey
        write(dataset, survey, train, test)
        arms = ["knn", "gbt", "mlp"]
        if survey == "boss_cut":
            arms += ["mlp weighted", "mlp redshifted"]
            weigh(dataset)
            move(dataset)
        print(f"{survey}: {len(train.z)} training, {len(test.z)} test objects; untuned: {ANCHORS[survey]}")
        for arm in arms:
            own = options.seeds[:1] if arm == "knn" else options.seeds  # neighbours draw nothing
            found[f"{survey} {arm}"] = [scored(options.scratch, dataset, arm, survey, seed) for seed in own]
            print(line(survey, arm, found[f"{survey} {arm}"]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    errors.run(main)
