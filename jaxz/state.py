"""The state of training and the one step that moves it."""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from jaxz.mesh import shardings, slices
from jaxz.models.functional import Params
from jaxz.objectives import Extra, Loss, Objective, Prepared
from jaxz.optim import frozen

T = TypeVar("T")  # a tree of arrays
Metrics = dict[str, jax.Array]
Found = tuple[Params, Extra, Metrics]  # gradients, and what comes with them

FIRST_SCALE, GOOD_STEPS = 2.0**15, 2000  # of float16's losses (Micikevicius et al. 2018, sec. 3.2)
POISSON = np.cumsum(np.exp(-1) / np.cumprod([1, *range(1, 12)])).astype(np.float32)  # P(count <= 0 ... 11), mean 1


class TrainState(NamedTuple):
    """Plain nested dicts keyed by parameter path; all of it is sharded by the rules of jaxz.mesh. Where train.members
    is above 1, every array but the step has a leading axis of members."""

    step: jax.Array  # int32 []: steps done
    params: Params
    ema: Params  # empty where no average is kept
    opt: "optax.OptState | Scaled"
    extra: Extra  # what objectives keep beside parameters


class Scaled(NamedTuple):
    """The optimizer's state of a float16 model, and the factor of its losses that keeps small gradients above zero."""

    inner: optax.OptState
    scale: jax.Array  # float32 []
    good_count: jax.Array  # int32 []: steps since the scale or the last skipped step
    skipped_count: jax.Array  # int32 []: steps left out since their gradients were not finite


def abstract_state(
    objective: Objective, optimizer: optax.GradientTransformation, config: ConfigDict, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of the state, without any array."""
    shapes = jax.eval_shape(lambda: fresh_member(objective, optimizer, config, jax.random.key(0)))
    one = placed(shapes, mesh)
    if config.train.members == 1:
        return one
    return jax.tree.map(lambda a: of_all(a, config.train.members), one)._replace(step=one.step)


def placed(shapes: T, mesh: Mesh) -> T:
    """`shapes` with the shardings that the rules of jaxz.mesh give them."""
    place = lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
    return jax.tree.map(place, shapes, shardings(shapes, mesh))


def of_all(one: jax.ShapeDtypeStruct, members: int) -> jax.ShapeDtypeStruct:
    """A member's array as all of them have it: their axis comes first, and is not split."""
    sharding = NamedSharding(one.sharding.mesh, P(None, *one.sharding.spec))
    return jax.ShapeDtypeStruct((members, *one.shape), one.dtype, sharding=sharding)


def of_one(stacked: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The inverse of `of_all`."""
    sharding = NamedSharding(stacked.sharding.mesh, P(*stacked.sharding.spec[1:]))
    return jax.ShapeDtypeStruct(stacked.shape[1:], stacked.dtype, sharding=sharding)


def fresh_state(objective: Objective, optimizer: optax.GradientTransformation, config: ConfigDict) -> TrainState:
    """That of config.seed; of several members each has its own, from seed, seed + 1, ..."""
    if config.train.members == 1:
        return fresh_member(objective, optimizer, config, jax.random.key(config.seed))
    states = jax.vmap(lambda key: fresh_member(objective, optimizer, config, key))(member_keys(config))
    return states._replace(step=jnp.int32(0))


def fresh_member(
    objective: Objective, optimizer: optax.GradientTransformation, config: ConfigDict, key: jax.Array
) -> TrainState:
    params, extra = objective.init(key)
    ema = jax.tree.map(jnp.copy, params) if config.train.ema_decay else {}
    opt = optimizer.init(params)
    if is_half(config):
        opt = Scaled(opt, jnp.float32(FIRST_SCALE), jnp.int32(0), jnp.int32(0))
    return TrainState(jnp.int32(0), params, ema, opt, extra)


def member_keys(config: ConfigDict) -> jax.Array:
    return jnp.stack([jax.random.key(config.seed + member) for member in range(config.train.members)])


def is_half(config: ConfigDict) -> bool:
    return config.model.get("dtype") == "float16"


def start_from(state: TrainState, params: Params) -> TrainState:
    """`state` with those of its parameters replaced that `params` has too; others stay fresh. One model's are the
    beginning of all members."""

    def begun(own: Params, there: Params) -> Params:
        return own | {
            name: begun(own[name], new) if isinstance(new, dict) else take(own[name], new)
            for name, new in there.items()
        }

    take = lambda old, new: jax.device_put(jnp.broadcast_to(new, old.shape), old.sharding)
    merged = begun(state.params, params)
    ema = jax.tree.map(jnp.copy, merged) if state.ema else {}
    return state._replace(params=merged, ema=ema)


def ema_decay(config: ConfigDict, step: jax.Array) -> jax.Array | float:
    """The decay of the averaged parameters: train.ema_decay, or on half a cosine from it to train.ema_final (Grill et
    al. 2020, sec. 3.3)."""
    if not config.ema_final:
        return config.ema_decay
    rise = (1 - jnp.cos(jnp.pi * step / config.steps)) / 2
    return config.ema_decay + (config.ema_final - config.ema_decay) * rise


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    prepare: Callable[[dict, jax.Array], Prepared],
    config: ConfigDict,
    abstract: TrainState,
) -> jax.stages.Wrapped:
    """step(state, batch) -> (state, metrics): jitted, the state donated. Keys are folded from (seed, step), so that no
    key is stored; augmentation's from (seed, epoch, position), the same for all members. Metrics are those of all
    members on average."""
    gradients = make_gradients(objective, prepare, config, abstract)

    def move(state: TrainState, batch: dict, seed: jax.Array) -> tuple[TrainState, Metrics]:
        scale = state.opt.scale if is_half(config) else None
        grads, extra, metrics = gradients(state, batch, seed, scale)
        metrics["optim/grad_norm"] = optax.tree.norm(grads)
        updates, opt = optimizer.update(grads, state.opt.inner if is_half(config) else state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = optax.incremental_update(params, state.ema, 1 - ema_decay(config.train, state.step)) if state.ema else {}
        moved = TrainState(state.step + 1, params, ema, opt, extra)
        return guarded(state, moved, metrics) if is_half(config) else (moved, metrics)

    def step(state: TrainState, batch: dict) -> tuple[TrainState, Metrics]:
        if config.train.members == 1:
            return move(state, batch, jax.random.key(config.seed))
        axes = TrainState._make((None, 0, 0, 0, 0))
        state, metrics = jax.vmap(move, (axes, None, 0), (axes, 0))(state, batch, member_keys(config))
        return state, jax.tree.map(lambda a: a.mean(0), metrics)

    return jax.jit(step, donate_argnums=0, out_shardings=(jax.tree.map(lambda a: a.sharding, abstract), None))


def make_gradients(
    objective: Objective, prepare: Callable[[dict, jax.Array], Prepared], config: ConfigDict, abstract: TrainState
) -> Callable[[TrainState, dict, jax.Array, jax.Array | None], Found]:
    """gradients(state, batch, seed, scale) -> (gradients, extra, metrics) of one member, averaged over the slices of
    train.accumulate. seed: the member's key; scale: the loss's, None without."""
    still = frozen(config.optim, abstract.params)
    several = config.train.members > 1
    split = jax.tree.map(lambda a: (of_one(a) if several else a).sharding, abstract.params)

    def loss_of(
        params: Params, state: TrainState, batch: Prepared, key: jax.Array, scale: jax.Array | None
    ) -> tuple[jax.Array, Loss]:
        params = jax.tree.map(lambda p, stays: jax.lax.stop_gradient(p) if stays else p, params, still)
        loss, aux = objective.loss(params, state.ema, state.extra, batch, key, state.step)
        return loss if scale is None else loss * scale, (loss, aux)

    def weighted(batch: Prepared, seed: jax.Array) -> Prepared:
        return {**batch, "bootstrap": bootstrap(jax.random.fold_in(seed, 2), batch)} if several else batch

    def of_slice(
        state: TrainState, batch: dict, seed: jax.Array, key: jax.Array, scale: jax.Array | None, share: Metrics
    ) -> Found:
        seen = prepare(batch, jax.random.fold_in(jax.random.key(config.seed), 0))
        own = {**weighted(seen, seed), "share": share}
        (_, (loss, aux)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params, state, own, key, scale)
        if scale is not None:
            grads = jax.tree.map(lambda a: a / scale, grads)
        metrics = {"loss": loss, **aux["metrics"], "data/nonfinite": own["nonfinite"].mean()}
        return jax.lax.with_sharding_constraint(grads, split), aux["extra"], metrics

    def gradients(state: TrainState, batch: dict, seed: jax.Array, scale: jax.Array | None) -> Found:
        key, count = jax.random.fold_in(jax.random.fold_in(seed, 1), state.step), config.train.accumulate
        if count == 1:
            return of_slice(state, batch, seed, key, scale, {})

        def add(carry: tuple[Params, Extra], part: tuple) -> tuple[tuple[Params, Extra], Metrics]:
            (total, extra), (n, batch, share) = carry, part
            own, key_of = state._replace(extra=extra), jax.random.fold_in(key, n)
            grads, extra, metrics = of_slice(own, batch, seed, key_of, scale, share)
            return (jax.tree.map(jnp.add, total, grads), extra), metrics

        start, parts = (jax.tree.map(jnp.zeros_like, state.params), state.extra), slices(batch, count)
        # a slice with more labels than another counts more: the mean over labels is that of the whole batch
        weights = jax.vmap(lambda part: objective.slice_weights(weighted(part, seed)))(parts)
        shares = jax.tree.map(lambda a: a / jnp.maximum(a.mean(), 1e-9), weights)
        (total, extra), metrics = jax.lax.scan(add, start, (jnp.arange(count), parts, shares))
        return jax.tree.map(lambda a: a / count, total), extra, jax.tree.map(lambda a: a.mean(0), metrics)

    return gradients


def bootstrap(key: jax.Array, batch: Prepared) -> jax.Array:
    """float32 [B]: how often each object is in a bootstrap sample, Poisson with the mean 1 (Oza & Russell 2001), by the
    key and its row (and source) alone: the same in every epoch."""
    numbers = [batch[name].astype(jnp.uint32) for name in ("row", "source") if name in batch]
    keys = jax.vmap(lambda *own: functools.reduce(jax.random.fold_in, own, key))(*numbers)
    draw = jax.vmap(jax.random.uniform)(keys)  # jax.random.poisson loops until the last device is done
    return (draw[:, None] >= POISSON).sum(1).astype(jnp.float32)


def guarded(state: TrainState, moved: TrainState, metrics: Metrics) -> tuple[TrainState, Metrics]:
    """A float16 step: where the gradients are not finite, all but the step stays what it was bit for bit, and the scale
    is halved; after GOOD_STEPS without that it is doubled.

    metrics: the gradient's norm is 0 in a skipped step, so that only what a scale of 1 does not cure ends the run.
    """
    norm, old = metrics["optim/grad_norm"], state.opt
    finite = jnp.isfinite(norm)
    before = state._replace(step=moved.step, opt=old.inner)
    kept = jax.tree.map(lambda new, before: jnp.where(finite, new, before), moved, before)
    full = old.good_count + 1 == GOOD_STEPS
    scale = old.scale * jnp.where(finite, jnp.where(full, 2.0, 1.0), jnp.where(old.scale > 1, 0.5, 1.0))
    good, skipped = jnp.where(finite & ~full, old.good_count + 1, 0), old.skipped_count + ~finite
    metrics |= {"optim/grad_norm": jnp.where(finite | (old.scale <= 1), norm, 0)}
    metrics |= {"optim/loss_scale": scale, "optim/skipped": skipped}
    return kept._replace(opt=Scaled(kept.opt, scale, good, skipped)), metrics
