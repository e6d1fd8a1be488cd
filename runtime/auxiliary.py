"""What keeps the load of experts even: auxiliary losses, and biases that learn outside of the gradient.

Losses are those of all tokens of a group of ranks: the mean over its ranks is what one process would have on the union
of their tokens, however unevenly these are spread. For that, counts are summed over the group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from runtime.dispatch import count
from runtime.exchange import Group, num_ranks
from runtime.gates import Routing, SigmoidRule


@dataclass(frozen=True)
class AuxiliaryLoss:
    """A sum of auxiliary losses, each with its factor; 0: without that one."""

    balance: float = 0.0
    """Of `balance_loss` over all choices; Switch Transformers: 0.01."""
    first_choices: float = 0.0
    """Of `balance_loss` over first choices alone: GShard, arXiv 2006.16668, algorithm 1, there divided by experts²."""
    router_z: float = 0.0
    """Of `z_loss`; ST-MoE: 0.001."""

    def __call__(self, routing: Routing, group: Group | None) -> Tensor:
        """This rank's part, to be added to its loss. All ranks of the group must call this; one all-reduce."""
        tokens, num_experts = routing.probabilities.shape
        ours = [count(routing.experts, num_experts), count(routing.experts[:, :1], num_experts)]
        sums = _summed(torch.cat([*ours, ours[0].new_full((1,), tokens)]), group)
        choices, firsts, total = torch.split(sums, [num_experts, num_experts, 1])
        per_token = num_ranks(group) / total.clamp(min=1)
        mean = routing.probabilities.sum(dim=0) * per_token
        loss = self.balance * _balance(mean, choices) + self.first_choices * _balance(mean, firsts)
        return loss + self.router_z * (_squared_logs(routing.logits) * per_token).sum()


def balance_loss(probabilities: Tensor, experts: Tensor, group: Group | None) -> Tensor:
    """experts · Σ_e (share of choices of e) · (mean probability of e): 1 when balanced, up to `experts` when not.

    `probabilities` [tokens, experts], `experts` [tokens, top_k], of which -1 does not count.
    Source: Switch Transformers, arXiv 2101.03961, equations 4 to 6.
    """
    tokens, num_experts = probabilities.shape
    counts = count(experts, num_experts)
    sums = _summed(torch.cat([counts, counts.new_full((1,), tokens)]), group)
    return _balance(probabilities.sum(dim=0) * num_ranks(group) / sums[-1].clamp(min=1), sums[:-1])


def _balance(mean_probability: Tensor, counts: Tensor) -> Tensor:
    """Both [experts]."""
    return len(counts) * (counts / counts.sum().clamp(min=1) * mean_probability).sum()


def z_loss(logits: Tensor, group: Group | None) -> Tensor:
    """Mean over tokens of (log Σ_e exp(logit of e))²: keeps logits small. `logits` [tokens, experts].

    Source: ST-MoE, arXiv 2202.08906, equation 5.
    """
    tokens = _summed(torch.full((), len(logits), device=logits.device), group)
    return _squared_logs(logits) * num_ranks(group) / tokens.clamp(min=1)


def _squared_logs(logits: Tensor) -> Tensor:
    return logits.logsumexp(dim=1).square().sum()


def carrying(output: Tensor, loss: Tensor) -> Tensor:
    """`output`, unchanged, whose gradient brings with it the gradient of `loss`.

    For losses of layers inside of activation checkpointing or of a pipeline, where nobody can add them to the loss that
    is trained. It is as if the sum of all such losses had been added to what `backward` is called on; where that is
    scaled (by loss scaling, or the number of micro-batches), scale `loss` alike.
    """
    return cast(Tensor, _Carrying.apply(output, loss))  # type: ignore[no-untyped-call]


class _Carrying(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(loss)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (loss,) = ctx.saved_tensors
        return gradients[0], torch.ones_like(loss)


def update_biases(model: nn.Module, rate: float, group: Group | None = None) -> None:
    """After a step: each `SigmoidRule` of the model adds `rate` to the bias of experts that got less than the mean.

    And subtracts it from those that got more. `group`: all ranks that hold the same gates (None: all); one all-reduce.
    Source: arXiv 2408.15664, algorithm 1; DeepSeek-V3 (arXiv 2412.19437, section 4.2) takes a rate of 0.001.
    """
    rules = [module for module in model.modules() if isinstance(module, SigmoidRule)]
    if not rules:
        return
    chosen = _summed(torch.cat([rule.chosen for rule in rules]), group)
    for rule, counts in zip(rules, torch.split(chosen, [len(rule.chosen) for rule in rules]), strict=True):
        rule.bias += rate * (counts.sum() - counts * len(counts)).sign()
        rule.chosen.zero_()


def _summed(numbers: Tensor, group: Group | None) -> Tensor:
    """The sum over all ranks of the group; `numbers` is overwritten by it."""
    if num_ranks(group) > 1:
        dist.all_reduce(numbers, group=group)
    return numbers
