"""What memory is worth in time, and ranges of workspace: the pieces of the bounds with memory. Sees numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
_WORTH = 1e4
"""Times the longest strategy that all the memory of the largest may be worth."""
_LEVELS = 8
"""How many ranges of workspace the bounds tell apart."""


def exchange_rates(options: Sequence[tuple[Floats, NDArray[Any]]]) -> list[float]:
    """Seconds per byte at which the fastest strategies of (seconds, bytes) give way to smaller ones, ascending; and 0.

    The slopes of the lower convex hull of (bytes, seconds), but for those at which all the memory would be worth so
    much time that differences drown in its rounding.
    """
    rates = {0.0}
    for seconds, memory in options:
        order = np.lexsort((seconds, memory))
        quicker = seconds[order] < np.minimum.accumulate(np.concatenate([[np.inf], seconds[order]]))[:-1]
        hull: list[tuple[float, float]] = []
        for byte, second in zip(memory[order][quicker].tolist(), seconds[order][quicker].tolist(), strict=True):
            while len(hull) >= 2 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], (byte, second)):
                hull.pop()
            hull.append((float(byte), second))
        rates |= {-_slope(a, b) for a, b in pairwise(hull) if b[0] > a[0]}
    longest = max((float(seconds.max(initial=0.0)) for seconds, _ in options), default=0.0)
    largest = max((float(memory.max(initial=0)) for _, memory in options), default=0.0)
    return sorted(rate for rate in rates if rate * largest <= _WORTH * longest)


class Level(NamedTuple):
    """Workspaces of a stage that bounds treat as one."""

    least: int
    """The smallest, which such a stage needs in any case."""
    most: int
    """The largest: strategies that need more are not on such a stage."""


def workspace_levels(values: Integers) -> list[Level]:
    """Workspaces, ascending, in a few ranges; the largest workspace of a stage is in one of them."""
    if not len(values):
        return []
    places = np.unique(np.linspace(0, len(values), _LEVELS + 1).astype(np.int64)[1:])
    places = places[places > 0]
    first = np.concatenate([[0], places[:-1]])
    return [Level(int(values[low]), int(values[high - 1])) for low, high in zip(first, places, strict=True)]


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0]) if b[0] > a[0] else -np.inf
