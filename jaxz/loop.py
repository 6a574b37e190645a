"""The loop of a run, and what it writes to the run directory."""

import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxz import errors, logs, runtime
from jaxz.checkpoint import Checkpoints
from jaxz.data.stream import Stream
from jaxz.files import replace
from jaxz.mesh import to_devices
from jaxz.monitor import EVERY, Monitor
from jaxz.perf import Garbage, Meter, Profile
from jaxz.state import TrainState

log = logs.log
AHEAD = 2  # steps that wait on the device: it never idles, and waiting for a batch is waiting for data


Transferred = tuple[dict[str, jax.Array], dict]  # a batch on the devices, and the state of the stream after it


class Run:
    """The loop, and what it writes to the run directory. Of several processes all take part in checkpoints; the first
    writes the rest."""

    def __init__(
        self,
        workdir: Path,
        config: ConfigDict,
        checkpoints: Checkpoints,
        monitor: Monitor,
        meta: dict,
        mesh: Mesh,
        seconds: float,
        lock: runtime.Lock | None,
    ):
        self.lock = lock  # of the run directory, which the first holds
        self.workdir, self.config, self.checkpoints, self.meta, self.mesh = workdir, config, checkpoints, meta, mesh
        self.monitor = monitor
        self.seconds, self.began = seconds, time.monotonic()  # spent before this process, and its own beginning
        # metrics still on the device: read a step late, so that logging never blocks
        self.waiting: deque[tuple[int, dict[str, jax.Array]]] = deque()
        self.written = ""  # the newest loss on disk, with its step
        self.record: logs.Record | None = None

    def loop(self, step: jax.stages.Wrapped, state: TrainState, stream: Stream, flops: Callable[[dict], float]) -> None:
        """Train to the last step; flops(batch): of one. Raises Stopped after saving where a signal came,
        FloatingPointError for a loss that is not finite."""
        config, mesh = self.config, self.mesh
        first, last = int(state.step), config.train.steps
        if runtime.is_first():
            self.record = logs.Record(self.workdir, first)
        shown = self.record is not None
        batches, meter = prefetch(stream, mesh), Meter(config, mesh)
        running: deque[jax.Array] = deque()
        bar = logs.Bar(self.workdir.name, last, first, shown)
        profile = Profile(self.workdir / "profile", config.train.profile if shown else ())
        with contextlib.closing(batches), bar, runtime.StopSignal(mesh) as signals, Garbage() as garbage, profile:
            for n in range(first + 1, last + 1):
                with meter.stall():
                    batch, stream_state = next(batches)
                if n == first + 1:
                    meter.know(flops, batch)
                profile.before(n)
                with jax.profiler.StepTraceAnnotation("train", step_num=n):
                    state, values = step(state, batch)
                profile.after(n, values)
                garbage.collect(n)
                running.append(values["loss"])
                if len(running) > AHEAD:
                    jax.block_until_ready(running.popleft())
                stop = signals.agreed()
                meter.count(n == first + 1)
                looks = n % EVERY == 0 or n == last
                if looks or n % config.train.log_every == 0:
                    if looks:
                        values |= self.monitor(state.params, self.meta["monitor"])
                    self.waiting.append((n, values))
                    self.write_metrics(keep=1)
                    bar.update(n, f"{self.written}{self.write_perf(n, meter.read())}")
                if stop or n == last or n % config.checkpoint.every == 0:
                    self.save(n, state, values, stream_state)
                if stop and n < last:
                    self.checkpoints.close()
                    raise errors.Stopped(f"{stop} at step {n} of {last}, saved; run the same command again to go on")
        self.checkpoints.finish()
        done = ", ".join(filter(None, (f"done, {last} steps", self.written.removesuffix(", "))))
        log.info("%s: %s", self.workdir, done)

    def write_metrics(self, keep: int) -> None:
        """Write all but the newest `keep` waiting lines."""
        while len(self.waiting) > keep:
            n, found = self.waiting.popleft()
            values = {name: float(value) for name, value in jax.device_get(found).items()}
            if self.record and self.lock:
                self.lock.check()
                self.record.write(n, values)
                self.monitor.warn(n, values, self.meta["monitor"])
            self.written = f"loss {values['loss']:.4g} at step {n}, "
            self.check_finite(n, values)

    def write_perf(self, n: int, values: dict[str, float]) -> str:
        """Returns what the bar says of it. Nothing where no step has been measured yet."""
        if not values:
            return ""
        if self.record:
            self.record.write_perf(n, values)
        return f"{values['perf/images_per_s']:.0f} images/s"

    def check_finite(self, n: int, values: Mapping[str, float]) -> None:
        """A gradient that is not finite has spoilt the parameters, whatever the loss was before it."""
        for name in ("loss", "optim/grad_norm"):
            if not np.isfinite(values[name]):
                raise FloatingPointError(f"{name} is {values[name]} at step {n}; lower optim.lr or look at the data")

    def save(self, n: int, state: TrainState, values: dict[str, jax.Array], stream_state: dict) -> None:
        """Metrics first: every line up to a step is on disk before the step's checkpoint commits."""
        self.write_metrics(keep=0)
        self.check_finite(n, jax.device_get(values))
        if self.record and self.lock:
            self.lock.check()
            self.record.flush()
        seconds = self.seconds + time.monotonic() - self.began
        self.checkpoints.save(state, stream_state, {**self.meta, "seconds": seconds})
        if self.record:
            write_compute(self.workdir, self.config, state, seconds, self.mesh)

    def close(self) -> None:
        if self.record:
            self.record.close()


def write_compute(workdir: Path, config: ConfigDict, state: TrainState, seconds: float, mesh: Mesh) -> None:
    """RUN/compute.json: what the run has cost so far, without the run that it started from."""
    done = int(state.step)
    cost = {
        "steps": done,
        "batch_size": config.train.batch_size,
        "images": done * config.train.batch_size,
        "seconds": round(seconds, 1),
        "parameters": sum(a.size for a in jax.tree.leaves(state.params)),
        "devices": f"{mesh.size} x {jax.devices()[0].device_kind}",
    }
    replace(workdir / "compute.json", json.dumps(cost, indent=1).encode())


def prefetch(stream: Stream, mesh: Mesh, depth: int = 2) -> Generator[Transferred]:
    """(batch on the devices, state of the stream after it), `depth` transfers ahead, by a thread of their own."""

    def transfer() -> Transferred:
        return to_devices(next(stream), mesh), stream.state()

    pool = ThreadPoolExecutor(1, thread_name_prefix="jaxz-transfer")
    ready = deque(pool.submit(transfer) for _ in range(depth + 1))
    try:
        while True:
            pair = ready.popleft().result()
            ready.append(pool.submit(transfer))
            yield pair
    finally:
        pool.shutdown(cancel_futures=True)
