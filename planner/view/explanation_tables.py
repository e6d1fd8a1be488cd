"""Explanations and differences as tables of text; see planner.view.tables.

reason_table(explanation)       what holds the plan back, in sentences
binding_table(explanation)      one row per stage (alike neighbours once): what binds it, and why
neighbour_table(explanation)    one row per plan one step away: its price against the plan, or the rule that forbids it
diff_table(diff, names)         choices, seconds and bytes that differ between two plans
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from planner.spec.explanation import Explanation, Neighbour, PlanDiff, StageExplanation
from planner.view.diff import free_bytes, fullest_stage
from planner.view.parts import part_name
from planner.view.quantities import gibibytes, memory, seconds, span
from planner.view.tables import Column, Table

_NONE = "–"


def reason_table(explanation: Explanation) -> Table:
    """One row per sentence; the last is about the rival."""
    about = (f"{explanation.rival.reason}.",) if explanation.rival else ()
    rows = tuple((sentence,) for sentence in (*explanation.reasons, *about))
    return Table(f"{explanation.plan.summary} ({explanation.plan.id})", (Column("why it is as it is"),), rows)


def binding_table(explanation: Explanation) -> Table:
    """One row per stage; neighbouring stages that are bound alike for one reason stand once, with ranges."""
    columns = (
        Column("stage"),
        Column("binds"),
        Column("free GiB", True),
        Column("largest part"),
        Column("in flight", True),
        Column("waits", True),
        Column("why"),
    )
    alike = groupby(explanation.stages, key=lambda stage: (stage.binding, stage.largest_part, stage.reason))
    return Table("What binds each stage", columns, tuple(_stage_row(tuple(stages)) for _, stages in alike))


def _stage_row(stages: Sequence[StageExplanation]) -> tuple[str, ...]:
    first = stages[0]
    return (
        span(first.stage, stages[-1].stage),
        " and ".join(first.binding) or "nothing",
        _range(gibibytes(stage.free_bytes) for stage in stages),
        f"{part_name(first.largest_part)} {_range(memory(stage.largest_part_bytes) for stage in stages)}",
        _range(f"{stage.in_flight:.3g}" for stage in stages),
        _range(seconds(stage.wait_s) if stage.wait_s else _NONE for stage in stages),
        first.reason or _NONE,
    )


def _range(words: Iterable[str]) -> str:
    distinct = tuple(dict.fromkeys(words))
    return distinct[0] if len(distinct) == 1 else f"{distinct[0]} to {distinct[-1]}"


def neighbour_table(explanation: Explanation) -> Table:
    """Those that fit first, the fastest first; then those that lack memory, then those that cannot be."""
    columns = (
        Column("change"),
        Column("step", True),
        Column("against this", True),
        Column("", True),
        Column("fullest stage"),
        Column("most of it, or the rule that forbids it"),
    )
    refused = tuple(
        (each.change, _NONE, _NONE, _NONE, _NONE, f"{each.message} ({each.rule})") for each in explanation.refused
    )
    rows = tuple(_neighbour_row(each) for each in explanation.neighbours)
    return Table("One step away", columns, (*rows, *refused))


def _neighbour_row(neighbour: Neighbour) -> tuple[str, ...]:
    stage = neighbour.estimate.stages[fullest_stage(neighbour.estimate)]
    lacks, change = neighbour.missing_bytes, neighbour.largest_change
    return (
        neighbour.change,
        seconds(neighbour.estimate.step_time_s),
        _signed(neighbour.step_time_change_s),
        _signed_percent(neighbour.step_time_change_ratio),
        f"lacks {memory(lacks)}" if lacks else f"{memory(free_bytes(stage))} free",
        f"{part_name(change.part)} {_signed(change.change_s)}" if change else _NONE,
    )


def diff_table(diff: PlanDiff, names: tuple[str, str] = ("first", "second")) -> Table:
    """Choices first, then seconds of a step, then bytes of the fullest stage; what reads equal is left out."""
    columns = (Column("what"), *(Column(name, True) for name in names), Column("change", True))
    return Table("Side by side", columns, (*_choice_rows(diff), *_time_rows(diff), *_memory_rows(diff)))


def _choice_rows(diff: PlanDiff) -> Iterator[tuple[str, ...]]:
    for each in diff.differences:
        yield each.choice, each.first, each.second, ""


def _time_rows(diff: PlanDiff) -> Iterator[tuple[str, ...]]:
    per = "" if diff.second_steps == 1.0 else " for as many tokens"
    first_s, second_s = diff.first_step_time_s, diff.second_step_time_s
    yield f"time of a step{per}", seconds(first_s), seconds(second_s), _signed(diff.step_time_change_s)
    for change in diff.time:
        both = seconds(change.first_s), seconds(change.second_s)
        if both[0] != both[1]:
            yield f"  {part_name(change.part)}", *both, _signed(change.change_s)


def _memory_rows(diff: PlanDiff) -> Iterator[tuple[str, ...]]:
    first, second = (sum(sizes) for sizes in zip(*((c.first_bytes, c.second_bytes) for c in diff.memory), strict=True))
    stages = f"stage {diff.first_fullest_stage}", f"stage {diff.second_fullest_stage}"
    yield "fullest stage", *stages, ""
    yield "peak of memory", memory(first), memory(second), _signed_memory(second - first)
    for change in diff.memory:
        both = memory(change.first_bytes), memory(change.second_bytes)
        if both[0] != both[1]:
            yield f"  {part_name(change.part)}", *both, _signed_memory(change.change_bytes)


def _signed(value_s: float) -> str:
    return f"+{seconds(value_s)}" if value_s > 0 else seconds(value_s)


def _signed_percent(ratio: float) -> str:
    return f"{100 * ratio:+.1f} %"


def _signed_memory(value_bytes: int) -> str:
    return f"+{memory(value_bytes)}" if value_bytes > 0 else memory(value_bytes)
