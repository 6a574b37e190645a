"""What is asked of a cluster: the arguments of `python -m launch.slurm submit`, checked one by one."""

import argparse
import itertools
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from jaxz.errors import InputError
from launch.profile import Profile, load_profile

TIME = re.compile(r"(?:(\d+)-)?(\d{1,3}):([0-5]\d):([0-5]\d)")  # days, hours, minutes, seconds


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    name: str  # of its folder below the workdir; "" for a run alone
    overrides: tuple[str, ...]  # --config.FIELD=VALUE


@dataclass(frozen=True)
class Request:
    profile: Profile
    account: str
    nodes: tuple[int, int]  # least and most
    gpus: int  # a node; 0 on a cluster of CPUs
    tasks: int  # a node
    time: str  # "20:00:00"
    qos: str
    options: tuple[str, ...]  # further ones of sbatch, as given
    python: str  # command
    folder: Path  # where the job runs: relative paths are relative to it
    workdir: Path
    arguments: tuple[str, ...]  # of jaxz.train, without --workdir
    points: tuple[Point, ...]
    limit: int  # points that run at once; 0: all
    chain: int  # jobs in a row; 0: one, which requeues itself
    after: str  # a job's number
    convert: tuple[str, ...]  # arguments of data_tools.convert; () for none
    parts: int
    stage: tuple[Path, Path] | None  # from, to

    @property
    def lead(self) -> int:
        """Seconds before the time limit at which all is saved: the profile's, or a third of a short job."""
        return min(self.profile.job.lead, int(self.seconds / 3))

    @property
    def seconds(self) -> int:
        return seconds_of(self.time)

    @property
    def requeues(self) -> bool:
        return self.profile.job.requeue and not self.chain

    @property
    def runs(self) -> list[Path]:
        """The run directories, one a point."""
        return [self.workdir / point.name for point in self.points]


def parser() -> argparse.ArgumentParser:
    """The options of submit and render; what follows `--` are arguments of jaxz.train."""
    made = argparse.ArgumentParser(add_help=False)
    made.add_argument("--profile", required=True, help="name of a file in launch/profiles, or a TOML file")
    made.add_argument("--account", default="", help="project, without the cluster's suffix")
    made.add_argument("--nodes", default="1", help="number of nodes, or LEAST-MOST (default 1)")
    made.add_argument("--gpus-per-node", type=int, help="default: all; one process each")
    made.add_argument("--time", default="1:00:00", help="[D-]HH:MM:SS of one job; it requeues itself (default 1 h)")
    made.add_argument("--qos", default="")
    made.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="a further one of sbatch")
    made.add_argument("--python", default=sys.executable, help="command that starts Python in the job")
    made.add_argument("--array", action="append", default=[], metavar="FIELD=V,V", help="a run for each value")
    made.add_argument("--limit", type=int, default=0, help="runs of an array at once (default: all)")
    made.add_argument("--chain", type=int, default=0, help="so many jobs in a row, instead of requeueing")
    made.add_argument("--after", default="", metavar="JOB", help="start once that job has ended well")
    made.add_argument("--convert", default="", metavar="ARGUMENTS", help="of data_tools.convert, run before")
    made.add_argument("--parts", type=int, default=8, help="jobs that share the conversion (default 8)")
    made.add_argument("--stage", nargs=2, metavar=("FROM", "TO"), help="a folder to copy before all else")
    return made


def make_request(args: argparse.Namespace, train: list[str]) -> Request:
    """Raises InputError for an argument that has no sense by itself; launch.preflight looks at the rest."""
    profile = load_profile(args.profile)
    workdirs = [a.removeprefix("--workdir=") for a in train if a.startswith("--workdir=")]
    if not workdirs:
        raise InputError("--workdir: is missing; give it to the training, after `--`: -- --config=... --workdir=RUN")
    if odd := re.search(r"[^\w./,=+@-]", workdirs[-1]):
        raise InputError(
            f"--workdir: {workdirs[-1]!r} holds {odd[0]!r}, which Slurm would read in its own way; rename it"
        )
    least, _, most = args.nodes.partition("-")
    if not (least.isdecimal() and (most or least).isdecimal() and 1 <= int(least) <= int(most or least)):
        raise InputError(f"--nodes: {args.nodes!r} must be a number, or LEAST-MOST such as 2-4")
    gpus, tasks = profile.node.gpus, profile.node.tasks
    if args.gpus_per_node is not None:
        if not 1 <= args.gpus_per_node <= gpus:
            raise InputError(f"--gpus-per-node: {args.gpus_per_node} must be from 1 to the {gpus} of {profile.name}")
        gpus = tasks = args.gpus_per_node
    seconds_of(args.time)
    for name, least_value in (("limit", 0), ("chain", 0), ("parts", 1)):
        if getattr(args, name) < least_value:
            raise InputError(f"--{name}: {getattr(args, name)} must be at least {least_value}")
    if args.after and not args.after.isdecimal():
        raise InputError(f"--after: {args.after!r} must be the number of a job")
    if args.array and args.chain:
        raise InputError("--chain: an array has none; leave out --chain, its jobs requeue themselves")
    for name in ("convert", "stage"):
        if getattr(args, name) and name not in profile.data:
            raise InputError(f"--{name}: {profile.name} does not say where; add [data.{name}] to the profile")
    for text in (args.account, args.qos, args.python, *args.option, *(args.stage or ())):
        if not text.isprintable():  # a line of its own in the script
            raise InputError(f"{text!r} holds a character that cannot be printed; leave it out")
    try:
        convert = tuple(shlex.split(args.convert))
    except ValueError as error:
        raise InputError(f"--convert: {args.convert!r} is not a command's arguments ({error}); mend it") from None
    stage = (Path(args.stage[0]).absolute(), Path(args.stage[1]).absolute()) if args.stage else None
    return Request(
        profile=profile,
        account=args.account,
        nodes=(int(least), int(most or least)),
        gpus=gpus,
        tasks=tasks,
        time=args.time,
        qos=args.qos or profile.job.default_qos,
        options=tuple(args.option),
        python=args.python,
        folder=Path.cwd(),
        workdir=Path(workdirs[-1]).absolute(),
        arguments=tuple(a for a in train if not a.startswith("--workdir=")),
        points=points(args.array),
        limit=args.limit,
        chain=args.chain,
        after=args.after,
        convert=convert,
        parts=args.parts,
        stage=stage,
    )


def points(array: list[str]) -> tuple[Point, ...]:
    """The combinations of ("FIELD=V1,V2", ...), or the one run where there are none. Raises InputError."""
    axes = []
    for text in array:
        name, _, values = text.partition("=")
        if not name or not all(values.split(",")):
            raise InputError(f"--array: {text!r} must be FIELD=VALUE,VALUE,... such as seed=0,1,2")
        axes.append([(name, value) for value in values.split(",")])
    made = []
    for chosen in itertools.product(*axes):
        folder = ",".join(f"{name.rpartition('.')[2]}={value}" for name, value in chosen)
        made.append(Point(re.sub(r"[^\w.,=+-]", "-", folder), tuple(f"--config.{n}={v}" for n, v in chosen)))
    if len({point.name for point in made}) < len(made):
        raise InputError(f"--array: {' '.join(array)} names a run twice; leave one out")
    return tuple(made)


def seconds_of(time: str) -> int:
    """Of "[D-]HH:MM:SS". Raises InputError."""
    found = TIME.fullmatch(time)
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
    total = ((24 * days + hours) * 60 + minutes) * 60 + seconds
    if total < 60:
        raise InputError(f"--time: {time!r} must be [D-]HH:MM:SS, of at least a minute, such as 20:00:00")
    return total
