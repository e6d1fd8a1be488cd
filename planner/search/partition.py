"""The exact partition of the layers into stages, given an exact choice for each stage.

    minimise   steady x slowest stage + all stages / virtual + longest work once per step
    over       unbroken stretches of layers for the stages (with virtual stages: the given equal pieces)
               and, for each stage, one point of its front

Dynamic programming over stages and boundaries; a partial pipeline is dominated by another that ends at the same layer
and is no worse in sum, slowest and longest. Sees numbers only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.search.pareto import undominated
from planner.search.stage import Bar, Front, Position, solve_stage
from planner.search.table import Table

Floats = NDArray[np.float64]


class Pipeline(NamedTuple):
    """One instance of the problem."""

    table: Table
    sequence: tuple[int, ...]
    """Class of each layer."""
    pieces: tuple[tuple[tuple[int, int], ...], ...] | None
    """With virtual stages: for each stage its stretches (first layer, end layer); None: to be found."""
    flights: tuple[Fraction, ...]
    """Micro-batches in flight on each stage."""
    tiers: tuple[int, ...]
    """Tier of links over which each stage is entered."""
    limit_bytes: int
    steady: float
    virtual: int


class Solution(NamedTuple):
    """A best pipeline."""

    step_s: float
    stages: tuple[tuple[tuple[int, int], ...], ...]
    """Stretches of each stage."""
    chosen: tuple[tuple[int, ...], ...]
    """For each stage and each of its layers in order, the row in the Choices of the layer's class."""


class _Partial(NamedTuple):
    """Undominated partial pipelines that end at one layer, a row each."""

    total_s: Floats
    slowest_s: Floats
    once_s: Floats
    back: list[tuple[_Partial | None, int, Front, int, tuple[tuple[int, int], ...]]]
    """(partial pipeline before, its row, the stage's front, its row, the stage's stretches)."""


def solve_pipeline(problem: Pipeline, best_s: float, checkpoint: Callable[[], None]) -> Solution | None:
    """The fastest pipeline if it is strictly faster than `best_s`, else None.

    `checkpoint` is called before each stage is solved; it may raise to stop the work.
    """
    bounds = _Bounds(problem)
    fronts: dict[tuple[tuple[Position, ...], Fraction], Front] = {}
    start = _Partial(np.zeros(1), np.zeros((1, bounds.rhythms)), np.zeros(1), [])
    ends: dict[int, _Partial] = {0: start}
    num_stages = len(problem.flights)
    for stage in range(num_stages):
        found: dict[int, list[_Partial]] = {}
        for first, partial in ends.items():
            for end, stretches in _candidates(problem, stage, first, num_stages):
                bar = bounds.bar(stretches, best_s)
                if not bounds.quickest_passes(stretches, bar):
                    continue
                positions = _positions(problem, stage, stretches)
                key = (positions, problem.flights[stage])
                if key not in fronts:
                    checkpoint()
                    fronts[key] = solve_stage(*key[:1], problem.table, key[1], problem.limit_bytes, bar)
                extended = _extend(partial, fronts[key], stretches)
                kept = bounds.may_finish(extended, end, num_stages - stage - 1, best_s)
                if kept.any():
                    found.setdefault(end, []).append(_rows(extended, np.flatnonzero(kept)))
        ends = {end: _merge(partials) for end, partials in sorted(found.items())}
    final = ends.get(_end(problem))
    return None if final is None else _solution(problem, final)


def _end(problem: Pipeline) -> int:
    return len(problem.sequence) if problem.pieces is None else len(problem.flights)


def _candidates(
    problem: Pipeline, stage: int, first: int, num_stages: int
) -> list[tuple[int, tuple[tuple[int, int], ...]]]:
    """(where the partial pipeline ends then, stretches of the stage); with given pieces, ends count stages."""
    if problem.pieces is not None:
        return [(stage + 1, problem.pieces[stage])]
    layers = len(problem.sequence)
    if stage == num_stages - 1:
        return [(layers, ((first, layers),))]
    return [(end, ((first, end),)) for end in range(first + 1, layers - (num_stages - stage - 1) + 1)]


def _positions(problem: Pipeline, stage: int, stretches: tuple[tuple[int, int], ...]) -> tuple[Position, ...]:
    positions = []
    for first, end in stretches:
        for layer in range(first, end):
            entered = problem.tiers[stage] if layer == first and layer > 0 else None
            positions.append(Position(problem.sequence[layer], entered, layer == 0))
    return tuple(positions)


def _extend(partial: _Partial, front: Front, stretches: tuple[tuple[int, int], ...]) -> _Partial:
    rows, options = len(partial.total_s), len(front.once_s)
    old = np.repeat(np.arange(rows), options)
    new = np.tile(np.arange(options), rows)
    before = partial if partial.back else None
    return _Partial(
        partial.total_s[old] + front.beats_s[new].sum(axis=1),
        np.maximum(partial.slowest_s[old], front.beats_s[new]),
        np.maximum(partial.once_s[old], front.once_s[new]),
        [(before, int(i), front, int(j), stretches) for i, j in zip(old, new, strict=True)],
    )


def _rows(partial: _Partial, kept: NDArray[np.int64]) -> _Partial:
    return _Partial(
        partial.total_s[kept], partial.slowest_s[kept], partial.once_s[kept], [partial.back[i] for i in kept]
    )


def _merge(partials: Sequence[_Partial]) -> _Partial:
    merged = _Partial(
        np.concatenate([partial.total_s for partial in partials]),
        np.concatenate([partial.slowest_s for partial in partials]),
        np.concatenate([partial.once_s for partial in partials]),
        [link for partial in partials for link in partial.back],
    )
    values = np.column_stack([merged.total_s, merged.slowest_s, merged.once_s])
    return _rows(merged, undominated(values))


def _solution(problem: Pipeline, final: _Partial) -> Solution:
    times = problem.steady * final.slowest_s.sum(axis=1) + final.total_s / problem.virtual + final.once_s
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


class _Bounds:
    """Lower bounds from the quickest strategy of each layer, memory apart."""

    def __init__(self, problem: Pipeline) -> None:
        self._problem = problem
        choices = problem.table.choices
        self.rhythms = choices[0].beats_s.shape[1]
        beats = np.array([c.beats_s.min(axis=0, initial=np.inf) for c in choices])[list(problem.sequence)]
        once = np.array([c.once_s.min(initial=np.inf) for c in choices])[list(problem.sequence)]
        # Sums up to each layer, 0 first.
        self._beats = np.vstack([np.zeros(self.rhythms), np.cumsum(beats, axis=0)])
        self._once = np.concatenate([[0.0], np.cumsum(once)])
        self.slowest_s = np.array([self._slowest(beats[:, rhythm]) for rhythm in range(self.rhythms)])
        self.once_s = float(self._once[-1]) / len(problem.flights)

    def step_s(self) -> float:
        """No pipeline of this problem is faster."""
        problem = self._problem
        total = float(self._beats[-1].sum())
        return problem.steady * float(self.slowest_s.sum()) + total / problem.virtual + self.once_s

    def bar(self, stretches: tuple[tuple[int, int], ...], best_s: float) -> Bar:
        """What a stage of these stretches must pass."""
        problem = self._problem
        others = float(self._beats[-1].sum() - self._quickest(stretches).sum())
        return Bar(best_s, problem.steady, problem.virtual, others, self.slowest_s, self.once_s)

    def quickest_passes(self, stretches: tuple[tuple[int, int], ...], bar: Bar) -> bool:
        """Whether the quickest choice for every layer would pass the bar."""
        once = sum(self._once[end] - self._once[first] for first, end in stretches)
        return bool(bar.passed(self._quickest(stretches)[None, :], np.array([once]))[0])

    def may_finish(self, partial: _Partial, end: int, stages_left: int, best_s: float) -> NDArray[np.bool_]:
        """Which partial pipelines may still become faster than the best."""
        problem = self._problem
        if problem.pieces is None:
            rest = self._beats[-1] - self._beats[end]
        else:
            rest = sum((self._quickest(pieces) for pieces in problem.pieces[end:]), np.zeros(self.rhythms))
        floor = np.maximum(self.slowest_s, rest / stages_left if stages_left else 0.0)
        slowest = np.maximum(partial.slowest_s, floor).sum(axis=1)
        total = (partial.total_s + rest.sum()) / problem.virtual
        flags: NDArray[np.bool_] = problem.steady * slowest + total + np.maximum(partial.once_s, self.once_s) < best_s
        return flags

    def _quickest(self, stretches: tuple[tuple[int, int], ...]) -> Floats:
        quickest: Floats = sum(
            (self._beats[end] - self._beats[first] for first, end in stretches), np.zeros(self.rhythms)
        )
        return quickest

    def _slowest(self, beats: Floats) -> float:
        """At least this long is the slowest stage of any partition: the mean, the longest layer, the given pieces."""
        problem = self._problem
        if problem.pieces is not None:
            return max(sum(float(beats[first:end].sum()) for first, end in pieces) for pieces in problem.pieces)
        return least_slowest(beats, len(problem.flights))


def least_slowest(times: Floats, parts: int) -> float:
    """A lower bound, tight to one part in 10^12, of the longest of `parts` unbroken stretches of `times`."""
    low, high = max(float(times.max()), float(times.sum()) / parts), float(times.sum())
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if _parts_needed(times, middle) <= parts else (middle, high)
    return low * (1 - 1e-12)


def _parts_needed(times: Floats, longest: float) -> int:
    parts, filled = 1, 0.0
    for time in times:
        if filled + time > longest:
            parts, filled = parts + 1, 0.0
        filled += float(time)
    return parts


def lower_bound_s(problem: Pipeline) -> float:
    """No pipeline of this problem is faster, by the quickest strategies."""
    return _Bounds(problem).step_s()
