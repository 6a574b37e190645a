"""Progress of long work on stderr: a bar on a terminal, lines in a log; work shared among threads or processes."""

import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from rich.console import Console
from rich.progress import track as rich_track

SECONDS_BETWEEN_LINES = 10.0
WATCH = 0.5  # seconds
SECONDS_UNTOLD = 1.0  # of work that is done sooner only the end is told


def progress(items: Iterable, total: int, what: str) -> Iterator:
    """Yield `items`, saying how many of `total` are done, at which rate, and when they will be."""
    if sys.stderr.isatty():
        yield from rich_track(items, what, total, console=Console(stderr=True))
        return
    began, told = time.monotonic(), 0.0
    for n, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        due = now - began >= SECONDS_UNTOLD and now - told >= SECONDS_BETWEEN_LINES
        if due or n == total > 1:
            told, rate = now, n / max(now - began, 1e-9)
            left = f"{(total - n) / rate:.0f} s left" if n < total else f"{now - began:.0f} s in all"
            print(f"{what}: {n}/{total}, {rate:.3g}/s, {left}", file=sys.stderr, flush=True)


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


def begin(parent: int, start: Callable[[], None] | None) -> None:
    """The start of a worker, which ends soon after its parent was killed: nobody waits for what it does."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if start is not None:
        start()


class Pool:
    """New processes that stay for several rounds of work, each of which calls `start` first; with one worker, this
    process itself does the work.

    with Pool(workers) as pool:
        pool.map(function, [(argument, ...), ...], "what")
    """

    def __init__(self, workers: int, start: Callable[[], None] | None = None):
        self.workers, self.start = workers, start
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def map(self, function: Callable, jobs: list[tuple], what: str) -> list:
        """[function(*job) for job in jobs]. The first error, or Ctrl-C, ends it once the calls in flight are through;
        the rest are dropped. Raises ChildProcessError where a process was killed: it can say nothing itself."""
        if self.workers == 1 or len(jobs) < 2:
            if self.start is not None:
                self.start()
            return [function(*job) for job in progress(jobs, len(jobs), what)]
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # workers inherit it: Ctrl-C is their parent's business
        try:
            if self.pool is None:
                self.pool = ProcessPoolExecutor(
                    self.workers,
                    multiprocessing.get_context("spawn"),
                    initializer=begin,
                    initargs=(os.getpid(), self.start),
                )
            futures = [self.pool.submit(function, *job) for job in jobs]
        finally:
            signal.signal(signal.SIGINT, handler)
        try:
            for future in progress(as_completed(futures), len(futures), what):
                future.result()
        except BaseException as error:
            for future in futures:
                future.cancel()
            if isinstance(error, BrokenProcessPool):
                told = f"{what}: a worker process was killed, as a system does that runs out of memory"
                raise ChildProcessError(errno.ECHILD, f"{told}; give fewer workers") from None
            raise
        return [future.result() for future in futures]
