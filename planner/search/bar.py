"""What a stage must allow a whole plan to beat. Sees numbers only."""

from __future__ import annotations

from operator import add
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.pipeline import Rhythm
from planner.search.rhythm import all_peaks, weighed

Floats = NDArray[np.float64]


class Bar(NamedTuple):
    """What a stage must allow the whole plan to beat: step time as in planner.cost.pipeline.step_s, strictly.

    What is not chosen yet enters with lower bounds.
    """

    best_s: float
    rhythm: Rhythm
    others_s: float
    """Filling of all other stages, at least."""
    total_s: float
    """Filling of all stages, at least."""
    slowest_s: Floats
    """[peaks] of the slowest stage, at least."""
    slowest_total_s: float
    """Sum of the peaks, each of its slowest stage, at least."""
    once_s: float
    """Longest work once per step, at least."""
    alone: bool
    """The stage is the whole pipeline."""

    @property
    def weights(self) -> tuple[float, ...]:
        """[beats]: what the beats of a stage that is the slowest count in a step."""
        return tuple(map(add, all_peaks(self.rhythm), self.rhythm.filling))

    def at_least_s(self, peaks_s: Floats, filling_s: Floats, once_s: Floats) -> Floats:
        """[rows] of any step with a stage of these peaks [rows, peaks], filling and work once per step [rows]."""
        slowest = np.maximum(np.maximum(peaks_s, self.slowest_s).sum(axis=1), self.slowest_total_s)
        filled = np.maximum(filling_s + self.others_s, self.total_s)
        bound: Floats = slowest + filled + np.maximum(once_s, self.once_s)
        return bound

    def weigh(self, beats_s: Floats, once_s: Floats) -> Floats:
        """[rows] of what a stage adds to a step in which it is the slowest: no more than `at_least_s` counts for it."""
        return weighed(self.weights, beats_s) + once_s
