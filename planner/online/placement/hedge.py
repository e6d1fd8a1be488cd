"""Placements for loads that have just jumped: broad ones, that most of what may come can be split well on.

Where tokens are split anew in every step, a placement need not be even for the load to come; it need only let it flow:
experts that may get hot must stand on several ranks. While loads jump, the last load says little of which these are.
So replicas go by the square roots of the loads, between the loads themselves and equal numbers for all, and experts
that were hot a few windows ago count too, for many come back. That both help is measured (docs/log.md), not derived.

Arrays as in the package's docstring: L layers, E experts, R ranks, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from planner.cost.balance import Floats, Indices, hottest_rank_bound, rank_loads, spread_replicas
from planner.online.placement.assign import align_slots, dealt, keep_in_place
from planner.online.placement.couple import CLOSE
from planner.online.placement.options import Options, options
from planner.online.placement.split import best_split
from planner.spec.placement import TokenSplit

JUMPED = 0.1
"""A layer's load has jumped if this part of its tokens went to other experts than in the window before. A choice."""

REMEMBERED = 0.3
"""The part of the mean of the recent loads, beside the latest, in what a broad placement is made for. A choice: of
those tried the best over all drifts."""

HINDSIGHT = 0.2
"""A placement in force has grown on the recent loads, so it suits them better than what comes: a broad one may be worse
on them by this part. A choice: 0.1 and 0.2 served all drifts tried; 0 loses half the gain, 0.35 forgets what comes
back."""


def suited(
    recent: Sequence[Floats],
    num_ranks: int,
    current: Indices,
    token_split: TokenSplit,
    move_price: float = 0.0,
    shadow_slots_per_rank: int = 0,
) -> Indices:
    """[L, S]: a placement near `current` for the load that follows the `recent` ones [L, E], the latest last.

    It is the best option for the latest. Where tokens are split in every step, layers whose load has jumped, and which
    are no longer even, get a broad placement, unless it serves the recent loads worse or costs more than `current`.
    Eight recent loads are enough, two nearly as good.
    """
    latest = recent[-1]
    near = options(latest, num_ranks, current, token_split, shadow_slots_per_rank)
    if token_split is not TokenSplit.STEP or shadow_slots_per_rank:
        return near.choose(move_price)
    return broader(recent, near, num_ranks, current, move_price)


def broader(
    recent: Sequence[Floats], near: Options, num_ranks: int, current: Indices, move_price: float = 0.0
) -> Indices:
    """`suited` where tokens are split in every step and `near`, the options for the latest load, are known already."""
    latest, chosen = recent[-1], near.choose(move_price)
    if current.shape[1] == latest.shape[1]:
        return chosen
    bound = hottest_rank_bound(latest, num_ranks, current.shape[1] // num_ranks)
    at = np.flatnonzero(_jumped(recent) & (near.hottest[0] > bound * (1 + CLOSE)))
    if not at.size:
        return chosen
    loads = [seen[at] for seen in recent]
    broad, hottest, moves = _broad(loads, num_ranks, current[at], move_price)
    pays = hottest + move_price * moves < near.hottest[0, at]
    suits = _mean_hottest(loads, broad, num_ranks) <= (1 + HINDSIGHT) * _mean_hottest(loads, chosen[at], num_ranks)
    chosen[at[pays & suits]] = broad[pays & suits]
    return chosen


def _broad(
    recent: Sequence[Floats], num_ranks: int, current: Indices, move_price: float
) -> tuple[Indices, Floats, Indices]:
    """(Broad placements [L, S], made even for the latest load; load of the hottest ranks [L]; moves from `current`.)"""
    expected = (1 - REMEMBERED) * recent[-1] + REMEMBERED * np.mean(recent, axis=0)
    weights = np.sqrt(expected)
    dealt_out = dealt(weights, num_ranks, spread_replicas(weights, num_ranks, current.shape[1] // num_ranks))
    start = keep_in_place(dealt_out, current, num_ranks)
    placed = options(recent[-1], num_ranks, start, TokenSplit.STEP).choose(move_price)
    placed = align_slots(placed, current, num_ranks)
    return placed, _hottest(recent[-1], placed, num_ranks), (placed != current).sum(axis=1)


def _jumped(recent: Sequence[Floats]) -> NDArray[np.bool_]:
    """[L]: whether the latest load is of other experts than the one before; of a single load nothing is known."""
    if len(recent) == 1:
        return np.ones(len(recent[0]), dtype=bool)
    before, after = recent[-2:]
    passed = after * before.sum(axis=1, keepdims=True) - before * after.sum(axis=1, keepdims=True)
    return np.asarray(np.abs(passed).sum(axis=1) / 2 > JUMPED * before.sum(axis=1) * after.sum(axis=1))


def _mean_hottest(recent: Sequence[Floats], slots: Indices, num_ranks: int) -> Floats:
    """[L]: mean over the loads, each split as is best, in parts of its sum."""
    each = [_hottest(loads, slots, num_ranks) / np.maximum(loads.sum(axis=1), np.finfo(float).tiny) for loads in recent]
    return np.asarray(np.mean(each, axis=0))


def _hottest(loads: Floats, slots: Indices, num_ranks: int) -> Floats:
    """[L]: load of the hottest rank under the best split."""
    peak: Floats = rank_loads(loads, slots, num_ranks, best_split(loads, slots, num_ranks)).max(axis=1)
    return peak
