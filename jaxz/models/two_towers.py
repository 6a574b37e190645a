"""Encoders of images and of texts beside one another: CLIP and SigLIP."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxz.models import Encoded, layers
from jaxz.models.tower import Block, Blocks, Image, ImageTower, layer_norm, linear, run, zeros


@dataclass(frozen=True)
class Text:
    """What is around the blocks of a text tower."""

    blocks: Blocks
    vocabulary: int
    context: int  # tokens at most
    causal: bool
    pool: str  # the token that stands for the text: "argmax" (of the ids), "eos" (the first) or "last"
    eos: int = -1


class TextTower(nnx.Module):
    """An encoder of texts, given as the numbers of their tokens (jaxz.pretrained.tokenizer)."""

    def __init__(self, s: Text, *, rngs: nnx.Rngs):
        self.settings = s
        self.token = zeros(s.vocabulary, s.blocks.width)
        self.position = zeros(s.context, s.blocks.width)
        self.blocks = layers.stack(s.blocks.depth, lambda r: Block(s.blocks, rngs=r), rngs)
        self.norm = layer_norm(s.blocks, rngs)

    def __call__(self, ids: jax.Array) -> Encoded:
        """Of ids int [B,S]: Encoded(the token that stands for the text [B,D], all of them [B,S,D])."""
        x = self.token[...][ids] + self.position[...][: ids.shape[1]]
        x = self.norm(run(self.blocks, x, causal=self.settings.causal))
        every = jnp.ones(ids.shape, bool)
        if self.settings.pool == "last":
            return Encoded(x[:, -1], x, every)
        at = ids if self.settings.pool == "argmax" else (ids == self.settings.eos).astype(jnp.int32)
        return Encoded(jnp.take_along_axis(x, at.argmax(1)[:, None, None], axis=1)[:, 0], x, every)


@dataclass(frozen=True)
class Pair:
    """A tower for images and one for texts, which a contrastive objective joins. text and what it is compared by may
    be missing."""

    image: Image
    text: Text | None
    image_projection: int = 0  # width of the common space; 0: the summary is in it already
    text_projection: int = 0
    text_projection_bias: bool = False
    logit_scale: bool = True
    logit_bias: bool = False


class TwoTowers(nnx.Module):
    """CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023). Called, it is the encoder of images."""

    def __init__(self, s: Pair, *, rngs: nnx.Rngs):
        self.image = ImageTower(s.image, rngs=rngs)
        self.text = TextTower(s.text, rngs=rngs) if s.text else None
        project = lambda tower, width, bias=False: linear(tower.blocks.width, width, rngs, bias) if width else None
        self.image_projection = project(s.image, s.image_projection)
        self.text_projection = project(s.text, s.text_projection, s.text_projection_bias)
        self.logit_scale = zeros() if s.logit_scale else None
        self.logit_bias = zeros() if s.logit_bias else None

    def __call__(self, *args: Any, **kwargs: Any) -> Encoded:
        return self.image(*args, **kwargs)

    def embed_image(self, summary: jax.Array) -> jax.Array:
        """[B,D] of Encoded.cls -> [B,E] in the common space, not normalised."""
        return summary if self.image_projection is None else self.image_projection(summary)

    def embed_text(self, summary: jax.Array) -> jax.Array:
        """The same of text(ids).cls."""
        return summary if self.text_projection is None else self.text_projection(summary)

    def logits(self, images: jax.Array, texts: jax.Array) -> jax.Array:
        """[B,T] of embeddings [B,E] and [T,E]: exp(scale) times their cosine, plus the bias where there is one."""
        assert self.logit_scale is not None, "this model compares no images with texts"
        logits = jnp.exp(self.logit_scale[...]) * normalised(images) @ normalised(texts).T
        return logits if self.logit_bias is None else logits + self.logit_bias[...]


def normalised(x: jax.Array) -> jax.Array:
    """Vectors [..., D] over their Euclidean norm, in their own type; NaN of a zero."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
