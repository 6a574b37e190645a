"""Blocks against their formulas in NumPy float64."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxz.errors import InputError
from jaxz.models import attention, layers
from tests.models.drawn import module

KEY = jax.random.key(2)
BLOCKS = {
    "plain": dict(),
    "swiglu and LayerScale": dict(mlp="swiglu", layer_scale=0.3),
}


def make(depth=None, width=16, heads=2, **settings):
    block = lambda rngs: layers.Block(width, heads, jnp.float32, **settings, rngs=rngs)
    return module(block if depth is None else lambda rngs: layers.stack(depth, block, rngs))


def tokens(count=7, batch=2, width=16):
    return np.random.default_rng(1).normal(size=(batch, count, width)).astype(np.float32)


def attended(p, x, heads, mask, place):
    """Vaswani et al. 2017, eq. 1, with the tokens at `place` [N,2] as complex numbers that turn with it."""
    width, head = x.shape[-1], x.shape[-1] // heads
    q, k, v = ((x @ p["qkv"]["kernel"] + p["qkv"]["bias"])[:, n * width : (n + 1) * width] for n in range(3))
    frequencies = 100.0 ** -(np.arange(head // 4) / (head // 4))
    turn = np.exp(1j * np.concatenate([np.outer(place[:, axis], frequencies) for axis in (0, 1)], 1))
    out = np.zeros_like(x)
    for h in range(heads):
        own = slice(h * head, (h + 1) * head)
        q_turned, k_turned = ((a[:, own][:, : head // 2] + 1j * a[:, own][:, head // 2 :]) * turn for a in (q, k))
        scores = np.where(mask, (q_turned @ k_turned.conj().T).real / np.sqrt(head), -np.inf)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        out[:, own] = weights / weights.sum(1, keepdims=True) @ v[:, own]
    return out @ p["out"]["kernel"] + p["out"]["bias"]


def normalised(p, x):
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def block_by_hand(p, x, heads, mask, place):
    x = x + p.get("attention_scale", 1) * attended(p["attention"], normalised(p["norm1"], x), heads, mask, place)
    up = normalised(p["norm2"], x) @ p["up"]["kernel"] + p["up"]["bias"]
    if "mlp_scale" in p:  # swiglu here
        gate, value = np.split(up, 2, axis=1)
        fed = gate / (1 + np.exp(-gate)) * value
    else:
        fed = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
    return x + p.get("mlp_scale", 1) * (fed @ p["down"]["kernel"] + p["down"]["bias"])


@pytest.mark.parametrize("settings", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("rotary", [False, True])
def test_a_block_equals_its_formula(settings, rotary):
    block, x = make(**settings), tokens()
    mask = np.array([[1, 1, 0, 1, 1, 0, 1], [1] * 7], bool)
    place = np.random.default_rng(0).uniform(-4, 4, (7, 2)) * rotary
    angles = attention.rotary_angles(jnp.asarray(place, jnp.float32), 8)[None] if rotary else None
    found = jax.jit(lambda x: block(x, jnp.asarray(mask), angles))(x)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), nnx.to_pure_dict(nnx.state(block)))
    for b in range(2):
        expected = block_by_hand(p, np.asarray(x[b], np.float64), 2, mask[b], place)
        np.testing.assert_allclose(found[b], expected, rtol=2e-5, atol=2e-5)


def test_swiglu_has_dinov2s_width():
    assert jax.eval_shape(lambda: make(width=1536, heads=24, mlp="swiglu").down.kernel[...]).shape == (4096, 1536)


@pytest.mark.parametrize("settings", BLOCKS.values(), ids=BLOCKS)
def test_scanned_blocks_equal_a_loop(settings):
    blocks, x, mask = make(5, **settings), tokens(), np.array([[1, 1, 1, 0, 1, 1, 1], [1] * 7], bool)
    graph, stacked = nnx.split(blocks)
    one = jax.jit(lambda n, x: nnx.merge(graph, jax.tree.map(lambda a: jnp.asarray(a)[n], stacked))(x, mask))
    looped = x
    for n in range(5):
        looped = one(n, looped)
    np.testing.assert_allclose(jax.jit(layers.scan)(blocks, x, mask), looped, rtol=2e-5, atol=2e-6)


def test_rotary_attention_knows_only_where_tokens_lie_to_one_another():
    rng = np.random.default_rng(0)
    (q, k), place = rng.normal(size=(2, 1, 6, 2, 16)).astype(np.float32), rng.uniform(0, 8, (1, 6, 2)).astype("float32")
    turned = jax.jit(lambda a, place: attention.rotate(a, attention.rotary_angles(place, 16)))
    scores = lambda place: np.einsum("bqhd,bkhd->bhqk", turned(q, place), turned(k, place))
    np.testing.assert_allclose(scores(place), scores(place + np.float32([3, -2])), atol=2e-5)
    assert np.abs(scores(place) - scores(1.1 * place)).max() > 0.01
    np.testing.assert_array_equal(turned(q, 0 * place), q)


def test_paths_are_dropped_per_sample_in_proportion_to_depth():
    """Block n of 4 adds 1 to component n by attention and 1 to component n + 4 by its MLP, all else being 0."""
    blocks = jax.tree.map(np.zeros_like, make(4, width=8))
    blocks.attention.out.bias[...] = np.eye(8, dtype=np.float32)[:4]
    blocks.down.bias[...] = np.eye(8, dtype=np.float32)[4:]
    draw = jax.jit(lambda key: layers.scan(blocks, jnp.zeros((4000, 2, 8)), drop=0.6, key=key))
    found = np.asarray(draw(KEY))
    np.testing.assert_array_equal(found[:, 0], found[:, 1])  # a sample as a whole
    rates = np.tile([0, 0.2, 0.4, 0.6], 2)
    kept = found[:, 0] > 0
    np.testing.assert_allclose(found[:, 0], kept / (1 - rates), rtol=1e-6)
    assert np.all(np.abs(kept.mean(0) - (1 - rates)) <= 4 * np.sqrt(rates * (1 - rates) / 4000))
    drawn = kept[:, rates > 0]
    correlation = np.corrcoef(drawn.T) - np.eye(6)
    assert np.abs(correlation).max() < 0.08  # of every branch and block on its own
    assert not np.array_equal(found, draw(jax.random.key(9)))
    np.testing.assert_array_equal(draw(None), 1)


def test_what_is_computed_again_is_the_same():
    """What is drawn for the first time too."""
    blocks, x = make(2), tokens()
    loss = lambda blocks, remat: (layers.scan(blocks, x, drop=0.5, key=KEY, remat=remat) ** 2).sum()
    kept, block, dots = (
        jax.jit(jax.grad(loss), static_argnums=1)(blocks, remat) for remat in ("none", "block", "dots")
    )
    for again in (block, dots):
        for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(kept), strict=True):
            assert np.abs(a - b).max() <= 1e-6 * np.abs(b).max()


def test_less_is_kept_for_the_backward_pass():
    blocks, x = make(3), tokens(64)

    def kept(remat):
        backward = jax.eval_shape(lambda b: jax.vjp(lambda b: layers.scan(b, x, remat=remat), b)[1], blocks)
        return sum(a.size for a in jax.tree.leaves(backward))

    assert kept("block") < kept("dots") < kept("none")


def test_the_attention_kernel_is_what_the_device_can(monkeypatch):
    assert attention.choose_kernel("auto", "bfloat16", 64, False) == "xla"
    with pytest.raises(InputError, match="model.attention: 'cudnn' needs an A100"):
        attention.choose_kernel("cudnn", "bfloat16", 64, False)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for capability, able in (("7.0", False), ("8.0", True), ("9.0", True)):
        monkeypatch.setattr(jax, "devices", lambda c=capability: [types.SimpleNamespace(compute_capability=c)])
        assert (attention.choose_kernel("auto", "float16", 64, False) == "cudnn") == able
    for case in (("float32", 64, False), ("bfloat16", 20, False), ("bfloat16", 256, False), ("bfloat16", 64, True)):
        assert attention.choose_kernel("auto", *case) == "xla"
        with pytest.raises(InputError):
            attention.choose_kernel("cudnn", *case)
    assert attention.choose_kernel("xla", "bfloat16", 64, False) == "xla"
