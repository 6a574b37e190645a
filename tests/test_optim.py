"""Optimizers against the papers' formulas in float64 and against optax on unstacked layers; rules and schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxz.config import default
from jaxz.errors import InputError
from jaxz.optim import frozen, make_optimizer, path_names, schedule

STEPS, DEPTH = 10, 3
RNG = np.random.default_rng(0)
SHAPES = {
    "encoder": {
        "stem": {"mean": {"kernel": (6, 4), "bias": (4,)}, "kernel": {"basis": (5, 4)}},
        "position": (9, 4),
        "blocks": {"up": {"kernel": (DEPTH, 4, 8), "bias": (DEPTH, 8)}, "norm1": {"scale": (DEPTH, 4)}},
        "norm": {"scale": (4,)},
    },
    "redshift": {"out": {"kernel": (4, 7), "bias": (7,)}},
}
PARAMS = jax.tree.map(lambda s: RNG.normal(size=s), SHAPES, is_leaf=lambda s: isinstance(s, tuple))
GRADS = [jax.tree.map(lambda p: RNG.normal(size=p.shape), PARAMS) for _ in range(4)]
NAMES = jax.tree.leaves(path_names(PARAMS))


def settings(**changed):
    config = default().optim
    config.update(dict(lr=0.1, warmup_steps=2, clip_norm=1e9, b2=0.9) | changed)
    return config


def moved(config, params=PARAMS, grads=GRADS) -> dict:
    """{path: value} after a step with each of `grads`."""
    params = jax.tree.map(np.float32, params)
    optimizer = make_optimizer(config, STEPS, params)
    return dict(zip(NAMES, jax.tree.leaves(stepped(optimizer, params, grads)), strict=True))


def stepped(optimizer: optax.GradientTransformation, params, grads):
    """Params after a step with each of `grads`."""

    @jax.jit
    def step(params, state, grad):
        updates, state = optimizer.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(optimizer.init)(params)
    for grad in grads:
        params, state = step(params, state, jax.tree.map(np.float32, grad))
    return params


def adamw(config, rate: dict, decay: dict) -> dict:
    """Loshchilov & Hutter 2019, algorithm 2, in float64; the gradients of all parameters clipped together."""
    scale = schedule(config, STEPS)
    result = dict(zip(NAMES, (p.copy() for p in jax.tree.leaves(PARAMS)), strict=True))
    m, v = ({name: np.zeros_like(p) for name, p in result.items()} for _ in range(2))
    for t, grad in enumerate(GRADS, 1):
        grad = dict(zip(NAMES, jax.tree.leaves(grad), strict=True))
        norm = np.sqrt(sum((grad[name] ** 2).sum() for name in NAMES if np.any(rate[name])))
        for name, p in result.items():
            g = grad[name] * min(1, config.clip_norm / norm)
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = config.b2 * v[name] + (1 - config.b2) * g**2
            step = m[name] / (1 - 0.9**t) / (np.sqrt(v[name] / (1 - config.b2**t)) + 1e-8)
            p -= float(scale(t - 1)) * rate[name] * (step + config.weight_decay * decay[name] * p)
    return result


def close(found: dict, expected: dict) -> None:
    for name in NAMES:
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-5, atol=2e-6, err_msg=name)


def test_adamw_decays_kernels_and_bases_alone():
    config = settings(weight_decay=0.3, clip_norm=2.0)
    close(moved(config), adamw(config, dict.fromkeys(NAMES, 1), {n: n.endswith(("kernel", "basis")) for n in NAMES}))


def test_rates_and_decays_follow_the_first_rule_that_matches_and_the_layer():
    config = settings(
        weight_decay=0.3,
        clip_norm=2.0,
        lr_rules=(("stem/mean", 0.5), ("stem|position", 0.0), (".", 2.0)),
        decay_rules=(("bias$", 3.0), (".", 0.0)),
        layer_decay=0.5,
    )
    blocks = np.array([1 / 8, 1 / 4, 1 / 2])  # Bao et al. 2022: the decay to the power of the layers above
    rates = {
        "encoder/stem/mean/kernel": 0.5 / 16,
        "encoder/stem/mean/bias": 0.5 / 16,
        "encoder/stem/kernel/basis": 0,
        "encoder/position": 0,
        "encoder/blocks/up/kernel": 2 * blocks[:, None, None],
        "encoder/blocks/up/bias": 2 * blocks[:, None],
        "encoder/blocks/norm1/scale": 2 * blocks[:, None],
        "encoder/norm/scale": 2,
        "redshift/out/kernel": 2,
        "redshift/out/bias": 2,
    }
    found = moved(config)
    close(found, adamw(config, rates, {name: 3.0 * name.endswith("bias") for name in NAMES}))
    np.testing.assert_array_equal(found["encoder/position"], np.float32(PARAMS["encoder"]["position"]))


def test_a_frozen_parameter_has_no_state():
    params = jax.tree.map(jnp.float32, PARAMS)
    state = make_optimizer(settings(lr_rules=(("^encoder/", 0), (".", 1))), STEPS, params).init(params)
    short = make_optimizer(settings(frozen="^encoder/"), STEPS, params).init(params)
    held = [a.shape for a in jax.tree.leaves(state) if a.ndim]
    assert sorted(held) == sorted([(4, 7), (7,)] * 2) and jax.tree.structure(state) == jax.tree.structure(short)
    assert jax.tree.leaves(frozen(settings(frozen="^encoder/"), params)) == [True] * 8 + [False] * 2


def unstacked(tree: dict) -> dict:
    """{path or path/layer: array}: every layer of the blocks apart."""
    result = {}
    for name, leaf in zip(NAMES, jax.tree.leaves(tree), strict=True):
        parts = enumerate(leaf) if "blocks" in name else ((None, leaf),)
        result |= {f"{name}/{n}" if n is not None else name: np.float32(part) for n, part in parts}
    return result


def by_peer(optimizer: optax.GradientTransformation) -> dict:
    """{path: value} after the same steps of optax's own, on unstacked layers."""
    params = stepped(optimizer, unstacked(PARAMS), map(unstacked, GRADS))
    layers = lambda name: np.stack([params[f"{name}/{n}"] for n in range(DEPTH)])
    return {name: layers(name) if "blocks" in name else np.asarray(params[name]) for name in NAMES}


def decayed() -> dict[str, bool]:
    return {name: name.rstrip("/012").endswith(("kernel", "basis")) for name in unstacked(PARAMS)}


@pytest.mark.parametrize("name", ["lamb", "lion"])
def test_lamb_has_the_rate_of_each_layer_and_lion_the_sign_of_the_momentum(name):
    config, peer = settings(name=name, weight_decay=0.3), {"lamb": optax.lamb, "lion": optax.lion}[name]
    close(moved(config), by_peer(peer(schedule(config, STEPS), b2=0.9, weight_decay=0.3, mask=decayed())))


def test_sgd_has_momentum_and_a_decay_apart_from_it():
    config = settings(name="sgd", weight_decay=0.3)
    rate, expected = schedule(config, STEPS), dict(zip(NAMES, jax.tree.leaves(PARAMS), strict=True))
    decay = {name: 0.3 * name.endswith(("kernel", "basis")) for name in NAMES}
    momentum = dict.fromkeys(NAMES, 0.0)
    for t, grad in enumerate(GRADS):
        for name, g in zip(NAMES, jax.tree.leaves(grad), strict=True):
            momentum[name] = 0.9 * momentum[name] + g
            expected[name] = expected[name] - float(rate(t)) * (momentum[name] + decay[name] * expected[name])
    close(moved(config), expected)


def test_muon_turns_the_matrices_of_blocks_and_leaves_the_rest_to_adam():
    config = settings(name="muon", weight_decay=0.3)
    matrix = {name: optax.contrib.MuonDimensionNumbers() if "up/kernel" in name else None for name in unstacked(PARAMS)}
    peer = optax.chain(
        optax.contrib.muon(1.0, adam_b2=0.9, consistent_rms=0.2, muon_weight_dimension_numbers=matrix),
        optax.add_decayed_weights(-0.3, decayed()),
        optax.scale_by_schedule(schedule(config, STEPS)),
    )
    found = moved(config)
    close(found, by_peer(peer))
    still = moved(settings(name="muon", weight_decay=0.0, warmup_steps=0), grads=GRADS[:1])["encoder/blocks/up/kernel"]
    values = np.linalg.svd(still - PARAMS["encoder"]["blocks"]["up"]["kernel"], compute_uv=False) / 0.1
    assert (values > 0.5 * 0.2 * 8**0.5).all() and (values < 1.3 * 0.2 * 8**0.5).all()  # Liu et al. 2025, eq. 4


def test_schedules():
    warm, half = np.array([0, 0.05, 0.1]), lambda t: 0.05 * (1 + np.cos(np.pi * (t - 2) / 8))
    cosine = [float(schedule(settings(), 10)(t)) for t in range(11)]
    np.testing.assert_allclose(cosine, [*warm, *(half(t) for t in range(3, 11))], atol=1e-8)
    wsd = [float(schedule(settings(schedule="wsd"), 10)(t)) for t in range(11)]
    np.testing.assert_allclose(wsd, [*warm, *[0.1] * 6, 0.05, 0], atol=1e-8)
    step = [float(schedule(settings(schedule="step"), 10)(t)) for t in range(11)]
    np.testing.assert_allclose(step, [*warm, *[0.1] * 2, *[0.02] * 6], atol=1e-8)
    for name in ("wsd", "step"):
        assert float(schedule(settings(schedule=name, warmup_steps=0), 10)(0)) == pytest.approx(0.1)


BAD = [
    (dict(lr_rules=(("(", 1.0),)), r"optim.lr_rules: '\(' is no regular expression"),
    (
        dict(lr_rules=(("nothing", 1.0), (".", 1.0))),
        "optim.lr_rules: 'nothing' matches no parameter; .* encoder/blocks, .* encoder/position, .* redshift/out$",
    ),
    (dict(lr_rules=(("^encoder", 1.0),)), r"optim.lr_rules: no rule covers 'redshift/out/bias'; add a last one, \('.'"),
    (dict(decay_rules=(("kernel$", 1.0),)), "optim.decay_rules: no rule covers 'encoder/blocks/norm1/scale'"),
    (dict(frozen="."), "with optim.frozen every parameter is frozen"),
    (dict(lr_rules=((".", 0.0),)), "every parameter is frozen"),
    (dict(frozen="^nothing/"), "optim.frozen: '\\^nothing/' matches no parameter"),
]


@pytest.mark.parametrize(("changed", "message"), BAD)
def test_rules_that_do_not_fit_are_refused(changed, message):
    with pytest.raises(InputError, match=message):
        make_optimizer(settings(**changed), STEPS, PARAMS)


def test_a_decay_by_layer_needs_layers():
    with pytest.raises(InputError, match="optim.layer_decay: 0.5 needs a backbone of stacked blocks"):
        make_optimizer(settings(layer_decay=0.5), STEPS, {"encoder": {"kernel": jnp.ones((2, 2))}})
