"""The exact choice of a strategy for each layer of one stage, under the memory of its devices.

    minimise   (beats, work once per step), as a Pareto front
    over       one strategy for each layer of the stage
    subject to fixed + in flight x activations + largest workspace + buffers <= limit

Labels (partial choices) grow layer by layer; a label goes when another with the same last layout is no worse in every
number, or when no completion can fit or beat the bar. Nothing is rounded: bytes are whole numbers. Sees numbers only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from operator import add
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.pipeline import Rhythm
from planner.search.pareto import beaten, undominated
from planner.search.rhythm import all_peaks, filling, peaks, weighed
from planner.search.table import Table

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_RATES = 4
"""How many exchange rates of seconds for bytes the memory bound tries; any number of them is a valid bound."""

_SPARE = 16
"""How many times its width a quick pass looks for labels that others beat."""
_LEVELS = 8
"""How many ranges of workspace the memory bound tells apart."""


class Bar(NamedTuple):
    """What a stage must allow the whole plan to beat: step time as in planner.cost.pipeline.step_s, strictly.

    What is not chosen yet enters with lower bounds.
    """

    best_s: float
    rhythm: Rhythm
    others_s: float
    """Filling of all other stages, at least."""
    total_s: float
    """Filling of all stages, at least."""
    slowest_s: Floats
    """[peaks] of the slowest stage, at least."""
    slowest_total_s: float
    """Sum of the peaks, each of its slowest stage, at least."""
    once_s: float
    """Longest work once per step, at least."""
    alone: bool
    """The stage is the whole pipeline."""

    @property
    def weights(self) -> tuple[float, ...]:
        """[beats]: what the beats of a stage that is the slowest count in a step."""
        return tuple(map(add, all_peaks(self.rhythm), self.rhythm.filling))

    def at_least_s(self, peaks_s: Floats, filling_s: Floats, once_s: Floats) -> Floats:
        """[rows] of any step with a stage of these peaks [rows, peaks], filling and work once per step [rows]."""
        slowest = np.maximum(np.maximum(peaks_s, self.slowest_s).sum(axis=1), self.slowest_total_s)
        filled = np.maximum(filling_s + self.others_s, self.total_s)
        bound: Floats = slowest + filled + np.maximum(once_s, self.once_s)
        return bound

    def weigh(self, beats_s: Floats, once_s: Floats) -> Floats:
        """[rows] of what a stage adds to a step in which it is the slowest: no more than `at_least_s` counts for it."""
        return weighed(self.weights, beats_s) + once_s


class Position(NamedTuple):
    """One layer of a stage."""

    class_number: int
    entered: int | None
    """Tier of links over which its activation arrives from another stage; None: from the layer before it."""
    first: bool = False
    """The first layer of the model: nothing arrives."""


class Front(NamedTuple):
    """Undominated choices for a stage, a row each."""

    beats_s: Floats
    once_s: Floats
    chosen: Integers
    """[rows, layers]: row in the Choices of the layer's class."""


class _Labels(NamedTuple):
    """Choices for the first layers of a stage, a row each."""

    beats: Integers
    once: Integers
    memory: Integers
    """Bytes without workspace, times the denominator of the number in flight."""
    workspace: Integers
    layout: Integers
    chosen: Integers

    def rows(self, kept: Integers) -> _Labels:
        """Only these rows."""
        return _Labels(*(column[kept] for column in self))


class Room(NamedTuple):
    """Memory of a stage."""

    flight: Fraction
    """Micro-batches in flight."""
    limit_bytes: int


def solve_stage(
    positions: Sequence[Position],
    table: Table,
    room: Room,
    bar: Bar,
    spend: Callable[[int], None],
    width: int | None = None,
) -> Front:
    """All undominated (beats, once) of a stage that fits its room and can pass the bar; maybe none.

    `spend(comparisons)` is called before each layer's comparison of labels; it may raise to stop the work. `width`:
    keep only so many labels after each layer, those of least bound; the front is then feasible, but not all of it.
    """
    flight, budget = room.flight, room.limit_bytes * room.flight.denominator
    distinct = {position: _step(position, table, flight) for position in positions}
    tick_s = _tick_s([distinct[position] for position in positions], table, bar)
    ticked = {position: _in_ticks(step, tick_s) for position, step in distinct.items()}
    steps = [ticked[position] for position in positions]
    transitions = np.rint(table.transition_s / tick_s).astype(np.int64)
    rest = _Rest(steps, table.transition_s, tick_s, bar, budget)
    useful = {id(step): rest.useful(step) for step in ticked.values()}
    ahead = _Ahead([_of(step, useful[id(step)]) for step in steps], transitions, tick_s, bar, budget)
    labels = _start(steps[0].beats.shape[1], len(positions))
    for number, step in enumerate(steps):
        grown, old, new = _grow(labels, step, useful[id(step)], transitions)
        bounds = rest.at_least_s(grown, number + 1)
        kept = np.flatnonzero(bounds < bar.best_s)
        if width is not None:
            kept = _least(kept, bounds, width * _SPARE)
        spend(len(kept) * len(labels.once))
        kept = kept[ahead.undominated(grown.rows(kept), number + 1)]
        if width is not None:
            kept = _least(kept, bounds, width)
        chosen = labels.chosen[old[kept]]
        chosen[:, number] = new[kept]
        labels = grown.rows(kept)._replace(chosen=chosen)
    return Front(_seconds(labels.beats, tick_s), _seconds(labels.once, tick_s), labels.chosen)


def _least(rows: Integers, bounds: Floats, count: int) -> Integers:
    """The rows of least bound, as many as `count`, in order."""
    if len(rows) <= count:
        return rows
    return np.sort(rows[np.argsort(bounds[rows], kind="stable")[:count]])


class _Step(NamedTuple):
    """The options of one layer."""

    beats_s: Floats
    once_s: Floats
    beats: Integers
    """In ticks: sums of whole numbers are equal in any order, so that equal choices are seen to be equal."""
    once: Integers
    memory: Integers
    workspace: Integers
    layout: Integers
    follows: bool
    """Takes its activation from the layer before, so that a change of layout costs."""


def _step(position: Position, table: Table, flight: Fraction) -> _Step:
    choices = table.choices[position.class_number]
    beats = choices.beats_s
    memory = choices.fixed_bytes * flight.denominator + choices.flight_bytes * flight.numerator
    if position.entered is not None:
        beats = beats + choices.entry_s[:, position.entered, None] * np.array(table.message_beats)
        memory = memory + choices.entry_bytes * flight.denominator + choices.carried_bytes * flight.numerator
    follows = position.entered is None and not position.first
    none = np.zeros(0, dtype=np.int64)
    workspace = choices.workspace_bytes * flight.denominator
    return _Step(beats, choices.once_s, none, none, memory, workspace, choices.layout, follows)


def _tick_s(steps: Sequence[_Step], table: Table, bar: Bar) -> float:
    """A unit of time in which no sum over a step overflows 63 bits, some 10^-18 of the longest possible step."""
    beats = sum(float(step.beats_s.sum(axis=1).max(initial=0.0)) for step in steps)
    beats += len(steps) * float(table.transition_s.sum(axis=2).max(initial=0.0))
    once = sum(float(step.once_s.max(initial=0.0)) for step in steps)
    return (max(1.0, *bar.weights) * beats + once) / 2**61 or 1.0


def _in_ticks(step: _Step, tick_s: float) -> _Step:
    beats, once = (np.rint(seconds / tick_s).astype(np.int64) for seconds in (step.beats_s, step.once_s))
    return step._replace(beats=beats, once=once)


def _seconds(ticks: Integers, tick_s: float) -> Floats:
    seconds: Floats = ticks.astype(np.float64) * tick_s
    return seconds


def _start(rhythms: int, layers: int) -> _Labels:
    zero = np.zeros(1, dtype=np.int64)
    return _Labels(
        np.zeros((1, rhythms), dtype=np.int64), zero, zero, zero, zero, np.zeros((1, layers), dtype=np.int64)
    )


def _grow(labels: _Labels, step: _Step, useful: Integers, transitions: Integers) -> tuple[_Labels, Integers, Integers]:
    """Every label with every useful option for the next layer; the label and the option that each row comes from."""
    rows = len(labels.once)
    old = np.repeat(np.arange(rows), len(useful))
    new = np.tile(useful, rows)
    beats = labels.beats[old] + step.beats[new]
    if step.follows:
        beats = beats + transitions[labels.layout[old], step.layout[new]]
    grown = _Labels(
        beats,
        labels.once[old] + step.once[new],
        labels.memory[old] + step.memory[new],
        np.maximum(labels.workspace[old], step.workspace[new]),
        step.layout[new],
        np.zeros((len(old), 0), dtype=np.int64),
    )
    return grown, old, new


def _of(step: _Step, rows: Integers) -> _Step:
    """Only these options."""
    return step._replace(
        beats_s=step.beats_s[rows],
        once_s=step.once_s[rows],
        beats=step.beats[rows],
        once=step.once[rows],
        memory=step.memory[rows],
        workspace=step.workspace[rows],
        layout=step.layout[rows],
    )


class _Ahead:
    """Which labels can still become better than others, given what the layers ahead may add at most and at least."""

    def __init__(self, steps: Sequence[_Step], transitions: Integers, tick_s: float, bar: Bar, budget: int) -> None:
        self._budget = budget
        self._weights = [round(weight) for weight in bar.weights] if bar.alone else None
        # By time: the most that a change of layout costs.
        changes = transitions.reshape(-1, transitions.shape[2])
        self._change = (
            changes.max(axis=0, initial=0)
            if self._weights is None
            else (changes * np.array(self._weights)).sum(axis=1).max(initial=0, keepdims=True)
        )
        self._once = 0 if bar.alone else int(min(bar.once_s / tick_s, 2.0**62))
        self._most_memory = _suffix_sums([int(step.memory.max(initial=0)) for step in steps])
        self._most_once = _suffix_sums([int(step.once.max(initial=0)) for step in steps])
        self._least_workspace = _suffix_maxima([int(step.workspace.min(initial=2**60)) for step in steps])
        self._most_workspace = _suffix_maxima([int(step.workspace.max(initial=0)) for step in steps])

    def undominated(self, labels: _Labels, number: int) -> Integers:
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
            return undominated(np.column_stack(times))
        harmless = self._budget - self._most_memory[number]
        needed = [
            np.maximum(labels.memory + np.maximum(labels.workspace, ahead[number]), harmless)
            for ahead in (self._least_workspace, self._most_workspace)
        ]
        values = np.column_stack([*times, *needed])
        kept = undominated(values, labels.layout)
        return kept[self._close(values[kept])]

    def _close(self, values: Integers) -> Integers:
        """Rows that no other beats even if it changes its layout next: then it can do what the row goes on to do."""
        if not self._change.any():
            return np.arange(len(values))
        best = values[undominated(values)]
        best[:, : len(self._change)] += self._change
        return np.flatnonzero(~beaten(values, best))


class _Within(NamedTuple):
    """The layers of a stage whose largest workspace is in one range: sums from each layer on."""

    level: Level
    least_memory: list[int]
    rates: list[float]
    whole: list[float]
    """By exchange rate: the least of weighted seconds + rate x bytes of all layers, changes of layout apart."""
    ahead: list[Floats]
    """By exchange rate, [layers + 1, layouts]: the same of the layers from each on, after a layer of each layout."""


class _Rest:
    """Lower bounds on the step from a label and the layers that it has not chosen yet.

    Two bounds. The bar's own, with sums of minima, memory apart. And with the bar's weights on beats and work once per
    step: for any exchange rate, sum of min(weighted seconds + rate x bytes) - rate x bytes left is at most what the
    remaining layers add (Lagrangian relaxation of the memory constraint), changes of layout included; for each range
    that the largest workspace of the stage may lie in, with the options and the room that it leaves.
    """

    def __init__(self, steps: Sequence[_Step], changes_s: Floats, tick_s: float, bar: Bar, budget: int) -> None:
        self._tick_s, self._bar, self._budget = tick_s, bar, budget
        distinct = {id(step): step for step in steps}
        order = [id(step) for step in steps]
        self._once = _suffix_sums([float(distinct[key].once_s.min(initial=np.inf)) for key in order])
        slowest = {key: peaks(bar.rhythm, step.beats_s).min(axis=0, initial=np.inf) for key, step in distinct.items()}
        filled = {key: float(filling(bar.rhythm, step.beats_s).min(initial=np.inf)) for key, step in distinct.items()}
        self._peaks = _suffix_sums([slowest[key] for key in order], np.zeros(len(bar.rhythm.peaks)))
        self._filling = _suffix_sums([filled[key] for key in order])
        weighted = {key: bar.weigh(step.beats_s, step.once_s) for key, step in distinct.items()}
        rates = exchange_rates([(weighted[key], distinct[key].memory) for key in distinct])
        # [layouts, layouts] of what a change adds
        priced = _Priced(steps, weighted, weighed(bar.weights, changes_s))
        levels = workspace_levels(_possible(priced, rates, budget, bar.best_s - bar.others_s))
        self._within = [_within(priced, level, rates, budget) for level in levels]

    def useful(self, step: _Step) -> Integers:
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

    def at_least_s(self, labels: _Labels, number: int) -> Floats:
        """[labels] of the step once the layers from `number` on are chosen; inf where they cannot fit."""
        beats_s, once_s = _seconds(labels.beats, self._tick_s), _seconds(labels.once, self._tick_s)
        plain = self._bar.at_least_s(
            peaks(self._bar.rhythm, beats_s) + self._peaks[number],
            filling(self._bar.rhythm, beats_s) + self._filling[number],
            once_s + self._once[number],
        )
        rest = np.full(len(once_s), np.inf)
        for within in self._within:
            left = self._budget - labels.memory - np.maximum(labels.workspace, within.level.least)
            bound = np.max(
                [
                    ahead[number][labels.layout] - rate * left
                    for rate, ahead in zip(within.rates, within.ahead, strict=True)
                ],
                axis=0,
            )
            fits = (labels.workspace <= within.level.most) & (left >= within.least_memory[number])
            rest = np.minimum(rest, np.where(fits, bound, np.inf))
        both: Floats = np.maximum(plain, self._bar.weigh(beats_s, once_s) + rest + self._bar.others_s)
        return both


class _Priced(NamedTuple):
    """The layers of a stage in one measure of seconds."""

    steps: Sequence[_Step]
    weighted: dict[int, Floats]
    """By step: [options] seconds."""
    changes: Floats
    """[layouts, layouts] seconds, from the layout before to the one after."""


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
        least_memory=_suffix_sums([memory[id(step)] for step in priced.steps]),
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


def _suffix_sums(values: Sequence[Any], zero: Any = 0) -> list[Any]:
    """Sums of the values from each index on; one more entry, zero, at the end."""
    sums = [zero]
    for value in reversed(values):
        sums.append(sums[-1] + value)
    return sums[::-1]


def _suffix_maxima(values: Sequence[int]) -> list[int]:
    """Largest of the values from each index on; one more entry, 0, at the end."""
    maxima = [0]
    for value in reversed(values):
        maxima.append(max(maxima[-1], value))
    return maxima[::-1]


def exchange_rates(options: Sequence[tuple[Floats, NDArray[Any]]]) -> list[float]:
    """Seconds per byte at which the fastest strategies of (seconds, bytes) give way to smaller ones, ascending; and 0.

    The slopes of the lower convex hull of (bytes, seconds).
    """
    rates = {0.0}
    for seconds, memory in options:
        order = np.lexsort((seconds, memory))
        quicker = seconds[order] < np.minimum.accumulate(np.concatenate([[np.inf], seconds[order]]))[:-1]
        hull: list[tuple[float, float]] = []
        for byte, second in zip(memory[order][quicker].tolist(), seconds[order][quicker].tolist(), strict=True):
            while len(hull) >= 2 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], (byte, second)):
                hull.pop()
            hull.append((float(byte), second))
        rates |= {-_slope(a, b) for a, b in pairwise(hull) if b[0] > a[0]}
    return sorted(rates)


class Level(NamedTuple):
    """Workspaces of a stage that bounds treat as one."""

    least: int
    """The smallest, which such a stage needs in any case."""
    most: int
    """The largest: strategies that need more are not on such a stage."""


def workspace_levels(values: Integers) -> list[Level]:
    """Workspaces, ascending, in a few ranges; the largest workspace of a stage is in one of them."""
    if not len(values):
        return []
    places = np.unique(np.linspace(0, len(values), _LEVELS + 1).astype(np.int64)[1:])
    places = places[places > 0]
    first = np.concatenate([[0], places[:-1]])
    return [Level(int(values[low]), int(values[high - 1])) for low, high in zip(first, places, strict=True)]


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0]) if b[0] > a[0] else -np.inf
