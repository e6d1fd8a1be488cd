"""Lower bounds on pipelines: what no choice of strategies and partition can beat. Sees numbers only.

Two kinds. The quickest strategy of each layer, memory apart. And with memory: for any exchange rate of seconds for
bytes, the least of seconds + rate x bytes over strategies and partitions, less rate x limit for each stage, is at most
the seconds of any pipeline that fits (Lagrangian relaxation).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from fractions import Fraction
from operator import mul
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.pipeline import Rhythm
from planner.search.rhythm import all_peaks, filling, peaks, weighed
from planner.search.stage import Bar, exchange_rates
from planner.search.table import Table

Floats = NDArray[np.float64]
Stretches = tuple[tuple[int, int], ...]


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
    rhythm: Rhythm
    """How the stages' beats make a step."""


class Interval(NamedTuple):
    """Layers for a stage: where the pipeline before it ends, where it ends itself, and its stretches of layers."""

    begin: int
    end: int
    stretches: Stretches


class Bounds:
    """Lower bounds for the parts of one pipeline problem."""

    def __init__(self, problem: Pipeline) -> None:
        self._problem = problem
        choices, rhythm = problem.table.choices, problem.rhythm
        sequence = list(problem.sequence)
        slowest = np.array([peaks(rhythm, c.beats_s).min(axis=0, initial=np.inf) for c in choices])[sequence]
        filled = np.array([filling(rhythm, c.beats_s).min(initial=np.inf) for c in choices])[sequence]
        once = np.array([c.once_s.min(initial=np.inf) for c in choices])[sequence]
        # Sums up to each layer, 0 first.
        self._peaks = np.vstack([np.zeros(len(rhythm.peaks)), np.cumsum(slowest, axis=0)])
        self._filling = np.concatenate([[0.0], np.cumsum(filled)])
        self._once = np.concatenate([[0.0], np.cumsum(once)])
        self._all_peaks = self._peaks.sum(axis=1)
        self._filled = _Relaxed(problem, rhythm.filling, 0.0)
        self._slow = self._filled.multiple(all_peaks(rhythm))
        self._total_s = max(float(self._filling[-1]), self._filled.total_s())
        self._slowest_s = np.array([self._slowest(slowest[:, peak]) for peak in range(len(rhythm.peaks))])
        total_peaks = max(float(self._all_peaks[-1]), self._slow.total_s())
        self._slowest_total_s = max(total_peaks / len(problem.flights), self._slow.slowest_s())
        self._once_s = self._longest_once_s()

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
            once_s=self._once_s,
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
        bound: Floats = slowest + np.maximum(filled, self._total_s) + np.maximum(once_s, self._once_s)
        return bound

    def step_s(self) -> float:
        """No pipeline of this problem is faster; inf where none can fit."""
        problem = self._problem
        if not _may_fit(problem):
            return np.inf
        slowest = max(float(self._slowest_s.sum()), self._slowest_total_s)
        apart = slowest + self._total_s + self._once_s
        stages = len(problem.flights)
        weights = [peak / stages + fill for peak, fill in self._weights]
        return max(apart, _Relaxed(problem, weights, 1.0 / stages).total_s(), self._one_stage_slowest_s())

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
        together = _Relaxed(problem, [peak + fill for peak, fill in self._weights], 1.0)
        return together.one_with_others_s(self._filled)

    def _rest_s(self, sums: Floats, relaxed: _Relaxed, stage: int, end: int) -> float:
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


class _Relaxed:
    """The relaxation for one measure of seconds, weighted beats and work once per step, at several exchange rates."""

    def __init__(self, problem: Pipeline, weights: Sequence[float], once_weight: float) -> None:
        self._problem = problem
        self._weights = weights
        choices, stages = problem.table.choices, len(problem.flights)
        seconds = [weighed(weights, c.beats_s) + c.once_s * once_weight for c in choices]
        used = [[c.fixed_bytes + float(flight) * c.flight_bytes for flight in problem.flights] for c in choices]
        if all(len(each) for each in seconds):
            middle = stages // 2
            rates = exchange_rates([(s, u[middle]) for s, u in zip(seconds, used, strict=True)])
        else:
            rates = [0.0]
        # [rates, stages, classes] of the least seconds + rate x bytes
        costs = np.array([[_least(seconds, used, stage, rate) for stage in range(stages)] for rate in rates])
        # [stages, classes] of the least that it takes to enter a piece
        self._entered = sum(map(mul, weights, problem.table.message_beats)) * np.array(
            [[float(c.entry_s[:, tier].min(initial=np.inf)) for c in choices] for tier in problem.tiers]
        )
        workspace = min(int(c.workspace_bytes.min(initial=2**62)) for c in choices)
        self._limits = np.array(rates) * (problem.limit_bytes - workspace)
        if problem.pieces is not None:
            self._by_stage = self._of_pieces(problem.pieces, costs)
        else:
            self._before, self._after = self._swept(costs)
            self._stages = [self._intervals(costs, stage) for stage in range(stages)]
            self._slowest_before, self._slowest_after = self._slowest_swept()

    def multiple(self, weights: Sequence[float]) -> _Relaxed:
        """The relaxation of beats with other weights; not computed anew where they are multiples of these."""
        first, own = weights[0], self._weights[0]
        if any(weight * own != first * mine for weight, mine in zip(weights, self._weights, strict=True)):
            return _Relaxed(self._problem, weights, 0.0)
        other, factor = copy(self), first / own
        other._weights, other._limits = weights, self._limits * factor
        if self._problem.pieces is not None:
            other._by_stage = _times(self._by_stage, factor)
        else:
            other._before, other._after = _times(self._before, factor), _times(self._after, factor)
            other._stages = [_times(bound, factor) for bound in self._stages]
            other._slowest_before = [_times(bound, factor) for bound in self._slowest_before]
            other._slowest_after = [_times(bound, factor) for bound in self._slowest_after]
        return other

    def total_s(self) -> float:
        """Sum over all stages."""
        if self._problem.pieces is not None:
            return float(self._by_stage.sum())
        stages = len(self._problem.flights)
        return float((self._before[:, stages - 1, -1] - stages * self._limits).max())

    def slowest_s(self) -> float:
        """The longest stage of any partition."""
        if self._problem.pieces is not None:
            return float(self._by_stage.max())
        return float(self._slowest_before[-1][-1])

    def stage_s(self, stage: int, interval: Interval) -> float:
        """A stage with this interval."""
        if self._problem.pieces is not None:
            return float(self._by_stage[stage])
        return float(self._stages[stage][interval.begin, interval.end])

    def slowest_other_s(self, stage: int, interval: Interval) -> float:
        """The longest stage beside one that holds this interval."""
        if self._problem.pieces is not None:
            return float(np.delete(self._by_stage, stage).max(initial=0.0))
        before = float(self._slowest_before[stage - 1][interval.begin]) if stage else 0.0
        return max(before, self.slowest_after_s(stage, interval.end))

    def slowest_after_s(self, stage: int, end: int) -> float:
        """The longest of the stages after `stage`, which begin at `end`."""
        if self._problem.pieces is not None:
            return float(self._by_stage[stage + 1 :].max(initial=0.0))
        return float(self._slowest_after[stage + 1][end]) if stage + 1 < len(self._stages) else 0.0

    def one_with_others_s(self, filled: _Relaxed) -> float:
        """The longest stage in this measure, and the other stages' filling."""
        others = filled._by_stage.sum() - filled._by_stage
        return float((self._by_stage + others).max())

    def others_s(self, stage: int, interval: Interval) -> float:
        """Sum over all stages but one that holds this interval."""
        if self._problem.pieces is not None:
            return float(self._by_stage.sum() - self._by_stage[stage])
        stages = len(self._problem.flights)
        before = self._before[:, stage - 1, interval.begin] if stage else 0.0
        after = self._after[:, stage + 1, interval.end] if stage + 1 < stages else 0.0
        return float((before + after - (stages - 1) * self._limits).max())

    def rest_s(self, stage: int, end: int) -> float:
        """Sum over the stages after `stage`, which begin at `end`."""
        if self._problem.pieces is not None:
            return float(self._by_stage[stage + 1 :].sum())
        stages = len(self._problem.flights)
        if stage + 1 == stages:
            return 0.0
        return float((self._after[:, stage + 1, end] - (stages - stage - 1) * self._limits).max())

    def _of_pieces(self, pieces: Sequence[Stretches], costs: Floats) -> Floats:
        """[stages] of the best bound for each stage by itself."""
        sequence = np.array(self._problem.sequence)
        sums = []
        for stage, stretches in enumerate(pieces):
            layers = np.concatenate([sequence[first:end] for first, end in stretches])
            entered = sum(self._entered[stage, sequence[first]] for first, _ in stretches if first > 0)
            sums.append((costs[:, stage, layers].sum(axis=1) - self._limits).max() + entered)
        return np.array(sums)

    def _intervals(self, costs: Floats, stage: int) -> Floats:
        """[begin, end] of the best bound for the stage with the layers from begin to end; inf where there are none."""
        sequence = np.array(self._problem.sequence)
        sums = np.concatenate([np.zeros((len(costs), 1)), np.cumsum(costs[:, stage, sequence], axis=1)], axis=1)
        bound = np.full((len(sequence) + 1, len(sequence) + 1), -np.inf)
        for priced, limit in zip(sums, self._limits, strict=True):
            np.maximum(bound, priced[None, :] - priced[:, None] - limit, out=bound)
        if stage:
            bound[:-1] += self._entered[stage, sequence][:, None]
        bound[np.tri(len(bound), dtype=bool)] = np.inf
        return bound

    def _slowest_swept(self) -> tuple[list[Floats], list[Floats]]:
        """By stage, [layers + 1]: the least longest of the stages up to it, ending at a layer; of those from it on."""
        before = [self._stages[0][0]]
        for bound in self._stages[1:]:
            before.append(np.maximum(before[-1][:, None], bound).min(axis=0))
        after = [self._stages[-1][:, -1]]
        for bound in reversed(self._stages[:-1]):
            after.append(np.maximum(after[-1][None, :], bound).min(axis=1))
        return before, after[::-1]

    def _swept(self, costs: Floats) -> tuple[Floats, Floats]:
        """[rates, stages, layers + 1] least cost of the stages up to one, ending at a layer; of those from one on."""
        sequence, (rates, stages, _) = self._problem.sequence, costs.shape
        nothing = np.full((rates, 1), np.inf)
        entered = self._entered.copy()
        entered[0] = 0.0
        before = np.full((rates, stages, len(sequence) + 1), np.inf)
        column = np.full((rates, stages), np.inf)
        for layer, number in enumerate(sequence):
            moved = np.concatenate([nothing if layer else np.zeros((rates, 1)), column[:, :-1]], axis=1)
            column = np.minimum(column, moved + entered[:, number]) + costs[:, :, number]
            before[:, :, layer + 1] = column
        after = np.full((rates, stages, len(sequence) + 1), np.inf)
        column = np.full((rates, stages), np.inf)
        following = np.concatenate([nothing.repeat(stages - 1, axis=1), np.zeros((rates, 1))], axis=1)
        for layer in reversed(range(len(sequence))):
            column = np.minimum(column, following) + costs[:, :, sequence[layer]]
            after[:, :, layer] = column + entered[:, sequence[layer]]
            following = np.concatenate([after[:, 1:, layer], nothing], axis=1)
        return before, after


def _times(bounds: Floats, factor: float) -> Floats:
    """Bounds in another unit; inf, which nothing reaches, stays inf even if the unit is 0."""
    return np.multiply(bounds, factor, out=bounds.copy(), where=np.isfinite(bounds))


def _least(seconds: Sequence[Floats], used: Sequence[Sequence[Floats]], stage: int, rate: float) -> list[float]:
    """By class, the least of seconds + rate x bytes over the strategies."""
    return [float((s + rate * u[stage]).min(initial=np.inf)) for s, u in zip(seconds, used, strict=True)]


def _may_fit(problem: Pipeline) -> bool:
    """Whether the smallest strategy of each layer would fit; each stage of a free partition takes all that it can."""
    choices, stages = problem.table.choices, range(len(problem.flights))
    room = problem.limit_bytes - min(int(c.workspace_bytes.min(initial=2**62)) for c in choices)
    least = [
        [float((c.fixed_bytes + float(flight) * c.flight_bytes).min(initial=np.inf)) for c in choices]
        for flight in problem.flights
    ]
    if problem.pieces is not None:
        held = [
            sum(least[stage][number] for first, end in problem.pieces[stage] for number in problem.sequence[first:end])
            for stage in stages
        ]
        return max(held) <= room
    stage, used = 0, 0.0
    for number in problem.sequence:
        while stage < len(least) and used + least[stage][number] > room:
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
