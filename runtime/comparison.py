"""What placements are worth against each other: the same work under each, timed in turns in one run.

Absolute times of a machine that others use say little; so all placements do the same forward and backward pass on each
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
    """Placements against the last of them; ratios above 1 speak for the last. Each tuple has an item a placement."""

    rounds: tuple[tuple[Trial, ...], ...]
    imbalance: tuple[float, ...]
    """Max over mean tokens that the ranks' experts computed in these passes, averaged over MoE layers."""

    @property
    def wall_s(self) -> tuple[float, ...]:
        """Median over rounds of what a pass takes."""
        return tuple(median(trial.wall_s for trial in trials) for trials in zip(*self.rounds, strict=True))

    @property
    def wall_ratios(self) -> tuple[float, ...]:
        """Median over rounds: how many times longer a pass takes than under the last placement."""
        ratios = ([trial.wall_s / trials[-1].wall_s for trial in trials] for trials in self.rounds)
        return tuple(median(each) for each in zip(*ratios, strict=True))

    @property
    def busiest_cpu_s(self) -> tuple[float, ...]:
        """CPU time of a pass on the busiest rank, at least what a pass takes if each has a core of its own.

        Ranks wait for each other in every layer: where layers are hot on different ranks, the sum hides some of it.
        """
        return tuple(_busiest(trials) for trials in zip(*self.rounds, strict=True))

    @property
    def busiest_cpu_ratios(self) -> tuple[float, ...]:
        """How many times longer the busiest rank works than under the last placement."""
        seconds = self.busiest_cpu_s
        return tuple(each / seconds[-1] for each in seconds)


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
    placements: Sequence[Placement],
    batches: Sequence[Tensor],
) -> Comparison:
    """Time the placements on each batch, without optimizer steps; ends under the last. A collective.

    The first batch warms up and is not kept. Weights and optimizer state are as before, gradients are gone.
    """
    layers, rounds = moe_layers(model), []
    rows = [np.zeros((len(layers), layers[0].num_ranks)) for _ in placements]
    for number, batch in enumerate(batches):
        trials, order = {}, range(len(placements))
        for which in order if number % 2 else reversed(order):
            migrate(layers, placements[which], optimizer)
            trials[which] = _measure(model, batch)
            rows[which] += np.array([layer.rows_of_ranks for layer in layers])
        rounds.append(tuple(trials[which] for which in order))
    migrate(layers, placements[-1], optimizer)
    return Comparison(rounds=tuple(rounds[1:]), imbalance=tuple(imbalance(each) for each in rows))


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
