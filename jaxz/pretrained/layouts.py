"""How names and shapes in a file become parameters: tables of rows, and the one place where they are followed."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxz.errors import InputError
from jaxz.mesh import path_name
from jaxz.models.functional import Params
from jaxz.pretrained.tensors import Tensor

FLOATS = ("F64", "F32", "F16", "BF16")
Transform = Callable[[np.ndarray], np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]  # of a file's tensors, by name


@dataclass(frozen=True)
class Row:
    """A tensor, its name with {} for the number of the block, and the parameter that it becomes. Blocks are stacked."""

    name: str
    target: str  # the parameter's path
    transform: Transform = lambda a: a


def part(n: int, of: int) -> Transform:
    """The n-th of so many equal parts of a dense layer [out, in], as [in, out], or of its bias [out]."""
    return lambda a: a[n * len(a) // of : (n + 1) * len(a) // of].T


def linear(name: str, *targets: str) -> list[Row]:
    """A dense layer, or several that the file has packed into one."""
    return [
        Row(f"{name}{joint}{kind}", f"{target}/{own}", part(n, len(targets)))
        for n, target in enumerate(targets)
        for joint, kind, own in ((".", "weight", "kernel"), (".", "bias", "bias"))
    ]


def norm(name: str, target: str) -> list[Row]:
    """A LayerNorm."""
    return [Row(f"{name}.weight", f"{target}/scale"), Row(f"{name}.bias", f"{target}/bias")]


def packed_attention(name: str, target: str) -> list[Row]:
    """torch.nn.MultiheadAttention, whose names have an underscore where a packed layer's have a dot."""
    rows = linear(f"{name}.in_proj", f"{target}/query", f"{target}/key", f"{target}/value")
    rows = [Row(row.name.replace("in_proj.", "in_proj_"), row.target, row.transform) for row in rows]
    return rows + linear(f"{name}.out_proj", f"{target}/out")


def convolution(a: np.ndarray) -> np.ndarray:
    """[D,C,P,P] -> [C,PP,D]."""
    return a.transpose(1, 2, 3, 0).reshape(a.shape[1], -1, a.shape[0])


def tokens(a: np.ndarray) -> np.ndarray:
    """[..., D] -> [N,D]."""
    return a.reshape(-1, a.shape[-1])


def scalar(a: np.ndarray) -> np.ndarray:
    """A single number, in however many axes -> []."""
    return a.reshape(())


def positions(name: str, prefix: str = "") -> list[Row]:
    """A table of positions [..., 1+N, D], of which the first is that of the cls token."""
    return [
        Row(name, f"{prefix}cls_position", lambda a: tokens(a)[:1]),
        Row(name, f"{prefix}position", lambda a: tokens(a)[1:]),
    ]


@dataclass(frozen=True)
class Plan:
    """What of a checkpoint becomes what. fed: for each tensor's name the parameters it feeds, as (path, block or None,
    transform)."""

    shapes: dict[str, tuple[int, ...]]  # of the parameters
    fed: dict[str, list[tuple[str, int | None, Transform]]]
    ignored: dict[str, str] = field(default_factory=dict)  # with the reason
    missing: dict[str, str] = field(default_factory=dict)  # parameters, with the name that a file would have for them
    unexpected: tuple[str, ...] = ()


def make_plan(
    shapes: Shapes, rows: Sequence[Row], ignored: Mapping[str, str], parameters: Params, strict: bool = True
) -> Plan:
    """What of a file becomes which of the parameters, given as abstract arrays. ignored: regex of names -> reason.

    Raises InputError for a shape that does not fit, and where strict for a tensor or parameter without the other.
    """
    flat = jax.tree_util.tree_leaves_with_path(parameters)
    wanted = {path_name(path): leaf.shape for path, leaf in flat}
    fed: dict[str, list] = {}
    absent: dict[tuple[str, int | None], str] = {}
    done = set()
    for row in rows:
        if row.target not in wanted:
            continue
        shape = wanted[row.target]
        stacked = "{}" in row.name
        blocks: Iterable[int | None] = range(shape[0]) if stacked else (None,)
        for block in blocks:
            name = row.name.format(block)
            if name not in shapes:
                absent.setdefault((row.target, block), name)
                continue
            own = shape[1:] if stacked else shape
            check_shape(name, shapes[name], row.transform, own)
            fed.setdefault(name, []).append((row.target, block, row.transform))
            done.add((row.target, block))
    left = sorted(set(shapes) - set(fed))
    reasons = {name: why for name in left for regex, why in ignored.items() if re.fullmatch(regex, name)}
    unexpected = tuple(name for name in left if name not in reasons)
    missing = {
        f"{t}" + ("" if b is None else f" of block {b}"): n for (t, b), n in absent.items() if (t, b) not in done
    }
    if strict and unexpected:
        raise InputError(
            f"checkpoint: {len(unexpected)} tensors have no place in the model, such as {unexpected[0]!r}; another "
            "family or arch may fit, or strict=False leaves them out"
        )
    if strict and missing:
        raise InputError(
            f"checkpoint: {len(missing)} tensors are missing, such as {next(iter(missing.values()))!r}; fetch the "
            "whole checkpoint, or strict=False makes them 0"
        )
    return Plan(wanted, fed, reasons, missing, unexpected)


def check_shape(name: str, shape: tuple[int, ...], transform: Transform, wanted: tuple[int, ...]) -> None:
    """Raises InputError where a tensor of `shape` does not become a parameter of the shape `wanted`."""
    try:
        found = transform(np.broadcast_to(np.float32(0), shape)).shape
    except (ValueError, IndexError):
        found = None
    if found != wanted:
        raise InputError(
            f"checkpoint: {name!r} has the shape {list(shape)}, which does not make the model's {list(wanted)}; give "
            "the arch that the weights were made with"
        )


def fill(plan: Plan, tensors: Mapping[str, Tensor]) -> Params:
    """The parameters, float32, as a nested dict, 0 where they are missing; each tensor is read once, and a stacked
    parameter allocated once.

    Raises InputError for a tensor of integers, or with a value that is not finite.
    """
    arrays = {path: np.zeros(shape, np.float32) for path, shape in plan.shapes.items()}
    for name, feeds in plan.fed.items():
        if tensors[name].dtype not in FLOATS:
            raise InputError(f"checkpoint: {name!r} holds {tensors[name].dtype}, not real numbers; fetch it again")
        values = tensors[name].read()
        for path, block, transform in feeds:
            used = transform(values)
            if not np.isfinite(used).all():
                raise InputError(f"checkpoint: {name!r} holds values that are not finite; fetch it again")
            arrays[path][() if block is None else block] = used
    # One after another, each waited for: the copies of all at once would double the memory.
    return nested({path: jax.device_put(arrays.pop(path)).block_until_ready() for path in list(arrays)})


def nested(flat: Mapping[str, Any]) -> Params:
    """{"a/b": leaf} -> {"a": {"b": leaf}}."""
    tree: Params = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def tensors_of(params: Params, rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """{name: float32 array} as a file of PyTorch's has the parameters: what `fill` reads, turned round. rows: of a
    layout in which every dense layer is [out, in]; several that have one name are packed."""
    flat = {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    packed: dict[str, list[np.ndarray]] = {}
    for row in rows:
        if row.target in flat:
            stacked = flat[row.target] if "{}" in row.name else flat[row.target][None]
            for block, value in enumerate(stacked):
                packed.setdefault(row.name.format(block), []).append(turned(row.target, value))
    axis = {name: 1 if parts[0].ndim == 3 else 0 for name, parts in packed.items()}  # tokens are [1,N,D]
    return {name: np.ascontiguousarray(np.concatenate(parts, axis[name])) for name, parts in packed.items()}


def turned(target: str, value: np.ndarray) -> np.ndarray:
    """A parameter as PyTorch has it: the inverse of a row's transform."""
    if target == "stem/kernel":  # [C,PP,D] -> [D,C,P,P]
        side = int(value.shape[1] ** 0.5)
        return value.transpose(2, 0, 1).reshape(value.shape[2], value.shape[0], side, side)
    if target.endswith(("token", "position")):
        return value[None]
    return value.T if target.endswith("kernel") else value


def depth(shapes: Shapes, name: str) -> int:
    """How many blocks have a tensor of this name."""
    count = 0
    while name.format(count) in shapes:
        count += 1
    return count
