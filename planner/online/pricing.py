"""Seconds of a step of one run under loads and placements, and of going from one to another.

A `Pricing` remembers what it worked out of plans and pairs of plans: keep one for all windows of a run where time
counts. It depends on the run's context alone, so whoever makes a new one finds the same prices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from planner.cost import Seats, StepPrices, estimate
from planner.cost.balance import Floats, Indices, rank_loads
from planner.cost.migration import PAUSE_S, Copied, copies_s
from planner.cost.switch import Known, switch_plan_s
from planner.online.placement.shadows import first_slots
from planner.online.placement.split import best_split
from planner.spec.estimate import Estimate
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Model
from planner.spec.placement import Placement, TokenSplit
from planner.spec.plan import Plan
from planner.spec.run import RunContext
from planner.spec.training import Training
from planner.spec.workload import BALANCED, Workload

Price = Callable[[Model, AnyCluster, Training, Plan, Workload, Placement | None], Estimate]
"""`planner.cost.estimate`, or a double of it."""


Condition = tuple[Floats, Placement | Seats | None]
"""Shares [layers, experts] under a placement; None: experts in order."""


class StepPrice(NamedTuple):
    """What a step is predicted to take."""

    seconds: float
    fits: bool
    """Whether every stage has the memory for it."""


class Rates(NamedTuple):
    """What a plan's step takes when experts are balanced, and what moves take when all ranks share them."""

    balanced_s: float
    balanced_hottest: float
    """Load of the hottest rank then, in shares, summed over layers."""
    transfer_s: float
    """Of one move among many, without the pause."""
    shadow_s: float
    """What one filled shadow slot adds to every step, among many."""


@dataclass(frozen=True)
class Pricing:
    """Prices steps and changes of one run."""

    context: RunContext
    price: Price = estimate
    _prices: dict[str, StepPrices] = field(default_factory=dict, compare=False, repr=False)
    _rates: dict[tuple[str, int, int], Rates] = field(default_factory=dict, compare=False, repr=False)
    _switches: dict[tuple[str, str], float] = field(default_factory=dict, compare=False, repr=False)
    _known: Known = field(default_factory=dict, compare=False, repr=False)

    def step(self, plan: Plan, loads: Floats, placement: Placement | Seats | None) -> StepPrice:
        """Price of a step under shares [layers, experts], see `steps`."""
        return self.steps(plan, [(loads, placement)])[0]

    def steps(self, plan: Plan, conditions: Sequence[Condition]) -> list[StepPrice]:
        """Price of a step under each load and placement.

        Where the job splits tokens anew in every step, placements without a split have the best one for the load.
        """
        split = [(loads, self.as_split(loads, placement)) for loads, placement in conditions]
        if self.price is not estimate:
            return [self._one(plan, loads, seats) for loads, seats in split]
        seconds, fits = self.prices(plan).under(split)
        return [StepPrice(*each) for each in zip(seconds.tolist(), fits.tolist(), strict=True)]

    def prices(self, plan: Plan) -> StepPrices:
        """The plan as `estimate` prices it, for many loads."""
        if plan.id not in self._prices:
            context = self.context
            self._prices[plan.id] = StepPrices(context.model, context.cluster, context.training, plan)
        return self._prices[plan.id]

    def as_split(self, loads: Floats, placement: Placement | Seats | None) -> Seats | None:
        """The placement with the split that a step under these loads has."""
        seats = seats_of(placement) if isinstance(placement, Placement) else placement
        if seats is None or seats.split is not None or self.context.token_split is not TokenSplit.STEP:
            return seats
        if seats.layers.shape[1] == loads.shape[1]:
            return seats
        served_loads = served(loads, self.context.training)
        return seats._replace(split=whole_split(served_loads, seats.layers, seats.num_ranks))

    def rank_loads(self, loads: Floats, placement: Placement | Seats) -> Floats:
        """[layers, ranks]: what the ranks carry of served loads [layers, experts]."""
        seats = self.as_split(loads, placement)
        assert seats is not None
        return rank_loads(loads, seats.layers, seats.num_ranks, seats.split)

    def balanced_s(self, plan: Plan) -> float:
        """Seconds of a step under balanced load, experts in order."""
        context = self.context
        return self.price(context.model, context.cluster, context.training, plan, BALANCED, None).step_time_s

    def migration_s(self, plan: Plan, copied: Copied, pause_s: float = PAUSE_S) -> float:
        """Seconds of pause for moves of experts under the plan; 0 for none."""
        context = self.context
        return copies_s(context.model, context.cluster, context.training, plan, copied, pause_s)

    def rates(self, plan: Plan, seats: Seats) -> Rates:
        """What balance and moves are worth, for placements of as many slots."""
        key = (plan.id, seats.layers.shape[1], seats.shadow_slots_per_rank)
        if key not in self._rates:
            self._rates[key] = self._new_rates(plan, seats)
        return self._rates[key]

    def _new_rates(self, plan: Plan, seats: Seats) -> Rates:
        layers, total = seats.layers.shape
        experts = int(seats.layers.max()) + 1
        loads = np.full((layers, experts), 1.0 / experts)
        shadows = seats.shadow_slots_per_rank
        row = first_slots(experts, seats.num_ranks, total // seats.num_ranks - shadows, shadows)
        even = seats._replace(layers=np.tile(row, (layers, 1)))
        even = even._replace(split=whole_split(loads, even.layers, even.num_ranks))
        ranks = np.arange(seats.num_ranks)
        layer, source = np.repeat(np.arange(layers), len(ranks)), np.tile(ranks, layers)
        transfer_s = self.migration_s(plan, Copied(layer, source, (source + 1) % len(ranks)), 0.0)
        hottest = float(self.rank_loads(loads, even).max(axis=1).sum())
        balanced_s = self.step(plan, loads, even).seconds
        shadow_s = (self._all_filled_s(plan, loads, even) - balanced_s) / max(1, shadows * len(layer))
        return Rates(balanced_s, hottest, transfer_s / len(layer), max(0.0, shadow_s))

    def _all_filled_s(self, plan: Plan, loads: Floats, idle: Seats) -> float:
        """Seconds of a balanced step whose shadow slots hold what the lasting slots of the next ranks hold."""
        shadows = idle.shadow_slots_per_rank
        by_rank = idle.layers.reshape(len(idle.layers), idle.num_ranks, -1).copy()
        if shadows:
            by_rank[:, :, -shadows:] = np.roll(by_rank[:, :, -shadows:], -1, axis=1)
        filled = idle._replace(layers=by_rank.reshape(idle.layers.shape))
        split = whole_split(loads, filled.layers, filled.num_ranks)
        return self.step(plan, loads, filled._replace(split=split)).seconds

    def switch_s(self, plan: Plan, other: Plan) -> float:
        """Seconds to go over to another plan."""
        key = (plan.id, other.id)
        if key not in self._switches:
            context = self.context
            self._switches[key] = switch_plan_s(
                context.model, context.cluster, context.training, plan, other, known=self._known
            )
        return self._switches[key]

    def _one(self, plan: Plan, loads: Floats, seats: Seats | None) -> StepPrice:
        workload = Workload(name="forecast", expert_shares=tuple(map(tuple, loads.tolist())))
        placement = None if seats is None else placement_from(seats)
        context = self.context
        found = self.price(context.model, context.cluster, context.training, plan, workload, placement)
        return StepPrice(found.step_time_s, found.fits)


def seats_of(placement: Placement) -> Seats:
    """A placement as arrays."""
    split = None if placement.split is None else np.array(placement.split, dtype=np.float64)
    layers = np.array(placement.layers, dtype=np.intp)
    return Seats(layers, placement.num_ranks, split, placement.shadow_slots_per_rank)


def placement_from(seats: Seats) -> Placement:
    """The value for arrays."""
    return Placement(
        layers=tuple(map(tuple, seats.layers.tolist())),
        num_ranks=seats.num_ranks,
        shadow_slots_per_rank=seats.shadow_slots_per_rank,
        split=None if seats.split is None else tuple(map(tuple, seats.split.tolist())),
    )


def served(loads: Floats, training: Training) -> Floats:
    """Shares [layers, experts] capped at the capacity factor's multiple of an even share."""
    if training.capacity_factor is None:
        return loads
    return np.asarray(np.minimum(loads, training.capacity_factor / loads.shape[-1]), dtype=np.float64)


def whole_split(loads: Floats, slots: Indices, num_ranks: int) -> Floats:
    """[layers, slots]: `best_split`, whose parts of each expert sum to 1 however few tokens it has."""
    split = best_split(loads, slots, num_ranks)
    number = np.arange(len(loads))[:, None] * loads.shape[1] + slots
    sums, copies = (
        np.bincount(number.ravel(), weights=weights, minlength=loads.size)[number]
        for weights in (split.ravel(), np.ones(split.size))
    )
    return np.where(sums > 0.0, split / np.where(sums > 0.0, sums, 1.0), 1.0 / copies)


def unevenness(carried: Floats) -> Floats:
    """[layers]: max over mean of loads [layers, ranks]."""
    return np.asarray(np.maximum(carried.max(axis=-1) / carried.mean(axis=-1), 1.0), dtype=np.float64)
