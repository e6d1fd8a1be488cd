"""Local search: the placements on the way from one in force, or from one made afresh, to a more even one.

The hottest rank trades with all others, one change at a time; or many ranks trade in pairs (`pairs`).
Arrays as in the package's docstring: L layers, E experts, R ranks, S slots, s = S / R. A change is numbered by the
slot of the hottest rank that it starts from and the slot that it touches elsewhere: [L, s, R, s].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.balance import Floats, Indices, rank_loads, replica_counts
from planner.online.placement.pairs import paired_step
from planner.online.placement.rules import Rules

ROUNDING = 1e-9
"""A gain below this part of the hottest rank's load is rounding; without this the search could turn in circles."""

EVEN_ENOUGH = 1e-3
"""A layer whose hottest rank is within this part of the bound is done. A choice: less than any forecast knows."""

TURNS = 8
"""Most steps of pairs: with each, every hot rank meets another cold one."""

WEIGHED = 3000
"""Most changes of the hottest rank that are weighed in a layer, all steps together. A choice of CPU time."""

Flags = NDArray[np.bool_]


def improve(loads: Floats, num_ranks: int, slots: Indices, bound: Floats, rules: Rules) -> Indices:
    """[steps + 1, L, S]: the path from `slots` [L, S] to a more even placement for `loads` [L, E].

    A layer close to its `bound` [L] is done; the others first `cooled`, then by steps of pairs. These treat the ranks
    that are above the middle between the hottest and the bound: so the path goes down with few moves at a time.
    """
    path = list(cooled(loads, num_ranks, slots, bound, rules))
    replicate = slots.shape[1] > loads.shape[1]
    for turn in range(0 if rules.shadows.any() else TURNS):
        active, peak = _uneven(loads, num_ranks, path[-1], bound)
        if not active.size:
            break
        step = path[-1].copy()
        level = (peak + bound[active]) / 2
        step[active] = paired_step(loads[active], num_ranks, step[active], level, turn, replicate)
        path.append(step)
    return np.stack(path)


def evened(loads: Floats, num_ranks: int, slots: Indices, bound: Floats) -> Indices:
    """[L, S]: `slots` after steps of pairs that only swap, whatever they move; of all steps the most even.

    A layer close to its `bound` [L] is done, and one in which no pair has a swap left.
    """
    best, least = slots.copy(), rank_loads(loads, slots, num_ranks).max(axis=1)
    last, active = slots, np.arange(len(slots))
    for turn in range(TURNS):
        active = active[least[active] > bound[active] * (1 + EVEN_ENOUGH)]
        if not active.size:
            break
        before, last = last, last.copy()
        last[active] = paired_step(loads[active], num_ranks, before[active], bound[active], turn, replicate=False)
        active = active[(last[active] != before[active]).any(axis=1)]
        peak = rank_loads(loads[active], last[active], num_ranks).max(axis=1)
        better = peak < least[active]
        best[active[better]], least[active[better]] = last[active[better]], peak[better]
    return best


def cooled(loads: Floats, num_ranks: int, slots: Indices, bound: Floats, rules: Rules) -> Indices:
    """[steps + 1, L, S]: the path from `slots`, one change of the hottest rank of each uneven layer at a time.

    Of all swaps of its slots, and of all replicas of its experts put in place of a spare replica elsewhere, it is the
    change that lowers the greatest load among the ranks it touches most per moved expert.
    """
    path = [slots]
    active, _ = _uneven(loads, num_ranks, slots, bound)
    for _ in range(max(1, WEIGHED * num_ranks // slots.shape[1] ** 2)):
        if not active.size:
            break
        at, changed = _best_changes(loads[active], num_ranks, path[-1][active], bound[active], rules)
        active = active[at]
        step = path[-1].copy()
        step[active] = changed
        path.append(step)
    return np.stack(path)


def _uneven(loads: Floats, num_ranks: int, slots: Indices, bound: Floats) -> tuple[Indices, Floats]:
    """(Layers that are not close to their bound, load of their hottest rank.)"""
    peak = rank_loads(loads, slots, num_ranks).max(axis=1)
    active = np.flatnonzero(peak > bound * (1 + EVEN_ENOUGH))
    return active, peak[active]


class _Layers(NamedTuple):
    """Layers as they stand, with their hottest ranks."""

    loads: Floats
    """[L, E]."""
    counts: Indices
    """[L, E]: replicas."""
    slots: Indices
    """[L, R, s]."""
    slot_loads: Floats
    """[L, R, s]."""
    carried: Floats
    """[L, R]."""
    hot: Indices
    """[L]."""
    hot_experts: Indices
    """[L, s]."""
    peak: Floats
    """[L]."""
    blocked: Flags
    """[L, s, R]: whether the rank has the hottest rank's expert already, or is the hottest rank."""
    on_hot: Flags
    """[L, R, s]: whether the hottest rank has the slot's expert."""


def _layers(loads: Floats, num_ranks: int, flat: Indices) -> _Layers:
    every = np.arange(len(flat))
    counts = replica_counts(flat, loads.shape[1])
    slots = flat.reshape(len(flat), num_ranks, -1)
    slot_loads = (loads / counts)[every[:, None, None], slots]
    carried = slot_loads.sum(axis=2)
    hot = carried.argmax(axis=1)
    hot_experts = slots[every, hot]
    present = np.zeros((*loads.shape, num_ranks), dtype=bool)
    present[every[:, None, None], slots, np.arange(num_ranks)[None, :, None]] = True
    blocked = present[every[:, None], hot_experts]
    on_hot = present[every[:, None], np.arange(loads.shape[1]), hot[:, None]][every[:, None, None], slots]
    return _Layers(loads, counts, slots, slot_loads, carried, hot, hot_experts, carried[every, hot], blocked, on_hot)


def _best_changes(
    loads: Floats, num_ranks: int, slots: Indices, bound: Floats, rules: Rules
) -> tuple[Indices, Indices]:
    """(which of the layers gain, their slots after the change)."""
    now = _layers(loads, num_ranks, slots)
    least_gain = ROUNDING * now.peak
    swaps, replaces = (allowed.reshape(num_ranks, -1) for allowed in (rules.swaps, rules.replaces))
    may_swap = swaps[now.hot][:, :, None, None] & swaps
    gains = np.where(may_swap, (now.peak[:, None, None, None] - _after_swap(now)) / 2, -np.inf).reshape(len(slots), -1)
    if slots.shape[1] > loads.shape[1]:
        replica_gains = np.where(replaces, now.peak[:, None, None, None] - _after_replica(now), -np.inf)
        gains = np.concatenate([gains, replica_gains.reshape(len(slots), -1)], axis=1)
    best = gains.argmax(axis=1)
    gain = gains[np.arange(len(slots)), best]
    at = np.flatnonzero((gain > least_gain) & (now.peak > bound + least_gain))
    return at, _applied(slots[at], best[at], now.hot[at], slots.shape[1] // num_ranks)


def _applied(slots: Indices, best: Indices, hot: Indices, slots_per_rank: int) -> Indices:
    """The slots after the change that number `best` stands for: swaps first, then replicas."""
    total = slots.shape[1]
    every = np.arange(len(slots))
    replicates = best >= slots_per_rank * total
    local = np.where(replicates, best - slots_per_rank * total, best)
    mine = hot * slots_per_rank + local // total
    other = local % total
    changed = slots.copy()
    changed[every, other] = slots[every, mine]
    changed[every, mine] = np.where(replicates, slots[every, mine], slots[every, other])
    return changed


def _after_swap(now: _Layers) -> Floats:
    """[L, s, R, s]: greater load of the two ranks after swapping a slot of the hottest rank with a slot of another."""
    here = now.slot_loads[np.arange(len(now.hot)), now.hot]
    leaving = here[:, :, None, None] - now.slot_loads[:, None]
    mine = now.peak[:, None, None, None] - leaving
    theirs = now.carried[:, None, :, None] + leaving
    impossible = now.blocked[:, :, :, None] | now.on_hot[:, None]
    return np.where(impossible, np.inf, np.maximum(mine, theirs))


def _after_replica(now: _Layers) -> Floats:
    """[L, s, R, s]: greatest load touched after one more replica of a hot rank's expert replaces a spare one.

    With x the load and c the replicas of an expert, one more replica takes x/c - x/(c+1) from each rank that has
    it; the replaced expert's other ranks get x/(c-1) - x/c more.
    """
    every = np.arange(len(now.hot))
    added = now.loads / (now.counts + 1)
    arriving = added[every[:, None], now.hot_experts]
    relief = (now.loads / now.counts - added)[every[:, None], now.hot_experts]
    spare = now.counts > 1
    burden = np.where(spare, now.loads / np.maximum(now.counts - 1, 1) - now.loads / now.counts, np.inf)
    extra = burden[every[:, None, None], now.slots]
    others = (_hottest_other_host(now) + extra)[:, None]
    mine = (now.peak[:, None] - relief)[:, :, None, None] + np.where(now.on_hot, extra, 0.0)[:, None]
    theirs = (now.carried[:, :, None] - now.slot_loads)[:, None] + arriving[:, :, None, None]
    return np.where(now.blocked[:, :, :, None], np.inf, np.maximum(np.maximum(mine, theirs), others))


def _hottest_other_host(now: _Layers) -> Floats:
    """[L, R, s]: load of the hottest rank that has the slot's expert too, the slot's own rank and `hot` left out."""
    experts = now.loads.shape[1]
    number = (np.arange(len(now.hot))[:, None, None] * experts + now.slots).ravel()
    hosts = np.broadcast_to(now.carried[:, :, None], now.slots.shape).copy()
    hosts[np.arange(len(now.hot)), now.hot] = 0.0
    hosts = hosts.ravel()
    first = np.zeros(now.loads.size)
    np.maximum.at(first, number, hosts)
    leads = hosts == first[number]
    second = np.zeros(now.loads.size)
    np.maximum.at(second, number[~leads], hosts[~leads])
    alone = leads & (np.bincount(number, weights=leads, minlength=now.loads.size)[number] == 1)
    found: Floats = np.where(alone, second[number], first[number]).reshape(now.slots.shape)
    return found
