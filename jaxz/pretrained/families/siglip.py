"""SigLIP (Zhai et al. 2023) in directories of Hugging Face: both towers, or that of images alone."""

from dataclasses import replace

from jaxz.models.two_towers import Pair, TwoTowers
from jaxz.pretrained import family, hugging_face
from jaxz.pretrained.formats import Checkpoint
from jaxz.pretrained.layouts import Row, linear, norm, packed_attention, tokens

IMAGE_HEADS = {(768, 12): 12, (1024, 24): 16, (1152, 27): 16}  # (width, depth) -> heads
TEXT_HEADS = IMAGE_HEADS
HEAD = hugging_face.VISION + "head."
ROWS = [
    *hugging_face.ROWS,
    Row(hugging_face.VISION + "embeddings.position_embedding.weight", "image/position"),
    Row(HEAD + "probe", "image/probe/token", tokens),
    *packed_attention(HEAD + "attention", "image/probe/attention"),
    *norm(HEAD + "layernorm", "image/probe/norm"),
    *linear(HEAD + "mlp.fc1", "image/probe/mlp/up"),
    *linear(HEAD + "mlp.fc2", "image/probe/mlp/down"),
    *linear("text_model.head", "text_projection"),
]
INPUT = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
ACT = "gelu_pytorch_tanh"


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether it is SigLIP's, by its attention pooling."""
    return not {"vision_model.head.probe", "head.probe"}.isdisjoint(checkpoint.tensors)


def describe(checkpoint: Checkpoint, arch: dict) -> family.Model:
    """Both towers, or that of images where it was saved alone."""
    shapes = checkpoint.shapes
    arch = hugging_face.said(checkpoint.config, ACT, 1e-6, 12) | arch
    vision = hugging_face.vision(shapes)
    names, text = hugging_face.names(vision), hugging_face.names(hugging_face.TEXT)
    inner = family.blocks(shapes, arch, names, IMAGE_HEADS, act=ACT, eps=1e-6)
    image = family.image(shapes, arch, names, inner, cls=False, summary="probe")
    pair = Pair(image, None, logit_scale="logit_scale" in shapes, logit_bias="logit_bias" in shapes)
    if text.token in shapes:
        inner = family.blocks(shapes, arch, text, TEXT_HEADS, act=ACT, eps=1e-6, text="text_")
        width = family.shape_of(shapes, "text_model.head.weight", 2)[0]
        text_tower = family.text(shapes, arch, text, inner, causal=False, pool="last")
        pair = replace(pair, text=text_tower, text_projection=width, text_projection_bias=True)
    rows = hugging_face.rows_for(vision, ROWS)
    arch, seen = family.arch_of(pair), family.seen(pair)
    return family.Model("hugging face", pair, TwoTowers, rows, hugging_face.IGNORED, arch, seen, INPUT)
