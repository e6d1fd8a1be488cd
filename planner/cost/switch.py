"""Seconds to go over from one plan to another: all state changes owners, then the job starts under the new plan.

What a device holds of a part of a layer is a box: an interval of the tensor-parallel cut, one of the experts, one of
the shards. What it must receive is its new box less what of it lies in its old one; the holders of the rest send it,
each in proportion to what it has of it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.parameters import layer_parameters
from planner.cost.state import optimizer_bytes, weight_bytes
from planner.cost.transfer import transfer_s
from planner.spec.cluster import Cluster
from planner.spec.errors import InputError
from planner.spec.model import Model
from planner.spec.plan import Plan, Stage
from planner.spec.strategy import AxisKind, Sharding, Strategy
from planner.spec.training import Training

RESTART_PAUSE_S = 30.0
"""Assumed, not measured: what a job stands still besides the transfer, while processes, communicators and kernels
are made anew. Dominates for small jobs; replace it by the job's own start-up time where that is known."""

Interval = tuple[NDArray[np.float64], NDArray[np.float64]]
"""[devices] begin and end, within 0 .. 1."""


class Box(NamedTuple):
    """What the devices of a stage hold of one kind of state."""

    tensor: Interval
    experts: Interval
    shard: Interval


def switch_plan_s(
    model: Model,
    cluster: Cluster,
    training: Training,
    current: Plan,
    target: Plan,
    restart_pause_s: float = RESTART_PAUSE_S,
) -> float:
    """Seconds to redistribute weights and optimizer state from `current` to `target`, and to restart; 0 for one plan.

    Raises InputError if the plans do not cover the layers of the model.
    """
    if current.id == target.id:
        return 0.0
    senders, receivers, sizes = [], [], []
    for (before, old), (after, new), layers in _layer_groups(model, current, target):
        flow = _flow(model, training, layers, (before, old), (after, new))
        sender, receiver = np.nonzero(flow)
        senders.append(sender + before.first_device)
        receivers.append(receiver + after.first_device)
        sizes.append(flow[sender, receiver])
    moved_s = transfer_s(cluster.levels, np.concatenate(senders), np.concatenate(receivers), np.concatenate(sizes))
    return moved_s + restart_pause_s


Owner = tuple[Stage, Strategy]


def _layer_groups(model: Model, current: Plan, target: Plan) -> list[tuple[Owner, Owner, list[int]]]:
    """Layers that have one stage and strategy before and one after, grouped."""
    for name, plan in (("current", current), ("target", target)):
        if plan.num_layers != len(model.layers):
            raise InputError.at(name, f"the plan has {plan.num_layers} layers, the model {len(model.layers)}")
    before, after = _owners(current), _owners(target)
    groups: dict[tuple[tuple[int, Strategy], tuple[int, Strategy]], list[int]] = {}
    for layer in range(len(model.layers)):
        groups.setdefault((before[layer], after[layer]), []).append(layer)
    return [
        ((current.stages[old[0]], old[1]), (target.stages[new[0]], new[1]), layers)
        for (old, new), layers in groups.items()
    ]


def _owners(plan: Plan) -> dict[int, tuple[int, Strategy]]:
    return {
        layer: (number, strategy) for number, stage in enumerate(plan.stages) for layer, strategy in stage.strategies()
    }


def _flow(model: Model, training: Training, layers: list[int], before: Owner, after: Owner) -> NDArray[np.float64]:
    """[devices before, devices after]: bytes to send; both numbered inside their stages."""
    parameters = [layer_parameters(model.layers[layer], model.hidden_size) for layer in layers]
    counts = {
        "split": sum(part.split for part in parameters),
        "replicated": sum(part.replicated for part in parameters),
        "experts": sum(part.experts for part in parameters),
    }
    flow = np.zeros((before[0].num_devices, after[0].num_devices))
    for part, count in counts.items():
        for is_weight, width in ((True, weight_bytes(training)), (False, optimizer_bytes(training))):
            if count:
                old, new = box(before[1], part, is_weight), box(after[1], part, is_weight)
                flow += count * width * sent(old, new, before[0].first_device - after[0].first_device)
    return np.rint(flow)


def sent(old: Box, new: Box, offset: int) -> NDArray[np.float64]:
    """[devices before, devices after]: the part of the whole that each sends to each.

    `offset`: what to add to a device's number in the stage before to get its number in the stage after.
    """
    shared = np.ones((len(old.tensor[0]), len(new.tensor[0])))
    for before, after in zip(old, new, strict=True):
        if not (_is_whole(before) and _is_whole(after)):
            shared *= _overlap(before, after)
    needed = np.prod([interval[1] - interval[0] for interval in new], axis=0)
    mine = np.arange(shared.shape[0])[:, None] + offset == np.arange(shared.shape[1])[None, :]
    missing = needed - np.where(mine, shared, 0.0).sum(axis=0)
    holders = np.where(mine, 0.0, shared)
    total = holders.sum(axis=0)
    flow: NDArray[np.float64] = holders * (missing / np.where(total > 0, total, 1.0))
    return flow


def _is_whole(interval: Interval) -> bool:
    return bool(interval[0].max() == 0.0 and interval[1].min() == 1.0)


def _overlap(old: Interval, new: Interval) -> NDArray[np.float64]:
    begin = np.maximum(old[0][:, None], new[0][None, :])
    end = np.minimum(old[1][:, None], new[1][None, :])
    return np.asarray(np.maximum(end - begin, 0.0), dtype=np.float64)


def box(strategy: Strategy, part: str, is_weight: bool) -> Box:
    """The boxes of the devices of a stage for one part of a layer, and weights or optimizer state."""
    devices = np.arange(strategy.num_devices)
    sharded = strategy.sharding is Sharding.FULL if is_weight else strategy.sharding is not Sharding.NONE
    whole = _interval(np.zeros_like(devices), 1)
    if part == "experts":
        experts = strategy.experts
        if experts is None:
            raise InputError.at("plan", "an MoE layer's strategy must say how its experts are spread")
        tensor, parallel = experts.expert_tensor_parallel_size, experts.expert_parallel_size
        groups = experts.expert_data_parallel_size
        return Box(
            _interval(devices % tensor, tensor),
            _interval(devices // tensor % parallel, parallel),
            _interval(devices // (tensor * parallel), groups) if sharded else whole,
        )
    cut = _interval(devices // strategy.stride(AxisKind.TP) % strategy.tp, strategy.tp) if part == "split" else whole
    return Box(cut, whole, _shard(strategy, devices) if sharded else whole)


def _shard(strategy: Strategy, devices: NDArray[np.int64]) -> Interval:
    """Dense state is sharded over the sdp axis where there is one, else over dp and cp."""
    kinds = (AxisKind.SDP,) if strategy.degree(AxisKind.SDP) > 1 else (AxisKind.DP, AxisKind.CP)
    number, parts = np.zeros_like(devices), 1
    for kind in kinds:
        degree = strategy.degree(kind)
        number = number * degree + devices // strategy.stride(kind) % degree
        parts *= degree
    return _interval(number, parts)


def _interval(number: NDArray[np.int64], parts: int) -> Interval:
    return number / parts, (number + 1) / parts
