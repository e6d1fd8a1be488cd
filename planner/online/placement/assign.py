"""Placements made afresh, the heaviest experts first, and relabelled so that most experts stay.

Arrays as in the package's docstring: L layers, E experts, R ranks, S slots, s = S / R.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.cost.balance import Floats, Indices


def dealt(loads: Floats, num_ranks: int, counts: Indices) -> Indices:
    """[L, S]: replicas dealt out in rounds, heaviest first, in each round the heaviest to the rank with the least load.

    As good as putting them one by one on the emptiest rank, in s steps instead of S. `counts` [L, E]: of replicas, as
    `spread_replicas` has them.
    """
    layers, slots_per_rank = len(loads), int(counts[0].sum()) // num_ranks
    weight = loads / counts
    # All replicas, heaviest first; the replicas of one expert stand together.
    by_weight = np.argsort(-weight, axis=1, kind="stable")
    ordered = np.repeat(by_weight.ravel(), np.take_along_axis(counts, by_weight, axis=1).ravel())
    rounds = ordered.reshape(layers, slots_per_rank, num_ranks)
    every = np.arange(layers)[:, None]
    carried = np.zeros((layers, num_ranks))
    slots = np.empty((layers, num_ranks, slots_per_rank), dtype=np.intp)
    for number in range(slots_per_rank):
        ranks = np.argsort(carried, axis=1, kind="stable")
        slots[every, ranks, number] = rounds[:, number]
        _part_in_round(slots, weight, number)
        carried += np.take_along_axis(weight, slots[:, :, number], axis=1)
    return _part_twins(slots.reshape(layers, -1), weight, num_ranks)


def twins(slots: Indices, num_ranks: int) -> NDArray[np.bool_]:
    """[..., S]: whether an earlier slot of the same rank holds the same expert."""
    rows = slots.reshape(*slots.shape[:-1], num_ranks, -1)
    same = rows[..., :, None] == rows[..., None, :]
    earlier = np.tril(np.ones(same.shape[-2:], dtype=bool), k=-1)
    doubled: NDArray[np.bool_] = (same & earlier).any(axis=-1).reshape(slots.shape)
    return doubled


def keep_in_place(fresh: Indices, current: Indices, num_ranks: int) -> Indices:
    """[L, S]: `fresh` with its ranks renumbered, and the slots within each rank, so that most experts stay put.

    Which rank is which does not matter for balance. Pairs of ranks are matched greedily by the number of experts
    that they share: at least half of what the best matching keeps.
    """
    layers, total = fresh.shape
    slots_per_rank = total // num_ranks
    experts = int(max(fresh.max(), current.max())) + 1
    shared = np.matmul(_presence(current, num_ranks, experts), _presence(fresh, num_ranks, experts).swapaxes(1, 2))
    every = np.arange(layers)
    source = np.empty((layers, num_ranks), dtype=np.intp)
    for _ in range(num_ranks):
        best = shared.reshape(layers, -1).argmax(axis=1)
        mine, theirs = best // num_ranks, best % num_ranks
        source[every, mine] = theirs
        shared[every, mine, :] = -1.0
        shared[every, :, theirs] = -1.0
    by_rank = fresh.reshape(layers, num_ranks, slots_per_rank)
    return align_slots(by_rank[every[:, None], source].reshape(layers, total), current, num_ranks)


def align_slots(target: Indices, current: Indices, num_ranks: int) -> Indices:
    """[L, S]: the same experts on the same ranks as `target`; those that the rank already has keep their slots."""
    experts = int(max(target.max(), current.max())) + 1
    ranks = np.arange(target.shape[1]) // (target.shape[1] // num_ranks)
    every = np.arange(len(target))[:, None]
    stays = (_presence(target, num_ranks, experts) > 0)[every, ranks, current] & ~twins(current, num_ranks)
    arrives = ~(_presence(current, num_ranks, experts) > 0)[every, ranks, target] | twins(target, num_ranks)
    aligned = current.copy()
    # On each rank as many slots fall free as experts arrive, and both masks run rank by rank.
    aligned[~stays] = target[arrives]
    return aligned


def _presence(slots: Indices, num_ranks: int, experts: int) -> NDArray[np.float32]:
    """[L, R, E]: 1 where the rank has the expert."""
    present = np.zeros((len(slots), num_ranks, experts), dtype=np.float32)
    ranks = np.arange(slots.shape[1]) // (slots.shape[1] // num_ranks)
    present[np.arange(len(slots))[:, None], ranks, slots] = 1.0
    return present


def _part_in_round(slots: Indices, weight: Floats, number: int) -> None:
    """Where a rank got in this round an expert that it had, swap it, in place, for the nearest in weight that fits."""
    doubled = (slots[:, :, :number] == slots[:, :, number, None]).any(axis=-1)
    for layer, rank in np.argwhere(doubled):
        before, dealt_now = slots[layer, :, :number], slots[layer, :, number]
        expert = dealt_now[rank]
        takes = ~(before == expert).any(axis=1) & ~(dealt_now[:, None] == before[rank]).any(axis=1)
        others = np.flatnonzero(takes)
        if others.size:
            distance = np.abs(weight[layer, dealt_now[others]] - weight[layer, expert])
            other = others[distance.argmin()]
            dealt_now[rank], dealt_now[other] = dealt_now[other], expert


def _part_twins(slots: Indices, weight: Floats, num_ranks: int) -> Indices:
    """Swap away the second replica of an expert on one rank; the last ranks to fill may leave no other choice.

    Each swap lowers the number of twins: the twin goes to a rank without its expert, which hands over, if it can, an
    expert that is new here too, else a twin of its own.
    """
    parted = slots.copy()
    for layer in np.flatnonzero(twins(slots, num_ranks).any(axis=1)):
        row = parted[layer]
        while (doubled := twins(row, num_ranks)).any():
            slot = int(np.flatnonzero(doubled)[0])
            other = _partner(row, slot, weight[layer], num_ranks)
            row[slot], row[other] = row[other], row[slot]
    return parted


def _partner(row: Indices, slot: int, weight: Floats, num_ranks: int) -> int:
    """The slot to swap with: fewest twins afterwards, then nearest in weight, then the lowest number."""
    others = row.reshape(num_ranks, -1)
    lacks = np.repeat(~(others == row[slot]).any(axis=1), others.shape[1])
    candidates = np.flatnonzero(lacks)
    swapped = np.repeat(row[None], len(candidates), axis=0)
    swapped[np.arange(len(candidates)), candidates] = row[slot]
    swapped[:, slot] = row[candidates]
    remaining = twins(swapped, num_ranks).sum(axis=1)
    distance = np.abs(weight[row[candidates]] - weight[row[slot]])
    return int(candidates[np.lexsort((candidates, distance, remaining))[0]])
