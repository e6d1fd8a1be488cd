"""Uniform plans: one strategy for all blocks. Quick to price all at once; they start the exact search well."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.search.bounds import Pipeline
from planner.search.rhythm import filling, peaks
from planner.search.table import Choices, Table
from planner.spec.strategy import Recompute, Strategy

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Uniform(NamedTuple):
    """All uniform choices for a table, a row each: for each class the row of its Choices."""

    rows: Integers
    """[uniform choices, classes]."""
    degrees: Integers
    """[uniform choices]: number of the set of degrees; equal for choices that differ in sharding and recomputation."""
    names: tuple[tuple[object, ...], ...]
    """The sets of degrees: axes and experts."""


class Priced(NamedTuple):
    """Uniform plans of one pipeline problem."""

    step_s: Floats
    missing_bytes: Integers
    """What the fullest stage lacks; 0 if the plan fits."""
    fullest: Integers
    """The stage that lacks most."""


def uniform_choices(table: Table, sequence: Sequence[int]) -> Uniform:
    """Choices with equal axes and sharding in all layers; recomputation and experts wherever a layer has them."""
    leader = max(dict.fromkeys(sequence), key=lambda number: _leads(table.choices[number], sequence.count(number)))
    index = [{_key(strategy): row for row, strategy in enumerate(choices.strategies)} for choices in table.choices]
    rows = []
    degrees = []
    known: dict[tuple[object, ...], int] = {}
    for strategy in table.choices[leader].strategies:
        row = [_match(_key(strategy), found) for found in index]
        if None not in row:
            rows.append(row)
            degrees.append(known.setdefault((strategy.axes, strategy.experts), len(known)))
    shape = (len(rows), len(table.choices))
    return Uniform(np.array(rows, dtype=np.int64).reshape(shape), np.array(degrees, dtype=np.int64), tuple(known))


def _leads(choices: Choices, count: int) -> tuple[bool, int]:
    """The layers that name a uniform plan: those with experts, else the most frequent."""
    return any(strategy.experts for strategy in choices.strategies), count


def fastest_by_degrees(uniform: Uniform, priced: Priced) -> list[int]:
    """For each set of degrees, the row of its fastest plan that fits; the fastest of all first."""
    fitting = np.flatnonzero(priced.missing_bytes == 0)
    order = fitting[np.lexsort((priced.step_s[fitting], uniform.degrees[fitting]))]
    _, first = np.unique(uniform.degrees[order], return_index=True)
    best = order[first]
    ranked: list[int] = best[np.argsort(priced.step_s[best], kind="stable")].tolist()
    return ranked


def price_uniform(problem: Pipeline, uniform: Uniform, stages: Sequence[Sequence[tuple[int, int]]]) -> Priced:
    """Price all uniform choices on the given stretches of each stage; layouts never change inside a stage."""
    table, sequence = problem.table, np.array(problem.sequence)
    beats = []
    once = []
    missing = []
    for number, stretches in enumerate(stages):
        layers = np.concatenate([np.arange(first, end) for first, end in stretches])
        counts = np.bincount(sequence[layers], minlength=len(table.choices))
        entered = [int(sequence[first]) for first, _ in stretches if first > 0]
        stage = _stage(problem, uniform, counts, entered, number)
        beats.append(stage[0])
        once.append(stage[1])
        missing.append(stage[2])
    all_beats, all_missing = np.stack(beats), np.stack(missing)
    slowest = peaks(problem.rhythm, all_beats).max(axis=0).sum(axis=1)
    step = slowest + filling(problem.rhythm, all_beats).sum(axis=0) + np.stack(once).max(axis=0)
    return Priced(step, np.maximum(all_missing.max(axis=0), 0), all_missing.argmax(axis=0))


def _stage(
    problem: Pipeline, uniform: Uniform, counts: NDArray[np.intp], entered: Sequence[int], number: int
) -> tuple[Floats, Floats, Integers]:
    """(beats, once, missing bytes) of one stage under every uniform choice."""
    flight = problem.flights[number]
    size = len(uniform.rows)
    beats = np.zeros((size, problem.table.choices[0].beats_s.shape[1]))
    once = np.zeros(size)
    fixed = np.zeros(size, dtype=np.int64)
    flying = np.zeros(size, dtype=np.int64)
    workspace = np.zeros(size, dtype=np.int64)
    for present in np.flatnonzero(counts).tolist():
        choices, rows, count = problem.table.choices[present], uniform.rows[:, present], counts[present]
        beats += choices.beats_s[rows] * count
        once += choices.once_s[rows] * count
        fixed += choices.fixed_bytes[rows] * count
        flying += choices.flight_bytes[rows] * count
        workspace = np.maximum(workspace, choices.workspace_bytes[rows])
    for class_number in entered:
        choices, rows = problem.table.choices[class_number], uniform.rows[:, class_number]
        beats += choices.entry_s[rows, problem.tiers[number]][:, None] * np.array(problem.table.message_beats)
        fixed += choices.entry_bytes[rows]
    needed = fixed + workspace - (-flying * flight.numerator // flight.denominator)
    return beats, once, needed - problem.limit_bytes


_Key = tuple[object, ...]


def _key(strategy: Strategy) -> _Key:
    return (strategy.axes, strategy.sharding, strategy.sequence_parallel, strategy.recompute, strategy.experts)


def _match(key: _Key, rows: dict[_Key, int]) -> int | None:
    """The row with the same axes and sharding; recomputation and experts only where the class has them."""
    *common, recompute, experts = key
    for wanted in product((experts, None), (recompute, Recompute.NONE)):
        row = rows.get((*common, wanted[1], wanted[0]))
        if row is not None:
            return row
    return None
