"""What the formulas of `planner.cost` say about measured work: each sample as pairs of predicted and measured seconds.

The only place that knows which formula prices which sample; it holds no formula of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TypeAlias

from planner.cost.attention import attention
from planner.cost.collectives import all_gather_s, all_reduce_s, all_to_all_s, point_to_point_s, reduce_scatter_s
from planner.cost.dense import feed_forward, linear_s, residual_stream
from planner.cost.experts import moe_feed_forward
from planner.cost.kernels import elementwise_s, overlapped_s
from planner.cost.part import Conditions, Share, conditions
from planner.cost.state import state_without_experts
from planner.cost.vocabulary import head
from planner.spec.cluster import Cluster, Level, Precision
from planner.spec.model import Embedding, GroupedQueryAttention, Head, MoeFeedForward
from planner.spec.stack import Stack
from planner.spec.strategy import ExpertStrategy, Strategy
from planner.spec.training import Training
from profiles.measurement import (
    ROUTED_EXPERTS,
    ROUTED_TOP_K,
    AttentionSample,
    CollectiveSample,
    ElementwiseSample,
    ElementwiseWork,
    LaunchSample,
    MatmulSample,
    Operation,
    Sample,
)

Pair: TypeAlias = tuple[float, float]
"""(predicted, measured) seconds."""

_ALONE = Strategy()
_ROUTED = Strategy(experts=ExpertStrategy())


def pairs(sample: Sample, cluster: Cluster, usual: Precision) -> Iterator[Pair]:
    """Predicted and measured seconds of a sample, for each of its passes; `usual`: the format of what has none."""
    given = _conditions(cluster, getattr(sample, "precision", usual), 1)
    if isinstance(sample, MatmulSample):
        yield _matmul_s(sample, given), sample.time_s
    elif isinstance(sample, AttentionSample):
        forward_s, backward_s = _attention_s(sample, cluster)
        yield forward_s, sample.forward_s
        yield backward_s, sample.backward_s
    elif isinstance(sample, ElementwiseSample):
        forward_s, backward_s = _elementwise_s(sample, cluster)
        yield forward_s, sample.forward_s
        if sample.backward_s is not None:
            yield backward_s, sample.backward_s
    elif isinstance(sample, LaunchSample):
        yield elementwise_s(given.rate, 0.0), sample.time_s
    elif isinstance(sample, CollectiveSample):
        yield _collective_s(sample, cluster.levels), sample.time_s
    else:
        yield float(overlapped_s(given.rate, sample.compute_s, sample.communication_s)), sample.both_s


def _conditions(cluster: Cluster, precision: Precision, hidden_size: int) -> Conditions:
    return conditions(hidden_size, cluster, _training(precision))


@cache
def _training(precision: Precision) -> Training:
    """Batch and sequence length of the recipe enter no price of a single layer; a Share brings the shape."""
    return Training(global_batch_size=1, sequence_length=1, precision=precision)


def _matmul_s(sample: MatmulSample, given: Conditions) -> float:
    return float(linear_s(given, sample.rows, sample.columns, sample.depth, sample.groups)[0])


def _attention_s(sample: AttentionSample, cluster: Cluster) -> Pair:
    """(forward, backward) of the scores: all of attention, less the same where the scores take no time."""
    shape = GroupedQueryAttention(num_heads=sample.num_heads, num_kv_heads=sample.num_heads, head_dim=sample.head_dim)
    given = _conditions(cluster, sample.precision, sample.num_heads * sample.head_dim)
    endless = float("inf")
    free = given.rate._replace(attention_forward_flops_per_s=endless, attention_backward_flops_per_s=endless)
    tokens = sample.samples * sample.sequence_length
    share = Share(sample.samples, sample.sequence_length, tokens, tokens)
    whole = attention(given, shape, _ALONE, share)
    rest = attention(given._replace(rate=free), shape, _ALONE, share)
    return _less((whole.forward_s, whole.backward_s), (rest.forward_s, rest.backward_s))


def _elementwise_s(sample: ElementwiseSample, cluster: Cluster) -> Pair:
    """(forward, backward); a stream is the memory's, whatever the stack."""
    rows, columns = sample.rows, sample.columns
    given = _conditions(cluster, sample.precision, columns)
    share = Share(1.0, rows, rows, rows)
    if sample.work is ElementwiseWork.RESIDUAL:
        part = residual_stream(given, share)
        return part.forward_s, part.backward_s
    if sample.work is ElementwiseWork.ACTIVATION:
        whole = feed_forward(given, columns, True, rows)
        return _less(whole, linear_s(given, rows, 2 * columns, columns), linear_s(given, rows, columns, columns))
    if sample.work is ElementwiseWork.LOSS:
        narrow = given._replace(hidden_size=1)
        part = head(narrow, Head(vocab_size=columns), _ALONE, share)
        return _less((part.forward_s, part.backward_s), linear_s(narrow, rows, columns, 1))
    if sample.work is ElementwiseWork.ROUTING:
        return _routing_s(rows, columns, given)
    if sample.work is ElementwiseWork.UPDATE:
        return state_without_experts(given, Embedding(vocab_size=rows), _ALONE, own_copy=True).optimizer_s, 0.0
    ideal = _conditions(cluster.model_copy(update={"stack": Stack()}), sample.precision, columns).rate
    return elementwise_s(ideal, 3.0 * ideal.element_bytes * rows * columns), 0.0


def _routing_s(rows: int, columns: int, given: Conditions) -> Pair:
    """(forward, backward) of an MoE layer without its products and what stands between them."""
    moe = MoeFeedForward(num_experts=ROUTED_EXPERTS, top_k=ROUTED_TOP_K, expert_width=columns)
    part = moe_feed_forward(given, moe, _ROUTED, Share(1.0, rows, rows, rows), 1.0)
    experts = feed_forward(given, columns, True, rows * ROUTED_TOP_K / ROUTED_EXPERTS, ROUTED_EXPERTS)
    return _less((part.forward_s, part.backward_s), experts, linear_s(given, rows, ROUTED_EXPERTS, columns))


def _less(whole: Pair, *parts: Pair) -> Pair:
    """(forward, backward) of a whole without its parts."""
    return whole[0] - sum(part[0] for part in parts), whole[1] - sum(part[1] for part in parts)


def _collective_s(sample: CollectiveSample, levels: tuple[Level, ...]) -> float:
    group = ((sample.degree, sample.stride),)
    if sample.operation is Operation.POINT_TO_POINT:
        return point_to_point_s(levels, 0, sample.stride, sample.message_bytes)
    price = {
        Operation.ALL_REDUCE: all_reduce_s,
        Operation.ALL_GATHER: all_gather_s,
        Operation.REDUCE_SCATTER: reduce_scatter_s,
        Operation.ALL_TO_ALL: all_to_all_s,
    }[sample.operation]
    return float(price(levels, group, sample.message_bytes))
