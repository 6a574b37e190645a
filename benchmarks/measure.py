"""What an arm's process measures of itself: rates, CPU time, memory; workers included. Linux only: reads /proc."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path


def family(pid: int | str = "self") -> Iterator[Path]:
    """The /proc entries of a process and of all below it."""
    yield Path(f"/proc/{pid}")
    with contextlib.suppress(OSError):  # it ended just now
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                yield from family(child)


def cpu_seconds() -> float:
    """CPU time so far of this process and all below it; getrusage would leave out the workers that still run."""
    ticks = 0
    for process in family():
        with contextlib.suppress(OSError):
            ticks += sum(map(int, (process / "stat").read_text().rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_bytes() -> int:
    """Largest resident memory of this process and of each below it, summed: pages that they share count in each."""
    total = 0
    for process in family():
        with contextlib.suppress(OSError):
            total += 1024 * int((process / "status").read_text().partition("VmHWM:")[2].split()[0])
    return total


def measure(epoch: Callable[[], Iterator], seconds: float) -> dict:
    """Rates over `seconds`, in as many epochs as it takes; an epoch's first batch, which waits for the start, does not
    count. Raises ValueError where an epoch has no second batch."""
    count, wall, cpu, firsts, peak = 0, 0.0, 0.0, [], 0
    while wall < seconds:
        start = time.perf_counter()
        batches = iter(epoch())
        next(batches)
        firsts.append(time.perf_counter() - start)
        before, cpu_before, start = count, cpu_seconds(), time.perf_counter()
        for batch in batches:
            count += len(batch)
            if wall + time.perf_counter() - start >= seconds:
                break
        wall, cpu = wall + time.perf_counter() - start, cpu + cpu_seconds() - cpu_before
        peak = max(peak, peak_bytes())
        if count == before:
            raise ValueError("an epoch has no second batch; use a larger dataset")
    cpu = max(cpu, 1 / os.sysconf("SC_CLK_TCK"))  # what the system can tell
    return {"samples": count, "wall_s": wall, "cpu_s": cpu, "first_batch_s": firsts[0], "peak_bytes": peak}
