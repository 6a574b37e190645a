"""The published networks: counts and shapes by hand from their descriptions, values against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxz import models
from jaxz.data.manifest import Band
from jaxz.errors import InputError
from jaxz.objectives.redshift import Head
from tests.models.drawn import parameters

WAVELENGTHS = {"u": 355.0, "g": 469.0, "r": 617.0, "i": 748.0, "z": 893.0}
UGRIZ = tuple(Band(name, nm, 100.0, 22.5, 0.396, 2.0, 0.02, 1.3) for name, nm in WAVELENGTHS.items())


def build(name, bands=UGRIZ, size=64, **settings):
    return models.build(ConfigDict({**models.backbone(name).SETTINGS, **settings, "name": name}), bands, size)


def shapes(encoder):
    return jax.eval_shape(encoder.init, jax.random.key(0))


def count(tree) -> int:
    return sum(a.size for a in jax.tree.leaves(tree))


conv = lambda inner, outer, side: side * side * inner * outer + outer
prelu = lambda inner, outer, side: conv(inner, outer, side) + outer
dense = lambda inner, outer: inner * outer + outer


def pasquet_inception(inner, a, b, five=True):
    """[1x1 b; 1x1 a -> 5x5 b; 1x1 a -> 3x3 b; 1x1 a -> pool]"""
    parts = prelu(inner, b, 1) + prelu(inner, a, 1) + prelu(a, b, 3) + prelu(inner, a, 1)
    return parts + (prelu(inner, a, 1) + prelu(a, b, 5) if five else 0)


def treyer_inception(inner):
    return 3 * conv(inner, 101, 1) + conv(101, 156, 5) + conv(101, 156, 3) + conv(inner, 109, 1)


def test_pasquets_parameters_by_hand():
    encoder = build("pasquet2019")
    found = shapes(encoder)
    widths = (64, 3 * 64 + 48, 3 * 92 + 64, 3 * 128 + 92, 3 * 128 + 92)
    blocks = [(48, 64), (64, 92), (92, 128), (92, 128)]
    for n, (inner, ab) in enumerate(zip(widths, blocks, strict=False)):
        assert count(found[f"inception{n}"]) == pasquet_inception(inner, *ab)
    assert count(found["inception4"]) == pasquet_inception(476, 92, 128, five=False)
    assert found["dense0"]["kernel"].shape == (8 * 8 * (2 * 128 + 92) + 1, 1024)
    assert encoder.columns == ("ebv",) and (encoder.tokens, encoder.token_width, encoder.width) == (64, 348, 1024)
    head = jax.eval_shape(lambda: Head(1024, 180, False, rngs=models.functional.nnx.Rngs(0)))
    assert count(models.functional.nnx.state(head)) == dense(1024, 180)
    # 1,781,668 in convolutions, 2,628 slopes, 25,614,616 in the hidden layers
    assert count(found) == 1_781_668 + 2_628 + dense(22_273, 1024) + dense(1024, 1024) == 25_642_472


def test_treyers_parameters_by_hand():
    encoder = build("treyer2024")
    found = shapes(encoder)
    first = conv(5, 96, 5) + dense(1, 96) + conv(96, 96, 3)
    trunk = treyer_inception(96) + 5 * treyer_inception(109 + 2 * 156 + 101)
    last = conv(522, 96, 3) + 2 * conv(96, 96, 3) + dense(96, 1024) + dense(1024, 16) + dense(16, 1024)
    assert count(found) == first + trunk + last
    assert found["inception5"]["single"]["conv"]["kernel"].shape == (1, 1, 522, 109)
    assert (encoder.tokens, encoder.token_width, encoder.width) == (1, 96, 1024)


@pytest.mark.parametrize("name, maps, first", [("pasquet2019", 64, prelu), ("treyer2024", 96, None)])
def test_subsets_have_first_layers_of_their_own_and_widen_the_trunk_alone(name, maps, first):
    plain, found = shapes(build(name)), shapes(build(name, subsets=(2, 3)))
    of = lambda bands: prelu(bands, 64, 5) if first else conv(bands, 96, 5) + dense(1, 96) + conv(96, 96, 3)
    assert [count(found["first"][f"subset{n}"]) for n in range(7)] == [of(2)] * 4 + [of(3)] * 3
    for trunk in (plain, found):
        del trunk["first"]
    wider = {"inception0": 6 * maps * sum(a.shape[-1] for a in ones(plain["inception0"]))}
    for part in plain:
        assert count(found[part]) - count(plain[part]) == wider.get(part, 0)


def ones(block):
    """The kernels of 1 x 1 that see a block's input."""
    return [block[name]["conv"]["kernel"] for name in ("single", "pooled", "reduce3", "reduce5")]


def numpy_linear(p, x):
    return x @ np.asarray(p["kernel"], np.float64) + np.asarray(p["bias"], np.float64)


def numpy_conv(p, x, activation=lambda x: np.maximum(x, 0), border=True, bias=0.0):
    """[B,H,W,I] float64, by the sum over the window's places; PReLU where there are slopes."""
    kernel = np.asarray(p["conv"]["kernel"], np.float64)
    side = len(kernel)
    if border:
        x = np.pad(x, ((0, 0), (side // 2,) * 2, (side // 2,) * 2, (0, 0)))
    height, width = x.shape[1] - side + 1, x.shape[2] - side + 1
    found = (
        bias
        + sum(x[:, dy : dy + height, dx : dx + width] @ kernel[dy, dx] for dy in range(side) for dx in range(side))
        + np.asarray(p["conv"]["bias"], np.float64)
    )
    if "slope_scale" in p:
        return np.where(found > 0, found, np.asarray(p["slope_scale"], np.float64) * found)
    return activation(found)


def numpy_pool(x, stride):
    """Means over 2 x 2 of what there is."""
    batch, height, width, maps = x.shape
    out = np.empty((batch, -(-height // stride), -(-width // stride), maps))
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            out[:, i, j] = x[:, stride * i : stride * i + 2, stride * j : stride * j + 2].mean((1, 2))
    return out


def numpy_inception(p, x):
    wide = [numpy_conv(p[f"conv{side}"], numpy_conv(p[f"reduce{side}"], x)) for side in (5, 3) if f"conv{side}" in p]
    return np.concatenate([numpy_conv(p["single"], x), *wide, numpy_pool(numpy_conv(p["pooled"], x), 1)], 3)


def numpy_pasquet(p, image, ebv):
    x = numpy_pool(numpy_conv(p["first"]["subset0"]["conv"], image.transpose(0, 2, 3, 1).astype(np.float64)), 2)
    x = numpy_pool(numpy_inception(p["inception1"], numpy_inception(p["inception0"], x)), 2)
    x = numpy_pool(numpy_inception(p["inception3"], numpy_inception(p["inception2"], x)), 2)
    x = np.concatenate([numpy_inception(p["inception4"], x).reshape(len(x), -1), ebv[:, None]], 1)
    for name in ("dense0", "dense1"):
        x = np.maximum(numpy_linear(p[name], x), 0)
    return x


def scaled(params):
    """Kernels by which what an image says is neither lost nor blown up from layer to layer."""
    return jax.tree.map(lambda a: 5 * a / np.sqrt(a[..., 0].size) if a.ndim > 1 else a, params)


def test_pasquet_against_numpy_and_without_what_is_masked():
    encoder, rng = build("pasquet2019", UGRIZ[:2], 9), np.random.default_rng(0)
    params = scaled(parameters(encoder))
    image = rng.normal(size=(3, 2, 9, 9)).astype(np.float32)
    mask, ebv = np.ones(image.shape, bool), np.array([0.0, 0.3, np.nan], np.float32)
    mask[0, 1] = mask[1, 0, 2, 3] = False
    run = jax.jit(lambda image: encoder(params, image, mask, columns={"ebv": jnp.asarray(ebv)}).cls)
    shown = np.where(mask, image, 0)
    expected = numpy_pasquet(params, shown, np.nan_to_num(ebv))
    np.testing.assert_allclose(run(image), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(run(np.where(mask, image, np.nan)), run(image))


def numpy_treyer(p, image, ebv):
    first, x = p["first"]["subset0"], image.transpose(0, 2, 3, 1).astype(np.float64)
    x = numpy_conv(first["conv0"], x, bias=numpy_linear(first["reddening"], ebv[:, None])[:, None, None])
    x = numpy_pool(numpy_conv(first["conv1"], x, np.tanh), 2)
    for n in range(6):
        x = numpy_inception(p[f"inception{n}"], numpy_pool(x, 2) if n in (3, 5) else x)
    for n in range(3):
        x = numpy_conv(p[f"conv{n}"], x, border=False)
    x = (x[:, 1:, 1:] + x[:, :-1, 1:] + x[:, 1:, :-1] + x[:, :-1, :-1]) / 4
    x = numpy_linear(p["latent"], np.maximum(numpy_linear(p["dense0"], x.reshape(len(x), -1)), 0))
    return np.maximum(numpy_linear(p["dense1"], x), 0)


def test_treyer_against_numpy():
    encoder, rng = build("treyer2024", UGRIZ[:2], 57), np.random.default_rng(1)
    params = scaled(parameters(encoder))
    image, ebv = rng.normal(size=(2, 2, 57, 57)).astype(np.float32), np.array([0.0, 0.7], np.float32)
    run = jax.jit(lambda image: encoder(params, image, image == image, columns={"ebv": ebv}).cls)
    expected = numpy_treyer(params, image, ebv)
    assert np.abs(expected[0] - expected[1]).max() > 0.01 * np.abs(expected).max()
    np.testing.assert_allclose(run(image), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="model.name: treyer2024 needs images of at least 57 pixels, not 56"):
        build("treyer2024", size=56)
    assert build("treyer2024", size=57).tokens == 1
    with pytest.raises(InputError, match="losses: .* the model's 3 x 3 places must divide the cutouts' 80; convert"):
        assert build("treyer2024", size=80).patch  # of CLAP's decoder
    with pytest.raises(InputError, match="model.subsets: 3 is more than the 2 bands"):
        build("pasquet2019", UGRIZ[:2], subsets=(3,))
