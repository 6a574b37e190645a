"""DINOv2 (Oquab et al. 2023), with and without registers: files of its own code and directories of Hugging Face."""

from jaxz.models.tower import Blocks, Image, ImageTower
from jaxz.pretrained import family, vit
from jaxz.pretrained.layouts import Row, convolution, depth, linear, norm, positions, tokens

PUBLISHED = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1536, 40): 24}  # (width, depth) -> heads
IGNORED = {r"classifier\..*|linear_head\..*": "a classifier of ImageNet's classes"}
EMBEDDINGS, LAYER = "embeddings.", "encoder.layer.{}."
HUGGING_FACE = [
    Row(EMBEDDINGS + "cls_token", "cls_token", tokens),
    Row(EMBEDDINGS + "register_tokens", "register_token", tokens),
    Row(EMBEDDINGS + "mask_token", "mask_token", lambda a: a.reshape(-1)),
    *positions(EMBEDDINGS + "position_embeddings"),
    Row(EMBEDDINGS + "patch_embeddings.projection.weight", "stem/kernel", convolution),
    Row(EMBEDDINGS + "patch_embeddings.projection.bias", "stem/bias"),
    *norm(LAYER + "norm1", "blocks/norm1"),
    *(
        row
        for name in ("query", "key", "value")
        for row in linear(f"{LAYER}attention.attention.{name}", f"blocks/attention/{name}")
    ),
    *linear(LAYER + "attention.output.dense", "blocks/attention/out"),
    Row(LAYER + "layer_scale1.lambda1", "blocks/attention_scale"),
    *norm(LAYER + "norm2", "blocks/norm2"),
    *linear(LAYER + "mlp.fc1", "blocks/mlp/up"),
    *linear(LAYER + "mlp.fc2", "blocks/mlp/down"),
    *linear(LAYER + "mlp.weights_in", "blocks/mlp/gate", "blocks/mlp/up"),
    *linear(LAYER + "mlp.weights_out", "blocks/mlp/down"),
    Row(LAYER + "layer_scale2.lambda1", "blocks/mlp_scale"),
    *norm("layernorm", "norm"),
]


def recognises(checkpoint) -> bool:
    names = checkpoint.tensors
    if "storage_tokens" in names or "rope_embed.periods" in names:
        return False  # DINOv3's
    return "blocks.0.ls1.gamma" in names or "encoder.layer.0.layer_scale1.lambda1" in names


def describe(checkpoint, arch: dict) -> family.Model:
    shapes = checkpoint.shapes
    if "patch_embed.proj.weight" in shapes:
        registers = shapes["register_tokens"][1] if "register_tokens" in shapes else 0
        options = dict(registers=registers, mask_token="mask_token" in shapes, eps=1e-6)
        options |= dict(interpolation="bicubic_antialias" if registers else "offset0.1")
        image, rows, layout = vit.describe(shapes, arch, PUBLISHED, **options), vit.ROWS, "dinov2"
    else:
        image, rows, layout = hugging_face(shapes, said(checkpoint.config) | arch), HUGGING_FACE, "hugging face"
    return family.Model(layout, image, ImageTower, rows, IGNORED, vit.arch_of(image), vit.seen(image))


def said(config: dict) -> dict:
    """What a config.json says beyond the tensors; what it leaves out is as transformers has it."""
    if not config:
        return {}
    return dict(
        heads=config.get("num_attention_heads", 12),
        act="silu" if config.get("use_swiglu_ffn") else config.get("hidden_act", "gelu"),
        layernorm_eps=config.get("layer_norm_eps", 1e-6),
    )


def hugging_face(shapes: dict, arch: dict) -> Image:
    width, _, patch, _ = family.shape_of(shapes, EMBEDDINGS + "patch_embeddings.projection.weight", 4)
    count = depth(shapes, LAYER + "norm1.weight")
    first = LAYER.format(0)
    gated = first + "mlp.weights_out.weight" in shapes
    blocks = Blocks(
        width=width,
        depth=count,
        heads=family.heads(arch, width, count, PUBLISHED),
        hidden=family.shape_of(shapes, first + ("mlp.weights_out.weight" if gated else "mlp.fc2.weight"), 2)[1],
        activation=family.activation(arch.get("act", "silu" if gated else "gelu")),
        gated=gated,
        eps=arch.get("layernorm_eps", 1e-6),
        layer_scale=True,
    )
    registers = EMBEDDINGS + "register_tokens"
    return Image(
        blocks=blocks,
        patch=patch,
        registers=family.shape_of(shapes, registers, 3)[1] if registers in shapes else 0,
        grid=family.grid(arch, family.shape_of(shapes, EMBEDDINGS + "position_embeddings", 3)[1] - 1),
        interpolation="bicubic_antialias" if registers in shapes else "bicubic",
        mask_token=EMBEDDINGS + "mask_token" in shapes,
    )
