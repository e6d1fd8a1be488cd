"""Bytes and seconds of moving experts within a plan; `switch_plan_s` prices going over to another plan.

What moves with a parameter is its weight in training precision and its optimizer state (fp32 master copy and
moments): 14 bytes with Adam under bf16, 12 under fp32. Gradients are not moved: moves happen between steps.

Not modelled: other traffic on the same links at that moment (training pauses), and copies inside a device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.parameters import expert_parameters
from planner.cost.state import optimizer_bytes, weight_bytes
from planner.cost.switch import switch_plan_s
from planner.cost.transfer import transfer_s
from planner.spec.errors import InputError
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Model
from planner.spec.placement import Move, Placement
from planner.spec.plan import Plan, Stage
from planner.spec.strategy import ExpertStrategy, Sharding, Strategy
from planner.spec.training import Training

__all__ = [
    "PAUSE_S",
    "Copied",
    "copies_s",
    "expert_ranks",
    "migration_s",
    "rank_devices",
    "state_bytes",
    "switch_plan_s",
]

Devices = NDArray[np.int64]

PAUSE_S = 0.05
"""Assumed, not measured: what training stands still for any move besides the transfer itself, while queued kernels
drain, the ranks meet and the new routing tables are made."""


class Copied(NamedTuple):
    """Moves of experts, as far as their price depends on them; all [moves]."""

    layer: NDArray[np.intp]
    """MoE layers, counted."""
    from_rank: NDArray[np.intp]
    to_rank: NDArray[np.intp]


def state_bytes(training: Training) -> int:
    """Bytes that move with one parameter: its weight and its optimizer state."""
    return weight_bytes(training) + optimizer_bytes(training)


def expert_ranks(model: Model, plan: Plan) -> int | None:
    """Expert-parallel size of the plan: how many ranks a placement has. None where MoE layers differ in it.

    Raises InputError for a model without experts, and for a plan that gives an MoE layer no expert strategy.
    """
    if not model.moe_layers:
        raise InputError.at("model", "must have MoE layers; this one has no experts to place")
    sizes = {_experts(strategy, layer).expert_parallel_size for layer, (_, strategy) in _owners(model, plan).items()}
    return sizes.pop() if len(sizes) == 1 else None


def migration_s(
    model: Model,
    cluster: AnyCluster,
    training: Training,
    plan: Plan,
    moves: Sequence[Move],
    pause_s: float = PAUSE_S,
    to: Placement | None = None,
) -> float:
    """Seconds of pause while experts move from rank to rank under `plan`: the transfer and `pause_s`; 0 for no moves.

    `Move.layer` counts MoE layers. Rank r of expert-data-parallel group g and expert-tensor-parallel part t is device
    first_device + (g x ep + r) x etp + t; every group and every part moves its own: 1/etp of the weights and of the
    optimizer state, of what is sharded over the g groups 1/g (optimizer state from ZeRO-1 on, weights under ZeRO-3).
    `to`: the placement that they make; moves into its shadow slots cost nothing here, for a shadow's weights come anew
    in every step anyway (planner.cost.copies).
    """
    if to is not None:
        moves = [move for move in moves if not to.is_shadow(move.layer, move.to_slot)]
    rows = np.array([(move.layer, move.from_rank, move.to_rank) for move in moves], dtype=np.int64).reshape(-1, 3)
    return copies_s(model, cluster, training, plan, Copied(*rows.T), pause_s)


def copies_s(
    model: Model, cluster: AnyCluster, training: Training, plan: Plan, copied: Copied, pause_s: float = PAUSE_S
) -> float:
    """`migration_s` of moves that stand in arrays."""
    # Of each group of the cluster, which no move leaves: senders, receivers, sizes.
    messages: dict[int, tuple[list[Devices], list[Devices], list[NDArray[np.float64]]]] = {}
    for (stage, experts, moved), these in _alike(model, training, plan, copied):
        number = cluster.group_number(stage.first_device, stage.num_devices)
        devices = rank_devices(stage, experts) - cluster.first_devices[number]
        senders, receivers, sizes = messages.setdefault(number, ([], [], []))
        senders.append(devices[copied.from_rank[these]].ravel())
        receivers.append(devices[copied.to_rank[these]].ravel())
        sizes.append(np.full(senders[-1].size, moved))
    if not messages:
        return 0.0
    busy_s = [
        transfer_s(cluster.groups[number].levels, *(np.concatenate(each) for each in lists))
        for number, lists in messages.items()
    ]
    return max(busy_s) + pause_s


def _alike(
    model: Model, training: Training, plan: Plan, copied: Copied
) -> Iterator[tuple[tuple[Stage, ExpertStrategy, float], NDArray[np.bool_]]]:
    """Moves of consecutive MoE layers that have the same stage and expert strategy, and the bytes of each, at once."""
    owners, moved_layers = _owners(model, plan), np.unique(copied.layer).tolist()

    def terms(moe_layer: int) -> tuple[Stage, ExpertStrategy, float]:
        layer = model.moe_layers[moe_layer]
        stage, strategy = owners[layer]
        experts = _experts(strategy, layer)
        parameters = expert_parameters(model.moe(layer), model.width(layer))
        moved = parameters * _moved_bytes(training, strategy, experts) / experts.expert_tensor_parallel_size
        return stage, experts, moved

    for found, layers in groupby(moved_layers, terms):
        first, *others = layers
        yield found, (copied.layer >= first) & (copied.layer <= (others[-1] if others else first))


def rank_devices(stage: Stage, experts: ExpertStrategy) -> NDArray[np.int64]:
    """[expert-parallel rank, group x part]: the devices of each rank."""
    grid = np.arange(experts.num_devices, dtype=np.int64).reshape(
        experts.expert_data_parallel_size, experts.expert_parallel_size, experts.expert_tensor_parallel_size
    )
    return stage.first_device + grid.swapaxes(0, 1).reshape(experts.expert_parallel_size, -1)


def _moved_bytes(training: Training, strategy: Strategy, experts: ExpertStrategy) -> float:
    """Bytes for each parameter that one device holds of an expert and so has to move."""
    groups = experts.expert_data_parallel_size
    weights = weight_bytes(training) / (groups if strategy.sharding is Sharding.FULL else 1)
    return weights + optimizer_bytes(training) / (1 if strategy.sharding is Sharding.NONE else groups)


def _owners(model: Model, plan: Plan) -> dict[int, tuple[Stage, Strategy]]:
    """Stage and strategy of each MoE layer; raises InputError if the plan lacks one of them."""
    moe_layers = set(model.moe_layers)
    owners = {
        layer: (stage, strategy)
        for stage in plan.stages
        for layer, strategy in stage.strategies()
        if layer in moe_layers
    }
    if len(owners) != len(moe_layers):
        missing = min(moe_layers - owners.keys())
        raise InputError.at("plan", f"must hold all {len(model.layers)} layers of the model; MoE layer {missing} lacks")
    return owners


def _experts(strategy: Strategy, layer: int) -> ExpertStrategy:
    if strategy.experts is None:
        raise InputError.at("plan", f"layer {layer} has experts, its strategy must say how they are spread")
    return strategy.experts
