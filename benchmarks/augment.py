"""What each augmentation takes of the device, a batch, beside a training step of a small ViT on the same images.

python -m benchmarks.augment [--batch 128] [--bands 10] [--size 32] [--json FILE]
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxz import errors, runtime
from jaxz.config import default, fill
from jaxz.data.augment import Augment
from jaxz.data.manifest import Band
from jaxz.models import build

ROUNDS = 7
OFF = default().augment.to_dict() | {"orientation": "none"}
ALONE = {
    "symmetries of the square": {"orientation": "square"},
    "symmetries and moves by whole pixels": {"orientation": "square", "shift": 2},
    "parts of a pixel": {"subpixel": True},
    "any angle": {"orientation": "any"},
    "noise": {"noise": (1.0, 2.0)},
    "seeing": {"psf_fwhm": (0.8, 1.1)},
    "reddening": {"ebv": 0.1},
    "lost bands": {"band_dropout": 0.2},
    "hole": {"hole": 5},
}
ARMS = ALONE | {"all of it": {name: value for settings in ALONE.values() for name, value in settings.items()}}


def augmenting(settings: dict, bands: tuple[Band, ...], flux: jax.Array):
    """A function that augments the batch and returns the CPU seconds of this process that it took."""
    own, count, size = Augment(ConfigDict(OFF | settings), bands, flux.shape[-1], flux.shape[-1]), *flux.shape[::3]
    numbers, sky = jnp.arange(count, dtype=jnp.uint32)[:, None], jnp.ones(flux.shape[:2])
    run = jax.jit(lambda flux, key: own(flux, flux < jnp.inf, sky, numbers, key, size))
    return timed(lambda: run(flux, jax.random.key(0)))


def training(bands: tuple[Band, ...], flux: jax.Array):
    """The same for the gradient of a ViT as that of the demo."""
    config = default()
    config.model = ConfigDict(dict(name="vit", width=128, depth=4, heads=4, patch=8))
    encoder = build(fill(config).model, bands, flux.shape[-1])
    params = encoder.init(jax.random.key(0))
    gradient = jax.jit(jax.grad(lambda params: encoder(params, flux, flux < jnp.inf).cls.var()))
    return timed(lambda: gradient(params))


def timed(run):
    jax.block_until_ready(run())

    def seconds() -> float:
        began = time.process_time()
        jax.block_until_ready(run())
        return time.process_time() - began

    return seconds


def main(argv: list[str]) -> None:
    runtime.set_xla_flags()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.augment", description=__doc__.split("\n\n")[0])
    for name, value in (("batch", 128), ("bands", 10), ("size", 32)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    fwhm = np.linspace(0.9, 0.7, options.bands)
    bands = tuple(Band(f"b{n}", 400.0 + 60 * n, 60.0, 27.0, 0.2, 2.0, 1.0, f) for n, f in enumerate(fwhm))
    shape = (options.batch, options.bands, options.size, options.size)
    flux = jax.random.normal(jax.random.key(1), shape)
    arms = {"a small ViT's gradient": training(bands, flux)}
    arms |= {name: augmenting(settings, bands, flux) for name, settings in ARMS.items()}
    seconds = {name: [] for name in arms}
    for _ in range(ROUNDS):
        for name, run in arms.items():
            seconds[name].append(run())
    best = {name: min(times) for name, times in seconds.items()}
    step = best["a small ViT's gradient"]
    for name, value in best.items():
        print(f"{name:38} {1e3 * value:7.1f} ms of CPU   {value / step:.2f} of the gradient")
    if options.json:
        options.json.write_text(json.dumps({"cpu_seconds": best, "shape": shape}))


if __name__ == "__main__":
    errors.run(main)
