"""The optimizer: AdamW on a warmed-up cosine, with parameters frozen by a regex."""

import re

import jax
import optax

from jaxz.errors import InputError


def schedule(config, steps: int) -> optax.Schedule:
    """Linear warm-up to optim.lr, then a cosine to zero at the last step."""
    warmup = min(config.warmup_steps, steps)
    return optax.warmup_cosine_decay_schedule(0.0, config.lr, warmup, max(steps, warmup + 1))


def path_names(params):
    """The tree of each parameter's path, such as "encoder/blocks/up/kernel"."""
    return jax.tree_util.tree_map_with_path(lambda p, _: jax.tree_util.keystr(p, simple=True, separator="/"), params)


def make_optimizer(config, steps: int, params) -> optax.GradientTransformation:
    """`config` is the group `optim`. Frozen parameters get no update and hold no optimizer state; weight decay acts on
    kernels only. Raises InputError for a regex that is none, matches nothing, or freezes everything."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule(config, steps),
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=lambda tree: jax.tree.map(lambda name: name.endswith(("kernel", "basis")), path_names(tree)),
        ),
    )
    if not config.frozen:
        return optimizer
    names = path_names(params)
    try:
        labels = jax.tree.map(lambda name: "frozen" if re.search(config.frozen, name) else "trained", names)
    except re.error as error:
        raise InputError(f"optim.frozen: {config.frozen!r} is no regular expression ({error}); mend it") from None
    if len(found := set(jax.tree.leaves(labels))) < 2:
        every = "every" if found == {"frozen"} else "no"
        raise InputError(
            f"optim.frozen: {config.frozen!r} matches {every} parameter of {jax.tree.leaves(names)}; mend it"
        )
    return optax.multi_transform({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)
