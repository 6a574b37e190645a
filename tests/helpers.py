"""A small dataset of blobs whose colour depends on redshift: quick to write, learnable."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxz.data.manifest import Array, Band, Column, Manifest
from jaxz.data.writer import DatasetWriter, with_images

BANDS = ("g", "r", "i")
# Of processes that train for longer than they compile: machine code that is optimised a little (conftest.py: not).
OPTIMISED = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": "--xla_backend_optimization_level=1"}


def on_devices(count: int) -> dict[str, str]:
    """The environment of a process on so many devices of the CPU."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def blobs(
    path: Path,
    samples: int = 96,
    size: int = 16,
    shards: int | list[int] = 3,
    seed: int = 0,
    fill: float = 0.0,
    encoding: str = "raw",
    alter: Callable[[np.ndarray, dict], None] = lambda image, columns: None,
) -> Path:
    """Every tenth object lacks band g, whose pixels hold `fill`; half have a redshift; sky sigma 1.

    shards: how many, or the numbers of the samples at which another begins. alter(image [N,3,H,W], columns) changes
    what is written."""
    bands = tuple(
        Band(name, wavelength, 100.0, 27.0, 0.2, extinction, 1.0, 0.8)
        for name, wavelength, extinction in zip(BANDS, (480.0, 620.0, 770.0), (3.2, 2.3, 1.7), strict=True)
    )
    kinds = {"split": "string", "z_kind": "string", "z": "float32", "z_err": "float32", "ebv": "float32"}
    kinds |= {"true_z": "float32", "bands_observed": "uint32", "mag_ref": "float32", "object_id": "int64"}
    kinds |= {f"flux_{b}": "float32" for b in BANDS} | {f"fluxerr_{b}": "float32" for b in BANDS}
    manifest = Manifest(
        arrays={"image": Array("image", "float16", (len(BANDS), size, size))},
        bands=bands,
        columns={name: Column(kind) for name, kind in kinds.items()},
    )
    manifest = with_images(manifest, encoding)
    writer = DatasetWriter(path, manifest, plan={"samples": samples, "seed": seed, "fill": fill})
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - size / 2
    profile = np.exp(-(x**2 + y**2) / 8)
    ids = np.arange(samples)
    z = rng.uniform(0.1, 1.5, samples)
    flux = rng.uniform(20, 60, samples)[:, None] * np.stack([1 / (1 + 2 * z), np.ones(samples), 1 + z], 1)
    noise = rng.normal(size=(samples, len(BANDS), size, size))
    image = (flux[..., None, None] * profile + noise).astype(np.float16)
    lacking = ids % 10 == 0
    image[lacking, 0] = fill
    labelled = ids % 2 == 0
    columns = {
        "split": np.where(ids // 2 % 4 == 3, "test", "train"),
        "z_kind": np.where(labelled, "spec", "none"),
        "z": np.where(labelled, z, np.nan),
        "z_err": np.where(labelled, 1e-3, np.nan),
        "ebv": np.full(samples, 0.02),
        "true_z": z,
        "bands_observed": np.where(lacking, 0b110, 0b111),
        "mag_ref": 27 - 2.5 * np.log10(flux[:, 1]),
        "object_id": ids,
    }
    for c, name in enumerate(BANDS):
        measured = (image[:, c].astype(float) * profile).sum((1, 2)) / (profile**2).sum() * bands[c].ujy_per_unit
        columns[f"flux_{name}"] = np.where(lacking & (c == 0), np.nan, measured)
        columns[f"fluxerr_{name}"] = np.full(samples, bands[c].ujy_per_unit / np.sqrt((profile**2).sum()))
    alter(image, columns)
    parts = np.array_split(ids, shards)
    for n, rows in enumerate(parts):
        part = {name: values[rows] for name, values in columns.items()}
        writer.write_shard(n, [f"blob{i:06d}" for i in rows], {"image": image[rows]}, part)
    writer.finish(len(parts), {})
    return path


SMALL = """
from jaxz.config import default

def get_config():
    config = default()
    config.data.path = {path!r}
    config.model.update(dict(width=32, depth={depth}, heads=2, patch=8))
    config.mae = dict(mask_ratio=0.5, decoder_width=16, decoder_depth=1, decoder_heads=2)
    config.losses = {losses!r}
    config.train.update(dict(steps=20, batch_size=16, log_every=1))
    config.optim.warmup_steps = 2
    config.checkpoint.update(dict(every=7, keep=3))
    return config
"""


def small_config(folder: Path, dataset: Path, depth: int = 2, **losses: float) -> str:
    """A config file for a tiny model on `dataset`; returns its --config argument."""
    path = folder / f"config_{'_'.join(losses)}.py"
    path.write_text(SMALL.format(path=str(dataset), depth=depth, losses=losses))
    return f"--config={path}"
