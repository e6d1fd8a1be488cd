"""What an explanation says in sentences; every number in them comes from estimates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from planner.spec.estimate import Estimate
from planner.spec.explanation import Constraint, Neighbour
from planner.spec.model import Block, Head, Model
from planner.spec.plan import Plan
from planner.view.captions import listed
from planner.view.diff import change_s, free_bytes, fullest_stage, more_or_less
from planner.view.parts import part_name, time_parts
from planner.view.quantities import memory, percent, seconds

_TOLD_RATIO = 0.05
"""Parts of the time are told down to this share of the step, and the largest in any case."""


class StageFacts(NamedTuple):
    """What is known of a stage."""

    model: Model
    plan: Plan
    price: Estimate
    number: int
    layer_bytes: int
    """What an average layer of the stage takes."""
    blocked: Neighbour | None
    relief: Neighbour | None


def plan_reasons(price: Estimate, neighbours: Sequence[Neighbour], best_of_space: bool) -> tuple[str, ...]:
    """What holds the plan back, and how its neighbours compare; a sentence each."""
    where = f"A step takes {seconds(price.step_time_s)}: {_shares(time_parts(price))}"
    return (f"{where}{_pace(price)}.", _memory_of_plan(price, neighbours), _nearest(price, neighbours, best_of_space))


def _pace(price: Estimate) -> str:
    """Which stage the others wait for, if one is slower than all others."""
    paces = [stage.time.micro_batch_s for stage in price.stages]
    slowest = max(paces)
    if sum(change_s(pace, slowest) == 0 for pace in paces) > 1 or len(paces) == 1:
        return ""
    return f"; stage {paces.index(slowest)} sets the pace"


def _memory_of_plan(price: Estimate, neighbours: Sequence[Neighbour]) -> str:
    fullest = fullest_stage(price)
    stage = price.stages[fullest]
    if stage.missing_bytes:
        needs, has = memory(stage.peak_memory_bytes), memory(stage.limit_bytes)
        return f"It does not fit: stage {fullest} needs {needs} and has {has}."
    blocked = [each for each in neighbours if each.missing_bytes and each.step_time_change_s < 0]
    if not blocked:
        return f"Memory forbids no faster plan one step away; the fullest stage has {memory(free_bytes(stage))} free."
    fastest = min(blocked, key=lambda each: each.estimate.step_time_s)
    faster = more_or_less(fastest.step_time_change_s, price.step_time_s)
    return f"Memory holds it back: {fastest.change} would take {faster}, but lacks {memory(fastest.missing_bytes)}."


def _nearest(price: Estimate, neighbours: Sequence[Neighbour], best_of_space: bool) -> str:
    fitting = [each for each in neighbours if not each.missing_bytes]
    faster = [each for each in fitting if each.step_time_change_s < 0]
    if not fitting:
        return "No plan one step away fits."
    change = f"{fitting[0].change} takes {more_or_less(fitting[0].step_time_change_s, price.step_time_s)}"
    if not price.fits:
        return f"One step away, {change} and fits."
    if not faster:
        return f"No plan one step away is faster and fits; the closest: {change}."
    outside = ", outside the space that was searched" if best_of_space else ""
    count = "One plan" if len(faster) == 1 else f"{len(faster)} plans"
    return f"{count} one step away would be faster and fit{outside}: {change}."


def stage_reason(facts: StageFacts, binding: Sequence[Constraint]) -> str:
    """What binds a stage and what would have to give; then what is particular to it."""
    said = [*(_memory_binds(facts) if Constraint.MEMORY in binding else ())]
    if len(facts.price.stages) > 1:
        said.append(_time_of_stage(facts, Constraint.TIME in binding))
    return "; ".join((*said, *_particulars(facts)))


def _memory_binds(facts: StageFacts) -> Iterator[str]:
    stage = facts.price.stages[facts.number]
    free = free_bytes(stage)
    if free < 0:
        yield "does not fit"
    elif free < facts.layer_bytes:
        yield "has no room for another layer"
    if facts.blocked:
        lacks = facts.blocked.estimate.stages[facts.number].missing_bytes
        yield f"{facts.blocked.change} would be faster, but lacks {memory(lacks)}"
    if facts.relief:
        cost = more_or_less(facts.relief.step_time_change_s, facts.price.step_time_s)
        yield f"to free memory: {facts.relief.change} takes {cost}"


def _time_of_stage(facts: StageFacts, is_slowest: bool) -> str:
    paces = [stage.time.micro_batch_s for stage in facts.price.stages]
    if not is_slowest:
        return f"waits for stage {paces.index(max(paces))}"
    work = {part: part_s for part, part_s in time_parts(facts.price).items() if part != "pipeline_bubble"}
    return f"no stage works longer: {_shares(work)}"


def _shares(parts: Mapping[str, float]) -> str:
    """The largest part and all that matter, as shares of their sum."""
    whole_s = sum(parts.values())
    ranked = sorted(parts.items(), key=lambda part: -part[1])
    told = [part for number, part in enumerate(ranked) if number == 0 or part[1] >= _TOLD_RATIO * whole_s]
    return listed([f"{part_name(part)} {percent(part_s / whole_s)}" for part, part_s in told])


def _particulars(facts: StageFacts) -> Iterator[str]:
    """Embedding, and head with its logits."""
    layers = {number: facts.model.layers[number] for number, _ in facts.plan.stages[facts.number].strategies()}
    held = []
    if 0 in layers and not isinstance(layers[0], Block):
        held.append("the embedding")
    if any(isinstance(layer, Head) for layer in layers.values()):
        logits = facts.price.stages[facts.number].memory.get("logits", 0)
        held.append(f"the head, whose logits take {memory(logits)}")
    if held:
        yield f"holds {listed(held)}"
