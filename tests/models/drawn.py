"""Parameters of NumPy's making: drawing them by JAX is compiled, which takes longer than the tests."""

import jax
import numpy as np
from flax import nnx

from jaxz.models.functional import Functional


def parameters(functional: Functional) -> dict:
    """Values of order 1 / 4, norms' scales about 1, so that biases and norms matter too."""
    rng = np.random.default_rng(0)

    def draw(path, a):
        scale = jax.tree_util.keystr(path, simple=True).endswith("scale")
        return (scale + 0.25 * rng.normal(size=a.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(functional.init, jax.random.key(0)))


def module(make) -> nnx.Module:
    """What `make(rngs)` builds, with such parameters."""
    functional = Functional(make)
    return nnx.merge(functional.graph, parameters(functional))
