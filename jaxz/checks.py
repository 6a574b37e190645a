"""What the CHECKS of a group of settings are made of, {name: (test of the group, what the setting must be)}."""

import math
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

Check = tuple[Callable[[ConfigDict], bool], str]


def at_least(name: str, least: float) -> Check:
    """Of the setting `name`, a number."""
    return lambda settings: settings[name] >= least, f"at least {least}"


def one_of(name: str, *values: str) -> Check:
    """Of the setting `name`, a text."""
    return lambda settings: settings[name] in values, f"one of {', '.join(values)}"


def is_range(values: Sequence) -> bool:
    """Whether it is empty, or two finite numbers in order."""
    numbers = all(isinstance(v, int | float) and math.isfinite(v) for v in values)
    return not values or (numbers and len(values) == 2 and values[0] <= values[1])
