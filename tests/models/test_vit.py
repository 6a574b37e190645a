import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxz import models
from jaxz.config import default, fill
from jaxz.data.manifest import Band
from jaxz.errors import InputError
from jaxz.models import vit
from jaxz.models.stems import patchify, unpatchify, wavelength_features
from jaxz.validate import validate
from tests.models.drawn import parameters

BANDS = tuple(Band(n, w, 100.0, 27.0, 0.2, 3.0, 1.0, 0.8) for n, w in (("g", 480.0), ("r", 620.0), ("z", 890.0)))
CONFIG = ConfigDict({**vit.SETTINGS, **dict(name="vit", width=32, depth=1, heads=4, patch=8)})


def build(**settings):
    return models.build(ConfigDict({**CONFIG, **settings}), BANDS, 16)


@pytest.fixture(scope="module")
def encoder():
    return build()


@pytest.fixture(scope="module")
def params(encoder):
    return parameters(encoder)


def images(count=4):
    return jax.random.normal(jax.random.key(1), (count, 3, 16, 16))


def test_shapes_and_attributes(encoder, params):
    encoded = encoder(params, images(), jnp.ones((4, 3, 16, 16), bool))
    assert encoded.cls.shape == (4, 32) and encoded.tokens.shape == (4, 4, 32)
    assert (encoder.width, encoder.tokens, encoder.size) == (32, 4, 16)
    np.testing.assert_allclose(encoded.cls, encoded.tokens.mean(1), rtol=1e-6)


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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_numbers_stay_near_float32(encoder, params, dtype):
    half = build(dtype=dtype)
    mask = jnp.ones((4, 3, 16, 16), bool)
    a, b = half(params, images(), mask), encoder(params, images(), mask)
    assert a.cls.dtype == a.tokens.dtype == jnp.float32
    assert np.abs(a.cls - b.cls).max() < 0.05 * np.abs(b.cls).max()


def names(encoder):
    tree = jax.eval_shape(encoder.init, jax.random.key(0))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_parameters_on_disk_keep_their_names_and_others_come_where_asked_for():
    linear = lambda *paths: {f"{path}/{name}" for path in paths for name in ("kernel", "bias")}
    plain = {"stem/kernel/basis", "stem/presence/basis", "position", "norm/scale", "norm/bias"}
    plain |= linear("stem/mean", *(f"blocks/{layer}" for layer in ("attention/qkv", "attention/out", "up", "down")))
    plain |= {f"blocks/{norm}/{name}" for norm in ("norm1", "norm2") for name in ("scale", "bias")}
    assert names(build()) == plain
    assert names(build(mlp="swiglu", drop_path=0.1, remat="dots", attention="xla", dtype="bfloat16")) == plain
    assert names(build(position="rope")) == plain - {"position"}
    assert names(build(layer_scale=0.1)) - plain == {"blocks/attention_scale", "blocks/mlp_scale"}
    assert names(build(summary="cls", registers=4)) - plain == {"cls_token", "register_token"}


@pytest.mark.parametrize("size, blocks", [("Ti", 5_338_368), ("S", 21_293_568), ("B", 85_054_464), ("L", 302_309_376)])
def test_sizes_have_the_published_parameters(size, blocks):
    """Those of the ImageNet models of Touvron et al. 2021 and Dosovitskiy et al. 2021 without what is around the
    blocks, such as 85,798,656 of ViT-B/16 less 744,192."""
    shapes = jax.eval_shape(build(**vit.SIZES[size]).init, jax.random.key(0))
    assert sum(a.size for a in jax.tree.leaves(shapes["blocks"])) == blocks


def test_g_has_dinov2s_parameters():
    """1,136,480,768, less 904,704 of patches of 14 x 14 x 3, 2,104,320 of 1370 positions, two tokens and the norm."""
    shapes = jax.eval_shape(build(**vit.SIZES["g"], layer_scale=1e-5).init, jax.random.key(0))
    assert sum(a.size for a in jax.tree.leaves(shapes["blocks"])) == 1_136_480_768 - 904_704 - 2_104_320 - 4 * 1536


def test_a_cls_token_sums_up_and_registers_count_nowhere():
    mask, image = jnp.ones((4, 3, 16, 16), bool), images()
    for summary in ("mean", "cls"):
        encoder = build(summary=summary, registers=3)
        params = parameters(encoder)
        run = jax.jit(encoder.__call__)
        encoded = run(params, image, mask)
        assert encoded.tokens.shape == (4, 4, 32) and encoder.tokens == 4
        others = run({**params, "register_token": -params["register_token"]}, image, mask)
        assert np.abs(others.cls - encoded.cls).max() > 1e-4  # looked at, but not counted:
        mean = np.abs(encoded.cls - encoded.tokens.mean(1)).max()
        assert mean < 1e-6 if summary == "mean" else mean > 1e-2


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_the_middle_cut_out_is_the_middle_patches_of_the_whole(position):
    encoder = models.build(ConfigDict({**CONFIG, "patch": 4, "position": position, "registers": 2}), BANDS, 16)
    params, mask = parameters(encoder), jnp.ones((4, 3, 16, 16), bool)
    kept = jax.jit(encoder.__call__)(params, images(), mask, jnp.tile(jnp.array([5, 6, 9, 10]), (4, 1)))
    cut = jax.jit(encoder.__call__)(params, images()[..., 4:12, 4:12], mask[..., 4:12, 4:12])
    np.testing.assert_allclose(kept.tokens, cut.tokens, atol=1e-5)


def test_rotary_positions_know_no_middle():
    """A crop from the corner is the corner's patches; an image may be larger than the model's too."""
    encoder = models.build(ConfigDict({**CONFIG, "patch": 4, "position": "rope"}), BANDS, 8)
    params, mask = parameters(encoder), jnp.ones((4, 3, 16, 16), bool)
    kept = jax.jit(encoder.__call__)(params, images(), mask, jnp.tile(jnp.array([10, 11, 14, 15]), (4, 1)))
    cut = jax.jit(encoder.__call__)(params, images()[..., 8:, 8:], mask[..., 8:, 8:])
    np.testing.assert_allclose(kept.tokens, cut.tokens, atol=1e-5)
    moved = jax.jit(encoder.__call__)(params, images(), mask, jnp.tile(jnp.array([0, 3, 12, 15]), (4, 1)))
    assert np.abs(moved.tokens[:, 3] - kept.tokens[:, 3]).max() > 1e-3


def test_nothing_is_drawn_without_a_key():
    encoder, plain = build(drop_path=0.5, depth=2), build(depth=2)
    params, mask = parameters(encoder), jnp.ones((4, 3, 16, 16), bool)
    run = jax.jit(lambda key: encoder(params, images(), mask, key=key).cls)
    np.testing.assert_allclose(run(None), jax.jit(plain.__call__)(params, images(), mask).cls, atol=2e-6)
    a, b = run(jax.random.key(0)), run(jax.random.key(1))
    assert np.abs(a - b).max() > 1e-3
    np.testing.assert_array_equal(a, run(jax.random.key(0)))


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="model.patch: 8 does not divide"):
        models.build(CONFIG, BANDS, 20)
    with pytest.raises(InputError, match="model.name: 'vti' is no backbone.*Did you mean 'vit'"):
        build(name="vti")
    with pytest.raises(InputError, match="model.attention: 'cudnn' needs"):
        build(attention="cudnn")


@pytest.mark.parametrize(
    "settings, problem",
    [
        (dict(stem="per_bnad"), "model.stem: 'per_bnad' must be one of apertures, fused, grouped, per_band"),
        (dict(position="rope", width=36, heads=6), "model.position: 'rope' must be .* multiple of 4"),
        (dict(drop_path=1.0), r"model.drop_path: 1.0 must be in \[0, 1\)"),
        (dict(attention="flash"), "model.attention: 'flash' must be one of auto, xla, cudnn"),
        (dict(remat="all"), "model.remat: 'all' must be one of none, block, dots"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, problem):
    config = default()
    config.model.update(settings)
    config.data.path = "d"
    with pytest.raises(InputError, match=problem):
        validate(fill(config))
