"""What a run directory holds, as the report reads it: every part but config.json may be absent."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxz.errors import InputError
from jaxz.photoz.pdf import PDF, read_qp


@dataclass(frozen=True)
class Run:
    """One run directory. An arm of the comparison where it has scores or predictions."""

    name: str
    path: Path
    config: dict
    compute: dict
    scores: dict[str, dict[str, dict]]  # {test set: {metric: {"value", "error"}}}
    steps: np.ndarray  # [S] of metrics.jsonl
    losses: np.ndarray  # [S]
    predictions: dict[str, np.ndarray] = field(default_factory=dict)  # {column: [N]}
    pdf: PDF | None = None
    reconstructions: dict[str, np.ndarray] = field(default_factory=dict)
    parents: tuple["Run", ...] = ()  # the run it started from, and that one's ...

    def total(self, name: str) -> float:
        """A cost ("images", "seconds") of this run and of those it started from."""
        return sum(float(run.compute.get(name) or 0) for run in (self, *self.parents))

    @property
    def test_sets(self) -> list[str]:
        return list(self.scores)

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
    config = read_json(path / "config.json")
    steps, losses = read_losses(path / "metrics.jsonl")
    return Run(
        name,
        path,
        config,
        read_json(path / "compute.json"),
        read_scores(path / "report.json", name),
        steps,
        losses,
        *read_predictions(path),
        read_reconstructions(path / "reconstructions.npz"),
        parents_of(config, {path.resolve()}),
    )


def parents_of(config: dict, seen: set[Path]) -> tuple[Run, ...]:
    """The runs named by init.path, nearest first, as far as they can be read; only their costs matter here."""
    start = (config.get("init") or {}).get("path")
    path = Path(start).resolve() if start else None
    if path is None or path in seen or not (path / "config.json").is_file():
        return ()
    config, nothing = read_json(path / "config.json"), np.empty(0)
    parent = Run(path.name, path, config, read_json(path / "compute.json"), {}, nothing, nothing)
    return (parent, *parents_of(config, seen | {path}))


def read_json(path: Path) -> dict:
    """The object in a JSON file; empty where the file is absent."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); run that step again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not an object; run that step again")
    return content


def read_scores(path: Path, name: str) -> dict:
    """The scores of arm `name`; a run directory that was renamed still has one arm."""
    arms = read_json(path)
    if name in arms:
        return arms[name]
    if len(arms) > 1:
        raise InputError(f"{path} holds arms {sorted(arms)} and not {name!r}; evaluate that run again")
    return next(iter(arms.values()), {})


def read_losses(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Steps and losses of metrics.jsonl; a last line still being written is left out."""
    rows = []
    for number, line in enumerate(path.read_text().splitlines() if path.is_file() else ()):
        try:
            row = json.loads(line)
            rows.append((row["step"], row["loss"]))
        except (ValueError, KeyError, TypeError):
            if number < len(path.read_text().splitlines()) - 1:
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
        raise InputError(f"{path}: its predictions cannot be read ({error}); predict again") from None
    columns = {name: np.asarray(table[name].to_numpy()) for name in table.column_names}
    if pdf is not None and not np.array_equal(ancil.get("key", columns["key"]), columns["key"].astype(str)):
        raise InputError(f"{path}: pdf.hdf5 and predictions.parquet are of different objects; predict again")
    return columns, pdf


def read_reconstructions(path: Path) -> dict[str, np.ndarray]:
    """image, reconstruction, hidden [n, C, H, W], observed [n, C] and bands [C], or nothing."""
    if not path.is_file():
        return {}
    with np.load(path) as file:
        return {name: file[name] for name in file.files}
