"""SimCLR (Chen et al. 2020): two augmented views of an object are each other's nearest among all views of the batch."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxz.data.prepare import Normalisation
from jaxz.mesh import constrain_batch
from jaxz.models import Encoder
from jaxz.models.functional import Functional, Params
from jaxz.models.heads import MLP, unit
from jaxz.objectives import Extra, Loss, Prepared

FAR = -1e30  # a similarity that counts for nothing; -inf would make gradients NaN where nothing else is left

SETTINGS = dict(projector=(512, 128), temperature=0.1)
CHECKS = {
    "projector": (lambda s: s.projector and all(isinstance(w, int) and w >= 1 for w in s.projector), "widths >= 1"),
    "temperature": (lambda s: s.temperature > 0, "above 0"),
}


class Objective:
    """NT-Xent over the global batch. settings: projector (widths of the MLP behind the encoder), temperature."""

    columns, views = (), 2

    def __init__(self, encoder: Encoder, settings: ConfigDict, normalisation: Normalisation):
        self.encoder, self.settings = encoder, settings
        self.head = projector(encoder, settings)

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        return self.head.init(key), {}

    def loss(self, params: Params, ema: Params, extra: Extra, batch: Prepared, key: jax.Array, step: jax.Array) -> Loss:
        encoded = self.encoder.views(params["encoder"], batch["views"][:2], columns=batch, key=key)
        z = self.head(params["simclr"], encoded.cls)
        loss, accuracy = nt_xent(z, self.settings.temperature)
        return loss, {"metrics": {"accuracy": accuracy}, "extra": extra}

    def predict(self, params: Params, extra: Extra, batch: Prepared) -> dict[str, jax.Array]:
        return {}


def projector(encoder: Encoder, settings: ConfigDict) -> Functional:
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
