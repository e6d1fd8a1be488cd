"""Doubles of routers whose frameworks do not install on CPU, or not beside the others: as documented, in torch alone.

Each is made after the source that it names: the same classes, attributes and outputs; what an agent does not see is
left out. The package is part of how a router is found, so the doubles say it in `__module__`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import one_hot


def of_package(module):
    """Let a class say that it was defined in `module`."""

    def rename(double):
        double.__module__ = module
        return double

    return rename


class Experts(nn.ModuleList):
    """One linear layer per expert, on every token that chose it."""

    def __init__(self, hidden_size, num_experts):
        super().__init__(nn.Linear(hidden_size, hidden_size) for _ in range(num_experts))

    def forward(self, hidden, chosen, weights):
        """`hidden` [tokens, hidden_size], `chosen` and `weights` [tokens, top_k]; -1: dropped."""
        result = torch.zeros_like(hidden)
        for number, expert in enumerate(self):
            weight = (weights * (chosen == number)).sum(dim=1, keepdim=True)
            result = result + weight * expert(hidden)
        return result


@of_package("transformers.models.mixtral.modeling_mixtral")
class MixtralSparseMoeBlock(nn.Module):
    """transformers 4.57.6: the gate is a linear layer, the block chooses, its second output are the logits."""

    def __init__(self, hidden_size, num_experts, top_k):
        super().__init__()
        self.num_experts, self.top_k = num_experts, top_k
        self.gate = nn.Linear(hidden_size, num_experts, bias=False)
        self.experts = Experts(hidden_size, num_experts)

    def forward(self, hidden_states):
        router_logits = self.gate(hidden_states)
        weights = router_logits.softmax(dim=1, dtype=torch.float)
        weights, chosen = weights.topk(self.top_k, dim=-1)
        return self.experts(hidden_states, chosen, weights), router_logits


@of_package("transformers.models.deepseek_v3.modeling_deepseek_v3")
class DeepseekV3TopkRouter(nn.Module):
    """transformers 4.57.6: (indices, weights); the number of experts is `n_routed_experts`."""

    def __init__(self, hidden_size, num_experts, top_k):
        super().__init__()
        self.n_routed_experts, self.top_k = num_experts, top_k
        self.weight = nn.Parameter(torch.randn(num_experts, hidden_size))

    def forward(self, hidden_states):
        scores = (hidden_states @ self.weight.t()).sigmoid()
        chosen = scores.topk(self.top_k, dim=-1, sorted=False)[1]
        return chosen, scores.gather(1, chosen)


@of_package("torchtitan.models.common.moe")
class TokenChoiceTopKRouter(nn.Module):
    """torchtitan 0.3.0: (scores [B, L, K], ids [B, L, K], scores of all [B, L, E])."""

    def __init__(self, hidden_size, num_experts, top_k):
        super().__init__()
        self.gate = nn.Linear(hidden_size, num_experts, bias=False)
        self.num_experts, self.top_k = num_experts, top_k

    def forward(self, x_BLD, expert_bias_E=None):
        scores = self.gate(x_BLD).sigmoid()
        biased = scores if expert_bias_E is None else scores + expert_bias_E
        chosen = biased.topk(self.top_k, dim=-1, sorted=False)[1]
        return scores.gather(-1, chosen), chosen, scores


@of_package("torchtitan.models.common.moe")
class MoE(nn.Module):
    """torchtitan 0.3.0: `tokens_per_expert_E` grows in every training forward pass, recomputed ones too."""

    def __init__(self, hidden_size, num_experts, top_k):
        super().__init__()
        self.router = TokenChoiceTopKRouter(hidden_size, num_experts, top_k)
        self.routed_experts = Experts(hidden_size, num_experts)
        self.register_buffer("tokens_per_expert_E", torch.zeros(num_experts), persistent=False)

    def forward(self, x_BLD):
        scores, chosen, all_scores = self.router(x_BLD)
        routing_map = torch.zeros_like(all_scores, dtype=torch.bool).scatter_(-1, chosen, True)
        if self.training:
            with torch.no_grad():
                self.tokens_per_expert_E.add_(routing_map.sum(dim=(0, 1)))
        tokens = x_BLD.reshape(-1, x_BLD.shape[-1])
        return self.routed_experts(tokens, chosen.flatten(0, 1), scores.flatten(0, 1)).view_as(x_BLD)


@of_package("tutel.impls.moe_layer")
class MOELayer(nn.Module):
    """Tutel, main: the layer keeps `dispatch_count`, which carries the choices `topk_ids` (older: not, `old=True`)."""

    def __init__(self, hidden_size, num_experts, top_k, old=False, batch_prioritized_routing=False):
        super().__init__()
        self.register_buffer("_num_global_experts", torch.tensor(num_experts))
        self.gates = nn.ModuleList([nn.Linear(hidden_size, num_experts, bias=False)])
        self.experts = Experts(hidden_size, num_experts)
        self.top_k, self.old, self.batch_prioritized_routing = top_k, old, batch_prioritized_routing

    @property
    def num_global_experts(self):
        return int(self._num_global_experts)

    def forward(self, input):
        scores = self.gates[0](input).softmax(dim=1)
        gates, topk_indices = scores.topk(self.top_k, dim=1)
        self.dispatch_count = one_hot(topk_indices, self.num_global_experts).sum(dim=(0, 1))
        if not self.old:
            self.dispatch_count.topk_ids = topk_indices
        return self.experts(input, topk_indices, gates)


@of_package("fmoe.gates.base_gate")
class BaseGate(nn.Module):
    """FastMoE, main: knows the experts of one worker and of all."""

    def __init__(self, num_expert, world_size):
        super().__init__()
        self.world_size, self.num_expert = world_size, num_expert
        self.tot_expert = world_size * num_expert


@of_package("fmoe.gates.naive_gate")
class NaiveGate(BaseGate):
    """FastMoE, main: (ids [tokens, top_k], scores); older versions return the ids flat (`flat=True`)."""

    def __init__(self, d_model, num_expert, world_size, top_k=2, flat=False):
        super().__init__(num_expert, world_size)
        self.gate = nn.Linear(d_model, self.tot_expert)
        self.top_k, self.flat = top_k, flat

    def forward(self, inp):
        values, chosen = self.gate(inp).topk(self.top_k, dim=-1, sorted=False)
        scores = values.softmax(dim=-1)
        return (chosen.view(-1), scores.unsqueeze(1)) if self.flat else (chosen, scores)


@of_package("fmoe.gates.gshard_gate")
class GShardGate(NaiveGate):
    """FastMoE, main: choices above the capacity become -1."""

    def __init__(self, d_model, num_expert, world_size, topk=2, capacity=2):
        super().__init__(d_model, num_expert, world_size, top_k=topk)
        self.capacity = capacity

    def forward(self, x):
        chosen, scores = super().forward(x)
        place = one_hot(chosen.flatten(), self.tot_expert).cumsum(dim=0).gather(1, chosen.view(-1, 1)).view_as(chosen)
        return chosen.masked_fill(place > self.capacity, -1), scores
