"""The names that Hugging Face gives to the two towers of CLIP and SigLIP."""

from dataclasses import replace

from jaxz.pretrained import family
from jaxz.pretrained.layouts import Row, Shapes, convolution, linear, norm, scalar

IGNORED = {r"((text|vision)_model\.)?embeddings\.position_ids": "the numbers from 0 on"}
VISION, TEXT = "vision_model.", "text_model."


def layers(name: str, target: str) -> list[Row]:
    """Rows of a tower's blocks."""
    attention = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "out"))
    return [
        *norm(f"{name}.layer_norm1", f"{target}/norm1"),
        *(row for n, own in attention for row in linear(f"{name}.self_attn.{n}", f"{target}/attention/{own}")),
        *norm(f"{name}.layer_norm2", f"{target}/norm2"),
        *linear(f"{name}.mlp.fc1", f"{target}/mlp/up"),
        *linear(f"{name}.mlp.fc2", f"{target}/mlp/down"),
    ]


ROWS = [
    Row(VISION + "embeddings.patch_embedding.weight", "image/stem/kernel", convolution),
    Row(VISION + "embeddings.patch_embedding.bias", "image/stem/bias"),
    *layers(VISION + "encoder.layers.{}", "image/blocks"),
    *norm(VISION + "post_layernorm", "image/norm"),
    Row(TEXT + "embeddings.token_embedding.weight", "text/token"),
    Row(TEXT + "embeddings.position_embedding.weight", "text/position"),
    *layers(TEXT + "encoder.layers.{}", "text/blocks"),
    *norm(TEXT + "final_layer_norm", "text/norm"),
    Row("logit_scale", "logit_scale", scalar),
    Row("logit_bias", "logit_bias", scalar),
]


def names(tower: str) -> family.Names:
    """tower: what the names of its tensors begin with."""
    return family.Names(
        norm=tower + "encoder.layers.{}.layer_norm1.weight",
        down=tower + "encoder.layers.{}.mlp.fc2.weight",
        stem=tower + "embeddings.patch_embedding.weight",
        position=tower + "embeddings.position_embedding.weight",
        token=tower + "embeddings.token_embedding.weight",
    )


def vision(shapes: Shapes) -> str:
    """What the image tower's names begin with: nothing where it was saved alone."""
    return "" if "embeddings.patch_embedding.weight" in shapes else VISION


def rows_for(tower: str, rows: list[Row]) -> list[Row]:
    """The rows for an image tower whose tensors' names begin with `tower`, as `vision` says."""
    return rows if tower else [replace(row, name=row.name.removeprefix(VISION)) for row in rows]


def said(config: dict, act: str, eps: float, text_heads: int) -> dict:
    """What the config.json of two towers, or of that of images, says beyond the tensors; what it leaves out is as
    transformers has it, which the other arguments say."""
    if not config:
        return {}
    image, text = config.get("vision_config", config), config.get("text_config") or {}
    return dict(
        heads=image.get("num_attention_heads", 12),
        act=image.get("hidden_act", act),
        layernorm_eps=image.get("layer_norm_eps", eps),
        text_heads=text.get("num_attention_heads", text_heads),
        text_act=text.get("hidden_act", act),
        eos_token_id=text.get("eos_token_id", 49407),
    )
