"""One strategy with one choice changed, the rest as it was as far as that can be. What no change can do is None.

Where a layer gets data parallelism that it had not, its sharding was no choice so far, and is `fresh`; where it loses
all of it, nothing is left to shard. Sequence parallelism comes with tensor parallelism where it divides the sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Recompute, Sharding, Strategy

EXPERT_DEGREES = {
    "ep": "expert_parallel_size",
    "etp": "expert_tensor_parallel_size",
    "edp": "expert_data_parallel_size",
}
_OUTERMOST_FIRST = (AxisKind.DP, AxisKind.SDP, AxisKind.CP, AxisKind.TP)


class Setting(NamedTuple):
    """What new strategies need to know beside the old one."""

    sequence_length: int
    fresh: Sharding
    """For layers that had nothing to shard."""


def smallest_factor(degree: int) -> int:
    """The smallest prime that divides a degree of at least 2."""
    return next(factor for factor in range(2, degree + 1) if degree % factor == 0)


def exchange(strategy: Strategy, giver: AxisKind, taker: AxisKind, factor: int, setting: Setting) -> Strategy | None:
    """One axis smaller by the factor, another larger; the devices stay."""
    if strategy.degree(giver) % factor or strategy.degree(giver) == 1:
        return None
    smaller = _scaled(strategy.axes, giver, strategy.degree(giver) // factor)
    return _with(strategy, _scaled(smaller, taker, strategy.degree(taker) * factor), strategy.experts, setting)


def on_fewer_devices(strategy: Strategy, giver: AxisKind, factor: int, setting: Setting) -> Strategy | None:
    """The strategy on 1/factor of its devices: `giver` shrinks, or else the outermost axis that can."""
    kinds = [giver, *(axis.kind for axis in strategy.axes)]
    found = next((kind for kind in kinds if strategy.degree(kind) % factor == 0), None)
    experts = strategy.experts
    if found is None:
        return None
    if experts is not None:
        kept = _experts_on_fewer(experts, factor)
        if kept is None:
            return None
        experts = kept
    return _with(strategy, _scaled(strategy.axes, found, strategy.degree(found) // factor), experts, setting)


def on_more_devices(strategy: Strategy, taker: AxisKind, factor: int, setting: Setting) -> Strategy:
    """The strategy on `factor` times its devices: `taker` grows; experts get more copies."""
    experts = strategy.experts
    if experts is not None:
        experts = _resized(experts, {"edp": experts.expert_data_parallel_size * factor})
    return _with(strategy, _scaled(strategy.axes, taker, strategy.degree(taker) * factor), experts, setting)


def exchange_experts(strategy: Strategy, giver: str, taker: str, factor: int, setting: Setting) -> Strategy | None:
    """One degree of the experts (`ep`, `etp` or `edp`) smaller by the factor, another larger."""
    if strategy.experts is None or expert_degree(strategy, giver) % factor:
        return None
    sizes = {
        giver: expert_degree(strategy, giver) // factor,
        taker: expert_degree(strategy, taker) * factor,
    }
    return _with(strategy, strategy.axes, _resized(strategy.experts, sizes), setting)


def expert_degree(strategy: Strategy, name: str) -> int:
    """Degree `ep`, `etp` or `edp`; 1 without experts."""
    return getattr(strategy.experts, EXPERT_DEGREES[name]) if strategy.experts else 1


def shard(strategy: Strategy, levels: int) -> Strategy | None:
    """Sharding so many levels up; None where there is no such level, or nothing to shard."""
    order = list(Sharding)
    level = order.index(strategy.sharding) + levels
    if not is_shardable(strategy) or not 0 <= level < len(order) or strategy.degree(AxisKind.SDP) > 1:
        return None
    return strategy.model_copy(update={"sharding": order[level]})


def recompute(strategy: Strategy, levels: int) -> Strategy | None:
    """Recomputation so many levels up; None where there is no such level."""
    order = list(Recompute)
    level = order.index(strategy.recompute) + levels
    if not 0 <= level < len(order):
        return None
    return strategy.model_copy(update={"recompute": order[level]})


def turn_sequence_parallel(strategy: Strategy, on: bool) -> Strategy | None:
    """With or without sequence parallelism; None without tensor parallelism, or if it is so already."""
    if strategy.tp == 1 or strategy.sequence_parallel is on:
        return None
    return strategy.model_copy(update={"sequence_parallel": on})


def is_shardable(strategy: Strategy) -> bool:
    """Whether any ranks hold the same weights."""
    return _copies(strategy.axes, strategy.experts)


def _copies(axes: tuple[Axis, ...], experts: ExpertStrategy | None) -> bool:
    more = experts is not None and experts.expert_data_parallel_size > 1
    return more or any(axis.kind is not AxisKind.TP for axis in axes)


def _scaled(axes: tuple[Axis, ...], kind: AxisKind, degree: int) -> tuple[Axis, ...]:
    """The axes with another degree of one of them; a new one goes where the search would put it."""
    if any(axis.kind is kind for axis in axes):
        changed = (Axis(kind, degree) if axis.kind is kind else axis for axis in axes)
        return tuple(axis for axis in changed if axis.degree > 1)
    if degree == 1:
        return axes
    inside = {*_OUTERMOST_FIRST[_OUTERMOST_FIRST.index(kind) + 1 :]} if kind in _OUTERMOST_FIRST else {AxisKind.TP}
    place = next((number for number, axis in enumerate(axes) if axis.kind in inside), len(axes))
    return (*axes[:place], Axis(kind, degree), *axes[place:])


def _with(strategy: Strategy, axes: tuple[Axis, ...], experts: ExpertStrategy | None, setting: Setting) -> Strategy:
    kinds = {axis.kind for axis in axes}
    if AxisKind.SDP in kinds and AxisKind.DP not in kinds:
        axes = tuple(axis._replace(kind=AxisKind.DP) if axis.kind is AxisKind.SDP else axis for axis in axes)
    tp = prod(axis.degree for axis in axes if axis.kind is AxisKind.TP)
    whole = (AxisKind.DP, AxisKind.SDP, AxisKind.TP)
    part = setting.sequence_length // prod(axis.degree for axis in axes if axis.kind not in whole)
    sharding = strategy.sharding if is_shardable(strategy) else setting.fresh
    return strategy.model_copy(
        update={
            "axes": axes,
            "experts": experts,
            "sharding": sharding if _copies(axes, experts) else Sharding.NONE,
            "sequence_parallel": tp > 1 and (strategy.sequence_parallel if strategy.tp > 1 else part % tp == 0),
        }
    )


def _experts_on_fewer(experts: ExpertStrategy, factor: int) -> ExpertStrategy | None:
    """Fewer copies of the experts, or else fewer ranks that share them."""
    for name in ("edp", "ep", "etp"):
        degree = getattr(experts, EXPERT_DEGREES[name])
        if degree % factor == 0:
            return _resized(experts, {name: degree // factor})
    return None


def _resized(experts: ExpertStrategy, sizes: Mapping[str, int]) -> ExpertStrategy:
    return experts.model_copy(update={EXPERT_DEGREES[name]: size for name, size in sizes.items()})
