"""The scripts: golden ones, the shell's view of them, and the rule of requeueing, run with stand-ins for Slurm."""

import subprocess

import pytest

from jaxz.errors import InputError
from launch.render import train_script
from launch.request import make_request, parser, points, seconds_of
from tests.launch.requests import GOLDEN, PROFILES, TRAIN, golden, request


@pytest.mark.parametrize("name", golden())
def test_scripts_are_the_golden_ones(name):
    assert golden()[name] == (GOLDEN / f"{name}.sh").read_text(), "if it should change: python -m tests.launch.requests"


def test_every_golden_script_is_rendered_and_is_bash():
    assert {path.stem for path in GOLDEN.glob("*.sh")} == golden().keys() >= {*PROFILES}
    for path in GOLDEN.glob("*.sh"):
        subprocess.run(["bash", "-n", path], check=True)


STAND_INS = {
    "srun": """
        for last; do :; done
        mkdir -p "${last#--workdir=}/checkpoints/$SAVES"
        if [ "$ASKED" ]; then trap : USR2; /bin/sleep 0.3; kill -USR2 $PPID; /bin/sleep 0.3; fi
        exit $CODE""",
    "scontrol": """case "$*" in
        show\\ hostnames*) echo n1 ;;
        show\\ job*) echo "   Requeue=1 Restarts=$NOW BatchFlag=1" ;;
        requeue*) echo requeued >>"$TOLD" ;;
    esac""",
    "sleep": "exit 0",
    "module": "exit 0",
}


@pytest.fixture
def job(tmp_path):
    """job(code, saves, now): run the script with a training that saves that step and ends with that code."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    run = tmp_path / "run"
    (run / "slurm").mkdir(parents=True)
    made = request("cpu", train=[*TRAIN, f"--workdir={run}"])
    script = train_script(made, 1000).replace("cd /work/jaxz", f"cd {tmp_path}")

    def start(code: int, saves: int, now: int = 0, asked: str = "") -> tuple[int, int]:
        told = tmp_path / "told"
        told.unlink(missing_ok=True)
        environ = {"PATH": f"{folder}:/usr/bin:/bin", "CODE": str(code), "SAVES": str(saves), "NOW": str(now)}
        environ |= {
            "ASKED": asked,
            "TOLD": str(told),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n[1-4]",
            "SLURM_JOB_NUM_NODES": "4",
        }
        environ |= {"SLURM_CPUS_PER_TASK": "8"}
        done = subprocess.run(["bash", "-c", script], env=environ, capture_output=True, text=True, timeout=20)
        assert done.stderr == ""
        return done.returncode, told.exists()

    return start


def test_a_stop_after_a_save_is_requeued_without_end(job):
    assert [job(75, step) for step in (10, 20, 30, 40, 50, 60)] == [(75, True)] * 6


@pytest.mark.parametrize("code", [75, 140, 143])
def test_a_stop_before_the_first_step_is_requeued_three_times(job, code):
    assert [job(code, 0)[1] for _ in range(5)] == [True, True, True, False, False]


@pytest.mark.parametrize("code", [1, 134, 137])
def test_a_failure_is_requeued_three_times_and_only_after_a_checkpoint(job, code):
    assert [job(code, step)[1] for step in (0, 10, 10, 20, 30, 40)] == [False, True, False, True, True, False]


def test_who_has_saved_when_asked_may_end_in_any_way(job):
    assert [job(137, step, asked="yes") for step in (10, 20, 30, 40, 50)] == [(137, True)] * 5
    assert job(0, 60, asked="yes") == (0, False)


@pytest.mark.parametrize("code", [0, 2])
def test_an_end_and_bad_input_are_not_requeued(job, code):
    assert job(code, 10) == (code, False)


def test_a_former_life_does_not_requeue_the_present_one(job):
    assert job(75, 10, now=1) == (75, False)


def test_points_are_the_product_of_the_values():
    found = [(point.name, point.overrides) for point in points(["seed=0,1", "data.where=z > 1"])]
    assert found == [
        ("seed=0,where=z---1", ("--config.seed=0", "--config.data.where=z > 1")),
        ("seed=1,where=z---1", ("--config.seed=1", "--config.data.where=z > 1")),
    ]
    assert [point.name for point in points([])] == [""]


@pytest.mark.parametrize(("text", "seconds"), [("20:00:00", 72000), ("1-00:00:30", 86430), ("100:00:00", 360000)])
def test_times_are_slurms(text, seconds):
    assert seconds_of(text) == seconds


def test_nodes_gpus_and_lead_follow_the_request():
    more = ["--option", "exclusive", "--option", "comment=a #b"]
    script = train_script(
        request("jean_zay_h100", "--nodes", "2-4", "--gpus-per-node", "2", "--time", "0:10:00", *more), 1
    )
    for line in (
        "--exclusive",
        "--comment='a #b'",
        "--nodes=2-4",
        "--ntasks-per-node=2",
        "--gres=gpu:2",
        "--signal=B:USR2@200",
    ):
        assert f"#SBATCH {line}\n" in script
    assert "JAXZ_DEVICES=$((SLURM_JOB_NUM_NODES * 2))" in script


WRONG = [
    (["--nodes", "4-2"], "--nodes: '4-2' must be a number, or LEAST-MOST such as 2-4"),
    (["--gpus-per-node", "5"], "--gpus-per-node: 5 must be from 1 to the 4 of jean_zay_h100"),
    (["--time", "20h"], "--time: '20h' must be [D-]HH:MM:SS, of at least a minute, such as 20:00:00"),
    (["--profile", "jean_zay_h10"], "--profile: .* cannot be read .* Did you mean 'jean_zay_h100'?"),
    (["--after", "me"], "--after: 'me' must be the number of a job"),
    (
        ["--option", "comment=a\nrm -r b"],
        "'comment=a\\nrm -r b' holds a character that cannot be printed; leave it out",
    ),
    (["--array", "seed"], "--array: 'seed' must be FIELD=VALUE,VALUE,... such as seed=0,1,2"),
    (["--array", "seed=1,1"], "--array: seed=1,1 names a run twice; leave one out"),
    (["--array", "seed=1,2", "--chain", "2"], "--chain: an array has none"),
    (
        ["--profile", "gpu", "--convert=--out=d"],
        "--convert: gpu does not say where; add [data.convert] to the profile",
    ),
    (["--convert", "--out 'x"], "--convert: \"--out 'x\" is not a command's arguments"),
]


@pytest.mark.parametrize(("ours", "message"), WRONG)
def test_wrong_requests_are_refused(ours, message):
    with pytest.raises(InputError) as refusal:
        make_request(parser().parse_args(["--profile", "jean_zay_h100", *ours]), TRAIN)
    for part in message.split(".*"):
        assert part.strip() in str(refusal.value)


@pytest.mark.parametrize(
    ("train", "message"),
    [(["--config=x.py"], "--workdir: is missing"), (["--workdir=a b"], "--workdir: 'a b' holds ' '")],
)
def test_a_workdir_is_needed_and_has_a_plain_name(train, message):
    with pytest.raises(InputError, match=message):
        request(train=train)
