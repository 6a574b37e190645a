"""Training steps of a ViT on synthetic images in memory: forward, backward and update."""

import gc
import importlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jaxz import objectives
from jaxz.config import default, fill
from jaxz.data.manifest import Band
from jaxz.data.prepare import Normalisation
from jaxz.flops import matmul_flops
from jaxz.hardware import find_device
from jaxz.mesh import make_mesh, to_devices
from jaxz.models import build, vit
from jaxz.optim import make_optimizer
from jaxz.state import abstract_state, fresh_state, make_step

ROUNDS, STEPS = 5, 10

DECODER = dict(decoder_width=512, decoder_depth=8, decoder_heads=16)  # He et al. 2022, sec. 4


class Task(NamedTuple):
    size: str  # of vit.SIZES
    patch: int
    image: int  # pixels on a side
    bands: int
    dtype: str
    attention: str
    objective: str  # "supervised": redshift, or "mae"

    @property
    def patches(self) -> int:
        return (self.image // self.patch) ** 2


def config_of(task: Task, batch_size: int):
    config = default()
    config.model.update(vit.SIZES[task.size], patch=task.patch, dtype=task.dtype, attention=task.attention)
    config.losses = {"redshift": 1.0} if task.objective == "supervised" else {"mae": 1.0}
    config.mae = dict(mask_ratio=0.75, band_mask=0.0, **DECODER)
    config.train.batch_size = batch_size
    return fill(config)


def bands_of(task: Task) -> tuple[Band, ...]:
    wavelengths = np.geomspace(350.0, 1000.0, task.bands)
    return tuple(Band(f"b{n}", nm, 100.0, 27.0, 0.2, 3.0, 1.0, 0.8) for n, nm in enumerate(wavelengths))


def batch_of(task: Task, batch_size: int) -> dict[str, np.ndarray]:
    """Noise: image, mask [B,C,H,W], sky [B,C], z and z_err [B]."""
    rng = np.random.default_rng(0)
    shape = (batch_size, task.bands, task.image, task.image)
    batch = {"image": rng.standard_normal(shape, np.float32), "mask": np.ones(shape, bool)}
    batch |= {"sky": np.ones(shape[:2], np.float32), "z": rng.uniform(0, 3, batch_size).astype(np.float32)}
    return batch | {"z_err": np.full(batch_size, 1e-3, np.float32), "nonfinite": np.zeros(batch_size, np.float32)}


def objective_of(task: Task, config):
    bands = bands_of(task)
    normalisation = Normalisation(bands, (1.0,) * task.bands, task.image, 0.2, False)
    return objectives.Objective(build(config.model, bands, task.image), config, normalisation)


def forward_flops(task: Task) -> float:
    """Of matrix products and attention of one image's forward pass; what is done once a batch is left out."""
    objective = objective_of(task, config_of(task._replace(attention="xla"), 1))  # whose products can be seen
    params, extra = jax.eval_shape(objective.init, jax.random.key(0))
    loss = lambda params, batch: objective.loss(params, {}, extra, batch, jax.random.key(0), 0)[0]
    one, two = (matmul_flops(loss, params, batch_of(task, count)) for count in (1, 2))
    return two - one


def made(objective, prepare, config, host: dict, mesh) -> tuple:
    """(the jitted training step, what makes its state, its batch), to be used with `mesh` set."""
    params = jax.eval_shape(lambda: objective.init(jax.random.key(0))[0])
    optimizer = make_optimizer(config.optim, config.train.steps, params)
    abstract = abstract_state(objective, optimizer, config, mesh)
    make = lambda: fresh_state(objective, optimizer, config)
    sharded = jax.jit(make, out_shardings=jax.tree.map(lambda a: a.sharding, abstract))
    return make_step(objective, optimizer, prepare, config, abstract), sharded, to_devices(host, mesh)


def stepper(objective, prepare, config, host: dict, mesh) -> Callable[[], float]:
    """A function that takes STEPS training steps on one batch and returns their seconds; the first has been taken."""
    with jax.set_mesh(mesh):
        step, make, batch = made(objective, prepare, config, host, mesh)
        state, _ = step(make(), batch)

    def run() -> float:
        nonlocal state
        with jax.set_mesh(mesh):
            began = time.perf_counter()
            for _ in range(STEPS):
                state, _ = step(state, batch)
            jax.block_until_ready(state)
            return time.perf_counter() - began

    return run


def arguments(task: Task, batch_size: int) -> tuple:
    """Those of `made` and `stepper`, on one device."""
    config = config_of(task, batch_size)
    return objective_of(task, config), lambda batch, key: batch, config, batch_of(task, batch_size), make_mesh(1, 1)


def jax_arm(task: Task, batch_size: int) -> Callable[[], float]:
    return stepper(*arguments(task, batch_size))


def compile_seconds(task: Task, batch_size: int) -> float:
    """Of tracing and compiling the step."""
    with jax.set_mesh(make_mesh(1, 1)):
        step, make, batch = made(*arguments(task, batch_size))
        state = jax.eval_shape(make)
        began = time.perf_counter()
        step.lower(state, batch).compile()
        return time.perf_counter() - began


def dispatch_seconds(task: Task) -> float:
    """Until the call of a step of one image returns, the state of the one before being ready: the median. What it has
    to compute where the device is the CPU itself is in it."""
    with jax.set_mesh(make_mesh(1, 1)):
        step, make, batch = made(*arguments(task, 1))
        state, seconds = jax.block_until_ready(step(make(), batch)[0]), []
        for _ in range(ROUNDS * STEPS):
            began = time.perf_counter()
            state, _ = step(state, batch)
            seconds.append(time.perf_counter() - began)
            jax.block_until_ready(state)
    return float(np.median(seconds))


def medians(arms: dict) -> dict:
    """{arm: median seconds of its STEPS steps} over interleaved rounds, of {arm: run}."""
    seconds = {name: [] for name in arms}
    for _ in range(ROUNDS):
        for name, run in arms.items():
            seconds[name].append(run())
    return {name: float(np.median(times)) for name, times in seconds.items()}


class Chosen(NamedTuple):
    batch: int
    run: Callable[[], float]
    first_s: float  # until the first steps are done: mostly compiling
    by_batch: dict[int, float | None]  # images a second of every batch size; None where memory is too small


def best(arm, task: Task, batch_sizes: list[int]) -> Chosen:
    """The batch size with the most images a second. Raises MemoryError where memory is too small for all."""
    chosen, rates = None, {}
    for size in batch_sizes:
        run = None  # frees the last one's arrays
        gc.collect()
        try:
            began = time.perf_counter()
            run = arm(task, size)
            first = time.perf_counter() - began
            rates[size] = size * STEPS / min(run(), run())
        except RuntimeError as error:  # jax's and torch's
            if "out of memory" not in str(error).lower():
                raise
            rates[size] = None
            continue
        if chosen is None or rates[size] > rates[chosen.batch]:
            chosen = Chosen(size, run, first, rates)
    if chosen is None:
        raise MemoryError(f"no batch of {batch_sizes} fits the device; give smaller ones with --batch")
    return chosen


def compare(tasks: list[Task], batch_sizes: list[int], peers: list[str]) -> list[dict]:
    """A row for each task and library at its best batch size, from interleaved rounds."""
    libraries = {"jaxz": jax_arm} | {peer: importlib.import_module(f"benchmarks.{peer}_step").arm for peer in peers}
    chosen = {(task, name): best(arm, task, batch_sizes) for task in tasks for name, arm in libraries.items()}
    seconds = medians({case: own.run for case, own in chosen.items()})
    kind, rows = jax.devices()[0].device_kind, []
    device = find_device(kind)
    for (task, name), own in chosen.items():
        taken = seconds[task, name]
        rate = own.batch * STEPS / taken
        peak = device.peak(task.dtype) if device else 0.0  # 0: not known
        flops = 3 * forward_flops(task) * rate  # a backward pass is two forward passes; recomputation does not count
        rows.append(
            {"library": name, **task._asdict(), "batch": own.batch, "by_batch": own.by_batch, "first_s": own.first_s}
            | {"images_per_second": rate, "step_ms": 1e3 * taken / STEPS, "flops_per_second": flops}
            | {"mfu": flops / peak if peak else None, "device": kind}
        )
    return rows


def show(rows: list[dict]) -> None:
    print("library  objective    batch  images/s  ms/step  TFLOP/s    MFU  first, s")
    for row in rows:
        mfu = f"{row['mfu']:.3f}" if row["mfu"] else "-"
        print(
            f"{row['library']:8} {row['objective']:11} {row['batch']:6} {row['images_per_second']:9.1f} "
            f"{row['step_ms']:8.2f} {row['flops_per_second'] / 1e12:8.2f} {mfu:>6} {row['first_s']:9.1f}"
        )
