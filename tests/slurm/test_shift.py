"""A training of shift-v1 as a job on a real Slurm, by a command that is killed, and whose job is cancelled."""

import time

import pytest

from benchmarks.shift import trainings
from jaxz.errors import InputError
from launch.status import read_jobs
from tests.slurm.lab import PROFILE, Run, call


def test_a_training_is_waited_for_again_and_goes_on_after_its_job_has_failed(lab, tmp_path):
    profile, workdir = tmp_path / "one.toml", tmp_path / "matched+weights_0"
    profile.write_text(PROFILE.format(tasks=1, partition="all", nodes='exclude = "jzn4"'))
    train = trainings.on_slurm(f"--profile {profile} --account abc@cpu --time 0:30:00")
    arguments = [lab.config, "--config.train.steps=2000", "--config.checkpoint.every=5"]
    killed = train(workdir, arguments)
    next(killed)
    killed.close()
    again = train(workdir, arguments)
    next(again)
    [entry] = read_jobs(workdir)
    Run(workdir, [entry["job"]]).saved(5)
    call("scancel", entry["job"])
    with pytest.raises(InputError, match=f"job {entry['job']} ended before step 2000; {workdir.parent}/"):
        for _ in again:
            time.sleep(0.5)
    steps = Run(workdir, []).step() + 5
    for _ in train(workdir, [*arguments[:1], f"--config.train.steps={steps}", *arguments[2:]]):
        time.sleep(0.5)
    jobs = [one["job"] for one in read_jobs(workdir)]
    assert jobs[0] == entry["job"] and len(jobs) == 2
    assert f"ended with 0 at step {steps}" in Run(workdir, jobs).log()
