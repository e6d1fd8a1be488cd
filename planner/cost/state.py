"""Weights, gradients and optimizer state of one layer on one device: bytes held, bytes sent, seconds to update.

Source: ZeRO (arXiv 1910.02054), section 5 for what each stage splits, section 7 for the traffic it costs.
"""

from __future__ import annotations

from operator import add
from typing import NamedTuple

from planner.cost.collectives import Group, size
from planner.cost.copies import ONE_EACH, Copies, ExpertBytes
from planner.cost.experts import expert_data_group
from planner.cost.message import Collective, Message, Messages, messages_s
from planner.cost.numbers import Numbers, peak
from planner.cost.parameters import expert_parameters, layer_parameters
from planner.cost.part import Conditions, of_layer, tensor_group
from planner.spec.cluster import Precision
from planner.spec.errors import InputError
from planner.spec.model import AnyLayer, Block, Embedding, GroupedQueryAttention, Head
from planner.spec.strategy import AxisKind, Sharding, Strategy
from planner.spec.training import Optimizer, Training


class State(NamedTuple):
    """What the parameters of one layer cost one device."""

    weights_bytes: Numbers
    gradients_bytes: Numbers
    optimizer_bytes: Numbers
    whole_weights_bytes: Numbers
    """Weights of this layer before sharding, gathered while it is computed (full sharding only)."""
    whole_gradients_bytes: Numbers
    """Gradients of this layer before they are scattered (sharded gradients only)."""
    micro_forward_s: Numbers
    """Traffic beside the forward pass of every micro-batch, before any overlap."""
    micro_backward_s: Numbers
    once_forward_s: Numbers
    """Traffic beside the first forward pass of a step."""
    once_backward_s: Numbers
    """Traffic beside the last backward pass of a step."""
    accumulate_s: Numbers
    """In every backward pass: gradients of this micro-batch are added to those of the ones before."""
    optimizer_s: Numbers
    host_bytes: Numbers = 0.0
    """In the memory of the host, of offloaded optimizer state."""


class _Held(NamedTuple):
    """Parameters that a device computes with, and the groups that hold the same."""

    parameters: Numbers
    sharded_over: Group
    replicated_over: Group
    partial: float = 0.0
    """Of `parameters`, those of which every tensor-parallel rank has a part of the gradient, to be summed."""
    tensor_group: Group = ()


class StateMessages(NamedTuple):
    """Traffic of weights and gradients."""

    micro_forward: Messages
    """Beside the forward pass of every micro-batch."""
    micro_backward: Messages
    once_forward: Messages
    """Beside the first forward pass of a step."""
    once_backward: Messages
    """Beside the last backward pass of a step."""


def weight_bytes(training: Training) -> int:
    """Bytes of a weight as the forward pass reads it."""
    return 4 if training.precision is Precision.FP32 else 2


def gradient_bytes(training: Training) -> int:
    """Bytes of a gradient as it is summed and reduced."""
    return 4 if Precision.FP32 in (training.precision, training.gradient_precision) else 2


def optimizer_bytes(training: Training) -> int:
    """Bytes of optimizer state for a parameter: fp32 moments, and an fp32 copy of weights kept in fewer bits."""
    moments = 8 if training.optimizer is Optimizer.ADAM else 4
    return moments + (0 if training.precision is Precision.FP32 else 4)


def state_without_experts(conditions: Conditions, layer: AnyLayer, strategy: Strategy, own_copy: bool) -> State:
    """State of everything but routed experts; a tied head counts the shared matrix only if it has an `own_copy`."""
    return _state(conditions, strategy, _dense(conditions, layer, strategy, own_copy))


def messages_without_experts(
    conditions: Conditions, layer: AnyLayer, strategy: Strategy, own_copy: bool
) -> StateMessages:
    """Traffic of everything but routed experts, as `state_without_experts` prices it."""
    return _messages(conditions, strategy.sharding, _dense(conditions, layer, strategy, own_copy))


def messages_of_experts(conditions: Conditions, layer: Block, strategy: Strategy) -> StateMessages:
    """Traffic of the routed experts' weights and gradients, without replicas."""
    return _messages(conditions, strategy.sharding, _experts(conditions, layer, strategy))


def state_of_experts(conditions: Conditions, layer: Block, strategy: Strategy, copies: Copies = ONE_EACH) -> State:
    """State of the routed experts of an MoE layer, and the traffic that keeps their copies equal.

    A replica has weights, gradients and optimizer state of its own; a shadow has no optimizer state, and its weights
    are not gathered once per step, for they come whole.
    """
    held = _experts(conditions, layer, strategy)
    own = _state(conditions, strategy, held._replace(parameters=held.parameters * copies.own_ratio))
    own = own._replace(
        once_forward_s=own.once_forward_s + copies.once_forward_s,
        once_backward_s=own.once_backward_s + copies.once_backward_s,
    )
    if peak(copies.shadow_ratio) == 0:
        return own
    shadows = _state(conditions, strategy, held._replace(parameters=held.parameters * copies.shadow_ratio))
    passing = ("optimizer_bytes", "once_forward_s", "optimizer_s", "host_bytes")
    return add_states(own, shadows._replace(**dict.fromkeys(passing, 0.0)))


def sent_of_expert(conditions: Conditions, layer: Block, strategy: Strategy) -> ExpertBytes:
    """What one device sends to keep the copies of one expert equal.

    Gradients are sharded from ZeRO-1 on; weights under ZeRO-3, where those of shadows are gathered with all others.
    """
    assert strategy.experts is not None and layer.moe is not None
    conditions, parts = of_layer(conditions, layer), strategy.experts.expert_data_parallel_size
    parameters = expert_parameters(layer.moe, conditions.hidden_size) / strategy.experts.expert_tensor_parallel_size
    weights, gradients = (parameters * each(conditions.training) for each in (weight_bytes, gradient_bytes))
    return ExpertBytes(
        weights=weights / (parts if strategy.sharding is Sharding.FULL else 1),
        gradients=gradients / (1 if strategy.sharding is Sharding.NONE else parts),
    )


def add_states(one: State, other: State) -> State:
    """Two parts of one layer; their traffic follows one another."""
    return State._make(map(add, one, other))


def local_parameters(hidden_size: int, layer: AnyLayer, strategy: Strategy) -> tuple[float, float]:
    """(dense, expert) parameters that a device computes with."""
    parameters = layer_parameters(layer, hidden_size)
    experts = strategy.experts
    cut = experts.expert_parallel_size * experts.expert_tensor_parallel_size if experts else 1
    dense = parameters.split / strategy.tp + parameters.replicated + _copied_groups(hidden_size, layer, strategy.tp)
    return dense, parameters.experts / cut


def _copied_groups(hidden_size: int, layer: AnyLayer, tp: int) -> float:
    """What a rank holds of keys and values beyond its 1/tp: fewer groups than ranks are copied whole."""
    if not isinstance(layer, Block):
        return 0.0
    copied = 0.0
    for attention in layer.attentions:
        if isinstance(attention, GroupedQueryAttention):
            inputs = (layer.hidden_size or hidden_size) + (1 if attention.qkv_bias else 0)
            group = 2 * attention.head_dim * inputs
            copied += max(0.0, group - group * attention.num_kv_heads / tp)
    return copied


def _dense(conditions: Conditions, layer: AnyLayer, strategy: Strategy, own_copy: bool) -> _Held:
    conditions = of_layer(conditions, layer)
    parameters, _ = local_parameters(conditions.hidden_size, layer, strategy)
    if isinstance(layer, Head) and layer.tied and own_copy:
        parameters += layer.vocab_size * conditions.hidden_size / strategy.tp
    partial = _partial(layer, conditions.hidden_size, strategy)
    dimensions = {kind: (strategy.degree(kind), strategy.stride(kind)) for kind in AxisKind}
    samples_and_sequence = (dimensions[AxisKind.DP], dimensions[AxisKind.CP], dimensions[AxisKind.ULYSSES])
    sharded: Group = ()
    replicated: Group = samples_and_sequence
    if strategy.degree(AxisKind.SDP) > 1:
        sharded = (dimensions[AxisKind.SDP],)
    elif strategy.sharding is not Sharding.NONE:
        sharded, replicated = samples_and_sequence, ()
    return _Held(parameters, sharded, replicated, partial, tensor_group(strategy))


def _partial(layer: AnyLayer, hidden_size: int, strategy: Strategy) -> float:
    """What every tensor-parallel rank holds and sees a part of: other tokens, or other heads.

    With sequence parallelism norms, router and low-rank projections see other tokens (position embeddings are added
    before the sequence is cut); norms of single heads see other heads in any case. Source: Megatron-Core,
    finalize_model_grads.
    """
    if isinstance(layer, Embedding):
        return 0.0
    if strategy.sequence_parallel:
        return float(layer_parameters(layer, hidden_size).replicated)
    if not isinstance(layer, Block) or not isinstance(layer.attention, GroupedQueryAttention):
        return 0.0
    return 2.0 * layer.attention.head_dim if layer.attention.qk_norm == "per_head" else 0.0


def _experts(conditions: Conditions, layer: AnyLayer, strategy: Strategy) -> _Held:
    assert strategy.experts is not None
    _, parameters = local_parameters(conditions.hidden_size, layer, strategy)
    group = expert_data_group(strategy.experts)
    if strategy.sharding is Sharding.NONE:
        return _Held(parameters, (), group)
    return _Held(parameters, group, ())


def _state(conditions: Conditions, strategy: Strategy, held: _Held) -> State:
    training, sharding = conditions.training, strategy.sharding
    count, parts = held.parameters, size(held.sharded_over)
    weight, gradient = weight_bytes(training), gradient_bytes(training)
    split_gradients = sharding in (Sharding.GRADIENTS, Sharding.FULL)
    split_weights = sharding is Sharding.FULL
    kept_weight, kept_gradient, kept_moments = _kept_by_stack(conditions, split_weights, strategy.offload)
    update = _offloaded_update if strategy.offload else _update
    optimizer_s, host_bytes = update(conditions, count / parts)
    messages = _messages(conditions, sharding, held)
    return State(
        weights_bytes=count * kept_weight / (parts if split_weights else 1),
        gradients_bytes=count * kept_gradient / (parts if split_gradients else 1),
        optimizer_bytes=count * kept_moments / parts,
        whole_weights_bytes=count * weight if split_weights and parts > 1 else 0.0,
        whole_gradients_bytes=count * gradient if split_gradients and parts > 1 else 0.0,
        micro_forward_s=messages_s(conditions.levels, messages.micro_forward),
        micro_backward_s=messages_s(conditions.levels, messages.micro_backward),
        once_forward_s=messages_s(conditions.levels, messages.once_forward),
        once_backward_s=messages_s(conditions.levels, messages.once_backward),
        accumulate_s=count * conditions.stack.accumulate_bytes / conditions.rate.bytes_per_s,
        optimizer_s=optimizer_s,
        host_bytes=host_bytes,
    )


def _updated_bytes(training: Training) -> int:
    """For each parameter, what the update reads (gradient, state) and writes (state, weight)."""
    weights = 2 if training.precision is Precision.FP32 else 1
    return gradient_bytes(training) + 2 * optimizer_bytes(training) + weights * weight_bytes(training)


def _update(conditions: Conditions, parameters: Numbers) -> tuple[Numbers, Numbers]:
    """(seconds, bytes in the host's memory) of an update by the device."""
    return parameters * _updated_bytes(conditions.training) / conditions.rate.optimizer_bytes_per_s, 0.0


def _offloaded_update(conditions: Conditions, parameters: Numbers) -> tuple[Numbers, Numbers]:
    """(seconds, bytes in the host's memory) of an update by the host, which holds the state.

    Once per step gradients go to the host, it updates, and weights come back: one after the other, beside nothing.
    Frameworks hide a part of it: an upper bound. The host also holds gradients and weights, for the copies.
    Source: ZeRO-Offload (arXiv 2101.06840), sections 4 and 5; Megatron-Core, core/optimizer/cpu_offloading, without
    --overlap-cpu-optimizer-d2h-h2d.
    """
    training, host = conditions.training, conditions.host
    if host is None:
        raise InputError.at("cluster.device.host", "must be given where optimizer state is offloaded to it")
    copied = gradient_bytes(training) + weight_bytes(training)
    seconds = copied / host.link_bytes_per_s + _updated_bytes(training) / host.memory_bandwidth_bytes_per_s
    return parameters * seconds, parameters * (copied + optimizer_bytes(training))


def _kept_by_stack(conditions: Conditions, split_weights: bool, offload: bool) -> tuple[float, float, float]:
    """Bytes of weight, gradient and optimizer state that a parameter takes between passes, copies included."""
    training, stack = conditions.training, conditions.stack
    weight, gradient, moments = weight_bytes(training), gradient_bytes(training), optimizer_bytes(training)
    if training.precision is Precision.FP32:
        return weight, gradient, 0 if offload else moments
    if stack.casts_shards and split_weights and not offload:
        weight, moments = 4, moments - 4
    computed = stack.computed_gradient_bytes if gradient == 4 else 0.0
    updated = 0.0 if gradient == 4 else stack.update_gradient_bytes
    return weight, gradient + computed, 0 if offload else moments + updated


def _messages(conditions: Conditions, sharding: Sharding, held: _Held) -> StateMessages:
    """What each stage of ZeRO gathers and reduces; replicas of the shards add up their gradients once per step."""
    shard, gradient = held.sharded_over, gradient_bytes(conditions.training)
    gather = Message(Collective.ALL_GATHER, shard, held.parameters * weight_bytes(conditions.training))
    scatter = Message(Collective.REDUCE_SCATTER, shard, held.parameters * gradient)
    replicas = Message(Collective.ALL_REDUCE, held.replicated_over, held.parameters * gradient / size(shard))
    partial = Message(Collective.ALL_REDUCE, held.tensor_group, held.partial * gradient)
    if sharding is Sharding.FULL:
        return StateMessages((gather,), (gather, partial, scatter), (), (replicas,))
    if sharding is Sharding.GRADIENTS:
        return StateMessages((), (partial, scatter), (gather,), (replicas,))
    if sharding is Sharding.OPTIMIZER:
        return StateMessages((), (), (gather,), (partial, scatter, replicas))
    return StateMessages((), (), (), (partial, replicas))
