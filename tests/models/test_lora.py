"""Low-rank factors against their formula, and what they leave alone."""

import jax
import numpy as np
import pytest

from jaxz.errors import InputError
from jaxz.models.lora import lora_init, lora_merge

KEY, RNG = jax.random.key(0), np.random.default_rng(0)
draw = lambda *shape: RNG.normal(size=shape).astype(np.float32)
PARAMS = {
    "stem": {"kernel": draw(6, 4), "bias": draw(4)},
    "blocks": {"up": {"kernel": draw(3, 4, 8), "bias": draw(3, 8)}},
}


def test_merging_adds_the_product_layer_by_layer():
    lora = lora_init(KEY, PARAMS, "kernel$", 2)
    lora = jax.tree.map(lambda a: draw(*a.shape), lora)
    merged = lora_merge(PARAMS, lora, 0.5)
    a, b = (np.asarray(lora["blocks"]["up"]["kernel"][name], np.float64) for name in "ab")
    assert (a.shape, b.shape) == ((3, 4, 2), (3, 2, 8))
    for layer, kernel in enumerate(merged["blocks"]["up"]["kernel"]):
        expected = PARAMS["blocks"]["up"]["kernel"][layer] + 0.5 * a[layer] @ b[layer]
        np.testing.assert_allclose(kernel, expected, rtol=1e-5, atol=1e-6)
    a, b = (np.asarray(lora["stem"]["kernel"][name], np.float64) for name in "ab")
    np.testing.assert_allclose(merged["stem"]["kernel"], PARAMS["stem"]["kernel"] + 0.5 * a @ b, rtol=1e-5, atol=1e-6)
    assert merged["stem"]["bias"] is PARAMS["stem"]["bias"]


def test_at_first_nothing_is_added():
    lora = lora_init(KEY, PARAMS, "blocks/.*kernel$", 2)
    assert lora.keys() == {"blocks"}
    merged = lora_merge(PARAMS, lora, 7.0)
    jax.tree.map(np.testing.assert_array_equal, merged, PARAMS)
    assert np.std(lora_init(KEY, PARAMS, "kernel", 500)["blocks"]["up"]["kernel"]["a"]) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(
    ("regex", "message"),
    [
        ("(", r"optim.lora_kernels: '\(' is no regular expression"),
        ("nothing", "optim.lora_kernels: 'nothing' matches no parameter of the encoder"),
        ("blocks", "optim.lora_kernels: 'blocks' finds 'blocks/up/bias', which is no matrix"),
        ("stem/bias", "finds 'stem/bias', which is no matrix"),
    ],
)
def test_what_is_no_matrix_has_no_factors(regex, message):
    with pytest.raises(InputError, match=message):
        lora_init(KEY, PARAMS, regex, 2)
