"""How many seconds of the job's own clock a second of a price is.

Costs of changes are measured in the job (`planner.online.standstill`), gains are differences of prices; where steps
take ten times what prices say, so do the steps that a change shortens. A window may say what its steps took. Over the
price of what was in force, under the load that came, that is a sample of the ratio; the median of the last ones is
used, so that no single window (the first, with its compiler; one that a neighbour disturbed) can set it. All of a price
is scaled alike: how much of a step experts take is for the price to know.
"""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

from planner.online.state import RunState
from planner.spec.window import Window

SAMPLES = 7
"""Windows whose median is used. A choice: three may be odd, and half of a lasting change is known after four."""

ENOUGH = 3
"""Windows from which on it is used: of three, one may be odd."""

MOST = 1000.0
"""A ratio beyond this, or below its inverse, says that model or cluster are not those of the job: no gain is scaled by
it. A choice: a small model on a CPU, priced as the GPUs that it was planned for, takes some hundreds."""


class Calibration(NamedTuple):
    """What gains are multiplied by, and what was measured."""

    ratio: float
    measured: float | None
    """None: not known yet."""


def calibration_of(state: RunState) -> Calibration:
    """Of the next decision of this run; ratio 1 until it is known, and where what was measured is absurd."""
    if len(state.step_ratios) < ENOUGH:
        return Calibration(1.0, None)
    measured = median(state.step_ratios)
    return Calibration(measured if 1.0 / MOST <= measured <= MOST else 1.0, measured)


def with_step_time(state: RunState, window: Window, priced_s: float | None) -> RunState:
    """The state with the step time of a window, whose steps were priced; None: it is not known what was in force."""
    if window.step_time_s is None or priced_s is None:
        return state
    ratios = (*state.step_ratios, window.step_time_s / priced_s)
    return state.model_copy(update={"step_ratios": ratios[-SAMPLES:]})
