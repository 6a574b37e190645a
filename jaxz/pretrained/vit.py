"""The names that DINO, MAE, DINOv2 and DINOv3 share in the files of their own code."""

from jaxz.models.tower import Blocks, Image
from jaxz.pretrained import family
from jaxz.pretrained.layouts import Row, convolution, depth, linear, norm, positions, tokens

ROWS = [
    Row("cls_token", "cls_token", tokens),
    Row("register_tokens", "register_token", tokens),
    Row("storage_tokens", "register_token", tokens),
    Row("mask_token", "mask_token", lambda a: a.reshape(-1)),
    *positions("pos_embed"),
    Row("patch_embed.proj.weight", "stem/kernel", convolution),
    Row("patch_embed.proj.bias", "stem/bias"),
    *norm("blocks.{}.norm1", "blocks/norm1"),
    *linear("blocks.{}.attn.qkv", *(f"blocks/attention/{name}" for name in ("query", "key", "value"))),
    *linear("blocks.{}.attn.proj", "blocks/attention/out"),
    Row("blocks.{}.ls1.gamma", "blocks/attention_scale"),
    *norm("blocks.{}.norm2", "blocks/norm2"),
    *linear("blocks.{}.mlp.fc1", "blocks/mlp/up"),
    *linear("blocks.{}.mlp.fc2", "blocks/mlp/down"),
    *linear("blocks.{}.mlp.w12", "blocks/mlp/gate", "blocks/mlp/up"),
    *linear("blocks.{}.mlp.w1", "blocks/mlp/gate"),
    *linear("blocks.{}.mlp.w2", "blocks/mlp/up"),
    *linear("blocks.{}.mlp.w3", "blocks/mlp/down"),
    Row("blocks.{}.ls2.gamma", "blocks/mlp_scale"),
    *norm("norm", "norm"),
]


def describe(shapes: dict, arch: dict, published: dict, **options) -> Image:
    """The settings of such a file; options: of Image, and eps of Blocks."""
    width, _, patch, _ = family.shape_of(shapes, "patch_embed.proj.weight", 4)
    gated = "blocks.0.mlp.w3.weight" in shapes
    down = "blocks.0.mlp.w3.weight" if gated else "blocks.0.mlp.fc2.weight"
    count = depth(shapes, "blocks.{}.norm1.weight")
    eps, qkv_bias = options.pop("eps"), options.pop("qkv_bias", (True, True, True))
    blocks = Blocks(
        width=width,
        depth=count,
        heads=family.heads(arch, width, count, published),
        hidden=family.shape_of(shapes, down, 2)[1],
        activation=family.activation(arch.get("act", "silu" if gated else "gelu")),
        gated=gated,
        eps=arch.get("layernorm_eps", eps),
        qkv_bias=qkv_bias,
        layer_scale="blocks.0.ls1.gamma" in shapes,
    )
    table = family.shape_of(shapes, "pos_embed", 3)[1] - 1 if "pos_embed" in shapes else 0
    return Image(blocks=blocks, patch=patch, grid=family.grid(arch, table) if table else None, **options)


def seen(image: Image) -> dict:
    return dict(dim=image.blocks.width, depth=image.blocks.depth, patch=image.patch, registers=image.registers)


def arch_of(image: Image) -> dict:
    """What no tensor of such a file says."""
    said = dict(heads=image.blocks.heads, act=image.blocks.activation, layernorm_eps=image.blocks.eps)
    return said | (dict(pos_grid=image.grid) if image.grid else {})
