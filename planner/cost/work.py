"""What the layers of a stage take and hold together, wherever the stage stands in the pipeline."""

from __future__ import annotations

from typing import NamedTuple

from planner.cost.layer import PASS_PARTS, LayerCost


class Work(NamedTuple):
    """Sums over the layers of a stage."""

    forward: tuple[float, ...]
    backward: tuple[float, ...]
    pass_s: tuple[float, float]
    """The sums of both."""
    once_communication_s: float
    optimizer_s: float
    weight_gradient_s: float
    moves: tuple[float, float]
    """Transitions between its layers, forward and backward."""
    transition_s: float
    held_bytes: dict[str, int]
    """Weights, gradients and optimizer states."""
    kept_bytes: int
    """Activations of a micro-batch in flight, but for the head's."""
    head_bytes: int
    logits_bytes: int
    workspace_bytes: int
    host_bytes: int


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
        workspace_bytes=max(cost.workspace_bytes for cost, _ in costs),
        host_bytes=sum(cost.host_bytes * n for cost, n in costs),
    )
