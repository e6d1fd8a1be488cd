"""How much of a step is drawn: all of it, or what a viewer opens at once, with the rest left out and said so.

First the middle micro-batches go, as long as enough of them stay to show how the pipeline fills and drains; then the
parts inside the passes; then more micro-batches; last the middle stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.pipeline import Pace, step_s
from planner.cost.timeline import Floats, Integers, Timeline, timeline
from planner.spec.plan import Plan, Schedule, ScheduleKind

MOST_EVENTS = 50_000
"""About 8 MB of JSON."""
_FEWEST_ROUNDS = {False: 2, True: 4}
"""Micro-batches for each stage, with virtual stages (True) or not: with fewer, the first backward passes after the gap
would come before the last forward passes before it."""


class Scope(NamedTuple):
    """What of a step is drawn."""

    num_micro_batches: int
    """Half of them the first of the step, half the last."""
    left_out: int
    with_parts: bool
    stages: tuple[int, ...]
    """Numbers of the stages."""


class Course(NamedTuple):
    """A step with its times: those of all micro-batches, or of the first and the last, with a gap between."""

    kind: Integers
    micro_batch: Integers
    """As the whole step counts them."""
    piece: Integers
    start_s: Floats
    end_s: Floats
    gap: Integers
    """[stages, passes]: how many gaps lie before a pass; with GPipe there are two, otherwise one."""
    last_end_s: float


def scope_of(plan: Plan, events: Sequence[tuple[int, int]]) -> Scope:
    """`events`: of one micro-batch on each stage, with and without the parts of passes."""
    count, interleaved = len(plan.stages), plan.schedule.virtual_stages > 1
    whole, bare = (sum(column) for column in zip(*events, strict=True))
    round_of = count if interleaved else 1
    fewest = min(plan.num_micro_batches, max(2, _FEWEST_ROUNDS[interleaved] * count))
    for each, with_parts in ((whole, True), (bare, False)):
        drawn = min(plan.num_micro_batches, MOST_EVENTS // each // round_of * round_of)
        if drawn >= fewest:
            return Scope(drawn, plan.num_micro_batches - drawn, with_parts, tuple(range(count)))
    half = max(1, MOST_EVENTS // (2 * fewest * max(each for _, each in events)))
    stages = sorted({*range(min(half, count)), *range(max(0, count - half), count)})
    return Scope(fewest, plan.num_micro_batches - fewest, False, tuple(stages))


def course_of(schedule: Schedule, pieces: Sequence[Sequence[Pace]], scope: Scope) -> Course:
    """Run what is drawn, and let what comes after a gap begin as much later as what is left out takes.

    That is what the closed form says of so many micro-batches: each takes as long as the slowest stage.
    """
    found = timeline(schedule, pieces, scope.num_micro_batches)
    if not scope.left_out:
        nothing = np.zeros_like(found.kind)
        return Course(found.kind, found.micro_batch, found.piece, found.start_s, found.end_s, nothing, found.last_end_s)
    stages = [Pace._make(sum(column) for column in zip(*each, strict=True)) for each in pieces]
    gap = _gaps(schedule, found)
    gaps_s = np.array([0.0, *_gaps_s(schedule, stages, scope)])
    later_s = np.cumsum(gaps_s)[gap]
    second_half = _second_half(schedule, gap, found)
    return Course(
        found.kind,
        found.micro_batch + np.where(second_half, scope.left_out, 0),
        found.piece,
        found.start_s + later_s,
        found.end_s + later_s,
        gap,
        found.last_end_s + float(gaps_s.sum()),
    )


def _gaps(schedule: Schedule, found: Timeline) -> Integers:
    """How many gaps lie before each pass: half of a stage's backward passes come before the last one, half after.

    Source: own derivation. In every schedule but GPipe a stage that is past its first forward passes repeats a pattern;
    so every stage can leave out equally many backward passes, and what goes with them, after the same number of them.
    """
    backward = np.cumsum(found.kind == 1, axis=1)
    count = int(backward[0, -1])
    after = backward > count // 2
    if schedule.kind is not ScheduleKind.GPIPE:
        # What a stage does before the first backward pass that comes after the gap belongs to that pass.
        return _from_forward_on(found.kind, after).astype(np.int64)
    forward = np.cumsum(found.kind == 0, axis=1)
    return (forward > count // 2).astype(np.int64) + after


def _from_forward_on(kind: Integers, after: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A forward pass right before the first backward pass after the gap comes after the gap too."""
    first, rows = after.argmax(axis=1), np.arange(len(kind))
    found = after.copy()
    found[rows, first - 1] |= (kind[rows, first - 1] == 0) & (first > 0)
    return found


def _second_half(schedule: Schedule, gap: Integers, found: Timeline) -> NDArray[np.bool_]:
    if schedule.kind is not ScheduleKind.GPIPE:
        return np.asarray(gap == 1)
    return np.asarray(np.where(found.kind == 0, gap == 1, gap == 2))


def _gaps_s(schedule: Schedule, stages: Sequence[Pace], scope: Scope) -> list[float]:
    if schedule.kind is ScheduleKind.GPIPE:
        slowest = max(pace.forward_s for pace in stages), max(pace.backward_s for pace in stages)
        return [scope.left_out * seconds for seconds in slowest]
    drawn, every = scope.num_micro_batches, scope.num_micro_batches + scope.left_out
    plain = [pace._replace(once_s=0.0) for pace in stages]
    return [float(step_s(schedule, plain, every) - step_s(schedule, plain, drawn))]
