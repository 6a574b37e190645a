"""Trainings on a real Slurm: real processes, nodes, signals, preemption, dead nodes; nothing is lost, all ends well.

Every scenario is a function that runs beside the others, since most of its time is waiting; the tests look at what they
leave behind. A training that something is to happen to waits for it at some step, so that no scenario hangs on the
speed of the machine.
"""

import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jaxz import errors, train
from launch.status import rows as status_rows
from tests.data_tools.survey_files import write_survey
from tests.launch.requests import golden
from tests.slurm.lab import Lab, Run, call, until

STEPS = 20
LONG = 230  # steps of 0.8 s, of which a life of four minutes does a part
TWO = ("--nodes", "2")
LIMIT = ("--time", "0:04:00")
jzn4 = threading.Lock()  # for scenarios that need that node alone


def plain(lab: Lab) -> Run:
    """2 nodes x 2 tasks, without a break."""
    run = lab.submit("plain", *TWO, tasks=2)
    assert run.end() == "COMPLETED"
    return run


def unbroken(lab: Lab) -> Run:
    run = lab.submit("unbroken", *TWO, train=(f"--config.train.steps={LONG}",))
    assert run.end() == "COMPLETED"
    return run


def requeued(lab: Lab) -> Run:
    """As before, with the signal of the time limit, twice sent by hand, then by Slurm."""
    run = lab.submit(
        "requeued", *TWO, *LIMIT, train=(f"--config.train.steps={LONG}",), sleep=[60, 60, 0.8], slow_from=6
    )
    for life, step in enumerate((4, 12)):
        run.restarted(life)
        run.at(step)
        run.stop()
    assert run.end() == "COMPLETED"
    return run


def preempted(lab: Lab) -> tuple[Run, int]:
    """By a job of a higher partition that wants the node; and the step done then."""
    with jzn4:
        run = lab.submit(
            "preempted", partition="lowprio", nodes="jzn4", only=True, tasks=2, sleep=[60, 0], slow_from=11
        )
        run.at(9)
        higher = ["--partition=all", "--nodelist=jzn4", "--exclusive", "--account=abc@cpu", "--wrap=sleep 1"]
        call("sbatch", f"--output={lab.folder}/higher.log", *higher)
        run.restarted(1)
        before = run.log().split("ended with ")[1]
        assert run.end() == "COMPLETED"
    return run, int(before.split(" at step ")[1].split()[0])


def cut_off(lab: Lab) -> Run:
    """The network of the only node is cut: its processes live on beside those of the next life."""
    with jzn4:
        run = lab.submit("cut_off", nodes="jzn[1-3]", tasks=2, sleep=[15, 0], slow_from=10)
        run.saved(7)
        call("ip", "link", "set", "sllab4", "down")
        try:
            until(lambda: run.restarts() == 1, "the end of the cut node's job")
            call("scontrol", "update", f"JobId={run.job}", "ExcNodeList=")
            assert run.end() == "COMPLETED"
        finally:
            call("ip", "link", "set", "sllab4", "up")
        until(lambda: call("sinfo", "-hN", "-n", "jzn4", "-p", "all", "-o", "%t").strip() == "idle", "jzn4's return")
    return run


def failing(lab: Lab, name: str, act, **options) -> tuple[Run, float]:
    """A training of which one task fails in some way after a checkpoint; and the seconds until all had ended."""
    run = lab.submit(name, *TWO, sleep=[15, 0], slow_from=10, **options)
    run.saved(7)
    act(run)
    began = time.monotonic()
    until(lambda: "ended with" in run.log(), "the end of the step")
    took = time.monotonic() - began
    assert run.end() == "COMPLETED"
    return run, took


def killed(lab: Lab) -> tuple[Run, float]:
    return failing(lab, "killed", lambda run: run.signal(1, signal.SIGKILL))


def raising(lab: Lab) -> tuple[Run, float]:
    def fall(run: Run) -> None:
        until(lambda: "process 1 alone" in run.log(1), "the failure of process 1")

    return failing(lab, "raising", fall, **{"raise": [11, 1]})


def stopped(lab: Lab) -> tuple[Run, float]:
    return failing(lab, "stopped", lambda run: run.signal(1, signal.SIGSTOP))


def cancelled(lab: Lab) -> Run:
    """And gone on with by another number of nodes."""
    run = lab.submit("cancelled", *TWO, sleep=[60], slow_from=10)
    run.saved(7)
    call("scancel", run.job)
    assert run.end() == "CANCELLED"
    time.sleep(15)  # in which it could be requeued
    assert run.state() == "CANCELLED"
    again = lab.submit("cancelled", "--nodes", "1")
    assert again.end() == "COMPLETED"
    return again


def shrunk(lab: Lab) -> Run:
    """Requeued to fewer nodes."""
    run = lab.submit("shrunk", *TWO, partition="closing", sleep=[60, 0], slow_from=6)
    run.at(4)
    call("scontrol", "update", "PartitionName=closing", "State=DOWN")  # so that it does not start again at once
    run.stop()
    until(lambda: run.state() == "PENDING", "the requeue")
    call("scontrol", "update", f"JobId={run.job}", "NumNodes=1", "NumTasks=1")
    call("scontrol", "update", "PartitionName=closing", "State=UP")
    assert run.end() == "COMPLETED"
    return run


def sweep(lab: Lab) -> Run:
    """The last of the array, whose number is that of the array, is requeued, alone."""
    points = ("--array", "seed=0,1", "--array", "optim.lr=1e-3,3e-4")
    run = lab.submit("sweep", *points, sleep=[20, 0], slow_from=3, train=("--config.train.steps=5",))
    last = Run(run.workdir / "seed=1,lr=3e-4", [f"{run.job}_3"])
    last.at(1)
    last.stop()
    until(lambda: not call("squeue", "-h", "--me", "-j", run.job).strip(), "the end of the sweep")
    return run


def chain(lab: Lab) -> list[Run]:
    run = lab.submit("chain", "--chain", "3", sleep=[60], slow_from=6)
    links = [Run(run.workdir, [job]) for job in run.jobs]
    for link, step in zip(links[:2], (4, 12), strict=True):
        until(lambda link=link: link.state() == "RUNNING", "a link of the chain")
        link.at(step)
        link.stop()
        link.end()
    links[2].end()
    return links


def converted(lab: Lab) -> Run:
    """A catalogue is copied, converted in two parts, merged and trained on, by one command."""
    tiles = lab.folder / "tiles"
    write_survey(tiles)
    out, staged = lab.folder / "made", lab.folder / "staged"
    convert = f"--survey={tiles}/survey.toml --catalog={staged}/catalog.fits --images={staged} --out={out} --size=16"
    run = lab.submit(
        "converted", "--stage", str(tiles), str(staged), f"--convert={convert}", "--parts", "2", "--python",
        sys.executable, train=(f"--config.data.path={out}", "--config.train.steps=3"),
    )  # fmt: skip
    assert run.end() == "COMPLETED"
    return run


# The long ones first.
SCENARIOS = (
    *(requeued, cut_off, stopped, shrunk, plain, killed, raising),
    *(cancelled, chain, sweep, converted, unbroken, preempted),
)


@pytest.fixture(scope="module")
def left(lab):
    """{name: what a scenario leaves behind, in time}."""
    with ThreadPoolExecutor(4) as pool:
        yield {scenario.__name__: pool.submit(scenario, lab) for scenario in SCENARIOS}
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def alone(lab, tmp_path_factory):
    """The losses and rows of one process."""
    from benchmarks.processes import record

    workdir = tmp_path_factory.mktemp("alone") / "run"
    with record(f"{workdir}.rows.0"):
        assert train.main([lab.config, f"--workdir={workdir}"]) == errors.OK
    return Run(workdir, [])


def same_samples_and_losses(run: Run, processes: int, alone: Run) -> None:
    """As of one process: the samples exactly, the losses within the contract's tolerance."""
    assert run.rows(processes) == alone.rows(1)
    np.testing.assert_allclose(run.losses(), alone.losses(), rtol=1e-5)
    assert len(run.losses()) == STEPS


def test_two_nodes_of_two_tasks_train_as_one_process(left, alone):
    run = left["plain"].result()
    same_samples_and_losses(run, 4, alone)
    assert f"{run.workdir.name} 20/20 loss" in run.log(0)
    for process in (1, 2, 3):  # one line of progress
        assert "20/20" not in run.log(process) and f"Rank {process}" in run.log(process)
    assert "from step 0" in run.log() and "ended with 0 at step 20" in run.log()


def test_time_limits_change_nothing_bit_for_bit(left):
    run, whole = left["requeued"].result(), left["unbroken"].result()
    assert run.restarts() >= 3 and "the time limit is near" in run.log()
    assert run.log().count("ended with 75") == run.restarts()
    assert run.rows(2) == whole.rows(2) and len(run.losses()) == LONG
    assert (run.workdir / "metrics.jsonl").read_bytes() == (whole.workdir / "metrics.jsonl").read_bytes()


def test_preemption_loses_no_more_than_the_grace_time(left, alone):
    run, saved = left["preempted"].result()
    assert saved >= 9 and "ended with 75" in run.log() and run.restarts() == 1
    same_samples_and_losses(run, 2, alone)


@pytest.mark.parametrize("name", ["killed", "raising"])
def test_one_that_fails_ends_all_within_30_seconds_and_the_job_goes_on(left, alone, name):
    run, seconds = left[name].result()
    assert seconds < 30 and run.restarts() == 1
    same_samples_and_losses(run, 2, alone)
    if name == "raising":
        assert "RuntimeError: process 1 alone" in run.log(1) and "Traceback" in run.log(1)


def test_one_that_hangs_is_noticed_by_its_missing_heartbeat(left, alone):
    run, seconds = left["stopped"].result()
    assert seconds < 180 and run.restarts() == 1
    same_samples_and_losses(run, 2, alone)


def test_a_node_that_is_cut_off_damages_nothing(left, alone):
    run = left["cut_off"].result()
    assert run.restarts() == 1 and not (run.workdir / "damaged").exists()
    assert "another process has taken over" in run.log(0)
    same_samples_and_losses(run, 2, alone)


def test_a_cancelled_job_stays_so_and_another_number_of_nodes_goes_on(left, alone):
    run = left["cancelled"].result()
    first = int(run.log().split("from step ")[1].split(":")[0])
    assert 7 <= first < STEPS
    np.testing.assert_allclose(run.losses(), alone.losses(), rtol=1e-5)


def test_a_job_may_come_back_with_fewer_nodes(left, alone):
    run = left["shrunk"].result()
    assert "start 0 on jzn[1-2]" in run.log() and re.search("start 1 on jzn[1-3],", run.log())
    np.testing.assert_allclose(run.losses(), alone.losses(), rtol=1e-5)


def test_a_sweep_trains_each_point(left):
    run = left["sweep"].result()
    points = [f"seed={seed},lr={lr}" for seed in (0, 1) for lr in ("1e-3", "3e-4")]
    assert sorted(path.parent.name for path in run.workdir.glob("*/config.json")) == sorted(points)
    table = {row[0].rsplit("/", 1)[1]: row for row in status_rows([run.workdir])}
    for n, point in enumerate(points):
        assert Run(run.workdir / point, []).step() == 5
        assert table[point][1:5] == (f"{run.job}_{n}", "COMPLETED", str(int(n == 3)), "5/5")


def test_a_chain_goes_on_from_link_to_link(left):
    links = left["chain"].result()
    assert [link.restarts() for link in links] == [0, 0, 0]
    assert [link.log().count("ended with 75") for link in links] == [1, 1, 0]
    assert "ended with 0 at step 20" in links[2].log()


def test_one_command_copies_converts_and_trains(left):
    run = left["converted"].result()
    assert len(run.jobs) == 4 and run.step() == 3
    states = call("sacct", "-X", "-n", "-P", f"--jobs={','.join(run.jobs)}", "--format=State").split()
    assert {*states} == {"COMPLETED"} and len(states) == 5


def test_a_part_that_fails_cancels_what_waits_for_it(lab):
    """Nothing pends for ever."""
    run = lab.submit(
        "hopeless", "--convert", f"--survey=missing.toml --images=x --out={lab.folder}/never", "--parts", "1",
        train=(f"--config.data.path={lab.folder}/never",),
    )  # fmt: skip
    assert run.end() == "CANCELLED"


@pytest.mark.parametrize("name", golden())
def test_every_golden_script_is_accepted(slurm, name):
    """As it stands but for the names of other clusters, and two nodes, all that this one has of a kind."""
    ours = {"--nodes=4": "--nodes=2", "--account=abc\n": "--account=abc@cpu\n"}
    ours |= {"--partition=gpu\n": "--partition=gpu_p13\n", "--partition=cpu\n": "--partition=cpu_p1\n"}
    script = golden()[name]
    for theirs, our in ours.items():
        script = script.replace(theirs, our)
    subprocess.run(["sbatch", "--test-only"], input=script, text=True, check=True)
