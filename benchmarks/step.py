"""What a training step takes, in one process, interleaved.

Of a dataset, and what each choice in it is worth:

    python -m benchmarks.step --dataset DATASET [--config configs/demo_direct.py] [--json FILE]

Of a ViT on synthetic images at the best of the batch sizes, with its share of the chip's FLOPs, beside PyTorch:

    python -m benchmarks.step --size B --batch 64,128,256 [--patch 8] [--image 64] [--bands 9] [--dtype bfloat16]
        [--attention auto] [--objective supervised,mae] [--peer torch] [--json FILE]

How long the step of a ViT-L takes to compile, and that of a ViT-Ti of one token to be called:

    python -m benchmarks.step --overhead [--json FILE]
"""

import argparse
import json
import os
from pathlib import Path

import jax

from benchmarks import vit_step
from jaxz import errors, objectives, runtime, train
from jaxz.config import parse
from jaxz.data.dataset import open_dataset
from jaxz.data.prepare import Normalisation, Prepare
from jaxz.mesh import make_mesh
from jaxz.models import attention, build, layers, vit


def runner(config, dataset, mesh, augment: bool, unroll: int):
    """A function that takes training steps on one batch of a dataset and returns their seconds."""
    layers.UNROLL = unroll
    normalisation = Normalisation.create(dataset.manifest, (), config.data.softening, config.data.deredden)
    objective = objectives.Objective(
        build(config.model, normalisation.bands, normalisation.size), config, normalisation
    )
    prepare = Prepare(dataset.manifest, normalisation, config.augment if augment else None, objective.views)
    stream = train.make_stream(config, dataset, objective, prepare, mesh)
    host = next(stream)
    stream.close()
    return vit_step.stepper(objective, prepare, config, host, mesh)


def of_dataset(options) -> dict:
    """Images a second as trained, and without what is done for speed or variety."""
    config, dataset, mesh = parse([f"--config={options.config}"]), open_dataset(options.dataset), make_mesh(1, 1)
    arms = {
        "as trained": runner(config, dataset, mesh, True, layers.UNROLL),
        "no augmentation": runner(config, dataset, mesh, False, layers.UNROLL),
        "blocks not unrolled": runner(config, dataset, mesh, True, 1),
    }
    images = config.train.batch_size * vit_step.STEPS
    rates = {name: images / seconds for name, seconds in vit_step.medians(arms).items()}
    for name, rate in rates.items():
        print(f"{name:22} {rate:8.0f} images/s   {rate / rates['as trained']:.2f} of as trained")
    return {"images_per_second": rates, "devices": jax.devices()[0].device_kind}


def of_synthetic(options) -> list[dict]:
    tasks = [
        vit_step.Task(
            options.size, options.patch, options.image, options.bands, options.dtype, options.attention, objective
        )
        for objective in options.objective.split(",")
    ]
    rows = vit_step.compare(tasks, [int(size) for size in options.batch.split(",")], options.peer)
    vit_step.show(rows)
    return rows


def overhead() -> dict:
    large, tiny = (
        vit_step.Task(size, patch, 64, 9, "float32", "auto", "supervised") for size, patch in (("L", 8), ("Ti", 64))
    )
    found = {"compile_s": vit_step.compile_seconds(large, 8), "dispatch_s": vit_step.dispatch_seconds(tiny)}
    print(f"compiling the step of a ViT-L {found['compile_s']:.1f} s")
    print(f"calling the step of a ViT-Ti {1e3 * found['dispatch_s']:.2f} ms")
    return found


def main(argv: list[str]) -> None:
    runtime.set_xla_flags()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.split("\n\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--dataset")
    what.add_argument("--size", choices=vit.SIZES)
    what.add_argument("--overhead", action="store_true")
    parser.add_argument("--config", default="configs/demo_direct.py")
    parser.add_argument("--patch", type=int, default=8)
    parser.add_argument("--image", type=int, default=64, help="pixels on a side")
    parser.add_argument("--bands", type=int, default=9)
    parser.add_argument("--batch", default="64", help="sizes to try, such as 64,128")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--attention", default="auto", choices=attention.KERNELS)
    parser.add_argument("--objective", default="supervised", help="supervised, mae or both, with a comma")
    parser.add_argument("--peer", action="append", default=[], choices=("torch",))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    if options.peer:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave the peer its memory
    report = overhead() if options.overhead else of_dataset(options) if options.dataset else of_synthetic(options)
    if options.json:
        options.json.write_text(json.dumps(report))


if __name__ == "__main__":
    errors.run(main)
