"""Which objects of a dataset have labels: overlays for the training split, and the subsets that the tests are of."""

import json
import tomllib
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from jaxz.data.dataset import Dataset, open_dataset
from jaxz.data.manifest import Column
from jaxz.data.overlays import write_overlay
from jaxz.data.staging import place_of
from jaxz.errors import InputError, suggest
from jaxz.photoz import shift
from jaxz.photoz.bootstrap import sky_cells
from jaxz.provenance import versions
from jaxz.results import sure_labels
from jaxz.shift import domains

FAINT = 23.5  # mag_ref, of the simulated sky
Z_MAX = 4.6  # of p(z), above the 4.5 at which the simulated sky ends
QUANTILE = 0.99  # of the labelled redshifts: beyond lies what labels hardly reach
CATALOG = ("z_phot", "z_phot_l68", "z_phot_u68")  # of a many-band catalogue
VERSION = 0  # of labels, weights and templates; raise it where they come to be written otherwise
SUFFIX = {"weights": "_w", "templates": "_t", "catalog": "_c", "near_balanced": "_b"}  # of overlays for labels
SETTINGS = {"where": str, "faint": float, "z_max": float}  # of a selection file


class Protocol(NamedTuple):
    """dataset: its directory. where: the condition that hides the labels of all other objects, "" for none. faint: the
    magnitude above which objects count as faint. z_max: of the redshift bins."""

    dataset: Path
    where: str = ""
    faint: float = FAINT
    z_max: float = Z_MAX

    def tag(self, recipe: str) -> str:
        """Of the overlays' names: another selection, VERSION, or recipe of what is in it, has others."""
        return f"shift_{zlib.crc32((self.where + recipe).encode(), VERSION):08x}"

    def labelled(self, dataset: Dataset, split: str) -> str:
        """The filter of a split's objects that have a label."""
        chosen = f"split == '{split}' and {sure_labels(dataset.manifest.columns)}"
        return f"{chosen} and ({self.where})" if self.where else chosen


class Subset(NamedTuple):
    """Test objects that are scored together: rows [M] among all N of them."""

    title: str
    rows: np.ndarray


def read_selection(path: Path) -> dict:
    """The settings of a selection file. Raises InputError for what is no such file."""
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"--selection: {str(path)!r} cannot be read ({error}); give a TOML file") from None
    for name, value in values.items():
        if name not in SETTINGS:
            raise InputError(f"--selection: {name} is no field of a selection.{suggest(name, SETTINGS)}")
        if not isinstance(value, SETTINGS[name] if name == "where" else int | float) or isinstance(value, bool):
            raise InputError(f"--selection: {name} is {value!r}; give {'text' if name == 'where' else 'a number'}")
    if missing := SETTINGS.keys() - values.keys():
        raise InputError(f"--selection: {min(missing)} is missing; add it (docs/shift_benchmark.md)")
    return values


def truth(dataset: Dataset) -> tuple[str, str]:
    """(column, filter of those who have it): the truth of a simulation, else the sure spectroscopic redshift."""
    columns = dataset.manifest.columns
    return ("true_z", "isfinite(true_z)") if "true_z" in columns else ("z", sure_labels(columns))


def labels_name(protocol: Protocol, labels: str, fraction: float, seed: int, recipe: str = "") -> str:
    """Of the overlay; with a SUFFIX that of what is made for these labels, by `recipe` where there are several."""
    return f"{protocol.tag(recipe)}_{labels}_{100 * fraction:g}_{seed}".replace(".", "p")


def write_catalog(protocol: Protocol, labels: str) -> None:
    """Give training objects without a label of the overlay `labels` the dataset's z_phot as z, half of its central 68 %
    as z_err and the z_kind 'phot', where it has one. Unless the overlay is there."""
    name = labels + SUFFIX["catalog"]
    if (protocol.dataset / place_of("overlays", name)).exists():
        return
    dataset = open_dataset(str(protocol.dataset), overlays=[labels])
    where = f"split == 'train' and z_kind == 'none' and {' and '.join(f'isfinite({c})' for c in CATALOG)}"
    z, low, high = (dataset.column(column)[dataset.select(where)] for column in CATALOG)
    values = {"z": z, "z_err": (high - low) / 2, "z_kind": np.full(len(z), "phot")}
    columns = {name: dataset.manifest.columns[name] for name in values}
    provenance = {"tool": "benchmarks.shift", "overlays": [labels], "versions": versions()}
    write_overlay(dataset, name, dataset.select(where), values, columns, provenance)


def write_labels(protocol: Protocol, labels: str, fraction: float, seed: int) -> str:
    """The name of the overlay by which a training split has `fraction` of its labels, drawn at random, the fewer
    among the more; and a column draw, uniform in 0 to 1, to choose unlabelled objects by. Written unless it is there.

    labels "oracle": as many of the objects whose truth is known, selected by nothing. Of a simulation that is true_z,
    which no other arm is ever trained on. Raises InputError for a dataset without labels, or without object_id.
    """
    name = labels_name(protocol, labels, fraction, seed)
    path = protocol.dataset / place_of("overlays", name)
    if path.exists():
        return name
    dataset = open_dataset(str(protocol.dataset))
    column, known = truth(dataset)
    rows, labelled = (dataset.select(text) for text in ("split == 'train'", protocol.labelled(dataset, "train")))
    if not len(labelled):
        raise InputError(f"--selection: no object of the training split has a label and passes {protocol.where!r}")
    count = round(fraction * len(labelled))
    if labels == "oracle":
        labelled, source = dataset.select(f"split == 'train' and {known}"), column
    else:
        source = "z"
    generator = np.random.default_rng(seed)
    chosen = np.isin(rows, generator.permutation(labelled)[:count])
    error = np.nan_to_num(dataset.column("z_err")[rows])  # 0: the head's least width
    values = {
        "z": np.where(chosen, dataset.column(source)[rows], np.nan),
        "z_err": np.where(chosen, error, np.nan),
        "z_kind": np.where(chosen, "spec", "none"),
        "draw": generator.uniform(size=len(rows)),
    }
    columns = {name: dataset.manifest.columns.get(name, Column("float32")) for name in values}
    if "z_quality" in dataset.manifest.columns:
        values["z_quality"] = np.where(chosen, 4, 0)
        columns["z_quality"] = dataset.manifest.columns["z_quality"]
    provenance = {"tool": "benchmarks.shift", "where": protocol.where, "labels": labels, "count": int(chosen.sum())}
    write_overlay(dataset, name, rows, values, columns, provenance | {"seed": seed, "versions": versions()})
    return name


def read_summary(protocol: Protocol, name: str) -> dict:
    """What jaxz.shift found when it wrote an overlay."""
    metadata = pq.read_metadata(protocol.dataset / place_of("overlays", name)).metadata
    return json.loads(metadata[b"jaxz"])["summary"]


def subsets(protocol: Protocol) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Subset]]:
    """Keys, sky cells (the objects themselves where jaxz.photoz.bootstrap.sky_cells finds none) and true redshifts [N]
    of the test objects, in the dataset's order, and {name: Subset} of those whose truth is known. `photometric` is of
    those that have a many-band photometric redshift alone, here the truth."""
    dataset = open_dataset(str(protocol.dataset))
    columns, test = dataset.manifest.columns, "split == 'test'"
    rows, labels = dataset.select(test), protocol.labelled(dataset, "train")
    place = lambda where: np.searchsorted(rows, dataset.select(f"{test} and {where}"))
    column, known = truth(dataset)
    full, z_true = place(known), np.full(len(rows), np.nan)
    z_true[full] = dataset.column(column)[rows[full]]
    reach = float(np.quantile(dataset.column("z")[dataset.select(labels)], QUANTILE))
    found = domains(dataset, {"train": labels, "target": test}, ["flux"], None)
    spec_like = np.searchsorted(rows, dataset.select(protocol.labelled(dataset, "test")))
    parts = {
        "spec_like": Subset("selected as the labelled ones", np.intersect1d(spec_like, full)),
        "full": Subset("all", full),
        "hidden": Subset("not selected as the labelled ones", np.setdiff1d(full, spec_like)),
        "faint": Subset(f"fainter than {protocol.faint:g}", place(f"{known} and mag_ref > {protocol.faint}")),
        "beyond": Subset(f"z > {reach:.2f}, the labels' 99 %", np.flatnonzero(z_true > reach)),
        "uncovered": Subset(
            "without labelled neighbours in magnitude and colours",
            np.setdiff1d(full, np.flatnonzero(shift.covered(found[0].x, found[1].x))),
        ),
    }
    if "z_phot" in columns and column == "z":
        members = place(f"isfinite(z_phot) and not ({known})")
        z_true[members] = dataset.column("z_phot")[rows[members]]
        parts["photometric"] = Subset("many-band photometric redshift", members)
    table = dataset.arrow(test, ["key", "ra", "dec"])
    cells = sky_cells(*(np.asarray(table[name], np.float64) for name in ("ra", "dec")))
    return np.array(table["key"].to_pylist()), np.arange(len(rows)) if cells is None else cells, z_true, parts
