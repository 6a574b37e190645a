"""Which collective operations a compiled step holds, how often they run and how much each moves."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

NAMES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
OPERATION = re.compile(rf"^ *(?:ROOT )?%[\w.-]+ = (.*?) ({'|'.join(NAMES)})(-start)?\(")
SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
CALL = re.compile(r"\b(body|calls|to_apply|branch_computations)=\{?((?:%[\w.-]+(?:, )?)+)")
TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
DTYPES = {"pred": "bool", "bf16": "bfloat16", "f": "float", "s": "int", "u": "uint"}


@dataclass(frozen=True)
class Collective:
    """bytes: of the whole array on one device, gathered, to be reduced or to be scattered; group: the numbers of the
    devices, in the order of the mesh, of one of the groups among which it runs."""

    name: str
    bytes: int
    group: tuple[int, ...]


def collectives(compiled: jax.stages.Compiled) -> Counter[Collective]:
    """How often each runs in a step; those of a loop count every turn that the compiler knows of, else once."""
    text = compiled.as_text() or ""
    partitions = re.search(r"num_partitions=(\d+)", text)
    devices = int(partitions[1]) if partitions else 1
    found: dict[str, Counter[Collective]] = {}
    calls: dict[str, Counter[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            name = header[2]
            entry = name if header[1] else entry
            found[name], calls[name] = Counter(), Counter()
        elif operation := OPERATION.search(line):
            found[name][of_line(operation, line, devices)] += 1
        for kind, callees in CALL.findall(line) if name else ():
            turns = TURNS.search(line) if kind == "body" else None
            for callee in callees.split(", "):
                calls[name][callee.removeprefix("%")] += int(turns[1]) if turns else 1
    return whole(entry, found, calls)


def whole(
    name: str, found: Mapping[str, Counter[Collective]], calls: Mapping[str, Counter[str]]
) -> Counter[Collective]:
    """Those of a computation and of all that it calls."""
    total = Counter(found.get(name, {}))
    for callee, times in calls.get(name, {}).items():
        for collective, count in whole(callee, found, calls).items():
            total[collective] += times * count
    return total


def of_line(operation: re.Match, line: str, devices: int) -> Collective:
    shapes, name, started = operation.groups()
    group, size = group_of(line, devices), sum(nbytes(*shape) for shape in SHAPE.findall(shapes))
    if name == "reduce-scatter":
        size *= len(group)
    elif name == "all-gather" and started:  # its result holds the operand too
        size = size * len(group) // (len(group) + 1)
    return Collective(name, size, group)


def nbytes(dtype: str, shape: str) -> int:
    """Of an HLO shape such as f32[5,2]."""
    letters = dtype.rstrip("0123456789")
    known = DTYPES.get(dtype) or dtype.replace(letters, DTYPES[letters])
    return jnp.dtype(known).itemsize * math.prod(int(n) for n in shape.split(",") if n)


def group_of(line: str, devices: int) -> tuple[int, ...]:
    """The first of an operation's groups of devices, in any of HLO's three notations; all where none is said."""
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}", line):
        return tuple(map(int, listed[1].split(",")))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        return tuple(numbered(iota[3], iota[4]).reshape(int(iota[1]), int(iota[2]))[0].tolist())
    if mesh := re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{(.*?)\}", line
    ):
        axes = re.findall(r"'(\w+)'=(\d+)", mesh[1])
        shape = [int(size) for _, size in axes]
        numbers = numbered(mesh[2] or str(math.prod(shape)), mesh[3]).reshape(shape)
        grouped = re.findall(r"'(\w+)'", mesh[4])
        if "(" not in mesh[4]:
            return tuple(numbers[tuple(slice(None) if axis in grouped else 0 for axis, _ in axes)].ravel().tolist())
    return tuple(range(devices))


def numbered(shape: str, order: str | None) -> np.ndarray:
    """0, 1, ... in `shape`, transposed to `order`."""
    sizes = [int(n) for n in shape.split(",")]
    return np.arange(math.prod(sizes)).reshape(sizes).transpose([int(n) for n in order.split(",")] if order else None)
