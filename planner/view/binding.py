"""What binds each stage: memory, time, both or neither. See planner.spec.explanation.Constraint for what that means."""

from __future__ import annotations

from collections.abc import Sequence

from planner.cost.pipeline import in_flight
from planner.spec.estimate import Estimate, StageEstimate
from planner.spec.explanation import Constraint, Neighbour, StageExplanation
from planner.spec.model import Model
from planner.spec.plan import Plan
from planner.view.diff import change_s, free_bytes, fullest_stage
from planner.view.match import check_estimate, check_model
from planner.view.sentences import StageFacts, stage_reason


def explain_stages(
    model: Model, plan: Plan, price: Estimate, neighbours: Sequence[Neighbour]
) -> tuple[StageExplanation, ...]:
    """One entry for each stage; raises InputError if plan, model and price do not belong together.

    `neighbours` are ordered: those that fit first, the fastest first.
    """
    check_model(model, plan)
    check_estimate(plan, price)
    alike = [each for each in neighbours if len(each.plan.stages) == len(plan.stages)]
    return tuple(_stage(model, plan, price, alike, number) for number in range(len(plan.stages)))


def _stage(model: Model, plan: Plan, price: Estimate, alike: Sequence[Neighbour], number: int) -> StageExplanation:
    stage = price.stages[number]
    blocked, relief = _blocked(alike, number) if price.fits else None, _relief(price, alike, number)
    wait_s = _wait_s(plan, price, number)
    full = free_bytes(stage) < layer_bytes(plan, stage, number) or blocked is not None
    is_slowest = wait_s == 0.0
    binding = (*((Constraint.MEMORY,) if full else ()), *((Constraint.TIME,) if is_slowest else ()))
    largest = max(stage.memory, key=lambda part: stage.memory[part])
    flight = float(in_flight(plan.schedule, len(plan.stages), plan.num_micro_batches, number))
    facts = StageFacts(model, plan, price, number, layer_bytes(plan, stage, number), blocked, relief)
    return StageExplanation(
        stage=number,
        binding=binding,
        free_bytes=free_bytes(stage),
        layer_bytes=layer_bytes(plan, stage, number),
        largest_part=largest,
        largest_part_bytes=stage.memory[largest],
        in_flight=flight,
        wait_s=wait_s,
        blocked=blocked.change if blocked else None,
        relief=relief.change if relief and full else None,
        reason=stage_reason(facts, binding),
    )


def layer_bytes(plan: Plan, stage: StageEstimate, number: int) -> int:
    """What an average layer of the stage takes."""
    layers = sum(run.num_layers for run in plan.stages[number].runs)
    return (stage.peak_memory_bytes - stage.memory.get("reserve", 0)) // layers


def _wait_s(plan: Plan, price: Estimate, number: int) -> float:
    """In a step, what the slowest stage works more on its micro-batches."""
    slowest_s = max(stage.time.micro_batch_s for stage in price.stages)
    own_s = price.stages[number].time.micro_batch_s
    return change_s(own_s, slowest_s) * plan.num_micro_batches


def _blocked(alike: Sequence[Neighbour], number: int) -> Neighbour | None:
    """The fastest faster neighbour that lacks memory, most of all its stages on this one."""
    found = [each for each in alike if each.step_time_change_s < 0 and each.missing_bytes]
    here = (each for each in found if fullest_stage(each.estimate) == number)
    return min(here, key=lambda each: each.estimate.step_time_s, default=None)


def _relief(price: Estimate, alike: Sequence[Neighbour], number: int) -> Neighbour | None:
    """The fastest neighbour that fits and needs less memory on this stage."""
    peak = price.stages[number].peak_memory_bytes
    fitting = (each for each in alike if not each.missing_bytes)
    return next((each for each in fitting if each.estimate.stages[number].peak_memory_bytes < peak), None)
