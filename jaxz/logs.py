"""What a run says: metrics.jsonl, perf.jsonl, tensorboard/, log.txt and a progress bar."""

import json
import logging
import logging.handlers
import os
import sys
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jaxz.errors import InputError
from jaxz.events import Events
from jaxz.files import replace

log = logging.getLogger("jaxz")


def hold_log() -> None:
    """Warnings go to standard error, and are kept for the log.txt of a start_log to come."""
    log.setLevel(logging.WARNING)
    log.propagate = False
    log.handlers = [logging.StreamHandler(sys.stderr), logging.handlers.MemoryHandler(1000, flushOnClose=False)]


class LogFile(logging.FileHandler):
    """Keeps silent where it cannot write, such as on a full disk: standard error has the message."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def start_log(workdir: Path | None) -> None:
    """Messages go to standard error and to RUN/log.txt, which begins with those held; without a workdir, only warnings,
    to standard error."""
    held = [r for handler in log.handlers for r in getattr(handler, "buffer", ())]
    log.setLevel(logging.INFO if workdir else logging.WARNING)
    log.propagate = False
    log.handlers = [logging.StreamHandler(sys.stderr)]
    if workdir:
        file = LogFile(workdir / "log.txt")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(file)
        for record in held:
            file.handle(record)


class Metrics:
    """A file such as RUN/metrics.jsonl: a line a logged step, each step once. Opening it for step N cuts the lines
    after N, and a last line that a crash left unfinished. Raises InputError for any other line that is no object with a
    step."""

    def __init__(self, path: Path, step: int):
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else ()  # past the last newline: unfinished
        kept = [line + b"\n" for n, line in enumerate(lines, 1) if step_of(line, f"{path}, line {n}") <= step]
        replace(path, b"".join(kept))
        self.file = open(path, "a", buffering=1)  # noqa: SIM115  a line at a time, for those who watch

    def write(self, step: int, values: dict[str, float]) -> None:
        self.file.write(json.dumps({"step": step, **{name: float(value) for name, value in values.items()}}) + "\n")

    def flush(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.flush()
        self.file.close()


class Record:
    """The numbers of a run from step N on: metrics.jsonl, what a step gives, the same however it is interrupted;
    perf.jsonl, what it took, on this machine and this time; tensorboard/, both."""

    def __init__(self, workdir: Path, step: int):
        self.metrics, self.perf = (Metrics(workdir / f"{name}.jsonl", step) for name in ("metrics", "perf"))
        self.events = Events(workdir / "tensorboard", step)

    def write(self, step: int, values: dict[str, float]) -> None:
        self.metrics.write(step, values)
        self.events.write(step, values)

    def write_perf(self, step: int, values: dict[str, float]) -> None:
        self.perf.write(step, values)
        self.events.write(step, values)

    def flush(self) -> None:
        for file in (self.metrics, self.perf, self.events):
            file.flush()

    def close(self) -> None:
        for file in (self.metrics, self.perf, self.events):
            file.close()


def step_of(line: bytes, where: str) -> int:
    """The step of a line of metrics. Raises InputError, which names `where`, for a damaged one."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        step = None
    if type(step) is not int:
        raise InputError(f"{where}: no object with a step; mend or remove the line")
    return step


class Bar:
    """A progress bar on a terminal; elsewhere a plain line now and then. Not shown, it does nothing."""

    LINES = 20  # in all, where there is no terminal

    def __init__(self, title: str, total: int, done: int = 0, shown: bool = True):
        self.title, self.total, self.done, self.shown = title, total, done, shown
        self.live = shown and sys.stderr.isatty()
        if self.live:
            from rich.console import Console

            columns = (
                "{task.description}",
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self.progress = Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
            self.task = self.progress.add_task(title, total=total, completed=done, note="")
            self.progress.start()

    def update(self, done: int, note: str = "") -> None:
        if self.live:
            self.progress.update(self.task, completed=done, note=note)
        elif self.shown and done * self.LINES // max(self.total, 1) > self.done * self.LINES // max(self.total, 1):
            print(f"{self.title} {done}/{self.total} {note}".rstrip(), file=sys.stderr, flush=True)
        self.done = done

    def close(self) -> None:
        if self.live:
            self.progress.stop()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
