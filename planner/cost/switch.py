"""Seconds to go over from one plan to another: all state changes owners, then the job starts under the new plan.

What a device holds of a part of a layer is a box: one part of the tensor-parallel cut, of the experts, of the shards
(see `planner.cost.redistribution`). Each part of a group of layers, and in it weights and optimizer state, is sent by
itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from planner.cost.parameters import layer_parameters
from planner.cost.redistribution import Cut, Cuts, Floats, Redistribution, island_pairs
from planner.cost.state import optimizer_bytes, weight_bytes
from planner.spec.cluster import Cluster, Level
from planner.spec.errors import InputError
from planner.spec.model import Block, Embedding, GroupedQueryAttention, Head, Model
from planner.spec.plan import Plan, Stage
from planner.spec.strategy import AxisKind, Sharding, Strategy
from planner.spec.training import Training

Known = dict[tuple[object, ...], Redistribution]
"""Redistributions that were worked out before, by what they depend on."""

RESTART_PAUSE_S = 30.0
"""Assumed, not measured: what a job stands still besides the transfer, while processes, communicators and kernels
are made anew. Dominates for small jobs; replace it by the job's own start-up time where that is known."""


def switch_plan_s(
    model: Model,
    cluster: Cluster,
    training: Training,
    current: Plan,
    target: Plan,
    restart_pause_s: float = RESTART_PAUSE_S,
    known: Known | None = None,
) -> float:
    """Seconds to redistribute weights and optimizer state from `current` to `target`, and to restart; 0 for one plan.

    `known`: a dictionary, empty at first, that callers with many pairs of plans of one model and cluster pass along.
    Raises InputError if the plans do not cover the layers of the model.
    """
    if current.id == target.id:
        return 0.0
    moved = list(_redistributions(model, training, current, target, {} if known is None else known))
    return _busy_s(cluster.levels, moved) + restart_pause_s


Owner = tuple[Stage, Strategy]


def _layer_groups(model: Model, current: Plan, target: Plan) -> list[tuple[Owner, Owner, list[int]]]:
    """Layers that are held alike before and alike after, grouped."""
    for name, plan in (("current", current), ("target", target)):
        if plan.num_layers != len(model.layers):
            raise InputError.at(name, f"the plan has {plan.num_layers} layers, the model {len(model.layers)}")
    before, after = _owners(current), _owners(target)
    groups: dict[tuple[object, ...], list[int]] = {}
    for layer in range(len(model.layers)):
        groups.setdefault((*_holding(before[layer]), *_holding(after[layer])), []).append(layer)
    return [
        (_owner(current, before[layers[0]]), _owner(target, after[layers[0]]), layers) for layers in groups.values()
    ]


def _holding(owner: tuple[int, Strategy]) -> tuple[object, ...]:
    """What decides which device holds what of a layer."""
    stage, strategy = owner
    return stage, *_cuts(strategy)


def _cuts(strategy: Strategy) -> tuple[object, ...]:
    return strategy.axes, strategy.sharding, strategy.experts


def _owner(plan: Plan, owner: tuple[int, Strategy]) -> Owner:
    stage, strategy = owner
    return plan.stages[stage], strategy


def _owners(plan: Plan) -> dict[int, tuple[int, Strategy]]:
    return {
        layer: (number, strategy) for number, stage in enumerate(plan.stages) for layer, strategy in stage.strategies()
    }


def _redistributions(
    model: Model, training: Training, current: Plan, target: Plan, known: Known
) -> Iterator[Redistribution]:
    for (before, old), (after, new), layers in _layer_groups(model, current, target):
        for (part, groups), count in _parts(model, layers).items():
            for is_weight, width in ((True, weight_bytes(training)), (False, optimizer_bytes(training))):
                what = (part, is_weight, groups)
                key = (*what, before.first_device, after.first_device, _cuts(old), _cuts(new))
                if key not in known:
                    boxes = box(old, *what), box(new, *what)
                    known[key] = Redistribution(1.0, before.first_device, boxes[0], after.first_device, boxes[1])
                if not known[key].is_idle:
                    yield known[key].of_size(count * width)


def _parts(model: Model, layers: Sequence[int]) -> dict[tuple[str, int], int]:
    """Parameters of these layers by (part, number of key-value heads; 0 for parts that have none)."""
    counts: dict[tuple[str, int], int] = {}
    for layer in (model.layers[number] for number in layers):
        parameters = layer_parameters(layer, model.hidden_size)
        heads, keys_values = _keys_values(layer, model.hidden_size)
        for key, count in (
            (("split", 0), parameters.split - keys_values),
            (("keys_values", heads), keys_values),
            (("replicated", 0), parameters.replicated),
            (("experts", 0), parameters.experts),
        ):
            if count:
                counts[key] = counts.get(key, 0) + count
    return counts


def _keys_values(layer: Embedding | Block | Head, hidden_size: int) -> tuple[int, int]:
    """Key-value heads and the parameters that make them; 0 of 0 where there are none."""
    if not isinstance(layer, Block) or not isinstance(layer.attention, GroupedQueryAttention):
        return 0, 0
    attention = layer.attention
    inputs = hidden_size + (1 if attention.qkv_bias else 0)
    return attention.num_kv_heads, 2 * attention.num_kv_heads * attention.head_dim * inputs


def _busy_s(levels: tuple[Level, ...], moved: Sequence[Redistribution]) -> float:
    """Seconds until all is delivered, with the rules of `planner.cost.transfer.transfer_s`."""
    num_devices = levels[-1].num_devices
    sending, receiving = np.zeros(num_devices), np.zeros(num_devices)
    nearer: Floats = np.zeros((4, num_devices))
    for number, level in enumerate(levels):
        within: Floats = np.zeros((4, num_devices))
        for redistribution in moved:
            within += redistribution.inside(level, num_devices)
        sent_bytes, received_bytes, sent_messages, received_messages = within - nearer
        nearer = within
        link = level.link
        sent_s, received_s = sent_bytes / link.bytes_per_s, received_bytes / link.bytes_per_s
        if link.pair_bytes_per_s < link.bytes_per_s:
            inner = levels[number - 1].num_devices if number else 1
            most_sent, most_received = _most_with_one_peer(moved, num_devices, level.num_devices, inner)
            sent_s = np.maximum(sent_s, most_sent / link.pair_bytes_per_s)
            received_s = np.maximum(received_s, most_received / link.pair_bytes_per_s)
        sending += sent_s + sent_messages * link.latency_s
        receiving += received_s + received_messages * link.latency_s
    return float(max(sending.max(), receiving.max()))


def _most_with_one_peer(
    moved: Sequence[Redistribution], num_devices: int, island: int, inner: int
) -> tuple[Floats, Floats]:
    """([devices], [devices]): most bytes sent to, and received from, one peer of the island outside the inner one."""
    sent, received = np.zeros(num_devices), np.zeros(num_devices)
    for senders, receivers in island_pairs(np.arange(num_devices), island):
        size = sum((each.pair_bytes(senders, receivers) for each in moved), np.zeros(num_devices))
        size[senders // inner == receivers // inner] = 0.0
        sent[senders] = np.maximum(sent[senders], size)
        received = np.maximum(received, size)
    return sent, received


def box(strategy: Strategy, part: str, is_weight: bool, num_kv_heads: int = 0) -> Cuts:
    """What the devices of a stage hold of one part of a layer, and of its weights or optimizer state.

    `num_kv_heads`: for the part `keys_values`; fewer heads than tensor-parallel ranks are copied whole.
    """
    devices = np.arange(strategy.num_devices)
    sharded = strategy.sharding is Sharding.FULL if is_weight else strategy.sharding is not Sharding.NONE
    whole = Cut(np.zeros_like(devices), 1)
    if part == "experts":
        experts = strategy.experts
        if experts is None:
            raise InputError.at("plan", "an MoE layer's strategy must say how its experts are spread")
        tensor, parallel = experts.expert_tensor_parallel_size, experts.expert_parallel_size
        groups = experts.expert_data_parallel_size
        return (
            Cut(devices % tensor, tensor),
            Cut(devices // tensor % parallel, parallel),
            Cut(devices // (tensor * parallel), groups) if sharded else whole,
        )
    shard = _shard(strategy, devices) if sharded else whole
    if part == "replicated":
        return whole, whole, shard
    parts = min(strategy.tp, num_kv_heads) if part == "keys_values" else strategy.tp
    rank = devices // strategy.stride(AxisKind.TP) % strategy.tp
    return Cut(rank * parts // strategy.tp, parts), whole, shard


def _shard(strategy: Strategy, devices: NDArray[np.int64]) -> Cut:
    """Dense state is sharded over the sdp axis where there is one, else over dp and cp."""
    kinds = (AxisKind.SDP,) if strategy.degree(AxisKind.SDP) > 1 else (AxisKind.DP, AxisKind.CP)
    number, parts = np.zeros_like(devices), 1
    for kind in kinds:
        degree = strategy.degree(kind)
        number = number * degree + devices // strategy.stride(kind) % degree
        parts *= degree
    return Cut(number, parts)
