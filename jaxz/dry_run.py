"""What a training step will cost, from its compiled form: nothing is trained."""

from collections import Counter

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxz.collectives import Collective, collectives
from jaxz.errors import InputError
from jaxz.hardware import Cluster
from jaxz.state import TrainState

UTILISATION = 0.4  # of a device's peak, assumed: what well-tuned transformers reach
MOVED = {"all-reduce": 2.0}  # a ring sends it twice, (n - 1) / n of the array each time; the others once


def pretend(cluster: Cluster, config: ConfigDict) -> None:
    """Let this process have as many devices as the cluster, on the CPU, to compile for; before any backend starts.
    There is no cuDNN here: attention takes more memory than it may there."""
    if "attention" in config.model:
        config.model.attention = "xla"
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", cluster.devices)


def describe(
    step: jax.stages.Wrapped,
    flops: float,
    abstract: TrainState,
    batch: dict[str, jax.Array],
    mesh: Mesh,
    config: ConfigDict,
    cluster: Cluster | None,
) -> str:
    """Parameters, operations (`flops` of a step), memory and collectives of the jitted `step(state, batch)`, as lines
    of text; with a cluster what these mean there. Raises InputError for a dtype that its devices lack."""
    compiled = step.lower(abstract, batch).compile()
    memory = compiled.memory_analysis()
    assert memory is not None  # CPUs and GPUs have it
    parameters: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(abstract.params)[0]:
        group = jax.tree_util.keystr(path[:1], simple=True)
        parameters[group] = parameters.get(group, 0) + leaf.size
    kind, state_bytes = jax.devices()[0].device_kind, memory.argument_size_in_bytes
    needed, batch_size, found = state_bytes + memory.temp_size_in_bytes, config.train.batch_size, collectives(compiled)
    lines = [
        f"parameters       {sum(parameters.values()):,} ({', '.join(f'{g} {n:,}' for g, n in parameters.items())})",
        f"devices          {mesh.size} ({kind}): data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}",
        f"batch            {batch_size} ({batch_size // mesh.size} a device), {config.train.steps} steps",
        f"operations       {flops / batch_size / 1e9:.3g} GFLOP a sample, in matrix multiplications, forward and back",
        f"device memory    {mib(needed)}, state and batch {mib(state_bytes)} of them",
        f"collectives      {', '.join(listed(found)) or 'none'}",
    ]
    if cluster:
        lines += predicted(cluster, flops / mesh.size, needed, found, config)
    return "\n".join(lines)


def mib(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"


def listed(found: Counter[Collective]) -> list[str]:
    """Such as "3 all-reduce among 8 (12.0 MiB)", the bytes of all of them together, a device and step."""
    kinds: dict[tuple, list[int]] = {}
    for collective, count in found.items():
        entry = kinds.setdefault((collective.name, len(collective.group)), [0, 0])
        entry[0] += count
        entry[1] += count * collective.bytes
    return [f"{count} {name} among {n} ({mib(size)})" for (name, n), (count, size) in kinds.items()]


def predicted(
    cluster: Cluster, flops: float, memory: float, found: Counter[Collective], config: ConfigDict
) -> list[str]:
    """Lines about time on a cluster. flops and memory (bytes): of one device and step."""
    device, dtype = cluster.device, config.model.get("dtype", "float32")
    if not device.peak(dtype):
        raise InputError(f"model.dtype: {dtype!r} is not what a {device.name} multiplies; use float16 or float32")
    computing = flops / (UTILISATION * device.peak(dtype))
    moving = 2 * memory / device.bandwidth  # each byte written and read once, at least
    inside, between = communication(cluster, found)
    hidden = max(computing, moving, inside + between)
    apart = max(computing, moving) + inside + between
    hours = [seconds * config.train.steps * cluster.devices / 3600 for seconds in (hidden, apart)]
    fits = "fits" if memory < device.memory else "DOES NOT FIT"
    return [
        f"cluster          {cluster.name}: {cluster.nodes} nodes x {cluster.per_node} {device.name}; "
        f"{mib(memory)} {fits} into {device.memory / 1e9:.0f} GB",
        f"computing        {computing:.3g} s a step, at {UTILISATION:.0%} of {device.peak(dtype) / 1e12:.0f} TFLOP/s "
        f"({dtype}); memory {moving:.3g} s at least",
        f"communication    {inside:.3g} s a step inside nodes, {between:.3g} s between them, in rings",
        f"predicted        {hidden:.3g} s a step where communication hides behind computing, {apart:.3g} s where not",
        f"whole run        {hours[0]:.3g} to {hours[1]:.3g} GPU-hours; of the formulas above, not measured",
    ]


def communication(cluster: Cluster, found: Counter[Collective]) -> tuple[float, float]:
    """Seconds a step for collectives inside nodes and for those between them, in rings without latency."""
    seconds = {True: 0.0, False: 0.0}
    for collective, count in found.items():
        inside = len({number // cluster.per_node for number in collective.group}) == 1
        share = MOVED.get(collective.name, 1.0) * (len(collective.group) - 1) / len(collective.group)
        bandwidth = cluster.device.link if inside else cluster.network
        seconds[inside] += count * share * collective.bytes / bandwidth
    return seconds[True], seconds[False]
