"""The table of runs, from files and from what squeue and sacct have printed."""

import json
import os
import shutil
import time

import pytest

from jaxz.errors import InputError
from launch import queue, status

SACCT = """7|PREEMPTED|3600|billing=8,cpu=96,gres/gpu=8,node=2
7|REQUEUED|1800|billing=8,cpu=96,gres/gpu=8,node=2
7|RUNNING|900|billing=8,cpu=96,gres/gpu=4,node=1
8_0|COMPLETED|60|cpu=2,node=1
8_[1-2]|PENDING|0|
70|COMPLETED|36000|gres/gpu=64"""
SQUEUE = """7|RUNNING|None|19:45:00
8_1|PENDING|Resources|1:00:00
8_2|PENDING|Dependency|1:00:00
70|PENDING|Priority|1:00:00"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Two workdirs that were submitted, a run and a sweep, with Slurm's words about them."""
    said = {"squeue": SQUEUE, "sacct": SACCT}
    monkeypatch.setattr(queue, "slurm", lambda command, *_: said[command])
    monkeypatch.chdir(tmp_path)
    for name, entry in {
        "run": {"job": "7", "what": "train", "runs": [f"{tmp_path}/run"]},
        "sweep": {"job": "8", "what": "train", "runs": [f"{tmp_path}/sweep/seed={n}" for n in range(3)]},
    }.items():
        (tmp_path / name / "slurm").mkdir(parents=True)
        (tmp_path / name / "slurm" / "jobs.jsonl").write_text(json.dumps(entry) + "\n")
    run = tmp_path / "run"
    (run / "config.json").write_text('{"train": {"steps": 1000, "batch_size": 64}}')
    (run / "perf.jsonl").write_text(
        '{"step": 390, "perf/images_per_s": 9.0}\n{"step": 400, "perf/images_per_s": 256.0}\n'
    )
    (run / "metrics.jsonl").write_text('{"step": 390, "loss": 2.0}\n{"step": 400, "loss": 1.25}\n{"step": 410, "lo')
    for step in (9, 400):
        (run / "checkpoints" / str(step)).mkdir(parents=True)
    os.utime(run / "checkpoints" / "400", (time.time() - 125,) * 2)
    return tmp_path


def test_a_run(site):
    [row] = status.rows([site / "run"])
    hours = (8 * 3600 + 8 * 1800 + 4 * 900) / 3600
    to_go = (1000 - 400) * 64 / 256  # seconds
    assert row == (
        "run", "7", "RUNNING (19:45:00)", "2", "400/1000", "256", f"{to_go // 60:.0f} min", f"{hours:.1f}",
        "400, 2 min ago", "loss 1.25",
    )  # fmt: skip


def test_a_sweep(site):
    found = [row[:4] for row in status.rows([site / "sweep"])]
    assert found == [
        ("sweep/seed=0", "8_0", "COMPLETED", "0"),
        ("sweep/seed=1", "8_1", "PENDING (Resources)", "?"),
        ("sweep/seed=2", "8_2", "PENDING (Dependency)", "?"),
    ]


def test_a_run_submitted_again_counts_the_hours_of_both(site):
    with open(site / "run" / "slurm" / "jobs.jsonl", "a") as file:
        file.write(json.dumps({"job": "70", "what": "train", "runs": [f"{site}/run"]}) + "\n")
    [row] = status.rows([site / "run"])
    assert float(row[7]) == 13.0 + 640


def test_watching_shows_what_is_new_until_ctrl_c(site, monkeypatch, capsys):
    def stopped():
        raise KeyboardInterrupt

    pauses = iter([lambda: (site / "run" / "metrics.jsonl").write_text('{"step": 420, "loss": 1.0}\n'), stopped])
    monkeypatch.setattr(status.time, "sleep", lambda seconds: next(pauses)())
    with pytest.raises(KeyboardInterrupt):
        status.watch([site / "run"])
    assert "420/1000" in capsys.readouterr().out


def test_runs_that_no_job_has_trained_are_told_by_their_files(site):
    """As of a folder of many runs, some without a training."""
    own, table = site / "own", site / "table"
    shutil.copytree(site / "run", own, ignore=shutil.ignore_patterns("slurm", "perf.jsonl"))
    table.mkdir()
    (table / "config.json").write_text('{"model": "gbt"}')
    rows = list(status.rows([own, site / "run", table]))
    assert [row[:2] for row in rows] == [("run", "7"), ("own", "none"), ("table", "none")]
    assert rows[1] == ("own", "none", "", "", "400/1000", "", "", "", "400, 2 min ago", "loss 1.25")
    assert not any(rows[2][2:])


def test_a_folder_that_was_not_submitted(site):
    with pytest.raises(InputError, match="has no slurm/jobs.jsonl; name a workdir that launch.slurm has submitted"):
        list(status.rows([site]))


@pytest.mark.parametrize(
    ("line", "file"),
    [('{"step": 4\x00', "metrics.jsonl"), ("[4]", "metrics.jsonl"), ('{"step": "4"}', "config.json or *.jsonl")],
    ids=["cut", "list", "text"],
)
def test_a_log_that_is_damaged_is_named_in_its_row_alone(site, line, file):
    shutil.copytree(site / "run", site / "other", ignore=shutil.ignore_patterns("slurm"))
    (site / "run" / "metrics.jsonl").write_text(line + "\n")
    damaged, other = status.rows([site / "run", site / "other"])
    assert damaged[:2] == ("run", "7")
    assert damaged[-1] == f"damaged: {file}"
    assert other[-1] == "loss 1.25"


def test_a_line_that_is_cut_short_is_named(site):
    (site / "slurm").mkdir()
    (site / "slurm" / "jobs.jsonl").write_text('{"job": "7", "wha')
    with pytest.raises(InputError, match="jobs.jsonl: a line is not JSON .*; mend or remove it"):
        list(status.rows([site]))
