"""Objectives on an encoder that compiles at once, and a batch for them: what is tested is not the encoder."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxz import objectives
from jaxz.config import default, fill
from jaxz.data.manifest import Band
from jaxz.data.prepare import Normalisation
from jaxz.models import Encoded, Encoder

BANDS = tuple(
    Band(name, wavelength, 100.0, 23.9, 0.2, 0.0, 1.0, 0.8)
    for name, wavelength in zip("gri", (480.0, 620.0, 770.0), strict=True)
)


class Dense:
    """A layer of the observed pixels, with the face of an Encoder of four patches."""

    bands, size, tokens, width, token_width, dtype = BANDS, 16, 4, 32, 32, jnp.dtype("float32")
    columns, side, patch = (), 2, 8
    views = Encoder.views

    def init(self, key):
        return {"kernel": jax.random.normal(key, (3 * 16 * 16, self.width)) / 3 / 16}

    def __call__(self, params, image, mask, columns=None, key=None) -> Encoded:
        cls = jnp.tanh(jnp.where(mask, image, 0).reshape(len(image), -1) @ params["kernel"])
        return Encoded(cls, jnp.repeat(cls[:, None], self.tokens, 1), jnp.ones((len(cls), self.tokens), bool))


def make(losses: dict, **settings):
    """(objective, params, extra); settings: {objective: dict}."""
    config = default()
    config.losses = losses
    for name, own in settings.items():
        config[name] = own
    normalisation = Normalisation(BANDS, (3.0, 3.0, 3.0), Dense.size, 0.2, False)
    objective = objectives.Objective(Dense(), fill(config), normalisation)
    return objective, *drawn(objective)


def drawn(objective) -> tuple[dict, dict]:
    """(params, extra): kernels of NumPy's making, as drawing them by JAX is compiled, which takes longer than the
    tests; biases and norms are not what they begin with, so that they matter too."""
    rng = np.random.default_rng(0)

    def draw(path, a):
        name = path[-1].key
        centre, scale = float(name == "scale"), a.shape[-2] ** -0.5 if name == "kernel" else 0.1
        return (centre + scale * rng.normal(size=a.shape)).astype(np.float32)

    shapes, extra = jax.eval_shape(objective.init, jax.random.key(0))
    if jax.tree.leaves(extra):
        extra = jax.jit(lambda key: objective.init(key)[1])(jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes), extra


def view(rng, count: int) -> dict:
    """Noise; the first object lacks band r, the second one pixel."""
    mask = np.ones((count, 3, 16, 16), bool)
    mask[0, 1] = mask[1, 2, 3, 3] = False
    sky = np.full((count, 3), 0.5, np.float32)
    return {"image": rng.normal(size=mask.shape).astype(np.float32), "mask": mask, "sky": sky}


def batch_of(count: int = 6) -> dict:
    """Two views, fluxes of which the first object has none and the second lacks r, and redshifts, unknown for it."""
    rng = np.random.default_rng(0)
    views = [view(rng, count) for _ in range(2)]
    columns = {f"{kind}_{band}": rng.uniform(0.1, 9, count) for kind in ("flux", "fluxerr") for band in "gri"}
    columns |= {"z": rng.uniform(0, 0.3, count)}
    for name in ("flux_g", "flux_i", "fluxerr_i"):
        columns[name][0] = np.nan
    columns["flux_r"][:2] = columns["z"][1] = np.nan
    return {**views[0], "views": views, **{name: x.astype(np.float32) for name, x in columns.items()}}
