"""Floating point operations of matrix multiplications, counted in a function's jaxpr."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def matmul_flops(function: Callable, *arguments: Any) -> float:
    """FLOPs of all dot products and convolutions of `function(*arguments)`, arrays or their shapes: a multiplication
    and addition are two. Scans count every turn, of conditionals the dearest branch counts.

    Raises ValueError for a while loop that multiplies matrices: how often it turns is not known.
    """
    return of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def of_jaxpr(jaxpr: core.Jaxpr) -> float:
    return sum(map(of_equation, jaxpr.eqns))


def of_equation(equation: core.JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    shape = lambda variable: variable.aval.shape
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left, out = shape(equation.invars[0]), shape(equation.outvars[0])
        return 2.0 * math.prod(out) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, out = shape(equation.invars[1]), shape(equation.outvars[0])
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * math.prod(out) * math.prod(kernel) / features
    if name == "cond":
        return max(map(of_inner, params["branches"]))
    inner = sum(map(of_inner, filter(is_jaxpr, jax.tree.leaves(list(params.values()), is_leaf=is_jaxpr))))
    if name == "while" and inner:
        raise ValueError("a while loop multiplies matrices, and how often is not known; use a scan")
    return inner * params.get("length", 1) if name == "scan" else inner


def is_jaxpr(value: object) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def of_inner(inner: core.Jaxpr | core.ClosedJaxpr) -> float:
    """Of a jaxpr inside an equation."""
    return of_jaxpr(inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner)
