"""How a process that computes starts and stops."""

import fcntl
import importlib.metadata
import os
import signal
from pathlib import Path
from typing import IO

from jaxz.errors import InputError


def set_xla_flags() -> None:
    """Work around jaxlib 0.10's CPU compiler: the gradient of a dense layer on a slice of the batch crashes the process
    where YNN fusion is on (and it is slower). Must run before jax starts its backend,
    which its import alone does not."""
    flag = "--xla_cpu_experimental_ynn_fusion_type="
    flags = os.environ.get("XLA_FLAGS", "")
    if importlib.metadata.version("jaxlib").startswith("0.10.") and flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()


def lock(path: Path) -> IO:
    """A file that only one process can hold: until it is closed, or the process ends in whatever way.

    Raises InputError where another holds it. A file system without locks is trusted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "w")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(
            f"--workdir: another process is training in {str(path.parent)!r}; stop it or name another"
        ) from None
    except OSError:
        pass
    return file


class StopSignal:
    """Within it, SIGINT, SIGTERM and SIGUSR2 do not end the process but make this true; a second SIGINT does end it."""

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

    def __init__(self):
        self.name = ""

    def __enter__(self) -> "StopSignal":
        self.before = {number: signal.signal(number, self._set) for number in self.NUMBERS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return bool(self.name)

    def __str__(self) -> str:
        return self.name

    def _set(self, number, frame):
        if number == signal.SIGINT and self.name:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
