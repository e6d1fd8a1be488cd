"""The best sequence of placements for a trace that is known from beginning to end: what a policy is measured against.

It is the best of a stated set, not of all sequences: in each window one of the candidates is in force, the run begins
with its first placement, and going from one to another takes the pause that `planner.cost.migration` says. The
candidates are the first placement, the most even ones found for the mean load of stretches of the trace, and whatever
the caller adds (the placements that a policy was seen to use, so that it cannot beat the sequence but by its plans).
Stretches are halves of halves of the trace, all of a level with as much drift. Where tokens can be split anew, every
window has the split that is best for its own load, for nothing; and shadow slots, in which nothing is moved either,
hold what is worth it in the window.

Within the set the sequence is the best: dynamic programming over windows and pairs of candidates. Moves are priced only
where that matters. A pair is first taken to cost the pause alone, less than any move does; the best sequence then tells
which pairs need their true price. Once it needs none, it is the best under true prices too, because no other sequence
was priced too high.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import NamedTuple

import numpy as np

from planner.cost import Seats
from planner.cost.balance import Floats, Indices
from planner.cost.migration import PAUSE_S
from planner.online.candidates import STRICTNESS
from planner.online.placement.assign import align_slots
from planner.online.placement.copies import copies_between
from planner.online.placement.options import afresh, options
from planner.online.placement.shadows import lasting_slots, with_idle_shadows
from planner.online.pricing import Pricing, placement_from, seats_of, served, whole_split
from planner.online.shadowing import shadow_price, shadowed_by_window
from planner.spec.placement import Placement, TokenSplit
from planner.spec.plan import Plan

LEVELS = 5
"""Of halves of halves: 1 + 2 + 4 + 8 + 16 stretches. A choice: twice as many candidates take four times as long."""


class Step(NamedTuple):
    """One window of the sequence."""

    placement: Placement
    """In force in the window, with the split of the window where there is one."""
    moves: int
    """Experts copied before it."""
    pause_s: float
    """For them."""


class BestSequence(NamedTuple):
    """The best sequence of the set."""

    steps: tuple[Step, ...]
    total_s: float
    """All steps and pauses."""


class Stretch(NamedTuple):
    """What is known of the trace: shares of tokens and numbers of steps by window."""

    shares: Floats
    """[windows, layers, experts]"""
    lengths: Floats
    """[windows]"""


def best_sequence(
    known: Stretch,
    pricing: Pricing,
    plan: Plan,
    start: Placement,
    also: Sequence[Placement] = (),
    progress: Callable[[float], None] = lambda part: None,
) -> BestSequence:
    """The best sequence over the trace; see the module on which set that is."""
    price = shadow_price(pricing, plan, known.shares, seats_of(start)) if start.shadow_slots_per_rank else 0.0
    seats = _distinct([seats_of(start), *_candidates(known, pricing, seats_of(start)), *map(_bare, also)])
    step_s = np.empty((len(known.lengths), len(seats)))
    for number, each in enumerate(seats):
        step_s[:, number] = [seconds for _, seconds in _as_run(pricing, plan, known.shares, each, price)]
        progress(0.9 * (number + 1) / len(seats))
    move_s = np.where(np.eye(len(seats), dtype=bool), 0.0, PAUSE_S)
    moves = np.full(move_s.shape, -1)
    np.fill_diagonal(moves, 0)
    while True:
        path, total_s = _shortest(step_s * known.lengths[:, None], move_s)
        unknown = {pair for pair in zip([0, *path], path, strict=False) if moves[pair] < 0}
        if not unknown:
            break
        for before, after in sorted(unknown):
            moves[before, after], move_s[before, after] = _move(pricing, plan, seats[before], seats[after])
    progress(1.0)
    as_run = {number: _as_run(pricing, plan, known.shares, seats[number], price) for number in set(path)}
    steps = [
        Step(placement_from(as_run[after][window][0]), int(moves[before, after]), move_s[before, after])
        for window, (before, after) in enumerate(zip([0, *path], path, strict=False))
    ]
    return BestSequence(tuple(steps), total_s)


def _candidates(known: Stretch, pricing: Pricing, start: Seats) -> Iterator[Seats]:
    """For each stretch: the most even placement, and the one that few moves reach from that of the stretch before."""
    loads, splits = served(known.shares, pricing.context.training), pricing.context.token_split
    ranks, shadows = start.num_ranks, start.shadow_slots_per_rank
    lasting = lasting_slots(start.layers, ranks, shadows)
    for level in range(LEVELS):
        before = lasting
        for windows in _stretches(loads, 2**level):
            mean = np.average(loads[windows], axis=0, weights=known.lengths[windows])
            fresh = align_slots(afresh(mean, ranks, before.shape[1] // ranks, splits), before, ranks)
            before = options(mean, ranks, before, splits).choose(0.0)
            for slots in (fresh, before):
                yield start._replace(layers=with_idle_shadows(slots, loads.mean(axis=0), ranks, shadows))


def _stretches(loads: Floats, number: int) -> list[Indices]:
    """Windows in so many stretches of equal drift, those that are not empty."""
    drift = np.abs(np.diff(loads, axis=0)).sum(axis=(1, 2))
    travelled = np.concatenate([[0.0], np.cumsum(drift)])
    whole = travelled[-1] if travelled[-1] > 0 else 1.0
    part = np.minimum((travelled / whole * number).astype(np.intp), number - 1)
    return [np.flatnonzero(part == each) for each in range(number) if (part == each).any()]


def _distinct(seats: Sequence[Seats]) -> list[Seats]:
    """The first of those with equal lasting slots, without splits: these follow the windows, as shadow slots do."""
    first: dict[bytes, Seats] = {}
    for each in seats:
        lasting = lasting_slots(each.layers, each.num_ranks, each.shadow_slots_per_rank)
        first.setdefault(lasting.tobytes(), each._replace(split=None))
    return list(first.values())


def _bare(placement: Placement) -> Seats:
    return seats_of(placement)._replace(split=None)


def _as_run(pricing: Pricing, plan: Plan, shares: Floats, seats: Seats, per_shadow: float) -> list[tuple[Seats, float]]:
    """For each window of `shares` [W, L, E]: with the best shadow experts and split that it can have, and its step."""
    ways = [[seats] * len(shares)]
    if seats.shadow_slots_per_rank:
        ways = [
            shadowed_by_window(pricing, shares, seats, price) for price in (inf, STRICTNESS * per_shadow, per_shadow)
        ]
    found: list[list[tuple[Seats, float]]] = []
    for way in ways:
        split = [_split_anew(pricing, load, each) for load, each in zip(shares, way, strict=True)]
        prices = pricing.steps(plan, list(zip(shares, split, strict=True)))
        found.append([(each, price.seconds) for each, price in zip(split, prices, strict=True)])
    return [min(window, key=lambda pair: pair[1]) for window in zip(*found, strict=True)]


def _split_anew(pricing: Pricing, shares: Floats, seats: Seats) -> Seats:
    if pricing.context.token_split is TokenSplit.EVEN or seats.layers.shape[1] == shares.shape[1]:
        return seats
    loads = served(shares, pricing.context.training)
    return seats._replace(split=whole_split(loads, seats.layers, seats.num_ranks))


def _shortest(window_s: Floats, move_s: Floats) -> tuple[list[int], float]:
    """(candidate of each window, seconds): least sum of window_s [W, K] and of moves [K, K], from candidate 0 on."""
    reached = move_s[0] + window_s[0]
    came_from = []
    for seconds in window_s[1:]:
        through = reached[:, None] + move_s
        came_from.append(through.argmin(axis=0))
        reached = through.min(axis=0) + seconds
    path = [int(reached.argmin())]
    for before in reversed(came_from):
        path.append(int(before[path[-1]]))
    return path[::-1], float(reached.min())


def _move(pricing: Pricing, plan: Plan, before: Seats, after: Seats) -> tuple[int, float]:
    """(experts copied, pause) from one placement to another, whose slots are renamed so that experts stay put."""
    ranks, shadows = before.num_ranks, before.shadow_slots_per_rank
    current, target = (lasting_slots(each.layers, ranks, shadows) for each in (before, after))
    copied = copies_between(current, align_slots(target, current, ranks), ranks).copied
    return len(copied.layer), pricing.migration_s(plan, copied)
