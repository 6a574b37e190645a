"""What a training step will cost, from its compiled form: nothing is trained."""

import re

import jax

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def collectives(compiled) -> dict[str, int]:
    """How many of each collective operation the compiled step holds."""
    text = compiled.as_text()
    found = {name: len(re.findall(rf"= [^=]*\b{name}(?:-start)?\(", text)) for name in COLLECTIVES}
    return {name: count for name, count in found.items() if count}


def describe(step, abstract, batch: dict, mesh, config) -> str:
    """Parameters, operations, memory and collectives of the jitted `step(state, batch)`, as lines of text."""
    compiled = step.lower(abstract, batch).compile()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    parameters: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(abstract.params)[0]:
        group = jax.tree_util.keystr(path[:1], simple=True)
        parameters[group] = parameters.get(group, 0) + leaf.size
    kind, state_mib = jax.devices()[0].device_kind, memory.argument_size_in_bytes / 2**20
    work_mib, batch = memory.temp_size_in_bytes / 2**20, config.train.batch_size
    lines = [
        f"parameters       {sum(parameters.values()):,} ({', '.join(f'{g} {n:,}' for g, n in parameters.items())})",
        f"devices          {mesh.size} ({kind}): data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}",
        f"batch            {batch} ({batch // mesh.size} a device), {config.train.steps} steps",
        f"operations       {mesh.size * cost.get('flops', 0) / batch / 1e9:.3g} GFLOP an image",
        f"device memory    {state_mib + work_mib:,.0f} MiB (state and batch {state_mib:,.0f}, working {work_mib:,.0f})",
        f"collectives      {', '.join(f'{n} {name}' for name, n in collectives(compiled).items()) or 'none'}",
    ]
    return "\n".join(lines)
