"""What is asked of Slurm, in which order and with which conditions; a Slurm that takes everything stands in."""

import json
import re

import pytest

from jaxz.errors import InputError
from launch import preflight, queue, slurm

USUAL = ["--profile", "jean_zay_h100", "--account", "abc", "--python", "python"]
TRAIN = ["--", "--config=configs/pretrain_mae.py", "--config.data.path=d"]


@pytest.fixture
def asked(monkeypatch):
    """The commands, with the name of the job where there is a script."""
    commands: list[list[str]] = []

    def take(command, *arguments, script=None):
        name = re.findall("--job-name=(.*)", script or "")
        commands.append([command, *arguments, *name])
        return {"sbatch": f"{100 + len(commands)};cluster\n", "squeue": "101|RUNNING|None|1:00\n"}.get(command, "")

    monkeypatch.setattr(queue, "slurm", take)
    monkeypatch.setattr(preflight, "check", lambda request: None)
    return commands


def dependency(asked: list[list[str]]) -> list[list[str]]:
    return [words[2:] for words in asked if words[:2] == ["sbatch", "--parsable"]]


def test_one_command_submits_what_comes_before_too(asked, tmp_path, capsys):
    data = ["--stage", "a", "b", "--convert=--survey=s --out=d", "--after", "7"]
    slurm.main(["submit", *USUAL, *data, *TRAIN, f"--workdir={tmp_path}/run"])
    assert [words[-1] for words in asked[:4]] == ["stage_run", "convert_run", "convert_run", "run"]
    assert all(words[1] == "--test-only" for words in asked[:4])
    kill = "--kill-on-invalid-dep=yes"
    assert dependency(asked) == [
        ["--dependency=afterok:7", kill, "stage_run"],
        ["--dependency=afterok:105", kill, "convert_run"],
        ["--dependency=afterok:106", kill, "convert_run"],
        ["--dependency=afterok:107", kill, "run"],
    ]
    assert capsys.readouterr().out.splitlines()[-1] == "108 train, after 107"
    entries = [json.loads(line) for line in (tmp_path / "run/slurm/jobs.jsonl").read_text().splitlines()]
    assert [(entry["job"], entry["what"]) for entry in entries] == [
        ("105", "stage"), ("106", "convert"), ("107", "merge"), ("108", "train"),
    ]  # fmt: skip
    assert entries[-1]["runs"] == [f"{tmp_path}/run"]
    assert (tmp_path / "run/slurm/train.sh").read_text().startswith("#!/bin/bash\n")


def test_options_of_the_training_itself_reach_the_script(asked, tmp_path):
    slurm.main(["submit", *USUAL, *TRAIN, f"--workdir={tmp_path}/run", "--allow_config_change"])
    script = (tmp_path / "run/slurm/train.sh").read_text()
    assert "--config.data.path=d --allow_config_change --workdir=" in script


def test_a_chain_is_of_singletons(asked, tmp_path):
    slurm.main(["submit", *USUAL, "--chain", "3", *TRAIN, f"--workdir={tmp_path}/run"])
    assert dependency(asked) == [["--dependency=singleton", "--kill-on-invalid-dep=yes", "run"]] * 3


def test_a_trial_submits_nothing_and_leaves_nothing(asked, tmp_path):
    slurm.main(["submit", "--test-only", *USUAL, *TRAIN, f"--workdir={tmp_path}/run"])
    assert not dependency(asked) and not (tmp_path / "run").exists()


def test_a_workdir_is_not_submitted_twice(asked, tmp_path):
    for _ in range(2):  # the first becomes 102, which is not in the queue
        slurm.main(["submit", *USUAL, *TRAIN, f"--workdir={tmp_path}/run"])
    (tmp_path / "run/slurm/jobs.jsonl").write_text('{"job": "101", "what": "train", "runs": []}\n')
    with pytest.raises(InputError, match="has job 101 in the queue; wait for it, or `python -m launch.slurm cancel"):
        slurm.main(["submit", *USUAL, *TRAIN, f"--workdir={tmp_path}/run"])
    slurm.main(["submit", "--after", "101", *USUAL, *TRAIN, f"--workdir={tmp_path}/run"])


def test_cancel_takes_what_is_left(asked, tmp_path, capsys):
    slurm.main(["submit", *USUAL, *TRAIN, f"--workdir={tmp_path}/run"])
    (tmp_path / "run/slurm/jobs.jsonl").write_text('{"job": "100"}\n{"job": "101"}\n')
    slurm.main(["cancel", f"{tmp_path}/run"])
    assert asked[-1] == ["scancel", "101"] and "cancelled: 101" in capsys.readouterr().out


def test_render_prints_and_leaves_nothing(tmp_path, capsys):
    slurm.main(["render", *USUAL, "--stage", "a", "b", *TRAIN, f"--workdir={tmp_path}/run"])
    printed = capsys.readouterr().out
    assert printed.index("# ==== stage ====") < printed.index("# ==== train ====") and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["submitt"], "'submitt' is no action. Did you mean 'submit'?"),
        (["status", "nothing"], "'nothing' has no slurm/jobs.jsonl"),
        (["render", *USUAL, "--", "--config=x.py", "--workdir=r"], "--config: 'x.py' is not a file"),
        (
            ["render", *USUAL, "--exclude=n7", *TRAIN],
            "'--exclude=n7' is not known; an option of sbatch is given as",
        ),
        (["render", *USUAL, "--nodez=2", *TRAIN, "--workdir=r"], "Did you mean '--nodes'?"),
    ],
)
def test_what_has_no_sense_is_refused(argv, message):
    with pytest.raises(InputError) as refusal:
        slurm.main(argv)
    assert message in str(refusal.value)


def test_without_slurm_it_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="squeue: is not here; run this on a login node of the cluster"):
        queue.waiting_and_running(["1"])
