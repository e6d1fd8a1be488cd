"""The weights of planner.cost.pipeline.Rhythm on arrays of beats; sums in a fixed order, so the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from planner.cost.pipeline import Rhythm

Floats = NDArray[np.float64]


def peaks(rhythm: Rhythm, beats_s: Floats) -> Floats:
    """[..., peaks] of beats [..., beats]: what a stage adds to a step if it is the slowest."""
    return np.stack([weighed(weights, beats_s) for weights in rhythm.peaks], axis=-1)


def filling(rhythm: Rhythm, beats_s: Floats) -> Floats:
    """[...] of beats [..., beats]: what every stage adds."""
    return weighed(rhythm.filling, beats_s)


def all_peaks(rhythm: Rhythm) -> tuple[float, ...]:
    """[beats]: weights under which the beats of a stage are the sum of its peaks."""
    return tuple(sum(column) for column in zip(*rhythm.peaks, strict=True))


def weighed(weights: Sequence[float], beats_s: Floats) -> Floats:
    """[...] of beats [..., beats]."""
    total: Floats = weights[0] * beats_s[..., 0]
    for number, weight in enumerate(weights[1:], start=1):
        total = total + weight * beats_s[..., number]
    return total
