"""What the layers that are not chosen yet may do to a partial choice: dominance and bounds. Sees numbers only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.search.bar import Bar
from planner.search.exchange import Level, exchange_rates, workspace_levels
from planner.search.labels import Labels, Step, in_seconds
from planner.search.pareto import beaten, undominated
from planner.search.progress import Tick
from planner.search.rhythm import filling, peaks, weighed

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
_RATES = 4
"""How many exchange rates of seconds for bytes a bound tries; any number of them is a valid bound."""


class Ahead:
    """Which labels can still become better than others, given what the layers ahead may add at most and at least."""

    def __init__(
        self, steps: Sequence[Step], transitions: Integers, tick_s: float, bar: Bar, budget: int, host_limit: int
    ) -> None:
        self._budget = budget
        self._host_limit = host_limit
        self._most_host = suffix_sums([int(step.host.max(initial=0)) for step in steps])
        self._least_host = suffix_sums([int(step.host.min()) if len(step.host) else 0 for step in steps])
        self._weights = [round(weight) for weight in bar.weights] if bar.alone else None
        # By time: the most that a change of layout costs.
        changes = transitions.reshape(-1, transitions.shape[2])
        self._change = (
            changes.max(axis=0, initial=0)
            if self._weights is None
            else (changes * np.array(self._weights)).sum(axis=1).max(initial=0, keepdims=True)
        )
        self._once = 0 if bar.alone else int(min(bar.once_s / tick_s, 2.0**62))
        self._most_memory = suffix_sums([int(step.memory.max(initial=0)) for step in steps])
        self._most_once = suffix_sums([int(step.once.max(initial=0)) for step in steps])
        self._least_workspace = suffix_maxima([int(step.workspace.min(initial=2**60)) for step in steps])
        self._most_workspace = suffix_maxima([int(step.workspace.max(initial=0)) for step in steps])

    def fit_host(self, labels: Labels, number: int) -> NDArray[np.bool_]:
        """Labels with which the layers from `number` on can still fit the host."""
        fits: NDArray[np.bool_] = labels.host + self._least_host[number] <= self._host_limit
        return fits

    def undominated(self, labels: Labels, number: int, tick: Tick) -> Integers:
        """Rows that no other with the same last layout is at least as good as, whatever the layers from `number` on do.

        Memory is compared with the least and with the most workspace ahead: in between, the difference of two labels
        changes steadily from one to the other. Memory that must fit whatever follows, and work once per step that
        other stages exceed whatever follows, counts as equal. After the last layer only times matter.
        """
        if self._weights is not None:
            times = [(labels.beats * np.array(self._weights)).sum(axis=1) + labels.once]
        else:
            times = [labels.beats, np.maximum(labels.once, self._once - self._most_once[number])]
        if number == len(self._most_memory) - 1:
            return undominated(np.column_stack(times), tick=tick)
        harmless = self._budget - self._most_memory[number]
        needed = [
            np.maximum(labels.memory + np.maximum(labels.workspace, ahead[number]), harmless)
            for ahead in (self._least_workspace, self._most_workspace)
        ]
        if self._most_host[0] > self._host_limit:
            needed.append(np.maximum(labels.host, self._host_limit - self._most_host[number]))
        values = np.column_stack([*times, *needed])
        kept = undominated(values, labels.layout, tick)
        return kept[self._close(values[kept], tick)]

    def _close(self, values: Integers, tick: Tick) -> Integers:
        """Rows that no other beats even if it changes its layout next: then it can do what the row goes on to do."""
        if not self._change.any():
            return np.arange(len(values))
        best = values[undominated(values, tick=tick)]
        best[:, : len(self._change)] += self._change
        return np.flatnonzero(~beaten(values, best, tick))


class _Within(NamedTuple):
    """The layers of a stage whose largest workspace is in one range: sums from each layer on."""

    level: Level
    least_memory: list[int]
    rates: list[float]
    whole: list[float]
    """By exchange rate: the least of weighted seconds + rate x bytes of all layers, changes of layout apart."""
    ahead: list[Floats]
    """By exchange rate, [layers + 1, layouts]: the same of the layers from each on, after a layer of each layout."""


class Rest:
    """Lower bounds on the step from a label and the layers that it has not chosen yet.

    Two bounds. The bar's own, with sums of minima, memory apart. And with the bar's weights on beats and work once per
    step: for any exchange rate, sum of min(weighted seconds + rate x bytes) - rate x bytes left is at most what the
    remaining layers add (Lagrangian relaxation of the memory constraint), changes of layout included; for each range
    that the largest workspace of the stage may lie in, with the options and the room that it leaves.
    """

    def __init__(self, steps: Sequence[Step], changes_s: Floats, tick_s: float, bar: Bar, budget: int) -> None:
        self._tick_s, self._bar, self._budget = tick_s, bar, budget
        distinct = {id(step): step for step in steps}
        order = [id(step) for step in steps]
        self._once = suffix_sums([float(distinct[key].once_s.min(initial=np.inf)) for key in order])
        slowest = {key: peaks(bar.rhythm, step.beats_s).min(axis=0, initial=np.inf) for key, step in distinct.items()}
        filled = {key: float(filling(bar.rhythm, step.beats_s).min(initial=np.inf)) for key, step in distinct.items()}
        self._peaks = suffix_sums([slowest[key] for key in order], np.zeros(len(bar.rhythm.peaks)))
        self._filling = suffix_sums([filled[key] for key in order])
        weighted = {key: bar.weigh(step.beats_s, step.once_s) for key, step in distinct.items()}
        rates = exchange_rates([(weighted[key], distinct[key].memory) for key in distinct])
        # [layouts, layouts] of what a change adds
        priced = _Priced(steps, weighted, weighed(bar.weights, changes_s))
        if _never_full(priced, budget, bar.best_s - bar.others_s):
            # Memory is worth nothing here.
            rates = [0.0]
        levels = workspace_levels(_possible(priced, rates, budget, bar.best_s - bar.others_s))
        if rates == [0.0] and levels:
            levels = [Level(levels[0].least, levels[-1].most)]
        self._within = [_within(priced, level, rates, budget) for level in levels]

    def useful(self, step: Step) -> Integers:
        """The options of a layer with which the stage may still pass: the bound with one layer's option fixed."""
        weighted = self._bar.weigh(step.beats_s, step.once_s)
        least = np.full(len(weighted), np.inf)
        for within in self._within:
            room = self._budget - np.maximum(step.workspace, within.level.least)
            inside = step.workspace <= within.level.most
            bound = np.full(len(weighted), -np.inf)
            for rate, whole in zip(within.rates, within.whole, strict=True):
                priced = weighted + rate * step.memory
                bound = np.maximum(bound, whole - rate * room + priced - priced[inside].min(initial=np.inf))
            least = np.minimum(least, np.where(inside, bound, np.inf))
        return np.flatnonzero(least + self._bar.others_s < self._bar.best_s)

    def at_least_s(self, labels: Labels, number: int, tick: Tick) -> Floats:
        """[labels] of the step once the layers from `number` on are chosen; inf where they cannot fit."""
        beats_s, once_s = in_seconds(labels.beats, self._tick_s), in_seconds(labels.once, self._tick_s)
        found: Floats = self._bar.at_least_s(
            peaks(self._bar.rhythm, beats_s) + self._peaks[number],
            filling(self._bar.rhythm, beats_s) + self._filling[number],
            once_s + self._once[number],
        )
        # The dearer bound only where the first lets a label pass.
        open_rows = np.flatnonzero(found < self._bar.best_s)
        own_s = self._bar.weigh(beats_s[open_rows], once_s[open_rows]) + self._bar.others_s
        rest = self._rest_s(labels.rows(open_rows), number, tick)
        found[open_rows] = np.maximum(found[open_rows], own_s + rest)
        return found

    def _rest_s(self, labels: Labels, number: int, tick: Tick) -> Floats:
        """[labels] of what the layers from `number` on add to the weighed seconds; inf where they cannot fit."""
        rest = np.full(len(labels.once), np.inf)
        for within in self._within:
            tick()
            left = self._budget - labels.memory - np.maximum(labels.workspace, within.level.least)
            fits = (labels.workspace <= within.level.most) & (left >= within.least_memory[number])
            rows = np.flatnonzero(fits)
            layouts, left = labels.layout[rows], left[rows]
            bound = np.full(len(rows), -np.inf)
            for rate, ahead in zip(within.rates, within.ahead, strict=True):
                np.maximum(bound, ahead[number][layouts] - rate * left, out=bound)
            rest[rows] = np.minimum(rest[rows], bound)
        return rest


class _Priced(NamedTuple):
    """The layers of a stage in one measure of seconds."""

    steps: Sequence[Step]
    weighted: dict[int, Floats]
    """By step: [options] seconds."""
    changes: Floats
    """[layouts, layouts] seconds, from the layout before to the one after."""


def _never_full(priced: _Priced, budget: int, most_s: float) -> bool:
    """Whether all options with which the stage may stay below `most_s`, memory apart, fit together."""
    distinct = {id(step): step for step in priced.steps}
    least = {key: float(priced.weighted[key].min(initial=np.inf)) for key in distinct}
    counts = Counter(map(id, priced.steps))
    spare = most_s - sum(count * least[key] for key, count in counts.items())
    quick = {key: priced.weighted[key] - least[key] < spare for key in distinct}
    memory = sum(count * int(distinct[key].memory[quick[key]].max(initial=0)) for key, count in counts.items())
    return memory + max(int(step.workspace[quick[key]].max(initial=0)) for key, step in distinct.items()) <= budget


def _possible(priced: _Priced, rates: Sequence[float], budget: int, most_s: float) -> Integers:
    """Workspaces, ascending, that the largest of a stage may be if the stage is to stay below `most_s`."""
    distinct = {id(step): step for step in priced.steps}
    values = np.unique(np.concatenate([step.workspace for step in distinct.values()]))
    every = np.array(rates)[:, None]
    wholes = np.zeros((len(rates), len(values)))
    for key, count in Counter(map(id, priced.steps)).items():
        step, order = distinct[key], np.argsort(distinct[key].workspace, kind="stable")
        cost = (priced.weighted[key] + every * step.memory)[:, order]
        least = np.concatenate([np.full((len(rates), 1), np.inf), np.minimum.accumulate(cost, axis=1)], axis=1)
        wholes += count * least[:, np.searchsorted(step.workspace[order], values, side="right")]
    possible: Integers = values[(wholes - every * (budget - values)).max(axis=0, initial=-np.inf) < most_s]
    return possible


def _within(priced: _Priced, level: Level, rates: Sequence[float], budget: int) -> _Within:
    """Sums for one range of workspace, at the few rates that bound the whole stage best."""
    distinct = {id(step): step for step in priced.steps}
    inside = {key: step.workspace <= level.most for key, step in distinct.items()}
    memory = {key: int(step.memory[inside[key]].min(initial=2**60)) for key, step in distinct.items()}
    counts = Counter(map(id, priced.steps))
    wholes = [
        sum(
            count * float((priced.weighted[key] + rate * distinct[key].memory)[inside[key]].min(initial=np.inf))
            for key, count in counts.items()
        )
        for rate in rates
    ]
    best = sorted(range(len(rates)), key=lambda i: rates[i] * (budget - level.least) - wholes[i])[:_RATES]
    return _Within(
        level=level,
        least_memory=suffix_sums([memory[id(step)] for step in priced.steps]),
        rates=[rates[i] for i in best],
        whole=[wholes[i] for i in best],
        ahead=[_ahead(priced, inside, rates[i]) for i in best],
    )


def _ahead(priced: _Priced, inside: dict[int, NDArray[np.bool_]], rate: float) -> Floats:
    """[layers + 1, layouts] of the least of seconds + rate x bytes of the layers from each on, by the layout before."""
    found = np.zeros((len(priced.steps) + 1, len(priced.changes)))
    for number in reversed(range(len(priced.steps))):
        step, allowed = priced.steps[number], inside[id(priced.steps[number])]
        layout = step.layout[allowed]
        cost = priced.weighted[id(step)][allowed] + rate * step.memory[allowed] + found[number + 1][layout]
        # By layout after it, then by layout before it.
        after = np.full(len(priced.changes), np.inf)
        np.minimum.at(after, layout, cost)
        found[number] = (priced.changes + after).min(axis=1) if step.follows else after.min(initial=np.inf)
    return found


def suffix_sums(values: Sequence[Any], zero: Any = 0) -> list[Any]:
    """Sums of the values from each index on; one more entry, zero, at the end."""
    sums = [zero]
    for value in reversed(values):
        sums.append(sums[-1] + value)
    return sums[::-1]


def suffix_maxima(values: Sequence[int]) -> list[int]:
    """Largest of the values from each index on; one more entry, 0, at the end."""
    maxima = [0]
    for value in reversed(values):
        maxima.append(max(maxima[-1], value))
    return maxima[::-1]
