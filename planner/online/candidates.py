"""What could be done now: split tokens anew, move experts within the plan, or go over to another plan; with the price.

A candidate's gain is what `estimate` says of the step under the forecast, before less after. Its cost is the pause
that the move takes. What does not fit in memory under the forecast is no candidate while what is in force fits. Few
candidates are priced: another split of the tokens over the slots as they are, where the job can do that; the best
balance that was found; what remains of it when each move must pay for itself (thrifty); and the other plans that could
pay for a switch at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import NamedTuple

import numpy as np

from planner.cost import Seats
from planner.cost.balance import Floats, Indices
from planner.cost.migration import expert_ranks
from planner.cost.switch import RESTART_PAUSE_S
from planner.online.forecast import Forecast
from planner.online.placement.copies import Copies, copies_between
from planner.online.placement.hedge import broader
from planner.online.placement.options import afresh, options
from planner.online.placement.shadows import changed_shadows, lasting_slots, with_idle_shadows
from planner.online.pricing import Price, Pricing, StepPrice, placement_from, served, whole_split
from planner.online.shadowing import idle_seats, shadowed
from planner.online.standstill import Standstill
from planner.online.state import Stood, plan_of, slots_per_rank
from planner.spec.decision import Action
from planner.spec.placement import Move, Placement, TokenSplit
from planner.spec.plan import Plan

__all__ = [
    "Candidate",
    "Price",
    "Pricing",
    "StepPrice",
    "rebalances",
    "served",
    "switches",
]

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
    missed_s: float
    """Seconds that a step would have been shorter under the load of the last window; can be negative."""
    seen_s: float
    """What a step would have taken under the load of the last window."""
    cost_s: float
    life_steps: float
    """Steps for which the gain is expected to last."""
    fits: bool = True
    """Whether it has the memory that the forecast asks for."""
    refilled: int = 0
    """Shadow slots whose content changes."""
    standstill: Standstill | None = None
    """The part of the cost that is no transfer; None for another plan."""

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
    def transfer_s(self) -> float | None:
        """What the copied experts take on their way; None for another plan."""
        return None if self.standstill is None else max(0.0, self.cost_s - self.standstill.seconds)

    @property
    def net_s(self) -> float:
        """Gain over its life less the cost."""
        return self.gain_s * self.life_steps - self.cost_s


class Standing(NamedTuple):
    """What a step takes under the load that is expected, and under that of the last window."""

    expected: StepPrice
    seen_s: float


@dataclass(frozen=True)
class Outlook:
    """What all candidates are held against."""

    pricing: Pricing
    plan: Plan
    """In force."""
    seats: Seats | None
    """In force; None where there is no placement."""
    forecast: Forecast
    seen: Floats
    """[layers, experts]: shares of the last window."""
    ratio: float = 1.0
    """Seconds of the job for a second of a price: what gains and losses are told in."""

    @cached_property
    def now(self) -> Standing:
        """What is in force."""
        return self.standing(self.plan, self.seats)

    @cached_property
    def loads(self) -> Floats:
        """[layers, experts]: what experts are expected to compute."""
        return served(self.forecast.array, self.pricing.context.training)

    @property
    def recent(self) -> list[Floats]:
        """[layers, experts] each: the load of the window before the last, and what is expected."""
        before = (served(seen.array, self.pricing.context.training) for seen in self.forecast.recent[1:])
        return [*before, self.loads]

    def standing(self, plan: Plan, seats: Seats | None) -> Standing:
        """What would be, under another plan or placement."""
        expected, seen = self.pricing.steps(plan, [(self.forecast.array, seats), (self.seen, seats)])
        return Standing(expected, seen.seconds)

    def seen_s(self, stood: Stood) -> float:
        """What a step takes with what stood earlier, under the load of the last window."""
        plan = plan_of(self.pricing.context, stood.plan_id, "plan_id")
        return self.ratio * self.pricing.step(plan, self.seen, stood.placement).seconds

    def split(self, slots: Indices, num_ranks: int) -> Floats | None:
        """[layers, slots]: the split to be decided along with a placement; None where none is."""
        if self.pricing.context.token_split is not TokenSplit.WINDOW or slots.shape[1] == self.loads.shape[1]:
            return None
        return whole_split(self.loads, slots, num_ranks)

    def allows(self, candidate: Candidate) -> bool:
        """One that does not fit is offered only where the one in force does not fit either and it is faster.

        With as many slots, and no layer's hottest rank hotter, it takes no more memory than what is running.
        """
        return candidate.fits or (not self.now.expected.fits and candidate.gain_s > 0)


class Terms(NamedTuple):
    """What a kind of change is weighed with."""

    life_steps: float
    """For which what is made now is expected to last until another takes its place."""
    standstill: Standstill
    """Besides the transfer."""


def rebalances(outlook: Outlook, seats: Seats, moves: Terms, splits: Terms) -> Iterator[Candidate]:
    """More even placements than `seats`, which is in force, and its slots with another split; gains can be negative.

    `splits`: the terms of what copies no expert, another split or other shadow experts.
    """

    def candidate(slots: Indices) -> Candidate:
        after = seats._replace(layers=slots, split=outlook.split(slots, seats.num_ranks))
        copies = copies_between(seats.layers, slots, seats.num_ranks, seats.shadow_slots_per_rank)
        transfer_s = outlook.pricing.migration_s(outlook.plan, copies.copied, 0.0)
        terms = moves if transfer_s > 0.0 else splits
        cost_s = transfer_s + terms.standstill.seconds
        found = _instead(outlook, Action.REBALANCE, outlook.plan, after, copies, cost_s, terms.life_steps)
        return replace(found, refilled=changed_shadows(slots, seats), standstill=terms.standstill)

    propose = _with_shadows if seats.shadow_slots_per_rank else _without_shadows
    yield from filter(outlook.allows, map(candidate, propose(outlook, seats, moves.life_steps)))


def _without_shadows(outlook: Outlook, seats: Seats, life_steps: float) -> Iterator[Indices]:
    """Slots to go over to: as they are, split anew; the thrifty ones; the most even ones, where no move is thrifty.

    Where tokens are split in every step, the thrifty ones are broad while loads jump.
    """
    if outlook.split(seats.layers, seats.num_ranks) is not None:
        yield seats.layers
    of_job = outlook.pricing.context.token_split
    choices = options(outlook.loads, seats.num_ranks, seats.layers, of_job)
    price = _move_price(outlook, seats, life_steps)
    if of_job is TokenSplit.STEP:
        thrifty = broader(outlook.recent, choices, seats.num_ranks, seats.layers, price)
    else:
        thrifty = choices.choose(price)
    moves = not np.array_equal(thrifty, seats.layers)
    if moves:
        yield thrifty
    if not moves or not outlook.now.expected.fits:
        most_even = choices.choose(0.0)
        if not np.array_equal(most_even, thrifty):
            yield most_even


def _move_price(outlook: Outlook, seats: Seats, life_steps: float) -> float:
    """What a thrifty move must take from a layer's hottest rank, in shares, on the way from `seats` to balance."""
    saved_s = _seconds_per_share(outlook, seats) * life_steps
    return STRICTNESS * outlook.pricing.rates(outlook.plan, seats).transfer_s / saved_s if saved_s > 0.0 else 0.0


def _with_shadows(outlook: Outlook, seats: Seats, life_steps: float) -> Iterator[Indices]:
    """Slots to go over to: other shadow experts, which is cheap; a more even placement, its shadow experts chosen anew.

    What lasts gains less where shadows help already, but for longer than they are wanted: `net_s` weighs the two.
    """
    pricing, plan, ranks = outlook.pricing, outlook.plan, seats.num_ranks
    shares, shadows = outlook.forecast.array, seats.shadow_slots_per_rank
    if outlook.split(seats.layers, ranks) is not None:
        yield seats.layers
    for other in shadowed(pricing, plan, shares, seats, (STRICTNESS, inf)):
        if not np.array_equal(other.layers, seats.layers):
            yield other.layers
    lasting = lasting_slots(seats.layers, ranks, shadows)
    choices = options(outlook.loads, ranks, lasting, pricing.context.token_split)
    thrifty = choices.choose(_move_price(outlook, idle_seats(seats, outlook.loads), life_steps))
    target = choices.choose(0.0) if np.array_equal(thrifty, lasting) else thrifty
    if np.array_equal(target, lasting):
        return
    moved = seats._replace(layers=with_idle_shadows(target, outlook.loads, ranks, shadows), split=None)
    yield from (other.layers for other in shadowed(pricing, plan, shares, moved, (STRICTNESS, inf)))


def switches(outlook: Outlook, balanced_step_s: dict[str, float]) -> Iterator[Candidate]:
    """Other plans of the shortlist that fit, each with its best placement.

    Plans that cannot pay for the switch are left out, unless what is in force does not fit. No switch is quicker than
    its pause; no load makes a plan faster than balanced load does, unless a capacity factor drops tokens.
    """
    pricing, now = outlook.pricing, outlook.now.expected
    context, horizon_steps = pricing.context, outlook.forecast.horizon_steps
    drops_tokens = context.training.capacity_factor is not None
    made: dict[int, Seats] = {}
    for other in context.plans:
        fastest_s = 0.0 if drops_tokens else balanced_step_s[other.id]
        most = outlook.ratio * (now.seconds - fastest_s) * horizon_steps
        if other.id == outlook.plan.id or (now.fits and most <= RESTART_PAUSE_S):
            continue
        cost_s = pricing.switch_s(outlook.plan, other)
        ranks = expert_ranks(context.model, other)
        if (now.fits and most <= cost_s) or ranks is None:
            continue
        if ranks not in made:
            made[ranks] = _best_seats(outlook, other, ranks)
        found = _instead(outlook, Action.SWITCH_PLAN, other, made[ranks], None, cost_s, horizon_steps)
        if found.fits:
            yield found


def _instead(
    outlook: Outlook,
    action: Action,
    plan: Plan,
    seats: Seats,
    copies: Copies | None,
    cost_s: float,
    life_steps: float,
) -> Candidate:
    then, now = outlook.standing(plan, seats), outlook.now
    return Candidate(
        action=action,
        plan=plan,
        seats=seats,
        copies=copies,
        gain_s=outlook.ratio * (now.expected.seconds - then.expected.seconds),
        missed_s=outlook.ratio * (now.seen_s - then.seen_s),
        seen_s=outlook.ratio * then.seen_s,
        cost_s=cost_s,
        life_steps=life_steps,
        fits=then.expected.fits,
    )


def _best_seats(outlook: Outlook, plan: Plan, num_ranks: int) -> Seats:
    """The most even placement found for the forecast, whatever was before."""
    context, experts = outlook.pricing.context, outlook.loads.shape[1]
    each = slots_per_rank(experts, num_ranks, context.extra_slots_per_rank)
    slots = afresh(outlook.loads, num_ranks, each, context.token_split)
    if shadows := context.shadow_slots_per_rank:
        idle = Seats(with_idle_shadows(slots, outlook.loads, num_ranks, shadows), num_ranks, None, shadows)
        (filled,) = shadowed(outlook.pricing, plan, outlook.forecast.array, idle, (STRICTNESS,))
        return filled._replace(split=outlook.split(filled.layers, num_ranks))
    return Seats(slots, num_ranks, outlook.split(slots, num_ranks))


def _seconds_per_share(outlook: Outlook, seats: Seats) -> float:
    """What load on the hottest rank of a layer costs, on the way from balance to what is in force; 0 if nothing."""
    rates = outlook.pricing.rates(outlook.plan, seats)
    hottest = float(outlook.pricing.rank_loads(outlook.loads, seats).max(axis=1).sum())
    is_now = seats is outlook.seats
    taken = outlook.now.expected if is_now else outlook.pricing.step(outlook.plan, outlook.forecast.array, seats)
    to_gain_s, to_relieve = outlook.ratio * (taken.seconds - rates.balanced_s), hottest - rates.balanced_hottest
    return max(0.0, to_gain_s / to_relieve) if to_relieve > 0.0 else 0.0
