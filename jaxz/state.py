"""The state of training and the one step that moves it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxz.mesh import shardings


class TrainState(NamedTuple):
    """Plain nested dicts keyed by parameter path; all of it is sharded by the rules of jaxz.mesh."""

    step: jax.Array  # int32 []: steps done
    params: dict
    ema: dict  # empty where no average is kept
    opt: optax.OptState
    extra: dict  # what objectives keep beside parameters


def abstract_state(objective, optimizer, ema_decay: float, mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, without any array."""
    make = lambda: fresh_state(objective, optimizer, ema_decay, 0)
    shapes = jax.eval_shape(make)
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings(shapes, mesh)
    )


def fresh_state(objective, optimizer, ema_decay: float, seed: int) -> TrainState:
    params, extra = objective.init(jax.random.key(seed))
    ema = jax.tree.map(jnp.copy, params) if ema_decay else {}
    return TrainState(jnp.int32(0), params, ema, optimizer.init(params), extra)


def start_from(state: TrainState, params: dict) -> TrainState:
    """`state` with those of its parameters replaced that `params` has too; other objectives' heads stay fresh."""
    merged = {name: params.get(name, value) for name, value in state.params.items()}
    ema = jax.tree.map(jnp.copy, merged) if state.ema else {}
    return state._replace(params=merged, ema=ema)


def ema_decay(config, step: jax.Array) -> jax.Array | float:
    """The decay of the averaged parameters: train.ema_decay, or on half a cosine from it to train.ema_final (Grill et
    al. 2020, sec. 3.3)."""
    if not config.ema_final:
        return config.ema_decay
    rise = (1 - jnp.cos(jnp.pi * step / config.steps)) / 2
    return config.ema_decay + (config.ema_final - config.ema_decay) * rise


def make_step(objective, optimizer, prepare, config, abstract: TrainState) -> Callable:
    """step(state, batch) -> (state, metrics): jitted, the state donated. Keys are folded from (seed, step), so that no
    key is stored; augmentation's from (seed, epoch, position)."""
    placed = jax.tree.map(lambda a: a.sharding, abstract)

    def loss_of(params, state, batch, key):
        return objective.loss(params, state.ema, state.extra, batch, key, state.step)

    def step(state: TrainState, batch: dict):
        base = jax.random.key(config.seed)
        batch = prepare(batch, jax.random.fold_in(base, 0))
        key = jax.random.fold_in(jax.random.fold_in(base, 1), state.step)
        (loss, aux), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params, state, batch, key)
        grads = jax.lax.with_sharding_constraint(grads, placed.params)
        updates, opt = optimizer.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = optax.incremental_update(params, state.ema, 1 - ema_decay(config.train, state.step)) if state.ema else {}
        own = {"optim/grad_norm": optax.global_norm(grads), "data/nonfinite": batch["nonfinite"].mean()}
        metrics = {"loss": loss, **aux["metrics"], **own}
        return TrainState(state.step + 1, params, ema, opt, aux["extra"]), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(placed, None))
