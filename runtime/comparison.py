"""What one placement is worth against another: the same work under both, timed in turns in one run.

Absolute times of a machine that others use say little; so both placements do the same forward and backward pass on each
batch, one right after the other, in alternating order. Wall time counts as ratios within such a round. Of CPU time each
rank's median over rounds is taken first, and then the busiest rank: the busiest of a round may be whom others disturb.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from planner.cost.balance import imbalance
from planner.online.placement.copies import copies_between
from planner.spec.placement import Placement
from planner.spec.value import Positive, Value
from runtime.exchange import num_ranks, rank
from runtime.migration import migrate
from runtime.moe import moe_layers


class Trial(Value):
    """One forward and backward pass under one placement."""

    wall_s: Positive
    """Until the last rank is through."""
    cpu_s: tuple[Positive, ...]
    """CPU time of each rank."""


class Comparison(Value):
    """The first placement against the second; ratios above 1 speak for the second."""

    rounds: tuple[tuple[Trial, Trial], ...]
    imbalance: tuple[float, float]
    """Max over mean tokens that the ranks' experts computed in these passes, averaged over MoE layers."""
    moved_experts: int
    """Experts, over all layers, that come to ranks which did not have them."""

    @property
    def wall_ratio(self) -> float:
        """Median over rounds: how many times longer a pass takes under the first placement."""
        return median(first.wall_s / second.wall_s for first, second in self.rounds)

    @property
    def busiest_cpu_ratio(self) -> float:
        """How many times longer the busiest rank works under the first placement."""
        first, second = self.busiest_cpu_s
        return first / second

    @property
    def busiest_cpu_s(self) -> tuple[float, float]:
        """CPU time of a pass on the busiest rank, at least what a pass takes if each has a core of its own.

        Ranks wait for each other in every layer: where layers are hot on different ranks, the sum hides some of it.
        """
        first, second = zip(*self.rounds, strict=True)
        return _busiest(first), _busiest(second)


def without_replicas(placement: Placement) -> Placement:
    """In as many slots, experts in order, each on one rank: what slots are left hold second copies on the same rank."""
    ranks, layers = placement.num_ranks, []
    for layer in range(len(placement.layers)):
        slots = [
            np.resize(own, placement.slots_per_rank(layer))
            for own in np.array_split(np.arange(placement.num_experts(layer)), ranks)
        ]
        layers.append(tuple(np.concatenate(slots).tolist()))
    return placement.model_copy(update={"layers": tuple(layers), "split": None})


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
    rows = [np.zeros((len(layers), layers[0].num_ranks)) for _ in placements]
    for number, batch in enumerate(batches):
        trials = {}
        for which in (0, 1) if number % 2 else (1, 0):
            migrate(layers, placements[which], optimizer)
            trials[which] = _measure(model, batch)
            rows[which] += np.array([layer.rows_of_ranks for layer in layers])
        rounds.append((trials[0], trials[1]))
    migrate(layers, placements[1], optimizer)
    return Comparison(
        rounds=tuple(rounds[1:]),
        imbalance=(imbalance(rows[0]), imbalance(rows[1])),
        moved_experts=_moved(*placements),
    )


def _measure(model: nn.Module, batch: Tensor) -> Trial:
    if num_ranks(None) > 1:
        dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    model(batch).backward()
    spent = torch.zeros(1 + num_ranks(None), dtype=torch.float64, device=batch.device)
    spent[0], spent[1 + rank(None)] = time.perf_counter() - wall, time.process_time() - cpu
    model.zero_grad()
    if num_ranks(None) > 1:
        dist.all_reduce(spent, dist.ReduceOp.MAX)
    longest, *by_rank = spent.tolist()
    return Trial(wall_s=longest, cpu_s=tuple(by_rank))


def _busiest(trials: Sequence[Trial]) -> float:
    return max(median(trial.cpu_s[number] for trial in trials) for number in range(len(trials[0].cpu_s)))


def _moved(one: Placement, other: Placement) -> int:
    before, after = (np.array(placement.layers) for placement in (one, other))
    return len(copies_between(before, after, other.num_ranks, other.shadow_slots_per_rank).layer)
