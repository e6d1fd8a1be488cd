"""Lower bounds on pipelines: what no choice of strategies and partition can beat. Sees numbers only.

Two kinds. The quickest strategy of each layer, memory apart. And with memory: for any exchange rate of seconds for
bytes, the least of seconds + rate x bytes over strategies and partitions, less rate x limit for each stage, is at most
the seconds of any pipeline that fits (Lagrangian relaxation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cached_property
from operator import mul
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.pipeline import Rhythm
from planner.search.rhythm import all_peaks, filling, peaks, weighed
from planner.search.stage import Bar, Level, exchange_rates, workspace_levels
from planner.search.table import Choices, Table

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Stretches = tuple[tuple[int, int], ...]
_MOST_RATES = 32
"""Exchange rates among which a bound chooses."""


class Pipeline(NamedTuple):
    """One instance of the problem."""

    tables: tuple[Table, ...]
    """Of each stage; equal stages share one."""
    sequence: tuple[int, ...]
    """Class of each layer."""
    pieces: tuple[tuple[tuple[int, int], ...], ...] | None
    """With virtual stages: for each stage its stretches (first layer, end layer); None: to be found."""
    flights: tuple[Fraction, ...]
    """Micro-batches in flight on each stage."""
    tiers: tuple[int, ...]
    """Tier of links over which each stage is entered."""
    limits_bytes: tuple[int, ...]
    """What the layers of each stage may take of a device."""
    rhythm: Rhythm
    """How the stages' beats make a step."""


class Interval(NamedTuple):
    """Layers for a stage: where the pipeline before it ends, where it ends itself, and its stretches of layers."""

    begin: int
    end: int
    stretches: Stretches


def mean_step_s(problem: Pipeline) -> float:
    """No pipeline is faster, memory apart: the mean of the stages' peaks, all filling, the mean work once per step."""
    measure = _mean_measure(problem)
    least = _least_by_class(problem, lambda choices: measure(choices).min(initial=np.inf))
    classes, counts = np.unique(problem.sequence, return_counts=True)
    return float((least[classes] * counts).sum())


def promising(problem: Pipeline, best_s: float) -> Pipeline:
    """The problem without strategies under which no pipeline takes less than `best_s`, memory apart.

    That is the bound of `mean_step_s` with one layer's strategy fixed, and the best of all others.
    """
    measure = _mean_measure(problem)
    least = _least_by_class(problem, lambda choices: measure(choices).min(initial=np.inf))
    spare = best_s - mean_step_s(problem)
    kept = {
        id(table): table._replace(
            choices=tuple(
                choices.rows(np.flatnonzero(measure(choices) - low < spare))
                for choices, low in zip(table.choices, least, strict=True)
            )
        )
        for table in problem.tables
    }
    return problem._replace(tables=tuple(kept[id(table)] for table in problem.tables))


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
        slowest = _least_by_class(problem, lambda c: peaks(rhythm, c.beats_s).min(axis=0, initial=np.inf))[sequence]
        filled = _least_by_class(problem, lambda c: filling(rhythm, c.beats_s).min(initial=np.inf))[sequence]
        once = _least_by_class(problem, lambda c: c.once_s.min(initial=np.inf))[sequence]
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
    def _filled(self) -> _Relaxed:
        """Filling of the stages."""
        return _Relaxed(self._problem, self._problem.rhythm.filling, 0.0)

    @cached_property
    def _slow(self) -> _Relaxed:
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
        spread = _Relaxed(problem, weights, 1.0 / stages).total_s()
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
        stages = range(len(problem.flights))
        rates = np.array(_rates(problem, weights, once_weight))
        levels = workspace_levels(_workspaces(problem))
        # [rates, stages, levels, classes] of the least seconds + rate x bytes
        costs = _least(problem, weights, once_weight, rates, levels)
        # [rates, stages, levels] of what the room of a stage is worth
        room = np.array(problem.limits_bytes)[:, None] - np.array([level.least for level in levels])
        room = rates[:, None, None] * room
        # Each stage has its own rates: any set of them is a valid bound.
        chosen = _telling(problem, costs, room), np.arange(len(stages))
        self._costs, self._room = costs[chosen], room[chosen]
        # [stages, classes] of the least that it takes to enter a piece
        self._entered = np.array([_least_entry_s(problem, weights, stage) for stage in stages])
        if problem.pieces is not None:
            self._by_stage = self._of_pieces(problem.pieces)
            self._total_s = float(self._by_stage.sum())
        else:
            self._total_s = float(self._swept()[:, -1, -1].max())

    def multiple(self, weights: Sequence[float]) -> _Relaxed:
        """The relaxation of beats with other weights; rates are not chosen anew where they are multiples of these."""
        first, own = weights[0], self._weights[0]
        if any(weight * own != first * mine for weight, mine in zip(weights, self._weights, strict=True)):
            return _Relaxed(self._problem, weights, 0.0)
        other, factor = _Relaxed.__new__(_Relaxed), first / own
        other._problem, other._weights = self._problem, weights
        other._costs, other._entered = _times(self._costs, factor), _times(self._entered, factor)
        other._room, other._total_s = self._room * factor, float(_times(np.array(self._total_s), factor))
        if self._problem.pieces is not None:
            other._by_stage = _times(self._by_stage, factor)
        return other

    @cached_property
    def _before(self) -> Floats:
        """[rates, stages, layers + 1] least cost of the stages up to one, ending at a layer."""
        return self._swept()

    @cached_property
    def _after(self) -> Floats:
        """[rates, stages, layers + 1] least cost of the stages from one on, beginning at a layer."""
        return self._swept_back()

    @cached_property
    def _stages(self) -> list[Floats]:
        return [self._intervals(stage) for stage in range(len(self._problem.flights))]

    @cached_property
    def _longest(self) -> tuple[list[Floats], list[Floats]]:
        """By stage, [layers + 1]: the least longest of the stages up to it, ending at a layer; of those from it on."""
        before = [self._stages[0][0]]
        for bound in self._stages[1:]:
            before.append(np.maximum(before[-1][:, None], bound).min(axis=0))
        after = [self._stages[-1][:, -1]]
        for bound in reversed(self._stages[:-1]):
            after.append(np.maximum(after[-1][None, :], bound).min(axis=1))
        return before, after[::-1]

    def total_s(self) -> float:
        """Sum over all stages."""
        return self._total_s

    def slowest_s(self) -> float:
        """The longest stage of any partition."""
        if self._problem.pieces is not None:
            return float(self._by_stage.max())
        return float(self._longest[0][-1][-1])

    def stage_s(self, stage: int, interval: Interval) -> float:
        """A stage with this interval."""
        if self._problem.pieces is not None:
            return float(self._by_stage[stage])
        return float(self._stages[stage][interval.begin, interval.end])

    def slowest_other_s(self, stage: int, interval: Interval) -> float:
        """The longest stage beside one that holds this interval."""
        if self._problem.pieces is not None:
            return float(np.delete(self._by_stage, stage).max(initial=0.0))
        before = float(self._longest[0][stage - 1][interval.begin]) if stage else 0.0
        return max(before, self.slowest_after_s(stage, interval.end))

    def slowest_after_s(self, stage: int, end: int) -> float:
        """The longest of the stages after `stage`, which begin at `end`."""
        if self._problem.pieces is not None:
            return float(self._by_stage[stage + 1 :].max(initial=0.0))
        return float(self._longest[1][stage + 1][end]) if stage + 1 < len(self._problem.flights) else 0.0

    def one_with_others_s(self, filled: _Relaxed) -> float:
        """The longest stage in this measure, and the other stages' filling."""
        others = filled._by_stage.sum() - filled._by_stage
        return float((self._by_stage + others).max())

    def others_s(self, stage: int, interval: Interval) -> float:
        """Sum over all stages but one that holds this interval."""
        if self._problem.pieces is not None:
            return float(np.delete(self._by_stage, stage).sum())
        before = self._before[:, stage - 1, interval.begin] if stage else 0.0
        after = self._after[:, stage + 1, interval.end] if stage + 1 < len(self._problem.flights) else 0.0
        return float(np.max(before + after))

    def rest_s(self, stage: int, end: int) -> float:
        """Sum over the stages after `stage`, which begin at `end`."""
        if self._problem.pieces is not None:
            return float(self._by_stage[stage + 1 :].sum())
        if stage + 1 == len(self._problem.flights):
            return 0.0
        return float(self._after[:, stage + 1, end].max())

    def _of_pieces(self, pieces: Sequence[Stretches]) -> Floats:
        """[stages] of the best bound for each stage by itself."""
        sequence = np.array(self._problem.sequence)
        sums = []
        for stage, stretches in enumerate(pieces):
            layers = np.concatenate([sequence[first:end] for first, end in stretches])
            entered = sum(self._entered[stage, sequence[first]] for first, _ in stretches if first > 0)
            priced = self._costs[:, stage][:, :, layers].sum(axis=2) - self._room[:, stage]
            sums.append(priced.max(axis=0).min() + entered)
        return np.array(sums)

    def _intervals(self, stage: int) -> Floats:
        """[begin, end] of the best bound for the stage with the layers from begin to end; inf where there are none."""
        sequence = np.array(self._problem.sequence)
        size = len(sequence) + 1
        least = np.full((size, size), np.inf)
        for level in range(self._costs.shape[2]):
            bound = np.full((size, size), -np.inf)
            for costs, room in zip(self._costs[:, stage, level], self._room[:, stage, level], strict=True):
                if not np.isfinite(costs[sequence]).all():
                    bound[:] = _without(costs[sequence])
                    break
                sums = np.concatenate([[0.0], np.cumsum(costs[sequence])])
                np.maximum(bound, sums[None, :] - sums[:, None] - room, out=bound)
            np.minimum(least, bound, out=least)
        least[np.tri(size, dtype=bool)] = np.inf
        if stage:
            least[:-1] += self._entered[stage, sequence][:, None]
        return least

    def _opening(self) -> Floats:
        """[rates, stages, levels, classes] of what opening a stage with a layer takes, less the worth of its room."""
        entered = self._entered.copy()
        entered[0] = 0.0
        opening: Floats = entered[:, None, :] - self._room[:, :, :, None]
        return opening

    def _swept(self) -> Floats:
        sequence, opening, (rates, stages, levels, _) = self._problem.sequence, self._opening(), self._costs.shape
        before = np.full((rates, stages, len(sequence) + 1), np.inf)
        column = np.full((rates, stages, levels), np.inf)
        moved = np.full((rates, stages), np.inf)
        moved[:, 0] = 0.0
        for layer, number in enumerate(sequence):
            column = np.minimum(column, moved[:, :, None] + opening[..., number]) + self._costs[..., number]
            before[:, :, layer + 1] = column.min(axis=2)
            moved = np.full((rates, stages), np.inf)
            moved[:, 1:] = before[:, :-1, layer + 1]
        return before

    def _swept_back(self) -> Floats:
        sequence, opening, (rates, stages, levels, _) = self._problem.sequence, self._opening(), self._costs.shape
        after = np.full((rates, stages, len(sequence) + 1), np.inf)
        column = np.full((rates, stages, levels), np.inf)
        following = np.full((rates, stages), np.inf)
        following[:, -1] = 0.0
        for layer in reversed(range(len(sequence))):
            column = np.minimum(column, following[:, :, None]) + self._costs[..., sequence[layer]]
            after[:, :, layer] = (column + opening[..., sequence[layer]]).min(axis=2)
            following = np.full((rates, stages), np.inf)
            following[:, :-1] = after[:, 1:, layer]
        return after


def _without(costs: Floats) -> Floats:
    """[begin, end]: inf where a layer has no strategy, whatever it costs else."""
    missing = np.concatenate([[0], np.cumsum(~np.isfinite(costs))])
    return np.where(missing[None, :] > missing[:, None], np.inf, -np.inf)


def _times(bounds: Floats, factor: float) -> Floats:
    """Bounds in another unit; inf, which nothing reaches, stays inf even if the unit is 0."""
    return np.multiply(bounds, factor, out=bounds.copy(), where=np.isfinite(bounds))


def _least_by_class(problem: Pipeline, least: Callable[[Choices], Floats | float]) -> Floats:
    """[classes, ...] of the least over the stages' tables."""
    found: Floats = np.array([[least(c) for c in table.choices] for table in _distinct(problem.tables)]).min(axis=0)
    return found


def _distinct(tables: Sequence[Table]) -> list[Table]:
    return list({id(table): table for table in tables}.values())


def _workspaces(problem: Pipeline) -> Integers:
    """Of all strategies, ascending."""
    return np.unique(np.concatenate([c.workspace_bytes for table in problem.tables for c in table.choices]))


def _rates(problem: Pipeline, weights: Sequence[float], once_weight: float) -> list[float]:
    """Exchange rates at which strategies of the first, middle and last stage give way to smaller ones; and 0."""
    found = {0.0}
    for stage in sorted({0, len(problem.flights) // 2, len(problem.flights) - 1}):
        choices, flight = problem.tables[stage].choices, float(problem.flights[stage])
        if all(len(c.once_s) for c in choices):
            seconds = [weighed(weights, c.beats_s) + c.once_s * once_weight for c in choices]
            used = [c.fixed_bytes + flight * c.flight_bytes for c in choices]
            found |= set(exchange_rates(list(zip(seconds, used, strict=True))))
    every = sorted(found)
    return every[:: -(-len(every) // _MOST_RATES)]


def _telling(problem: Pipeline, costs: Floats, room: Floats) -> Integers:
    """[rates, stages] of the rates that bound a stage of usual content best, a column for each stage.

    `costs` [rates, stages, levels, classes], `room` [rates, stages, levels]. The usual content is the mean of the
    stages.
    """
    counts = np.bincount(problem.sequence, minlength=costs.shape[3]) / len(problem.flights)
    chosen = [np.zeros(room.shape[1:2], dtype=np.int64)]
    for more in (1.0, 1.3):
        contents = np.where(counts > 0, np.nan_to_num(costs, posinf=1e300) * counts * more, 0.0).sum(axis=3)
        best = (contents - room).argmax(axis=0)
        chosen += list(best.T)
    kept: Integers = np.sort(np.unique(np.stack(chosen), axis=0), axis=0)
    return kept


def _least(
    problem: Pipeline, weights: Sequence[float], once_weight: float, rates: Floats, levels: Sequence[Level]
) -> Floats:
    """[rates, stages, levels, classes] of the least of seconds + rate x bytes over the strategies, by workspace."""
    stages, classes = len(problem.flights), len(problem.tables[0].choices)
    found = np.empty((len(rates), stages, len(levels), classes))
    for table in _distinct(problem.tables):
        own = [stage for stage in range(stages) if problem.tables[stage] is table]
        flights = np.array([float(problem.flights[stage]) for stage in own])
        for number, c in enumerate(table.choices):
            order = np.argsort(c.workspace_bytes, kind="stable")
            ends = np.searchsorted(c.workspace_bytes[order], [level.most for level in levels], side="right")
            seconds = (weighed(weights, c.beats_s) + c.once_s * once_weight)[order]
            used = c.fixed_bytes[order] + flights[:, None] * c.flight_bytes[order]
            priced = seconds + rates[:, None, None] * used
            # The least of the strategies up to each workspace; inf before the first.
            least = np.concatenate(
                [np.full((*priced.shape[:2], 1), np.inf), np.minimum.accumulate(priced, axis=2)], axis=2
            )
            found[..., number][:, own] = least[:, :, ends]
    return found


def _least_entry_s(problem: Pipeline, weights: Sequence[float], stage: int) -> list[float]:
    """By class, the least that it takes to enter a piece of a stage that begins with it."""
    table, tier = problem.tables[stage], problem.tiers[stage]
    weight = sum(map(mul, weights, table.message_beats))
    return [weight * float(c.entry_s[:, tier].min(initial=np.inf)) for c in table.choices]


def _rooms(problem: Pipeline) -> list[int]:
    """Of each stage, the bytes that are left for all but the largest workspace, at most."""
    return [
        limit - min(int(c.workspace_bytes.min(initial=2**62)) for c in table.choices)
        for limit, table in zip(problem.limits_bytes, problem.tables, strict=True)
    ]


def _may_fit(problem: Pipeline) -> bool:
    """Whether the smallest strategy of each layer would fit; each stage of a free partition takes all that it can."""
    rooms = _rooms(problem)
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
