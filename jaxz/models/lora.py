"""Low-rank adaptation (Hu et al. 2022): W + scale * a @ b, with W [..., in, out] as it was pretrained.

A pure function on parameter trees: modules and paths of the model stay what they are.
"""

import re

import jax
import jax.numpy as jnp

from jaxz.errors import InputError
from jaxz.mesh import path_name
from jaxz.models.functional import Params


def lora_init(key: jax.Array, params: Params, regex: str, rank: int) -> Params:
    """{path: {"a": [..., in, rank], "b": [..., rank, out]}} as a tree, for the kernels whose path `regex` is found in.

    a is drawn with the variance 1 / in, b is zero: at first the model is the pretrained one (sec. 4.1).
    Raises InputError for a regex that is none, or finds nothing or what is no matrix.
    """
    result: Params = {}
    for n, (path, kernel) in enumerate(jax.tree_util.tree_flatten_with_path(params)[0]):
        name = path_name(path)
        try:
            if not re.search(regex, name):
                continue
        except re.error as error:
            raise InputError(f"optim.lora_kernels: {regex!r} is no regular expression ({error}); mend it") from None
        if kernel.ndim < 2 + ("blocks/" in name):
            raise InputError(f"optim.lora_kernels: {regex!r} finds {name!r}, which is no matrix; name kernels alone")
        *stack, inner, outer = kernel.shape
        a = inner**-0.5 * jax.random.normal(jax.random.fold_in(key, n), (*stack, inner, rank))
        node = result
        for part in name.split("/")[:-1]:
            node = node.setdefault(part, {})
        node[name.split("/")[-1]] = {"a": a, "b": jnp.zeros((*stack, rank, outer))}
    if not result:
        raise InputError(f"optim.lora_kernels: {regex!r} matches no parameter of the encoder; mend it")
    return result


def lora_merge(params: Params, lora: Params, scale: float) -> Params:
    """`params` with W + scale * a @ b (eq. 3) in the place of each W that `lora` has factors of."""
    factors = lambda own: own.keys() == {"a", "b"}
    return params | {
        name: params[name] + scale * (own["a"] @ own["b"]) if factors(own) else lora_merge(params[name], own, scale)
        for name, own in lora.items()
    }
