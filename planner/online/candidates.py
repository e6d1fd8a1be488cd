"""What could be done now: move experts within the plan, or go over to another plan; each with its price.

A candidate's gain is what `estimate` says of the step under the forecast, before less after. Its cost is the pause
that the move takes. What does not fit in memory under the forecast is no candidate while what is in force fits. Few
candidates are priced: the best balance that was found, what remains of it when each move must pay for itself
(thrifty), and the other plans that could pay for a switch at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from planner.cost.balance import Floats, Indices, imbalance, rank_loads
from planner.cost.migration import PAUSE_S, expert_ranks, migration_s, switch_plan_s
from planner.cost.switch import RESTART_PAUSE_S
from planner.online.placement import Options, afresh, moves_between, options
from planner.online.state import placement_of, slots_per_rank
from planner.spec.decision import Action
from planner.spec.estimate import Estimate
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Model
from planner.spec.placement import Move, Placement
from planner.spec.plan import Plan
from planner.spec.run import RunContext
from planner.spec.training import Training
from planner.spec.workload import Workload

Price = Callable[[Model, AnyCluster, Training, Plan, Workload, Placement | None], Estimate]
"""`planner.cost.estimate`, or a double of it."""

STRICTNESS = 2.0
"""How many times over each move must pay for itself in the thrifty candidate: its gain is counted on the very load that
it was fitted to, so it is rather less. A choice, not a fit."""


class StepPrice(NamedTuple):
    """What a step is predicted to take."""

    seconds: float
    fits: bool
    """Whether every stage has the memory for it."""


@dataclass(frozen=True)
class Pricing:
    """Prices steps of one run."""

    context: RunContext
    price: Price

    def step(self, plan: Plan, loads: Floats, placement: Placement | None) -> StepPrice:
        """Price of a step under shares [layers, experts]."""
        workload = Workload(name="forecast", expert_shares=tuple(map(tuple, loads.tolist())))
        context = self.context
        found = self.price(context.model, context.cluster, context.training, plan, workload, placement)
        return StepPrice(found.step_time_s, found.fits)


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
    fits: bool = True
    """Whether it has the memory that the forecast asks for."""

    @property
    def net_s(self) -> float:
        """Gain over its life less the cost."""
        return self.gain_s * self.life_steps - self.cost_s


def rebalances(
    pricing: Pricing, plan: Plan, placement: Placement, loads: Floats, now: StepPrice, life_steps: float
) -> Iterator[Candidate]:
    """More even placements of `plan` than the one in force (`now`), the most even first; their gain can be negative.

    `life_steps`: how long such a placement is expected to last until another takes its place. One that does not fit is
    offered only where the one in force does not fit either and it is faster: with as many slots, and no layer's hottest
    rank hotter, it takes no more memory than what is running.
    """
    current = np.array(placement.layers)
    choices = options(served(loads, pricing.context.training), placement.num_ranks, current)
    best = _moved(pricing, plan, placement, choices.choose(0.0), loads, now, life_steps)
    if best is None:
        return
    if _allowed(best, now):
        yield best
    if best.gain_s <= 0:
        return
    thrifty = choices.choose(STRICTNESS * _move_price(choices, best))
    if not np.array_equal(thrifty, choices.choose(0.0)):
        fewer = _moved(pricing, plan, placement, thrifty, loads, now, life_steps)
        if fewer is not None and _allowed(fewer, now):
            yield fewer


def switches(
    pricing: Pricing,
    plan: Plan,
    loads: Floats,
    now: StepPrice,
    horizon_steps: float,
    balanced_step_s: dict[str, float],
) -> Iterator[Candidate]:
    """Other plans of the shortlist that fit, each with its best placement.

    Plans that cannot pay for the switch are left out, unless what is in force (`now`) does not fit. No switch is
    quicker than its pause; no load makes a plan faster than balanced load does, unless a capacity factor drops tokens.
    """
    context = pricing.context
    drops_tokens = context.training.capacity_factor is not None
    placements: dict[int, Placement] = {}
    for other in context.plans:
        fastest_s = 0.0 if drops_tokens else balanced_step_s[other.id]
        most = (now.seconds - fastest_s) * horizon_steps
        if other.id == plan.id or (now.fits and most <= RESTART_PAUSE_S):
            continue
        cost = switch_plan_s(context.model, context.cluster, context.training, plan, other)
        ranks = expert_ranks(context.model, other)
        if (now.fits and most <= cost) or ranks is None:
            continue
        if ranks not in placements:
            placements[ranks] = best_placement(served(loads, context.training), ranks, context.extra_slots_per_rank)
        then = pricing.step(other, loads, placements[ranks])
        if then.fits:
            gain = now.seconds - then.seconds
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
    now: StepPrice,
    life_steps: float,
) -> Candidate | None:
    """The candidate that reaches these slots; None if nothing moves."""
    target = placement_of(slots, placement.num_ranks)
    if target == placement:
        return None
    moves = moves_between(np.array(placement.layers), slots, placement.num_ranks)
    context = pricing.context
    cost = migration_s(context.model, context.cluster, context.training, plan, moves)
    then = pricing.step(plan, loads, target)
    gain = now.seconds - then.seconds
    return Candidate(Action.REBALANCE, plan, target, moves, gain, cost, life_steps, then.fits)


def _allowed(moved: Candidate, now: StepPrice) -> bool:
    return moved.fits or (not now.fits and moved.gain_s > 0)


def _move_price(choices: Options, best: Candidate) -> float:
    """What one move must take from a layer's hottest rank, in shares, to pay for itself over its life.

    The exchange rates are means over the best balance: seconds per share of load, seconds of transfer per move.
    """
    relieved = float((choices.hottest[0] - choices.hottest.min(axis=0)).sum())
    seconds_per_share = best.gain_s / relieved
    return (best.cost_s - PAUSE_S) / len(best.moves) / (seconds_per_share * best.life_steps)
