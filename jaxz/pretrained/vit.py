"""The names that DINO, MAE, DINOv2 and DINOv3 share in the files of their own code."""

from jaxz.pretrained.family import Names
from jaxz.pretrained.layouts import Row, convolution, linear, norm, positions, tokens

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
NAMES = Names(
    norm="blocks.{}.norm1.weight",
    down="blocks.{}.mlp.fc2.weight",
    gate="blocks.{}.mlp.w3.weight",
    gated_down="blocks.{}.mlp.w3.weight",
    scale="blocks.{}.ls1.gamma",
    stem="patch_embed.proj.weight",
    position="pos_embed",
    mask_token="mask_token",
)
LATER = {"blocks.0.ls1.gamma", "rope_embed.periods"}  # DINOv2's and DINOv3's, never DINO's or MAE's
