"""DeepSeek's expert-parallel load balancer: hot experts get replicas, replicas are packed, every time from nothing.

1. If the gate picks experts from groups and the nodes divide these: groups are packed to nodes, and each node goes on
   with its own experts; else all ranks count as one node ("global").
2. Each slot beyond one per expert goes to the expert with the most load per replica. No limit per rank is known.
3. Replicas are packed to ranks, the heaviest first, each to the rank with the least load that still has a slot.

Replicas of an expert take equal parts of its tokens. The old placement plays no part: ranks are numbered as they come,
and an expert may stand twice on one rank.
Source: DeepSeek-V3 technical report, arXiv 2412.19437, section 3.4.1 (redundant experts); README of deepseek-ai/EPLB,
"The Algorithm". Arrays as in `planner.online.placement`.
"""

from __future__ import annotations

import numpy as np

from planner.cost.balance import Floats, Indices
from planner.spec.errors import InputError


def balanced_replicas(
    loads: Floats, num_ranks: int, slots_per_rank: int, num_nodes: int = 1, num_groups: int = 1
) -> Indices:
    """[L, S]: the slots for `loads` [L, E] of the window before.

    Raises InputError if nodes do not divide ranks, or groups experts.
    """
    layers, experts = loads.shape
    if num_ranks % num_nodes or experts % num_groups:
        raise InputError.at(
            "expert_groups",
            f"{num_groups} groups and {num_nodes} nodes must divide {experts} experts and {num_ranks} ranks",
        )
    nodes = num_nodes if num_groups % num_nodes == 0 else 1
    of_node = _experts_of_nodes(loads, nodes, num_groups if nodes > 1 else 1).reshape(layers * nodes, -1)
    rows = np.repeat(loads, nodes, axis=0)
    inside = _within_node(np.take_along_axis(rows, of_node, axis=1), num_ranks // nodes, slots_per_rank)
    return np.asarray(np.take_along_axis(of_node, inside, axis=1).reshape(layers, -1), dtype=np.intp)


def packed(weights: Floats, num_packs: int) -> Indices:
    """[L, N]: which item stands where, pack by pack, all packs of one size: the heaviest to the lightest with room.

    `weights` [L, N]. Packs of a single item keep the order of the items.
    """
    layers, items = weights.shape
    size = items // num_packs
    if size == 1:
        return np.tile(np.arange(items), (layers, 1))
    every = np.arange(layers)
    filled = np.zeros((layers, num_packs), dtype=np.intp)
    carried = np.zeros((layers, num_packs))
    places = np.empty((layers, items), dtype=np.intp)
    for item in np.argsort(-weights, axis=1, kind="stable").T:
        pack = np.where(filled < size, carried, np.inf).argmin(axis=1)
        places[every, pack * size + filled[every, pack]] = item
        filled[every, pack] += 1
        carried[every, pack] += weights[every, item]
    return places


def _experts_of_nodes(loads: Floats, num_nodes: int, num_groups: int) -> Indices:
    """[L, nodes, experts of a node]: whole groups, packed by their load."""
    layers, experts = loads.shape
    size = experts // num_groups
    groups = packed(loads.reshape(layers, num_groups, size).sum(axis=2), num_nodes)
    members = groups[:, :, None] * size + np.arange(size)
    return np.asarray(members.reshape(layers, num_nodes, -1), dtype=np.intp)


def _within_node(loads: Floats, num_ranks: int, slots_per_rank: int) -> Indices:
    """[L, slots]: replicas for the hottest, then packed."""
    layers, experts = loads.shape
    every = np.arange(layers)
    counts = np.ones((layers, experts), dtype=np.intp)
    replicas = np.empty((layers, num_ranks * slots_per_rank), dtype=np.intp)
    replicas[:, :experts] = np.arange(experts)
    for slot in range(experts, replicas.shape[1]):
        hottest = (loads / counts).argmax(axis=1)
        replicas[:, slot] = hottest
        counts[every, hottest] += 1
    places = packed(np.take_along_axis(loads / counts, replicas, axis=1), num_ranks)
    return np.asarray(np.take_along_axis(replicas, places, axis=1), dtype=np.intp)
