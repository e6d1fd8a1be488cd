"""Gradients over ranks: from the loss of each rank's tokens to the loss of one process on all tokens.

Instead of DistributedDataParallel, which would copy the experts of rank 0 over those of the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from planner.spec.errors import InputError
from runtime.exchange import Group, num_ranks, rank
from runtime.moe import ExpertParallelMoe, expert_parameters, moe_layers
from runtime.replicas import gradients_of, sum_replicas


def average_gradients(model: nn.Module, group: Group | None = None, expert_data_group: Group | None = None) -> None:
    """After `backward`, once before each step of the optimizer: make gradients those of the mean of all ranks' losses.

    `group`: all data-parallel ranks (None: all ranks). Each rank's loss must be a mean over equally many tokens.
    Parameters that all ranks hold are averaged over `group`. The gradient of an expert already sums what came back
    from the ranks of its expert-parallel group, so it is divided by all data-parallel ranks; before that it is summed
    over `expert_data_group`, the ranks that hold the same experts in the same slots (None: no other rank does), and
    over the slots of the expert: replicas get the same bits, so they stay equal. Raises InputError if somebody else
    averages them already.
    """
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise InputError.at(
            "model",
            "must not be in DistributedDataParallel: it gives all ranks the experts of rank 0, and their gradients",
        )
    ranks = num_ranks(group)
    layers = moe_layers(model)
    experts = {id(parameter): parameter for parameter in expert_parameters(model)}
    dense = [p for p in model.parameters() if p.requires_grad and id(p) not in experts]
    local = [p for p in experts.values() if p.requires_grad]
    if ranks > 1:
        _sum_over(dense, group)
    if expert_data_group is not None:
        # Shadow experts too: what they computed is added to the sums of the slots that they copy.
        _sum_over([*local, *_shadow_parameters(layers)], expert_data_group)
    for together in _by_group(layers):
        sum_replicas(together, together[0].group, next(together[0].experts.parameters()).device)
    if ranks > 1:
        torch._foreach_div_(gradients_of([*dense, *local]), ranks)
    for layer in layers:
        layer.weights_changed()


def gradient_norm(model: nn.Module, pipeline: Group | None = None) -> Tensor:
    """After `average_gradients`: the 2-norm of the gradients of one process, the same number on all ranks.

    Each expert counts once, whichever rank holds it and however many replicas it has. `pipeline`: the ranks that hold
    the other stages of the model for this one, one of each stage (None: there is one stage); `model` is then what this
    rank has of it, and weights that two stages share count twice. A collective.
    """
    layers = moe_layers(model)
    experts = {id(parameter) for parameter in expert_parameters(model)}
    dense = [p for p in model.parameters() if id(p) not in experts and p.grad is not None]
    total = torch.zeros((), device=next(model.parameters()).device)
    for number, together in enumerate(_by_group(layers)):
        mine = [p for layer in together for p in _first_held(layer)]
        # The dense part rides along from rank 0, so that all ranks get the same bits.
        counted = _squared(mine if number or rank(together[0].group) else [*dense, *mine], total.device)
        if num_ranks(together[0].group) > 1:
            dist.all_reduce(counted, group=together[0].group)
        total += counted
    if not layers:
        total = _squared(dense, total.device)
    if pipeline is not None:
        dist.all_reduce(total, group=pipeline)
    return total.sqrt()


def clip_gradients(model: nn.Module, max_norm: float, pipeline: Group | None = None) -> Tensor:
    """After `average_gradients`: scale gradients to a norm of at most `max_norm`; returns the norm before.

    A collective. What `torch.nn.utils.clip_grad_norm_` is on one process: it knows nothing of experts on other ranks,
    nor of other stages. `pipeline`: as for `gradient_norm`.
    """
    norm = gradient_norm(model, pipeline)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(scale.to(parameter.grad))
    return norm


def _by_group(layers: Sequence[ExpertParallelMoe]) -> list[list[ExpertParallelMoe]]:
    groups: dict[int, list[ExpertParallelMoe]] = {}
    for layer in layers:
        groups.setdefault(id(layer.group), []).append(layer)
    return list(groups.values())


def _shadow_parameters(layers: Sequence[ExpertParallelMoe]) -> list[nn.Parameter]:
    return [p for layer in layers for shadow in layer.shadows for p in shadow.parameters() if p.requires_grad]


def _first_held(layer: ExpertParallelMoe) -> Iterator[nn.Parameter]:
    """Of the experts of which this rank has the first slot."""
    for slot in layer.local_slots:
        if layer.slot_map.holders[layer.slots[slot]][0] == slot:
            yield from (p for p in layer.expert_at(slot).parameters() if p.grad is not None)


def _squared(parameters: Sequence[nn.Parameter], device: torch.device) -> Tensor:
    """Σ of the squares of their gradients, on `device`; of none 0."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros((), device=device)
    # In the number format of bfloat16 gradients a norm would have three digits.
    dtype = reduce(torch.promote_types, (gradient.dtype for gradient in gradients), torch.float32)
    norms = torch._foreach_norm(gradients, 2, dtype)
    return torch.stack([norm.to(device, torch.float32) for norm in norms]).square().sum()


def _sum_over(parameters: Iterable[nn.Parameter], group: Group | None) -> None:
    """One all-reduce per number format. A rank whose loss did not reach a parameter adds zero."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for gradient in gradients_of(parameters):
        by_dtype.setdefault(gradient.dtype, []).append(gradient)
    for gradients in by_dtype.values():
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat, group=group)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])
