"""A training of a job, slowed and recorded: `python -m tests.slurm.trainer OPTIONS -m jaxz.train ARGUMENTS ...`.

OPTIONS is JSON: {"sleep": seconds before a step, for each life of the job, "slow_from": step, "raise": [step, process]:
that one raises there, in the first life}.
The rows of every step are added to WORKDIR.rows.PROCESS.
"""

import json
import os
import sys
import time

from benchmarks.processes import record
from jaxz import loop, runtime, train

handed = loop.prefetch


def main(argv: list[str]) -> None:
    options, process = json.loads(argv[0]), os.environ["SLURM_PROCID"]
    workdir = next(a.removeprefix("--workdir=") for a in argv if a.startswith("--workdir="))
    life = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    sleeps = options.get("sleep", [0])
    fails = options.get("raise") if life == 0 else None

    def handing(*arguments):
        for n, batch in enumerate(handed(*arguments), 1):
            if n >= options.get("slow_from", 0):
                time.sleep(sleeps[min(life, len(sleeps) - 1)])
            if [n, int(process)] == fails:
                raise RuntimeError(f"process {process} alone, at {time.time()}")
            yield batch

    loop.prefetch = handing
    with record(f"{workdir}.rows.{process}"):
        runtime.run(train.fail_cleanly)


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.argv[1:] = given[3:]  # without OPTIONS -m jaxz.train
    main(given)
