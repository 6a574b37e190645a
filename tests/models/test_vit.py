import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from jaxz import models
from jaxz.data.manifest import Band
from jaxz.errors import InputError
from jaxz.models import layers
from jaxz.models.stems import patchify, unpatchify, wavelength_features

BANDS = tuple(Band(n, w, 100.0, 27.0, 0.2, 3.0, 1.0, 0.8) for n, w in (("g", 480.0), ("r", 620.0), ("z", 890.0)))
CONFIG = ConfigDict(dict(name="vit", width=32, depth=3, heads=4, patch=8, dtype="float32"))


@pytest.fixture(scope="module")
def encoder():
    return models.build(CONFIG, BANDS, 16)


@pytest.fixture(scope="module")
def params(encoder):
    return encoder.init(jax.random.key(0))


def images(count=4):
    return jax.random.normal(jax.random.key(1), (count, 3, 16, 16))


def test_shapes_and_attributes(encoder, params):
    encoded = encoder(params, images(), jnp.ones((4, 3, 16, 16), bool))
    assert encoded.cls.shape == (4, 32) and encoded.tokens.shape == (4, 4, 32)
    assert (encoder.width, encoder.tokens, encoder.size) == (32, 4, 16)
    np.testing.assert_allclose(encoded.cls, encoded.tokens.mean(1), rtol=1e-6)


@pytest.mark.parametrize("garbage", [1e6, -5.0, np.nan, np.inf])
def test_garbage_in_an_absent_band_changes_nothing(encoder, params, garbage):
    mask = jnp.ones((4, 3, 16, 16), bool).at[:2, 1].set(False).at[3, 0, 2, 2].set(False)
    image = images()
    a = encoder(params, image, mask)
    b = encoder(params, jnp.where(mask, image, garbage), mask)
    np.testing.assert_array_equal(a.tokens, b.tokens)
    gradient = jax.grad(lambda x: encoder(params, x, mask).cls.sum())(image)
    assert not np.asarray(gradient)[~np.asarray(mask)].any()


def test_an_absent_band_is_not_a_dark_band(encoder, params):
    image = images().at[:, 1].set(0)
    observed = jnp.ones((4, 3, 16, 16), bool)
    a, b = encoder(params, image, observed), encoder(params, image, observed.at[:, 1].set(False))
    assert np.abs(a.cls - b.cls).max() > 1e-3


def test_kept_patches_are_encoded_with_their_own_positions(encoder, params):
    """Keeping all patches in another order permutes the tokens; nothing else."""
    mask = jnp.ones((4, 3, 16, 16), bool)
    order = jnp.tile(jnp.array([2, 0, 3, 1]), (4, 1))
    a, b = encoder(params, images(), mask), encoder(params, images(), mask, order)
    np.testing.assert_allclose(a.tokens[:, [2, 0, 3, 1]], b.tokens, atol=2e-6)


def test_patches_run_row_by_row_and_back():
    image = jnp.arange(2 * 3 * 16 * 16.0).reshape(2, 3, 16, 16)
    patches = patchify(image, 8)
    assert patches.shape == (2, 4, 3, 64)
    np.testing.assert_array_equal(patches[1, 1, 2].reshape(8, 8), image[1, 2, :8, 8:])
    np.testing.assert_array_equal(unpatchify(patches, 8), image)


def test_parameters_do_not_depend_on_the_band_list(encoder, params):
    """A filter never seen can be tried: another list of bands takes the same parameters."""
    other = models.build(CONFIG, (*BANDS, Band("u", 380.0, 60.0, 27.0, 0.2, 4.0, 1.0, 0.8)), 16)
    shapes = lambda tree: jax.tree.map(lambda a: a.shape, tree)
    assert shapes(params) == shapes(jax.eval_shape(other.init, jax.random.key(0)))
    image = jnp.concatenate([images(), 9 * jnp.ones((4, 1, 16, 16))], 1)
    mask = jnp.ones(image.shape, bool).at[:, 3].set(False)
    np.testing.assert_allclose(
        other(params, image, mask).cls, encoder(params, images(), mask[:, :3]).cls, rtol=1e-5, atol=1e-6
    )


def test_wavelength_features_tell_neighbours_apart_and_vary_smoothly():
    features = wavelength_features([480.0, 481.0, 620.0, 890.0, 977.0])
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-6)
    overlap = features @ features.T
    assert overlap[0, 1] > 0.99 and overlap[0, 2] < 0.05 and overlap[3, 4] < 0.5


def test_bfloat16_stays_near_float32(params):
    half = models.build(ConfigDict({**CONFIG.to_dict(), "dtype": "bfloat16"}), BANDS, 16)
    full = models.build(CONFIG, BANDS, 16)
    mask = jnp.ones((4, 3, 16, 16), bool)
    a, b = half(params, images(), mask).cls, full(params, images(), mask).cls
    assert a.dtype == jnp.float32
    assert np.abs(a - b).max() < 0.05 * np.abs(b).max()


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="model.patch: 8 does not divide"):
        models.build(CONFIG, BANDS, 20)
    with pytest.raises(InputError, match="model.name: 'vti' is no backbone.*Did you mean 'vit'"):
        models.build(ConfigDict({**CONFIG.to_dict(), "name": "vti"}), BANDS, 16)
