"""A cluster is data: one TOML file, in launch/profiles or by path.

gpu           name of the GPU; "" for a cluster of CPUs
dtypes        what model.dtype may be on it
jax_extra     "cuda12" or "cuda13", of jaxz's extras; "" for none
pins          further requirements of the environment, such as a cuDNN
account_suffix, account    written behind --account; and whether an account must be given
[node]        gpus, tasks (processes, one a GPU) and cores (for each process)
[sbatch]      options of sbatch, written as they stand: partition = "gpu_p6" -> --partition=gpu_p6
[job]         lead (seconds before the time limit at which all is saved), retries (restarts after failures in all),
              requeue (whether a job may put itself back into the queue), offline (no internet
              on compute nodes), modules, default_qos
[environment] variables of the job; $NAME of the login shell's environment is filled in by the job
[files]       avoid (folders that must hold neither runs nor data), scratch, purge_days (without access)
[qos.NAME]    hours, and gpus, the most of them in one job (0: not known)
[data.convert], [data.stage]   options of sbatch for conversion, and for copying from the archive
"""

import importlib.metadata
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, get_origin, get_type_hints

from jaxz.errors import InputError, run, suggest

FOLDER = Path(__file__).parent / "profiles"
T = TypeVar("T")


@dataclass(frozen=True)
class Node:
    gpus: int
    tasks: int
    cores: int


@dataclass(frozen=True)
class Job:
    lead: int = 600
    retries: int = 3
    requeue: bool = True
    offline: bool = False
    modules: tuple[str, ...] = ()
    default_qos: str = ""


@dataclass(frozen=True)
class Files:
    avoid: tuple[str, ...] = ()
    scratch: str = ""
    purge_days: int = 0


@dataclass(frozen=True)
class Qos:
    hours: float
    gpus: int = 0


@dataclass(frozen=True)
class Profile:
    name: str
    gpu: str
    dtypes: tuple[str, ...]
    node: Node
    sbatch: dict[str, str | int | bool]
    jax_extra: str = ""
    pins: tuple[str, ...] = ()
    account: bool = False
    account_suffix: str = ""
    job: Job = Job()
    files: Files = Files()
    environment: dict[str, str] = field(default_factory=dict)
    qos: dict[str, Qos] = field(default_factory=dict)
    data: dict[str, dict] = field(default_factory=dict)


def load_profile(name: str) -> Profile:
    """The profile of that name in launch/profiles, or of a TOML file. Raises InputError, naming file and key."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        raw = tomllib.loads(path.read_text())
    except OSError as error:
        hint = suggest(name, (known.stem for known in FOLDER.glob("*.toml")))
        raise InputError(f"--profile: {str(path)!r} cannot be read ({error.strerror}).{hint}") from None
    except ValueError as error:  # of TOML, of UTF-8
        raise InputError(f"--profile: {str(path)!r} is not TOML ({error}); mend it") from None
    where = f"--profile: {path.name}"
    parts = {"node": Node, "job": Job, "files": Files}
    raw |= {part: build(kind, raw[part], f"{where}: {part}") for part, kind in parts.items() if part in raw}
    limits = raw.get("qos", {})
    raw["qos"] = {key: build(Qos, value, f"{where}: qos.{key}") for key, value in limits.items()}
    profile = build(Profile, {"name": path.stem, **raw}, where)
    for key in profile.data:
        if key not in ("convert", "stage"):
            raise InputError(f"{where}: data.{key} is not known.{suggest(key, ('convert', 'stage'))}")
    return profile


def build(kind: type[T], values: object, where: str) -> T:
    """A dataclass of a table. Raises InputError for keys that are missing or unknown and for values of another type."""
    if not isinstance(values, dict):
        raise InputError(f"{where}: {values!r} must be a table")
    known = get_type_hints(kind)
    if unknown := sorted(values.keys() - known.keys()):
        raise InputError(f"{where}: {unknown[0]} is not known.{suggest(unknown[0], known)}")
    try:
        made = kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    except TypeError as error:
        raise InputError(f"{where}: {str(error).partition('() ')[2]}; see launch/profile.py") from None
    for key, value in vars(made).items():
        wanted = get_origin(known[key]) or known[key]
        allowed = (int, float) if wanted is float else wanted
        if not isinstance(value, allowed) or (isinstance(value, bool) and wanted is not bool):
            raise InputError(f"{where}: {key}: {value!r} must be {wanted.__name__}; see launch/profile.py")
    return made


def expand(path: str) -> Path:
    """A path with $NAME and ~ filled in."""
    return Path(os.path.expandvars(path)).expanduser()


def print_requirements(argv: list[str]) -> None:
    """What pip has to install for `python -m launch.profile PROFILE` beside requirements.txt, a line each."""
    profile = load_profile(argv[0])
    if profile.jax_extra:
        print(f"jax[{profile.jax_extra}]=={importlib.metadata.version('jax')}")
    for pin in profile.pins:
        print(pin)


if __name__ == "__main__":
    run(print_requirements)
