"""DINO (Caron et al. 2021): the backbone's file, or a training checkpoint, of which the teacher is taken."""

from jaxz.models.tower import ImageTower
from jaxz.pretrained import family, vit
from jaxz.pretrained.formats import Checkpoint

PUBLISHED = {(192, 12): 3, (384, 12): 6, (768, 12): 12}  # (width, depth) -> heads
IGNORED = {r"head\..*": "the head that only DINO's own loss looks at"}


def recognises(checkpoint: Checkpoint) -> bool:
    """MAE's files have the same names, below "model"."""
    names, others = checkpoint.tensors, vit.LATER | {"fc_norm.weight", "decoder_embed.weight"}
    return vit.NAMES.stem in names and checkpoint.wrapper in ("", "teacher") and others.isdisjoint(names)


def describe(checkpoint: Checkpoint, arch: dict) -> family.Model:
    """The image tower; its heads are as published for the width and depth, unless arch says them."""
    shapes = checkpoint.shapes
    inner = family.blocks(shapes, arch, vit.NAMES, PUBLISHED, act="gelu", eps=1e-6)
    image = family.image(shapes, arch, vit.NAMES, inner, interpolation="offset0.1")
    layout = f"dino, {checkpoint.wrapper or 'backbone'}"
    return family.Model(layout, image, ImageTower, vit.ROWS, IGNORED, family.arch_of(image), family.seen(image))
