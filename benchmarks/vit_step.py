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
from jaxz.mesh import make_mesh, to_devices
from jaxz.models import build, vit
from jaxz.optim import make_optimizer
from jaxz.state import abstract_state, fresh_state, make_step

ROUNDS, STEPS = 5, 10

# Dense bfloat16 FLOP/s by the data sheets (V100: float16), by a part of the device's name; the first that fits counts.
CHIPS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "V100": 125e12}

DECODER = dict(decoder_width=512, decoder_depth=8, decoder_heads=16)  # He et al. 2022, sec. 4
MASK_RATIO = 0.75


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

    @property
    def kept(self) -> int:
        """Patches that the encoder's blocks see."""
        return self.patches if self.objective == "supervised" else max(1, round(self.patches * (1 - MASK_RATIO)))


def config_of(task: Task, batch_size: int):
    config = default()
    config.model.update(vit.SIZES[task.size], patch=task.patch, dtype=task.dtype, attention=task.attention)
    config.losses = {"redshift": 1.0} if task.objective == "supervised" else {"mae": 1.0}
    config.mae = dict(mask_ratio=MASK_RATIO, band_mask=0.0, **DECODER)
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


def block_flops(tokens: int, width: int, depth: int, mlp: str = "gelu") -> int:
    """Of depth blocks: projections, MLP and attention, 2 a multiplication."""
    hidden = 2 * 4 * width if mlp == "gelu" else 3 * (-(-8 * width // 24) * 8)  # outputs and inputs of the MLP
    return depth * tokens * (8 * width**2 + 2 * width * hidden + 4 * tokens * width)


def forward_flops(task: Task) -> int:
    """Of matrix products and attention of one image's forward pass; what is done once a batch is left out."""
    size = vit.SIZES[task.size]
    width, pixels = size["width"], task.patch**2
    flops = 2 * task.patches * width * (task.bands * pixels + pixels + task.bands)  # stem
    flops += block_flops(task.kept, width, size["depth"], size.get("mlp", "gelu"))
    if task.objective == "supervised":
        return flops + 2 * width * default_bins()
    inner, depth = DECODER["decoder_width"], DECODER["decoder_depth"]
    flops += 2 * task.kept * width * inner + block_flops(task.patches, inner, depth)
    return flops + 2 * task.patches * inner * task.bands * pixels


def default_bins() -> int:
    return importlib.import_module("jaxz.objectives.redshift").SETTINGS["bins"]


def peak_flops(device: str) -> float | None:
    return next((rate for name, rate in CHIPS.items() if name in device), None)


def stepper(objective, prepare, config, host: dict, mesh) -> Callable[[], float]:
    """A function that takes STEPS training steps on one batch and returns their seconds; the first has been taken."""
    params = jax.eval_shape(lambda: objective.init(jax.random.key(0))[0])
    optimizer = make_optimizer(config.optim, config.train.steps, params)
    with jax.set_mesh(mesh):
        abstract = abstract_state(objective, optimizer, config, mesh)
        step, batch = make_step(objective, optimizer, prepare, config, abstract), to_devices(host, mesh)
        make = lambda: fresh_state(objective, optimizer, config)
        state = jax.jit(make, out_shardings=jax.tree.map(lambda a: a.sharding, abstract))()
        state, _ = step(state, batch)

    def run() -> float:
        nonlocal state
        with jax.set_mesh(mesh):
            began = time.perf_counter()
            for _ in range(STEPS):
                state, _ = step(state, batch)
            jax.block_until_ready(state)
            return time.perf_counter() - began

    return run


def jax_arm(task: Task, batch_size: int) -> Callable[[], float]:
    config, bands = config_of(task, batch_size), bands_of(task)
    normalisation = Normalisation(bands, (1.0,) * task.bands, task.image, 0.2, False)
    objective = objectives.Objective(build(config.model, bands, task.image), config, normalisation)
    return stepper(objective, lambda batch, key: batch, config, batch_of(task, batch_size), make_mesh(1, 1))


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
    device = jax.devices()[0].device_kind
    peak, rows = peak_flops(device), []
    for (task, name), own in chosen.items():
        taken = seconds[task, name]
        rate = own.batch * STEPS / taken
        flops = 3 * forward_flops(task) * rate  # a backward pass is two forward passes; recomputation does not count
        rows.append(
            {"library": name, **task._asdict(), "batch": own.batch, "by_batch": own.by_batch, "first_s": own.first_s}
            | {"images_per_second": rate, "step_ms": 1e3 * taken / STEPS, "flops_per_second": flops}
            | {"mfu": flops / peak if peak else None, "device": device}
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
