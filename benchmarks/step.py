"""What a training step takes, and what each choice in it is worth, interleaved in one process.

python -m benchmarks.step --dataset DATASET [--config configs/demo_direct.py] [--json FILE]
"""

import argparse
import json
import time
from pathlib import Path

import jax
import numpy as np

from jaxz import errors, objectives, runtime, train
from jaxz.config import parse
from jaxz.data.dataset import open_dataset
from jaxz.data.prepare import Normalisation, Prepare
from jaxz.mesh import make_mesh, to_devices
from jaxz.models import build, layers
from jaxz.optim import make_optimizer
from jaxz.state import abstract_state, fresh_state, make_step

ROUNDS, STEPS = 5, 10


def runner(config, dataset, mesh, augment: bool, unroll: int):
    """A function that takes STEPS training steps on one batch and returns their seconds."""
    layers.UNROLL = unroll
    normalisation = Normalisation.create(dataset.manifest, (), config.data.softening, config.data.deredden)
    objective = objectives.Objective(
        build(config.model, normalisation.bands, normalisation.size), config, normalisation
    )
    prepare = Prepare(dataset.manifest, normalisation, config.augment if augment else None, objective.views)
    stream = train.make_stream(config, dataset, objective, prepare, mesh)
    host = next(stream)
    stream.close()
    params = jax.eval_shape(lambda: objective.init(jax.random.key(0))[0])
    optimizer = make_optimizer(config.optim, config.train.steps, params)
    abstract = abstract_state(objective, optimizer, config, mesh)
    step, batch = make_step(objective, optimizer, prepare, config, abstract), to_devices(host, mesh)
    make = lambda: fresh_state(objective, optimizer, config)
    state = jax.jit(make, out_shardings=jax.tree.map(lambda a: a.sharding, abstract))()
    state, _ = step(state, batch)

    def run() -> float:
        nonlocal state
        began = time.perf_counter()
        for _ in range(STEPS):
            state, _ = step(state, batch)
        jax.block_until_ready(state)
        return time.perf_counter() - began

    return run


def main(argv: list[str]) -> None:
    runtime.set_xla_flags()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.split("\n\n")[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--config", default="configs/demo_direct.py")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    config, dataset = parse([f"--config={options.config}"]), open_dataset(options.dataset)
    mesh = make_mesh(1, 1)
    with jax.set_mesh(mesh):
        arms = {
            "as trained": runner(config, dataset, mesh, True, layers.UNROLL),
            "no augmentation": runner(config, dataset, mesh, False, layers.UNROLL),
            "blocks not unrolled": runner(config, dataset, mesh, True, 1),
        }
        seconds = {name: [] for name in arms}
        for _ in range(ROUNDS):
            for name, run in arms.items():
                seconds[name].append(run())
    rates = {name: config.train.batch_size * STEPS / float(np.median(times)) for name, times in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:22} {rate:8.0f} images/s   {rate / rates['as trained']:.2f} of as trained")
    if options.json:
        options.json.write_text(json.dumps({"images_per_second": rates, "devices": jax.devices()[0].device_kind}))


if __name__ == "__main__":
    errors.run(main)
