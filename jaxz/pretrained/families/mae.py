"""MAE (He et al. 2022): the encoder as pretrained, or fine-tuned on the mean of the patches, with its head."""

from dataclasses import replace

from jaxz.models.tower import ImageTower
from jaxz.pretrained import family, vit
from jaxz.pretrained.formats import Checkpoint
from jaxz.pretrained.layouts import linear, norm

PUBLISHED = {(768, 12): 12, (1024, 24): 16, (1280, 32): 16}  # (width, depth) -> heads
IGNORED = {r"mask_token|decoder_.*": "the decoder's"}
NAMES = replace(vit.NAMES, mask_token="")
ROWS = [*vit.ROWS, *norm("fc_norm", "norm"), *linear("head", "classifier")]


def recognises(checkpoint: Checkpoint) -> bool:
    """DINO's files have the same names, bare or below "teacher"."""
    names = checkpoint.tensors
    own = checkpoint.wrapper == "model" or "fc_norm.weight" in names or "decoder_embed.weight" in names
    return vit.NAMES.stem in names and own and vit.LATER.isdisjoint(names)


def describe(checkpoint: Checkpoint, arch: dict) -> family.Model:
    """The encoder; of a fine-tuned file the summary is the mean of the patches, and the head is kept."""
    shapes = checkpoint.shapes
    inner = family.blocks(shapes, arch, NAMES, PUBLISHED, act="gelu", eps=1e-6)
    mean = "fc_norm.weight" in shapes
    classes = family.shape_of(shapes, "head.weight", 2)[0] if "head.weight" in shapes else 0
    image = family.image(shapes, arch, NAMES, inner, summary="mean" if mean else "cls", classes=classes)
    layout = "mae, fine-tuned" if mean else "mae, pretrained"
    return family.Model(layout, image, ImageTower, ROWS, IGNORED, family.arch_of(image), family.seen(image))
