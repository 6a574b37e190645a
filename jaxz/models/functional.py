"""From Flax NNX modules to pure functions over plain nested dicts of arrays."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Params = dict[str, Any]  # of arrays, nested, keyed by attribute path


class Functional:
    """A module that holds parameters only, split once into a graph and `init`; calling it is a pure function.

    `make(rngs)` builds the module. Parameters are plain nested dicts keyed by attribute path, which outlive Flax in
    checkpoints; keys are made from `jax.random` keys given to `init`.
    """

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module]):
        self.make = make
        self.graph, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def init(self, key: jax.Array) -> Params:
        return nnx.to_pure_dict(nnx.state(self.make(nnx.Rngs(params=key))))

    def __call__(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        return nnx.merge(self.graph, params)(*args, **kwargs)
