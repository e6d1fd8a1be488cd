"""Local search where replicas split tokens as is best: couple a hot rank with a cold one, a few moves at a time.

The load of each slot is kept along with what stands in it, so that a change need not solve the split anew: one more
replica of a hot rank's expert takes over as much as levels the two ranks; the replica that gave way leaves its tokens
to the coolest of its others. Every few steps the best split is solved for. Arrays as in planner/online/placement.py:
L layers, E experts, R ranks, S slots, s = S / R; H slots of some hot ranks, C slots of some cold ones. A change is
numbered by one of each, [L, H, C]: a swap, or a replica.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.balance import Floats, Indices, replica_counts
from planner.online.rules import Rules
from planner.online.split import TOLERANCE, best_split, poured_again

HOT_RANKS = 8
COLD_RANKS = 8
"""Of each layer that a step looks at. A choice: with more, steps get slow and the first change stays the best one."""

STEPS = 24
"""Most steps. A choice of CPU time."""

RANKS_PER_CHANGE = 8
"""A step makes one change in a layer for so many ranks, and one at least: few ranks get few moves at a time."""

RANKS_PER_SPLIT = 16
"""The best split is solved for after so many steps as these go into the ranks: for more ranks each costs more."""


class _Trade(NamedTuple):
    """Slots of hot and of cold ranks beside each other."""

    hot: Indices
    """[L, H]: numbers of the slots."""
    cold: Indices
    """[L, C]."""
    swap: Floats
    """[L, H, C]: gain of a swap."""
    replica: Floats
    """[L, H, C]: gain of a replica."""
    passed: Floats
    """[L, H, C]: tokens that the new replica takes over."""


def coupled(loads: Floats, num_ranks: int, slots: Indices, bound: Floats, rules: Rules) -> tuple[Indices, Floats]:
    """([steps + 1, L, S], [steps + 1, L]): the path from `slots` to a more even placement, load of the hottest rank.

    Replicas split the tokens of `loads` [L, E] as is best, as far as the search knows. A layer within twice the
    split's tolerance of its `bound` [L] is done.
    """
    placed = slots
    carried = np.take_along_axis(loads, slots, axis=1) * best_split(loads, slots, num_ranks)
    path, hottest = [placed], [_peak(carried, num_ranks)]
    for step in range(STEPS):
        active = np.flatnonzero(hottest[-1] > bound * (1 + 2 * TOLERANCE))
        if not active.size:
            break
        now, then = _step(loads[active], num_ranks, placed[active], carried[active], rules)
        if np.array_equal(now, placed[active]):
            break
        if not step % max(1, num_ranks // RANKS_PER_SPLIT):
            then = poured_again(loads[active], now, num_ranks, then)
        placed, carried = placed.copy(), carried.copy()
        placed[active], carried[active] = now, then
        path.append(placed)
        hottest.append(_peak(carried, num_ranks))
    return np.stack(path), np.stack(hottest)


def _peak(carried: Floats, num_ranks: int) -> Floats:
    peak: Floats = carried.reshape(len(carried), num_ranks, -1).sum(axis=-1).max(axis=-1)
    return peak


def _step(loads: Floats, num_ranks: int, slots: Indices, carried: Floats, rules: Rules) -> tuple[Indices, Floats]:
    """(`slots`, load of each) after the best changes, no rank and no expert in two of them."""
    trade = _trade(loads, num_ranks, slots, carried, rules)
    gains = np.stack([trade.swap / 2, trade.replica], axis=1)
    slots, carried = slots.copy(), carried.copy()
    each = slots.shape[1] // num_ranks
    for _ in range(max(1, num_ranks // RANKS_PER_CHANGE)):
        best = gains.reshape(len(slots), -1).argmax(axis=1)
        layers = np.flatnonzero(gains.reshape(len(slots), -1).max(axis=1) > 0)
        kind, mine, theirs = (index[layers] for index in np.unravel_index(best, gains.shape[1:]))
        hot, cold = trade.hot[layers, mine], trade.cold[layers, theirs]
        experts = np.stack([slots[layers, hot], slots[layers, cold]], axis=1)
        for change, made in ((_swap, kind == 0), (_replicate, kind == 1)):
            if made.any():
                passed = trade.passed[layers[made], mine[made], theirs[made]]
                change(slots, carried, num_ranks, layers[made], hot[made], cold[made], passed)
        ranks = np.stack([hot, cold], axis=1) // each
        hot_shut = _either(trade.hot[layers] // each, ranks) | _either(
            slots[layers[:, None], trade.hot[layers]], experts
        )
        cold_shut = _either(trade.cold[layers] // each, ranks) | _either(
            slots[layers[:, None], trade.cold[layers]], experts
        )
        gains[layers] = np.where((hot_shut[:, :, None] | cold_shut[:, None, :])[:, None], -np.inf, gains[layers])
    return slots, carried


def _either(values: Indices, these: Indices) -> NDArray[np.bool_]:
    """[n, m]: whether a value [n, m] is one of the two [n, 2] of its row."""
    return np.asarray((values == these[:, :1]) | (values == these[:, 1:]))


def _swap(
    slots: Indices, carried: Floats, num_ranks: int, layers: Indices, hot: Indices, cold: Indices, passed: Floats
) -> None:
    for array in (slots, carried):
        mine = array[layers, hot].copy()
        array[layers, hot] = array[layers, cold]
        array[layers, cold] = mine


def _replicate(
    slots: Indices, carried: Floats, num_ranks: int, layers: Indices, hot: Indices, cold: Indices, passed: Floats
) -> None:
    rank_of = np.arange(slots.shape[1]) // (slots.shape[1] // num_ranks)
    loads = carried[layers].reshape(len(layers), num_ranks, -1).sum(axis=-1)[:, rank_of]
    others = slots[layers] == slots[layers, cold][:, None]
    others[np.arange(len(layers)), cold] = False
    heir = np.where(others, loads, np.inf).argmin(axis=1)
    carried[layers, heir] += carried[layers, cold]
    carried[layers, hot] -= passed
    carried[layers, cold] = passed
    slots[layers, cold] = slots[layers, hot]


def _trade(loads: Floats, num_ranks: int, slots: Indices, carried: Floats, rules: Rules) -> _Trade:
    layers, total = slots.shape
    each = total // num_ranks
    every = np.arange(layers)[:, None]
    rank_loads = carried.reshape(layers, num_ranks, each).sum(axis=-1)
    order = np.argsort(-rank_loads, axis=1, kind="stable")
    hot = _slots_of(order[:, : min(HOT_RANKS, num_ranks // 2)], each)
    cold = _slots_of(order[:, ::-1][:, : min(COLD_RANKS, num_ranks - 1)], each)
    arriving, leaving = slots[every, hot], slots[every, cold]
    same = arriving[:, :, None] == leaving[:, None, :]
    known_there = np.repeat(same.reshape(layers, hot.shape[1], -1, each).any(axis=-1), each, axis=2)
    known_here = np.repeat(same.reshape(layers, -1, each, cold.shape[1]).any(axis=2), each, axis=1)
    one_rank = (hot // each)[:, :, None] == (cold // each)[:, None, :]
    mine, theirs = carried[every, hot], carried[every, cold]
    here = rank_loads[every, hot // each][:, :, None]
    there = rank_loads[every, cold // each][:, None, :]
    given = mine[:, :, None] - theirs[:, None, :]
    may_swap = rules.swaps[hot][:, :, None] & rules.swaps[cold][:, None, :] & ~known_there & ~known_here & ~one_rank
    swap = np.where(may_swap, np.minimum(given, here - there - given), -np.inf)
    passed = np.minimum(mine[:, :, None], (here - there + theirs[:, None, :]) / 2)
    heir = _coolest_other_host(loads.shape[1], slots, rank_loads, each)[every, cold][:, None, :]
    left = here - heir - theirs[:, None, :]
    may_replicate = rules.replaces[cold][:, None, :] & ~known_there & ~one_rank
    replica = np.where(may_replicate, np.minimum(passed, left), -np.inf)
    return _Trade(hot, cold, swap, replica, passed)


def _slots_of(ranks: Indices, each: int) -> Indices:
    """[L, ranks x s]."""
    numbers: Indices = (ranks[:, :, None] * each + np.arange(each)).reshape(len(ranks), -1)
    return numbers


def _coolest_other_host(experts: int, slots: Indices, rank_loads: Floats, each: int) -> Floats:
    """[L, S]: load of the coolest rank that has the slot's expert in another slot; infinite if none has."""
    found = np.full(slots.shape, np.inf)
    layer, slot = np.nonzero(np.take_along_axis(replica_counts(slots, experts), slots, axis=1) > 1)
    number, loads = layer * experts + slots[layer, slot], rank_loads[layer, slot // each]
    order = np.lexsort((loads, number))
    opens = np.diff(number[order], prepend=-1) != 0
    begins = np.flatnonzero(opens)
    coolest = begins[np.cumsum(opens) - 1]
    found[layer[order], slot[order]] = loads[order[np.where(opens, coolest + 1, coolest)]]
    return found
