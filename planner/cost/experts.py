"""The Mixture-of-Experts part of a block: router, dispatch, expert products, combine, shared experts.

Its time follows the load: the rank with most tokens sets the pace of compute and of the all-to-all.
"""

from __future__ import annotations

import numpy as np

from planner.cost.collectives import Group
from planner.cost.dense import feed_forward, feed_forward_bytes, linear_s, tensor_region
from planner.cost.kernels import elementwise_s
from planner.cost.message import Collective, Message, Messages, messages_s
from planner.cost.numbers import Numbers, are_many, peak, smallest
from planner.cost.part import Conditions, Part, Share, add
from planner.spec.model import MoeFeedForward
from planner.spec.strategy import ExpertStrategy, Strategy


def expert_group(experts: ExpertStrategy) -> Group:
    """Expert-parallel group: its ranks are `expert_tensor_parallel_size` devices apart."""
    return ((experts.expert_parallel_size, experts.expert_tensor_parallel_size),)


def expert_data_group(experts: ExpertStrategy) -> Group:
    """Devices that hold the same experts."""
    stride = experts.expert_parallel_size * experts.expert_tensor_parallel_size
    return ((experts.expert_data_parallel_size, stride),)


def moe_feed_forward(
    conditions: Conditions,
    moe: MoeFeedForward,
    strategy: Strategy,
    part_of: Share,
    load_ratio: Numbers,
    slots_ratio: Numbers = 1.0,
) -> Part:
    """Router, experts and shared experts on the busiest device; see `routed_experts` for the ratios."""
    assert strategy.experts is not None
    routed = routed_experts(conditions, moe, strategy.experts, part_of.edge_tokens, load_ratio, slots_ratio)
    return add((routed, shared_experts(conditions, moe, strategy, part_of)))


def routed_experts(
    conditions: Conditions,
    moe: MoeFeedForward,
    experts: ExpertStrategy,
    edge_tokens: float,
    load_ratio: Numbers,
    slots_ratio: Numbers = 1.0,
) -> Part:
    """Router and routed experts on the busiest device, which has `edge_tokens` of its own to route.

    `load_ratio`: tokens of the busiest expert-parallel rank over the mean; 1 is balanced, below 1 a capacity factor
    drops tokens on every rank. `slots_ratio`: slots of a rank over its even share of the experts; copies make more
    and smaller products of the same tokens. Arrays of ratios give arrays.
    """
    groups = moe.num_experts / experts.expert_parallel_size * slots_ratio
    even = _even(conditions, moe, experts, edge_tokens, smallest((1.0, load_ratio)), groups)
    loaded = even if peak(load_ratio) <= 1.0 else _routed(conditions, moe, experts, edge_tokens, load_ratio, groups)
    forward, backward, exchange, stored, transient = loaded
    router = linear_s(conditions, edge_tokens, moe.num_experts, conditions.hidden_size)
    logits = 8.0 * edge_tokens * moe.num_experts
    return Part(
        forward_s=even[0] + router[0],
        backward_s=even[1] + router[1],
        all_to_all_s=even[2],
        imbalance_forward_s=forward - even[0] + exchange - even[2],
        imbalance_backward_s=backward - even[1] + exchange - even[2],
        stall_s=conditions.stack.dropless_host_s if conditions.training.capacity_factor is None else 0.0,
        stored_bytes=stored + logits,
        transient_bytes=transient,
    )


def _even(
    conditions: Conditions,
    moe: MoeFeedForward,
    experts: ExpertStrategy,
    edge_tokens: float,
    load_ratio: Numbers,
    groups: Numbers,
) -> tuple[Numbers, ...]:
    """`_routed`; what is the same for all loads is worked out once."""
    if are_many(groups) or not are_many(load_ratio) or (load_ratio != 1.0).any():
        return _routed(conditions, moe, experts, edge_tokens, load_ratio, groups)
    once = _routed(conditions, moe, experts, edge_tokens, 1.0, groups)
    return tuple(np.broadcast_to(each, load_ratio.shape) for each in once)


def _routed(
    conditions: Conditions,
    moe: MoeFeedForward,
    experts: ExpertStrategy,
    edge_tokens: float,
    load_ratio: Numbers,
    groups: Numbers,
) -> tuple[Numbers, Numbers, Numbers, Numbers, Numbers]:
    """(forward, backward, exchange one direction) seconds and (stored, transient) bytes of the routed experts.

    `groups`: slots of a rank.
    """
    tensor = experts.expert_tensor_parallel_size
    rate, element, hidden = conditions.rate, conditions.rate.element_bytes, conditions.hidden_size
    sent = edge_tokens * moe.top_k
    """Copies of tokens that leave this device; each tensor-parallel rank holds its own tokens."""
    rows = sent * load_ratio * tensor
    width = moe.expert_width / tensor
    forward, backward = feed_forward(conditions, width, moe.gated, rows / groups, groups)
    # Sorting tokens by expert and back: read and write every copy, twice; backward the same.
    sorting = elementwise_s(rate, 4.0 * element * hidden * sent * load_ratio, 2)
    exchange = messages_s(conditions.levels, token_exchange(conditions, moe, experts, edge_tokens, load_ratio))
    stored = feed_forward_bytes(conditions, moe, width, rows) + (element + rate.operand_bytes) * hidden * rows
    inner = element * rows * (width * (2 if moe.gated else 1) + hidden)
    return forward + sorting, backward + sorting, exchange, stored, inner


def token_exchange(
    conditions: Conditions, moe: MoeFeedForward, experts: ExpertStrategy, edge_tokens: float, load_ratio: Numbers
) -> Messages:
    """Messages of the routed experts in one direction: every copy of a token to its expert and back.

    All ranks route alike, and so send to the slots of an expert in the same proportions: of n ranks the busiest gets
    `load_ratio` times the mean, 1/n of it from itself, m/n from the m that share its island; none sends more. So the
    messages of its size, spread evenly, take as long as the real ones on every tier (tests/cost/test_traffic_of_loads).
    A runtime that prefers replicas near by sends less. Every copy travels by itself, also where several experts of a
    token stand on one node: groups of experts (node-limited routing) change nothing here.
    Expert-tensor-parallel ranks gather each other's tokens, and reduce-scatter the results.
    """
    tensor = experts.expert_tensor_parallel_size
    sent = edge_tokens * moe.top_k * load_ratio * conditions.hidden_size * conditions.rate.element_bytes
    nearest: Group = ((tensor, 1),)
    return (
        Message(Collective.ALL_TO_ALL, expert_group(experts), sent, 2),
        Message(Collective.ALL_GATHER, nearest, sent * tensor),
        Message(Collective.REDUCE_SCATTER, nearest, sent * tensor),
    )


def shared_experts(conditions: Conditions, moe: MoeFeedForward, strategy: Strategy, part_of: Share) -> Part:
    """Experts that every token passes, cut by the attention's tensor parallelism."""
    if not moe.shared_width:
        return Part()
    width = moe.shared_width / strategy.tp
    forward, backward = feed_forward(conditions, width, moe.gated, part_of.tokens)
    traffic = messages_s(conditions.levels, tensor_region(conditions, strategy, part_of))
    return Part(
        forward_s=forward,
        backward_s=backward,
        tensor_forward_s=traffic,
        tensor_backward_s=traffic,
        stored_bytes=feed_forward_bytes(conditions, moe, width, part_of.tokens),
        transient_bytes=conditions.rate.element_bytes * part_of.tokens * width,
    )
