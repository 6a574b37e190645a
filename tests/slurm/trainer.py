"""A training of a job, slowed and recorded: `python -m tests.slurm.trainer OPTIONS -m jaxz.train ARGUMENTS ...`.

OPTIONS is JSON: {"sleep": seconds before a step, for each life of the job, until a signal comes; "slow_from": step of
that life; "raise": [step, process]: that one raises there, in the first life}.
The rows of every step are added to WORKDIR.rows.PROCESS.
"""

import json
import os
import sys
import time

from benchmarks.processes import record
from jaxz import loop, runtime, train

handed, keep = loop.prefetch, runtime.StopSignal._set


def main(argv: list[str]) -> None:
    options, process = json.loads(argv[0]), os.environ["SLURM_PROCID"]
    workdir = next(a.removeprefix("--workdir=") for a in argv if a.startswith("--workdir="))
    life = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    sleeps = options.get("sleep", [0])
    fails = options.get("raise") if life == 0 else None
    told: list[int] = []

    def hear(self, number, frame):
        told.append(number)
        keep(self, number, frame)

    def handing(*arguments):
        for n, batch in enumerate(handed(*arguments), 1):
            if n >= options.get("slow_from", 0):
                end = time.monotonic() + sleeps[min(life, len(sleeps) - 1)]
                while time.monotonic() < end and not told:
                    time.sleep(0.1)
            if [n, int(process)] == fails:
                raise RuntimeError(f"process {process} alone")
            yield batch

    loop.prefetch, runtime.StopSignal._set = handing, hear
    with record(f"{workdir}.rows.{process}"):
        runtime.run(train.fail_cleanly)


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.argv[1:] = given[3:]  # without OPTIONS -m jaxz.train
    main(given)
