"""What the formulas of `planner.cost` say about measured work: each sample as pairs of predicted and measured seconds.

The only place that knows which formula prices which sample; it holds no formula of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from planner.cost.attention import attention
from planner.cost.collectives import all_gather_s, all_reduce_s, all_to_all_s, point_to_point_s, reduce_scatter_s
from planner.cost.dense import feed_forward, linear_s, residual_stream
from planner.cost.kernels import Rates, matmul_s, memory_bound_s, overlapped_s
from planner.cost.part import Conditions, Share
from planner.cost.state import state_without_experts
from planner.cost.vocabulary import head
from planner.spec.cluster import Level, Precision
from planner.spec.model import Embedding, GroupedQueryAttention, Head
from planner.spec.strategy import Strategy
from planner.spec.training import Training
from profiles.measurement import (
    AttentionSample,
    CollectiveSample,
    ElementwiseSample,
    ElementwiseWork,
    LaunchSample,
    MatmulSample,
    Operation,
    OverlapSample,
    Sample,
)

Pair: TypeAlias = tuple[float, float]
"""(predicted, measured) seconds."""

_ALONE = Strategy()


def pairs(sample: Sample, rate: Rates, levels: tuple[Level, ...]) -> Iterator[Pair]:
    """Predicted and measured seconds of a sample, for each of its passes; `levels`: of the measured machine."""
    if isinstance(sample, MatmulSample):
        yield matmul_s(rate, sample.rows, sample.columns, sample.depth), sample.time_s
    elif isinstance(sample, AttentionSample):
        forward_s, backward_s = _attention_s(sample, rate, levels)
        yield forward_s, sample.forward_s
        yield backward_s, sample.backward_s
    elif isinstance(sample, ElementwiseSample):
        forward_s, backward_s = _elementwise_s(sample, rate, levels)
        yield forward_s, sample.forward_s
        if sample.backward_s is not None:
            yield backward_s, sample.backward_s
    elif isinstance(sample, LaunchSample):
        yield memory_bound_s(rate, 0.0), sample.time_s
    elif isinstance(sample, CollectiveSample):
        yield _collective_s(sample, levels), sample.time_s
    else:
        yield _overlapped_s(sample, rate), sample.both_s


def _conditions(rate: Rates, levels: tuple[Level, ...], hidden_size: int, precision: Precision) -> Conditions:
    # Batch and sequence length of the recipe enter no price of a single layer; a Share brings the shape.
    return Conditions(hidden_size, rate, levels, Training(global_batch_size=1, sequence_length=1, precision=precision))


def _attention_s(sample: AttentionSample, rate: Rates, levels: tuple[Level, ...]) -> tuple[float, float]:
    """(forward, backward) of the scores alone: the whole part on a device whose other work takes no time."""
    free = rate._replace(matmul_flops_per_s=float("inf"), bytes_per_s=float("inf"), launch_s=0.0)
    shape = GroupedQueryAttention(num_heads=sample.num_heads, num_kv_heads=sample.num_heads, head_dim=sample.head_dim)
    conditions = _conditions(free, levels, sample.num_heads * sample.head_dim, sample.precision)
    tokens = sample.samples * sample.sequence_length
    part = attention(conditions, shape, _ALONE, Share(sample.samples, sample.sequence_length, tokens, tokens))
    return part.forward_s, part.backward_s


def _elementwise_s(sample: ElementwiseSample, rate: Rates, levels: tuple[Level, ...]) -> tuple[float, float]:
    rows, columns = sample.rows, sample.columns
    conditions = _conditions(rate, levels, columns, sample.precision)
    share = Share(1.0, rows, rows, rows)
    if sample.work is ElementwiseWork.RESIDUAL:
        part = residual_stream(conditions, share)
        return part.forward_s, part.backward_s
    if sample.work is ElementwiseWork.ACTIVATION:
        whole = feed_forward(conditions, columns, True, rows)
        return _less(
            whole, linear_s(conditions, rows, 2 * columns, columns), linear_s(conditions, rows, columns, columns)
        )
    if sample.work is ElementwiseWork.LOSS:
        narrow = conditions._replace(hidden_size=1)
        part = head(narrow, Head(vocab_size=columns), _ALONE, share)
        return _less((part.forward_s, part.backward_s), linear_s(narrow, rows, columns, 1))
    if sample.work is ElementwiseWork.UPDATE:
        held = state_without_experts(conditions, Embedding(vocab_size=rows), _ALONE, own_copy=True)
        return held.optimizer_s, 0.0
    return memory_bound_s(rate, 2.0 * rate.element_bytes * rows * columns), 0.0


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
    return price(levels, group, sample.message_bytes)


def _overlapped_s(sample: OverlapSample, rate: Rates) -> float:
    return float(overlapped_s(rate, sample.compute_s, sample.communication_s))
