"""How fast a run is: throughput, use of the device's peak, waiting for data, memory."""

import contextlib
import gc
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxz import objectives
from jaxz.data.prepare import Normalisation, Prepare
from jaxz.flops import matmul_flops
from jaxz.hardware import find_device
from jaxz.models import build
from jaxz.state import TrainState, make_gradients, of_one

COLLECT_EVERY = 100  # steps


class Meter:
    """What happened since it was last read, the first step, which compiles, left out."""

    def __init__(self, config: ConfigDict, mesh: Mesh):
        device = find_device(mesh.devices.flat[0].device_kind)
        self.peak = mesh.size * device.peak(config.model.get("dtype", "float32")) if device else 0.0  # 0: not known
        self.batch_size, self.flops = config.train.batch_size, 0.0
        self.restart()

    def restart(self) -> None:
        self.steps, self.stalled, self.began = 0, 0.0, time.monotonic()

    def know(self, flops: Callable[[dict], float], batch: dict) -> None:
        """flops(batch) of a step, asked for where they tell something."""
        self.flops = flops(batch) if self.peak else 0.0

    @contextlib.contextmanager
    def stall(self) -> Iterator[None]:
        """Around what waits for a batch."""
        began = time.monotonic()
        yield
        self.stalled += time.monotonic() - began

    def count(self, compiled: bool) -> None:
        """A step; where it was compiled for, the time begins after it."""
        self.steps += 1
        if compiled:
            self.restart()

    def read(self) -> dict[str, float]:
        """perf/images_per_s; perf/data_stall, the share of the time in which the loop waited for a batch; perf/mfu,
        model FLOPs over the devices' peak, where that is known; perf/memory_gib and perf/memory_peak_gib of this
        process's first device, or the peak of the process where the device does not say. {} without a step."""
        if not self.steps:
            return {}
        seconds = max(time.monotonic() - self.began, 1e-9)
        values = {
            "perf/images_per_s": self.batch_size * self.steps / seconds,
            "perf/data_stall": self.stalled / seconds,
        }
        if self.peak:
            values["perf/mfu"] = self.flops * self.steps / seconds / self.peak
        self.restart()
        return values | memory()


def memory() -> dict[str, float]:
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return {
            "perf/memory_gib": stats["bytes_in_use"] / 2**30,
            "perf/memory_peak_gib": stats["peak_bytes_in_use"] / 2**30,
        }
    unit = 1 if sys.platform == "darwin" else 2**10  # of ru_maxrss
    return {"perf/memory_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}


def training_flops(
    config: ConfigDict, normalisation: Normalisation, prepare: Prepare, abstract: TrainState, batch: dict
) -> float:
    """FLOPs that a training step needs for the whole batch: the matrix products of its gradients, of attention too, not
    those that are computed again to save memory (Chowdhery et al. 2022, appendix B). abstract: the state's shapes."""
    config = config.copy_and_resolve_references()
    for name, value in (("remat", "none"), ("attention", "xla")):  # products inside cuDNN's attention are not seen
        if name in config.model:
            config.model[name] = value
    objective = objectives.Objective(
        build(config.model, normalisation.bands, normalisation.size), config, normalisation
    )
    gradients, state = make_gradients(objective, prepare, config, abstract), abstract
    if config.train.members > 1:
        one = {name: jax.tree.map(of_one, getattr(abstract, name)) for name in ("params", "ema", "extra")}
        state = abstract._replace(**one)
    key = jax.eval_shape(lambda: jax.random.key(0))
    one_member = lambda state, batch, key: gradients(state, batch, key, None)
    return config.train.members * matmul_flops(one_member, state, batch, key)


class Garbage:
    """Within it Python collects garbage where it is told to, at the same step on all processes: whenever one of them
    stops to collect, all wait."""

    def __enter__(self) -> "Garbage":
        gc.collect()
        gc.freeze()  # what lives by now lives as long as the run
        gc.disable()
        return self

    def collect(self, step: int) -> None:
        if step % COLLECT_EVERY == 0:
            gc.collect()

    def __exit__(self, *_: object) -> None:
        gc.enable()
        gc.unfreeze()


class Profile:
    """A trace of the steps `first` to `last`, (), for none, in `folder`; TensorBoard's profile plugin and Perfetto read
    it."""

    def __init__(self, folder: Path, steps: tuple[int, int] | tuple[()]):
        self.folder, self.steps, self.running = folder, range(steps[0], steps[1] + 1) if steps else range(0), False

    def before(self, step: int) -> None:
        if step in self.steps and not self.running:
            jax.profiler.start_trace(self.folder)
            self.running = True

    def after(self, step: int, values: dict) -> None:
        if self.running and step + 1 not in self.steps:
            jax.block_until_ready(values)
            self.stop()

    def stop(self) -> None:
        if self.running:
            jax.profiler.stop_trace()
            self.running = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
