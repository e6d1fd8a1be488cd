"""What the layers of a stage take and hold together, wherever the stage stands in the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from planner.cost.balance import Indices
from planner.cost.layer import PASS_PARTS, LayerCost
from planner.cost.numbers import Numbers, largest


class Work(NamedTuple):
    """Sums over the layers of a stage: numbers, or arrays with one for each of many loads."""

    forward: tuple[Numbers, ...]
    backward: tuple[Numbers, ...]
    pass_s: tuple[Numbers, Numbers]
    """The sums of both."""
    once_communication_s: Numbers
    optimizer_s: Numbers
    weight_gradient_s: Numbers
    moves: tuple[float, float]
    """Transitions between its layers, forward and backward."""
    transition_s: float
    held_bytes: dict[str, Numbers]
    """Weights, gradients and optimizer states."""
    kept_bytes: Numbers
    """Activations of a micro-batch in flight, but for the head's."""
    head_bytes: Numbers
    logits_bytes: Numbers
    workspace_bytes: Numbers
    host_bytes: Numbers


def summed(costs: list[tuple[LayerCost, int]], moves: list[tuple[float, float]]) -> Work:
    """`costs`: (cost, how many) of its layers; `moves`: (forward, backward) of the transitions between them."""
    forward = tuple(sum(cost.forward[i] * n for cost, n in costs) for i in range(len(PASS_PARTS)))
    backward = tuple(sum(cost.backward[i] * n for cost, n in costs) for i in range(len(PASS_PARTS)))
    return Work(
        forward=forward,
        backward=backward,
        pass_s=(sum(forward), sum(backward)),
        once_communication_s=sum(cost.once_communication_s * n for cost, n in costs),
        optimizer_s=sum(cost.optimizer_s * n for cost, n in costs),
        weight_gradient_s=sum(cost.weight_gradient_s * n for cost, n in costs),
        moves=(sum(forward for forward, _ in moves), sum(backward for _, backward in moves)),
        transition_s=sum(forward + backward for forward, backward in moves),
        held_bytes={
            "weights": sum(cost.weights_bytes * n for cost, n in costs),
            "gradients": sum(cost.gradients_bytes * n for cost, n in costs),
            "optimizer_states": sum(cost.optimizer_bytes * n for cost, n in costs),
        },
        kept_bytes=sum(cost.activation_bytes * n for cost, n in costs if not cost.logits_bytes),
        head_bytes=sum(cost.activation_bytes * n for cost, n in costs if cost.logits_bytes),
        logits_bytes=sum(cost.logits_bytes * n for cost, n in costs),
        workspace_bytes=largest(cost.workspace_bytes for cost, _ in costs),
        host_bytes=sum(cost.host_bytes * n for cost, n in costs),
    )


def sums_by_stage(cost: LayerCost, counts: Sequence[int]) -> list[LayerCost]:
    """[stages] of what the layers of each cost together; `counts` of them stand side by side.

    `cost` has arrays [loads, layers], or numbers where all are equal. The sums are arrays [loads], and plain numbers
    for one load; of workspace, which layers use in turn, they have the largest.
    """
    starts = np.cumsum([0, *counts[:-1]])
    fields = [*cost.forward, *cost.backward, *cost[2:]]
    turns = len(cost.forward) + len(cost.backward) + LayerCost._fields.index("workspace_bytes") - 2
    columns = [
        _by_stage(field, starts, counts, np.maximum if number == turns else np.add)
        for number, field in enumerate(fields)
    ]
    parts = len(PASS_PARTS)
    return [
        LayerCost(stage[:parts], stage[parts : 2 * parts], *stage[2 * parts :]) for stage in zip(*columns, strict=True)
    ]


def _by_stage(field: Numbers, starts: Indices, counts: Sequence[int], how: np.ufunc) -> Sequence[Numbers]:
    if not isinstance(field, np.ndarray):
        return [field if how is np.maximum else field * count for count in counts]
    reduced = how.reduceat(field, starts, axis=1).T
    return reduced[:, 0].tolist() if field.shape[0] == 1 else list(reduced)
