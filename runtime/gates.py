"""Gates: which experts each token goes to, and with which weights.

A gate is an `ExpertRouter`: a linear layer and a rule that turns its logits into choices. Knows neither ranks nor
placements nor capacity (`runtime.capacity`), nor what keeps the load even (`runtime.auxiliary`).

Random numbers (jitter, GShard's second expert) are those of torch's default generators, so that a seed set for torch
sets them, and activation checkpointing, which restores these generators, makes the same choices when it recomputes.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.spec.errors import InputError


class Routing(NamedTuple):
    """What a gate decides. All numbers are float32 but the experts, int64."""

    probabilities: Tensor
    """[tokens, experts], each token's sum to 1: what auxiliary losses are made of."""
    weights: Tensor
    """[tokens, top_k]: what each chosen expert's output is multiplied by."""
    experts: Tensor
    """[tokens, top_k]: the best first; -1: this choice goes nowhere."""
    logits: Tensor
    """[tokens, experts]."""


class Rule(Protocol):
    """From logits [tokens, experts] in float32 to a `Routing` of `top_k` choices."""

    def __call__(self, logits: Tensor, top_k: int, training: bool) -> Routing:
        """Decide; `training` allows random numbers."""
        ...


class ExpertRouter(nn.Module):
    """A gate: a projection of each token on the experts, and a rule. Without a rule, softmax and top-k as in Mixtral.

    `jitter` ε: in training, inputs are multiplied by uniform noise from [1 - ε, 1 + ε] on their way to the projection.
    Source: Switch Transformers, arXiv 2101.03961, appendix C.
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        top_k: int,
        bias: bool = False,
        *,
        rule: Rule | None = None,
        jitter: float = 0.0,
    ) -> None:
        """Raises InputError for a top_k that there are not experts for, and for a jitter outside [0, 1)."""
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise InputError.at("top_k", f"must be 1 … {num_experts}, got {top_k}")
        if not 0 <= jitter < 1:
            raise InputError.at("jitter", f"must be at least 0 and below 1, got {jitter}")
        self.num_experts = num_experts
        self.top_k = top_k
        self.jitter = jitter
        self.projection = nn.Linear(hidden_size, num_experts, bias=bias)
        self.rule = SoftmaxRule() if rule is None else rule

    def forward(self, hidden: Tensor) -> Routing:
        """`hidden` [tokens, hidden_size]: who goes where."""
        if self.training and self.jitter > 0:
            hidden = hidden * torch.empty_like(hidden).uniform_(1 - self.jitter, 1 + self.jitter)
        return self.rule(self.projection(hidden).float(), self.top_k, self.training)


class SoftmaxRule:
    """Softmax over all experts, then the largest.

    `renormalise`: weights are scaled to sum to 1 (Mixtral, arXiv 2401.04088, section 2.1; GShard; Qwen's
    `norm_topk_prob`). Otherwise they are the probabilities (Switch Transformers, arXiv 2101.03961, equation 2; OLMoE).
    """

    def __init__(self, renormalise: bool = True) -> None:
        self.renormalise = renormalise

    def __call__(self, logits: Tensor, top_k: int, training: bool) -> Routing:
        """See `Rule`."""
        probabilities = logits.softmax(dim=-1)
        weights, experts = probabilities.topk(top_k, dim=-1)
        if self.renormalise:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return Routing(probabilities, weights, experts, logits)


class GShardRule:
    """Softmax and the two largest; in training, the second is gone to with probability min(1, 2 · its weight).

    The weights of both sum to 1; a second expert that is not gone to adds nothing, and the first keeps its weight.
    Source: GShard, arXiv 2006.16668, algorithm 1.
    """

    def __call__(self, logits: Tensor, top_k: int, training: bool) -> Routing:
        """See `Rule`; raises InputError for another top_k than 2."""
        if top_k != 2:
            raise InputError.at("top_k", f"must be 2 for GShard's gate, got {top_k}")
        routing = SoftmaxRule()(logits, top_k, training)
        if not training:
            return routing
        second = routing.weights[:, 1].detach()
        left_out = 2 * second <= torch.rand_like(second)
        nowhere = F.pad(left_out.unsqueeze(1), (1, 0))
        return routing._replace(
            weights=routing.weights.masked_fill(nowhere, 0.0), experts=routing.experts.masked_fill(nowhere, -1)
        )


class SigmoidRule(nn.Module):
    """Sigmoid of each logit; the largest after a bias that evens out the load; only experts of a few groups.

    The bias [experts] is added where experts are chosen, not in the weights, and learns outside of the gradient: by
    `update_biases` after each step. Groups are equally many consecutive experts (in DeepSeek-V3, those of a node); only
    the `groups_kept` of the largest sum of their best ceil(top_k / groups_kept) biased scores are chosen from.
    Weights are scaled to sum to `scale`, or only multiplied by it.
    Source: DeepSeek-V3, arXiv 2412.19437, equations 12 to 16 and node-limited routing in section 2.1.2; the bias is of
    arXiv 2408.15664, algorithm 1.
    """

    def __init__(
        self,
        num_experts: int,
        *,
        num_groups: int = 1,
        groups_kept: int | None = None,
        renormalise: bool = True,
        scale: float = 1.0,
    ) -> None:
        """`groups_kept` None: all. Raises InputError."""
        super().__init__()
        if num_groups < 1 or num_experts % num_groups:
            raise InputError.at("num_groups", f"must divide the {num_experts} experts, got {num_groups}")
        self.groups_kept = num_groups if groups_kept is None else groups_kept
        if not 1 <= self.groups_kept <= num_groups:
            raise InputError.at("groups_kept", f"must be 1 … {num_groups}, got {groups_kept}")
        self.num_groups = num_groups
        self.renormalise = renormalise
        self.scale = scale
        self.register_buffer("bias", torch.zeros(num_experts))
        self.bias: Tensor
        self.register_buffer("chosen", torch.zeros(num_experts, dtype=torch.int64), persistent=False)
        self.chosen: Tensor
        """[experts]: choices of this rank in training since the bias was last updated; recomputed ones twice."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SigmoidRule:
        """Go to another device or number format; but the bias stays in float32, or small steps would be lost."""
        bias = self.bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.bias = bias.to(self.bias.device)
        return self

    def forward(self, logits: Tensor, top_k: int, training: bool) -> Routing:
        """See `Rule`; raises InputError if the groups kept have fewer experts than are to be chosen."""
        scores = logits.sigmoid()
        experts = self._allowed(scores.detach() + self.bias, top_k).topk(top_k, dim=-1).indices
        weights = scores.gather(1, experts)
        if self.renormalise:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        if training and torch.is_grad_enabled():
            self.chosen.scatter_add_(0, experts.flatten(), torch.ones_like(experts.flatten()))
        return Routing(scores / scores.sum(dim=-1, keepdim=True), weights * self.scale, experts, logits)

    def _allowed(self, biased: Tensor, top_k: int) -> Tensor:
        """Scores [tokens, experts], -inf outside of the groups kept."""
        size = biased.shape[1] // self.num_groups
        if top_k > size * self.groups_kept:
            raise InputError.at(
                "groups_kept", f"{self.groups_kept} groups of {size} experts are too few to choose {top_k} from"
            )
        if self.groups_kept == self.num_groups:
            return biased
        of_groups = biased.view(-1, self.num_groups, size)
        best = of_groups.topk(ceil(top_k / self.groups_kept), dim=-1).values.sum(dim=-1)
        kept = best.topk(self.groups_kept, dim=-1).indices
        left_out = torch.ones_like(best, dtype=torch.bool).scatter(1, kept, False)
        return of_groups.masked_fill(left_out.unsqueeze(-1), -torch.inf).flatten(1)


def switch_gate(hidden_size: int, num_experts: int, jitter: float = 0.01) -> ExpertRouter:
    """One expert for each token, by its probability, with jitter. Source: Switch Transformers, arXiv 2101.03961."""
    return ExpertRouter(hidden_size, num_experts, 1, rule=SoftmaxRule(renormalise=False), jitter=jitter)


def gshard_gate(hidden_size: int, num_experts: int) -> ExpertRouter:
    """Two experts for each token, the second at random by its weight. Source: GShard, arXiv 2006.16668."""
    return ExpertRouter(hidden_size, num_experts, 2, rule=GShardRule())
