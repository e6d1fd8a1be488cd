"""Local search: take load from the hottest rank, one swap or one new replica at a time, in all layers at once.

Arrays as in planner/online/placement.py: L layers, E experts, R ranks, S slots, s = S / R. A change is numbered by the
slot of the hottest rank that it starts from and the slot that it touches elsewhere: [L, s, R, s].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.balance import Floats, Indices, replica_counts

ROUNDING = 1e-9
"""A gain below this part of the hottest rank's load is rounding; without this the search could turn in circles."""

Flags = NDArray[np.bool_]


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
        at, changed = _best_changes(loads[active], num_ranks, path[-1][active], bound[active])
        active = active[at]
        if not active.size:
            break
        following = path[-1].copy()
        following[active] = changed
        path.append(following)
    return np.stack(path)


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


def _best_changes(loads: Floats, num_ranks: int, slots: Indices, bound: Floats) -> tuple[Indices, Indices]:
    """(which of the layers gain, their slots after the change)."""
    now = _layers(loads, num_ranks, slots)
    least_gain = ROUNDING * now.peak
    gains = ((now.peak[:, None, None, None] - _after_swap(now)) / 2).reshape(len(slots), -1)
    if slots.shape[1] > loads.shape[1]:
        replica_gains = (now.peak[:, None, None, None] - _after_replica(now)).reshape(len(slots), -1)
        gains = np.concatenate([gains, replica_gains], axis=1)
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
