"""The optimizer: what moves the parameters, how fast each of them moves, and which decay or stay as they are."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxz.errors import InputError
from jaxz.mesh import path_name

COOLDOWN = 0.2  # of the steps: the last part of the schedule "wsd" (Haegele et al. 2024, sec. 4)
MOMENTUM = 0.9  # of sgd
MUON_RMS = 0.2  # of Muon's updates: as large as AdamW's, so that one rate serves both (Liu et al. 2025, sec. 2.2)
STACKED = re.compile(r"blocks/")  # parameters with a leading axis of depth
LAYERED = re.compile(r"^(encoder|lora)/blocks/")


def schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Linear warm-up to optim.lr, then "cosine": to zero at the last step; or "wsd", warm-up-stable-decay (Hu et al.
    2024, sec. 4): constant, and linearly to zero over the last fifth of the steps; or "step": a fifth of it from half
    of the steps on (as Pasquet et al. 2019 are trained in Lin et al. 2022)."""
    warmup = min(config.warmup_steps, steps)
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, config.lr, warmup, max(steps, warmup + 1))
    if config.schedule == "step":
        last, fall = optax.constant_schedule(config.lr / 5), steps // 2
    else:
        cooldown = max(1, round(COOLDOWN * steps))
        last, fall = optax.linear_schedule(config.lr, 0.0, cooldown), steps - cooldown
    ramp, stable = optax.linear_schedule(0.0, config.lr, warmup), optax.constant_schedule(config.lr)
    return optax.join_schedules([ramp, stable, last], [warmup, max(warmup, fall)])


def path_names(params: Any) -> Any:
    """The tree of each parameter's path, of any tree of arrays."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path), params)


def make_optimizer(config: ConfigDict, steps: int, params: dict) -> optax.GradientTransformation:
    """`config` is the group `optim`; of `params` names and shapes count. Frozen ones get no update and hold no state.

    Raises InputError for rules that do not fit the parameters."""
    rates, decays, still = learning_rates(config, params), weight_decays(config, params), frozen(config, params)
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.chain(
            DIRECTIONS[config.name](config),
            each(lambda name, update, param: update + decays[name] * param if decays[name] else update),
            each(trust) if config.name == "lamb" else optax.identity(),
            optax.scale_by_learning_rate(schedule(config, steps)),
            each(lambda name, update, _: update if np.all(rates[name] == 1) else update * rates[name]),
        ),
    )
    if not any(jax.tree.leaves(still)):
        return optimizer
    labels = jax.tree.map(lambda stays: "frozen" if stays else "trained", still)
    return optax.multi_transform({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def muon(config: ConfigDict) -> optax.GradientTransformation:
    """The orthogonalised momentum of every matrix of a block (Jordan et al. 2024); of the rest Adam's direction."""
    descent = optax.contrib.muon(
        1.0, adam_b2=config.b2, consistent_rms=MUON_RMS, muon_weight_dimension_numbers=block_matrices
    )
    return optax.chain(descent, optax.scale(-1.0))


# optim.name: the ascent of a config's group optim before decay, lamb's trust and the learning rate, which all share.
DIRECTIONS = {
    "adamw": lambda config: optax.scale_by_adam(b2=config.b2),  # Kingma & Ba 2015, alg. 1
    "lamb": lambda config: optax.scale_by_adam(b2=config.b2, eps=1e-6),
    "lion": lambda config: optax.scale_by_lion(b2=config.b2),  # Chen et al. 2023, alg. 2
    "muon": muon,
    "sgd": lambda config: optax.trace(MOMENTUM),
}


def block_matrices(params: dict) -> dict:
    """Which axes of a parameter are a matrix, for Muon: the last two of a stacked kernel [depth, ..., in, out]."""
    matrix = optax.contrib.MuonDimensionNumbers(-2, -1)
    chosen = lambda name, leaf: STACKED.search(name) and name.endswith("kernel") and leaf.ndim > 2
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: matrix if chosen(path_name(path), leaf) else None, params
    )


def each(change: Callable[[str, jax.Array, jax.Array], jax.Array]) -> optax.GradientTransformation:
    """Every update becomes change(path, update, parameter)."""
    return optax.stateless(
        lambda updates, params: jax.tree_util.tree_map_with_path(
            lambda path, update, param: change(path_name(path), update, param), updates, params
        )
    )


def trust(name: str, update: jax.Array, param: jax.Array) -> jax.Array:
    """LAMB's layer-wise rate (You et al. 2020, alg. 2): the update as long as its parameter, block by block."""

    def scaled(update: jax.Array, param: jax.Array) -> jax.Array:
        size, length = jnp.linalg.norm(param), jnp.linalg.norm(update)
        return update * jnp.where((size > 0) & (length > 0), size / jnp.where(length > 0, length, 1), 1)

    flat = lambda a: a.reshape(len(a), -1) if STACKED.search(name) else a.reshape(1, -1)
    return jax.vmap(scaled)(flat(update), flat(param)).reshape(update.shape)


def frozen(config: ConfigDict, params: dict) -> dict:
    """The tree that says which parameters stay as they are: those whose learning rate has the factor 0."""
    rates = factors(rate_rules(config), params)
    if not any(rates.values()):
        raise InputError("optim.lr_rules: with optim.frozen every parameter is frozen; leave one")
    return jax.tree.map(lambda name: rates[name] == 0, path_names(params))


def rate_rules(config: ConfigDict) -> list[tuple[str, str, float]]:
    """(field, regex, factor): what freezes comes first."""
    rules = [("optim.lora_rank", "^encoder/", 0.0)] if config.lora_rank else []
    rules += [("optim.frozen", config.frozen, 0.0)] if config.frozen else []
    return rules + [("optim.lr_rules", regex, factor) for regex, factor in config.lr_rules]


def learning_rates(config: ConfigDict, params: dict) -> dict[str, float | np.ndarray]:
    """{path: factor of the learning rate}; layer-wise decay gives stacked blocks one a layer, [depth, 1, ...]."""
    layers = layer_factors(config.layer_decay, params)
    return {name: factor * layers[name] for name, factor in factors(rate_rules(config), params).items()}


def weight_decays(config: ConfigDict, params: dict) -> dict[str, float]:
    """{path: its weight decay}."""
    rules = [("optim.decay_rules", regex, factor) for regex, factor in config.decay_rules]
    return {name: config.weight_decay * factor for name, factor in factors(rules, params).items()}


def factors(rules: Sequence[tuple[str, str, float]], params: dict) -> dict[str, float]:
    """{path: factor} by the first of (field, regex, factor) that is found in it.

    Raises InputError for a regex that is none or matches nothing, and for a parameter that none matches."""
    names = jax.tree.leaves(path_names(params))
    found: dict[str, float] = {}
    for field, regex, factor in rules:
        try:
            matched = [name for name in names if re.search(regex, name)]
        except re.error as error:
            raise InputError(f"{field}: {regex!r} is no regular expression ({error}); mend it") from None
        if not matched:
            parts = sorted({"/".join(name.split("/")[:2]) for name in names})
            raise InputError(f"{field}: {regex!r} matches no parameter; they begin with {', '.join(parts)}")
        found = {**dict.fromkeys(matched, factor), **found}
    if left := [name for name in names if name not in found]:
        raise InputError(f"{rules[-1][0]}: no rule covers {left[0]!r}; add a last one, ('.', 1.0)")
    return found


def layer_factors(decay: float, params: dict) -> dict[str, float | np.ndarray]:
    """{path: decay^(depth + 1 - layer)} (Bao et al. 2022, app. H): the layer is 0 for the encoder's stem and positions,
    1 to depth for its blocks, depth + 1 for its last norm, its attention pooling and all heads.

    Raises InputError for an encoder without stacked blocks."""
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
    if decay == 1:
        return dict.fromkeys(leaves, 1.0)
    depths = [leaf.shape[0] for name, leaf in leaves.items() if LAYERED.search(name)]
    if not depths:
        raise InputError(f"optim.layer_decay: {decay} needs a backbone of stacked blocks, such as 'vit'; set it to 1")
    result: dict[str, float | np.ndarray] = {}
    for name, leaf in leaves.items():
        if LAYERED.search(name):
            layers = decay ** np.arange(depths[0], 0, -1, dtype=np.float32)
            result[name] = layers.reshape(-1, *[1] * (leaf.ndim - 1))
        else:
            result[name] = decay ** (depths[0] + 1) if re.search("^(encoder|lora)/(?!norm/|probe/)", name) else 1.0
    return result
