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
from jaxz.checkpoint import Checkpoints, digests
from jaxz.collectives import collectives
from jaxz.config import parse
from jaxz.data.dataset import open_dataset
from jaxz.data.prepare import Normalisation, Prepare
from jaxz.data.stream import Source, Stream
from jaxz.mesh import BATCH, make_mesh, to_devices
from jaxz.models import build
from jaxz.models.stems import CENTRES
from jaxz.optim import make_optimizer
from jaxz.state import abstract_state, fresh_state, make_step
from tests.helpers import BANDS, blobs


def main(config_argument: str, workdir: str) -> None:
    runtime.set_xla_flags()
    config = parse([config_argument])
    config.train.ema_decay = 0.9
    dataset = open_dataset(config.data.path)
    normalisation = Normalisation.create(dataset.manifest, (), config.data.softening, config.data.deredden)
    prepare = Prepare(dataset.manifest, normalisation, config.augment)
    objective = objectives.Objective(
        build(config.model, normalisation.bands, normalisation.size), config, normalisation
    )
    params = jax.eval_shape(lambda: objective.init(jax.random.key(0))[0])
    optimizer = make_optimizer(config.optim, config.train.steps, params)
    result = {}
    for name, devices, data, fsdp in (("1", 1, 1, 1), ("8", 8, 8, 1), ("2x4", 8, 2, 4)):
        mesh = make_mesh(data, fsdp, jax.devices()[:devices])
        with jax.set_mesh(mesh):
            abstract = abstract_state(objective, optimizer, 0.9, mesh)
            step = make_step(objective, optimizer, prepare, config, abstract)
            make = lambda: fresh_state(objective, optimizer, 0.9, 0)
            state = jax.jit(make, out_shardings=jax.tree.map(lambda a: a.sharding, abstract))()
            stream = train.make_stream(config, dataset, objective, prepare, mesh)
            losses, rows = [], []
            for n in range(20):
                host = next(stream)
                rows.append(host.pop("row").tolist())
                batch = to_devices(host, mesh)
                if n == 0:
                    compiled = step.lower(state, batch).compile()
                    old = jax.tree.leaves(state)
                state, metrics = step(state, batch)
                if n == 0:
                    donated = sum(a.is_deleted() for a in old)
                losses.append(float(metrics["loss"]))
            stream.close()
            kernel = state.params["encoder"]["blocks"]["up"]["kernel"]
            result[name] = {
                "losses": losses,
                "rows": rows,
                "collectives": by_name(compiled),
                "moved": bytes_moved(compiled),
                "gradient_bytes": gradient_bytes(state.params),
                "leaves": len(old),
                "donated": donated,
                "aliased": compiled.as_text().count("may-alias") + compiled.as_text().count("must-alias"),
                "kernel_shard": list(kernel.sharding.shard_shape(kernel.shape)),
                "moment_shard": [
                    list(a.sharding.shard_shape(a.shape)) for a in jax.tree.leaves(state.opt) if a.shape == kernel.shape
                ],
                "digest": digests({"params": state.params})["params"],
            }
        if name == "2x4":
            result["resharded"] = reshard(state, workdir, objective, optimizer, mesh)
    result["scanned"] = scanned()
    result["compact"] = decode_split(f"{workdir}_compact", normalisation)
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


def gradient_bytes(params) -> int:
    """A basis of wavelengths sees the batch through its bands' kernels alone, whose gradients are what is summed."""
    named = jax.tree_util.tree_flatten_with_path(params)[0]
    own = lambda path, a: a.nbytes * len(BANDS) // len(CENTRES) if path[-1].key == "basis" else a.nbytes
    return sum(own(path, a) for path, a in named)


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


def reshard(state, workdir, objective, optimizer, mesh) -> bool:
    """Saved on 2 x 4, restored on 4 x 2 (digests are verified on the way) and on one device: the same values."""
    checkpoints = Checkpoints(workdir, keep=1)
    with jax.set_mesh(mesh):
        checkpoints.save(state, {}, {"config": {}})
    checkpoints.finish()
    same = True
    for data, fsdp in ((4, 2), (1, 1)):
        mesh = make_mesh(data, fsdp, jax.devices()[: data * fsdp])
        with jax.set_mesh(mesh):
            restored, _, _ = checkpoints.restore(abstract_state(objective, optimizer, 0.9, mesh))
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
            same &= bool(np.array_equal(np.asarray(a), np.asarray(b)))
    checkpoints.close()
    return same


if __name__ == "__main__":
    main(*sys.argv[1:])
