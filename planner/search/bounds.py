"""Lower bounds on pipelines: what no choice of strategies and partition can beat. Sees numbers only.

Two kinds: the quickest strategy of each layer, memory apart; and with memory (relaxation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.search.bar import Bar
from planner.search.problem import Interval, Pipeline, least_by_class, with_tables
from planner.search.relaxation import Relaxed
from planner.search.rhythm import all_peaks, filling, peaks, weighed
from planner.search.table import Choices, Table
from planner.spec.stretches import Stretches

Floats = NDArray[np.float64]


def mean_step_s(problem: Pipeline) -> float:
    """No pipeline is faster, memory apart: the mean of the stages' peaks, all filling, the mean work once per step."""
    return _over_layers(problem, _least_means(problem))


def promising(problem: Pipeline, best_s: float) -> Pipeline:
    """The problem without strategies under which no pipeline takes less than `best_s`, memory apart.

    That is the bound of `mean_step_s` with one layer's strategy fixed, and the best of all others.
    """
    measure, least = _mean_measure(problem), _least_means(problem)
    spare = best_s - _over_layers(problem, least)

    def kept(table: Table) -> Table:
        rows = (np.flatnonzero(measure(c) - low < spare) for c, low in zip(table.choices, least, strict=True))
        return table._replace(choices=tuple(c.rows(each) for c, each in zip(table.choices, rows, strict=True)))

    return with_tables(problem, kept)


def _least_means(problem: Pipeline) -> Floats:
    """[classes] of the least mean measure of any strategy."""
    measure = _mean_measure(problem)
    return least_by_class(problem, lambda choices: measure(choices).min(initial=np.inf))


def _over_layers(problem: Pipeline, by_class: Floats) -> float:
    classes, counts = np.unique(problem.sequence, return_counts=True)
    return float((by_class[classes] * counts).sum())


def _mean_measure(problem: Pipeline) -> Callable[[Choices], Floats]:
    """[strategies] of what a layer adds to the mean of the stages' peaks, all filling, and the mean work once."""
    stages, rhythm = len(problem.flights), problem.rhythm
    weights = [peak / stages + fill for peak, fill in zip(all_peaks(rhythm), rhythm.filling, strict=True)]
    return lambda choices: weighed(weights, choices.beats_s) + choices.once_s / stages


class Bounds:
    """Lower bounds for the parts of one pipeline problem."""

    def __init__(self, problem: Pipeline) -> None:
        self._problem = problem
        rhythm, sequence = problem.rhythm, list(problem.sequence)
        slowest = least_by_class(problem, lambda c: peaks(rhythm, c.beats_s).min(axis=0, initial=np.inf))[sequence]
        filled = least_by_class(problem, lambda c: filling(rhythm, c.beats_s).min(initial=np.inf))[sequence]
        once = least_by_class(problem, lambda c: c.once_s.min(initial=np.inf))[sequence]
        # Sums up to each layer, 0 first.
        self._layer_peaks = slowest
        self._peaks = np.vstack([np.zeros(len(rhythm.peaks)), np.cumsum(slowest, axis=0)])
        self._filling = np.concatenate([[0.0], np.cumsum(filled)])
        self._once = np.concatenate([[0.0], np.cumsum(once)])
        self._all_peaks = self._peaks.sum(axis=1)

    @cached_property
    def once_s(self) -> float:
        """Longest work once per step, at least."""
        return self._longest_once_s()

    @cached_property
    def _filled(self) -> Relaxed:
        """Filling of the stages."""
        return Relaxed(self._problem, self._problem.rhythm.filling, 0.0)

    @cached_property
    def _slow(self) -> Relaxed:
        """Sum of the peaks of the stages."""
        return self._filled.multiple(all_peaks(self._problem.rhythm))

    @cached_property
    def _total_s(self) -> float:
        """Filling of all stages."""
        return max(float(self._filling[-1]), self._filled.total_s())

    @cached_property
    def _slowest_s(self) -> Floats:
        """[peaks] of the slowest stage."""
        peaks_of = range(len(self._problem.rhythm.peaks))
        return np.array([self._slowest(self._layer_peaks[:, peak]) for peak in peaks_of])

    @cached_property
    def _slowest_total_s(self) -> float:
        """Sum of the peaks of the slowest stage."""
        total_peaks = max(float(self._all_peaks[-1]), self._slow.total_s())
        return max(total_peaks / len(self._problem.flights), self._slow.slowest_s())

    def bar(self, stage: int, intervals: Sequence[Interval], best_s: float) -> Bar:
        """What a stage with this content must pass, on whichever of the intervals it stands."""
        problem = self._problem
        own_peaks, own_filling = self._quickest(intervals[0].stretches)
        other_peaks = max(
            float((self._peaks[-1] - own_peaks).sum()),
            min(self._slow.others_s(stage, interval) for interval in intervals),
        )
        other_filling = max(
            float(self._filling[-1]) - own_filling,
            min(self._filled.others_s(stage, interval) for interval in intervals),
        )
        slowest_other = min(self._slow.slowest_other_s(stage, interval) for interval in intervals)
        return Bar(
            best_s=best_s,
            rhythm=problem.rhythm,
            others_s=other_filling,
            total_s=self._total_s,
            slowest_s=self._slowest_s,
            slowest_total_s=max(self._slowest_total_s, slowest_other, other_peaks / max(1, len(problem.flights) - 1)),
            once_s=self.once_s,
            alone=len(problem.flights) == 1,
        )

    def may_pass(self, stage: int, interval: Interval, best_s: float) -> bool:
        """Whether a plan with this interval on this stage may beat the best."""
        bar = self.bar(stage, [interval], best_s)
        own_peaks, own_filling = self._quickest(interval.stretches)
        once = np.array([sum(self._once[end] - self._once[first] for first, end in interval.stretches)])
        relaxed = max(bar.slowest_total_s, self._slow.stage_s(stage, interval))
        bound = bar._replace(slowest_total_s=relaxed).at_least_s(own_peaks[None, :], np.array([own_filling]), once)
        return bool(bound[0] < best_s)

    def at_least_s(self, filling_s: Floats, slowest_s: Floats, once_s: Floats, stage: int, end: int) -> Floats:
        """[rows] of the step from partial pipelines whose last stage is `stage` and which end at `end`."""
        problem = self._problem
        stages_left = len(problem.flights) - stage - 1
        slowest = np.maximum(np.maximum(slowest_s, self._slowest_s).sum(axis=1), self._slowest_total_s)
        if stages_left:
            rest = self._rest_s(self._all_peaks, self._slow, stage, end)
            slowest = np.maximum(slowest, max(rest / stages_left, self._slow.slowest_after_s(stage, end)))
        filled = filling_s + self._rest_s(self._filling, self._filled, stage, end)
        bound: Floats = slowest + np.maximum(filled, self._total_s) + np.maximum(once_s, self.once_s)
        return bound

    def step_s(self, best_s: float = np.inf) -> float:
        """No pipeline of this problem is faster; inf where none can fit. Not made closer once it exceeds `best_s`."""
        problem = self._problem
        if not _may_fit(problem):
            return np.inf
        stages = len(problem.flights)
        weights = [peak / stages + fill for peak, fill in self._weights]
        spread = Relaxed(problem, weights, 1.0 / stages).total_s()
        if spread >= best_s:
            return spread
        slowest = max(float(self._slowest_s.sum()), self._slowest_total_s)
        apart = slowest + self._total_s + self.once_s
        return max(apart, spread, self._one_stage_slowest_s())

    @property
    def _weights(self) -> list[tuple[float, float]]:
        """By beat: of all peaks together, and of the filling."""
        rhythm = self._problem.rhythm
        return list(zip(all_peaks(rhythm), rhythm.filling, strict=True))

    def _one_stage_slowest_s(self) -> float:
        """With given pieces: whichever stage is the slowest, beats and work once per step bounded together."""
        problem = self._problem
        if problem.pieces is None:
            return 0.0
        together = Relaxed(problem, [peak + fill for peak, fill in self._weights], 1.0)
        return together.one_with_others_s(self._filled)

    def _rest_s(self, sums: Floats, relaxed: Relaxed, stage: int, end: int) -> float:
        """Sum over the stages after `stage`, at least, of what is summed up to each layer in `sums`."""
        problem, bound = self._problem, relaxed.rest_s(stage, end)
        if problem.pieces is None:
            return max(bound, float(sums[-1] - sums[end]))
        later = (stretch for pieces in problem.pieces[end:] for stretch in pieces)
        return max(bound, sum(float(sums[last] - sums[first]) for first, last in later))

    def _quickest(self, stretches: Stretches) -> tuple[Floats, float]:
        """(peaks, filling) of layers with the quickest strategy of each; rounding below 0 is cut off."""
        own = sum((self._peaks[end] - self._peaks[first] for first, end in stretches), np.zeros(self._peaks.shape[1]))
        filled = sum(float(self._filling[end] - self._filling[first]) for first, end in stretches)
        return np.maximum(own, 0.0), max(filled, 0.0)

    def _slowest(self, beats: Floats) -> float:
        """At least this long is the slowest stage of any partition, memory apart."""
        problem = self._problem
        if problem.pieces is not None:
            return max(sum(float(beats[first:end].sum()) for first, end in pieces) for pieces in problem.pieces)
        return least_slowest(beats, len(problem.flights))

    def _longest_once_s(self) -> float:
        problem = self._problem
        if problem.pieces is None:
            return float(self._once[-1]) / len(problem.flights)
        return max(sum(float(self._once[end] - self._once[first]) for first, end in each) for each in problem.pieces)


def _rooms(problem: Pipeline) -> list[int]:
    """Of each stage, the bytes that are left for all but the largest workspace, at most."""
    return [
        limit - min(int(c.workspace_bytes.min(initial=2**62)) for c in table.choices)
        for limit, table in zip(problem.limits_bytes, problem.tables, strict=True)
    ]


def _may_fit(problem: Pipeline) -> bool:
    """Whether the smallest strategy of each layer would fit; each stage of a free partition takes all that it can.

    With a margin for the rounding of fractions in flight: what fits to the byte is not given up.
    """
    rooms = [room * (1 + 1e-9) for room in _rooms(problem)]
    least = [
        [float((c.fixed_bytes + float(flight) * c.flight_bytes).min(initial=np.inf)) for c in table.choices]
        for flight, table in zip(problem.flights, problem.tables, strict=True)
    ]
    if problem.pieces is not None:
        return all(
            sum(held[number] for first, end in pieces for number in problem.sequence[first:end]) <= room
            for held, pieces, room in zip(least, problem.pieces, rooms, strict=True)
        )
    stage, used = 0, 0.0
    for number in problem.sequence:
        while stage < len(least) and used + least[stage][number] > rooms[stage]:
            stage, used = stage + 1, 0.0
        if stage == len(least):
            return False
        used += least[stage][number]
    return True


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
