"""What could be done now: move experts within the plan, or go over to another plan; each with its price.

A candidate's gain is what `estimate` says of the step under the forecast, before less after. Its cost is the pause
that the move takes. Few candidates are priced: the best balance that was found, what remains of it when each move
must pay for itself (thrifty), and the other plans that could pay for a switch at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from planner.cost.balance import Floats, Indices, imbalance, rank_loads
from planner.cost.migration import PAUSE_S, expert_ranks, migration_s, switch_plan_s
from planner.cost.switch import RESTART_PAUSE_S
from planner.online.placement import Options, afresh, moves_between, options
from planner.online.state import placement_of, slots_per_rank
from planner.spec.cluster import Cluster
from planner.spec.decision import Action
from planner.spec.estimate import Estimate
from planner.spec.model import Model
from planner.spec.placement import Move, Placement
from planner.spec.plan import Plan
from planner.spec.run import RunContext
from planner.spec.training import Training
from planner.spec.workload import Workload

Price = Callable[[Model, Cluster, Training, Plan, Workload, Placement | None], Estimate]
"""`planner.cost.estimate`, or a double of it."""

STRICTNESS = 2.0
"""How many times over each move must pay for itself in the thrifty candidate: its gain is counted on the very load that
it was fitted to, so it is rather less. A choice, not a fit."""


@dataclass(frozen=True)
class Pricing:
    """Prices steps of one run."""

    context: RunContext
    price: Price

    def step_s(self, plan: Plan, loads: Floats, placement: Placement | None) -> float:
        """Seconds of a step under shares [layers, experts]."""
        workload = Workload(name="forecast", expert_shares=tuple(map(tuple, loads.tolist())))
        context = self.context
        return self.price(context.model, context.cluster, context.training, plan, workload, placement).step_time_s


def served(loads: Floats, training: Training) -> Floats:
    """Shares [layers, experts] capped at the capacity factor's multiple of an even share."""
    if training.capacity_factor is None:
        return loads
    return np.asarray(np.minimum(loads, training.capacity_factor / loads.shape[1]), dtype=np.float64)


@dataclass(frozen=True)
class Candidate:
    """Something that could be done now."""

    action: Action
    plan: Plan
    placement: Placement | None
    moves: tuple[Move, ...]
    """Within the plan; a switch of plan carries experts along with everything else."""
    gain_s: float
    """Seconds that a step gets shorter under the forecast; can be negative."""
    cost_s: float
    life_steps: float
    """Steps for which the gain is expected to last."""

    @property
    def net_s(self) -> float:
        """Gain over its life less the cost."""
        return self.gain_s * self.life_steps - self.cost_s


def rebalances(
    pricing: Pricing, plan: Plan, placement: Placement, loads: Floats, step_s: float, life_steps: float
) -> Iterator[Candidate]:
    """Placements of `plan` that are faster than the one in force (`step_s` a step), the most even first.

    `life_steps`: how long such a placement is expected to last until another takes its place.
    """
    current = np.array(placement.layers)
    choices = options(served(loads, pricing.context.training), placement.num_ranks, current)
    best = _moved(pricing, plan, placement, choices.choose(0.0), loads, step_s, life_steps)
    if best is None or best.gain_s <= 0:
        return
    yield best
    thrifty = choices.choose(STRICTNESS * _move_price(choices, best))
    if not np.array_equal(thrifty, choices.choose(0.0)):
        fewer = _moved(pricing, plan, placement, thrifty, loads, step_s, life_steps)
        if fewer is not None:
            yield fewer


def switches(
    pricing: Pricing,
    plan: Plan,
    loads: Floats,
    step_s: float,
    horizon_steps: float,
    balanced_step_s: dict[str, float],
) -> Iterator[Candidate]:
    """Other plans of the shortlist, each with its best placement; plans that cannot pay for the switch are left out.

    No load makes a plan faster than balanced load does, and no switch is quicker than its pause.
    """
    context = pricing.context
    placements: dict[int, Placement] = {}
    for other in context.plans:
        most = (step_s - balanced_step_s[other.id]) * horizon_steps
        if other.id == plan.id or most <= RESTART_PAUSE_S:
            continue
        cost = switch_plan_s(context.model, context.cluster, context.training, plan, other)
        ranks = expert_ranks(context.model, other)
        if most <= cost or ranks is None:
            continue
        if ranks not in placements:
            placements[ranks] = best_placement(served(loads, context.training), ranks, context.extra_slots_per_rank)
        gain = step_s - pricing.step_s(other, loads, placements[ranks])
        yield Candidate(Action.SWITCH_PLAN, other, placements[ranks], (), gain, cost, horizon_steps)


def best_placement(loads: Floats, num_ranks: int, extra_slots: int) -> Placement:
    """The most even placement found for shares [layers, experts], whatever was before."""
    experts = loads.shape[1]
    return placement_of(afresh(loads, num_ranks, slots_per_rank(experts, num_ranks, extra_slots)), num_ranks)


def placement_imbalance(loads: Floats, placement: Placement) -> float:
    """Imbalance of shares [layers, experts] under a placement."""
    return imbalance(rank_loads(loads, np.array(placement.layers), placement.num_ranks))


def _moved(
    pricing: Pricing,
    plan: Plan,
    placement: Placement,
    slots: Indices,
    loads: Floats,
    step_s: float,
    life_steps: float,
) -> Candidate | None:
    """The candidate that reaches these slots; None if nothing moves."""
    target = placement_of(slots, placement.num_ranks)
    if target == placement:
        return None
    moves = moves_between(np.array(placement.layers), slots, placement.num_ranks)
    context = pricing.context
    cost = migration_s(context.model, context.cluster, context.training, plan, moves)
    return Candidate(
        Action.REBALANCE, plan, target, moves, step_s - pricing.step_s(plan, loads, target), cost, life_steps
    )


def _move_price(choices: Options, best: Candidate) -> float:
    """What one move must take from a layer's hottest rank, in shares, to pay for itself over its life.

    The exchange rates are means over the best balance: seconds per share of load, seconds of transfer per move.
    """
    relieved = float((choices.hottest[0] - choices.hottest.min(axis=0)).sum())
    seconds_per_share = best.gain_s / relieved
    return (best.cost_s - PAUSE_S) / len(best.moves) / (seconds_per_share * best.life_steps)
