"""Heads against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxz.mesh import make_mesh, shardings
from jaxz.models.functional import Functional
from jaxz.models.heads import MLP, Prototypes, unit

KEY = jax.random.key(1)


@pytest.mark.parametrize("norm", [True, False])
def test_mlp_is_linear_layers_with_gelu_between(norm):
    head = Functional(lambda rngs: MLP((6, 10, 8, 4), norm=norm, rngs=rngs))
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(KEY, p.shape), head.init(KEY))
    x = np.random.default_rng(0).normal(size=(5, 6))
    found = head(params, jnp.asarray(x, jnp.float32))
    for n in range(3):
        layer = jax.tree.map(lambda p: np.asarray(p, np.float64), params[f"linear{n}"])
        x = x @ layer["kernel"] + layer["bias"]
        if n < 2:
            if norm:
                scale, bias = (np.asarray(params[f"norm{n}"][name], np.float64) for name in ("scale", "bias"))
                x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6) * scale + bias
            x = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))  # Hendrycks & Gimpel 2016, eq. 3
    np.testing.assert_allclose(found, x, atol=1e-5)


def test_prototypes_are_cosines_whatever_the_norms():
    head = Functional(lambda rngs: Prototypes(6, 9, rngs=rngs))
    params = head.init(KEY)
    x = jax.random.normal(KEY, (4, 6))
    kernel = np.asarray(params["kernel"], np.float64)
    cosines = np.asarray(x, np.float64) @ kernel / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(head(params, x), cosines, atol=1e-6)
    np.testing.assert_allclose(head({"kernel": 7 * params["kernel"]}, 5 * x), cosines, atol=1e-6)


def test_the_gradient_of_a_zero_vector_is_finite():
    assert np.isfinite(jax.jacobian(unit)(jnp.zeros(3))).all()


def test_every_parameter_of_a_head_has_a_place_on_the_mesh():
    for make in (lambda r: MLP((4, 4, 4), norm=True, rngs=r), lambda r: Prototypes(4, 4, rngs=r)):
        shardings(Functional(make).init(KEY), make_mesh(1, 1, jax.devices()[:1]))
