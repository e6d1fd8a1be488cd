"""Gradients over ranks: from the loss of each rank's tokens to the loss of one process on all tokens.

Instead of DistributedDataParallel, which would copy the experts of rank 0 over those of the others.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from runtime.exchange import Group, num_ranks
from runtime.moe import expert_parameters


def average_gradients(model: nn.Module, group: Group | None = None, expert_data_group: Group | None = None) -> None:
    """After `backward`: make gradients those of the mean of all ranks' losses.

    `group`: all data-parallel ranks (None: all ranks). Each rank's loss must be a mean over equally many tokens.
    Parameters that all ranks hold are averaged over `group`. The gradient of an expert already sums what came back
    from the ranks of its expert-parallel group, so it is divided by all data-parallel ranks; before that it is summed
    over `expert_data_group`, the ranks that hold the same experts (None: no other rank does).
    """
    ranks = num_ranks(group)
    if ranks == 1:
        return
    experts = {id(parameter): parameter for parameter in expert_parameters(model)}
    dense = [p for p in model.parameters() if p.requires_grad and id(p) not in experts]
    local = [p for p in experts.values() if p.requires_grad]
    _sum_over(dense, group)
    if expert_data_group is not None:
        _sum_over(local, expert_data_group)
    torch._foreach_div_(_gradients([*dense, *local]), ranks)


def _sum_over(parameters: Iterable[nn.Parameter], group: Group | None) -> None:
    """One all-reduce per number format. A rank whose loss did not reach a parameter adds zero."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for gradient in _gradients(parameters):
        by_dtype.setdefault(gradient.dtype, []).append(gradient)
    for gradients in by_dtype.values():
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat, group=group)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    found = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        found.append(parameter.grad)
    return found
