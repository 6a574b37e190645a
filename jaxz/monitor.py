"""Whether a run's embeddings collapse: their spread and rank over fixed images, without augmentation.

Logged as monitor/feature_std, monitor/rankme and monitor/collapsed every 50 steps.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxz.data.manifest import Manifest
from jaxz.data.prepare import Normalisation, Prepare
from jaxz.data.stream import Stream
from jaxz.logs import log
from jaxz.mesh import to_devices
from jaxz.models.functional import Params
from jaxz.models.heads import unit
from jaxz.objectives import Objective

IMAGES, EVERY = 512, 50  # images at least, and steps from one look to the next
# Collapsed is what lies below both: this part of the value at the run's beginning, and this value.
STD_PART, STD_LEAST = 0.2, 0.05
RANK_PART, RANK_LEAST = 0.5, 1.5


class Monitor:
    """monitor(params, initial) -> {"monitor/feature_std": ..., "monitor/rankme": ..., "monitor/collapsed": ...}.

    It looks at the first batches of the run's stream, which is then where it was; of several members at the first."""

    def __init__(
        self,
        stream: Stream,
        manifest: Manifest,
        normalisation: Normalisation,
        objective: Objective,
        mesh: Mesh,
        members: int,
    ):
        prepare, start = Prepare(manifest, normalisation), stream.state()
        self.batches = []
        for _ in range(-(-IMAGES // stream.batch_size)):
            batch = {name: value for name, value in next(stream).items() if name != "row"}
            self.batches.append(to_devices(batch, mesh))
        stream.restore(start)
        self.warned = False

        def embed(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
            if members > 1:
                params = jax.tree.map(lambda a: a[0], params)
            return objective.embed(params, prepare(batch, jax.random.key(0)))

        self.embed, self.statistics = jax.jit(embed), jax.jit(statistics)

    def measure(self, params: Params) -> dict[str, jax.Array]:
        """feature_std and rankme of the embeddings, on the device."""
        return self.statistics([self.embed(params, batch) for batch in self.batches])

    def __call__(self, params: Params, initial: dict[str, float]) -> dict[str, jax.Array]:
        """initial: what `measure` gave at the run's beginning."""
        found = self.measure(params)
        return {f"monitor/{name}": value for name, value in {**found, "collapsed": collapsed(found, initial)}.items()}

    def warn(self, step: int, values: dict[str, float], initial: dict[str, float]) -> None:
        """Say so in the log, once, where the values of a step are those of a collapse."""
        if values.get("monitor/collapsed") and not self.warned:
            self.warned = True
            std, rank = values["monitor/feature_std"], values["monitor/rankme"]
            log.warning(
                "step %d: the embeddings collapse: feature_std %.3g (%.3g at the beginning), rankme %.3g (%.3g); lower "
                "optim.lr, raise train.ema_decay, or look at the objective's settings",
                *(step, std, initial["feature_std"], rank, initial["rankme"]),
            )


def statistics(parts: list[jax.Array]) -> dict[str, jax.Array]:
    """feature_std and rankme of embeddings [M,D] in parts."""
    x = jnp.concatenate(parts).astype(jnp.float32)
    return {"feature_std": feature_std(x), "rankme": rankme(x)}


def feature_std(x: jax.Array) -> jax.Array:
    """sqrt(D) times the mean over dimensions of the standard deviation of x [M,D] at unit norm: 1 where directions are
    isotropic, 0 where all are the same (Chen & He 2021, SimSiam, fig. 2)."""
    return unit(x).std(0).mean() * x.shape[1] ** 0.5


def rankme(x: jax.Array) -> jax.Array:
    """exp of the entropy of the singular values of x [M,D] over their sum, from 1 to min(M, D) (Garrido et al. 2023,
    eq. 1)."""
    values = jnp.linalg.svd(x, compute_uv=False)
    return jnp.exp(jax.scipy.special.entr(values / jnp.maximum(values.sum(), 1e-12)).sum())


def collapsed(found: Mapping[str, jax.Array], initial: Mapping[str, float]) -> jax.Array:
    """1.0 where the spread or the rank fell below a part of what it was and below an absolute bound, else 0.0."""
    std, rank = found["feature_std"], found["rankme"]
    narrow = (std < STD_PART * initial["feature_std"]) & (std < STD_LEAST)
    flat = (rank < RANK_PART * initial["rankme"]) & (rank < RANK_LEAST)
    return (narrow | flat).astype(jnp.float32)
