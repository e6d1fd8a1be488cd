"""What it takes to keep the copies of an expert equal: replicas for good, and shadows for a step.

Once per step, whatever the number of micro-batches: no weight changes in between, and gradients add up where they are.

* Replicas have weights, gradients and optimizer state of their own. Their gradients are summed over the ranks that hold
  the expert, in a ring; every copy then makes the same update.
* A shadow has weights and gradients only. Its weights come from the slot of the expert before the first forward pass,
  its gradients go back after the last backward pass, along a chain of all ranks that hold the expert.

Each expert-parallel group keeps its own copies equal, when expert-data-parallel devices have reduced the gradients of
all copies, shadows too (as runtime.gradients does). What is sharded over these devices stays so: each sends its part.
Copies on one rank add up without any traffic. Own derivation, from rings as NCCL has them; FasterMoE
(He et al., PPoPP 2022, section 4.1) sends shadows in every micro-batch, which gradient accumulation does not need.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.balance import Floats, Indices, replica_counts
from planner.cost.numbers import Numbers
from planner.cost.transfer import transfers_s
from planner.spec.cluster import Level


class Copies(NamedTuple):
    """How experts stand in slots, for the price of an MoE layer: numbers, or arrays for many layers and placements."""

    own_ratio: Numbers = 1.0
    """Slots of a rank that are no shadows, over its even share of the experts."""
    shadow_ratio: Numbers = 0.0
    """Shadow slots of a rank, over the same."""
    once_forward_s: Numbers = 0.0
    """Weights of shadows, before the first forward pass of a step."""
    once_backward_s: Numbers = 0.0
    """Gradients of shadows and sums over replicas, after the last backward pass of a step."""


ONE_EACH = Copies()
"""Every expert stands in one slot."""


class ExpertBytes(NamedTuple):
    """What one device sends of an expert."""

    weights: float
    gradients: float


class _Holders(NamedTuple):
    """Ranks with a copy of an expert that stands on several, in order of layer, expert and rank; [copies] each."""

    layer: Indices
    rank: Indices
    is_shadow: NDArray[np.bool_]
    expert: Indices
    """Number of the expert among all of all layers."""

    def only(self, kept: NDArray[np.bool_]) -> _Holders:
        """Some of them."""
        return _Holders(self.layer[kept], self.rank[kept], self.is_shadow[kept], self.expert[kept])


def equal_copies_s(
    levels: tuple[Level, ...],
    slots: Indices,
    num_ranks: int,
    shadow_slots_per_rank: int,
    rank_stride: int,
    sent: ExpertBytes,
) -> tuple[Floats, Floats]:
    """([layers] before the first forward pass, [layers] after the last backward pass) of a step, in seconds.

    `slots` [layers, slots] as in `Placement.layers`; expert-parallel ranks are `rank_stride` devices apart.
    """
    holders = _holders(slots, num_ranks, shadow_slots_per_rank)
    layers = len(slots)
    own = holders.only(~holders.is_shadow)
    following, members = _ring(own.expert)
    summed_s = transfers_s(
        levels,
        own.layer,
        own.rank * rank_stride,
        own.rank[following] * rank_stride,
        2.0 * (members - 1) / members * sent.gradients,
        layers,
        2 * (members - 1),
    )
    if not shadow_slots_per_rank:
        return np.zeros(layers), summed_s
    following, _ = _ring(holders.expert)
    to_shadow = holders.is_shadow[following]
    chain = (holders.layer[to_shadow], holders.rank[to_shadow], holders.rank[following][to_shadow])
    layer, giver, taker = chain[0], chain[1] * rank_stride, chain[2] * rank_stride
    weights_s = transfers_s(levels, layer, giver, taker, sent.weights, layers)
    gradients_s = transfers_s(levels, layer, taker, giver, sent.gradients, layers)
    return weights_s, gradients_s + summed_s


def _holders(slots: Indices, num_ranks: int, shadow_slots_per_rank: int) -> _Holders:
    """Of copies on one rank the one that is no shadow stands for all."""
    layers, per_rank = len(slots), slots.shape[1] // num_ranks
    experts = int(slots.max()) + 1
    number = np.arange(slots.shape[1])
    expert = np.arange(layers)[:, None] * experts + slots
    shadow = number % per_rank >= per_rank - shadow_slots_per_rank
    several = np.take_along_axis(replica_counts(slots, experts), slots, axis=1) > 1
    code = np.sort((2 * (expert * num_ranks + number // per_rank) + shadow)[several])
    place, is_shadow = code // 2, code % 2 == 1
    first = np.diff(place, prepend=-1) > 0
    place = place[first]
    return _Holders(place // num_ranks // experts, place % num_ranks, is_shadow[first], place // num_ranks)


def _ring(expert: Indices) -> tuple[Indices, Indices]:
    """Of each copy (those of one expert stand side by side): the next in its ring, and how many are in it."""
    if not len(expert):
        return expert, expert
    starts = np.flatnonzero(np.diff(expert, prepend=-1))
    sizes = np.diff(starts, append=len(expert))
    following = np.arange(1, len(expert) + 1)
    following[starts + sizes - 1] = starts
    return following, np.repeat(sizes, sizes)
