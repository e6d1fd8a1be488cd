"""What a picture of a run is drawn from: marks of its decisions, loads of some of its windows, and predicted gains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.spec.decision import Action, Decision
from planner.spec.errors import InputError
from planner.spec.run import RunContext
from planner.spec.window import Window

Floats = NDArray[np.float64]


class Mark(NamedTuple):
    """A decision without its placement, which may be large."""

    window: int
    action: Action
    plan_id: str
    num_moves: int
    gain_s_per_step: float
    cost_s: float
    horizon_steps: float
    imbalance_before: float
    imbalance_after: float
    imbalance_bound: float

    @property
    def acts(self) -> bool:
        """Something changes."""
        return self.action is not Action.KEEP

    @property
    def only_splits(self) -> bool:
        """Experts stay where they are; their tokens are split anew over their slots."""
        return self.action is Action.REBALANCE and self.num_moves == 0


class Life(NamedTuple):
    """A run as far as it is drawn; marks and windows in order of their index."""

    name: str
    context: RunContext
    first_plan_id: str
    num_windows: int
    """That came in, drawn or not."""
    marks: tuple[Mark, ...]
    """Of the latest windows, without gaps other than those of the run."""
    windows: tuple[Window, ...]
    """Of the windows with marks some, evenly spread, among them the first and the last."""


class Ledger(NamedTuple):
    """Predicted seconds that the decisions of a run have gained and cost by each of some steps."""

    steps: Floats
    gained_s: Floats
    cost_s: Floats

    @property
    def net_s(self) -> Floats:
        """What is left of the gain."""
        return self.gained_s - self.cost_s


def mark_of(decision: Decision) -> Mark:
    """What the picture needs of a decision."""
    fields = {name: getattr(decision, name) for name in Mark._fields if name != "num_moves"}
    return Mark(num_moves=len(decision.moves), **fields)


def life_of(
    name: str,
    context: RunContext,
    first_plan_id: str,
    num_windows: int,
    marks: Sequence[Mark],
    windows: Sequence[Window],
) -> Life:
    """Raises InputError if windows and marks do not belong together, or not to the run."""
    plans = {plan.id for plan in context.plans}
    if not plans.issuperset([first_plan_id, *(mark.plan_id for mark in marks)]):
        raise InputError.at("decisions", "must be of the run's plans")
    numbers = {mark.window for mark in marks}
    sizes = [context.model.moe(layer).num_experts for layer in context.model.moe_layers]
    for window in windows:
        if window.index not in numbers:
            raise InputError.at("windows", f"must have a decision each, window {window.index} has none")
        if [len(row) for row in window.tokens] != sizes:
            raise InputError.at("windows", f"window {window.index} must count the experts of the model's MoE layers")
    if marks and not windows:
        raise InputError.at("windows", "must be given, at least the first and the last that have a decision")
    return Life(name, context, first_plan_id, num_windows, tuple(marks), tuple(windows))


def spread(numbers: Sequence[int], most: int) -> list[int]:
    """At most so many of the numbers, evenly spread, among them the first and the last."""
    if len(numbers) <= most:
        return list(numbers)
    places = np.linspace(0, len(numbers) - 1, most).round().astype(int)
    return [numbers[place] for place in places]


def end_steps(life: Life, indices: Sequence[int]) -> Floats:
    """Steps that were over when these windows ended; between the windows that are known, evenly."""
    known = [window.index for window in life.windows]
    ends = [window.first_step + window.num_steps for window in life.windows]
    return np.asarray(np.interp(indices, known, ends), dtype=np.float64)


def ledger(life: Life, steps: Floats) -> Ledger:
    """What the decisions that act were predicted to gain and cost by these steps.

    Each gains so much in a step, from the end of its window on, for as long as its forecast was expected to hold.
    What is turned down, and what a gain may be beyond that horizon, is not counted.
    """
    acting = [mark for mark in life.marks if mark.acts]
    if not acting:
        return Ledger(steps, np.zeros(len(steps)), np.zeros(len(steps)))
    begun = end_steps(life, [mark.window for mark in acting])
    gains, horizons, costs = (
        np.array([getattr(mark, name) for mark in acting]) for name in ("gain_s_per_step", "horizon_steps", "cost_s")
    )
    passed = steps[:, None] - begun
    lasted = np.clip(passed, 0.0, horizons)
    return Ledger(steps, lasted @ gains, (passed >= 0) @ costs)


def load_ratios(window: Window, layer: int) -> Floats:
    """[experts]: tokens of each expert of a layer over their mean."""
    tokens = np.asarray(window.tokens[layer], dtype=np.float64)
    return np.asarray(tokens / tokens.mean())
