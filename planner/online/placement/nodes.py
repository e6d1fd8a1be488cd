"""Placements for node-limited routing: groups of neighbouring experts stay whole, all replicas on one node.

A token may only go to experts of a few groups, so a group that lay on two nodes would cost a token two. Groups are
dealt out to nodes by their load; then each node of each layer is a small layer of its own, with its own experts and
ranks, and is placed like any other. Arrays: L layers, G groups of E / G experts, N nodes, E experts, R ranks, S slots.
"""

from __future__ import annotations

import numpy as np

from planner.cost.balance import Floats, Indices, hottest_rank_bound, spread_replicas
from planner.online.placement.assign import dealt
from planner.online.placement.options import Options, afresh, options
from planner.online.placement.refine import evened
from planner.spec.placement import TokenSplit


def afresh_on_nodes(
    loads: Floats,
    num_ranks: int,
    slots_per_rank: int,
    num_nodes: int,
    num_groups: int,
    token_split: TokenSplit = TokenSplit.EVEN,
) -> Indices:
    """[L, S]: the most even placement found for `loads` [L, E] with as many whole groups on every node.

    Nodes must divide ranks and groups, groups the experts.
    """
    in_group = loads.reshape(len(loads), num_groups, -1)
    of_groups = in_group.sum(axis=-1)
    counts = spread_replicas(of_groups, num_nodes, num_groups // num_nodes)
    bound = hottest_rank_bound(of_groups, num_nodes, num_groups // num_nodes, counts)
    groups = evened(of_groups, num_nodes, dealt(of_groups, num_nodes, counts), bound)
    members = groups[:, :, None] * in_group.shape[-1] + np.arange(in_group.shape[-1])
    experts = np.sort(members.reshape(len(loads), num_nodes, -1), axis=-1)
    placed = afresh(_of_nodes(loads, experts), num_ranks // num_nodes, slots_per_rank, token_split)
    return np.asarray(_in_layers(placed[None], experts)[0], dtype=np.intp)


def options_on_nodes(
    loads: Floats,
    num_ranks: int,
    current: Indices,
    num_nodes: int,
    token_split: TokenSplit = TokenSplit.EVEN,
    shadow_slots_per_rank: int = 0,
) -> Options:
    """`options` in which no expert leaves its node: `current` [L, S] says which node has which experts.

    Every node must have the same number of experts, none of them on another. To regroup, see `afresh_on_nodes`.
    """
    layers = len(loads)
    present = np.zeros((layers, num_nodes, loads.shape[1]), dtype=bool)
    of_slot = np.arange(current.shape[1]) // (current.shape[1] // num_nodes)
    present[np.arange(layers)[:, None], of_slot, current] = True
    experts = np.nonzero(present)[2].reshape(layers, num_nodes, -1)
    local = np.cumsum(present, axis=2) - 1
    here = local[np.arange(layers)[:, None], of_slot, current].reshape(layers * num_nodes, -1)
    found = options(_of_nodes(loads, experts), num_ranks // num_nodes, here, token_split, shadow_slots_per_rank)
    hottest = found.hottest.reshape(-1, layers, num_nodes).max(axis=-1)
    moves = found.moves.reshape(-1, layers, num_nodes).sum(axis=-1)
    return Options(_in_layers(found.slots, experts), hottest, moves, num_ranks)


def hottest_rank_bound_on_nodes(
    loads: Floats, num_ranks: int, slots_per_rank: int, num_nodes: int, num_groups: int
) -> Floats:
    """Load [L] below which no placement with whole groups on nodes, as many on each, can bring the hottest rank.

    Some node carries at least what the bound of groups on nodes says, and some rank of it the mean of that node; nor is
    the bound without nodes passed.
    """
    of_groups = loads.reshape(len(loads), num_groups, -1).sum(axis=-1)
    of_node = hottest_rank_bound(of_groups, num_nodes, num_groups // num_nodes)
    anywhere = hottest_rank_bound(loads, num_ranks, slots_per_rank)
    return np.asarray(np.maximum(of_node * num_nodes / num_ranks, anywhere), dtype=np.float64)


def _of_nodes(loads: Floats, experts: Indices) -> Floats:
    """[L x N, E / N]: loads of the experts [L, N, E / N] of each node."""
    every = np.arange(len(loads))[:, None, None]
    return np.asarray(loads[every, experts].reshape(-1, experts.shape[-1]), dtype=np.float64)


def _in_layers(slots: Indices, experts: Indices) -> Indices:
    """[options, L, S] from slots [options, L x N, S / N] that count the experts [L, N, E / N] of their node."""
    layers, nodes, each = experts.shape
    named = np.take_along_axis(experts.reshape(1, layers * nodes, each), slots, axis=-1)
    return np.asarray(named.reshape(len(slots), layers, -1), dtype=np.intp)
