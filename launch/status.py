"""How runs on Slurm stand: a table of their directories, squeue and sacct."""

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Column, Table

from jaxz.errors import InputError
from jaxz.files import read_json
from launch import queue

COLUMNS = ("run", "job", "state", "restarts", "step", "samples/s", "to go", "GPU h", "checkpoint", "last metric")
PAUSE = 15  # seconds
WIDE = 200  # columns of text where there is no terminal


def show(runs: list[Path]) -> None:
    console().print(table(runs))


def watch(runs: list[Path]) -> None:
    """Until Ctrl-C."""
    with Live(table(runs), console=console(), auto_refresh=False) as live:
        while True:
            time.sleep(PAUSE)
            live.update(table(runs), refresh=True)


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDE)


def table(runs: list[Path]) -> Table:
    made = Table(*(Column(name, no_wrap=True) for name in COLUMNS), box=None, pad_edge=False)
    for row in rows(runs):
        made.add_row(*map(escape, row))
    return made


def rows(folders: list[Path]) -> Iterator[tuple[str, ...]]:
    """A row for every run, those of a sweep each, and for every job that made data for it; of runs that no job has
    trained, at the end, what their files say. A damaged file is named in its run's row alone."""
    alone = [run for run in folders if (run / "config.json").exists() and not jobs_of(run).exists()]
    entries = [entry for folder in folders if folder not in alone for entry in read_jobs(folder)]
    jobs = [entry["job"] for entry in entries]
    queued, lives = queue.waiting_and_running(jobs), queue.accounts(jobs)
    runs: dict[str, list[str]] = {}  # and the jobs of each
    for entry in entries:
        for n, run in enumerate(entry["runs"]):
            runs.setdefault(run, []).append(f"{entry['job']}_{n}" if entry["runs"][1:] else entry["job"])
        if not entry["runs"]:
            yield (entry["what"], *of_jobs([entry["job"]], queued, lives)[:3], *[""] * (len(COLUMNS) - 4))
    runs |= {str(run): [] for run in alone}
    for run, names in runs.items():
        job, state, restarts, hours = of_jobs(names, queued, lives) if names else ("none", "", "", "")
        try:
            step, rate, left, checkpoint, metric = of_files(Path(run))
        except (InputError, KeyError, TypeError, ValueError) as error:  # the others: JSON, but not what a run writes
            step = rate = left = checkpoint = "?"
            file = (
                Path(str(error).partition(":")[0]).name if isinstance(error, InputError) else "config.json or *.jsonl"
            )
            metric = f"damaged: {file}"
        yield os.path.relpath(run), job, state, restarts, step, rate, left, hours, checkpoint, metric


def of_jobs(jobs: list[str], queued: dict, lives: list[dict]) -> tuple[str, str, str, str]:
    """The job that matters, its state, restarts, and the GPU hours of all lives of all jobs of a run.

    queued, lives: as launch.queue gives them."""
    own = [life for life in lives if any(belongs(life["job"], job) for job in jobs)]
    current = next((name for name in queued if any(belongs(name, job) for job in jobs)), jobs[-1])
    last = [life for life in own if life["job"] == current or belongs(life["job"], current)]
    state = last[-1]["state"].partition(" ")[0] if last else "?"
    if current in queued:
        waits = queued[current]["state"] == "PENDING"
        state = f"{queued[current]['state']} ({queued[current]['reason' if waits else 'left']})"
    hours = sum(int(life["seconds"]) * gpus(life["tres"]) for life in own) / 3600
    return current, state, str(max(0, len(last) - 1)) if last else "?", f"{hours:.1f}" if lives else "?"


def belongs(name: str, job: str) -> bool:
    """Whether a job of squeue or sacct is `job`, or a place in the array that it is."""
    return name == job or name.startswith(f"{job}_")


def gpus(tres: str) -> int:
    """The GPUs in "cpu=96,gres/gpu=4,node=1"."""
    found = re.search(r"gres/gpu=(\d+)", tres)
    return int(found[1]) if found else 0


def of_files(run: Path) -> tuple[str, str, str, str, str]:
    """Step of steps, samples a second, time to go, the age of the newest checkpoint and the last metric of a run."""
    config = read_json(run / "config.json", "the run's config") if (run / "config.json").exists() else {}
    if "train" not in config:
        return "", "", "", "", ""
    train = config["train"]
    last = last_line(run / "metrics.jsonl")
    step, steps = last.get("step", 0), train["steps"]
    speed = last_line(run / "perf.jsonl").get("perf/images_per_s")
    rate = f"{speed:,.0f}" if speed else ""
    left = duration((steps - step) * train["batch_size"] / speed) if speed else ""
    saved = [path for path in run.glob("checkpoints/*") if path.name.isdecimal()]
    newest = max(saved, key=lambda path: int(path.name), default=None)
    age = f"{newest.name}, {duration(time.time() - newest.stat().st_mtime)} ago" if newest else "none"
    return f"{step}/{steps}", rate, left, age, f"loss {last['loss']:.4g}" if "loss" in last else ""


def last_line(path: Path) -> dict:
    """The last whole line of a metrics.jsonl or perf.jsonl; {} without one. Raises InputError for a damaged one."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    try:
        last = json.loads(lines[-1]) if lines else {}
    except ValueError as error:
        raise InputError(f"{path.name}: its last line is not JSON ({error}); remove it") from None
    if not isinstance(last, dict):
        raise InputError(f"{path.name}: its last line is no JSON object; remove it")
    return last


def duration(seconds: float) -> str:
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{hours} h {minutes:02d}" if hours else f"{minutes} min" if minutes else f"{int(seconds)} s"


def jobs_of(folder: Path) -> Path:
    """What was submitted for a workdir."""
    return folder / "slurm" / "jobs.jsonl"


def read_jobs(folder: Path) -> list[dict]:
    """What was submitted for a workdir, oldest first. Raises InputError where nothing was."""
    try:
        return [json.loads(line) for line in jobs_of(folder).read_text().splitlines()]
    except OSError:
        raise InputError(
            f"{str(folder)!r} has no slurm/jobs.jsonl; name a workdir that launch.slurm has submitted"
        ) from None
    except ValueError as error:  # of JSON, of UTF-8
        raise InputError(f"{jobs_of(folder)}: a line is not JSON ({error}); mend or remove it") from None
