"""What a value of a dataset.json may be."""

from collections.abc import Callable
from typing import Any

import numpy as np

Rule = tuple[Callable[[Any], object], str]  # test of a value, and what it must be; JSON's true is no number here
TEXT: Rule = (lambda v: isinstance(v, str), "text")


def whole(low: int) -> Rule:
    """The rule of integers from `low` on."""
    return lambda v: type(v) is int and low <= v < 2**63, f"an integer from {low} to 2^63 - 1"


def number(low: float, high: float) -> Rule:
    """The rule of numbers from `low` to `high`."""
    return lambda v: isinstance(v, int | float) and v is not True and v is not False and low <= v <= high, (
        f"a number from {low:g} to {high:g}"
    )


def is_dtype(value: object) -> bool:
    """Whether it names a numpy dtype of plain numbers."""
    try:
        return isinstance(value, str) and np.dtype(value).kind in "fiub"
    except (TypeError, ValueError, SyntaxError):
        return False


def is_shape(value: object) -> bool:
    """A tuple of positive integers, of which one may be None."""
    is_side = lambda n: n is None or (type(n) is int and n > 0)
    return isinstance(value, tuple) and len(value) <= 8 and value.count(None) <= 1 and all(map(is_side, value))


def is_bits(value: object) -> bool:
    """Whether it is {name: bits of a mask}, each above 0."""
    return isinstance(value, dict) and all(isinstance(k, str) and type(v) is int and v > 0 for k, v in value.items())


def is_steps(value: object) -> bool:
    """Whether it is a tuple of positive numbers."""
    is_step, _ = number(1e-30, 1e30)
    return isinstance(value, tuple) and all(map(is_step, value))
