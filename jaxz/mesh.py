"""The device mesh (data, fsdp), and which array is split how."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxz.errors import InputError

BATCH = P(("data", "fsdp"))
Tree = TypeVar("Tree")  # of arrays

# First match wins; every array of the state must match one. Names are paths such as "encoder/blocks/up/kernel", found
# at the end of the optimizer's paths too. Stacked blocks have a leading axis of depth.
RULES = (
    (r"blocks/.*/kernel$", P(None, "fsdp")),
    (r"(kernel|basis|position|token)$", P("fsdp")),
    (r"(bias|scale)$", P()),
    (r"lora/.*/[ab]$", P()),
    (r"(count|step|ns_coeffs)$", P()),
    (r"^extra/", P()),  # what an objective keeps beside parameters, unless named like one of them
)


def make_mesh(data: int, fsdp: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `data` x `fsdp` devices; data = -1 takes all that are left.

    Raises InputError where the devices do not divide so.
    """
    devices = jax.devices() if devices is None else devices
    if data == -1:
        if len(devices) % fsdp:
            raise InputError(f"mesh.fsdp: {fsdp} does not divide the {len(devices)} devices; choose a divisor")
        data = len(devices) // fsdp
    if data * fsdp > len(devices):
        raise InputError(
            f"mesh: data {data} x fsdp {fsdp} needs more than the {len(devices)} devices there are; lower one"
        )
    if data * fsdp < len(devices) and jax.process_count() > 1:
        raise InputError(
            f"mesh: data {data} x fsdp {fsdp} leaves some of the {len(devices)} devices idle, which only one process "
            "alone can; use mesh.data=-1"
        )
    chosen = np.array(devices[: data * fsdp]).reshape(data, fsdp)
    return Mesh(chosen, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def path_name(path: tuple) -> str:
    """Of a parameter, such as "encoder/blocks/up/kernel"; rules choose parameters by it."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def shardings(tree: Any, mesh: Mesh, rules: Iterable[tuple[str, P]] = RULES) -> Any:
    """A NamedSharding for every array of `tree` by the first rule that matches its path.

    Where the mesh does not divide an axis, the next one that it does is split. Raises InputError for a path that no
    rule covers.
    """

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = path_name(path)
        spec = next((spec for pattern, spec in rules if re.search(pattern, name)), None)
        if spec is None:
            raise InputError(
                f"no sharding rule covers {name!r}; end its name in kernel, bias or scale, or add a rule in mesh.py"
            )
        first = spec.index("fsdp") if "fsdp" in spec else leaf.ndim
        fits = [d for d in range(first, leaf.ndim) if leaf.shape[d] % mesh.shape["fsdp"] == 0]
        return NamedSharding(mesh, P(*[None] * fits[0], "fsdp") if fits else P())

    return jax.tree_util.tree_map_with_path(place, tree)


def constrain_batch(x: jax.Array, axis: int = 0) -> jax.Array:
    """Keep activations split over the batch, where a mesh is set; without it XLA gathers them for sharded weights."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[axis] % math.prod(mesh.shape.values()):
        return x
    return jax.lax.with_sharding_constraint(x, P(*[None] * axis, *BATCH))


def slices(batch: Tree, count: int) -> Tree:
    """Arrays [B,...] as [count, B/count, ...], each slice of every count-th row: every device keeps its own rows, and
    which of them are together is the same on any number of devices."""
    cut = lambda a: a.reshape(len(a) // count, count, *a.shape[1:]).swapaxes(0, 1)
    return jax.tree.map(lambda a: constrain_batch(cut(a), axis=1), batch)


def local_slots(mesh: Mesh, batch_size: int, accumulate: int = 1) -> slice:
    """The slice of every global batch that this process's devices own.

    Raises InputError where the batch, or one of the slices that it is worked through in, is not divisible by the
    devices.
    """
    if batch_size % (mesh.size * accumulate):
        parts = f"the {mesh.size} devices" + (f" x train.accumulate {accumulate}" if accumulate > 1 else "")
        raise InputError(f"train.batch_size: {batch_size} is not divisible by {parts}; choose a multiple")
    indices = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch_size,)).values()
    spans = [index[0] for index in indices if index is not None]
    starts = [span.start or 0 for span in spans]
    stops = [batch_size if span.stop is None else span.stop for span in spans]
    return slice(min(starts), max(stops))


def to_devices(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch, NumPy [b, ...], as global arrays split over the mesh."""
    sharding = NamedSharding(mesh, BATCH)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
