"""Several processes of one training on this machine, each with a record of what it hands to its steps.

    python -m benchmarks.processes RECORD TRAIN-ARGUMENTS ...

is `python -m jaxz.train TRAIN-ARGUMENTS ...`, whose process P adds a line {"step", "rows", "time"} to RECORD.P for
every batch that goes into a step.
"""

import collections
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from jaxz import loop, runtime, train
from jaxz.data.stream import Stream

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def record(path: str):
    """Within it, in this process. A line is one write, so that a kill leaves whole lines."""
    read, run_loop, prefetch = Stream.__next__, loop.Run.loop, loop.prefetch
    file = os.open(f"{path}.{os.environ.get(runtime.ID, '0')}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    rows: collections.deque = collections.deque()
    first = 0

    def reading(stream):
        batch = read(stream)
        rows.append(batch["row"].tolist())
        return batch

    def looping(run, step, state, stream, flops):
        nonlocal first
        first = int(state.step)
        rows.clear()
        return run_loop(run, step, state, stream, flops)

    def handing(*arguments):
        for n, batch in enumerate(prefetch(*arguments), first + 1):
            line = {"step": n, "rows": rows.popleft(), "time": time.time()}
            os.write(file, json.dumps(line).encode() + b"\n")
            yield batch

    Stream.__next__, loop.Run.loop, loop.prefetch = reading, looping, handing
    try:
        yield
    finally:
        Stream.__next__, loop.Run.loop, loop.prefetch = read, run_loop, prefetch
        os.close(file)


def launch(count: int, arguments: list[str], output: Path, module: str = "jaxz.train") -> list[subprocess.Popen]:
    """Start `count` processes of `python -m module arguments`, on the CPU; what process P says goes to output.P."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = []
    for number in range(count):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        environment |= {runtime.ADDRESS: address, runtime.COUNT: str(count), runtime.ID: str(number)}
        with open(f"{output}.{number}", "ab") as file:
            command = [sys.executable, "-m", module, *map(str, arguments)]
            processes.append(subprocess.Popen(command, env=environment, stdout=file, stderr=file))
    return processes


def finish(processes: list[subprocess.Popen], seconds: float) -> list[int]:
    """The exit codes. Raises subprocess.TimeoutExpired where they do not all end in `seconds`; none is left running."""
    end = time.monotonic() + seconds
    try:
        return [process.wait(max(0.1, end - time.monotonic())) for process in processes]
    finally:
        kill(processes)


def kill(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


def read_record(path: Path, count: int) -> list[list[dict]]:
    """[process][line] of what `count` processes have recorded so far, whole lines only."""
    files = (Path(f"{path}.{number}") for number in range(count))
    contents = (file.read_bytes() if file.exists() else b"" for file in files)
    return [[json.loads(line) for line in content.split(b"\n")[:-1]] for content in contents]


if __name__ == "__main__":
    path, sys.argv[1:] = sys.argv[1], sys.argv[2:]
    with record(path):
        runtime.run(train.fail_cleanly)
