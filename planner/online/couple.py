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
    """The best change of each hot rank with each cold one, A and B of them: [L, A, B] each."""

    gain: Floats
    swaps: NDArray[np.bool_]
    """A swap; else a replica."""
    hot: Indices
    """Number of the slot of the hot rank."""
    cold: Indices
    passed: Floats
    """Tokens that a new replica takes over."""
    heir: Indices
    """The slot that takes over the tokens of the replica that gave way."""


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
        if (step + 1) % max(1, num_ranks // RANKS_PER_SPLIT) == 0:
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
    slots, carried = slots.copy(), carried.copy()
    layers, *pairs = _compatible(trade, slots, num_ranks)
    swaps, hot, cold, passed, heir = (values[layers, *pairs] for values in trade[1:])
    there, these = (layers[swaps], hot[swaps]), (layers[swaps], cold[swaps])
    for array in (slots, carried):
        array[there], array[these] = array[these], array[there]
    layers, hot, cold, passed, heir = (values[~swaps] for values in (layers, hot, cold, passed, heir))
    carried[layers, heir] += carried[layers, cold]
    carried[layers, hot] -= passed
    carried[layers, cold] = passed
    slots[layers, cold] = slots[layers, hot]
    return slots, carried


def _compatible(trade: _Trade, slots: Indices, num_ranks: int) -> list[Indices]:
    """Layers, and places in [A, B], of the changes to make: the best, then the best that shares nothing with it, ..."""
    every = np.arange(len(slots))[:, None, None]
    each = slots.shape[1] // num_ranks
    ranks = [trade.hot // each, trade.cold // each]
    experts = [slots[every, trade.hot], slots[every, trade.cold]]
    gain, shape = trade.gain.copy(), trade.gain.shape[1:]
    made: list[tuple[Indices, ...]] = []
    for _ in range(max(1, num_ranks // RANKS_PER_CHANGE)):
        best = gain.reshape(len(gain), -1).argmax(axis=1)
        pair = np.unravel_index(best, shape)
        layers = np.flatnonzero(gain[every[:, 0, 0], *pair] > 0)
        if not layers.size:
            break
        made.append((layers, pair[0][layers], pair[1][layers]))
        for named in (ranks, experts):
            for taken in (values[every[:, 0, 0], *pair][:, None, None] for values in named):
                gain[(named[0] == taken) | (named[1] == taken)] = -np.inf
    return [np.concatenate(part) for part in zip(*made, strict=True)] or [np.empty(0, dtype=np.intp)] * 3


def _trade(loads: Floats, num_ranks: int, slots: Indices, carried: Floats, rules: Rules) -> _Trade:
    layers, total = slots.shape
    each = total // num_ranks
    every = np.arange(layers)[:, None]
    rank_loads = carried.reshape(layers, num_ranks, each).sum(axis=-1)
    order = np.argsort(-rank_loads, axis=1, kind="stable")
    hot = _slots_of(order[:, : min(HOT_RANKS, num_ranks // 2)], each)
    cold = _slots_of(order[:, ::-1][:, : min(COLD_RANKS, num_ranks - 1)], each)
    known_there, known_here = _known(slots[every, hot], slots[every, cold], each)
    apart = (hot // each)[:, :, None] != (cold // each)[:, None, :]
    mine, theirs = carried[every, hot][:, :, None], carried[every, cold][:, None, :]
    here = rank_loads[every, hot // each][:, :, None]
    there = rank_loads[every, cold // each][:, None, :]
    given = mine - theirs
    may_replicate = rules.replaces[cold][:, None, :] & ~known_there & apart
    may_swap = rules.swaps[hot][:, :, None] & rules.swaps[cold][:, None, :] & ~known_there & ~known_here & apart
    swap = np.where(may_swap, np.minimum(given, here - there - given) / 2, -np.inf)
    passed = np.minimum(mine, (here - there + theirs) / 2)
    heir_load, heir = (found[every, cold] for found in _coolest_other_host(loads.shape[1], slots, rank_loads, each))
    left = here - (heir_load + carried[every, cold])[:, None, :]
    replica = np.where(may_replicate, np.minimum(passed, left), -np.inf)
    return _best_of_pairs(swap, replica, hot, cold, passed, heir, each)


def _best_of_pairs(
    swap: Floats, replica: Floats, hot: Indices, cold: Indices, passed: Floats, heir: Indices, each: int
) -> _Trade:
    """From gains of each slot of the hot ranks with each of the cold ones, [L, A s, B s]."""
    layers, many, few = swap.shape
    gains = np.stack([swap, replica], axis=1).reshape(layers, 2, many // each, each, few // each, each)
    by_pair = gains.transpose(0, 2, 4, 1, 3, 5).reshape(layers, many // each, few // each, -1)
    best = by_pair.argmax(axis=-1)
    kind, mine, theirs = np.unravel_index(best, (2, each, each))
    mine = mine + np.arange(many // each)[:, None] * each
    theirs = theirs + np.arange(few // each) * each
    every = np.arange(layers)[:, None, None]
    gain = np.take_along_axis(by_pair, best[..., None], axis=-1)[..., 0]
    return _Trade(
        gain, kind == 0, hot[every, mine], cold[every, theirs], passed[every, mine, theirs], heir[every, theirs]
    )


def _known(arriving: Indices, leaving: Indices, each: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """[L, A s, B s]: whether the cold rank has the hot slot's expert, and the hot rank the cold slot's."""
    same = arriving[:, :, None] == leaving[:, None, :]
    layers, many, few = same.shape
    there = np.repeat(same.reshape(layers, many, -1, each).any(axis=-1), each, axis=2)
    here = np.repeat(same.reshape(layers, -1, each, few).any(axis=2), each, axis=1)
    return there, here


def _slots_of(ranks: Indices, each: int) -> Indices:
    """[L, ranks x s]."""
    numbers: Indices = (ranks[:, :, None] * each + np.arange(each)).reshape(len(ranks), -1)
    return numbers


def _coolest_other_host(
    experts: int, slots: Indices, rank_loads: Floats, each: int
) -> tuple[Floats, Indices]:
    """[L, S] each: load of the coolest rank that has the slot's expert in another slot (infinite if none), that slot."""
    found, where = np.full(slots.shape, np.inf), np.zeros(slots.shape, dtype=np.intp)
    layer, slot = np.nonzero(np.take_along_axis(replica_counts(slots, experts), slots, axis=1) > 1)
    number, loads = layer * experts + slots[layer, slot], rank_loads[layer, slot // each]
    order = np.lexsort((loads, number))
    opens = np.diff(number[order], prepend=-1) != 0
    begins = np.flatnonzero(opens)
    coolest = begins[np.cumsum(opens) - 1]
    heir = order[np.where(opens, coolest + 1, coolest)]
    found[layer[order], slot[order]] = loads[heir]
    where[layer[order], slot[order]] = slot[heir]
    return found, where
