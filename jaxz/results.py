"""Predictions on disk: the test sets, the catalogue of predictions, p(z) and their scores. One place for every arm."""

import contextlib
import io
import json
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jaxz.data.dataset import Dataset
from jaxz.data.manifest import Array, Column
from jaxz.data.transport import place
from jaxz.errors import InputError
from jaxz.files import read_json, replace
from jaxz.photoz.bootstrap import sky_cells
from jaxz.photoz.metrics import Score, evaluate_metrics
from jaxz.photoz.pdf import PDF, write_qp

if TYPE_CHECKING:
    from astropy.io.fits import BinTableHDU

# Kept where present.
CATALOG_COLUMNS = (
    "key", "object_id", "ra", "dec", "x", "y", "n_bands", "mag_ref", "ebv", "coverage", "coverage_flag", "z", "z_kind",
)  # fmt: skip
# What predictions add to them.
PREDICTED = {
    "n_bands": "bands of the model with a good pixel",
    "coverage_flag": "1: has neighbours among the training objects; 0: none, p(z) is a guess; -1: not known",
    "z_mean": "mean of p(z)",
    "z_median": "median of p(z)",
    "z_mode": "mode of p(z)",
    "z_risk": "redshift of least expected loss (Tanaka et al. 2018)",
    "z_best": "redshift: the median of p(z)",
    "z_l68": "p(z) holds 16 % below",
    "z_u68": "p(z) holds 16 % above",
    "z_l95": "p(z) holds 2.5 % below",
    "z_u95": "p(z) holds 2.5 % above",
    "odds": "mass of p(z) within 0.06 (1 + z_best) of z_best",
    "pdf_width": "half of z_u68 - z_l68",
    "z_spread": "standard deviation of z_best between the members of the ensemble",
    "z_true": "true redshift, NaN where not known",
    "embedding": "the encoder's summary of the image",
}
INTERVAL = ("z_l68", "z_u68")  # whose coverage is scored


def test_sets(dataset: Dataset) -> dict[str, tuple[str, str]]:
    """{name: (filter on the index, truth column)} of the test sets.

    spec_like: test objects with a sure spectroscopic label (z_quality >= 3, at least 95 %, where that column exists),
    selected as the labelled training set is;
    full: every test object, where a simulation tells the truth of all (`true_z`).
    Raises InputError for a dataset without splits or labels.
    """
    columns, sets = dataset.manifest.columns, {}
    if "split" not in columns:
        raise InputError("split: the dataset has no such column, so there is no test set; convert it with splits")
    if {"z", "z_kind"} <= columns.keys():
        sets["spec_like"] = (f"split == 'test' and {sure_labels(columns)}", "z")
    if "true_z" in columns:
        sets["full"] = ("split == 'test'", "true_z")
    if not sets:
        raise InputError("z: the dataset has neither labels (z and z_kind) nor true_z to test against; add labels")
    return sets


def sure_labels(columns: Container[str]) -> str:
    """The filter of spectroscopic labels that may be trained on and scored against."""
    return "z_kind == 'spec'" + (" and z_quality >= 3" if "z_quality" in columns else "")


def catalog_of(dataset: Dataset, rows: np.ndarray, found: Mapping[str, np.ndarray]) -> pa.Table:
    """key and what there is of CATALOG_COLUMNS for ascending rows [N], with columns of PREDICTED that were `found` [N]
    in the place of its own; only the shards that hold the rows are looked at."""
    columns = dataset.manifest.columns
    known = [name for name in CATALOG_COLUMNS if name == "key" or name in columns]
    shards, within = dataset.locate(rows)
    parts = [dataset.shard_table(int(n), known).take(pa.array(within[shards == n])) for n in np.unique(shards)]
    table = pa.concat_tables(parts or [dataset.shard_table(0, known).slice(0, 0)])
    catalog = described(table, {name: columns[name] for name in known if name in columns})
    for name, values in found.items():
        catalog = with_column(catalog, name, pa.array(values))
    return catalog


def described(table: pa.Table, columns: Mapping[str, Column]) -> pa.Table:
    """A table whose fields have the units and descriptions of `columns` in their metadata."""
    for n, field in enumerate(table.schema):
        if spec := columns.get(field.name):
            table = table.set_column(
                n, field.with_metadata({"unit": spec.unit, "description": spec.description}), table[n]
            )
    return table


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """A table with a column of PREDICTED, in the place of what had its name."""
    field = pa.field(name, values.type, metadata={"description": PREDICTED[name]})
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), field, values)
    return table.append_column(field, values)


def truths_of(dataset: Dataset, keys: pa.ChunkedArray) -> dict[str, np.ndarray]:
    """{test set: float64 [N]}: the true redshift of each of `keys`, NaN where it is outside of the set."""
    truths = {}
    for name, (where, column) in test_sets(dataset).items():
        table = dataset.arrow(where, ["key", column])
        found = pc.index_in(keys, value_set=table["key"].combine_chunks())
        truths[name] = table[column].take(found.combine_chunks()).to_numpy().astype(np.float64)
    return truths


def claim_scores(workdir: Path, dataset: Dataset, overwrite: bool) -> dict:
    """What RUN/evaluated.json says of scores on `dataset`. Raises InputError where the run holds those of another one
    and they are not to be overwritten."""
    now = {"dataset": place(dataset.path), "rows": dataset.fingerprint()["rows"]}
    path = workdir / "evaluated.json"
    then = read_json(path, "the record of an evaluation") if path.exists() else now
    if then.get("rows") != now["rows"] and not overwrite:
        raise InputError(
            f"--dataset: {str(workdir)!r} holds the scores on {then.get('dataset')!r}; add --overwrite to replace "
            "them, in a copy of the run where both are wanted"
        )
    return now


@contextlib.contextmanager
def claimed(workdir: Path, config: dict) -> Iterator[None]:
    """Writes RUN/config.json before the work within begins: a command of another config is refused from then on, and
    the same one goes on where this was interrupted. What is refused itself leaves nothing behind.

    Raises InputError where the directory holds a run of another config, or anything else.
    """
    path = workdir / "config.json"
    made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    if workdir.is_dir() and not path.exists() and any(workdir.iterdir()):
        raise InputError(f"workdir: {str(workdir)!r} holds files but no config.json; name an empty directory")
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "x") as file:  # which one process alone can
            file.write(json.dumps(config, indent=1))
        mine = True
    except FileExistsError:
        mine = False
    if not mine and read_json(path, "the run's config") != config:
        raise InputError(f"workdir: {str(workdir)!r} holds a run of another configuration; choose another directory")
    try:
        yield
    except InputError:
        if mine and [path] == list(workdir.iterdir()):
            path.unlink()
            with contextlib.suppress(OSError):  # somebody else's by now
                for folder in made:
                    folder.rmdir()
        raise


def summaries(pdf: PDF) -> dict[str, np.ndarray]:
    """{column: float32 [N]} that prediction_table derives from p(z)."""
    median, (l68, u68), (l95, u95) = pdf.median(), pdf.interval(0.68), pdf.interval(0.95)
    columns = {"z_mean": pdf.mean(), "z_median": median, "z_mode": pdf.mode(), "z_risk": pdf.risk(), "z_best": median}
    columns |= {"z_l68": l68, "z_u68": u68, "z_l95": l95, "z_u95": u95}
    columns |= {"odds": pdf.odds(median), "pdf_width": (u68 - l68) / 2}
    return {name: np.asarray(values, np.float32) for name, values in columns.items()}


def prediction_table(
    catalog: pa.Table,
    pdf: PDF,
    truths: Mapping[str, np.ndarray],
    spread: np.ndarray | None = None,
    intervals: Mapping[str, np.ndarray] | None = None,
) -> pa.Table:
    """The catalogue of predictions, a row per object of `catalog` and `pdf` [N].

    Redshifts z_mean, z_median, z_mode, z_risk (of least expected loss), z_best (the median), central intervals z_l68 to
    z_u68 and z_l95 to z_u95 (their ends [N] in `intervals`, if they are not those of p(z)), odds (mass within
    0.06 (1 + z_best)), pdf_width (half of the 68 % interval); z_spread, where `spread` [N] is given: the standard
    deviation of z_best between the members whose mean pdf is; z_true (NaN: unknown; the first test set that knows it
    wins) and one bool column test_<name> per test set.
    """
    if not len(catalog) == len(pdf) == len(next(iter(truths.values()), catalog)):
        raise ValueError(f"catalog ({len(catalog)} rows), pdf ({len(pdf)}) and truths must be of the same objects")
    parts, z_true = [summaries(block) for block in pdf.blocks()], np.full(len(pdf), np.nan)
    for truth in truths.values():
        z_true = np.where(np.isnan(z_true), truth, z_true)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    columns |= ({} if spread is None else {"z_spread": spread}) | {"z_true": z_true}
    if intervals:
        columns |= {**intervals, "pdf_width": (intervals["z_u68"] - intervals["z_l68"]) / 2}
    table = catalog.select([name for name in CATALOG_COLUMNS if name in catalog.column_names])
    for name, values in columns.items():
        table = with_column(table, name, pa.array(np.asarray(values, np.float32)))
    for name, truth in truths.items():
        table = table.append_column(f"test_{name}", pa.array(np.isfinite(truth)))
    return table


def write_catalog(path: Path | str, table: pa.Table) -> None:
    """Write a table as .parquet or .fits, by the name's ending, with the units and descriptions of its fields (in FITS
    TUNITn and TCOMMn); complete or not at all."""
    path, sink = Path(path), io.BytesIO()
    if path.suffix == ".fits":
        fits_table(table).writeto(sink)
    elif path.suffix == ".parquet":
        pq.write_table(table, sink, compression="zstd")
    else:
        raise InputError(f"out: {str(path)!r} must end in .parquet or .fits")
    replace(path, sink.getbuffer())


def fits_table(table: pa.Table) -> "BinTableHDU":
    """A FITS table of a table of numbers, text, and lists of one length; int8, which FITS lacks, becomes int16."""
    from astropy.io import fits

    from jaxz.data.astropy_views import astropy_table, fits_unit

    told = {field.name: {k.decode(): v.decode() for k, v in (field.metadata or {}).items()} for field in table.schema}
    lists = {f.name: f.type.list_size for f in table.schema if pa.types.is_fixed_size_list(f.type)}
    made = astropy_table(table, {}, {name: Array("vector", "float32", (size,)) for name, size in lists.items()})
    for name in made.colnames:
        if made[name].dtype == np.int8:  # Astropy would write a logical, in which -1 is true
            made[name] = made[name].astype(np.int16)
        made[name].unit = fits_unit(told[name].get("unit", ""))
    hdu = fits.table_to_hdu(made)
    for n, name in enumerate(made.colnames, 1):
        if description := told[name].get("description"):
            hdu.header.set(f"TCOMM{n}", description, after=f"TFORM{n}")
    return hdu


def write_results(
    workdir: Path | str,
    arm: str,
    catalog: pa.Table,
    pdf: PDF,
    truths: Mapping[str, np.ndarray],
    spread: np.ndarray | None = None,
    *,
    intervals: Mapping[str, np.ndarray] | None = None,
    fits: bool = False,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, Score]]]:
    """Write predictions.parquet (and .fits), pdf.hdf5 and report.json into a run directory; returns the report.

    catalog: a row per predicted object, with `key` and what there is of CATALOG_COLUMNS; pdf: their densities [N];
    truths: {test set: [N] true redshifts, NaN outside of the set}; spread, intervals: as prediction_table takes them.
    report.json, {arm: {test set: {metric: {"value", "error"}}}}, is written last: where it stands, the others are
    complete.
    Errors are of a bootstrap over sky cells where `catalog` has ra and dec in enough of them, else over objects.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    table = prediction_table(catalog, pdf, truths, spread, intervals)
    scores, z_best = {}, np.concatenate([block.median() for block in pdf.blocks()])
    for name, truth in truths.items():
        rows = np.flatnonzero(np.isfinite(truth))
        there = [catalog[c].to_numpy()[rows] for c in ("ra", "dec") if c in catalog.column_names]
        cells = sky_cells(*there) if len(there) == 2 else None
        low, high = (table[end].to_numpy()[rows] for end in INTERVAL)
        scores[name] = evaluate_metrics(
            z_best[rows], truth[rows], pdf[rows], interval=(low, high), cells=cells, resamples=resamples, seed=seed
        )
    report = {arm: scores}
    write_catalog(workdir / "predictions.parquet", table)
    if fits:
        write_catalog(workdir / "predictions.fits", table)
    write_qp(workdir / "pdf.hdf5", pdf, {"key": np.array(table["key"].to_pylist(), dtype=str)})
    replace(workdir / "report.json", json.dumps(report, indent=1).encode())
    return report


def write_compute(workdir: Path, seconds: float, devices: str) -> None:
    """RUN/compute.json of a run that trains no network: what it has cost."""
    cost = {"steps": 0, "batch_size": 0, "images": 0, "seconds": seconds, "parameters": 0, "devices": devices}
    replace(workdir / "compute.json", json.dumps(cost, indent=1).encode())


def main_scores(name: str, scores: Mapping[str, Mapping[str, Score]]) -> list[str]:
    """A line a test set of an arm's scores {test set: {metric}}, for people: its sigma_mad and eta_15."""
    return [
        f"{name} on {test_set}: {', '.join(f'{metric} {shown(metrics[metric])}' for metric in ('sigma_mad', 'eta_15'))}"
        for test_set, metrics in scores.items()
    ]


def shown(metric: Score) -> str:
    """A value with its error; few objects have no error, none have no value."""
    if metric["value"] is None:
        return "unknown (no objects)"
    return f"{metric['value']:.4f}" + (f" +- {metric['error']:.4f}" if metric["error"] is not None else "")
