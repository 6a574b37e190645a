"""The step on a model small enough to follow: accumulation, float16's loss scale, members, what is compiled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats

from jaxz.config import default
from jaxz.mesh import make_mesh, slices
from jaxz.optim import make_optimizer
from jaxz.state import (
    FIRST_SCALE,
    GOOD_STEPS,
    TrainState,
    abstract_state,
    bootstrap,
    fresh_state,
    make_gradients,
    make_step,
)
from tests.terms import batch_of as batch_of_terms
from tests.terms import make

ROWS, STEPS = 16, 4


class Objective:
    """Least squares of two layers, with noise by the key, and a count of the batches seen in `extra`."""

    def __init__(self, noise: float = 0.0):
        self.noise = noise

    def init(self, key):
        first, second = jax.random.split(key)
        params = {
            "encoder": {"kernel": jax.random.normal(first, (4, 8))},
            "head": {"kernel": jax.random.normal(second, (8,))},
        }
        return params, {"head": {"seen": jnp.int32(0)}}

    def slice_weights(self, batch):
        return {}

    def loss(self, params, ema, extra, batch, key, step):
        predicted = jnp.tanh(batch["x"] @ params["encoder"]["kernel"]) @ params["head"]["kernel"]
        noise = self.noise * jax.random.normal(key, predicted.shape)
        error = (predicted + noise - batch["y"]) ** 2
        loss = (batch.get("bootstrap", 1.0) * error).mean() + batch["trouble"].max() * params["head"]["kernel"].sum()
        metrics = {"first": batch["y"][0], "draw": noise[0]}
        return loss, {"metrics": metrics, "extra": {"head": {"seen": extra["head"]["seen"] + 1}}}


def prepare(batch, key):
    return {**batch, "nonfinite": jnp.zeros(len(batch["x"]))}


def batch_of(n: int, trouble: float = 0.0) -> dict:
    rng = np.random.default_rng(n)
    batch = {"x": rng.normal(size=(ROWS, 4)), "y": rng.normal(size=ROWS), "trouble": np.full(ROWS, trouble)}
    return {name: jnp.float32(a) for name, a in batch.items()} | {"row": jnp.arange(ROWS) + ROWS * n}


@functools.cache
def made(dtype: str, seed: int, noise: float, **train):
    """(the state's shapes, the step, a function that makes the first state) of a config; compiled once a config."""
    config = default()
    config.model.dtype, config.seed = dtype, seed
    config.train.update(dict(steps=100, ema_decay=0.9) | train)
    config.optim.update(dict(lr=0.01, warmup_steps=0))
    objective = Objective(noise)
    optimizer = make_optimizer(config.optim, 100, jax.eval_shape(lambda: objective.init(jax.random.key(0))[0]))
    abstract = abstract_state(objective, optimizer, config, make_mesh(1, 1))
    fresh = lambda: fresh_state(objective, optimizer, config)
    first = jax.jit(fresh, out_shardings=jax.tree.map(lambda a: a.sharding, abstract))
    return abstract, make_step(objective, optimizer, prepare, config, abstract), first


class Training:
    def __init__(self, dtype: str = "float32", seed: int = 5, noise: float = 0.0, **train):
        self.abstract, self.step, first = made(dtype, seed, noise, **train)
        self.state, self.metrics = first(), []

    def run(self, batches) -> "Training":
        for batch in batches:
            self.state, metrics = self.step(self.state, batch)
            self.metrics.append(jax.device_get(metrics))
        return self


BATCHES = [batch_of(n) for n in range(STEPS)]


@pytest.fixture(scope="module")
def plain():
    return Training().run(BATCHES)


def same(found, expected, **tolerance) -> None:
    compare = np.testing.assert_allclose if tolerance else np.testing.assert_array_equal
    jax.tree.map(lambda a, b: compare(a, b, **tolerance), jax.device_get(found), jax.device_get(expected))


def test_accumulated_slices_are_the_whole_batch(plain):
    count = 4
    found = Training(accumulate=count).run(BATCHES)
    same(found.state.params, plain.state.params, rtol=2e-6)
    same(found.state.opt, plain.state.opt, rtol=1e-5, atol=1e-9)
    for own, whole, batch in zip(found.metrics, plain.metrics, BATCHES, strict=True):
        for name in ("loss", "optim/grad_norm"):
            np.testing.assert_allclose(own[name], whole[name], rtol=1e-5)
        np.testing.assert_allclose(own["first"], batch["y"][:count].mean(), rtol=1e-5)
    assert int(found.state.extra["head"]["seen"]) == STEPS * count


def test_slices_with_more_labels_count_more():
    """Of 8 objects 3 have fluxes and one a redshift; the gradient of four slices is that of the whole batch."""
    objective, params, extra = make(dict(fluxes=1.0, redshift=0.5), fluxes=dict(band_mask=0.0))
    batch = batch_of_terms(8) | {"z_err": np.full(8, 1e-3), "nonfinite": np.zeros(8), "row": np.arange(8)}
    batch["z"][[0, 1, 2, 3, 5, 6, 7]] = np.nan
    for band in "gri":
        batch[f"flux_{band}"][3:] = np.nan
    batch = jax.tree.map(lambda a: jnp.asarray(a, a.dtype if a.dtype == bool else jnp.float32), batch)
    mesh = make_mesh(1, 1)
    found = []
    for count in (1, 4):
        config = default()
        config.train.accumulate = count
        abstract = TrainState(
            *(jax.tree.map(lambda a: placed_shape(a, mesh), part) for part in (0, params, {}, {}, {}))
        )
        gradients = make_gradients(objective, lambda batch, key: batch, config, abstract)
        state = TrainState(jnp.int32(0), params, {}, {}, extra)
        found.append(jax.jit(lambda b, g=gradients, s=state: g(s, b, jax.random.key(0), None))(batch))
    same(found[1][0], found[0][0], rtol=1e-4, atol=1e-7)
    for name in ("loss", "fluxes/loss", "redshift/loss"):
        np.testing.assert_allclose(found[1][2][name], found[0][2][name], rtol=1e-5)


def placed_shape(array, mesh) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(array), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))


def test_each_slice_draws_its_own_noise():
    found = Training(noise=0.3, accumulate=2).run(BATCHES[:1]).metrics[0]["draw"]
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 1), 0)
    draws = [0.3 * jax.random.normal(jax.random.fold_in(key, n), (ROWS // 2,))[0] for n in range(2)]
    np.testing.assert_allclose(found, np.mean(draws), rtol=1e-5)


def test_a_slice_is_every_so_manieth_row():
    cut = slices({"a": jnp.arange(12).reshape(6, 2)}, 3)["a"]
    np.testing.assert_array_equal(cut, [[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]])


def test_a_scaled_loss_moves_as_one_that_is_not(plain):
    """The scale is a power of two, and this model computes in float32 all the same."""
    found = Training(dtype="float16").run(BATCHES)
    same(found.state.params, plain.state.params, rtol=1e-6)
    same(found.state.opt.inner, plain.state.opt, rtol=1e-5, atol=1e-9)
    assert [m["optim/loss_scale"] for m in found.metrics] == [FIRST_SCALE] * STEPS
    same([m["loss"] for m in found.metrics], [m["loss"] for m in plain.metrics], rtol=1e-6)


def test_gradients_that_overflow_leave_all_but_the_scale_as_it_was():
    training = Training(dtype="float16").run(BATCHES[:2])
    before = jax.device_get(training.state)
    training.run([batch_of(9, trouble=1e37)])  # the loss is finite, its gradient times the scale is not
    after, metrics = jax.device_get(training.state), training.metrics[-1]
    same(
        (after.params, after.ema, after.opt.inner, after.extra),
        (before.params, before.ema, before.opt.inner, before.extra),
    )
    assert (int(after.step), float(after.opt.scale)) == (3, FIRST_SCALE / 2)
    assert np.isfinite(metrics["loss"]) and metrics["optim/grad_norm"] == 0 and metrics["optim/skipped"] == 1
    training.run(BATCHES[2:])
    assert training.metrics[-1]["optim/skipped"] == 1 and training.metrics[-1]["optim/grad_norm"] > 0
    assert int(training.state.opt.good_count) == 2


def test_the_scale_doubles_after_many_good_steps():
    training = Training(dtype="float16")
    opt = training.state.opt
    good = jax.device_put(jnp.int32(GOOD_STEPS - 2), opt.good_count.sharding)
    training.state = training.state._replace(opt=opt._replace(good_count=good))
    training.run(BATCHES[:3])
    assert [m["optim/loss_scale"] / FIRST_SCALE for m in training.metrics] == [1, 2, 2]
    assert int(training.state.opt.good_count) == 1


def test_what_no_scale_cures_is_not_hidden():
    training = Training(dtype="float16").run([batch_of(0, trouble=np.nan)] * 17)
    assert [m["optim/grad_norm"] for m in training.metrics[:15]] == [0] * 15  # 2^15 is halved 15 times
    assert np.isnan(training.metrics[16]["optim/grad_norm"]) and float(training.state.opt.scale) == 1


PARTS = dict(noise=0.3, accumulate=2)


def test_each_member_is_a_run_of_its_seed():
    members = Training(**PARTS, members=2).run(BATCHES)
    for m in range(2):
        key = jax.random.fold_in(jax.random.key(5 + m), 2)
        own = Training(**PARTS, seed=5 + m).run({**b, "bootstrap": bootstrap(key, b)} for b in BATCHES)
        for item in ("params", "ema", "opt", "extra"):
            one = jax.tree.map(lambda a, m=m: a[m], getattr(members.state, item))
            same(one, getattr(own.state, item), rtol=1e-5, atol=1e-7)
    assert int(members.state.step) == STEPS
    kernel = np.asarray(members.state.params["encoder"]["kernel"])
    assert kernel.shape == (2, 4, 8) and np.abs(kernel[0] - kernel[1]).max() > 0.1


def test_a_bootstrap_is_poisson_and_the_objects_own():
    rows, draw = jnp.arange(40_000), jax.jit(bootstrap)
    counts = np.asarray(draw(jax.random.key(1), {"row": rows}))
    expected = len(rows) * stats.poisson.pmf(np.arange(6), 1)
    found = np.bincount(counts.astype(int))[:6]
    assert (((found - expected) ** 2 / expected).sum()) < stats.chi2.ppf(0.999, 6)
    order = np.random.default_rng(0).permutation(len(rows))  # as in another epoch
    np.testing.assert_array_equal(draw(jax.random.key(1), {"row": rows[order]}), counts[order])
    other_member = draw(jax.random.key(2), {"row": rows})
    other_source = draw(jax.random.key(1), {"row": rows, "source": jnp.ones_like(rows)})
    for other in (other_member, other_source):
        assert abs(np.corrcoef(other, counts)[0, 1]) < 0.02


@pytest.mark.parametrize("train", [dict(), dict(**PARTS, members=2), dict(dtype="float16")])
def test_a_step_is_compiled_once_and_takes_the_room_of_its_state(train):
    training = Training(**train)
    for batch in BATCHES:
        before = jax.tree.leaves(training.state)
        training.run([batch])
        assert all(a.is_deleted() for a in before)
    assert training.step._cache_size() == 1
    for leaf, wanted in zip(jax.tree.leaves(training.state), jax.tree.leaves(training.abstract), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (wanted.shape, wanted.dtype, wanted.sharding)
