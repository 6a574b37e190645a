"""Floating point operations of matrix multiplications, counted in a function's jaxpr."""

import math

import jax
from jax.extend import core


def matmul_flops(function, *arguments) -> float:
    """FLOPs of all dot products and convolutions of `function(*arguments)`, arrays or their shapes: a multiplication
    and addition are two. Scans count every turn, of conditionals the dearest branch counts.

    Raises ValueError for a while loop that multiplies matrices: how often it turns is not known.
    """
    return of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def of_jaxpr(jaxpr) -> float:
    return sum(map(of_equation, jaxpr.eqns))


def of_equation(equation) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return 2.0 * math.prod(out) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * math.prod(out) * math.prod(kernel) / features
    if name == "cond":
        return max(map(of_inner, params["branches"]))
    inner = sum(map(of_inner, jax.tree.leaves(list(params.values()), is_leaf=is_jaxpr)))
    if name == "while" and inner:
        raise ValueError("a while loop multiplies matrices, and how often is not known; use a scan")
    return inner * params.get("length", 1) if name == "scan" else inner


def is_jaxpr(value) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def of_inner(value) -> float:
    """Of a jaxpr inside an equation; other parameters have none."""
    return of_jaxpr(getattr(value, "jaxpr", value)) if is_jaxpr(value) else 0.0
