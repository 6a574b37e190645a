"""What every family says of a checkpoint, and what a user must say where the file does not."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from jaxz.errors import InputError, suggest
from jaxz.pretrained.layouts import Row

# Names of activations elsewhere -> in jaxz.models.tower.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_exact": "gelu",
    "gelu_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
}
USED = ("heads", "act", "layernorm_eps", "pos_grid", "rope_theta")
USED_TEXT = ("text_heads", "text_act", "text_pool", "eos_token_id")
SEEN = ("dim", "depth", "patch", "registers", "text_dim", "text_depth", "text_ctx", "text_vocab")  # in the tensors
SAID = ("layerscale", "ffn", "qkv", "pre_norm", "patch_bias", "embed", "logit", "text_causal")  # by the family

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class Model:
    """A checkpoint understood: the module to build and the rows that fill it."""

    layout: str
    settings: object  # of the module
    make: Callable  # make(settings, rngs=rngs)
    rows: list[Row]
    ignored: dict[str, str]  # regex of names -> why they are left out
    arch: dict  # the numbers that no tensor says; given as `arch`, they load the same file again
    seen: dict = field(default_factory=dict)  # numbers that the tensors say
    published_input: dict = field(default_factory=lambda: IMAGENET)  # mean and std of RGB in [0, 1] that it was made for


def flat_arch(arch: dict | None) -> dict:
    """`arch` with the parts vision and text, where it has them, as one dict. Raises InputError for an unknown name."""
    flat = {}
    for name, value in (arch or {}).items():
        if name == "vision":
            flat |= value
        elif name == "text":
            flat |= {f"text_{key}": number for key, number in value.items()}
        else:
            flat[name] = value
    known = (*USED, *USED_TEXT, *SEEN, *SAID)
    for name in flat:
        if name not in known:
            raise InputError(f"arch: {name!r} is no property of an architecture.{suggest(name, known)}")
    return flat


def choose(arch: dict, name: str, known, why: str):
    """What arch, the file's config or a table of published models says; asks where none does."""
    value = arch.get(name, known)
    if value is None:
        raise InputError(f"arch: {name!r} is not in the file, and {why}; give it, as arch=dict({name}=...)")
    return value


def heads(arch: dict, width: int, depth: int, published: dict, name: str = "heads") -> int:
    why = f"no published model of this family is {width} wide and {depth} deep"
    count = choose(arch, name, published.get((width, depth)), why)
    if type(count) is not int or count < 1 or width % count:
        raise InputError(f"arch: {name} {count!r} does not divide the width {width}; give the number of attention heads")
    return count


def activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise InputError(f"arch: act {name!r} is no activation of these models.{suggest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


def grid(arch: dict, count: int) -> tuple[int, int]:
    """Rows and columns of a table of `count` positions, square unless arch says otherwise."""
    side = math.isqrt(count)
    rows, columns = arch.get("pos_grid", (side, side))
    if rows * columns != count:
        raise InputError(f"arch: pos_grid {rows} x {columns} is not the {count} positions of the file; give pos_grid")
    return rows, columns


def check_seen(arch: dict, seen: dict) -> None:
    """Refuse an arch that contradicts the tensors."""
    for name, value in seen.items():
        if arch.get(name, value) != value:
            raise InputError(f"arch: {name} {arch[name]!r} is not the {value} of the file; leave it out or mend it")


def shape_of(shapes: dict, name: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor that the family cannot do without."""
    if name not in shapes:
        raise InputError(f"checkpoint: {name!r} is missing; fetch the whole checkpoint, or say another family")
    if len(shapes[name]) != axes or 0 in shapes[name]:
        raise InputError(f"checkpoint: {name!r} has the shape {list(shapes[name])}, not {axes} axes; say another family")
    return shapes[name]
