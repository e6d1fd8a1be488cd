"""What a training framework can run, as rules. Those that bind everybody stand in rules.py.

A `Framework` says which parts a plan may be made of, and how: the search makes plans from these parts only. The
frameworks themselves are megatron.py, torchtitan.py and deepspeed.py; targets.py holds whole plans against them.

All of them run one program on all ranks, so a plan is uniform: one layout, one sharding, one expert grid, one kind of
recomputation. The embedding and the head follow, as far as they have something to shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from planner.cost.rules import Broken
from planner.spec.cluster import Precision
from planner.spec.model import AnyLayer, Model
from planner.spec.plan import Schedule, ScheduleKind
from planner.spec.request import AxisName
from planner.spec.strategy import AxisKind, Recompute, Sharding, Strategy
from planner.spec.training import Training


class Used(NamedTuple):
    """A strategy that a layer is to have, on one of `num_stages` stages."""

    layer: AnyLayer
    strategy: Strategy
    training: Training
    num_stages: int


class Pipelined(NamedTuple):
    """The outer choices of a plan."""

    model: Model
    num_stages: int
    num_micro_batches: int
    schedule: Schedule


StrategyRule = Callable[[Used], str | None]
"""None, or what would be right."""
PipelineRule = Callable[[Pipelined], str | None]
Starts = tuple[int, ...]
"""The first layer of each stage."""


class Framework(NamedTuple):
    """What one framework can run."""

    name: str
    version: str
    axes: tuple[AxisName, ...]
    order: tuple[AxisKind, ...]
    """How its ranks are numbered: outermost first, always."""
    shardings: tuple[Sharding, ...]
    """On one stage."""
    pipelined_shardings: tuple[Sharding, ...]
    """On several."""
    recompute: tuple[Recompute, ...]
    recomputes_first_blocks: bool
    """Can recompute the first n blocks of each piece of a stage fully, and the rest not; n is the same everywhere."""
    schedules: tuple[ScheduleKind, ...]
    precisions: tuple[Precision, ...]
    gradient_precisions: tuple[Precision, ...]
    strategy_rules: tuple[StrategyRule, ...] = ()
    pipeline_rules: tuple[PipelineRule, ...] = ()
    cuts: Callable[[Model, int], tuple[Starts, ...]] | None = None
    """The ways in which it can cut a model into so many stages; None: any."""


def broken_strategy_rules(framework: Framework, used: Used) -> Iterator[Broken]:
    """All rules of the framework that a strategy breaks by itself, whatever the rest of the plan."""
    shared = ((rule, rule(framework, used)) for rule in STRATEGY_RULES)
    own = ((rule, rule(used)) for rule in framework.strategy_rules)
    yield from _named((*shared, *own))


def broken_pipeline_rules(framework: Framework, pipelined: Pipelined) -> Iterator[Broken]:
    """All rules of the framework that stages, micro-batches and schedule break, whatever the strategies."""
    shared = ((rule, rule(framework, pipelined)) for rule in PIPELINE_RULES)
    own = ((rule, rule(pipelined)) for rule in framework.pipeline_rules)
    yield from _named((*shared, *own))


def broken_training_rules(framework: Framework, training: Training) -> Iterator[Broken]:
    """All rules of the framework that the recipe breaks, whatever the plan."""
    yield from _named(tuple((rule, rule(framework, training)) for rule in TRAINING_RULES))


def _named(found: tuple[tuple[Callable[..., str | None], str | None], ...]) -> Iterator[Broken]:
    for rule, message in found:
        if message:
            yield Broken(rule_name(rule), message)


def rule_name(rule: Callable[..., str | None]) -> str:
    """How a rule is called in messages and counts."""
    return rule.__name__.replace("_", "-")


def can_shard(strategy: Strategy) -> bool:
    """Whether there are data-parallel ranks, of the layer or of its experts, that could split anything."""
    copies = strategy.experts.expert_data_parallel_size if strategy.experts else 1
    return strategy.data_parallel_size * strategy.sequence_parts > 1 or copies > 1


def axes_of_target(framework: Framework, used: Used) -> str | None:
    """Only axes that the framework has."""
    unknown = [axis.kind.value for axis in used.strategy.axes if axis.kind.value not in framework.axes]
    if unknown:
        return f"{framework.name} has no {' and no '.join(unknown)}; its axes are {' '.join(framework.axes)}"
    return None


def order_of_axes_of_target(framework: Framework, used: Used) -> str | None:
    """The framework numbers its ranks in one order, so an axis cannot go nearer or farther than it says."""
    kinds = [axis.kind for axis in used.strategy.axes if axis.kind in framework.order]
    ordered = [kind for kind in framework.order if kind in kinds]
    if kinds != ordered:
        right = " ".join(kind.value for kind in ordered)
        return f"axes must stand in {framework.name}'s order, outermost first: {right}"
    return None


def sharding_of_target(framework: Framework, used: Used) -> str | None:
    """Only shardings that the framework has, which with a pipeline may be fewer."""
    allowed = framework.shardings if used.num_stages == 1 else framework.pipelined_shardings
    if not can_shard(used.strategy) or used.strategy.sharding in allowed:
        return None
    where = "" if used.num_stages == 1 else f" on {used.num_stages} stages"
    return f"sharding must be {' or '.join(allowed)} for {framework.name}{where}, not {used.strategy.sharding}"


def sequence_parallel_of_target(framework: Framework, used: Used) -> str | None:
    """Sequence parallelism only where the framework has it."""
    if used.strategy.sequence_parallel and "sp" not in framework.axes:
        return f"sequence_parallel must be false for {framework.name}"
    return None


def recompute_of_target(framework: Framework, used: Used) -> str | None:
    """Only kinds of recomputation that the framework has."""
    if used.strategy.recompute not in framework.recompute:
        return f"recompute must be {' or '.join(framework.recompute)} for {framework.name}"
    return None


def offload_of_target(framework: Framework, used: Used) -> str | None:
    """No offload: what each framework offloads, and with what it goes, is not described here."""
    return f"offload must be false for {framework.name}" if used.strategy.offload else None


def schedule_of_target(framework: Framework, pipelined: Pipelined) -> str | None:
    """Only schedules that the framework has; without a pipeline, micro-batches go forward and back one by one."""
    allowed = framework.schedules if pipelined.num_stages > 1 else (ScheduleKind.ONE_F_ONE_B,)
    if pipelined.schedule.kind not in allowed:
        where = "" if pipelined.num_stages > 1 else " on one stage"
        return f"the schedule must be {' or '.join(allowed)} for {framework.name}{where}"
    return None


def precision_of_target(framework: Framework, training: Training) -> str | None:
    """Only number formats that the framework has."""
    if training.precision not in framework.precisions:
        return f"precision must be {' or '.join(framework.precisions)} for {framework.name}"
    return None


def gradient_precision_of_target(framework: Framework, training: Training) -> str | None:
    """Only number formats in which the framework sums gradients."""
    if training.gradient_precision not in framework.gradient_precisions:
        return f"gradient_precision must be {' or '.join(framework.gradient_precisions)} for {framework.name}"
    return None


STRATEGY_RULES = (
    axes_of_target,
    order_of_axes_of_target,
    sharding_of_target,
    sequence_parallel_of_target,
    recompute_of_target,
    offload_of_target,
)
PIPELINE_RULES = (schedule_of_target,)
TRAINING_RULES = (precision_of_target, gradient_precision_of_target)
