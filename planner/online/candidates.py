"""What could be done now: split tokens anew, move experts within the plan, or go over to another plan; with the price.

A candidate's gain is what `estimate` says of the step under the forecast, before less after. Its cost is the pause
that the move takes. What does not fit in memory under the forecast is no candidate while what is in force fits. Few
candidates are priced: another split of the tokens over the slots as they are, where the job can do that; the best
balance that was found; what remains of it when each move must pay for itself (thrifty); and the other plans that could
pay for a switch at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from planner.cost import Seats
from planner.cost.balance import Floats, Indices, imbalance, rank_loads
from planner.cost.migration import PAUSE_S, expert_ranks
from planner.cost.switch import RESTART_PAUSE_S
from planner.online.copies import Copies, copies_between
from planner.online.forecast import Forecast
from planner.online.placement import Options, afresh, options
from planner.online.pricing import Price, Pricing, StepPrice, placement_from, seats_of, served, whole_split
from planner.online.state import slots_per_rank
from planner.spec.decision import Action
from planner.spec.placement import Move, Placement, TokenSplit
from planner.spec.plan import Plan

__all__ = ["Candidate", "Price", "Pricing", "StepPrice", "placement_imbalance", "rebalances", "served", "switches"]

STRICTNESS = 4.0
"""How many times over each move must pay for itself in the thrifty candidate: its gain is counted on the very load that
it was fitted to, so it is rather less. A choice, not a fit."""


@dataclass(frozen=True)
class Candidate:
    """Something that could be done now."""

    action: Action
    plan: Plan
    seats: Seats | None
    copies: Copies | None
    """Within the plan; None: a switch of plan carries experts along with everything else."""
    gain_s: float
    """Seconds that a step gets shorter under the forecast; can be negative."""
    cost_s: float
    life_steps: float
    """Steps for which the gain is expected to last."""
    fits: bool = True
    """Whether it has the memory that the forecast asks for."""

    @cached_property
    def placement(self) -> Placement | None:
        """The placement to reach."""
        return None if self.seats is None else placement_from(self.seats)

    @property
    def num_moves(self) -> int:
        """Experts copied within the plan."""
        return 0 if self.copies is None else len(self.copies.layer)

    @cached_property
    def moves(self) -> tuple[Move, ...]:
        """The copies as values."""
        return () if self.copies is None else self.copies.moves()

    @property
    def net_s(self) -> float:
        """Gain over its life less the cost."""
        return self.gain_s * self.life_steps - self.cost_s


@dataclass(frozen=True)
class Outlook:
    """What all candidates within a plan are held against."""

    pricing: Pricing
    plan: Plan
    seats: Seats
    """In force."""
    forecast: Forecast
    now: StepPrice
    life_steps: float
    """For which a placement made now is expected to last until another takes its place."""
    pause_s: float = PAUSE_S
    """Of a move, besides its transfer."""

    @cached_property
    def loads(self) -> Floats:
        """[layers, experts]: what experts are expected to compute."""
        return served(self.forecast.array, self.pricing.context.training)

    def split(self, slots: Indices) -> Floats | None:
        """[layers, slots]: the split to be decided along with a placement; None where none is."""
        if self.pricing.context.token_split is not TokenSplit.WINDOW or slots.shape[1] == self.loads.shape[1]:
            return None
        return whole_split(self.loads, slots, self.seats.num_ranks)

    def candidate(self, slots: Indices) -> Candidate:
        """These slots instead of those in force."""
        seats = self.seats._replace(layers=slots, split=self.split(slots))
        copies = copies_between(self.seats.layers, slots, seats.num_ranks)
        then = self.pricing.step(self.plan, self.forecast.array, seats)
        cost_s = self.pricing.migration_s(self.plan, copies.copied, self.pause_s)
        gain_s = self.now.seconds - then.seconds
        return Candidate(Action.REBALANCE, self.plan, seats, copies, gain_s, cost_s, self.life_steps, then.fits)

    def allows(self, candidate: Candidate) -> bool:
        """One that does not fit is offered only where the one in force does not fit either and it is faster.

        With as many slots, and no layer's hottest rank hotter, it takes no more memory than what is running.
        """
        return candidate.fits or (not self.now.fits and candidate.gain_s > 0)


def rebalances(outlook: Outlook) -> Iterator[Candidate]:
    """More even placements than the one in force, and its slots with another split; their gain can be negative."""
    current = outlook.seats.layers
    if outlook.split(current) is not None:
        anew = outlook.candidate(current)
        if outlook.allows(anew):
            yield anew
    choices = options(outlook.loads, outlook.seats.num_ranks, current)
    most_even = choices.choose(0.0)
    if np.array_equal(most_even, current):
        return
    best = outlook.candidate(most_even)
    fewer = best
    if best.gain_s > 0 and best.num_moves:
        thrifty = choices.choose(STRICTNESS * _move_price(choices, best))
        if not np.array_equal(thrifty, current) and not np.array_equal(thrifty, most_even):
            fewer = outlook.candidate(thrifty)
    if outlook.allows(fewer):
        yield fewer
    if fewer is not best and not outlook.now.fits and outlook.allows(best):
        yield best


def switches(
    pricing: Pricing, plan: Plan, forecast: Forecast, now: StepPrice, balanced_step_s: dict[str, float]
) -> Iterator[Candidate]:
    """Other plans of the shortlist that fit, each with its best placement.

    Plans that cannot pay for the switch are left out, unless what is in force (`now`) does not fit. No switch is
    quicker than its pause; no load makes a plan faster than balanced load does, unless a capacity factor drops tokens.
    """
    context, horizon_steps = pricing.context, forecast.horizon_steps
    drops_tokens = context.training.capacity_factor is not None
    made: dict[int, Seats] = {}
    for other in context.plans:
        fastest_s = 0.0 if drops_tokens else balanced_step_s[other.id]
        most = (now.seconds - fastest_s) * horizon_steps
        if other.id == plan.id or (now.fits and most <= RESTART_PAUSE_S):
            continue
        cost = pricing.switch_s(plan, other)
        ranks = expert_ranks(context.model, other)
        if (now.fits and most <= cost) or ranks is None:
            continue
        if ranks not in made:
            made[ranks] = _best_seats(pricing, served(forecast.array, context.training), ranks)
        then = pricing.step(other, forecast.array, made[ranks])
        if then.fits:
            gain = now.seconds - then.seconds
            yield Candidate(Action.SWITCH_PLAN, other, made[ranks], None, gain, cost, horizon_steps)


def placement_imbalance(loads: Floats, placement: Placement) -> float:
    """Imbalance of shares [layers, experts] under a placement, split as it says."""
    seats = seats_of(placement)
    return imbalance(rank_loads(loads, seats.layers, seats.num_ranks, seats.split))


def _best_seats(pricing: Pricing, loads: Floats, num_ranks: int) -> Seats:
    """The most even placement found for shares [layers, experts], whatever was before."""
    context = pricing.context
    experts = loads.shape[1]
    slots = afresh(loads, num_ranks, slots_per_rank(experts, num_ranks, context.extra_slots_per_rank))
    splits = context.token_split is TokenSplit.WINDOW and slots.shape[1] > experts
    return Seats(slots, num_ranks, whole_split(loads, slots, num_ranks) if splits else None)


def _move_price(choices: Options, best: Candidate) -> float:
    """What one move must take from a layer's hottest rank, in shares, to pay for itself over its life.

    The exchange rates are means over the best balance: seconds per share of load, seconds of transfer per move.
    """
    relieved = float((choices.hottest[0] - choices.hottest.min(axis=0)).sum())
    seconds_per_share = best.gain_s / relieved
    return max(0.0, best.cost_s - PAUSE_S) / best.num_moves / (seconds_per_share * best.life_steps)
