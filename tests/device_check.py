"""Run by test_mesh.py in its own process, on 8 host-platform devices: prints what it measured as JSON."""

import json
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxz import objectives, runtime, train
from jaxz.checkpoint import Checkpoints
from jaxz.collectives import collectives
from jaxz.config import parse
from jaxz.data.dataset import open_dataset
from jaxz.data.prepare import Normalisation, Prepare
from jaxz.data.stream import Source, Stream
from jaxz.mesh import BATCH, make_mesh, to_devices
from jaxz.models import build
from jaxz.optim import make_optimizer
from jaxz.state import abstract_state, fresh_state, make_step
from tests.helpers import blobs

MESHES = {"1": (1, 1), "8": (8, 1), "2x4": (2, 4)}


class Case:
    """A config of a run on `dataset` and what is made of it once for all meshes."""

    def __init__(self, config, dataset):
        self.config, self.dataset = config, dataset
        self.normalisation = Normalisation.create(dataset.manifest, (), config.data.softening, config.data.deredden)
        self.prepare = Prepare(dataset.manifest, self.normalisation, config.augment)
        encoder = build(config.model, self.normalisation.bands, self.normalisation.size)
        self.objective = objectives.Objective(encoder, config, self.normalisation)
        params = jax.eval_shape(lambda: self.objective.init(jax.random.key(0))[0])
        self.optimizer = make_optimizer(config.optim, config.train.steps, params)
        self.first = jax.device_get(jax.jit(lambda: fresh_state(self.objective, self.optimizer, config))())

    def abstract(self, mesh):
        return abstract_state(self.objective, self.optimizer, self.config, mesh)

    def measure(self, mesh) -> tuple[dict, object]:
        """What 20 steps gave, and the state after them."""
        with jax.set_mesh(mesh):
            abstract = self.abstract(mesh)
            state = jax.device_put(self.first, jax.tree.map(lambda a: a.sharding, abstract))
            step = make_step(self.objective, self.optimizer, self.prepare, self.config, abstract)
            stream = train.make_stream(self.config, self.dataset, self.objective, self.prepare, mesh)
            hosts = [next(stream) for _ in range(20)]
            stream.close()
            compiled = step.lower(abstract, to_devices(hosts[0], mesh)).compile()
            losses, old = [], jax.tree.leaves(state)
            for host in hosts:
                state, metrics = compiled(state, to_devices(host, mesh))
                losses.append(float(metrics["loss"]))
        text = compiled.as_text()
        return {
            "losses": losses,
            "rows": [host["row"].tolist() for host in hosts],
            "collectives": by_name(compiled),
            "moved": bytes_moved(compiled),
            "gradient_bytes": sum(gradient_bytes(name, a) for name, a in named(state.params).items()),
            "leaves": len(old),
            "donated": sum(a.is_deleted() for a in old),
            "aliased": text.count("may-alias") + text.count("must-alias"),
            "room": compiled.memory_analysis().argument_size_in_bytes,
            "shards": {name: list(a.sharding.shard_shape(a.shape)) for name, a in named(state).items()},
        }, state


def gradient_bytes(name: str, a) -> int:
    """What is summed over the devices: a basis as the kernels of the three bands that are made of it, the encoder's
    once for each of the two objectives."""
    terms = 2 if name.startswith("encoder/") else 1
    return terms * a.nbytes * 3 // a.shape[0] if name.endswith("basis") else terms * a.nbytes


def mesh_of(name: str):
    data, fsdp = MESHES[name]
    return make_mesh(data, fsdp, jax.devices()[: data * fsdp])


def named(state) -> dict:
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def main(config_argument: str, workdir: str) -> None:
    runtime.set_xla_flags()
    config = parse([config_argument])
    config.train.ema_decay = 0.9
    dataset, result = open_dataset(config.data.path), {}
    whole = Case(config, dataset)
    for name in MESHES:
        result[name], state = whole.measure(mesh_of(name))
    result["resharded"] = reshard(whole, state, workdir)
    result["scanned"] = scanned()
    result["compact"] = decode_split(f"{workdir}_compact", whole.normalisation)
    config.losses = dict(redshift=1.0)
    config.train.update(dict(accumulate=2, members=2))
    parts = Case(config, dataset)
    for name in ("1", "2x4"):
        result[f"{name} in parts"], _ = parts.measure(mesh_of(name))
    json.dump(result, sys.stdout)


def by_name(compiled) -> dict[str, int]:
    return counted(compiled, lambda collective: 1)


def bytes_moved(compiled) -> dict[str, int]:
    return counted(compiled, lambda collective: collective.bytes)


def counted(compiled, what) -> dict[str, int]:
    total = Counter()
    for collective, count in collectives(compiled).items():
        total[collective.name] += count * what(collective)
    return dict(total)


def scanned() -> list:
    """[name, group, bytes, how often] of the gradient of 5 scanned layers whose kernels are split over fsdp."""
    mesh = make_mesh(2, 4)
    split, rows = NamedSharding(mesh, P(None, "fsdp")), NamedSharding(mesh, BATCH)

    def gradient(kernels, x):
        loss = lambda k: jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, k)[0].sum()
        return jax.grad(loss)(kernels)

    shapes = jax.ShapeDtypeStruct((5, 32, 32), "float32"), jax.ShapeDtypeStruct((16, 32), "float32")
    compiled = jax.jit(gradient, in_shardings=(split, rows), out_shardings=split).lower(*shapes).compile()
    return [[c.name, c.group, c.bytes, count] for c, count in collectives(compiled).items()]


def decode_split(path: str, normalisation: Normalisation) -> dict:
    """The collectives of decoding a compact batch that is split over 2 x 4 devices."""
    dataset = open_dataset(blobs(path, samples=16, encoding="compact"))
    prepare, mesh = Prepare(dataset.manifest, normalisation), make_mesh(2, 4)
    batch = next(Stream(Source(dataset, prepare.arrays, ("bands_observed", "ebv")), 16))
    with jax.set_mesh(mesh):
        compiled = jax.jit(prepare).lower(to_devices(batch, mesh), jax.random.key(0)).compile()
    return by_name(compiled)


def reshard(case: Case, state, workdir: str) -> bool:
    """Saved on 2 x 4, restored on 4 x 2 (digests are verified on the way) and on one device: the same values."""
    checkpoints = Checkpoints(workdir, keep=1)
    checkpoints.save(state, {}, {"config": {}})
    checkpoints.finish()
    same = True
    for data, fsdp in ((4, 2), (1, 1)):
        restored, _, _ = checkpoints.restore(case.abstract(make_mesh(data, fsdp, jax.devices()[: data * fsdp])))
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
            same &= bool(np.array_equal(np.asarray(a), np.asarray(b)))
    checkpoints.close()
    return same


if __name__ == "__main__":
    main(*sys.argv[1:])
