"""The exact partition of the layers into stages, given an exact choice for each stage.

    minimise   slowest stage + filling of all stages + longest work once per step, as planner.cost.pipeline weighs beats
    over       unbroken stretches of layers for the stages (with virtual stages: the given equal pieces)
               and, for each stage, one point of its front

Dynamic programming over stages and boundaries; a partial pipeline is dominated by another that ends at the same layer
and is no worse in sum, slowest and longest. Sees numbers only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.pipeline import Rhythm
from planner.search.bounds import Bounds, mean_step_s
from planner.search.labels import Position, Room
from planner.search.pareto import undominated
from planner.search.problem import Interval, Pipeline, with_tables
from planner.search.rhythm import filling, peaks
from planner.search.stage import Front, solve_stage
from planner.search.table import Choices

Floats = NDArray[np.float64]


NARROW = 32
"""Labels that a quick pass keeps after each layer."""
_NEAR = 2
"""And how many layers a stage may end from where equal stages would."""


class Solution(NamedTuple):
    """A best pipeline."""

    step_s: float
    stages: tuple[tuple[tuple[int, int], ...], ...]
    """Stretches of each stage."""
    chosen: tuple[tuple[int, ...], ...]
    """For each stage and each of its layers in order, the row in the Choices of the layer's class."""


class _Partial(NamedTuple):
    """Undominated partial pipelines that end at one layer, a row each."""

    filling_s: Floats
    slowest_s: Floats
    """[rows, peaks]."""
    once_s: Floats
    back: list[tuple[_Partial | None, int, Front, int, tuple[tuple[int, int], ...]]]
    """(partial pipeline before, its row, the stage's front, its row, the stage's stretches)."""


def solve_pipeline(
    problem: Pipeline, best_s: float, spend: Callable[[int], None], width: int | None = None
) -> Solution | None:
    """The fastest pipeline if it is strictly faster than `best_s`, else None; with a `width`, a good one.

    `spend(comparisons)` is called before each piece of work; it may raise to stop it.
    """
    if mean_step_s(problem) >= best_s:
        return None
    bounds = Bounds(problem)
    start = _Partial(np.zeros(1), np.zeros((1, len(problem.rhythm.peaks))), np.zeros(1), [])
    ends: dict[int, _Partial] = {0: start}
    num_stages = len(problem.flights)
    for stage in range(num_stages):
        found: dict[int, list[_Partial]] = {}
        may_pass = partial(bounds.may_pass, best_s=best_s)
        for positions, intervals in _contents(problem, stage, ends, may_pass, even=width is not None).items():
            room = Room(problem.flights[stage], problem.limits_bytes[stage], problem.host_limits_bytes[stage])
            front = solve_stage(
                positions, problem.tables[stage], room, bounds.bar(stage, intervals, best_s), spend, width
            )
            for interval in intervals:
                extended = _extend(problem.rhythm, ends[interval.begin], front, interval.stretches)
                kept = bounds.at_least_s(extended.filling_s, extended.slowest_s, extended.once_s, stage, interval.end)
                extended = _rows(extended, np.flatnonzero(kept < best_s))
                if extended.back:
                    found.setdefault(interval.end, []).append(extended)
        ends = {end: _merge(partials) for end, partials in sorted(found.items())}
    final = ends.get(_end(problem))
    return None if final is None else _solution(problem, final)


def once_in_passes(problem: Pipeline) -> Pipeline:
    """A problem with fewer choices that differ, of which no pipeline takes longer: work once per step is no measure.

    The longest of it is spread over what the slowest stage adds and what all stages fill: with P and f the weights of
    the first beat in peaks and filling, P b max(o) + f b sum(o) is at most max(o) where b is 1 / (P + f stages).
    """
    weight = sum(peak[0] for peak in problem.rhythm.peaks) + problem.rhythm.filling[0] * len(problem.flights)

    def moved(choices: Choices) -> Choices:
        beats = choices.beats_s.copy()
        beats[:, 0] += choices.once_s / weight
        return choices._replace(beats_s=beats, once_s=np.zeros_like(choices.once_s))

    return with_tables(problem, lambda table: table._replace(choices=tuple(map(moved, table.choices))))


def step_s(problem: Pipeline, solution: Solution) -> float:
    """The step of a solution's stages and rows, which may have been found for another problem of the same tables."""
    beats, once = zip(*(_stage_s(problem, stage, solution) for stage in range(len(problem.flights))), strict=True)
    every = np.stack(beats)
    return float(peaks(problem.rhythm, every).max(axis=0).sum() + filling(problem.rhythm, every).sum() + max(once))


def _stage_s(problem: Pipeline, stage: int, solution: Solution) -> tuple[Floats, float]:
    """(beats, once) of one stage."""
    table, rows = problem.tables[stage], iter(solution.chosen[stage])
    beats, once = np.zeros(len(table.message_beats)), 0.0
    for first, end in solution.stages[stage]:
        before = None
        for layer in range(first, end):
            choices, row = table.choices[problem.sequence[layer]], next(rows)
            beats = beats + choices.beats_s[row]
            once += float(choices.once_s[row])
            if before is not None:
                beats = beats + table.transition_s[before, choices.layout[row]]
            elif layer > 0:
                beats = beats + choices.entry_s[row, problem.tiers[stage]] * np.array(table.message_beats)
            before = choices.layout[row]
    return beats, once


def _end(problem: Pipeline) -> int:
    return len(problem.sequence) if problem.pieces is None else len(problem.flights)


def _contents(
    problem: Pipeline, stage: int, ends: dict[int, _Partial], may_pass: Callable[[int, Interval], bool], even: bool
) -> dict[tuple[Position, ...], list[Interval]]:
    """What the stage may hold, and the intervals of layers with that content, which are solved together.

    `even`: only those that end near where equal stages would.
    """
    found: dict[tuple[Position, ...], list[Interval]] = {}
    for begin in ends:
        for interval in _intervals(problem, stage, begin):
            if (even and not _ends_evenly(problem, stage, interval)) or not may_pass(stage, interval):
                continue
            found.setdefault(_positions(problem, stage, interval.stretches), []).append(interval)
    return found


def _ends_evenly(problem: Pipeline, stage: int, interval: Interval) -> bool:
    """Whether a stage ends near where it would if all stages, being alike, held as many layers."""
    unlike = any(table is not problem.tables[0] for table in problem.tables)
    if problem.pieces is not None or unlike:
        return True
    return abs(interval.end - (stage + 1) * len(problem.sequence) / len(problem.flights)) <= _NEAR


def _intervals(problem: Pipeline, stage: int, begin: int) -> list[Interval]:
    """With given pieces, begin and end count stages; otherwise layers."""
    if problem.pieces is not None:
        return [Interval(stage, stage + 1, problem.pieces[stage])]
    layers, stages_left = len(problem.sequence), len(problem.flights) - stage - 1
    ends = range(begin + 1, layers - stages_left + 1) if stages_left else [layers]
    return [Interval(begin, end, ((begin, end),)) for end in ends]


def _positions(problem: Pipeline, stage: int, stretches: tuple[tuple[int, int], ...]) -> tuple[Position, ...]:
    positions = []
    for first, end in stretches:
        for layer in range(first, end):
            entered = problem.tiers[stage] if layer == first and layer > 0 else None
            positions.append(Position(problem.sequence[layer], entered, layer == 0))
    return tuple(positions)


def _extend(rhythm: Rhythm, partial: _Partial, front: Front, stretches: tuple[tuple[int, int], ...]) -> _Partial:
    rows, options = len(partial.filling_s), len(front.once_s)
    old = np.repeat(np.arange(rows), options)
    new = np.tile(np.arange(options), rows)
    before = partial if partial.back else None
    return _Partial(
        partial.filling_s[old] + filling(rhythm, front.beats_s)[new],
        np.maximum(partial.slowest_s[old], peaks(rhythm, front.beats_s)[new]),
        np.maximum(partial.once_s[old], front.once_s[new]),
        [(before, int(i), front, int(j), stretches) for i, j in zip(old, new, strict=True)],
    )


def _rows(partial: _Partial, kept: NDArray[np.int64]) -> _Partial:
    return _Partial(
        partial.filling_s[kept], partial.slowest_s[kept], partial.once_s[kept], [partial.back[i] for i in kept]
    )


def _merge(partials: Sequence[_Partial]) -> _Partial:
    merged = _Partial(
        np.concatenate([partial.filling_s for partial in partials]),
        np.concatenate([partial.slowest_s for partial in partials]),
        np.concatenate([partial.once_s for partial in partials]),
        [link for partial in partials for link in partial.back],
    )
    values = np.column_stack([merged.filling_s, merged.slowest_s, merged.once_s])
    return _rows(merged, undominated(values))


def _solution(problem: Pipeline, final: _Partial) -> Solution:
    times = final.slowest_s.sum(axis=1) + final.filling_s + final.once_s
    row = int(np.argmin(times))
    step_s = float(times[row])
    stages = []
    chosen = []
    partial: _Partial | None = final
    while partial is not None:
        partial, row_before, front, point, stretches = partial.back[row]
        stages.append(stretches)
        chosen.append(tuple(int(i) for i in front.chosen[point]))
        row = row_before
    return Solution(step_s, tuple(reversed(stages)), tuple(reversed(chosen)))
