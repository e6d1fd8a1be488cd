"""Local search: take load from the hottest rank, one swap or one new replica at a time, in all layers at once.

Arrays as in planner/online/placement.py: L layers, E experts, R ranks, S slots, s = S / R.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.cost.balance import Floats, Indices, rank_loads, replica_counts

ROUNDING = 1e-9
"""A gain below this part of the hottest rank's load is rounding; without this the search could turn in circles."""


def improve(loads: Floats, num_ranks: int, slots: Indices, bound: Floats) -> Indices:
    """[steps + 1, L, S]: the path from `slots` [L, S] to a local optimum for `loads` [L, E].

    Each step changes each layer that is above its `bound` [L] once: of all swaps of a slot of the hottest rank, and
    of all replicas of its experts put in place of a spare replica elsewhere, it takes the change that lowers the
    greatest load among the ranks it touches most per moved expert. A layer that has no such change is done.
    """
    path = [slots]
    active = np.arange(len(slots))
    # Every step lowers the sorted loads, so the search ends by itself; S changes per layer are more than it needs.
    for _ in range(slots.shape[1]):
        at, change = _best_changes(loads[active], num_ranks, path[-1][active], bound[active])
        active = active[at]
        if not active.size:
            break
        following = path[-1].copy()
        following[active] = change
        path.append(following)
    return np.stack(path)


def _best_changes(loads: Floats, num_ranks: int, slots: Indices, bound: Floats) -> tuple[Indices, Indices]:
    """(which of the layers gain, their slots after the change)."""
    carried = rank_loads(loads, slots, num_ranks)
    hot = carried.argmax(axis=1)
    peak = carried.max(axis=1)
    least_gain = ROUNDING * peak
    counts = replica_counts(slots, loads.shape[1])
    present = _presence(slots, num_ranks, loads.shape[1])
    swap_gain = (peak[:, None, None] - _after_swap(loads / counts, slots, carried, hot, present)) / 2
    gains = swap_gain.reshape(len(slots), -1)
    if slots.shape[1] > loads.shape[1]:
        replica_gain = peak[:, None, None] - _after_replica(loads, counts, slots, carried, hot, present)
        gains = np.concatenate([gains, replica_gain.reshape(len(slots), -1)], axis=1)
    best = gains.argmax(axis=1)
    gain = gains[np.arange(len(slots)), best]
    at = np.flatnonzero((gain > least_gain) & (peak > bound + least_gain))
    return at, _applied(slots[at], best[at], hot[at], slots.shape[1] // num_ranks)


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


def _after_swap(weight: Floats, slots: Indices, carried: Floats, hot: Indices, present: NDArray[np.bool_]) -> Floats:
    """[L, s, S]: greater load of the two ranks after swapping a slot of the hottest rank with a slot of another."""
    view = _View(slots, hot, carried.shape[1])
    here = np.take_along_axis(weight, view.hot_experts, axis=1)
    there = np.take_along_axis(weight, slots, axis=1)
    leaving = here[:, :, None] - there[:, None, :]
    mine = carried[view.every, hot][:, None, None] - leaving
    theirs = carried[:, view.ranks][:, None, :] + leaving
    twins = view.expert_is_there(present) | present[view.every[:, None], hot[:, None], slots][:, None, :]
    return np.where(twins | view.own_slots, np.inf, np.maximum(mine, theirs))


def _after_replica(
    loads: Floats, counts: Indices, slots: Indices, carried: Floats, hot: Indices, present: NDArray[np.bool_]
) -> Floats:
    """[L, s, S]: greatest load touched after one more replica of an expert of the hottest rank replaces a spare one.

    With x the load and c the replicas of an expert, one more replica takes x/c - x/(c+1) from each rank that has
    it; the replaced expert's other ranks get x/(c-1) - x/c more.
    """
    view = _View(slots, hot, carried.shape[1])
    relief = np.take_along_axis(loads / counts - loads / (counts + 1), view.hot_experts, axis=1)
    arriving = np.take_along_axis(loads / (counts + 1), view.hot_experts, axis=1)
    spare = counts > 1
    burden = np.where(spare, loads / np.maximum(counts - 1, 1) - loads / counts, 0.0)
    there = np.take_along_axis(loads / counts, slots, axis=1)
    extra = np.take_along_axis(burden, slots, axis=1)
    hosted_here = present[view.every[:, None], hot[:, None], slots]
    mine = carried[view.every, hot][:, None, None] - relief[:, :, None] + np.where(hosted_here, extra, 0.0)[:, None, :]
    theirs = (carried[:, view.ranks] - there)[:, None, :] + arriving[:, :, None]
    others = (_hottest_other_host(carried, slots, hot, present) + extra)[:, None, :]
    impossible = view.expert_is_there(present) | ~np.take_along_axis(spare, slots, axis=1)[:, None, :] | view.own_slots
    return np.where(impossible, np.inf, np.maximum(np.maximum(mine, theirs), others))


def _hottest_other_host(carried: Floats, slots: Indices, hot: Indices, present: NDArray[np.bool_]) -> Floats:
    """[L, S]: load of the hottest rank that has the slot's expert too, the slot's own rank and `hot` left out."""
    every = np.arange(len(slots))
    host_loads = np.where(present, carried[:, :, None], -np.inf)
    host_loads[every, hot] = -np.inf
    first = host_loads.argmax(axis=1)
    highest = np.take_along_axis(host_loads, first[:, None, :], axis=1)[:, 0]
    np.put_along_axis(host_loads, first[:, None, :], -np.inf, axis=1)
    second = host_loads.max(axis=1)
    ranks = np.arange(slots.shape[1]) // (slots.shape[1] // carried.shape[1])
    is_first = np.take_along_axis(first, slots, axis=1) == ranks
    return np.where(is_first, np.take_along_axis(second, slots, axis=1), np.take_along_axis(highest, slots, axis=1))


class _View:
    """Index arrays that pair the slots of each layer's hottest rank with all slots."""

    def __init__(self, slots: Indices, hot: Indices, num_ranks: int) -> None:
        slots_per_rank = slots.shape[1] // num_ranks
        self.every = np.arange(len(slots))
        self.ranks = np.arange(slots.shape[1]) // slots_per_rank
        self.hot_experts = slots[self.every[:, None], hot[:, None] * slots_per_rank + np.arange(slots_per_rank)]
        self.own_slots = (self.ranks[None, :] == hot[:, None])[:, None, :]

    def expert_is_there(self, present: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[L, s, S]: whether the hottest rank's expert already stands on the slot's rank."""
        there: NDArray[np.bool_] = present[
            self.every[:, None, None], self.ranks[None, None, :], self.hot_experts[:, :, None]
        ]
        return there


def _presence(slots: Indices, num_ranks: int, experts: int) -> NDArray[np.bool_]:
    """[L, R, E]: whether the rank has the expert."""
    present = np.zeros((len(slots), num_ranks, experts), dtype=bool)
    ranks = np.arange(slots.shape[1]) // (slots.shape[1] // num_ranks)
    present[np.arange(len(slots))[:, None], ranks, slots] = True
    return present
