"""DINOv3 (Simeoni et al. 2025): files of its own code and directories of Hugging Face."""

from dataclasses import replace

import numpy as np

from jaxz.models.tower import ImageTower
from jaxz.pretrained import family, vit
from jaxz.pretrained.formats import Checkpoint
from jaxz.pretrained.layouts import Row, Shapes, convolution, linear, norm, tokens
from jaxz.pretrained.tensors import need

PUBLISHED = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 20, (4096, 40): 32}  # (width, depth) -> heads
IGNORED = {
    r"rope_embed\.periods": "read as settings",
    r"blocks\.\d+\.attn\.qkv\.bias_mask": "takes the keys' bias away, which the model here does not have",
}
EMBEDDINGS, LAYER = "embeddings.", "layer.{}."
HUGGING_FACE = [
    Row(EMBEDDINGS + "cls_token", "cls_token", tokens),
    Row(EMBEDDINGS + "register_tokens", "register_token", tokens),
    Row(EMBEDDINGS + "mask_token", "mask_token", lambda a: a.reshape(-1)),
    Row(EMBEDDINGS + "patch_embeddings.weight", "stem/kernel", convolution),
    Row(EMBEDDINGS + "patch_embeddings.bias", "stem/bias"),
    *norm(LAYER + "norm1", "blocks/norm1"),
    *linear(LAYER + "attention.q_proj", "blocks/attention/query"),
    *linear(LAYER + "attention.k_proj", "blocks/attention/key"),
    *linear(LAYER + "attention.v_proj", "blocks/attention/value"),
    *linear(LAYER + "attention.o_proj", "blocks/attention/out"),
    Row(LAYER + "layer_scale1.lambda1", "blocks/attention_scale"),
    *norm(LAYER + "norm2", "blocks/norm2"),
    *linear(LAYER + "mlp.gate_proj", "blocks/mlp/gate"),
    *linear(LAYER + "mlp.up_proj", "blocks/mlp/up"),
    *linear(LAYER + "mlp.down_proj", "blocks/mlp/down"),
    Row(LAYER + "layer_scale2.lambda1", "blocks/mlp_scale"),
    *norm("norm", "norm"),
]
OWN_NAMES = replace(vit.NAMES, position="", register="storage_tokens")
HUGGING_FACE_NAMES = family.Names(
    norm=LAYER + "norm1.weight",
    down=LAYER + "mlp.down_proj.weight",
    gate=LAYER + "mlp.gate_proj.weight",
    gated_down=LAYER + "mlp.down_proj.weight",
    scale=LAYER + "layer_scale1.lambda1",
    stem=EMBEDDINGS + "patch_embeddings.weight",
    register=EMBEDDINGS + "register_tokens",
    mask_token=EMBEDDINGS + "mask_token",
)


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether it is DINOv3's, by its rotary periods or the names of its layers."""
    names = checkpoint.tensors
    return "rope_embed.periods" in names or HUGGING_FACE_NAMES.scale.format(0) in names


def describe(checkpoint: Checkpoint, arch: dict) -> family.Model:
    """The image tower; rotary periods are the file's own, or follow from the config's rope_theta, 100 by default."""
    shapes = checkpoint.shapes
    own = vit.NAMES.stem in shapes
    names = OWN_NAMES if own else HUGGING_FACE_NAMES
    periods = None
    if own:
        periods = checkpoint.tensors["rope_embed.periods"].read()
        arch = {"heads": shapes[names.stem][0] // (4 * len(periods))} | arch
    else:
        arch = said(checkpoint.config) | arch
    bias = own_bias(shapes) if own else tuple(f"layer.0.attention.{x}_proj.bias" in shapes for x in "qkv")
    inner = family.blocks(shapes, arch, names, PUBLISHED, act="gelu", eps=1e-5, qkv_bias=bias)
    if periods is None:
        count = inner.width // inner.heads // 4
        periods = family.positive(arch, "rope_theta", 100.0) ** (np.arange(count) / count)
    need(bool(np.all((periods > 0) & (periods < np.inf))), f"its rotary periods are {periods}")
    image = family.image(shapes, arch, names, inner, rope=tuple(float(period) for period in periods))
    rows, layout = (vit.ROWS, "dinov3") if own else (HUGGING_FACE, "hugging face")
    said_nowhere = family.arch_of(image) | ({} if own else {"rope_theta": arch.get("rope_theta", 100.0)})
    return family.Model(layout, image, ImageTower, rows, IGNORED, said_nowhere, family.seen(image))


def own_bias(shapes: Shapes) -> tuple[bool, bool, bool]:
    """Of queries, keys and values: the bias that the file has for keys counts only without a mask."""
    there = "blocks.0.attn.qkv.bias" in shapes
    return there, there and "blocks.0.attn.qkv.bias_mask" not in shapes, there


def said(config: dict) -> dict:
    """What a config.json says beyond the tensors; what it leaves out is as transformers has it."""
    if not config:
        return {}
    rope = config.get("rope_parameters") or {}
    return dict(
        heads=config.get("num_attention_heads", 6),
        act=config.get("hidden_act", "gelu"),
        layernorm_eps=config.get("layer_norm_eps", 1e-5),
        rope_theta=config.get("rope_theta", rope.get("rope_theta", 100.0)),
    )
