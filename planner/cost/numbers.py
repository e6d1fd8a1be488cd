"""Numbers that may be arrays: one number, or one for each of many strategies, layers or loads that are priced at once.

One formula serves both. Plain numbers keep the quick functions of the language; arrays give, element by element, what
each would give alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import Any, TypeAlias

import numpy as np

Numbers: TypeAlias = Any
"""One number, or an array with a number for each of many that are priced at once."""


def are_many(number: Numbers) -> bool:
    """Whether this is an array."""
    return isinstance(number, np.ndarray)


def whole_number(number: Numbers) -> Numbers:
    """Whole numbers as such; what is behind the point is cut off."""
    return number.astype(np.int64) if isinstance(number, np.ndarray) else int(number)


def peak(number: Numbers) -> Any:
    """The largest of all elements, one number."""
    return number.max() if isinstance(number, np.ndarray) else number


def larger(one: Numbers, other: Numbers) -> Numbers:
    """Of two, element by element."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.maximum(one, other)
    return max(one, other)


def largest(numbers: Iterable[Numbers]) -> Numbers:
    """Of several, element by element."""
    found = list(numbers)
    return reduce(np.maximum, found) if any(map(are_many, found)) else max(found)


def smallest(numbers: Iterable[Numbers]) -> Numbers:
    """Of several, element by element."""
    found = list(numbers)
    return reduce(np.minimum, found) if any(map(are_many, found)) else min(found)


def where(condition: Any, then: Numbers, otherwise: Numbers) -> Numbers:
    """`then` where the condition holds."""
    if isinstance(condition, np.ndarray):
        return np.where(condition, then, otherwise)
    return then if condition else otherwise
