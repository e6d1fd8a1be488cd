"""Attention: projections, rotary embedding, scores; fused (flash) or not; its traffic between parts of the sequence."""

from __future__ import annotations

from typing import NamedTuple

from planner.cost.dense import linear_s, tensor_region, whole_tokens
from planner.cost.kernels import elementwise_s, is_aligned, matmul_s, overlapped_s, unquantised
from planner.cost.message import Collective, Message, Messages, messages_s
from planner.cost.part import Conditions, Part, Share, add, context_group, context_share, head_group
from planner.spec.model import GroupedQueryAttention, LatentAttention
from planner.spec.strategy import Strategy
from planner.spec.training import AttentionKernel


class Seen(NamedTuple):
    """Whose tokens attend to whose."""

    queries: Share
    keys: Share


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
    core = _core(conditions, kind, heads, strategy, Seen(part_of, part_of))
    traffic = messages_s(conditions.levels, tensor_region(conditions, strategy, part_of))
    sent = Part(tensor_forward_s=traffic, tensor_backward_s=traffic)
    parts = [projections, core, _windows(conditions, kind, part_of), sent]
    if strategy.ulysses > 1:
        parts.append(_turned(conditions, kind, heads, strategy, part_of))
    return add(parts)


def cross_attention(conditions: Conditions, kind: GroupedQueryAttention, strategy: Strategy, part_of: Share) -> Part:
    """Attention whose keys and values are made of the encoder's output, on one device, for one micro-batch.

    That output is not kept here: all blocks of a stage read one copy (planner.cost.boundary.carried_bytes).
    """
    heads, context = _local_heads(kind, strategy), context_share(conditions, strategy, part_of)
    hidden, element = conditions.hidden_size, conditions.rate.element_bytes
    pairs = [
        linear_s(conditions, part_of.tokens, heads.query_width, hidden),
        linear_s(conditions, context.tokens, heads.key_width + heads.value_width, hidden),
        linear_s(conditions, part_of.tokens, hidden, heads.output_width),
    ]
    kept = part_of.tokens * heads.query_width + context.tokens * (heads.key_width + heads.value_width)
    sent, sent_back = cross_region(conditions, strategy, part_of)
    projections = Part(
        forward_s=sum(pair[0] for pair in pairs),
        backward_s=sum(pair[1] for pair in pairs),
        tensor_forward_s=messages_s(conditions.levels, sent),
        tensor_backward_s=messages_s(conditions.levels, sent_back),
        stored_bytes=element * kept,
        transient_bytes=element * kept,
    )
    return add((projections, _core(conditions, kind, heads, strategy, Seen(part_of, context))))


def cross_region(conditions: Conditions, strategy: Strategy, part_of: Share) -> tuple[Messages, Messages]:
    """(forward, backward) tensor-parallel messages: a region as any, and the gradient of the encoder's output.

    With sequence parallelism that output is gathered before, and its gradient reduce-scattered: own derivation, from
    the region's rules with another input for keys and values.
    """
    region, context = tensor_region(conditions, strategy, part_of), context_share(conditions, strategy, part_of)
    if not strategy.sequence_parallel:
        return region, (*region, whole_tokens(Collective.ALL_REDUCE, conditions, strategy, context))
    return (
        (*region, whole_tokens(Collective.ALL_GATHER, conditions, strategy, context)),
        (*region, whole_tokens(Collective.REDUCE_SCATTER, conditions, strategy, context)),
    )


def _windows(conditions: Conditions, kind: GroupedQueryAttention | LatentAttention, part_of: Share) -> Part:
    """Tokens brought together by window, and back: each read and written twice, as much in the backward pass."""
    if kind.causal or not getattr(kind, "window", None):
        return Part()
    elements = part_of.tokens * conditions.hidden_size
    moved_s = elementwise_s(conditions.rate, 4.0 * conditions.rate.element_bytes * elements, 2)
    return Part(forward_s=moved_s, backward_s=moved_s)


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
    """Of self-attention, what selective recomputation keeps to spare every second product, and the core's output."""
    heads = _local_heads(kind, strategy)
    columns = heads.query_width + heads.key_width + heads.value_width
    if isinstance(kind, LatentAttention):
        columns = sum(width for width, _ in _latent_matrices(kind, heads, conditions.hidden_size))
    return part_of.tokens * (conditions.rate.element_bytes * (columns / 2 + heads.output_width) + 4.0 * heads.heads)


def kept_cross_products_bytes(
    conditions: Conditions, kind: GroupedQueryAttention, strategy: Strategy, part_of: Share
) -> float:
    """The same of cross-attention."""
    heads, context = _local_heads(kind, strategy), context_share(conditions, strategy, part_of)
    products = part_of.tokens * heads.query_width + context.tokens * (heads.key_width + heads.value_width)
    outputs = part_of.tokens * heads.output_width
    return conditions.rate.element_bytes * (products / 2 + outputs) + 4.0 * heads.heads * part_of.tokens


def _core(
    conditions: Conditions,
    kind: GroupedQueryAttention | LatentAttention,
    heads: _Heads,
    strategy: Strategy,
    seen: Seen,
) -> Part:
    if conditions.training.attention_kernel is AttentionKernel.UNFUSED:
        return _unfused_core(conditions, kind, heads, strategy, seen)
    return _flash_core(conditions, kind, heads, strategy, seen)


def _flash_core(
    conditions: Conditions,
    kind: GroupedQueryAttention | LatentAttention,
    heads: _Heads,
    strategy: Strategy,
    seen: Seen,
) -> Part:
    """Two products per pair of tokens forward, five backward; only pairs inside mask and window are computed.

    Source: FlashAttention-2 (arXiv 2307.08691), sections 3.1 and 4.1. Context parallelism passes keys and values
    around a ring under the compute (Ring Attention, arXiv 2310.01889), with load balanced under a causal mask.
    Recomputed or not, the output is kept: the projection after it reads it. Only the numbers of each row are saved.
    """
    rate, part_of, parts = conditions.rate, seen.queries, strategy.sequence_parts
    pairs = part_of.samples * _pairs(kind, part_of.sequence * parts, seen.keys.sequence * parts) / parts
    flops = 2.0 * pairs * (heads.query_width + heads.output_width)
    forward = flops / rate.attention_forward_flops_per_s + rate.launch_s
    backward = 2.5 * flops / rate.attention_backward_flops_per_s + 2 * rate.launch_s
    ring_s, ring_back_s = (messages_s(conditions.levels, each) for each in ring(conditions, kind, strategy, seen.keys))
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

    `part_of` is of the tokens that keys and values are made of.
    Backward passes their gradients too; the ring turns the other way, so that they end where they belong without a
    further round, as in Transformer Engine.
    """
    heads = _local_heads(kind, strategy)
    channels = heads.core_key_width + heads.core_value_width
    chunk_bytes = conditions.rate.element_bytes * part_of.tokens * channels
    forward = Message(Collective.SEND_RECEIVE, context_group(strategy), chunk_bytes, strategy.cp - 1)
    return (forward,), (forward, forward)


def _unfused_core(
    conditions: Conditions,
    kind: GroupedQueryAttention | LatentAttention,
    heads: _Heads,
    strategy: Strategy,
    seen: Seen,
) -> Part:
    """Scores are written to memory, masked or not: two batched products, softmax, dropout; windows side by side apart.

    Bytes kept per score: softmax output, and with dropout its mask (1 byte) and output.
    Source: Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1: 5 a s^2 b with 2-byte elements. A number of scores
    that the fused softmax does not take costs three more kernels each way.
    """
    rate, stack, part_of = unquantised(conditions.rate), conditions.stack, seen.queries
    sequence, keys = part_of.sequence * strategy.ulysses, seen.keys.sequence * strategy.ulysses
    windows = 1.0 if kind.causal else sequence / _window(kind, sequence)
    groups = part_of.samples * heads.heads / strategy.ulysses * windows
    sequence, keys = sequence / windows, keys / windows
    not_fused = groups % stack.fused_softmax_batch != 0
    query, value = heads.query_width / heads.heads, heads.output_width / heads.heads
    scores = groups * sequence * keys
    element, dropout = rate.element_bytes, conditions.training.dropout
    aligned = is_aligned(rate, query, value)
    products = matmul_s(rate, sequence, keys, query, groups, aligned)
    products += matmul_s(rate, sequence, value, keys, groups, aligned)
    softmax = elementwise_s(rate, scores * 2 * element)
    undo_softmax = elementwise_s(rate, scores * 3 * element)
    drop = elementwise_s(rate, scores * (2 * element + 1)) if dropout else 0.0
    backward_products = (
        matmul_s(rate, sequence, query, keys, 2 * groups, aligned)
        + matmul_s(rate, sequence, keys, value, groups, aligned)
        + matmul_s(rate, keys, value, sequence, groups, aligned)
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


def _pairs(kind: GroupedQueryAttention | LatentAttention, sequence: float, keys: float) -> float:
    """Pairs of tokens of one sample that attend to each other: mask and window."""
    window = _window(kind, keys)
    return window * sequence - window * window / 2.0 if kind.causal else window * sequence


def _window(kind: GroupedQueryAttention | LatentAttention, tokens: float) -> float:
    return min(tokens, getattr(kind, "window", None) or tokens)
