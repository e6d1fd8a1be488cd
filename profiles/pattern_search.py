"""Finds the positive constants of a formula that is a black box: no gradient, no smoothness."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf

Constants = Mapping[str, float]
_FIRST_STEP = 2.0
_LAST_STEP = 1.001


def fitted(
    start: Constants, loss: Callable[[Constants], float], most: Constants | None = None, least: Constants | None = None
) -> dict[str, float]:
    """The constants near `start` (all above 0) of least `loss`, within `least` and `most`: the same on every machine.

    Each constant in turn is multiplied and divided by a step while that helps; when nothing helps, the step shrinks
    to its square root. Source: Hooke and Jeeves 1961, "Direct search" (in logarithms, without pattern moves).
    """
    highest, lowest = most or {}, least or {}
    best, found = dict(start), loss(start)
    step = _FIRST_STEP
    while step > _LAST_STEP:
        helped = False
        for name in start:
            for factor in (step, 1.0 / step):
                moved = min(highest.get(name, inf), max(lowest.get(name, 0.0), best[name] * factor))
                while (lower := loss(trial := {**best, name: moved})) < found:
                    best, found, helped = trial, lower, True
                    moved = min(highest.get(name, inf), max(lowest.get(name, 0.0), best[name] * factor))
        if not helped:
            step **= 0.5
    return best
