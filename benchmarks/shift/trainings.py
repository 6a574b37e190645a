"""Where the arms of shift-v1 are trained: here, one after another, or as jobs on a Slurm cluster, several at once.

What waits for a job is a generator that yields until the job has ended, so that one process waits for many. All else
(overlays, templates, corrections, predictions) runs here, one at a time.
"""

import shlex
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from benchmarks.shift.arms import Arm
from benchmarks.shift.runs import Train, call
from jaxz.config import parse
from jaxz.errors import InputError
from launch import queue, slurm
from launch.status import jobs_of, read_jobs

PAUSE = 15  # seconds between two looks at the queue
NOT_OURS = ("--", "--array", "--convert", "--stage", "--test-only")  # of launch.slurm submit

Found = TypeVar("Found")


def here(workdir: Path, arguments: Sequence[str]) -> Iterator[None]:
    """Train on this machine. Raises InputError or Stopped as `call` does."""
    call("jaxz.train", *command(workdir, arguments))
    return iter(())


def on_slurm(text: str) -> Train:
    """Trains by jobs that `python -m launch.slurm submit TEXT` submits. Raises InputError for wrong options."""
    try:
        options = shlex.split(text)
    except ValueError as error:
        raise InputError(f"--submit: {text!r} cannot be read ({error}); mend its quotation marks") from None
    asked, _ = slurm.read([*options, "--", "--workdir=run"], "submit")
    if "--" in options or asked.array or asked.convert or asked.stage or asked.test_only:
        raise InputError(f"--submit: {text!r} has one of {', '.join(NOT_OURS)}; leave it out")
    return partial(submitted, options)


def command(workdir: Path, arguments: Sequence[str]) -> list[str]:
    """Of jaxz.train. Recipes that changed were refused: only how often a run is saved may differ from when it was
    begun."""
    return [f"--workdir={workdir}", "--allow_config_change", *arguments]


def submitted(options: Sequence[str], workdir: Path, arguments: Sequence[str]) -> Iterator[None]:
    """Submit a training, unless its job is in the queue or its last step is saved; yields until the job has ended.

    Raises InputError where it ended before the last step, naming its log.
    """
    steps = parse(list(arguments)).train.steps
    saved, told = workdir / "checkpoints" / str(steps), ""
    if not saved.exists() and not queued(workdir):
        call("launch.slurm", "submit", *options, "--", *command(workdir, arguments))
    while now := waits_for(workdir):
        if now != told:
            print(f"{workdir.name} waits: {now}", file=sys.stderr, flush=True)
            told = now
        yield
    if not saved.exists():
        logs = workdir / "slurm" / read_jobs(workdir)[-1]["job"]
        raise InputError(
            f"{workdir}: job {logs.name} ended before step {steps}; {logs}.log and {logs}.0.log tell why; mend it, and "
            "give the same command again, which goes on from the last checkpoint"
        )


def queued(workdir: Path) -> dict[str, dict[str, str]]:
    """The jobs of a run that are in the queue, as launch.queue.waiting_and_running tells them."""
    if not jobs_of(workdir).exists():
        return {}
    return queue.waiting_and_running([entry["job"] for entry in read_jobs(workdir)])


def waits_for(workdir: Path) -> str:
    """What is said of the job of a run while it is in the queue; "" once it is not."""
    try:
        left = queued(workdir)
    except InputError as error:  # the job goes on where Slurm does not answer for a while
        return str(error)
    reason = lambda job: f" ({job['reason']})" if job["state"] == "PENDING" else ""
    return ", ".join(f"job {name} {job['state']}{reason(job)}" for name, job in left.items())


def in_turn(
    arms: Sequence[Arm], jobs: int, work: Callable[[Arm], Generator[None, None, Found]]
) -> Iterator[tuple[Arm, Found]]:
    """Each of the arms with what its work returns, `jobs` of them at once, in the order in which they end. An arm
    begins, of those that may the first in the table, when all that it begins or learns from are done."""
    left, begun, done = list(arms), {}, set()
    while left or begun:
        ready = [arm for arm in left if before(arm, arms) <= done]
        begun |= {arm: work(arm) for arm in ready[: jobs - len(begun)]}
        left = [arm for arm in left if arm not in begun]
        ended = {}
        for arm, steps in begun.items():
            try:
                next(steps)
            except StopIteration as end:
                ended[arm] = end.value
        begun = {arm: steps for arm, steps in begun.items() if arm not in ended}
        done |= ended.keys()
        yield from ended.items()
        if not ended:
            time.sleep(PAUSE)


def before(arm: Arm, arms: Sequence[Arm]) -> set[Arm]:
    """The arms that it begins from, and whose redshifts it learns from."""
    taught = arm.config and arm.overlay == "templates"
    source = (arm.labels, arm.fraction, arm.overlay)
    teaches = lambda other: not other.config and (other.labels, other.fraction, other.overlay) == source
    return {other for other in arms if other.run == arm.start or (taught and teaches(other))}
