"""Gates: which experts each token goes to, with which weights, and what keeps the load even.

Knows neither ranks nor placements, but for the sum of counts over a group in `balance_loss`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime.exchange import Group, num_ranks


class ExpertRouter(nn.Module):
    """Softmax over the experts, then the `top_k` largest, their weights scaled to sum to 1 (as Mixtral does)."""

    def __init__(self, hidden_size: int, num_experts: int, top_k: int, bias: bool = False) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.top_k = top_k
        self.projection = nn.Linear(hidden_size, num_experts, bias=bias)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`hidden` [tokens, hidden_size] → probabilities [tokens, experts], weights and experts [tokens, top_k]."""
        probabilities = self.projection(hidden).float().softmax(dim=-1)
        weights, experts = probabilities.topk(self.top_k, dim=-1)
        return probabilities, weights / weights.sum(dim=-1, keepdim=True), experts


def within_capacity(experts: Tensor, capacity: int, num_experts: int) -> Tensor:
    """Which of the flattened choices [tokens · top_k] are kept if each expert takes `capacity`: ascending indices.

    First choices of all tokens go before second choices, earlier tokens before later ones (GShard, arXiv 2006.16668,
    algorithm 1).
    """
    num_tokens, top_k = experts.shape
    by_choice = experts.t().flatten()
    order = by_choice.argsort(stable=True)
    counts = torch.bincount(by_choice, minlength=num_experts)
    starts = counts.cumsum(0) - counts
    position = torch.arange(len(order), device=order.device) - starts[by_choice[order]]
    kept = order[position < capacity]
    return (kept % num_tokens * top_k + kept // num_tokens).sort().values


def balance_loss(probabilities: Tensor, experts: Tensor, group: Group | None) -> Tensor:
    """experts · Σ_e (share of choices of e) · (mean probability of e): 1 when balanced, up to `experts` when not.

    The shares are those of all ranks of the group, so that the mean of this loss over ranks is the loss of one process
    on the union of their tokens. Source: Switch Transformers, arXiv 2101.03961, equations 4 to 6.
    """
    num_experts = probabilities.shape[1]
    counts = torch.bincount(experts.flatten(), minlength=num_experts)
    if num_ranks(group) > 1:
        torch.distributed.all_reduce(counts, group=group)
    shares = counts.to(probabilities.dtype) / counts.sum()
    return num_experts * (shares * probabilities.mean(dim=0)).sum()
