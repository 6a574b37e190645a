r"""Training on a Slurm cluster.

    python -m launch.slurm submit --profile PROFILE [--account PROJECT] [--nodes N] [--time 20:00:00] ... \
        -- --config=... --workdir=RUN
    python -m launch.slurm render ...                   # the same arguments: prints the scripts
    python -m launch.slurm status RUN [RUN ...] [--watch]
    python -m launch.slurm cancel RUN [RUN ...]

submit first looks for all that would make the job fail, and says it all at once. A job saves before its time limit and
puts itself back into the queue until the training is done. --array seed=0,1,2 makes a run for each value, --convert and
--stage make the data before. Any option of sbatch for the training is --option NAME=VALUE, or stands under [sbatch] of
the profile; those of copies, conversions and merges stand under its [data.stage] and [data.convert].
docs/slurm.md; docs/jean_zay.md.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path

from jaxz import config as configs
from jaxz.errors import InputError, run, suggest
from jaxz.files import replace
from jaxz.provenance import versions
from launch import queue
from launch.render import convert_script, logs, stage_script, train_script
from launch.request import Request, make_request, parser
from launch.status import read_jobs, show, watch


def main(argv: list[str]) -> int | None:
    actions = {"submit": submit, "render": render, "status": status, "cancel": cancel}
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__.strip())
        return None
    if argv[0] not in actions:
        raise InputError(f"{argv[0]!r} is no action.{suggest(argv[0], actions)}")
    return actions[argv[0]](argv[1:])


def submit(argv: list[str]) -> None:
    """Check, submit what comes before the training, and the training; print a line a job."""
    from launch.preflight import check  # imports jax, which the other actions need not wait for

    args, request = read(argv, "submit")
    check(request)
    refuse_a_second(request)
    scripts = scripts_of(request)
    for script in scripts.values():
        queue.try_out(script)
    if args.test_only:
        print(f"{len(scripts)} script(s): nothing speaks against them")
        return
    logs(request).mkdir(parents=True, exist_ok=True)
    after, submitted = request.after, {}
    for name, script in scripts.items():
        replace(logs(request) / f"{name}.sh", script.encode())
        for _ in range(max(1, request.chain) if name == "train" else 1):
            job = queue.submit(script, after, singleton=name == "train" and bool(request.chain))
            submitted[job] = name
            record(request, job, name)
            print(f"{job} {name}{f', after {after}' if after else ''}")
        after = job
    print(f"watch: python -m launch.slurm status {request.workdir}", file=sys.stderr)


def render(argv: list[str]) -> None:
    _, request = read(argv, "render")
    for name, script in scripts_of(request).items():
        print(f"# ==== {name} ====\n{script}" if request.convert or request.stage else script, end="")


def status(argv: list[str]) -> None:
    args = of_runs(argv, "status")
    (watch if args.watch else show)(args.runs)


def cancel(argv: list[str]) -> None:
    """Cancel what is left of the jobs of some runs."""
    jobs = [entry["job"] for run in of_runs(argv, "cancel").runs for entry in read_jobs(run)]
    left = sorted({job.partition("_")[0] for job in queue.waiting_and_running(jobs)})
    if left:
        queue.cancel(left)
    print(f"cancelled: {' '.join(left) or 'nothing was left'}")


def refuse_a_second(request: Request) -> None:
    """Raises InputError where a job of the workdir is in the queue already, unless this one is to come after it."""
    if (logs(request) / "jobs.jsonl").exists():
        jobs = {entry["job"] for entry in read_jobs(request.workdir)} - {request.after}
        if left := sorted(queue.waiting_and_running(list(jobs))):
            raise InputError(
                f"--workdir: {str(request.workdir)!r} has job {left[0]} in the queue; wait for it, or "
                f"`python -m launch.slurm cancel {request.workdir}`"
            )


def scripts_of(request: Request) -> dict[str, str]:
    """{name: script} in the order in which they run."""
    own = [argument for argument in request.arguments if argument != "--allow_config_change"]
    steps = configs.parse([*own, *request.points[0].overrides]).train.steps
    scripts = {"stage": stage_script(request, *request.stage)} if request.stage else {}
    if request.convert:
        scripts |= {"convert": convert_script(request, merge=False), "merge": convert_script(request, merge=True)}
    return scripts | {"train": train_script(request, steps)}


def record(request: Request, job: str, name: str) -> None:
    """Add a job to RUN/slurm/jobs.jsonl."""
    entry = {
        "job": job,
        "what": name,
        "runs": [str(run) for run in request.runs] if name == "train" else [],
        "profile": request.profile.name,
        "commit": versions()["commit"],
        "submitted": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    with open(logs(request) / "jobs.jsonl", "a") as file:
        file.write(json.dumps(entry) + "\n")


def read(argv: list[str], action: str) -> tuple[argparse.Namespace, Request]:
    end = argv.index("--") if "--" in argv else len(argv)
    ours, train = argv[:end], argv[end + 1 :]
    made = argparse.ArgumentParser(prog=f"python -m launch.slurm {action}", parents=[parser()])
    if action == "submit":
        made.add_argument("--test-only", action="store_true", help="check all, and submit nothing")
    args, unknown = made.parse_known_args(ours)
    if unknown:
        known = [f"--{name.replace('_', '-')}" for name in vars(args)]
        raise InputError(
            f"argument {unknown[0]!r} is not known; an option of sbatch is given as --option NAME=VALUE, or for every "
            f"training under [sbatch] of the profile.{suggest(unknown[0].partition('=')[0], known)}"
        )
    return args, make_request(args, train)


def of_runs(argv: list[str], action: str) -> argparse.Namespace:
    made = argparse.ArgumentParser(prog=f"python -m launch.slurm {action}")
    made.add_argument("runs", nargs="+", type=Path, help="workdirs, also of sweeps")
    if action == "status":
        made.add_argument("--watch", action="store_true", help="again every 15 seconds")
    return made.parse_args(argv)


if __name__ == "__main__":
    run(main)
