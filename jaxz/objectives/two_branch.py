"""The two-branch loss of ICT-ConvEntion: two augmented views agree in what they are, and each is told its redshift bin.

Agreement lowers the variance within a class, cross-entropy separates the classes; both count for each view. As in BYOL
the target branch is the averaged network, which has no gradient: the cross-entropy is that of the online branch.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxz.data.prepare import Normalisation
from jaxz.models import Encoder
from jaxz.models.functional import Functional, Params
from jaxz.objectives import Extra, Loss, Prepared, byol, redshift
from jaxz.objectives.byol import Heads, regression

SETTINGS = redshift.SETTINGS | byol.SETTINGS
CHECKS = redshift.CHECKS | byol.CHECKS


class Objective(redshift.Objective):
    """The sum over both views of the squared distance between the online branch's prediction and the target branch's
    projection of the other view, of all rows, and of the cross-entropy of the redshift bin, of labelled rows. settings:
    those of redshift and byol."""

    name, views, teacher = "two_branch", 2, True

    def __init__(self, encoder: Encoder, settings: ConfigDict, normalisation: Normalisation):
        super().__init__(encoder, settings, normalisation)
        self.branch = Functional(lambda rngs: Heads(settings, encoder, rngs=rngs))

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        head, branch = jax.random.split(key)
        return {"head": self.head.init(head), "branch": self.branch.init(branch)}, {}

    def weight(self, batch: Prepared) -> jax.Array:
        return jnp.ones(())  # the agreement is a mean over all rows

    def read(self, params: Params, embedding: jax.Array) -> jax.Array:
        return self.head(params["two_branch"]["head"], embedding)

    def loss(self, params: Params, ema: Params, extra: Extra, batch: Prepared, key: jax.Array, step: jax.Array) -> Loss:
        keys = jax.random.split(key, 3)
        views = [
            {**view, "mask": self.shown(view["mask"], own)}
            for view, own in zip(batch["views"][:2], keys[:2], strict=True)
        ]
        online = self.encoder.views(params["encoder"], views, columns=batch, key=keys[2]).cls  # [B,2,D]
        target = self.encoder.views(ema["encoder"], views, columns=batch).cls
        predicted = self.branch(params["two_branch"]["branch"], online, predict=True)
        projected = jax.lax.stop_gradient(self.branch(ema["two_branch"]["branch"], target, predict=False))
        agreement = regression(predicted, projected[:, ::-1])
        of_view = lambda view: self.mean_error(self.read(params, online[:, view]), batch)
        entropy = of_view(0) + of_view(1)
        metrics = {"agreement": agreement, "entropy": entropy, "labelled": (self.labels(batch)[1] > 0).mean()}
        return agreement + entropy, {"metrics": metrics, "extra": extra}
