"""Two plans side by side: what they choose differently, and which seconds and bytes differ for it."""

from __future__ import annotations

from collections.abc import Iterable
from math import isclose

from planner.spec.errors import InputError
from planner.spec.estimate import Estimate, StageEstimate
from planner.spec.explanation import MemoryChange, PlanDiff, TimeChange
from planner.spec.model import Model
from planner.spec.plan import Plan
from planner.view.captions import listed
from planner.view.differences import differences
from planner.view.match import check_estimate
from planner.view.parts import part_name
from planner.view.quantities import memory, percent, seconds

_NAMES = ("the first plan", "the second plan")
_AGREEMENT = 1e-9
"""Relative difference up to which times are one: equal stages may sum their layers in another order."""
_TOLD_SHARE = 0.9
"""Parts are told, the largest first, until they make up this share of what changes."""


def plan_diff(
    model: Model,
    first: tuple[Plan, Estimate],
    second: tuple[Plan, Estimate],
    names: tuple[str, str] = _NAMES,
) -> PlanDiff:
    """What differs between two priced plans for one model; `names` are what the sentence calls them.

    Raises InputError if a plan is for other layers, an estimate of another plan or the workloads differ.
    """
    for plan, price in (first, second):
        check_estimate(plan, price)
    (one, one_price), (other, other_price) = first, second
    if one_price.workload != other_price.workload:
        raise InputError.at(
            "estimate.workload", f"must be {one_price.workload!r} for both, got {other_price.workload!r}"
        )
    steps = one.global_batch_size * one.sequence_length / (other.global_batch_size * other.sequence_length)
    fullest = [fullest_stage(price) for price in (one_price, other_price)]
    stages = [price.stages[stage] for price, stage in zip((one_price, other_price), fullest, strict=True)]
    made = PlanDiff(
        first_plan_id=one.id,
        second_plan_id=other.id,
        differences=differences(model, one, other),
        second_steps=steps,
        first_step_time_s=one_price.step_time_s,
        second_step_time_s=other_price.step_time_s * steps,
        step_time_change_ratio=other_price.step_time_s * steps / one_price.step_time_s - 1.0,
        time=time_changes(one_price, other_price, steps),
        first_fullest_stage=fullest[0],
        second_fullest_stage=fullest[1],
        memory=_memory_changes(*stages),
        first_missing_bytes=stages[0].missing_bytes,
        second_missing_bytes=stages[1].missing_bytes,
        reason="",
    )
    return made.model_copy(update={"reason": _reason(made, names)})


def fullest_stage(estimate: Estimate) -> int:
    """The stage with least memory free, the first of equals."""
    return max(range(len(estimate.stages)), key=lambda number: (-free_bytes(estimate.stages[number]), -number))


def free_bytes(stage: StageEstimate) -> int:
    """Below the limit; negative if the stage lacks memory."""
    return stage.limit_bytes - stage.peak_memory_bytes


def time_changes(first: Estimate, second: Estimate, second_steps: float = 1.0) -> tuple[TimeChange, ...]:
    """All parts of the time that either has, in the order of the estimates."""
    return tuple(
        TimeChange(part=part, first_s=first.time.get(part, 0.0), second_s=second.time.get(part, 0.0) * second_steps)
        for part in dict.fromkeys((*first.time, *second.time))
    )


def _memory_changes(first: StageEstimate, second: StageEstimate) -> tuple[MemoryChange, ...]:
    changes = (
        MemoryChange(part=part, first_bytes=first.memory.get(part, 0), second_bytes=second.memory.get(part, 0))
        for part in dict.fromkeys((*first.memory, *second.memory))
    )
    return tuple(change for change in changes if change.first_bytes or change.second_bytes)


def largest_change(changes: Iterable[TimeChange], total_s: float) -> TimeChange | None:
    """The part that changes most in the direction of the total; None if none does."""
    direction = -1.0 if total_s < 0 else 1.0
    found = [change for change in changes if change.change_s * direction > 0]
    return max(found, key=lambda change: change.change_s * direction, default=None)


def change_s(first_s: float, second_s: float) -> float:
    """What the second takes more; 0 where they are one but for the order in which they were summed."""
    return 0.0 if isclose(first_s, second_s, rel_tol=_AGREEMENT) else second_s - first_s


def more_or_less(difference_s: float, base_s: float) -> str:
    """`1.48 s (3.7 %) more`, or `less`."""
    if difference_s == 0:
        return "as long"
    word = "more" if difference_s > 0 else "less"
    return f"{seconds(abs(difference_s))} ({percent(abs(difference_s) / base_s)}) {word}"


def _reason(diff: PlanDiff, names: tuple[str, str]) -> str:
    return f"{_time_reason(diff, names)}; {_memory_reason(diff)}"


def _time_reason(diff: PlanDiff, names: tuple[str, str]) -> str:
    total_s = change_s(diff.first_step_time_s, diff.second_step_time_s)
    subject = names[1][0].upper() + names[1][1:]
    per = "" if diff.second_steps == 1.0 else " for as many tokens"
    if total_s == 0:
        return f"{subject} takes as long as {names[0]}{per}"
    told = _told([(change.part, change.change_s) for change in diff.time])
    along, against = ([_amount(*part) for part in told if (part[1] * total_s > 0) is way] for way in (True, False))
    outweighed = f", against {listed(against)}" if against else ""
    change = more_or_less(total_s, diff.first_step_time_s)
    return f"{subject} takes {change} than {names[0]}{per}: {listed(along)}{outweighed}"


def _amount(part: str, part_s: float) -> str:
    return f"{seconds(abs(part_s))} {'more' if part_s > 0 else 'less'} {part_name(part)}"


def _told(changes: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """The largest changes, as many as make up the told share of all."""
    ranked = sorted((change for change in changes if change[1]), key=lambda change: -abs(change[1]))
    whole, told = sum(abs(amount) for _, amount in ranked), 0.0
    found = []
    for part, amount in ranked:
        if told >= _TOLD_SHARE * whole:
            break
        found.append((part, amount))
        told += abs(amount)
    return found


def _memory_reason(diff: PlanDiff) -> str:
    total = sum(change.change_bytes for change in diff.memory)
    lacks = diff.second_missing_bytes
    fit = f", and lacks {memory(lacks)}" if lacks else ""
    if total == 0:
        return f"its fullest stage needs as much memory{fit}"
    sign = 1 if total > 0 else -1
    largest = max(diff.memory, key=lambda change: change.change_bytes * sign)
    return (
        f"its fullest stage needs {memory(abs(total))} {'more' if total > 0 else 'less'}, mostly for "
        f"{part_name(largest.part)}{fit}"
    )
