"""What each arm costs, in floating point operations, so that arms can be held to the same."""

import json
from collections.abc import Iterable

import jax
import optax
from jax import ShapeDtypeStruct
from ml_collections import ConfigDict

from jaxz import objectives
from jaxz.config import complete
from jaxz.data.manifest import Manifest
from jaxz.data.prepare import Normalisation, Prepare
from jaxz.mesh import make_mesh
from jaxz.models import build
from jaxz.perf import training_flops
from jaxz.state import abstract_state

NUMBERS = ("row", "epoch", "position")  # that a stream adds to a batch


def step_flops(config: ConfigDict, manifest: Manifest) -> float:
    """Of one training step on a dataset: the matrix products of its gradients, by jaxz.flops. Nothing is computed."""
    data = config.data
    normalisation = Normalisation.create(manifest, tuple(data.bands), data.softening, data.deredden, data.stretch)
    encoder = build(config.model, normalisation.bands, normalisation.size)
    objective = objectives.Objective(encoder, config, normalisation)
    prepare = Prepare(manifest, normalisation, config.augment, objective.views, objective.crops)
    size = config.train.batch_size
    batch = {"image": ShapeDtypeStruct((size, *manifest.arrays["image"].shape), "float32")}
    batch |= {name: ShapeDtypeStruct((size,), "int32") for name in NUMBERS}
    for name in {*objective.columns, *prepare.columns}:
        dtype = manifest.columns[name].dtype if name in manifest.columns else "float32"  # of an overlay
        batch[name] = ShapeDtypeStruct((size,), dtype)
    mesh = make_mesh(1, 1)
    with jax.set_mesh(mesh):
        abstract = abstract_state(objective, optax.identity(), config, mesh)  # of gradients alone
        return training_flops(config, normalisation, prepare, abstract, batch)


def all_flops(configs: Iterable[dict], manifest: Manifest) -> list[float]:
    """Of all steps of each resolved config; those that differ in their data and length alone are counted once."""
    known: dict[str, float] = {}
    found = []
    for raw in map(complete, configs):
        other = dict.fromkeys(("data", "init", "checkpoint", "seed")) | {"train": {**raw["train"], "steps": 0}}
        key = json.dumps({**raw, **other}, sort_keys=True)
        if key not in known:
            known[key] = step_flops(ConfigDict(raw), manifest)
        found.append(raw["train"]["steps"] * known[key])
    return found
