"""Every stem: what is not observed enters nowhere; and the formulas of each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxz import models
from jaxz.data.manifest import Band
from jaxz.errors import InputError
from jaxz.models import stems, vit
from jaxz.models.functional import Functional
from jaxz.models.stems import apertures
from jaxz.models.stems.per_band import sampled_bands
from jaxz.objectives import mae
from tests.models.drawn import parameters

KEY = jax.random.key(1)
BANDS = tuple(
    Band(n, w, 100.0, 27.0, 0.2, 3.0, 1.0, 0.8) for n, w in (("z", 890.0), ("g", 480.0), ("r", 620.0), ("y", 970.0))
)
IMAGE = np.random.default_rng(0).normal(size=(5, 4, 16, 16)).astype("float32")
MASK = np.ones(IMAGE.shape, bool)  # the first image is whole; then one lacks ...
MASK[1, 1] = False  # ... a band
MASK[2, 0, 2, 2] = False  # ... a pixel
MASK[3, :, :8, :8] = False  # ... a patch
MASK[4] = False  # ... everything
MANY = [name for name in stems.NAMES if name not in ("fused", "apertures")]


def build(bands=BANDS, **settings):
    small = dict(name="vit", width=16, depth=1, heads=2, patch=8, groups=2)
    return models.build(ConfigDict({**vit.SETTINGS, **small, **settings}), bands, 16)


@pytest.fixture(scope="module", params=stems.NAMES)
def stem(request):
    """encoder, jitted encoder(params, image, mask, ...), params"""
    encoder = build(stem=request.param)
    return encoder, jax.jit(encoder.__call__), parameters(encoder)


def test_shapes(stem):
    encoder, run, params = stem
    encoded = run(params, IMAGE, MASK)
    assert encoded.cls.shape == (5, 16) and encoded.tokens.shape == (5, 4, 16) and encoded.observed.shape == (5, 4)
    assert (encoder.tokens, encoder.width) == (4, 16)


def test_garbage_where_nothing_is_observed_changes_nothing(stem):
    """Not even where nothing at all is observed: the results and gradients are finite and the same."""
    encoder, run, params = stem
    grad = jax.jit(jax.grad(lambda p, x: (encoder(p, x, MASK).cls ** 2).sum(), (0, 1)))
    expected, (by_params, _) = run(params, np.where(MASK, IMAGE, 0), MASK), grad(params, np.where(MASK, IMAGE, 0))
    assert all(np.isfinite(a).all() for a in (*expected, *jax.tree.leaves(by_params)))
    for garbage in (1e6, np.nan, -np.inf):
        image = np.where(MASK, IMAGE, np.float32(garbage))
        jax.tree.map(np.testing.assert_array_equal, run(params, image, MASK), expected)
        found, by_image = grad(params, image)
        jax.tree.map(np.testing.assert_array_equal, found, by_params)
        assert not np.asarray(by_image)[~MASK].any() and np.asarray(by_image)[MASK].any()


def test_an_absent_band_is_not_a_dark_band(stem):
    _, run, params = stem
    image, everywhere = IMAGE * (np.arange(4) != 1)[:, None, None].astype(np.float32), np.ones(IMAGE.shape, bool)
    dark, absent = run(params, image, everywhere), run(params, image, everywhere & (image != 0))
    assert np.abs(dark.cls - absent.cls).max() > 1e-3


def test_kept_patches_are_encoded_with_their_own_places(stem):
    """Keeping all patches in another order permutes the tokens; nothing else."""
    _, run, params = stem
    order = np.tile([2, 0, 3, 1], (5, 1))
    whole, kept = run(params, IMAGE, MASK), run(params, IMAGE, MASK, order)
    np.testing.assert_allclose(whole.tokens[:, order[0]], kept.tokens, atol=1e-5)
    np.testing.assert_array_equal(whole.observed[:, order[0]], kept.observed)


def test_the_content_of_hidden_patches_changes_nothing(stem):
    encoder, _, params = stem
    hidden, token = np.tile([False, True, False, False], (5, 1)), jnp.ones(16)
    run = jax.jit(lambda image: encoder(params, image, MASK, hidden=hidden, mask_token=token))
    content, others = IMAGE.copy(), IMAGE.copy()
    content[:, :, :8, 8:], others[:, :, :8, :8] = 7, 7
    jax.tree.map(np.testing.assert_array_equal, run(IMAGE), run(content))
    assert np.abs(run(IMAGE).tokens - run(others).tokens).max() > 1e-3


def test_hidden_patches_are_their_mask_token(stem):
    """Which counts with every stem, wherever anything is observed in the rest of what is kept."""
    encoder, _, params = stem
    hidden, keep = np.tile([False, True, False, True], (5, 1)), np.tile([3, 0, 2], (5, 1))
    token = jnp.linspace(-1, 1, 16)
    encode = jax.jit(lambda token, image: encoder(params, image, MASK, keep, hidden, token))
    encoded = encode(token, IMAGE)
    assert encoded.tokens.shape == (5, 3, 16) and encoded.observed[:4, 0].all()
    moved = np.abs(encode(-token, IMAGE).tokens[:, 0] - encoded.tokens[:, 0]).max(1)
    assert (moved[:4] > 1e-3).all()
    for place in (np.s_[:, :, :8, 8:], np.s_[:, :, 8:, 8:]):  # hidden and not kept; hidden and kept
        content = IMAGE.copy()
        content[place] = 7
        jax.tree.map(np.testing.assert_array_equal, encode(token, content), encoded)


def test_an_unobserved_patch_counts_nowhere():
    """The rest is as if it had been left out; it is itself zero."""
    for name in MANY:
        encoder = build(stem=name)
        params, mask = parameters(encoder), MASK[3:4]
        encode = jax.jit(encoder.__call__)
        whole, rest = encode(params, IMAGE[3:4], mask), encode(params, IMAGE[3:4], mask, np.array([[1, 2, 3]]))
        np.testing.assert_array_equal(whole.observed, [[False, True, True, True]])
        assert not whole.tokens[0, 0].any()
        np.testing.assert_allclose(whole.tokens[:, 1:], rest.tokens, atol=2e-6)
        np.testing.assert_allclose(whole.cls, rest.cls, atol=2e-6)


def test_a_mixed_batch_is_each_image_alone_with_only_its_bands():
    """per_band: an image without some bands is encoded as by a model that does not know them, its parameters alike."""
    encoder = build(stem="per_band", depth=2)
    params = parameters(encoder)
    sets = ([0, 2], [3], [1, 2, 3])
    mask = np.zeros((3, 4, 16, 16), bool)
    for n, bands in enumerate(sets):
        mask[n, bands] = True
    mixed = jax.jit(encoder.__call__)(params, IMAGE[:3], mask)
    for n, bands in enumerate(sets):
        alone = build(tuple(BANDS[c] for c in bands), stem="per_band", depth=2)
        found = jax.jit(alone.__call__)(params, IMAGE[n : n + 1, bands], np.ones((1, len(bands), 16, 16), bool))
        np.testing.assert_allclose(mixed.cls[n], found.cls[0], atol=2e-6)
        np.testing.assert_allclose(mixed.tokens[n], found.tokens[0], atol=2e-6)


def made(name, **settings):
    """A stem of its own with its parameters' values."""
    config = ConfigDict(dict(width=16, patch=8, sample_bands=True, **settings))
    stem = Functional(lambda rngs: stems.find(name)(BANDS, config, jnp.float32, rngs=rngs))
    params = parameters(stem)
    return stem, params, jax.tree.map(lambda a: np.asarray(a, np.float64), params)


@pytest.mark.parametrize("size", [32, 33])
def test_apertures_of_gaussians_in_the_middle_are_their_flux(size):
    """Against the integrals; what is hidden, in part or whole, is not known."""
    y, x = np.indices((size, size)) - (size - 1) / 2
    fluxes = np.array([50.0, 5000.0, 1.0])
    galaxy = np.exp(-0.5 * (x**2 + y**2) / 2.0**2) / (2 * np.pi * 2.0**2)
    image = np.arcsinh(fluxes[:, None, None] * galaxy)[None].astype(np.float32)
    mask = np.ones(image.shape, bool)
    mask[0, 2, 10:-10, 10:-10] = False  # the third band's middle: apertures of 3 pixels do not know it
    image[0, 2, 10:-10, 10:-10] = np.nan
    found, known = map(np.asarray, apertures.apertures(image, mask))
    assert known[0, :2].all() and not known[0, 2, :2].any() and not found[0, 2, :2].any()
    for k, sigma in enumerate(apertures.SIGMAS[:2]):  # the third reaches beyond the cutout
        # integral of Gaussians of unit flux and unit height; over the root of the integral of the latter's square
        overlap = sigma**2 / (sigma**2 + 2.0**2) / np.sqrt(np.pi * sigma**2)
        np.testing.assert_allclose(np.sinh(found[0, :2, k]), fluxes[:2] * overlap, rtol=2e-3)


def test_apertures_lose_nothing_to_single_pixels():
    """An absent pixel is made up for by the rest of the aperture; noise has the sigma of a pixel in all of them."""
    draw = np.random.default_rng(3)
    flat = np.full((1, 1, 32, 32), np.arcsinh(2.0), np.float32)
    mask = draw.uniform(size=flat.shape) < 0.8
    whole, part = (np.asarray(apertures.apertures(flat, m)[0]) for m in (np.ones_like(mask), mask))
    np.testing.assert_allclose(part, whole, rtol=1e-5)
    noise = np.arcsinh(0.3 * draw.normal(size=(500, 1, 32, 32))).astype(np.float32)
    sums = np.sinh(apertures.apertures(noise, np.ones(noise.shape, bool))[0])
    np.testing.assert_allclose(sums.std(axis=0)[0], 0.3, rtol=0.1)


def patches(x):
    return np.stack([x[..., i : i + 8, j : j + 8].reshape(*x.shape[:2], 64) for i in (0, 8) for j in (0, 8)], 2)


FEATURES = stems.wavelength_features([band.wavelength_nm for band in BANDS]).astype(np.float64)


def test_per_band_tokens_equal_their_formula():
    stem, params, p = made("per_band")
    found, observed = jax.jit(stem.__call__)(params, IMAGE, MASK, None)
    seen = patches(MASK)  # [B,C,N,PP]
    pixels = np.where(seen, patches(np.asarray(IMAGE, np.float64)), 0)
    embedding = (FEATURES @ p["presence"]["basis"])[:, None]
    expected = pixels @ p["pixels"]["kernel"] + p["pixels"]["bias"] + seen.mean(-1, keepdims=True) * embedding
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(observed, seen.any(-1))


def test_groups_are_fused_neighbours_in_wavelength():
    """The formula of the fused stem, summed pixel by pixel over g, r and over z, y."""
    stem, params, p = made("grouped", groups=2)
    found, observed = jax.jit(stem.__call__)(params, IMAGE, MASK, None)
    image, mask = patches(np.asarray(IMAGE, np.float64)), patches(MASK)  # [B,C,N,PP]
    kernel, presence = np.tensordot(FEATURES, p["kernel"]["basis"], 1), FEATURES @ p["presence"]["basis"]
    for n, group in enumerate(([1, 2], [0, 3])):
        own, seen = image[:, group], mask[:, group]
        mean = np.where(seen, own, 0).sum(1) / np.maximum(seen.sum(1), 1)  # [B,N,PP]
        expected = mean @ p["mean"]["kernel"] + p["mean"]["bias"]
        for c, band in enumerate(group):
            expected = expected + np.where(seen[:, c], 3 * (own[:, c] - mean), 0) @ kernel[band]
            expected = expected + seen[:, c].mean(-1, keepdims=True) * presence[band]
        np.testing.assert_allclose(found[:, n], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(observed[:, n], seen.any((1, 3)))


def test_objectives_see_one_token_a_patch(stem):
    """MAE on every stem: an error in units of the sky, which garbage where nothing is observed leaves as it is."""
    encoder, _, params = stem
    settings = ConfigDict({**mae.SETTINGS, **dict(decoder_width=8, decoder_depth=1, decoder_heads=1)})
    objective = mae.Objective(encoder, settings, None)
    params = {"encoder": params, "mae": parameters(objective.decoder)}
    loss = jax.jit(
        lambda image: objective.loss(
            params, {}, {}, {"image": image, "mask": jnp.asarray(MASK), "sky": jnp.ones((5, 4))}, KEY, 0
        )[0]
    )
    value = loss(np.where(MASK, IMAGE, 0))
    assert np.isfinite(value) and value > 0
    assert loss(np.where(MASK, IMAGE, np.float32(1e6))) == value


def test_more_groups_than_bands_are_refused():
    with pytest.raises(InputError, match="model.groups: 5 is above the number of bands, 4"):
        build(stem="grouped", groups=5)


def test_bands_are_sampled_by_number_first():
    """1 to m equally often, then every subset of that size; an image without bands keeps none."""
    observed = np.ones((12_000, 4), bool)
    observed[:6000, 2] = observed[-10:] = False
    drawn = np.asarray(jax.jit(sampled_bands)(observed, KEY))
    assert not drawn[~observed].any()
    for part, bands in ((drawn[:6000], 3), (drawn[6000:-10], 4)):
        count, number = part.sum(1), len(part)
        sigma = np.sqrt(number * (1 / bands) * (1 - 1 / bands))
        assert np.abs(np.bincount(count, minlength=5)[1 : bands + 1] - number / bands).max() < 4 * sigma
        assert count.min() == 1
        each = part.sum(0)[part.any(0)]
        chance = (bands + 1) / (2 * bands)  # the mean count over the number of bands
        assert np.abs(each - number * chance).max() < 4 * np.sqrt(number * chance * (1 - chance))


def test_bands_are_sampled_in_training_alone():
    encoder, still = build(stem="per_band"), build(stem="per_band", sample_bands=False)
    params, everywhere = parameters(encoder), np.ones(IMAGE.shape, bool)
    run = jax.jit(lambda key: encoder(params, IMAGE, everywhere, key=key).cls)
    plain = run(None)
    assert np.abs(run(KEY) - plain).max() > 1e-3 and np.abs(run(KEY) - run(jax.random.key(8))).max() > 1e-3
    np.testing.assert_allclose(jax.jit(still.__call__)(params, IMAGE, everywhere, key=KEY).cls, plain, atol=2e-6)
