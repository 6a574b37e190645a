"""SimCLR (Chen et al. 2020): two augmented views of an object are each other's nearest among all views of the batch."""

import jax
import jax.numpy as jnp

from jaxz.mesh import constrain_batch
from jaxz.models import Encoder
from jaxz.models.functional import Functional
from jaxz.models.heads import MLP, unit

FAR = -1e30  # a similarity that counts for nothing; -inf would make gradients NaN where nothing else is left

SETTINGS = dict(projector=(512, 128), temperature=0.1)
CHECKS = {
    "projector": (lambda s: s.projector and all(isinstance(w, int) and w >= 1 for w in s.projector), "widths >= 1"),
    "temperature": (lambda s: s.temperature > 0, "above 0"),
}


class Objective:
    """NT-Xent over the global batch. settings: projector (widths of the MLP behind the encoder), temperature."""

    columns, views = (), 2

    def __init__(self, encoder: Encoder, settings, normalisation):
        self.encoder, self.settings = encoder, settings
        self.head = projector(encoder, settings)

    def init(self, key):
        return self.head.init(key), {}

    def loss(self, params, ema, extra, batch, key, step):
        encoded = self.encoder.views(params["encoder"], batch["views"][:2], columns=batch, key=key)
        z = self.head(params["simclr"], encoded.cls)
        loss, accuracy = nt_xent(z, self.settings.temperature)
        return loss, {"metrics": {"accuracy": accuracy}, "extra": extra}

    def predict(self, params, extra, batch):
        return {}


def projector(encoder: Encoder, settings) -> Functional:
    """The MLP from an embedding to where views are compared; it is thrown away after training."""
    return Functional(lambda rngs: MLP((encoder.width, *settings.projector), norm=True, dtype=encoder.dtype, rngs=rngs))


def cosines(a: jax.Array, b: jax.Array) -> jax.Array:
    """[N,M] of a [N,E] and b [M,E] in full precision, split over the devices by rows: each holds N / devices of them,
    against all of b."""
    return constrain_batch(jnp.matmul(unit(a), unit(b).T, precision="highest"))


def nt_xent(z: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    """(loss, accuracy) of z [B,2,E]: the cross-entropy of finding each view's partner among the 2B-1 others (Chen et
    al. 2020, eq. 1, in the mean over all views), and how often it is the nearest."""
    z = z.reshape(-1, z.shape[-1])  # [2B,E]
    number = jnp.arange(len(z))
    similarity = jnp.where(number[:, None] == number, FAR, cosines(z, z) / temperature)
    partner = number ^ 1
    positive = jnp.where(partner[:, None] == number, similarity, 0).sum(1)
    loss = (jax.nn.logsumexp(similarity, axis=1) - positive).mean()
    return loss, (similarity.argmax(1) == partner).mean()
