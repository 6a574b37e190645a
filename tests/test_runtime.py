"""How several processes are told to be so, and what is said where they cannot be."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxz import errors, evaluate, predict, runtime
from jaxz.errors import InputError

ROOT = Path(__file__).parents[1]
SLURM = dict(SLURM_JOB_ID="7", SLURM_STEP_NODELIST="n[1-2]", SLURM_NTASKS="4", SLURM_PROCID="1", SLURM_LOCALID="1")
OURS = {runtime.ADDRESS: "127.0.0.1:1234", runtime.COUNT: "2", runtime.ID: "1"}


@pytest.mark.parametrize(
    ("environ", "arguments"),
    [
        ({}, {}),
        (SLURM, {"cluster_detection_method": "slurm"}),
        (SLURM | {runtime.ADDRESS: "n1:1234"}, {"cluster_detection_method": "slurm"}),
        (SLURM | {"SLURM_NTASKS": "1"}, {}),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, {}),  # in an allocation, but not in a step of it
        (OURS, {"num_processes": 2, "process_id": 1, "cluster_detection_method": "deactivate"}),
        (OURS | {runtime.COUNT: "1", runtime.ID: "0"}, {}),
    ],
)
def test_the_environment_says_how_many_processes_there_are(environ, arguments):
    assert runtime.processes(environ) == arguments


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({runtime.ADDRESS: "n1:1234"}, "JAXZ_PROCESS_COUNT: is not set"),
        ({runtime.COUNT: "2", runtime.ID: "0"}, "JAX_COORDINATOR_ADDRESS: is not set"),
        (OURS | {runtime.COUNT: "two"}, "JAXZ_PROCESS_COUNT: 'two' is not a whole number"),
        (OURS | {runtime.ID: "2"}, "JAXZ_PROCESS_ID: 2 is not below JAXZ_PROCESS_COUNT 2; count from 0"),
        (OURS | {runtime.ADDRESS: "n1"}, "JAX_COORDINATOR_ADDRESS: 'n1' is not host:port"),
        (SLURM | OURS, "JAXZ_PROCESS_COUNT: 2 is not SLURM_NTASKS 4"),
    ],
)
def test_contradictions_are_refused(environ, message):
    with pytest.raises(InputError, match=message):
        runtime.processes(environ)


@pytest.mark.parametrize("process", [0, 1])
def test_who_waits_in_vain_says_so(process, monkeypatch):
    for name, value in (OURS | {runtime.ADDRESS: "127.0.0.1:9", runtime.ID: str(process)}).items():
        monkeypatch.setenv(name, value)
    code = "from jaxz import runtime; runtime.start(timeout=2)"
    if process == 0:  # with a port that it can listen at
        import socket

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setenv(runtime.ADDRESS, f"127.0.0.1:{free.getsockname()[1]}")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == errors.FAILED and "Traceback" not in done.stderr
    assert "failed: the processes did not find each other at JAX_COORDINATOR_ADDRESS" in done.stderr


@pytest.mark.parametrize("program", [predict, evaluate])
def test_predicting_in_several_processes_is_refused(program, monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="runs in one process; start it once, under Slurm with srun --ntasks=1"):
        program.main(["--workdir=x", "--dataset=y", *(["--out=z.parquet"] if program is predict else [])])


REQUEUED = {"SLURM_JOB_ID": "7", runtime.RESTARTS: "1"}


def test_a_requeued_job_takes_over_and_its_former_life_learns_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "LOCK_PATIENCE", 0.1)
    monkeypatch.setattr(runtime.time, "sleep", lambda _: None)
    with runtime.Lock(tmp_path / ".lock", {}) as former:
        with pytest.raises(InputError, match="another process is training in"):
            runtime.Lock(tmp_path / ".lock", {})
        former.check()
        with runtime.Lock(tmp_path / ".lock", REQUEUED) as newer:
            newer.check()
            with pytest.raises(InputError, match="another process has taken over"):
                former.check()


def test_a_requeued_job_waits_for_its_former_life_to_end(tmp_path, monkeypatch):
    former = runtime.Lock(tmp_path / ".lock", {})
    monkeypatch.setattr(runtime.time, "sleep", lambda _: former.close())
    with runtime.Lock(tmp_path / ".lock", REQUEUED), pytest.raises(InputError, match="another process is training in"):
        runtime.Lock(tmp_path / ".lock", {})


def test_other_devices_than_the_job_has_are_refused():
    runtime.check_devices({})
    runtime.check_devices({runtime.DEVICES: "1"})
    with pytest.raises(InputError, match="JAXZ_DEVICES: 16 are expected, and jax finds 1 of 1 process"):
        runtime.check_devices({runtime.DEVICES: "16"})


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2"])
def test_a_signal_before_the_first_step_stops_at_it_and_one_after_the_last_is_too_late(name):
    code = f"""
import os, signal
from jaxz import errors, runtime
class Last:
    def __del__(self, kill=os.kill, process=os.getpid()):  # when Python has taken its handlers away
        kill(process, {int(signal.Signals[name])})
last = Last()
def main(argv):
    os.kill(os.getpid(), signal.{name})
    with runtime.StopSignal(None) as signals:
        told = signals.agreed()
    os.kill(os.getpid(), signal.{name})
    raise errors.Stopped(told)
runtime.run(main)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (errors.REQUEUE, f"stopped: {name}")
