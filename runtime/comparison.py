"""What one placement is worth against another: the same work under both, timed in turns in one run.

Absolute times of a machine that others use say little; so both placements do the same forward and backward pass on each
batch, one right after the other, in alternating order, and only ratios within such a round count.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor, nn

from planner.spec.placement import Placement
from planner.spec.value import Positive, Value
from runtime.exchange import num_ranks
from runtime.hooks import attach
from runtime.migration import migrate
from runtime.moe import moe_layers


class Trial(Value):
    """One forward and backward pass under one placement."""

    wall_s: Positive
    """Until the last rank is through."""
    busiest_cpu_s: Positive
    """CPU time of the rank that worked longest: what the others would wait for if each rank had a core of its own."""
    mean_cpu_s: Positive


class Comparison(Value):
    """The first placement against the second; ratios above 1 speak for the second."""

    rounds: tuple[tuple[Trial, Trial], ...]
    imbalance: tuple[float, float]
    """Max over mean tokens of the ranks, averaged over MoE layers: counted in these very passes."""
    moved_experts: int
    """Experts, over all layers, that the two placements have on different ranks."""

    @property
    def wall_ratio(self) -> float:
        """Median over rounds: how many times longer a pass takes under the first placement."""
        return median(first.wall_s / second.wall_s for first, second in self.rounds)

    @property
    def busiest_cpu_ratio(self) -> float:
        """Median over rounds: how many times longer the busiest rank works under the first placement."""
        return median(first.busiest_cpu_s / second.busiest_cpu_s for first, second in self.rounds)


def compare_placements(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    placements: tuple[Placement, Placement],
    batches: Sequence[Tensor],
) -> Comparison:
    """Time both placements on each batch, without optimizer steps; ends under the second. A collective.

    The first batch warms up and is not kept. Weights and optimizer state are as before, gradients are gone.
    """
    layers, rounds = moe_layers(model), []
    counters = attach(model)
    for number, batch in enumerate(batches):
        trials = {}
        for which in (0, 1) if number % 2 else (1, 0):
            migrate(layers, placements[which], optimizer)
            trials[which] = _measure(model, batch)
        rounds.append((trials[0], trials[1]))
    tokens = torch.stack([counter.take(batches[0].device) for counter in counters])
    if num_ranks(None) > 1:
        dist.all_reduce(tokens)
    for counter in counters:
        counter.detach()
    migrate(layers, placements[1], optimizer)
    return Comparison(
        rounds=tuple(rounds[1:]),
        imbalance=(_imbalance(tokens, placements[0]), _imbalance(tokens, placements[1])),
        moved_experts=_moved(*placements),
    )


def _measure(model: nn.Module, batch: Tensor) -> Trial:
    if num_ranks(None) > 1:
        dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    model(batch).backward()
    spent = torch.tensor([time.perf_counter() - wall, time.process_time() - cpu], dtype=torch.float64)
    model.zero_grad()
    longest, total = spent.clone(), spent.clone()
    if num_ranks(None) > 1:
        dist.all_reduce(longest, dist.ReduceOp.MAX)
        dist.all_reduce(total)
    return Trial(
        wall_s=longest[0].item(), busiest_cpu_s=longest[1].item(), mean_cpu_s=total[1].item() / num_ranks(None)
    )


def _imbalance(tokens: Tensor, placement: Placement) -> float:
    """Tokens [layer, expert] under a placement without replicas: max over mean load of the ranks, mean over layers."""
    by_rank = (
        tokens.gather(1, torch.tensor(placement.layers)).view(len(tokens), placement.num_ranks, -1).sum(2).double()
    )
    return (by_rank.max(1).values / by_rank.mean(1)).mean().item()


def _moved(one: Placement, other: Placement) -> int:
    moved = 0
    for number, (before, after) in enumerate(zip(one.layers, other.layers, strict=True)):
        size = one.slots_per_rank(number)
        was = {expert: slot // size for slot, expert in enumerate(before)}
        moved += sum(was[expert] != slot // size for slot, expert in enumerate(after))
    return moved
