"""Progress of long work on stderr: a bar on a terminal, lines in a log; work shared among threads or processes."""

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed

from rich.console import Console
from rich.progress import track as rich_track

SECONDS_BETWEEN_LINES = 10.0


def progress(items: Iterable, total: int, what: str) -> Iterator:
    """Yield `items`, saying how many of `total` are done."""
    if sys.stderr.isatty():
        yield from rich_track(items, what, total, console=Console(stderr=True))
        return
    last = time.monotonic()
    print(f"{what}: 0/{total}", file=sys.stderr, flush=True)
    for n, item in enumerate(items, 1):
        yield item
        if n == total or time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{what}: {n}/{total}", file=sys.stderr, flush=True)


def in_threads(function: Callable, items: Iterable, workers: int, what: str) -> list:
    """[function(item) for item in items] by `workers` threads, in the items' order. The first error, or Ctrl-C, ends it
    once the calls in flight are through; the rest are dropped."""
    items = list(items)
    pool = ThreadPoolExecutor(workers)
    try:
        futures = [pool.submit(function, item) for item in items]
        for future in progress(as_completed(futures), len(items), what):
            future.result()
        return [future.result() for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)


def in_processes(
    function: Callable, jobs: list[tuple], workers: int, what: str, start: Callable[[], None] | None = None
) -> None:
    """function(*job) for every job by `workers` new processes, each of which calls `start` first. The first error, or
    Ctrl-C, ends it once the calls in flight are through; the rest are dropped."""
    pool = ProcessPoolExecutor(min(workers, max(len(jobs), 1)), multiprocessing.get_context("spawn"), initializer=start)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # workers inherit it: Ctrl-C is their parent's business
    try:
        futures = [pool.submit(function, *job) for job in jobs]
        signal.signal(signal.SIGINT, handler)
        for future in progress(as_completed(futures), len(jobs), what):
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)
