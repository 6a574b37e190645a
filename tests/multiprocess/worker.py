"""Trains several runs one after another in this process, one of several: `python -m tests.multiprocess.worker RUNS`.

RUNS is JSON: a list of {"workdir", "arguments"} and, optionally, {"stop": [step, process, signal]}: there that process
alone gets the signal, or {"fail": [step, process]}: there it alone raises. Rows of every step are recorded in
WORKDIR.rows.PROCESS, what a stopped run said in WORKDIR.stopped.PROCESS; if it is the last, the process ends with it.
"""

import json
import os
import signal
from pathlib import Path

import jax

from benchmarks.processes import record
from jaxz import errors, loop, runtime, train

handed = loop.prefetch


def at(step: int, process: int, action) -> None:
    """`action()` in that process when it has handed out so many batches."""

    def handing(*arguments):
        for n, batch in enumerate(handed(*arguments), 1):
            if n == step and process == jax.process_index():
                action()
            yield batch

    loop.prefetch = handing


def fail():
    raise RuntimeError("this process alone")


def main(argv: list[str]) -> None:
    runs = json.loads(Path(argv[0]).read_text())
    for run in runs:
        loop.prefetch = handed
        if "stop" in run:
            *place, name = run["stop"]
            at(*place, lambda name=name: os.kill(os.getpid(), signal.Signals[name]))
        if "fail" in run:
            at(*run["fail"], fail)
        with record(f"{run['workdir']}.rows"):
            try:
                train.main([*run["arguments"], f"--workdir={run['workdir']}"])
            except errors.Stopped as stopped:
                Path(f"{run['workdir']}.stopped.{jax.process_index()}").write_text(str(stopped))
                if run is runs[-1]:
                    raise


if __name__ == "__main__":
    runtime.run(main)
