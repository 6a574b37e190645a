"""A Slurm on this machine, brought up by ../shared/slurm/slurm_up.sh, and what the tests do with it.

Four nodes, each with an address of its own. Jobs of the tests leave jzn4 alone unless they ask for it: there they are
preempted and cut off.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.multiprocess.test_training import losses

ROOT = Path(__file__).parents[2]
PATIENCE = 900  # seconds
PROFILE = """
gpu = ""
dtypes = ["float32"]
[node]
gpus = 0
tasks = {tasks}
cores = 2
[sbatch]
partition = "{partition}"
{nodes}
[job]
lead = 60
[data.convert]
partition = "prepost"
exclude = "jzn4"
time = "1:00:00"
cpus-per-task = 1
[data.stage]
partition = "archive"
exclude = "jzn4"
time = "1:00:00"
"""


def call(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def until(true: Callable[[], object], what: str, seconds: float = PATIENCE):
    """What true() gives, once it is true."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f"waited {seconds} s in vain for {what}"
        time.sleep(0.5)
    return found


@dataclass
class Run:
    """A submitted training."""

    workdir: Path
    jobs: list[str]

    @property
    def job(self) -> str:
        return self.jobs[-1]

    def step(self) -> int:
        path = self.workdir / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return json.loads(lines[-1])["step"] if lines else 0

    def at(self, step: int) -> None:
        until(lambda: self.step() >= step, f"step {step} in {self.workdir}")

    def saved(self, step: int) -> None:
        until((self.workdir / "checkpoints" / str(step)).exists, f"checkpoint {step} in {self.workdir}")

    def lives(self) -> list[str]:
        """The states of the job's lives, by the accounts."""
        return call("sacct", "-D", "-X", "-n", "-P", f"--jobs={self.job}", "--format=State").split("\n")[:-1]

    def restarts(self) -> int:
        return len(self.lives()) - 1

    def state(self) -> str:
        return call("scontrol", "show", "job", self.job).split("JobState=")[1].split()[0]

    def restarted(self, times: int) -> None:
        until(lambda: self.restarts() >= times and self.state() == "RUNNING", f"restart {times} of {self.workdir}")

    def end(self) -> str:
        """Wait for the last of the jobs; its state."""
        over = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")
        return until(lambda: (state := self.state()) in over and state, f"the end of {self.workdir}")

    def stop(self) -> None:
        """What Slurm does before the time limit."""
        call("scancel", "--batch", "--signal=USR2", self.job)

    def signal(self, process: int, number: int) -> None:
        """Send a signal to one of the tasks, as no Slurm knows of."""
        wanted = {f"SLURM_JOB_ID={self.job}".encode(), f"SLURM_PROCID={process}".encode()}
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                environ, command = path.read_bytes().split(b"\0"), (path.parent / "cmdline").read_bytes()
            except OSError:
                continue
            if wanted <= {*environ} and b"tests.slurm.trainer" in command and b"srun" not in command:
                os.kill(int(path.parent.name), number)

    def losses(self) -> list[float]:
        return losses(self.workdir)

    def rows(self, processes: int) -> dict[int, list[int]]:
        """{step: rows of its global batch}; steps done twice must have been given the same."""
        found: dict[int, list[list[int]]] = {}
        for process in range(processes):
            mine: dict[int, list[int]] = {}
            for line in Path(f"{self.workdir}.rows.{process}.0").read_text().splitlines():
                step, rows = (json.loads(line)[name] for name in ("step", "rows"))
                assert mine.setdefault(step, rows) == rows
            for step, rows in mine.items():
                found.setdefault(step, []).append(rows)
        return {step: [row for part in parts for row in part] for step, parts in sorted(found.items())}

    def log(self, process: int | None = None, job: str = "") -> str:
        name = job or self.job
        return (self.workdir / "slurm" / (f"{name}.log" if process is None else f"{name}.{process}.log")).read_text()


class Lab:
    def __init__(self, folder: Path, config: str):
        self.folder, self.config = folder, config

    def submit(
        self, name: str, *ours: str, tasks: int = 1, partition: str = "all", nodes: str = "jzn4", only: bool = False,
        train: tuple[str, ...] = (), **options,
    ) -> Run:  # fmt: skip
        """`python -m launch.slurm submit`; nodes: those to leave alone, or, with only, to run on."""
        profile = self.folder / f"{name}.toml"
        chosen = f'{"nodelist" if only else "exclude"} = "{nodes}"'
        profile.write_text(PROFILE.format(tasks=tasks, partition=partition, nodes=chosen))
        python = f"{sys.executable} -m tests.slurm.trainer {shlex.quote(json.dumps(options))}"
        workdir = self.folder / name
        command = [sys.executable, "-m", "launch.slurm", "submit", "--profile", str(profile), "--account", "abc@cpu"]
        command += ["--time", "0:30:00", "--python", python, *ours, "--", self.config, f"--workdir={workdir}", *train]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        return Run(workdir, [line.split()[0] for line in done.stdout.splitlines()])
