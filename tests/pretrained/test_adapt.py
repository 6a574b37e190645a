"""Bands: what each way to adapt a stem of RGB promises, and fluxes as its input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from astropy.visualization import make_lupton_rgb
from flax import nnx

from jaxz.errors import InputError
from jaxz.models import inputs
from jaxz.pretrained import adapt, load_pretrained
from tests.pretrained.files import FIXTURES, dinov2, needs_fixtures, write_safetensors

UGRIZ = ("u", "g", "r", "i", "z")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_safetensors(tmp_path_factory.mktemp("tiny") / "tiny.safetensors", dinov2(depth=1))


def loaded(path, bands=None, band_init="mean"):
    return load_pretrained(path, arch={"heads": 2}, bands=bands, band_init=band_init)[:2]


def tokens(model, image):
    """Of the stem alone: what follows knows nothing of bands."""
    graphdef, params = model
    return jax.jit(lambda params, image: nnx.merge(graphdef, params).stem(image, True)[0])(params, image)


images = lambda bands: jax.random.normal(jax.random.key(bands), (2, bands, 12, 12))


@needs_fixtures
@pytest.mark.parametrize("function, name", [(adapt.repeat, "timm_repeat"), (adapt.mean, "mean_inflate")])
def test_kernels_are_the_golden_ones(function, name):
    with np.load(FIXTURES / "band_adapt/io.npz") as golden:
        kernel = golden["w3"].transpose(1, 2, 3, 0)
        for bands in (1, 2, 3, 4, 5, 6, 8):
            wanted = golden[f"{name}/{bands}"].transpose(1, 2, 3, 0)
            np.testing.assert_allclose(function(kernel, bands), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("init", ["repeat", "rgb_map", "project"])
def test_three_bands_are_the_model_itself_to_the_bit(path, init):
    plain, adapted = loaded(path), loaded(path, ("r", "g", "b"), init)
    np.testing.assert_array_equal(tokens(plain, images(3)), tokens(adapted, images(3)))
    np.testing.assert_array_equal(plain[1]["stem"]["bias"], adapted[1]["stem"]["bias"])


@pytest.mark.parametrize("init, count", [("mean", 1), ("mean", 4), ("mean", 5), ("repeat", 6), ("repeat", 1)])
def test_a_grey_image_is_seen_as_a_grey_photograph(path, init, count):
    grey = images(1)
    wanted = tokens(loaded(path), jnp.repeat(grey, 3, 1))
    found = tokens(loaded(path, [f"b{n}" for n in range(count)], init), jnp.repeat(grey, count, 1))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_mean_knows_no_order_of_bands(path):
    model = loaded(path, UGRIZ, "mean")
    image = images(5)
    np.testing.assert_allclose(tokens(model, image), tokens(model, image[:, ::-1]), atol=1e-5)


def test_bands_take_the_roles_they_are_given(path):
    roles = {"u": "zero", "g": "B", "r": "G", "i": "R", "z": "zero"}
    image = images(5)
    found, wanted = tokens(loaded(path, roles, "rgb_map"), image), tokens(loaded(path), image[:, [3, 2, 1]])
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    mean = roles | {"u": "mean"}
    only_u = tokens(loaded(path, mean, "rgb_map"), image.at[:, 1:].set(0))
    np.testing.assert_allclose(only_u, tokens(loaded(path, ("u",)), image[:, :1] / 3), atol=1e-5)
    with pytest.raises(InputError, match="one band each"):
        loaded(path, dict.fromkeys(UGRIZ, "mean"), "rgb_map")


def test_a_projection_folded_into_the_kernel_is_an_adapted_kernel(path):
    found, wanted = tokens(loaded(path, UGRIZ, "project"), images(5)), tokens(loaded(path, UGRIZ, "repeat"), images(5))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("init", ["mean", "project", "per_band"])
def test_what_is_not_observed_changes_nothing(path, init):
    graphdef, params = loaded(path, UGRIZ, init)
    encoder = jax.jit(lambda image, mask: nnx.merge(graphdef, params)(image, mask))
    mask = jnp.ones((2, 5, 12, 12), bool).at[0, 1].set(False).at[1].set(False)  # of the second nothing is
    image = images(5)
    clean, garbage = encoder(image, mask), encoder(jnp.where(mask, image, jnp.nan), mask)
    np.testing.assert_array_equal(clean.tokens, garbage.tokens)
    assert np.isfinite(clean.cls).all() and np.isfinite(clean.tokens).all()


def test_a_token_per_band_is_there_for_those_observed_only(path):
    """An image without two of its bands is one of a model that never had them."""
    graphdef, params = loaded(path, UGRIZ, "per_band")
    params["stem"]["band_token"] = jax.random.normal(jax.random.key(3), (5, 16))
    kept = jnp.array([0, 2, 3])
    fewer, own = loaded(path, ("u", "r", "i"), "per_band")
    own["stem"]["band_token"] = params["stem"]["band_token"][kept]
    image = images(5)
    mask = jnp.zeros(image.shape, bool).at[:, kept].set(True)
    found = jax.jit(nnx.merge(graphdef, params))(image, mask)
    wanted = jax.jit(nnx.merge(fewer, own))(image[:, kept], mask[:, kept])
    np.testing.assert_allclose(found.cls, wanted.cls, atol=1e-5)
    np.testing.assert_allclose(found.tokens, wanted.tokens, atol=1e-5)


def test_one_band_with_a_token_of_its_own_is_the_mean_of_one(path):
    image = images(1)
    encoded = [jax.jit(nnx.merge(*loaded(path, ("r",), init)))(image, image < 9) for init in ("per_band", "mean")]
    np.testing.assert_allclose(encoded[0].cls, encoded[1].cls, atol=1e-5)


@pytest.mark.parametrize(
    "bands, init, why", [(("g", "g"), "mean", "each once"), ((), "mean", "names"), (UGRIZ, "avg", "band_init")]
)
def test_bands_that_make_no_sense_are_refused(path, bands, init, why):
    with pytest.raises(InputError, match=why):
        loaded(path, bands, init)


def test_the_colour_picture_is_astropy_s():
    flux = np.random.default_rng(0).lognormal(1, 2, (3, 20, 20)).astype(np.float32)
    wanted = make_lupton_rgb(*flux, stretch=5, Q=8)  # uint8 [H,W,3]
    found = inputs.lupton_rgb(jnp.asarray(flux)[None], 5, 8)[0]
    assert np.abs(255 * np.moveaxis(np.asarray(found), 0, -1) - wanted).max() < 1.01
    assert (found >= 0).all() and (found <= 1).all() and wanted.max() > 200


def test_how_fluxes_become_input_must_be_said():
    flux = jnp.linspace(-1, 9, 2 * 3 * 4).reshape(2, 3, 2, 2)
    for wrong in ({}, {"kind": "imagenet"}, {"kind": "asinh"}, {"kind": "asinh", "scale": [1, 2]}):
        with pytest.raises(InputError, match="normalisation"):
            inputs.normalise(flux, wrong)
    scale = np.array([1, 2, 4])[:, None, None]
    stretched = inputs.normalise(flux, {"kind": "asinh", "scale": [1, 2, 4]})
    np.testing.assert_allclose(stretched, np.arcsinh(np.asarray(flux, float) / scale), rtol=1e-5, atol=1e-6)
    numbers = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.4]}
    mean, std = (np.array(numbers[name])[:, None, None] for name in numbers)
    affine = inputs.normalise(flux, {"kind": "affine"} | numbers)
    np.testing.assert_allclose(affine, (np.asarray(flux, float) - mean) / std, rtol=1e-5, atol=1e-6)
    picture = inputs.normalise(flux, {"kind": "lupton", "stretch": 2, "q": 8} | numbers)
    np.testing.assert_allclose(picture, (np.asarray(inputs.lupton_rgb(flux, 2, 8)) - mean) / std, rtol=1e-5, atol=1e-6)
