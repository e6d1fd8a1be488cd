"""What one placement is worth against another: the same work under both, timed in turns in one run.

Absolute times of a machine that others use say little; so both placements do the same forward and backward passes on
the same batches, a few at a time, one after the other, in alternating order, and only ratios within a round count.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from planner.spec.placement import Placement
from planner.spec.value import Count, Positive, Value
from runtime.exchange import num_ranks
from runtime.hooks import attach
from runtime.migration import migrate
from runtime.moe import moe_layers


class Trial(Value):
    """One placement in one round: means over its passes."""

    wall_s: Positive
    """Of one forward and backward pass, as all ranks see it."""
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
    passes_per_trial: Count

    @property
    def wall_ratio(self) -> float:
        """Median over rounds: how many times longer a pass takes under the first placement."""
        return median(first.wall_s / second.wall_s for first, second in self.rounds)

    @property
    def busiest_cpu_ratio(self) -> float:
        """Median over rounds: how many times longer the busiest rank works under the first placement."""
        return median(first.busiest_cpu_s / second.busiest_cpu_s for first, second in self.rounds)


class _Measured(NamedTuple):
    trial: Trial
    tokens: Tensor


def compare_placements(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    placements: tuple[Placement, Placement],
    batches: Sequence[Tensor],
    num_rounds: int = 5,
) -> Comparison:
    """Time both placements on these batches, without optimizer steps; ends under the second. A collective.

    The first round warms up and is not kept. Weights and optimizer state are as before, gradients are gone.
    """
    layers, rounds = moe_layers(model), []
    for number in range(num_rounds + 1):
        order = (0, 1) if number % 2 else (1, 0)
        found: dict[int, _Measured] = {}
        for which in order:
            migrate(layers, placements[which], optimizer)
            found[which] = _measure(model, batches)
        rounds.append((found[0].trial, found[1].trial))
    tokens = found[0].tokens
    migrate(layers, placements[1], optimizer)
    model.zero_grad()
    return Comparison(
        rounds=tuple(rounds[1:]),
        imbalance=(_imbalance(tokens, placements[0]), _imbalance(tokens, placements[1])),
        moved_experts=_moved(*placements),
        passes_per_trial=len(batches),
    )


def _measure(model: nn.Module, batches: Sequence[Tensor]) -> _Measured:
    counters = attach(model)
    if num_ranks(None) > 1:
        dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    for batch in batches:
        model.zero_grad()
        model(batch).backward()
    spent = torch.tensor([time.perf_counter() - wall, time.process_time() - cpu], dtype=torch.float64) / len(batches)
    tokens = torch.stack([counter.take(spent.device) for counter in counters])
    for counter in counters:
        counter.detach()
    longest, total = spent.clone(), spent.clone()
    if num_ranks(None) > 1:
        dist.all_reduce(longest, dist.ReduceOp.MAX)
        dist.all_reduce(total)
        dist.all_reduce(tokens)
    mean_cpu_s = total[1].item() / num_ranks(None)
    return _Measured(Trial(wall_s=longest[0].item(), busiest_cpu_s=longest[1].item(), mean_cpu_s=mean_cpu_s), tokens)


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
