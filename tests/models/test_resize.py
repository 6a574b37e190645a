"""Position tables are resized as PyTorch would, in each of five ways."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxz.errors import InputError
from jaxz.models.resize import VARIANTS, matrix, resize
from tests.pretrained.files import FIXTURES, needs_fixtures


@needs_fixtures
def test_all_variants_are_those_of_pytorch():
    with np.load(FIXTURES / "posembed_interp/io.npz") as file:
        golden = dict(file)
    tested = set()
    for name, wanted in golden.items():
        variant, _, sizes = name.partition("/")
        if sizes:
            old, _, new = sizes.removesuffix("_f64").partition("_to_")
            rows, columns = map(int, new.split("x"))
            down, across = matrix(int(old), rows, variant), matrix(int(old), columns, variant)
            found = np.einsum("hr,wc,rcd->hwd", down, across, golden[f"grid_{old}"][0].astype(float))
            bar = 1e-14 if sizes.endswith("_f64") else 1e-5  # PyTorch's own float32 is 3e-6 off its float64
            assert np.abs(found - wanted[0]).max() < bar * np.abs(wanted).max(), name
            tested.add(variant)
    assert tested == set(VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_constants_stay_and_ramps_where_the_kernel_keeps_them(variant):
    """Keys' kernel keeps ramps with a = -0.5 only, PyTorch's without antialiasing has -0.75."""
    weights = matrix(8, 12, variant)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-12)
    if variant not in ("offset0.1", "bicubic"):
        ramp = (np.arange(12) + 0.5) * 8 / 12 - 0.5
        np.testing.assert_allclose((weights @ np.arange(8))[4:8], ramp[4:8], rtol=1e-12)


def test_a_table_of_as_many_positions_in_another_grid_is_resized():
    table = jnp.arange(16.0)[:, None] * jnp.ones(3)
    assert resize(table, (4, 4), (4, 4), "bicubic") is table
    assert np.abs(resize(table, (4, 4), (2, 8), "bicubic") - table).max() > 1
    with pytest.raises(InputError, match="pos_interp"):
        resize(table, (4, 4), (2, 8), "bicubik")
