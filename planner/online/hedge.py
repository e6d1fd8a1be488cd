"""Placements for loads that have just jumped: broad ones, that most of what may come can be split well on.

Where tokens are split anew in every step, a placement need not be even for the load to come; it need only let it flow:
experts that may get hot must stand on several ranks. While loads jump, the last load says little of which these are.
So replicas go by the square roots of the loads, between the loads themselves and equal numbers for all, and experts
that were hot a few windows ago count too, for many come back. That both help is measured (docs/log.md), not derived.

Arrays as in planner/online/placement.py: L layers, E experts, R ranks, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.cost.balance import Floats, Indices, hottest_rank_bound, rank_loads
from planner.online.assign import align_slots, dealt, keep_in_place
from planner.online.placement import FAR, options
from planner.online.split import best_split
from planner.spec.placement import TokenSplit

JUMPED = 0.1
"""A layer's load has jumped if this part of its tokens went to other experts than in the window before. A choice."""

FADING = 0.3
"""What an older load counts, per window. A choice: 0 to 0.5 do about as well on the traces."""


def suited(
    recent: Sequence[Floats],
    num_ranks: int,
    current: Indices,
    token_split: TokenSplit,
    move_price: float = 0.0,
    shadow_slots_per_rank: int = 0,
) -> Indices:
    """[L, S]: a placement near `current` for the load that follows the `recent` ones [L, E], the latest last.

    It is the best option for the latest. Where tokens are split in every step, it starts from a broad placement in
    layers whose load has jumped and is far from even now, if that pays for its moves under the latest load.
    """
    latest, total = recent[-1], current.shape[1]
    near = options(latest, num_ranks, current, token_split, shadow_slots_per_rank)
    chosen = near.choose(move_price)
    if token_split is not TokenSplit.STEP or shadow_slots_per_rank or total == latest.shape[1]:
        return chosen
    bound = hottest_rank_bound(latest, num_ranks, total // num_ranks)
    at = np.flatnonzero(_jumped(recent) & (near.hottest[0] > bound * (1 + FAR / 2)))
    if at.size:
        fresh = broad([loads[at] for loads in recent], num_ranks, total // num_ranks)
        fresh = keep_in_place(fresh, current[at], num_ranks)
        fresh = options(latest[at], num_ranks, fresh, token_split).choose(move_price)
        fresh = align_slots(fresh, current[at], num_ranks)
        split = best_split(latest[at], fresh, num_ranks)
        hottest = rank_loads(latest[at], fresh, num_ranks, split).max(axis=1)
        pays = hottest + move_price * (fresh != current[at]).sum(axis=1) < near.hottest[0, at]
        chosen[at[pays]] = fresh[pays]
    return chosen


def broad(recent: Sequence[Floats], num_ranks: int, slots_per_rank: int) -> Indices:
    """[L, S]: replicas by the square roots of the loads [L, E], of which the largest of late counts, fading."""
    lately = recent[0]
    for loads in recent[1:]:
        lately = np.maximum(FADING * lately, loads)
    return dealt(np.sqrt(lately), num_ranks, slots_per_rank)


def _jumped(recent: Sequence[Floats]) -> np.ndarray:
    """[L]: whether the latest load is of other experts than the one before; of a single load nothing is known."""
    if len(recent) == 1:
        return np.ones(len(recent[0]), dtype=bool)
    before, after = (loads / np.maximum(loads.sum(axis=1, keepdims=True), 1e-300) for loads in recent[-2:])
    return np.asarray(np.abs(after - before).sum(axis=1) / 2 > JUMPED)
