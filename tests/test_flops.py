"""FLOPs against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import ShapeDtypeStruct as Shape
from ml_collections import ConfigDict

from jaxz.data.dataset import open_dataset
from jaxz.flops import matmul_flops
from jaxz.models import build
from jaxz.models.vit import SETTINGS
from tests.helpers import BANDS, blobs

A, B = Shape((4, 8), "float32"), Shape((8, 16), "float32")
PRODUCT = 2 * 4 * 8 * 16


def repeated(a, b):
    return jax.lax.scan(lambda carry, _: (carry + a @ b, None), jnp.zeros((4, 16)), length=7)[0]


@pytest.mark.parametrize(
    ("function", "times"),
    [
        (lambda a, b: a @ b, 1),
        (lambda a, b: jnp.einsum("ij,jk->ki", a, b) + a.sum(), 1),
        (jax.jit(lambda a, b: a @ b), 1),
        (repeated, 7),
        (lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: 2 * (a @ b) + a @ b), 2),
        (jax.vmap(lambda a, b: a[None] @ b, (0, None)), 1),
        (jax.value_and_grad(lambda a, b: (a @ b).sum()), 2),
        (jax.value_and_grad(lambda a, b: (a @ b).sum(), (0, 1)), 3),
        (jax.grad(jax.checkpoint(lambda a, b: jnp.sin(jnp.sin(a @ b)).sum()), (0, 1)), 4),
    ],
)
def test_products_are_counted_through_all_that_holds_them(function, times):
    assert matmul_flops(function, A, B) == times * PRODUCT


def test_convolutions_are_counted_with_their_groups():
    image, kernel = Shape((2, 6, 10, 10), "float32"), Shape((4, 3, 3, 3), "float32")
    convolve = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "VALID", feature_group_count=2)
    assert matmul_flops(convolve, image, kernel) == 2 * (2 * 4 * 8 * 8) * (3 * 3 * 3)


def test_a_loop_of_unknown_length_is_refused_where_it_multiplies():
    double = lambda a: jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ x, a)
    with pytest.raises(ValueError, match="how often is not known"):
        matmul_flops(double, Shape((4, 4), "float32"))
    assert matmul_flops(lambda a: jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x + 1, a), A) == 0


def test_a_vit_is_counted_as_by_hand(tmp_path):
    """Per token: 24 D^2 of a block's dense layers and 4 N D of its attention; and the stem."""
    width, depth, patch, size, batch = 32, 3, 4, 16, 2
    config = ConfigDict(SETTINGS | dict(name="vit", width=width, depth=depth, heads=2, patch=patch))
    bands = open_dataset(blobs(tmp_path / "d", samples=4, shards=1)).manifest.bands
    encoder = build(config, bands, size)
    params = jax.eval_shape(encoder.init, jax.random.key(0))
    image = Shape((batch, len(BANDS), size, size), "float32")
    tokens, pixels, features = (size // patch) ** 2, patch * patch, params["stem"]["kernel"]["basis"].shape[0]
    blocks = depth * batch * tokens * (24 * width**2 + 4 * tokens * width)
    stem = 2 * batch * tokens * width * (len(BANDS) * pixels + pixels + len(BANDS))
    kernels = 2 * len(BANDS) * features * (pixels + 1) * width
    assert matmul_flops(encoder, params, image, Shape(image.shape, "bool")) == blocks + stem + kernels
