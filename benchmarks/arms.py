"""Arms of a benchmark: each a process of its own, interleaved in rounds, so that other load meets all alike."""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxz.errors import InputError

TIMEOUT = 300.0  # seconds of one arm


def parse_seeds(text: str) -> list[int]:
    """Of --seeds: [0, 1, 2] of "0,1,2". Raises InputError."""
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise InputError(f"--seeds: {text!r} must be whole numbers, such as 0,1,2") from None


def run(command: Sequence[str], timeout: float = TIMEOUT) -> dict:
    """The JSON object that `command` prints last; {"error": why} where it fails, takes too long or prints none."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            return {"error": f"no end after {timeout:.0f} s"}
        finally:
            if process.poll() is None:  # too long, or interrupted: its workers too
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        out.seek(0)
        err.seek(0)
        printed, complaints = out.read().split("\n"), err.read().strip().split("\n")
    if code:
        return {"error": complaints[-1] or f"exit code {code}"}
    found = [line for line in printed if line.startswith("{")]
    try:
        return json.loads(found[-1])
    except (IndexError, ValueError):
        return {"error": "printed no JSON object"}


def interleave(
    arms: dict[str, Sequence[str]], rounds: int, before: Callable[[str], None] = lambda name: None
) -> dict[str, list[dict]]:
    """The results of each arm's command, round by round; before(name) comes before each. An arm that fails is not run
    again: its last result says why."""
    found = {name: [] for name in arms}
    for turn in range(rounds):
        for name, command in arms.items():
            if not failed(found[name]):
                before(name)
                found[name].append(run(command))
        print(f"round {turn + 1}/{rounds}", file=sys.stderr, flush=True)
    return found


def failed(results: list[dict]) -> str | None:
    """Why an arm's results do not count."""
    return results[-1].get("error") if results else None


def median_rate(results: list[dict], over: str) -> float:
    """Median over the rounds of samples per second of `over`: "wall_s" or "cpu_s"."""
    return statistics.median(result["samples"] / result[over] for result in results)


def warm(folder: Path) -> None:
    """Read all files of a folder, so that they are in the page cache."""
    block = bytearray(1 << 22)
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb", buffering=0) as file:
                while file.readinto(block):
                    pass
