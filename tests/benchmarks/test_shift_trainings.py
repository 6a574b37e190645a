"""Trainings of shift-v1 as jobs: a Slurm stands in that lists the jobs it is told to, and trains when the test says."""

import json
import re
import shlex

import pytest

from benchmarks.shift import __main__ as shift
from benchmarks.shift import runs, trainings
from benchmarks.shift.arms import SIZES, TEMPLATES, Arm, at_fraction
from jaxz.errors import InputError
from launch import preflight, queue, slurm

ARGUMENTS = ["--config=configs/demo_direct.py", "--config.train.steps=8", "--config.data.path=d"]
OPTIONS = ["--profile", "cpu", "--time", "1:00:00", "--python", "python"]


class Cluster:
    """jobs: {job in the queue: state}; scripts: what was submitted, in order."""

    def __init__(self):
        self.jobs, self.scripts, self.answers = {}, [], True

    def take(self, command, *arguments, script=None):
        if not self.answers:
            raise InputError(f"{command}: Slurm does not answer; try again later")
        if command == "sbatch" and "--parsable" in arguments:
            self.scripts.append(script)
            self.jobs[str(len(self.scripts))] = "PENDING"
            return f"{len(self.scripts)}\n"
        return "".join(f"{job}|{state}|Priority|1:00\n" for job, state in self.jobs.items())


@pytest.fixture
def cluster(monkeypatch):
    """Its submissions are made in this process."""
    made = Cluster()
    monkeypatch.setattr(queue, "slurm", made.take)
    monkeypatch.setattr(preflight, "check", lambda request: None)
    monkeypatch.setattr(
        trainings, "call", lambda module, *arguments: {"launch.slurm": slurm.main}[module]([*arguments])
    )
    return made


def save(workdir, step):
    (workdir / "checkpoints" / str(step)).mkdir(parents=True)


def test_a_training_is_a_job_that_is_waited_for(tmp_path, cluster, capsys):
    waits = trainings.submitted(OPTIONS, tmp_path / "matched_0", ARGUMENTS)
    next(waits)
    [script] = cluster.scripts
    assert "#SBATCH --time=1:00:00" in script and "#SBATCH --job-name=matched_0" in script
    assert f"run={tmp_path}/matched_0\narguments=(--allow_config_change {' '.join(ARGUMENTS)} --workdir=" in script
    for state in ("PENDING", "RUNNING", "RUNNING", "COMPLETING"):
        cluster.jobs["1"] = state
        save(tmp_path / "matched_0", {"COMPLETING": 8}.get(state, len(list(tmp_path.rglob("checkpoints/*")))))
        next(waits)
    cluster.jobs.clear()
    assert list(waits) == [] and len(cluster.scripts) == 1
    told = re.findall("matched_0 waits: (.*)", capsys.readouterr().err)
    assert told == ["job 1 PENDING (Priority)", "job 1 RUNNING", "job 1 COMPLETING"]
    assert list(trainings.submitted(OPTIONS, tmp_path / "matched_0", ARGUMENTS)) == []  # done: not submitted again
    assert len(cluster.scripts) == 1


def test_a_job_in_the_queue_is_waited_for_by_the_next_command(tmp_path, cluster):
    next(trainings.submitted(OPTIONS, tmp_path, ARGUMENTS))
    again = trainings.submitted(OPTIONS, tmp_path, ARGUMENTS)
    next(again)
    assert len(cluster.scripts) == 1
    cluster.jobs = {"7": "RUNNING"}  # somebody else's
    save(tmp_path, 8)
    assert list(again) == []


def test_a_job_that_ends_before_the_last_step_is_an_error_and_goes_on_when_asked_again(tmp_path, cluster):
    waits = trainings.submitted(OPTIONS, tmp_path, ARGUMENTS)
    next(waits)
    save(tmp_path, 6)
    cluster.jobs.clear()
    logs = re.escape(f"{tmp_path}/slurm/1.log and {tmp_path}/slurm/1.0.log")
    with pytest.raises(InputError, match=f"job 1 ended before step 8; {logs} tell why"):
        next(waits)
    next(trainings.submitted(OPTIONS, tmp_path, ARGUMENTS))
    assert len(cluster.scripts) == 2 and cluster.jobs == {"2": "PENDING"}


def test_a_slurm_that_does_not_answer_for_a_while_ends_nothing(tmp_path, cluster):
    waits = trainings.submitted(OPTIONS, tmp_path, ARGUMENTS)
    next(waits)
    cluster.answers = False
    next(waits)
    cluster.answers = True
    next(waits)
    save(tmp_path, 8)
    cluster.jobs.clear()
    assert list(waits) == []
    cluster.answers = False
    save(tmp_path / "other" / "slurm", 1)
    (tmp_path / "other" / "slurm" / "jobs.jsonl").write_text(json.dumps({"job": "1"}))
    with pytest.raises(InputError, match="does not answer"):  # whether a job is there must be known
        next(trainings.submitted(OPTIONS, tmp_path / "other", ARGUMENTS))


def test_arms_run_at_once_but_not_before_what_they_begin_or_learn_from(monkeypatch):
    """By a clock that ticks at each look: every arm needs as many ticks as it is told."""
    monkeypatch.setattr(trainings, "PAUSE", 0)
    fewer = at_fraction(TEMPLATES, 0.1, "@10%")
    tiered = Arm("tiered", "redshift_tiered", overlay="templates")
    ticks = {fewer: 4, TEMPLATES: 2, tiered: 1, Arm("pre", "c"): 3, Arm("mae", "c", start="pre"): 1, Arm("a", "c"): 1}
    [mae] = [arm for arm in ticks if arm.name == "mae"]
    ticks |= {Arm("mae+pit", start="mae", correct="pit"): 0, at_fraction(tiered, 0.1, "@10%"): 1}
    arms = [mae, *(arm for arm in ticks if arm is not mae)]  # not even in the order of the table
    alive, begun, ended, most = set(), [], [], []

    def work(arm):
        begun.append((arm.name, {name for name, _ in ended}))
        alive.add(arm)
        for _ in range(ticks[arm]):
            most.append(len(alive))
            yield
        alive.remove(arm)
        return ticks[arm]

    for jobs in (1, 3, 20):
        for of in (begun, ended, most):
            of.clear()
        for arm, found in trainings.in_turn(arms, jobs, work):
            ended.append((arm.name, found))
        assert sorted(ended) == sorted((arm.name, ticks[arm]) for arm in arms)
        known = dict(begun)
        assert "pre" in known["mae"] and "mae" in known["mae+pit"]
        assert "templates" in known["tiered"] and "templates@10%" in known["tiered@10%"]
        assert max(most) == min(jobs, 4)
    assert not known["tiered"] >= {"templates@10%"} and not known["a"]  # nothing waits for what it does not need


def test_one_that_fails_ends_all(monkeypatch):
    monkeypatch.setattr(trainings, "PAUSE", 0)

    def work(arm):
        yield
        if arm.name == "b":
            raise InputError("it failed")
        yield

    with pytest.raises(InputError, match="it failed"):
        list(trainings.in_turn([Arm("a", "c"), Arm("b", "c")], 2, work))


def test_the_command_trains_by_jobs(tmp_path, monkeypatch, cluster):
    """Of the whole benchmark only the trainings go to the cluster, with the arguments that they have here."""
    monkeypatch.setattr(trainings, "PAUSE", 0)
    called, first = [], Arm("matched", "demo_direct", ("train.steps=8",))
    monkeypatch.setattr(runs, "call", lambda *command: called.append(command[0]))
    monkeypatch.setattr(runs, "write_overlays", lambda *_: None)
    protocol = runs.Protocol(tmp_path / "sky")
    run = lambda train: runs.run(tmp_path, protocol, first, 0, tmp_path, train)
    waits = run(trainings.on_slurm(" ".join(OPTIONS)))
    next(waits)
    assert called == []
    save(tmp_path / "runs" / "matched_0", 8)
    cluster.jobs.clear()
    assert list(waits) == [] and called == ["jaxz.predict"]
    here = []
    monkeypatch.setattr(trainings, "call", lambda *command: here.append(command))
    assert list(run(trainings.here)) == []
    [(module, workdir, *arguments)] = here
    quoted = re.search(r"^arguments=\((.*) --workdir=\"\$run\"\)$", cluster.scripts[0], re.M)[1]
    assert module == "jaxz.train" and workdir == f"--workdir={tmp_path}/runs/matched_0"
    assert shlex.split(quoted) == arguments


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--jobs", "2"], "--jobs: 2 must be at least 1, and 1 without --submit"),
        (["--submit", "--profile cpu", "--jobs", "0"], "--jobs: 0 must be at least 1"),
        (["--submit", "--profile none"], "--profile: .*none.toml' cannot be read"),
        (["--submit", "--profile cpu --nodez=2"], "Did you mean '--nodes'?"),
        (["--submit", "--profile cpu --option 'a"], "mend its quotation marks"),
        (["--submit", "--profile cpu --array seed=0,1"], "has one of --, --array"),
        (["--submit", "--profile cpu --test-only"], "has one of --, --array"),
        (["--submit", "--profile cpu -- --config.seed=1"], "has one of --, --array"),
    ],
)
def test_what_has_no_sense_is_refused_before_anything_is_made(tmp_path, argv, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        shift.main([str(tmp_path / "scratch"), *argv])
    assert not (tmp_path / "scratch").exists()


def test_the_order_of_the_table_is_kept_where_one_runs_after_another():
    for size in SIZES.values():
        arms = size().arms

        def work(arm):
            return
            yield

        assert [arm for arm, _ in trainings.in_turn(arms, 1, work)] == list(arms)
