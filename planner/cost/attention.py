"""Attention: projections, rotary embedding, scores; fused (flash) or not; its traffic between parts of the sequence."""

from __future__ import annotations

from typing import NamedTuple

from planner.cost.dense import linear_s, tensor_region
from planner.cost.kernels import elementwise_s, is_aligned, matmul_s, overlapped_s, unquantised
from planner.cost.message import Collective, Message, Messages, messages_s
from planner.cost.part import Conditions, Part, Share, add, context_group, head_group
from planner.spec.model import GroupedQueryAttention, LatentAttention
from planner.spec.strategy import Strategy
from planner.spec.training import AttentionKernel


class _Heads(NamedTuple):
    """Heads of one tensor-parallel rank."""

    heads: float
    query_width: float
    """Channels of queries (and of keys, head by head)."""
    key_width: float
    value_width: float
    output_width: float
    core_key_width: float
    """Channels of keys that the core reads for each token: Ulysses copies groups that are fewer than its ranks."""
    core_value_width: float


def attention(
    conditions: Conditions, kind: GroupedQueryAttention | LatentAttention, strategy: Strategy, part_of: Share
) -> Part:
    """All of attention on one device, for one micro-batch."""
    heads = _local_heads(kind, strategy)
    projections = _projections(conditions, kind, heads, part_of)
    core = _core(conditions, kind, heads, strategy, part_of)
    traffic = messages_s(conditions.levels, tensor_region(conditions, strategy, part_of))
    parts = [projections, core, Part(tensor_forward_s=traffic, tensor_backward_s=traffic)]
    if strategy.ulysses > 1:
        parts.append(_turned(conditions, kind, heads, strategy, part_of))
    return add(parts)


def _local_heads(kind: GroupedQueryAttention | LatentAttention, strategy: Strategy) -> _Heads:
    heads = kind.num_heads / strategy.tp
    if isinstance(kind, LatentAttention):
        key, value = heads * kind.qk_head_dim, heads * kind.v_head_dim
        return _Heads(heads, key, key, value, value, key, value)
    # Fewer groups than ranks: each rank keeps a whole group (Megatron-Core replicates them).
    groups = max(1.0, kind.num_kv_heads / strategy.tp)
    query, key, core_key = (number * kind.head_dim for number in (heads, groups, max(groups, strategy.ulysses)))
    return _Heads(heads, query, key, key, query, core_key, core_key)


def _turned(
    conditions: Conditions,
    kind: GroupedQueryAttention | LatentAttention,
    heads: _Heads,
    strategy: Strategy,
    part_of: Share,
) -> Part:
    """What Ulysses adds to attention: four exchanges each way, which nothing hides, and what is kept twice.

    Kept besides: copies of groups of keys and values, and fused attention's output by heads; the projection after it
    keeps the same by parts of the sequence. While they are exchanged, gradients of queries, keys and values stand in
    both layouts. Selective recomputation exchanges again what it computes again.
    """
    seconds = messages_s(conditions.levels, head_exchange(conditions, kind, strategy, part_of))
    copies = heads.core_key_width + heads.core_value_width - heads.key_width - heads.value_width
    by_heads = heads.output_width if conditions.training.attention_kernel is AttentionKernel.FLASH else 0.0
    token_bytes = conditions.rate.element_bytes * part_of.tokens
    both = heads.query_width + heads.key_width + heads.value_width
    return Part(
        context_forward_s=seconds,
        context_backward_s=seconds,
        context_again_s=seconds,
        stored_bytes=token_bytes * (copies + by_heads),
        core_bytes=token_bytes * (copies + by_heads),
        transient_bytes=token_bytes * (2.0 * both + copies),
    )


def head_exchange(
    conditions: Conditions, kind: GroupedQueryAttention | LatentAttention, strategy: Strategy, part_of: Share
) -> Messages:
    """Ulysses, one direction: queries, keys and values become whole sequences of some heads, the output parts again.

    Keys and values of fewer groups than ranks are copied before, to one for each rank.
    Source: DeepSpeed-Ulysses (arXiv 2309.14509), section 3.2; copies: Arctic Long Sequence Training (arXiv 2506.13996).
    """
    heads = _local_heads(kind, strategy)
    token_bytes = conditions.rate.element_bytes * part_of.tokens
    widths = (heads.query_width, heads.core_key_width, heads.core_value_width, heads.output_width)
    return tuple(Message(Collective.ALL_TO_ALL, head_group(strategy), token_bytes * width) for width in widths)


def around_core(
    conditions: Conditions, kind: GroupedQueryAttention | LatentAttention, strategy: Strategy, part_of: Share
) -> tuple[Messages, Messages]:
    """(forward, backward): all messages between parts of the sequence: of the ring, and of Ulysses."""
    forward, backward = ring(conditions, kind, strategy, part_of)
    exchanged = head_exchange(conditions, kind, strategy, part_of)
    return forward + exchanged, backward + exchanged


def _projections(
    conditions: Conditions, kind: GroupedQueryAttention | LatentAttention, heads: _Heads, part_of: Share
) -> Part:
    hidden = conditions.hidden_size
    matrices = [(float(hidden), heads.output_width)]
    kept = heads.query_width + heads.key_width + heads.value_width
    if isinstance(kind, LatentAttention):
        matrices += _latent_matrices(kind, heads, hidden)
        kept += 2 * ((kind.q_lora_rank or 0) + kind.kv_lora_rank) + kind.qk_rope_head_dim
    else:
        matrices.append((kept, hidden))
    pairs = [linear_s(conditions, part_of.tokens, columns, depth) for columns, depth in matrices]
    element = conditions.rate.element_bytes
    rotary = 2.0 * element * part_of.tokens * (heads.query_width + heads.key_width)
    rotary_s = elementwise_s(conditions.rate, rotary, 2)
    return Part(
        forward_s=sum(pair[0] for pair in pairs) + rotary_s,
        backward_s=sum(pair[1] for pair in pairs) + rotary_s,
        stored_bytes=element * part_of.tokens * kept,
        transient_bytes=element * part_of.tokens * kept,
    )


def _latent_matrices(kind: LatentAttention, heads: _Heads, hidden: int) -> list[tuple[float, float]]:
    up = heads.heads * (kind.qk_nope_head_dim + kind.v_head_dim)
    matrices = [(kind.kv_lora_rank + kind.qk_rope_head_dim, hidden), (up, kind.kv_lora_rank)]
    if kind.q_lora_rank is None:
        return [*matrices, (heads.query_width, hidden)]
    return [*matrices, (kind.q_lora_rank, hidden), (heads.query_width, kind.q_lora_rank)]


def kept_products_bytes(
    conditions: Conditions, kind: GroupedQueryAttention | LatentAttention, strategy: Strategy, part_of: Share
) -> float:
    """Of attention, what selective recomputation keeps to spare every second product: those, and the core's output."""
    heads = _local_heads(kind, strategy)
    columns = heads.query_width + heads.key_width + heads.value_width
    if isinstance(kind, LatentAttention):
        columns = sum(width for width, _ in _latent_matrices(kind, heads, conditions.hidden_size))
    return part_of.tokens * (conditions.rate.element_bytes * (columns / 2 + heads.output_width) + 4.0 * heads.heads)


def _core(
    conditions: Conditions,
    kind: GroupedQueryAttention | LatentAttention,
    heads: _Heads,
    strategy: Strategy,
    part_of: Share,
) -> Part:
    if conditions.training.attention_kernel is AttentionKernel.UNFUSED:
        return _unfused_core(conditions, heads, strategy, part_of)
    return _flash_core(conditions, kind, heads, strategy, part_of)


def _flash_core(
    conditions: Conditions,
    kind: GroupedQueryAttention | LatentAttention,
    heads: _Heads,
    strategy: Strategy,
    part_of: Share,
) -> Part:
    """Two products per pair of tokens forward, five backward; only pairs inside mask and window are computed.

    Source: FlashAttention-2 (arXiv 2307.08691), sections 3.1 and 4.1. Context parallelism passes keys and values
    around a ring under the compute (Ring Attention, arXiv 2310.01889), with load balanced under a causal mask.
    Recomputed or not, the output is kept: the projection after it reads it. Only the numbers of each row are saved.
    """
    rate = conditions.rate
    full = part_of.sequence * strategy.sequence_parts
    pairs = part_of.samples * _pairs(kind, full) / strategy.sequence_parts
    flops = 2.0 * pairs * (heads.query_width + heads.output_width)
    forward = flops / rate.attention_forward_flops_per_s + rate.launch_s
    backward = 2.5 * flops / rate.attention_backward_flops_per_s + 2 * rate.launch_s
    ring_s, ring_back_s = (messages_s(conditions.levels, each) for each in ring(conditions, kind, strategy, part_of))
    kept = part_of.tokens * (rate.element_bytes * heads.output_width + 4.0 * heads.heads)
    return Part(
        forward_s=forward,
        backward_s=backward,
        core_forward_s=forward,
        weightless_forward_s=forward,
        context_forward_s=overlapped_s(rate, forward, ring_s) - forward,
        context_backward_s=overlapped_s(rate, backward, ring_back_s) - backward,
        context_again_s=overlapped_s(rate, forward, ring_s) - forward,
        ring_forward_s=min(forward, ring_s),
        ring_backward_s=min(backward, ring_back_s),
        stored_bytes=kept,
        core_bytes=4.0 * heads.heads * part_of.tokens,
    )


def ring(
    conditions: Conditions, kind: GroupedQueryAttention | LatentAttention, strategy: Strategy, part_of: Share
) -> tuple[Messages, Messages]:
    """(forward, backward): each of cp - 1 rounds passes one device's keys and values on to its neighbour.

    Backward passes their gradients too; the ring turns the other way, so that they end where they belong without a
    further round, as in Transformer Engine.
    """
    heads = _local_heads(kind, strategy)
    channels = heads.core_key_width + heads.core_value_width
    chunk_bytes = conditions.rate.element_bytes * part_of.tokens * channels
    forward = Message(Collective.SEND_RECEIVE, context_group(strategy), chunk_bytes, strategy.cp - 1)
    return (forward,), (forward, forward)


def _unfused_core(conditions: Conditions, heads: _Heads, strategy: Strategy, part_of: Share) -> Part:
    """Scores are written to memory, masked or not: two batched products, softmax, dropout.

    Bytes kept per score: softmax output, and with dropout its mask (1 byte) and output.
    Source: Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1: 5 a s^2 b with 2-byte elements. A number of scores
    that the fused softmax does not take costs three more kernels each way.
    """
    rate, stack = unquantised(conditions.rate), conditions.stack
    sequence, groups = part_of.sequence * strategy.ulysses, part_of.samples * heads.heads / strategy.ulysses
    not_fused = groups % stack.fused_softmax_batch != 0
    query, value = heads.query_width / heads.heads, heads.output_width / heads.heads
    scores = groups * sequence * sequence
    element, dropout = rate.element_bytes, conditions.training.dropout
    aligned = is_aligned(rate, query, value)
    products = matmul_s(rate, sequence, sequence, query, groups, aligned)
    products += matmul_s(rate, sequence, value, sequence, groups, aligned)
    softmax = elementwise_s(rate, scores * 2 * element)
    undo_softmax = elementwise_s(rate, scores * 3 * element)
    drop = elementwise_s(rate, scores * (2 * element + 1)) if dropout else 0.0
    backward_products = (
        matmul_s(rate, sequence, query, sequence, 2 * groups, aligned)
        + matmul_s(rate, sequence, sequence, value, groups, aligned)
        + matmul_s(rate, sequence, value, sequence, groups, aligned)
    )
    forward = products + softmax + drop
    if not_fused:
        forward += elementwise_s(rate, scores * 6 * element, 3)
        undo_softmax += elementwise_s(rate, scores * 6 * element, 3)
    dropped = scores * (2 * element + 1 if dropout else element)
    return Part(
        forward_s=forward,
        backward_s=backward_products + undo_softmax + drop,
        core_forward_s=forward,
        weightless_forward_s=forward,
        stored_bytes=dropped + element * part_of.tokens * heads.output_width,
        core_bytes=dropped,
        transient_bytes=element * scores,
        host_s=stack.unfused_softmax_host_ratio * stack.block_host_s if not_fused else 0.0,
    )


def _pairs(kind: GroupedQueryAttention | LatentAttention, sequence: float) -> float:
    """Pairs of tokens of one sample that attend to each other: mask and sliding window."""
    if not kind.causal:
        return sequence * sequence
    window = min(sequence, getattr(kind, "window", None) or sequence)
    return window * sequence - window * window / 2.0
