"""What a run directory holds, as the report reads it: every part but config.json may be absent."""

import json
import math
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxz import files
from jaxz.errors import InputError
from jaxz.photoz.bootstrap import Estimate
from jaxz.photoz.metrics import Score
from jaxz.photoz.pdf import PDF, read_qp


@dataclass(frozen=True)
class Run:
    """One run directory. An arm of the comparison where it has scores or predictions."""

    name: str
    path: Path
    config: dict
    compute: dict
    scores: dict[str, dict[str, Score]]  # {test set: {metric: ...}}
    steps: np.ndarray  # [S] of metrics.jsonl
    losses: np.ndarray  # [S]
    predictions: dict[str, np.ndarray] = field(default_factory=dict)  # {column: [N]}
    pdf: PDF | None = None
    reconstructions: dict[str, np.ndarray] = field(default_factory=dict)
    parents: tuple["Run", ...] = ()  # the run it started from, that one's ...; each once
    dataset: str = ""  # that of the scores; without scores, that of the training
    seeds: tuple["Run", ...] = ()  # of an arm: this run and those that differ in their seed alone
    estimates: dict[str, dict[str, Estimate]] = field(default_factory=dict)  # {test set: {metric}}, alike for all arms

    def total(self, name: str) -> float:
        """A cost ("images", "seconds") of this run and of those it started from."""
        return sum(float(run.compute.get(name) or 0) for run in (self, *self.parents))

    @property
    def transductive(self) -> bool:
        """Whether it, or a run it started from, was trained on images of the test split too."""
        return any((run.config.get("data") or {}).get("transductive") for run in (self, *self.parents))

    def members(self, test_set: str) -> np.ndarray:
        """[M] rows of the predictions that belong to a test set and have a known redshift."""
        if f"test_{test_set}" not in self.predictions:
            return np.empty(0, int)
        return np.flatnonzero(self.predictions[f"test_{test_set}"] & np.isfinite(self.predictions["z_true"]))


def read_run(path: Path | str) -> Run:
    """Raises InputError for a directory that is not there, is no run, or holds a damaged file."""
    path = Path(path)
    name = path.resolve().name
    if not (path / "config.json").is_file():
        what = "no config.json in it" if path.is_dir() else "no such directory"
        raise InputError(f"RUN: {str(path)!r} is no run directory ({what}); give the --workdir of a run")
    config = read_config(path / "config.json")
    evaluated = read_json(path / "evaluated.json")
    steps, losses = read_losses(path / "metrics.jsonl")
    return Run(
        name,
        path,
        config,
        read_compute(path / "compute.json"),
        read_scores(path / "report.json", name),
        steps,
        losses,
        *read_predictions(path),
        read_reconstructions(path / "reconstructions.npz"),
        parents_of(config, {path.resolve()}),
        str(evaluated.get("dataset") or (config.get("data") or {}).get("path") or ""),
    )


def parents_of(config: dict, seen: set[Path]) -> tuple[Run, ...]:
    """The runs that a config's starts_of name, each followed by its own parents and there once, but for those `seen`,
    which grow; as far as they can be read: only their costs matter here."""
    parents: list[Run] = []
    for path in starts_of(config):
        if path not in seen and (path / "config.json").is_file():
            seen.add(path)
            config, nothing = read_config(path / "config.json"), np.empty(0)
            parents.append(Run(path.name, path, config, read_compute(path / "compute.json"), {}, nothing, nothing))
            parents += parents_of(config, seen)
    return tuple(parents)


def starts_of(config: dict) -> list[Path]:
    """The run that a config names by init.path, and the others that a correction of several (jaxz.correct) names."""
    named = [(config.get("init") or {}).get("path"), *config.get("others", [])]
    return [Path(str(path)).resolve() for path in named if path]


def read_json(path: Path) -> dict:
    """The object in a JSON file; empty where the file is absent."""
    return files.read_json(path, "this file of a run") if path.is_file() else {}


def is_number(value: object) -> bool:
    """Whether a value of a JSON file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def read_config(path: Path) -> dict:
    config = read_json(path)
    for group in ("data", "init"):
        if not isinstance(config.get(group, {}), dict):
            raise InputError(f"{path}: {group} is {config[group]!r}, not a group of fields; restore it from a copy")
    if not isinstance(config.get("others", []), list):
        raise InputError(f"{path}: others is {config['others']!r}, not a list of runs; restore it from a copy")
    return config


def read_compute(path: Path) -> dict:
    cost = read_json(path)
    for name in ("steps", "batch_size", "images", "seconds", "parameters"):
        if not is_number(cost.get(name, 0)):
            raise InputError(f"{path}: {name} is {cost[name]!r}, not a number; run that step again")
    return cost


def read_scores(path: Path, name: str) -> dict[str, dict[str, Score]]:
    """The scores of arm `name`; a run directory that was renamed still has one arm."""
    arms = read_json(path)
    for arm, sets in arms.items():
        if not are_scores(sets):
            raise InputError(f"{path}: {arm!r} does not hold metrics by test set; evaluate that run again")
    if name in arms:
        return arms[name]
    if len(arms) > 1:
        raise InputError(f"{path} holds arms {sorted(arms)} and not {name!r}; evaluate that run again")
    return next(iter(arms.values()), {})


def are_scores(sets: object) -> bool:
    """Whether it is {test set: {metric: {"value", "error"}}}, of numbers or None."""
    if not isinstance(sets, dict) or not all(isinstance(metrics, dict) for metrics in sets.values()):
        return False
    for metric in (metric for metrics in sets.values() for metric in metrics.values()):
        if not isinstance(metric, dict) or not metric:
            return False
        if not all(value is None or is_number(value) for value in (metric.get("value"), metric.get("error"))):
            return False
    return True


def read_losses(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Steps and losses of metrics.jsonl; a last line still being written is left out."""
    rows, lines = [], path.read_bytes().splitlines() if path.is_file() else []
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
            step, loss = row["step"], row["loss"]
            if not is_number(step) or not (loss is None or isinstance(loss, float) or is_number(loss)):
                raise TypeError
            rows.append((step, loss))
        except (ValueError, KeyError, TypeError):
            if number < len(lines) - 1:
                raise InputError(f"{path}, line {number + 1}: no object with step and loss; remove the line") from None
    steps, losses = zip(*rows, strict=True) if rows else ((), ())
    return np.array(steps, float), np.array([math.nan if x is None else x for x in losses], float)


def read_predictions(path: Path) -> tuple[dict[str, np.ndarray], PDF | None]:
    """The catalogue of predictions as columns, and p(z) in the same row order."""
    if not (path / "predictions.parquet").is_file():
        return {}, None
    try:
        table = pq.read_table(path / "predictions.parquet")
        pdf, ancil = read_qp(path / "pdf.hdf5") if (path / "pdf.hdf5").is_file() else (None, {})
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: its predictions cannot be read ({error}); evaluate that run again") from None
    columns = {name: np.asarray(table[name].to_numpy()) for name in table.column_names}
    check_columns(path / "predictions.parquet", columns)
    keys = columns["key"].astype(str)
    if pdf is not None and not (len(pdf) == len(keys) and np.array_equal(ancil.get("key", keys), keys)):
        raise InputError(f"{path}: pdf.hdf5 and predictions.parquet are of different objects; evaluate that run again")
    return columns, pdf


def check_columns(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Raises InputError unless the columns that the report needs are there, text, floats and booleans."""
    kinds = {"key": "O", "z_best": "f", "z_true": "f"} | {name: "b" for name in columns if name.startswith("test_")}
    for name, kind in kinds.items():
        if name not in columns or columns[name].dtype.kind != kind:
            what = f"is {columns[name].dtype}" if name in columns else "is missing"
            raise InputError(f"{path}: column {name!r} {what}; evaluate that run again")


def read_reconstructions(path: Path) -> dict[str, np.ndarray]:
    """image, reconstruction, hidden [n, C, H, W], observed [n, C] and bands [C], or nothing."""
    if not path.is_file():
        return {}
    try:
        with np.load(path) as file:
            found = {name: file[name] for name in ("image", "reconstruction", "hidden", "observed", "bands")}
        shape = found["image"].shape
        expected = dict.fromkeys(found, shape) | {"observed": shape[:2], "bands": shape[1:2]}
        if len(shape) != 4 or {name: values.shape for name, values in found.items()} != expected:
            raise ValueError("the shapes of its arrays do not fit")
        return found
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); evaluate that run again") from None
