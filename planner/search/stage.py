"""The exact choice of a strategy for each layer of one stage, under the memory of its devices.

    minimise   (beats, work once per step), as a Pareto front
    over       one strategy for each layer of the stage
    subject to fixed + in flight x activations + largest workspace + buffers <= limit

Labels (partial choices) grow layer by layer; a label goes when another with the same last layout is no worse in every
number, or when no completion can fit or beat the bar. Nothing is rounded: bytes are whole numbers. Sees numbers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.search.pareto import undominated
from planner.search.table import Table

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

_SLOPES = 6
"""How many exchange rates of seconds for bytes the memory bound tries; any number of them is a valid bound."""


class Bar(NamedTuple):
    """What a stage must allow the whole plan to beat: step time as in planner.cost.pipeline.step_s, strictly.

    The other stages enter with lower bounds.
    """

    best_s: float
    steady: float
    """Beats of the slowest stage in a step: micro-batches - 1 / virtual stages."""
    virtual: int
    others_s: float
    """Sum of the beats of all other stages, at least."""
    slowest_s: Floats
    """[rhythms] of the slowest stage, at least."""
    once_s: float
    """Longest work once per step, at least."""

    def passed(self, beats_s: Floats, once_s: Floats) -> Flags:
        """Which stages [rows, rhythms], [rows] can be part of a plan that beats the best."""
        slowest = np.maximum(beats_s, self.slowest_s).sum(axis=1)
        filling = (beats_s.sum(axis=1) + self.others_s) / self.virtual
        flags: Flags = self.steady * slowest + filling + np.maximum(once_s, self.once_s) < self.best_s
        return flags


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
    beats_s: Floats
    once_s: Floats
    memory: Integers
    """Bytes without workspace, times the denominator of the number in flight."""
    workspace: Integers
    layout: Integers
    chosen: Integers

    def rows(self, kept: NDArray[np.int64] | Flags) -> _Labels:
        return _Labels(*(column[kept] for column in self))  # type: ignore[arg-type]


def solve_stage(positions: Sequence[Position], table: Table, flight: Fraction, limit_bytes: int, bar: Bar) -> Front:
    """All undominated (beats, once) of a stage that fits in `limit_bytes` and can pass the bar; maybe none.

    `flight`: micro-batches in flight. Raises nothing; an empty front means that no choice fits or passes.
    """
    budget = limit_bytes * flight.denominator
    distinct = {position: _step(position, table, flight) for position in positions}
    steps = [distinct[position] for position in positions]
    rest = _Rest(steps)
    labels = _start(steps[0].beats_s.shape[1], len(positions))
    for number, step in enumerate(steps):
        grown = _grow(labels, step, table, number)
        labels = grown.rows(rest.may_pass(grown, number + 1, budget, bar, flight.denominator))
        final = number == len(steps) - 1
        labels = labels.rows(_undominated(labels, final))
    return Front(labels.beats_s, labels.once_s, labels.chosen)


class _Step(NamedTuple):
    beats_s: Floats
    once_s: Floats
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
        message = choices.entry_s[:, position.entered, None]
        beats = beats + message * (2 if beats.shape[1] == 1 else 1)
        memory = memory + choices.entry_bytes * flight.denominator
    follows = position.entered is None and not position.first
    return _Step(beats, choices.once_s, memory, choices.workspace_bytes * flight.denominator, choices.layout, follows)


def _start(rhythms: int, layers: int) -> _Labels:
    zero = np.zeros(1, dtype=np.int64)
    return _Labels(np.zeros((1, rhythms)), np.zeros(1), zero, zero, zero, np.zeros((1, layers), dtype=np.int64))


def _grow(labels: _Labels, step: _Step, table: Table, number: int) -> _Labels:
    """Every label with every strategy for the next layer."""
    rows, options = len(labels.once_s), len(step.once_s)
    old = np.repeat(np.arange(rows), options)
    new = np.tile(np.arange(options), rows)
    beats = labels.beats_s[old] + step.beats_s[new]
    if step.follows:
        beats = beats + table.transition_s[labels.layout[old], step.layout[new]]
    chosen = labels.chosen[old]
    chosen[:, number] = new
    return _Labels(
        beats,
        labels.once_s[old] + step.once_s[new],
        labels.memory[old] + step.memory[new],
        np.maximum(labels.workspace[old], step.workspace[new]),
        step.layout[new],
        chosen,
    )


def _undominated(labels: _Labels, final: bool) -> NDArray[np.int64]:
    """Rows to keep; at the end memory and layout matter no more."""
    if final:
        return undominated(np.column_stack([labels.beats_s, labels.once_s]))
    values = np.column_stack([labels.beats_s, labels.once_s, labels.memory, labels.workspace])
    return undominated(values, labels.layout[:, None].astype(np.float64))


class _Rest:
    """Lower bounds on what the layers from a number on still add to a label.

    For any exchange rate, sum of min(seconds + rate x bytes) - rate x bytes left is a lower bound on the seconds of
    the remaining layers (Lagrangian relaxation of the memory constraint); rate 0 is plain sum of minima.
    """

    def __init__(self, steps: Sequence[_Step]) -> None:
        distinct = {id(step): step for step in steps}
        smallest = {key: int(step.memory.min(initial=2**62)) for key, step in distinct.items()}
        quickest = {key: float(step.once_s.min(initial=np.inf)) for key, step in distinct.items()}
        self._memory = _suffix_sums([smallest[id(step)] for step in steps])
        self._once = _suffix_sums([quickest[id(step)] for step in steps])
        self._rates = exchange_rates([(step.beats_s.sum(axis=1), step.memory) for step in distinct.values()])
        # [rates][rhythms][from layer]
        self._priced = [
            [_priced(distinct, steps, rhythm, rate) for rhythm in range(steps[0].beats_s.shape[1])]
            for rate in self._rates
        ]

    def may_pass(self, labels: _Labels, number: int, budget: int, bar: Bar, denominator: int) -> Flags:
        """Which labels may still fit and pass the bar once the layers from `number` on are chosen."""
        left = budget - labels.memory - labels.workspace
        fits = left >= self._memory[number]
        beats = labels.beats_s + self._beats_at_least(number, np.maximum(left, 0))
        flags: Flags = fits & bar.passed(beats, labels.once_s + self._once[number])
        return flags

    def _beats_at_least(self, number: int, left: Integers) -> Floats:
        bounds = [
            np.column_stack([sums[number] - rate * left for sums in per_rhythm])
            for rate, per_rhythm in zip(self._rates, self._priced, strict=True)
        ]
        best: Floats = np.maximum.reduce([np.zeros_like(bounds[0]), *bounds])
        return best


def _priced(distinct: dict[int, _Step], steps: Sequence[_Step], rhythm: int, rate: float) -> list[float]:
    cheapest = {
        key: float((step.beats_s[:, rhythm] + rate * step.memory).min(initial=np.inf)) for key, step in distinct.items()
    }
    return _suffix_sums([cheapest[id(step)] for step in steps])


def _suffix_sums(values: Sequence[float]) -> list[float]:
    """Sums of the values from each index on; one more entry, 0, at the end."""
    sums = [0.0]
    for value in reversed(values):
        sums.append(sums[-1] + value)
    return sums[::-1]


def exchange_rates(options: Sequence[tuple[Floats, Integers]]) -> list[float]:
    """Seconds per byte at which the fastest strategies give way to smaller ones, of the layers with most choice; and 0.

    The slopes of the lower convex hull of (bytes, seconds).
    """
    rates = {0.0}
    for seconds, memory in options:
        order = np.lexsort((seconds, memory))
        hull: list[tuple[float, float]] = []
        for byte, second in zip(memory[order], seconds[order], strict=True):
            point = (float(byte), float(second))
            while len(hull) >= 2 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], point):
                hull.pop()
            if not hull or point[1] < hull[-1][1]:
                hull.append(point)
        rates |= {-_slope(a, b) for a, b in pairwise(hull) if b[0] > a[0]}
    ordered = sorted(rates)
    if len(ordered) <= _SLOPES:
        return ordered
    picked = np.linspace(0, len(ordered) - 1, _SLOPES).round().astype(int)
    return [ordered[i] for i in picked]


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0]) if b[0] > a[0] else -np.inf
