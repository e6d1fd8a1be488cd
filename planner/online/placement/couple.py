"""Local search where replicas split tokens as is best: couple a hot rank with a cold one, a few moves at a time.

The load of each slot is kept along with what stands in it, so that a change need not solve the split anew: one more
replica of a hot rank's expert takes over as much as levels the two ranks; the replica that gave way leaves its tokens
to the coolest of its others. Every few steps the best split is solved for. Arrays as in the package's docstring:
L layers, E experts, R ranks, S slots, s = S / R; H slots of some hot ranks, C slots of some cold ones. A change is
numbered by one of each, [L, H, C]: a swap, or a replica.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from planner.cost.balance import Floats, Indices, replica_counts
from planner.online.placement.rules import Rules
from planner.online.placement.split import TOLERANCE, poured_again

HOT_RANKS = 8
COLD_RANKS = 8
"""Of each layer that a step looks at. A choice: with more, steps get slow and the first change stays the best one."""

CLOSE = 0.01
"""A layer whose hottest rank is within this part of the bound is done. A choice: what is left is less than what the
next load changes, and would cost half as many moves again."""

STEPS = 24
"""Most steps. A choice of CPU time."""

RANKS_PER_CHANGE = 8
"""A step makes one change in a layer for so many ranks, and one at least: few ranks get few moves at a time."""

RANKS_PER_SPLIT = 8
"""The best split is solved for after so many steps as these go into the ranks: for more ranks each costs more."""


class _Trade(NamedTuple):
    """Changes of some pairs of a hot and a cold rank, P pairs in each layer."""

    ranks: Indices
    """[2, L, P]: the hot rank and the cold one."""
    gains: Floats
    """[2, s, s, L, P]: of a swap, of a replica, by the place of the slot in the hot rank and in the cold one."""
    passed: Floats
    """[s, s, L, P]: tokens that the new replica takes over."""
    heirs: Indices
    """[L, S]: the slot that takes over the tokens of a replica that gives way."""


class Path(NamedTuple):
    """Placements on the way to a more even one, with the load of each slot under the split that the search found."""

    slots: Indices
    """[steps + 1, L, S]."""
    carried: Floats
    """[steps + 1, L, S]."""
    hottest: Floats
    """[steps + 1, L]: load of the hottest rank."""

    def best(self) -> Path:
        """The first of the most even placements of each layer, a path of one."""
        best = self.hottest.argmin(axis=0)[None]
        layers = np.arange(best.shape[1])
        return Path(*(values[best, layers] for values in self))


def coupled(loads: Floats, num_ranks: int, slots: Indices, carried: Floats, bound: Floats, rules: Rules) -> Path:
    """The path from `slots`, which carry the tokens `carried` [L, S] of `loads` [L, E], to a more even placement.

    Replicas split their tokens as is best, as far as the search knows. A layer that is `CLOSE` to its `bound` [L] is
    done.
    """
    path = [(slots, carried, _peak(carried, num_ranks))]
    moving = np.ones(len(slots), dtype=bool)
    for step in range(STEPS):
        placed, carried, hottest = path[-1]
        active = np.flatnonzero(moving & (hottest > bound * (1 + CLOSE)))
        if not active.size:
            break
        now, then = _step(loads[active], num_ranks, placed[active], carried[active], rules)
        if (step + 1) % max(1, num_ranks // RANKS_PER_SPLIT) == 0:
            then = poured_again(loads[active], now, num_ranks, then)
        stuck = (now == placed[active]).all(axis=1)
        if stuck.any():
            at = active[stuck]
            now[stuck], then[stuck] = _freed(loads[at], num_ranks, placed[at], then[stuck], rules)
            moving[at] = (now[stuck] != placed[at]).any(axis=1)
        placed, carried = placed.copy(), carried.copy()
        placed[active], carried[active] = now, then
        path.append((placed, carried, _peak(carried, num_ranks)))
    return Path(*(np.stack(values) for values in zip(*path, strict=True)))


def _freed(loads: Floats, num_ranks: int, slots: Indices, carried: Floats, rules: Rules) -> tuple[Indices, Floats]:
    """A step of layers in which no two ranks alone can gain: groups of level ranks share what one of them gets.

    Changes that lower the hottest rank once all is poured again are kept.
    """
    now, then = _step(loads, num_ranks, slots, carried, rules, together=True)
    then = poured_again(loads, now, num_ranks, then)
    gains = (_peak(then, num_ranks) < _peak(carried, num_ranks))[:, None]
    return np.where(gains, now, slots), np.where(gains, then, carried)


def _peak(carried: Floats, num_ranks: int) -> Floats:
    peak: Floats = carried.reshape(len(carried), num_ranks, -1).sum(axis=-1).max(axis=-1)
    return peak


def _step(
    loads: Floats, num_ranks: int, slots: Indices, carried: Floats, rules: Rules, together: bool = False
) -> tuple[Indices, Floats]:
    """(`slots`, load of each) after the best changes, no rank and no expert in two of them."""
    trade = _trade(loads, num_ranks, slots, carried, rules, together)
    layers, kind, hot, cold, passed = _chosen(trade, slots, num_ranks)
    slots, carried = slots.copy(), carried.copy()
    swaps = kind == 0
    here, there = (layers[swaps], hot[swaps]), (layers[swaps], cold[swaps])
    for array in (slots, carried):
        array[here], array[there] = array[there], array[here]
    layers, hot, cold = layers[~swaps], hot[~swaps], cold[~swaps]
    np.add.at(carried, (layers, trade.heirs[layers, cold]), carried[layers, cold])
    carried[layers, hot] -= passed[~swaps]
    carried[layers, cold] = passed[~swaps]
    slots[layers, cold] = slots[layers, hot]
    return slots, carried


def _chosen(trade: _Trade, slots: Indices, num_ranks: int) -> tuple[Indices, Indices, Indices, Indices, Floats]:
    """(Layer, kind, hot slot, cold slot, tokens passed) of the changes to make, all layers one after the other.

    In each layer the best first, then the best that shares neither rank nor expert with those before.
    """
    gain = trade.gains.max(axis=(0, 1, 2))
    each = slots.shape[1] // num_ranks
    used = np.zeros((len(slots), int(slots.max()) + 1), dtype=bool)
    made = []
    for _ in range(max(1, num_ranks // RANKS_PER_CHANGE)):
        pair = gain.argmax(axis=1)
        layers = np.flatnonzero(np.take_along_axis(gain, pair[:, None], axis=1)[:, 0] > 0)
        if not layers.size:
            break
        pair = pair[layers]
        best = trade.gains[..., layers, pair].reshape(-1, len(layers)).argmax(axis=0)
        kind, mine, theirs = np.unravel_index(best, trade.gains.shape[:3])
        ranks = trade.ranks[:, layers, pair]
        hot, cold = ranks[0] * each + mine, ranks[1] * each + theirs
        experts = slots[layers, hot], slots[layers, cold]
        free = ~(used[layers, experts[0]] | used[layers, experts[1]])
        gain[layers, pair] = -np.inf
        one, other = (np.where(free, rank, -1)[:, None] for rank in ranks)
        shut = ((trade.ranks[:, layers] == one) | (trade.ranks[:, layers] == other)).any(axis=0)
        gain[layers] = np.where(shut, -np.inf, gain[layers])
        for expert in experts:
            used[layers[free], expert[free]] = True
        made.append([values[free] for values in (layers, kind, hot, cold, trade.passed[mine, theirs, layers, pair])])
    if not made:
        nothing = np.empty(0, dtype=np.intp)
        return nothing, nothing, nothing, nothing, np.empty(0)
    layers, kind, hot, cold, passed = (np.concatenate(values) for values in zip(*made, strict=True))
    return layers, kind, hot, cold, passed


def _trade(loads: Floats, num_ranks: int, slots: Indices, carried: Floats, rules: Rules, together: bool) -> _Trade:
    """With `together`, what a rank gets or gives is shared by all ranks that are level with it."""
    layers, total = slots.shape
    each = total // num_ranks
    every = np.arange(layers)[:, None]
    rank_loads = carried.reshape(layers, num_ranks, each).sum(axis=-1)
    order = np.argsort(-rank_loads, axis=1, kind="stable")
    above, below = _paired(num_ranks)
    ranks = np.stack([order[:, above], order[:, ::-1][:, below]])
    peaks = np.take_along_axis(rank_loads[None], ranks, axis=2)
    numbers = ranks * each + np.arange(each)[:, None, None, None]
    hot, cold = numbers[:, None, 0], numbers[None, :, 1]
    arriving, leaving = slots[every, hot], slots[every, cold]
    mine, theirs = carried[every, hot], carried[every, cold]
    same = arriving == leaving
    apart = ranks[0] != ranks[1]
    may_replicate = rules.replaces[cold] & (apart & ~same.any(axis=1, keepdims=True))
    may_swap = rules.swaps[hot] & (rules.swaps[cold] & apart) & ~(same.any(axis=1, keepdims=True) | same.any(axis=0))
    given, spread = mine - theirs, peaks[0] - peaks[1]
    level = _level_with(rank_loads) if together else np.ones(rank_loads.shape, dtype=np.intp)
    lost, got = given / np.take_along_axis(level[None], ranks, axis=2)[:, None, None] if together else (given, given)
    gains = np.full((2, *given.shape), -np.inf)
    np.minimum(lost, spread - got, out=gains[0], where=may_swap)
    gains[0] /= 2
    passed = np.minimum(mine, (spread + theirs) / 2)
    heir_loads, heirs = _coolest_other_host(loads.shape[1], slots, rank_loads, each)
    left = peaks[0] - heir_loads[every, cold] - theirs / level[every, heirs[every, cold] // each]
    np.minimum(passed, left, out=gains[1], where=may_replicate)
    return _Trade(ranks, gains, passed, heirs)


def _level_with(rank_loads: Floats) -> Indices:
    """[L, R]: how many ranks have nearly the load of each, which it has by way of common experts as a rule."""
    apart = np.abs(rank_loads[:, :, None] - rank_loads[:, None, :])
    return np.asarray((apart <= 2 * TOLERANCE * rank_loads[:, :, None]).sum(axis=2))


def _paired(num_ranks: int) -> tuple[Indices, Indices]:
    """[P] each: the pairs of a step, hot ranks counted from the hottest and cold ones from the coldest."""
    hot, cold = min(HOT_RANKS, num_ranks // 2), min(COLD_RANKS, num_ranks - 1)
    above, below = np.divmod(np.arange(hot * cold), cold)
    return above, below


def _coolest_other_host(experts: int, slots: Indices, rank_loads: Floats, each: int) -> tuple[Floats, Indices]:
    """[L, S] each: load of the coolest rank that has the slot's expert in another slot; that slot. Infinite if none."""
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
