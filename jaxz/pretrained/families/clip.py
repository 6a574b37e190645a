"""CLIP (Radford et al. 2021), both towers: files of OpenAI (state dict or TorchScript) and open_clip, whose names are
the same, and directories of Hugging Face."""

from dataclasses import replace

from jaxz.errors import InputError
from jaxz.models.two_towers import Pair, TwoTowers
from jaxz.pretrained import family, hugging_face
from jaxz.pretrained.formats import Checkpoint
from jaxz.pretrained.layouts import Row, Shapes, convolution, linear, norm, packed_attention, positions, scalar, tokens

# (width, depth) -> heads; those of LAION's larger models are 80, 88 and 104 wide, not 64
IMAGE_HEADS = {(768, 12): 12, (1024, 24): 16, (1280, 32): 16, (1408, 40): 16, (1664, 48): 16}
TEXT_HEADS = {(512, 12): 8, (768, 12): 12, (1024, 24): 16, (1280, 32): 20}
IGNORED = {
    r"input_resolution|context_length|vocab_size": "numbers that the other tensors' shapes say",
    r"attn_mask": "the causal mask, which the model makes",
}
INPUT = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}


def residual_blocks(name: str, target: str) -> list[Row]:
    """Rows of a stack of blocks by OpenAI's names."""
    name = f"{name}.resblocks.{{}}"
    return [
        *norm(f"{name}.ln_1", f"{target}/norm1"),
        *packed_attention(f"{name}.attn", f"{target}/attention"),
        *norm(f"{name}.ln_2", f"{target}/norm2"),
        *linear(f"{name}.mlp.c_fc", f"{target}/mlp/up"),
        *linear(f"{name}.mlp.c_proj", f"{target}/mlp/down"),
    ]


OPENAI = [
    Row("visual.class_embedding", "image/cls_token", tokens),
    *positions("visual.positional_embedding", "image/"),
    Row("visual.conv1.weight", "image/stem/kernel", convolution),
    *norm("visual.ln_pre", "image/stem_norm"),
    *residual_blocks("visual.transformer", "image/blocks"),
    *norm("visual.ln_post", "image/norm"),
    Row("visual.proj", "image_projection/kernel"),  # [in, out], as the kernels here
    Row("token_embedding.weight", "text/token"),
    Row("positional_embedding", "text/position"),
    *residual_blocks("transformer", "text/blocks"),
    *norm("ln_final", "text/norm"),
    Row("text_projection", "text_projection/kernel"),
    Row("logit_scale", "logit_scale", scalar),
]
HUGGING_FACE = [
    *hugging_face.ROWS,
    Row("vision_model.embeddings.class_embedding", "image/cls_token", tokens),
    *positions("vision_model.embeddings.position_embedding.weight", "image/"),
    *norm("vision_model.pre_layrnorm", "image/stem_norm"),  # so spelt
    *linear("visual_projection", "image_projection"),
    *linear("text_projection", "text_projection"),
]


def openai_names(tower: str) -> family.Names:
    """Where the sizes of the tower stand whose tensors' names begin with `tower`."""
    return family.Names(
        norm=tower + "transformer.resblocks.{}.ln_1.weight",
        down=tower + "transformer.resblocks.{}.mlp.c_proj.weight",
        stem=tower + "conv1.weight",
        position=tower + "positional_embedding",
        token=tower + "token_embedding.weight",
    )


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether it is CLIP's, by OpenAI's or Hugging Face's names."""
    marks = {"visual.conv1.weight", "vision_model.pre_layrnorm.weight", "pre_layrnorm.weight"}
    return not marks.isdisjoint(checkpoint.tensors)


def describe(checkpoint: Checkpoint, arch: dict) -> family.Model:
    """Both towers, or that of images where the file has no other."""
    openai = "visual.conv1.weight" in checkpoint.tensors
    return (openai_model if openai else hugging_face_model)(checkpoint.shapes, checkpoint.config, arch)


def openai_model(shapes: Shapes, config: dict, arch: dict) -> family.Model:
    """By OpenAI's names; what no tensor says is in open_clip's config, or must be given."""
    arch = open_clip_said(config) | arch
    pair = two_towers(shapes, arch, openai_names("visual."), openai_names(""), "bicubic_antialias")
    image = shapes["visual.proj"][1] if "visual.proj" in shapes else 0
    text = shapes["text_projection"][1] if "text_projection" in shapes else 0
    return model_of("openai or open_clip", pair, image, text, OPENAI, IGNORED, published_input(config))


def hugging_face_model(shapes: Shapes, config: dict, arch: dict) -> family.Model:
    """By Hugging Face's names; the config's eos_token_id says which token stands for a text."""
    said = hugging_face.said(config, "quick_gelu", 1e-5, 8)
    if said:  # 2 is what all uploads of OpenAI's models say, whatever the id is: the highest is meant
        said["text_pool"] = "argmax" if said["eos_token_id"] == 2 else "eos"
    vision = hugging_face.vision(shapes)
    towers = hugging_face.names(vision), hugging_face.names(hugging_face.TEXT)
    pair = two_towers(shapes, said | arch, *towers, "bicubic")
    image, text = (shapes.get(f"{name}_projection.weight", (0,))[0] for name in ("visual", "text"))
    rows = hugging_face.rows_for(vision, HUGGING_FACE)
    return model_of("hugging face", pair, image, text, rows, hugging_face.IGNORED, INPUT)


def two_towers(shapes: Shapes, arch: dict, image: family.Names, text: family.Names, interpolation: str) -> Pair:
    """The settings of both towers, or of that of images; image, text: where their sizes stand."""
    inner = family.blocks(shapes, arch, image, IMAGE_HEADS, act=None, eps=1e-5)
    tower = family.image(shapes, arch, image, inner, stem_bias=False, stem_norm=True, interpolation=interpolation)
    pair = Pair(tower, None, logit_scale="logit_scale" in shapes)
    if text.token not in shapes:
        return pair
    inner = family.blocks(shapes, arch, text, TEXT_HEADS, act=None, eps=1e-5, text="text_")
    return replace(pair, text=family.text(shapes, arch, text, inner, causal=True, pool="argmax"))


def model_of(
    layout: str, pair: Pair, image: int, text: int, rows: list[Row], ignored: dict[str, str], published: dict
) -> family.Model:
    """image, text: widths of the common space, as their projections have it."""
    pair = replace(pair, image_projection=image, text_projection=text if pair.text else 0)
    arch, seen = family.arch_of(pair), family.seen(pair)
    return family.Model(layout, pair, TwoTowers, rows, ignored, arch, seen, published)


def open_clip_said(config: dict) -> dict:
    """What an open_clip_config.json says beyond the tensors; what it leaves out is as open_clip has it.

    Raises InputError for models that differ from CLIP in more than numbers.
    """
    if not config:
        return {}
    model = config.get("model_cfg", config)
    image, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    for name, plain, where in (
        ("pool_type", "tok", image),
        ("attentional_pool", False, image),
        ("no_causal_mask", False, text),
    ):
        if where.get(name, plain) != plain:
            raise InputError(f"open_clip_config.json: {name} {where[name]!r} is not supported; choose another model")
    act = "quick_gelu" if model.get("quick_gelu") else "gelu"
    return dict(
        heads=image.get("width", 768) // image.get("head_width", 64),
        act=act,
        text_act=act,
        text_heads=text.get("heads", 8),
        text_pool=text.get("pool_type", "argmax"),
        eos_token_id=text.get("eos_id", 2),
    )


def published_input(config: dict) -> dict:
    """Mean and std of RGB in [0, 1]: those of open_clip's config, else OpenAI's."""
    said = config.get("preprocess_cfg", {})
    return {name: tuple(said.get(name, INPUT[name])) for name in INPUT}
