"""Shadow slots: the last slots of each rank, for temporary copies of experts that stand elsewhere.

A shadow slot is idle while it holds an expert that its rank has anyway: nothing is sent for it. Filled, it costs time
in every step (planner/cost/copies.py), but its content can change with every decision, for nothing. So the search
begins with idle slots each time, whatever they held, and what it weighs is not moves but how many slots it fills.
Arrays as in the package's docstring: L layers, E experts, R ranks, S slots; of each rank's s the last h are for
shadows.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from planner.cost import Seats
from planner.cost.balance import Floats, Indices, replica_counts
from planner.online.placement.options import Options, first_placement, options
from planner.spec.placement import TokenSplit


def first_slots(num_experts: int, num_ranks: int, lasting_per_rank: int, shadows_per_rank: int) -> Indices:
    """[S]: `first_placement` in the lasting slots, idle shadow slots."""
    lasting = first_placement(num_experts, num_ranks, lasting_per_rank)
    return with_idle_shadows(lasting[None], np.zeros((1, num_experts)), num_ranks, shadows_per_rank).ravel()


def lasting_slots(slots: Indices, num_ranks: int, shadows_per_rank: int) -> Indices:
    """[..., S - R h]: without the shadow slots."""
    by_rank = slots.reshape(*slots.shape[:-1], num_ranks, -1)
    kept = by_rank[..., : by_rank.shape[-1] - shadows_per_rank]
    return kept.reshape(*slots.shape[:-1], -1)


def with_idle_shadows(lasting: Indices, loads: Floats, num_ranks: int, shadows_per_rank: int) -> Indices:
    """[L, S]: each shadow slot holds an expert of its own rank; of those with fewest replicas the coldest first.

    A second slot on the same rank counts as a replica where these take equal parts: it must not draw tokens from other
    ranks. `loads` [L, E].
    """
    every = np.arange(len(loads))[:, None, None]
    by_rank = lasting.reshape(len(lasting), num_ranks, -1)
    replicas = replica_counts(lasting, loads.shape[1])[every, by_rank]
    order = np.lexsort((loads[every, by_rank], replicas), axis=2)
    idle = np.take_along_axis(by_rank, order[:, :, np.arange(shadows_per_rank) % by_rank.shape[2]], axis=2)
    return np.concatenate([by_rank, idle], axis=2).reshape(len(lasting), -1)


def filled_shadows(slots: Indices, num_ranks: int, shadows_per_rank: int) -> NDArray[np.bool_]:
    """[..., R, h]: the shadow slots whose expert has no lasting slot on the same rank."""
    by_rank = slots.reshape(*slots.shape[:-1], num_ranks, -1)
    own = by_rank.shape[-1] - shadows_per_rank
    held = by_rank[..., own:, None] == by_rank[..., None, :own]
    filled: NDArray[np.bool_] = ~held.any(axis=-1)
    return filled


def shadow_options(loads: Floats, seats: Seats, token_split: TokenSplit) -> Options:
    """Contents of the shadow slots of `seats` for `loads` [L, E]; the lasting slots stay. Option 0 is idle.

    `Options.moves` counts filled shadow slots: what `Options.choose` is told is what one is worth in every step.
    """
    ranks, shadows = seats.num_ranks, seats.shadow_slots_per_rank
    idle = with_idle_shadows(lasting_slots(seats.layers, ranks, shadows), loads, ranks, shadows)
    found = options(loads, ranks, idle, token_split, shadows)
    return replace(found, moves=filled_shadows(found.slots, ranks, shadows).sum(axis=(-2, -1)))


def left_idle(slots: Indices, current: Indices, num_ranks: int, shadows_per_rank: int) -> Indices:
    """[L, S]: `slots`, but layers whose shadow slots were idle and stay so keep what these hold."""
    was, then = (~filled_shadows(each, num_ranks, shadows_per_rank).any(axis=(-2, -1)) for each in (current, slots))
    lasting, kept = (lasting_slots(each, num_ranks, shadows_per_rank) for each in (slots, current))
    same = was & then & (lasting == kept).all(axis=1)
    return np.where(same[:, None], current, slots)


def changed_shadows(slots: Indices, seats: Seats) -> int:
    """Shadow slots of `seats` that hold something else in `slots` [L, S]."""
    each = slots.shape[1] // seats.num_ranks
    shadow = np.arange(slots.shape[1]) % each >= each - seats.shadow_slots_per_rank
    return int((slots != seats.layers)[:, shadow].sum())
