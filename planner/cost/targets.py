"""Can a framework run a whole plan? Each rule that it breaks has a name and says what would be right.

Plans are expected to pass check_plan(): what no framework can run is not looked for again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from typing import NamedTuple

from planner.cost.deepspeed import DEEPSPEED
from planner.cost.framework import (
    PIPELINE_RULES,
    STRATEGY_RULES,
    TRAINING_RULES,
    Framework,
    Pipelined,
    Used,
    broken_pipeline_rules,
    broken_strategy_rules,
    broken_training_rules,
    can_shard,
    rule_name,
)
from planner.cost.megatron import MEGATRON
from planner.cost.rules import Broken
from planner.cost.torchtitan import TORCHTITAN
from planner.spec.model import Block, Model
from planner.spec.plan import Plan
from planner.spec.request import Target
from planner.spec.strategy import Recompute
from planner.spec.training import Training

FRAMEWORKS = {Target.MEGATRON: MEGATRON, Target.TORCHTITAN: TORCHTITAN, Target.DEEPSPEED: DEEPSPEED}


class _Whole(NamedTuple):
    """A framework and a plan that it may be able to run."""

    framework: Framework
    model: Model
    plan: Plan

    def recompute(self) -> list[list[Recompute]]:
        """Of each piece of each stage, in order: the kind of each block."""
        return [
            [
                run.strategy.recompute
                for run in piece
                for layer in self.model.layers[run.first_layer : run.end_layer]
                if isinstance(layer, Block)
            ]
            for stage in self.plan.stages
            for piece in stage.pieces
        ]


def broken_target_rules(target: Target, model: Model, training: Training, plan: Plan) -> Iterator[Broken]:
    """All rules of the framework that the plan breaks, each message once; none for `any`."""
    if target is Target.ANY:
        return
    framework = FRAMEWORKS[target]
    yield from broken_training_rules(framework, training)
    yield from broken_pipeline_rules(
        framework, Pipelined(model, len(plan.stages), plan.num_micro_batches, plan.schedule)
    )
    used = [
        Used(layer, run.strategy, training, len(plan.stages))
        for stage in plan.stages
        for run in stage.runs
        for layer in dict.fromkeys(model.layers[run.first_layer : run.end_layer])
    ]
    yield from dict.fromkeys(broken for each in used for broken in broken_strategy_rules(framework, each))
    for rule in _WHOLE_RULES:
        message = rule(_Whole(framework, model, plan))
        if message:
            yield Broken(rule_name(rule), message)


def rule_names(target: Target) -> tuple[str, ...]:
    """All rules that a plan for this framework can break, in the order of broken_target_rules(); none for `any`."""
    if target is Target.ANY:
        return ()
    framework = FRAMEWORKS[target]
    rules: list[Callable[..., str | None]] = [*TRAINING_RULES, *PIPELINE_RULES, *framework.pipeline_rules]
    rules += [*STRATEGY_RULES, *framework.strategy_rules]
    rules += [rule for rule in _WHOLE_RULES if framework.cuts is not None or rule is not stages_as_target_cuts]
    return tuple(rule_name(rule) for rule in rules)


def one_layout(whole: _Whole) -> str | None:
    """All layers and stages have the same axes, and so all stages the same number of devices."""
    return _one(whole, "axes", {run.strategy.axes for stage in whole.plan.stages for run in stage.runs})


def one_sharding(whole: _Whole) -> str | None:
    """All layers that have something to shard shard the same."""
    strategies = [run.strategy for stage in whole.plan.stages for run in stage.runs]
    return _one(whole, "sharding", {strategy.sharding for strategy in strategies if can_shard(strategy)})


def one_sequence_parallel(whole: _Whole) -> str | None:
    """All layers have sequence parallelism, or none."""
    return _one(whole, "sequence_parallel", {r.strategy.sequence_parallel for s in whole.plan.stages for r in s.runs})


def one_expert_grid(whole: _Whole) -> str | None:
    """All MoE layers spread their experts alike."""
    return _one(whole, "experts", {run.strategy.experts for s in whole.plan.stages for run in s.runs} - {None})


def one_recompute(whole: _Whole) -> str | None:
    """All blocks recompute alike; for some frameworks instead fully the first n of each piece, and the rest not."""
    kinds = {kind for piece in whole.recompute() for kind in piece}
    if not whole.framework.recomputes_first_blocks or Recompute.SELECTIVE in kinds:
        return _one(whole, "recompute", kinds)
    count = max(piece.count(Recompute.FULL) for piece in whole.recompute())
    if all(_first(count, piece) for piece in whole.recompute()):
        return None
    return (
        f"recompute must be full for the first n blocks of each {'piece of a ' if _interleaved(whole) else ''}stage "
        f"and none for the rest, with one n, for {whole.framework.name}"
    )


def stages_as_target_cuts(whole: _Whole) -> str | None:
    """Stages begin where the framework's own partition puts them."""
    if whole.framework.cuts is None:
        return None
    allowed = whole.framework.cuts(whole.model, len(whole.plan.stages))
    starts = tuple(stage.runs[0].first_layer for stage in whole.plan.stages)
    if starts in allowed:
        return None
    shown = " or ".join(" ".join(map(str, each)) for each in allowed) or "on fewer stages"
    return f"stages must begin at layers {shown} for {whole.framework.name}, not {' '.join(map(str, starts))}"


_WHOLE_RULES: tuple[Callable[[_Whole], str | None], ...] = (
    one_layout,
    one_sharding,
    one_sequence_parallel,
    one_expert_grid,
    one_recompute,
    stages_as_target_cuts,
)


def _one(whole: _Whole, field: str, values: Set[object]) -> str | None:
    return f"{field} must be the same in all layers for {whole.framework.name}" if len(values) > 1 else None


def _first(count: int, piece: list[Recompute]) -> bool:
    full = min(count, len(piece))
    return piece == [Recompute.FULL] * full + [Recompute.NONE] * (len(piece) - full)


def _interleaved(whole: _Whole) -> bool:
    return whole.plan.schedule.virtual_stages > 1
