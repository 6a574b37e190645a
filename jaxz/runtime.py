"""How the processes of a run start, agree and stop."""

import collections
import fcntl
import importlib.metadata
import logging
import os
import platform
import signal
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxz import errors
from jaxz.errors import InputError
from jaxz.mesh import to_devices

log = logging.getLogger("jaxz")
ADDRESS, COUNT, ID = "JAX_COORDINATOR_ADDRESS", "JAXZ_PROCESS_COUNT", "JAXZ_PROCESS_ID"  # jax itself reads the first
SLURM_STEP = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
DEVICES, RESTARTS = "JAXZ_DEVICES", "SLURM_RESTART_COUNT"  # what a batch script expects; how often Slurm requeued it
START_TIMEOUT = 900  # seconds; many nodes that import from one file system come late
LOCK_PATIENCE = 150  # seconds in which jax notices, by its heartbeat of 100 s, that others of a run are gone


def set_xla_flags() -> None:
    """Work around jaxlib 0.10's CPU compiler: the gradient of a dense layer on a slice of the batch crashes the process
    where YNN fusion is on (and it is slower). Must run before jax starts its backend,
    which its import alone does not."""
    flag = "--xla_cpu_experimental_ynn_fusion_type="
    flags = os.environ.get("XLA_FLAGS", "")
    if importlib.metadata.version("jaxlib").startswith("0.10.") and flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()


def processes(environ: Mapping[str, str] = os.environ) -> dict:
    """How jax.distributed is to be started: its keyword arguments; {} for a process alone.

    Several processes are tasks of one Slurm step, or are told so by JAX_COORDINATOR_ADDRESS (host:port of process 0),
    JAXZ_PROCESS_COUNT and JAXZ_PROCESS_ID. Raises InputError where these contradict each other.
    """
    tasks = int(environ["SLURM_NTASKS"]) if all(name in environ for name in SLURM_STEP) else 0
    if COUNT not in environ and ID not in environ and (tasks or ADDRESS not in environ):
        return {"cluster_detection_method": "slurm"} if tasks > 1 else {}
    for name in (ADDRESS, COUNT, ID):
        if name not in environ:
            raise InputError(f"{name}: is not set; set all of {ADDRESS}, {COUNT} and {ID}, or none for one process")
    for name in (COUNT, ID):
        if not environ[name].isdecimal():
            raise InputError(f"{name}: {environ[name]!r} is not a whole number; set one")
    count, number = int(environ[COUNT]), int(environ[ID])
    if number >= count:
        raise InputError(f"{ID}: {number} is not below {COUNT} {count}; count from 0")
    if tasks > 1 and tasks != count:
        raise InputError(f"{COUNT}: {count} is not SLURM_NTASKS {tasks}; unset it, Slurm says enough")
    if not environ[ADDRESS].rpartition(":")[2].isdecimal() or ":" not in environ[ADDRESS]:
        raise InputError(f"{ADDRESS}: {environ[ADDRESS]!r} is not host:port; name a free port of process 0's host")
    if count == 1:
        return {}
    return {"num_processes": count, "process_id": number, "cluster_detection_method": "deactivate"}


def start(timeout: int = START_TIMEOUT) -> None:
    """Join the other processes, where there are any; before any backend starts.

    Raises InputError where the environment contradicts itself or the address cannot be listened at. Ends the process
    where not all have come after `timeout` seconds, as XLA does too, but saying so.
    """
    arguments = processes()
    if arguments and not jax.distributed.is_initialized():
        join(arguments, timeout)
    check_devices()


def check_devices(environ: Mapping[str, str] = os.environ) -> None:
    """Raises InputError where jax has not the devices that the batch script expects by JAXZ_DEVICES."""
    if (expected := environ.get(DEVICES)) and int(expected) != jax.device_count():
        found = f"{jax.device_count()} of {jax.process_count()} process(es)"
        raise InputError(
            f"{DEVICES}: {expected} are expected, and jax finds {found}; ask for one task a GPU with --gres=gpu:N and "
            "--ntasks-per-node=N, without --gpus-per-task or --gpu-bind"
        )


def join(arguments: dict, timeout: int) -> None:
    """Start jax.distributed, as `start` says."""
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from StopSignal
    where = f"{ADDRESS} {os.environ[ADDRESS]!r}" if ADDRESS in os.environ else "Slurm's first node"

    def give_up():
        print(
            f"failed: the processes did not find each other at {where} in {timeout} s; check that it can be reached "
            "and that all were started",
            file=sys.stderr,
            flush=True,
        )
        os._exit(errors.FAILED)

    patience = threading.Timer(timeout, give_up)
    patience.start()
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=timeout + 60)
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(f"{where}: process 0 cannot listen there ({reason}); choose another port") from None
    finally:
        patience.cancel()


def alone(program: str) -> None:
    """Raises InputError where the environment says that this is one of several processes."""
    if processes():
        raise InputError(f"{program} runs in one process; start it once, under Slurm with srun --ntasks=1")


def is_first() -> bool:
    """Whether this process writes the run's files and speaks for all."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def from_first(text: str) -> str:
    """The text that process 0 gives, on all processes; of at most 500 bytes."""
    if jax.process_count() == 1:
        return text
    content = np.frombuffer(text.encode()[:500].ljust(500, b"\0"), np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(content)).rstrip(b"\0").decode(errors="replace")


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """errors.run for a program that goes on where it was and may have several processes.

    They end together where all are done or stopped. One that fails otherwise ends at once and closes its connections,
    by which the others notice; jax's own exit would wait minutes for them, and they for it. SIGTERM and SIGUSR2 are
    kept from here to the end of the process: before the first step for StopSignal, after the last since `srun
    --kill-on-bad-exit` sends one to all when the first has ended with 75.
    """

    def together(argv: list[str]) -> int | None:
        try:
            code = main(argv)
        except errors.Stopped:
            jax.distributed.shutdown()
            raise
        if not code:
            jax.distributed.shutdown()
        return code

    kept = (signal.SIGTERM, signal.SIGUSR2)
    for number in kept:
        signal.signal(number, lambda number, _: early.append(number))
    try:
        errors.run(together, resumes=True)
    except BaseException as error:
        for number in kept:  # a handler of Python's ends before the process does
            signal.signal(number, signal.SIG_IGN)
        if not jax.distributed.is_initialized():
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        code = error.code if isinstance(error, SystemExit) else errors.FAILED
        os._exit(code if isinstance(code, int) else errors.FAILED)


class Lock:
    """RUN/.lock: one process trains in a directory, until it closes this or ends in whatever way.

    Raises InputError where another holds it. A job that Slurm has requeued takes it over instead: its former life may
    live on where a node was cut off. The file's content names the holder, and `check` tells one that has lost it, also
    where the file system has no locks, or such that end at the node.
    """

    def __init__(self, path: Path, environ: Mapping[str, str] = os.environ):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.file = path, open(path, "a")  # noqa: SIM115
        self.name = f"{uuid.uuid4().hex} {platform.node()} {os.getpid()}".encode()
        end = time.monotonic() + (LOCK_PATIENCE if SLURM_STEP[0] in environ else 0)
        takes_over = int(environ.get(RESTARTS, 0)) > 0
        if takes_over:
            self._claim()
        while not (free := self._acquired()) and time.monotonic() < end:
            log.warning("%s: waiting for the process that holds it, at most %d s", path, end - time.monotonic())
            time.sleep(5)
        if takes_over:
            return
        if not free:
            self.close()
            where = str(path.parent)
            raise InputError(f"--workdir: another process is training in {where!r}; stop it or name another")
        self._claim()

    def check(self) -> None:
        """Raises InputError where another process has taken over; to be asked before the run directory changes."""
        if self.path.read_bytes() != self.name:
            raise InputError(f"--workdir: another process has taken over {str(self.path.parent)!r}; let it go on")

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _claim(self) -> None:
        self.path.write_bytes(self.name)

    def _acquired(self) -> bool:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True


class StopSignal:
    """Within it, SIGINT, SIGTERM and SIGUSR2 do not end the process but are kept; a second SIGINT does end it. So are
    those that came `early`."""

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    LATE = 2  # steps after which an answer is read, so that none waits for the device

    def __init__(self, mesh: Mesh):
        self.mesh, self.number = mesh, early[-1] if early else 0
        self.asked: collections.deque[jax.Array] = collections.deque()

    def __enter__(self) -> "StopSignal":
        self.before = {number: signal.signal(number, self._set) for number in self.NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def agreed(self) -> str:
        """The name of the signal, "" for none; to be asked once a step. A signal to any of several processes is one to
        all, LATE steps later at the same step."""
        number = self.number
        if jax.process_count() > 1:
            mine = np.full(jax.local_device_count(), number, np.int32)
            self.asked.append(_largest(to_devices({"number": mine}, self.mesh)["number"]))
            number = int(self.asked.popleft()) if len(self.asked) > self.LATE else 0
        return signal.Signals(number).name if number else ""

    def _set(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.number:
            raise KeyboardInterrupt
        self.number = number


early: list[int] = []  # signals that came to a program of `run` outside of its loop
_largest = jax.jit(jnp.max)
