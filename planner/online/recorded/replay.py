"""Recorded loads, replayed under several policies: ours, those of others, and yardsticks that know the whole trace.

`replay(trace, context)` is all that a command needs; `replay_context` makes the context for a trace that comes without
a plan. A policy sees a window only after it is over: what it decides holds from a stated part of the next window on.
What it moves costs it the pause that `planner.cost.migration` says, whatever the policy itself thinks of that.

| policy | rule |
|---|---|
| `trimtab` | `planner.online.policy.decide` |
| `static` | the placement that a run begins with, for ever |
| `smartmoe` | `rivals.smartmoe`, after every window; without replicas |
| `eplb` | `rivals.eplb`, after every window; replicas take equal parts, as it has them |
| `fastermoe` | `rivals.fastermoe`, for the window itself; as many shadow slots as it wants |
| `best-static` | the best fixed placement that was found knowing the whole trace; had for nothing |
| `hindsight` | module `hindsight`: the best sequence of placements that was found knowing the whole trace |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypedDict

import numpy as np

from planner.cost import estimate
from planner.cost.balance import imbalance_bound
from planner.online.pricing import Price, Pricing
from planner.online.recorded.accounts import Outcome, outcome
from planner.online.recorded.contestants import eplb, fastermoe, smartmoe, trimtab
from planner.online.recorded.course import DELAY, Course, Game, Heard, Progress, game_of
from planner.online.recorded.trace import Trace
from planner.online.recorded.yardsticks import best_static, hindsight, static
from planner.spec.errors import InputError
from planner.spec.run import RunContext

POLICIES: dict[str, Callable[[Game, Progress], Course]] = {
    "trimtab": trimtab,
    "static": static,
    "smartmoe": smartmoe,
    "eplb": eplb,
    "fastermoe": fastermoe,
    "best-static": best_static,
    "hindsight": hindsight,
}
"""In the order in which they are shown."""


class Replay(TypedDict):
    """Outcome by policy, and what no policy can beat."""

    policies: dict[str, Outcome]
    imbalance_bound_mean: float
    """No placements in these slots, made for each sample by itself, have a smaller mean imbalance."""


def replay(
    trace: Trace,
    context: RunContext,
    policies: Sequence[str] | None = None,
    samples_per_window: int = 1,
    price: Price = estimate,
    report: Callable[[float, str], None] = lambda progress, message: None,
    delay: float = DELAY,
    heard: Heard | None = None,
) -> Replay:
    """Outcomes of the policies (None: all of POLICIES) on a trace that is cut into windows of so many samples.

    `delay`: the part of a window that passes before what was decided about the last one is carried out. `heard` is told
    each window and decision of the policy `trimtab`, if that is among the policies. Raises
    InputError at `policy` for one that is not known, at `delay`, and if trace and context do not match.
    """
    chosen = tuple(POLICIES if policies is None else policies)
    for name in chosen:
        if name not in POLICIES:
            raise InputError.at("policy", f"must be of {', '.join(POLICIES)}, got {name!r}")
    game = game_of(trace, samples_per_window, Pricing(context, price), delay)
    if heard is not None:
        game = game._replace(heard=heard)
    outcomes: dict[str, Outcome] = {}
    for number, name in enumerate(chosen):
        told = _Told(report, name, number / len(chosen), 0.5 / len(chosen))
        course = POLICIES[name](game, told.first_half)
        outcomes[name] = outcome(course, game, told.second_half)
    _compare(outcomes)
    report(1.0, "done")
    return {"policies": outcomes, "imbalance_bound_mean": _bound(game)}


def _compare(outcomes: dict[str, Outcome]) -> None:
    """Fill in the ratios to the yardsticks that were replayed."""
    for found in outcomes.values():
        if "static" in outcomes:
            found["static_ratio"] = found["total_time_s"] / outcomes["static"]["total_time_s"]
        if "hindsight" in outcomes:
            found["hindsight_ratio"] = found["total_time_s"] / outcomes["hindsight"]["total_time_s"]


class _Told(NamedTuple):
    """Progress of one policy as part of the whole: first it decides, then what it did is priced."""

    report: Callable[[float, str], None]
    name: str
    begins: float
    half: float

    def first_half(self, part: float) -> None:
        self.report(self.begins + part * self.half, f"{self.name} decides")

    def second_half(self, part: float) -> None:
        self.report(self.begins + (1.0 + part) * self.half, f"pricing {self.name}")


def _bound(game: Game) -> float:
    placement = game.start().placement
    if placement is None:
        return 1.0
    ranks, each = placement.num_ranks, placement.slots_per_rank(0)
    return float(np.mean([imbalance_bound(sample, ranks, each) for sample in game.loads.served]))
