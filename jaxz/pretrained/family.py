"""What every family says of a checkpoint, and what a user must say where the file does not."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flax import nnx

from jaxz.errors import InputError, suggest
from jaxz.models.tower import Blocks, Image
from jaxz.models.two_towers import Pair, Text
from jaxz.pretrained.layouts import Row, Shapes, depth

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

POOLS = ("argmax", "eos", "last")

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class Unsaid(InputError):
    """Neither the file nor the family says a number of the architecture; `name` is what to give."""

    def __init__(self, name: str, why: str):
        super().__init__(f"arch: {name!r} is not in the file{why}; give it, as arch=dict({name}=...)")
        self.name = name


@dataclass(frozen=True)
class Model:
    """A checkpoint understood: the module to build and the rows that fill it."""

    layout: str
    settings: Image | Pair  # of the module
    make: Callable[..., nnx.Module]  # make(settings, rngs=rngs)
    rows: list[Row]
    ignored: dict[str, str]  # regex of names -> why they are left out
    arch: dict  # the numbers that no tensor says; given as `arch`, they load the same file again
    seen: dict = field(default_factory=dict)  # numbers that the tensors say
    published_input: dict = field(default_factory=lambda: IMAGENET)  # mean and std of RGB in [0, 1] as it was trained


def flat_arch(arch: Mapping | None) -> dict:
    """`arch` with the parts vision and text, where it has them, as one dict. Raises InputError for an unknown name."""
    flat: dict = {}
    for name, value in (arch or {}).items():
        if name == "vision":
            flat |= value
        elif name == "text":
            flat |= {f"text_{key}": number for key, number in value.items()}
        else:
            flat[name] = value
    if "act" in flat:
        flat.setdefault("text_act", flat["act"])
    known = (*USED, *USED_TEXT, *SEEN, *SAID)
    for name in flat:
        if name not in known:
            raise InputError(f"arch: {name!r} is no property of an architecture.{suggest(name, known)}")
    return flat


def choose(arch: Mapping, name: str, known: Any, why: str) -> Any:
    """What arch, the file's config or a table of published models says; asks where none does."""
    value = arch.get(name, known)
    if value is None:
        raise Unsaid(name, f", and {why}")
    return value


def heads(arch: Mapping, width: int, depth: int, published: Mapping[tuple[int, int], int], name: str = "heads") -> int:
    """Attention heads: by arch, else as published. Raises InputError where they do not divide the width."""
    why = f"no published model of this family is {width} wide and {depth} deep"
    count = choose(arch, name, published.get((width, depth)), why)
    if type(count) is not int or count < 1 or width % count:
        raise InputError(
            f"arch: {name} {count!r} does not divide the width {width}; give the number of attention heads"
        )
    return count


def positive(arch: Mapping, name: str, known: float) -> float:
    """A number by arch, else as known. Raises InputError for what is none above 0."""
    value = arch.get(name, known)
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"arch: {name} {value!r} is no number above 0; give it, as arch=dict({name}={known:g})")
    return value


def activation(name: str) -> str:
    """The name in jaxz.models.tower of an activation by its name elsewhere. Raises InputError for another."""
    if name not in ACTIVATIONS:
        raise InputError(f"arch: act {name!r} is no activation of these models.{suggest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


def grid(arch: Mapping, count: int) -> tuple[int, int]:
    """Rows and columns of a table of `count` positions, square unless arch says otherwise."""
    side = math.isqrt(count)
    square = (side, side) if side * side == count else None
    rows, columns = choose(arch, "pos_grid", square, f"its {count} positions are no square")
    if rows * columns != count:
        raise InputError(f"arch: pos_grid {rows} x {columns} is not the {count} positions of the file; give pos_grid")
    return rows, columns


@dataclass(frozen=True)
class Names:
    """Where in a file the sizes of a tower stand: names of tensors, {} for the number of the block."""

    norm: str  # the first LayerNorm of a block
    down: str  # the last dense layer of its MLP
    gate: str = ""  # there where the MLP is gated ...
    gated_down: str = ""  # ... which then has this for `down`
    scale: str = ""  # of LayerScale
    stem: str = ""
    position: str = ""
    register: str = ""
    mask_token: str = ""
    token: str = ""  # a text tower's vocabulary


def blocks(
    shapes: Shapes,
    arch: Mapping,
    names: Names,
    published: Mapping[tuple[int, int], int],
    *,
    act: str | None,
    eps: float,
    text: str = "",
    **options: Any,
) -> Blocks:
    """The blocks of a tower. published: (width, depth) -> heads; act: the activation, None to ask where arch has none;
    text: "text_" where the numbers in arch have that in front."""
    count = depth(shapes, names.norm)
    width = shape_of(shapes, names.norm.format(0), 1)[0]
    gated = names.gate.format(0) in shapes
    down = names.gated_down if gated else names.down
    act = arch.get("act", act) if text else act
    asked = "files with this very layout exist with 'gelu' and with 'quick_gelu'"
    return Blocks(
        width=width,
        depth=count,
        heads=heads(arch, width, count, published, text + "heads"),
        hidden=shape_of(shapes, down.format(0), 2)[1],
        activation=activation(choose(arch, text + "act", "silu" if gated else act, asked)),
        gated=gated,
        eps=positive(arch, "layernorm_eps", eps),
        layer_scale=names.scale.format(0) in shapes,
        **options,
    )


def image(shapes: Shapes, arch: Mapping, names: Names, inner: Blocks, *, cls: bool = True, **options: Any) -> Image:
    """An image tower around `inner`; options: of Image."""
    _, bands, patch, _ = shape_of(shapes, names.stem, 4)
    table = 0
    if names.position in shapes:
        table = shapes[names.position][-2] - cls
    return Image(
        blocks=inner,
        patch=patch,
        bands=bands,
        cls=cls,
        registers=shape_of(shapes, names.register, 3)[1] if names.register in shapes else 0,
        grid=grid(arch, table) if table else None,
        mask_token=names.mask_token in shapes,
        **options,
    )


def text(shapes: Shapes, arch: Mapping, names: Names, inner: Blocks, *, causal: bool, pool: str) -> Text:
    """A text tower around `inner`. pool: which token stands for the text, where arch does not say."""
    pool = arch.get("text_pool", pool).partition("(")[0]
    if pool not in POOLS:
        raise InputError(f"arch: text_pool {pool!r} is no token that stands for a text.{suggest(pool, POOLS)}")
    eos = arch.get("eos_token_id", -1)
    if pool == "eos" and eos < 0:
        raise Unsaid("eos_token_id", "")
    vocabulary, _ = shape_of(shapes, names.token, 2)
    return Text(inner, vocabulary, shape_of(shapes, names.position, 2)[0], causal, pool, eos)


def seen(model: Image | Pair) -> dict:
    """Numbers that the tensors say."""
    if isinstance(model, Image):
        return dict(dim=model.blocks.width, depth=model.blocks.depth, patch=model.patch, registers=model.registers)
    text = model.text
    said = dict(text_dim=text.blocks.width, text_depth=text.blocks.depth) if text else {}
    return seen(model.image) | said | (dict(text_ctx=text.context, text_vocab=text.vocabulary) if text else {})


def arch_of(model: Image | Pair) -> dict:
    """Numbers that no tensor says."""
    if isinstance(model, Image):
        said = dict(heads=model.blocks.heads, act=model.blocks.activation, layernorm_eps=model.blocks.eps)
        return said | (dict(pos_grid=model.grid) if model.grid else {})
    text = model.text
    if text is None:
        return arch_of(model.image)
    said = dict(text_heads=text.blocks.heads, text_act=text.blocks.activation, text_pool=text.pool)
    return arch_of(model.image) | said | (dict(eos_token_id=text.eos) if text.pool == "eos" else {})


def check_seen(arch: Mapping, seen: Mapping) -> None:
    """Refuse an arch that contradicts the tensors."""
    for name, value in seen.items():
        if arch.get(name, value) != value:
            raise InputError(f"arch: {name} {arch[name]!r} is not the {value} of the file; leave it out or mend it")


def shape_of(shapes: Shapes, name: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor that the family cannot do without."""
    if name not in shapes:
        raise InputError(f"checkpoint: {name!r} is missing; fetch the whole checkpoint, or say another family")
    if len(shapes[name]) != axes or 0 in shapes[name]:
        raise InputError(
            f"checkpoint: {name!r} has the shape {list(shapes[name])}, not {axes} axes; say another family"
        )
    return shapes[name]
