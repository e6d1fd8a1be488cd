"""How evenly a placement spreads the tokens of MoE layers over expert-parallel ranks, and how evenly any could.

Shares and loads are parts of one layer's routed tokens (a layer's shares sum to 1, token counts serve as well). An
expert with replicas splits its tokens over them, evenly unless a split says otherwise. All functions take leading axes
(layers, candidates) at will. Knows nothing of seconds: `estimate` turns loads into time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

HALVINGS = 12
"""Of the interval in which the largest load per replica is sought; what is left is added one by one."""


def replica_counts(slots: ArrayLike, num_experts: int) -> Indices:
    """In how many of the slots [..., slots] each expert stands: [..., experts]."""
    placed = np.asarray(slots, dtype=np.intp)
    rows = placed.reshape(-1, placed.shape[-1])
    offsets = np.arange(rows.shape[0])[:, None] * num_experts
    counts = np.bincount((rows + offsets).ravel(), minlength=rows.shape[0] * num_experts)
    return counts.reshape(*placed.shape[:-1], num_experts)


def slot_loads(shares: ArrayLike, slots: ArrayLike, split: ArrayLike | None = None) -> Floats:
    """Load of each slot [..., slots]: the share of its expert, times the slot's part of it or over the replicas.

    `shares` [..., experts], `slots` and `split` [..., slots] (`Placement.split`) have equal leading axes; every expert
    must stand in some slot.
    """
    load = np.asarray(shares, dtype=np.float64)
    placed = np.asarray(slots, dtype=np.intp)
    if split is not None:
        return np.take_along_axis(load, placed, axis=-1) * np.asarray(split, dtype=np.float64)
    counts = replica_counts(placed, load.shape[-1])
    if not counts.all():
        raise ValueError("slots: every expert must stand in at least one slot")
    per_replica: Floats = np.take_along_axis(load / counts, placed, axis=-1)
    return per_replica


def rank_loads(shares: ArrayLike, slots: ArrayLike, num_ranks: int, split: ArrayLike | None = None) -> Floats:
    """Load of each rank [..., ranks]: the sum over its slots, see `slot_loads`.

    `slots` [..., slots] are numbered rank by rank, as in `Placement.layers`; `num_ranks` divides their number.
    """
    loads = slot_loads(shares, slots, split)
    if loads.shape[-1] % num_ranks:
        raise ValueError(f"slots: {loads.shape[-1]} cannot be shared evenly by {num_ranks} ranks")
    summed: Floats = loads.reshape(*loads.shape[:-1], num_ranks, loads.shape[-1] // num_ranks).sum(axis=-1)
    return summed


def imbalance(loads: ArrayLike) -> float:
    """Max over mean load of the ranks, averaged over layers; 1 is even. `loads`: [layers, ranks] or [ranks]."""
    rows = np.atleast_2d(np.asarray(loads, dtype=np.float64))
    return float(np.mean(np.maximum(rows.max(axis=-1) / rows.mean(axis=-1), 1.0)))


def hottest_rank_bound(shares: ArrayLike, num_ranks: int, slots_per_rank: int, counts: Indices | None = None) -> Floats:
    """Load [...] below which no placement in these slots can bring the hottest rank.

    With n ranks of s slots, E experts of load x1 >= x2 >= ..., it is the largest of

    * the mean, sum(x) / n;
    * without replicas (E = n s), for k = 0 .. s-1: of the k n + 1 hottest experts some rank holds k + 1, and with
      them the lightest s - k - 1 at best: x[kn-k+1] + ... + x[kn+1] + (lightest s - k - 1);
    * with replicas: the least possible value of max(x_e / c_e) over replica counts c_e <= n that sum to n s, which
      adding replicas one by one to the largest x_e / c_e attains: `counts`, for who has spread them already.
    """
    load = np.asarray(shares, dtype=np.float64)
    experts = load.shape[-1]
    if num_ranks * slots_per_rank < experts:
        raise ValueError(f"{num_ranks} x {slots_per_rank} slots cannot hold {experts} experts")
    bound = load.sum(axis=-1) / num_ranks
    if num_ranks * slots_per_rank > experts:
        spread = spread_replicas(load, num_ranks, slots_per_rank) if counts is None else counts
        return np.asarray(np.maximum(bound, (load / spread).max(axis=-1)), dtype=np.float64)
    descending = -np.sort(-load, axis=-1)
    for shared in range(slots_per_rank):
        last = shared * num_ranks
        lightest = descending[..., experts - (slots_per_rank - shared - 1) :]
        bound = np.maximum(bound, descending[..., last - shared : last + 1].sum(axis=-1) + lightest.sum(axis=-1))
    return np.asarray(bound, dtype=np.float64)


def spread_replicas(shares: ArrayLike, num_ranks: int, slots_per_rank: int) -> Indices:
    """Replica counts [..., experts] that fill all slots and make the largest load per replica least.

    Every slot beyond one per expert goes to the expert with the largest load per replica, the first of equals; none
    gets more than one replica per rank. Greedy is exact here: a count vector with a smaller maximum would have to
    give more replicas to the expert that is the largest at the end, hence fewer to one that then exceeds it.
    """
    load = np.asarray(shares, dtype=np.float64)
    rows = load.reshape(-1, load.shape[-1])
    total = num_ranks * slots_per_rank
    counts = _surely_needed(rows, num_ranks, total)
    while (open_rows := np.flatnonzero(counts.sum(axis=1) < total)).size:
        part = rows[open_rows] / counts[open_rows]
        hottest = np.where(counts[open_rows] < num_ranks, part, -1.0).argmax(axis=1)
        counts[open_rows, hottest] += 1
    return counts.reshape(load.shape)


def _surely_needed(rows: Floats, num_ranks: int, total: int) -> Indices:
    """Counts [layers, experts] that replicas added one by one pass through on the way to `total`.

    Of all x_e / c (c = 1, 2, ...) the largest are taken first, so if all those above a level t fit, they are taken.
    Halving finds for each row a level that leaves few to add.
    """
    most, least = rows.max(axis=1), rows.sum(axis=1) / total
    for _ in range(HALVINGS if total > rows.shape[1] else 0):
        level = (most + least) / 2
        fit = _above(rows, level, num_ranks).sum(axis=1) <= total
        most, least = np.where(fit, level, most), np.where(fit, least, level)
    return _above(rows, most, num_ranks).astype(np.intp)


def _above(rows: Floats, level: Floats, num_ranks: int) -> Floats:
    """Replicas [layers, experts] that bring each expert's load per replica to its row's level, one at least.

    A row without any load has level 0.
    """
    needed = rows / np.where(level > 0.0, level, 1.0)[:, None]
    np.ceil(needed, out=needed)
    np.maximum(needed, 1.0, out=needed)
    return np.minimum(needed, float(num_ranks), out=needed)


def imbalance_bound(shares: ArrayLike, num_ranks: int, slots_per_rank: int) -> float:
    """No placement in these slots has a smaller `imbalance` than this; `shares` [layers, experts] or [experts]."""
    load = np.asarray(shares, dtype=np.float64)
    bound = hottest_rank_bound(load, num_ranks, slots_per_rank) * num_ranks / load.sum(axis=-1)
    return float(np.mean(np.maximum(bound, 1.0)))
