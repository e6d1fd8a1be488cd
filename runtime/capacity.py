"""How many tokens an expert takes, which ones where more come, and buffers of one size for all experts.

Capacity is counted per source: an expert takes so many choices of each rank, whatever those of others are; so ranks
need no word with each other to know what is dropped, and a placement drops nothing else than another.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, isfinite

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from planner.spec.errors import InputError
from runtime.dispatch import count
from runtime.gates import Routing
from runtime.topology import Counts, Topology


@dataclass(frozen=True)
class Capacity:
    """An expert takes at most `factor` · tokens · top_k / experts of the choices of each rank; the rest is dropped.

    Rounded up as Megatron-Core and DeepSpeed do, but from exact decimals: their product of floats can be one too many.
    A factor of 0: as much as is needed, nothing is dropped. Below 0: as much as is needed, at most what -factor gives.
    These differ from None and from -factor in the size of padded buffers only.
    Source of the latter two: Tutel, arXiv 2206.03382, and its parameter capacity_factor.
    """

    factor: float
    by_priority: bool = False
    """Which choices are kept: those of the tokens that their gate is most sure of, instead of the first ones."""
    padded: bool = False
    """Each rank sends equally many rows to each slot, the rest zeros: equal splits in the all-to-all, fixed shapes."""
    equal_tokens: bool = False
    """All ranks always have equally many tokens: with `padded` and a factor above 0 they need not ask each other."""

    def __post_init__(self) -> None:
        if not isfinite(self.factor):
            raise InputError.at("capacity_factor", f"must be finite, got {self.factor}")

    def limit(self, num_tokens: int, top_k: int, num_experts: int) -> int | None:
        """The most choices of one rank that an expert takes; None: as many as come."""
        factor = Fraction(str(abs(self.factor)))  # as it is written: 1.1 is 11/10, not the nearest binary number
        return ceil(factor * num_tokens * top_k / num_experts) if factor else None


def limited(routing: Routing, capacity: Capacity | None) -> Tensor:
    """The experts chosen [tokens, top_k], -1 where a choice is dropped; without a capacity none is."""
    tokens, top_k = routing.experts.shape
    num_experts = routing.probabilities.shape[1]
    limit = None if capacity is None else capacity.limit(tokens, top_k, num_experts)
    if capacity is None or limit is None:
        return routing.experts
    priority = routing.probabilities.detach().amax(dim=1) if capacity.by_priority else None
    return within_capacity(routing.experts, limit, num_experts, priority)


def within_capacity(experts: Tensor, limit: int, num_experts: int, priority: Tensor | None = None) -> Tensor:
    """`experts` [tokens, top_k], -1 where there are more than `limit` choices of an expert before this one.

    First choices of all tokens go before second choices; among them earlier tokens before later ones (GShard, arXiv
    2006.16668, algorithm 1), or those of higher `priority` [tokens] before others, earlier ones first where it is equal
    (batch prioritized routing: V-MoE, arXiv 2106.05974, section 4.1).
    """
    if priority is not None:
        order = priority.argsort(descending=True, stable=True)
        kept = within_capacity(experts[order], limit, num_experts)
        return torch.empty_like(kept).index_copy_(0, order, kept)
    by_choice = experts.t().flatten()
    by_choice = by_choice.where(by_choice >= 0, num_experts)
    order = by_choice.argsort(stable=True)
    counts = count(by_choice, num_experts + 1)
    begins = counts.cumsum(0) - counts
    position = torch.empty_like(order).index_copy_(
        0, order, torch.arange(len(order), device=order.device) - begins[by_choice[order]]
    )
    return experts.masked_fill((position >= limit).view(experts.shape[1], -1).t(), -1)


def padded_counts(choices: Tensor, num_slots: int, num_experts: int, capacity: Capacity, topology: Topology) -> Counts:
    """Equal rows from each rank to each slot [R, S], room for all `choices` [tokens, top_k] that `limited` has left.

    The ranks agree on the largest need of any of them by one all-reduce, unless it is the same for all by itself.
    """
    tokens, top_k = choices.shape
    limit = capacity.limit(tokens, top_k, num_experts)
    if capacity.factor > 0 and limit is not None:
        rows = limit if capacity.equal_tokens else _largest(choices.new_full((), limit), topology)
    else:
        rows = _largest(count(choices, num_experts).amax(), topology)
    return np.full((topology.num_ranks, num_slots), rows, dtype=np.int64)


def _largest(number: Tensor, topology: Topology) -> int:
    """Of all ranks."""
    if topology.num_ranks > 1:
        dist.all_reduce(number, dist.ReduceOp.MAX, group=topology.group)
    return int(number)
