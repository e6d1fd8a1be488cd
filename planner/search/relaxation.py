"""Lower bounds on pipelines with memory (Lagrangian relaxation). Sees numbers only.

For any exchange rate of seconds for bytes, the least of seconds + rate x bytes over strategies and partitions, less
rate x limit for each stage, is at most the seconds of any pipeline that fits. Each stage has rates of its own, and
ranges in which its largest workspace may lie, each with the strategies and the room that it leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from operator import mul

import numpy as np
from numpy.typing import NDArray

from planner.search.exchange import Level, exchange_rates, workspace_levels
from planner.search.problem import Interval, Pipeline, distinct
from planner.search.rhythm import weighed
from planner.spec.stretches import Stretches

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
_MOST_RATES = 32
"""Exchange rates among which a bound chooses."""


class Relaxed:
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

    def multiple(self, weights: Sequence[float]) -> Relaxed:
        """The relaxation of beats with other weights; rates are not chosen anew where they are multiples of these."""
        first, own = weights[0], self._weights[0]
        if any(weight * own != first * mine for weight, mine in zip(weights, self._weights, strict=True)):
            return Relaxed(self._problem, weights, 0.0)
        other, factor = Relaxed.__new__(Relaxed), first / own
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

    def one_with_others_s(self, filled: Relaxed) -> float:
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
            # A layer without a strategy has none at any rate.
            own = self._costs[:, stage, level][:, sequence]
            missing = ~np.isfinite(own[0])
            bound = _without(missing)
            for costs, room in zip(np.where(missing, 0.0, own), self._room[:, stage, level], strict=True):
                sums = np.concatenate([[0.0], np.cumsum(costs)])
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


def _without(missing: NDArray[np.bool_]) -> Floats:
    """[begin, end]: inf where a layer has no strategy, -inf elsewhere."""
    counted = np.concatenate([[0], np.cumsum(missing)])
    return np.where(counted[None, :] > counted[:, None], np.inf, -np.inf)


def _times(bounds: Floats, factor: float) -> Floats:
    """Bounds in another unit; inf, which nothing reaches, stays inf even if the unit is 0."""
    return np.multiply(bounds, factor, out=bounds.copy(), where=np.isfinite(bounds))


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
    for table in distinct(problem.tables):
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
