"""Which way an image was turned (Gidaris et al. 2018): a baseline, and a detector of what tells directions apart.

The sky has no up: on isotropic data one turn in four is found, and more means that the instrument, the reduction or the
cutting leaves a direction in the images.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxz.data.prepare import Normalisation
from jaxz.models import Encoder
from jaxz.models.functional import Functional, Params
from jaxz.objectives import Extra, Loss, Prepared


class Objective:
    """Cross-entropy of telling which of K rearrangements of the pixels an image was given, K turns by 90 degrees here.
    The objective draws them; augmentation must not turn the images before (augment.orientation="none")."""

    name, columns, oriented = "rotation", (), True

    def __init__(self, encoder: Encoder, settings: ConfigDict, normalisation: Normalisation):
        self.encoder = encoder
        self.sources = self.rearrangements(encoder.size, settings)
        self.head = Functional(lambda rngs: nnx.Linear(encoder.width, len(self.sources), rngs=rngs))

    def rearrangements(self, size: int, settings: ConfigDict) -> np.ndarray:
        """int32 [K, H*W]: which pixel each pixel is taken from; the first leaves all in place."""
        pixels = np.arange(size * size, dtype=np.int32).reshape(size, size)
        return np.stack([np.rot90(pixels, k).ravel() for k in range(4)])

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        return self.head.init(key), {}

    def logits(
        self, params: Params, image: jax.Array, mask: jax.Array, columns: Prepared, key: jax.Array | None = None
    ) -> jax.Array:
        encoded = self.encoder(params["encoder"], image, mask, columns=columns, key=key)
        return self.head(params[self.name], encoded.cls)

    def loss(self, params: Params, ema: Params, extra: Extra, batch: Prepared, key: jax.Array, step: jax.Array) -> Loss:
        draw_key, encoder_key = jax.random.split(key)
        label = jax.random.randint(draw_key, batch["image"].shape[:1], 0, len(self.sources))
        image, mask = (rearranged(batch[name], jnp.asarray(self.sources)[label]) for name in ("image", "mask"))
        logits = self.logits(params, image, mask, batch, encoder_key)
        own = jax.nn.one_hot(label, len(self.sources))
        loss = -(own * jax.nn.log_softmax(logits)).sum(1).mean()
        return loss, {"metrics": {"accuracy": (logits.argmax(1) == label).mean()}, "extra": extra}

    def predict(self, params: Params, extra: Extra, batch: Prepared) -> dict[str, jax.Array]:
        """`<name>` [B,K]: the probability of each rearrangement; the images as they are have the first."""
        return {self.name: jax.nn.softmax(self.logits(params, batch["image"], batch["mask"], batch))}


def rearranged(x: jax.Array, sources: jax.Array) -> jax.Array:
    """[B,C,H,W] with the pixels of each image taken from those of sources int [B,H*W]."""
    return jnp.take_along_axis(x.reshape(*x.shape[:2], -1), sources[:, None], axis=2).reshape(x.shape)
