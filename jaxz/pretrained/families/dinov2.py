"""DINOv2 (Oquab et al. 2023), with and without registers: files of its own code and directories of Hugging Face."""

from dataclasses import replace

import numpy as np

from jaxz.models.tower import Blocks, Image, ImageTower
from jaxz.pretrained import family, vit
from jaxz.pretrained.formats import Checkpoint
from jaxz.pretrained.layouts import Row, convolution, linear, norm, positions, tensors_of, tokens

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
OWN_NAMES = replace(vit.NAMES, register="register_tokens")
HUGGING_FACE_NAMES = family.Names(
    norm=LAYER + "norm1.weight",
    down=LAYER + "mlp.fc2.weight",
    gate=LAYER + "mlp.weights_out.weight",
    gated_down=LAYER + "mlp.weights_out.weight",
    scale=LAYER + "layer_scale1.lambda1",
    stem=EMBEDDINGS + "patch_embeddings.projection.weight",
    position=EMBEDDINGS + "position_embeddings",
    register=EMBEDDINGS + "register_tokens",
    mask_token=EMBEDDINGS + "mask_token",
)


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether it is DINOv2's, which has LayerScale, and nothing of DINOv3."""
    names = checkpoint.tensors
    if "storage_tokens" in names or "rope_embed.periods" in names:
        return False  # DINOv3's
    return "blocks.0.ls1.gamma" in names or "encoder.layer.0.layer_scale1.lambda1" in names


def describe(checkpoint: Checkpoint, arch: dict) -> family.Model:
    """The image tower; positions are resized as the code does that the file is of, with registers antialiased."""
    shapes = checkpoint.shapes
    own = vit.NAMES.stem in shapes
    names = OWN_NAMES if own else HUGGING_FACE_NAMES
    arch = said(checkpoint.config) | arch
    inner = family.blocks(shapes, arch, names, PUBLISHED, act="gelu", eps=1e-6)
    plain = "offset0.1" if own else "bicubic"
    interpolation = "bicubic_antialias" if names.register in shapes else plain
    image = family.image(shapes, arch, names, inner, interpolation=interpolation)
    rows, layout = (vit.ROWS, "dinov2") if own else (HUGGING_FACE, "hugging face")
    return family.Model(layout, image, ImageTower, rows, IGNORED, family.arch_of(image), family.seen(image))


def said(config: dict) -> dict:
    """What a config.json says beyond the tensors; what it leaves out is as transformers has it."""
    if not config:
        return {}
    return dict(
        heads=config.get("num_attention_heads", 12),
        act="silu" if config.get("use_swiglu_ffn") else config.get("hidden_act", "gelu"),
        layernorm_eps=config.get("layer_norm_eps", 1e-6),
    )


def hugging_face_config(image: Image) -> dict | None:
    """The config.json with which transformers reads a DINOv2 of the image tower's settings; None where it is none."""
    own, grid, eights = image.blocks, image.grid or (0, 1), 8 * -(-(8 * image.blocks.width // 3) // 8)
    blocks = Blocks(own.width, own.depth, own.heads, own.hidden, gated=own.gated, eps=own.eps, layer_scale=True)
    blocks = replace(blocks, activation="silu" if own.gated else "gelu")
    like = Image(blocks, image.patch, image.bands, registers=image.registers, grid=grid, mask_token=True)
    fits = own.hidden == eights if own.gated else own.hidden % own.width == 0
    if image != replace(like, interpolation=image.interpolation) or grid[0] != grid[1] or not fits:
        return None
    kind, name = ("dinov2_with_registers", "Dinov2WithRegisters") if image.registers else ("dinov2", "Dinov2")
    config = dict(
        model_type=kind,
        architectures=[f"{name}Model"],
        dtype="float32",
        hidden_size=own.width,
        num_hidden_layers=own.depth,
        num_attention_heads=own.heads,
        mlp_ratio=4 if own.gated else own.hidden // own.width,
        hidden_act="gelu",
        use_swiglu_ffn=own.gated,
        layer_norm_eps=own.eps,
        qkv_bias=True,
        patch_size=image.patch,
        image_size=image.patch * grid[0],
        num_channels=image.bands,
    )
    return config | (dict(num_register_tokens=image.registers) if image.registers else {})


def hugging_face_tensors(params: dict) -> dict[str, np.ndarray]:
    """An encoder's parameters under transformers' names: the inverse of reading them."""
    other = "mlp.fc" if "gate" in params["blocks"]["mlp"] else "mlp.weights"
    return tensors_of(params, [row for row in HUGGING_FACE if other not in row.name])
