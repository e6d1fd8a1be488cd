"""Uniform plans: one strategy for all blocks. Quick to price all at once; they start the exact search well."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.search.grid import Grid
from planner.search.labels import Room
from planner.search.problem import Pipeline, with_tables
from planner.search.rhythm import filling, peaks
from planner.search.table import Choices, Table

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Uniform(NamedTuple):
    """All uniform choices for a table, a row each: for each class the row of its Choices."""

    rows: Integers
    """[uniform choices, classes]."""
    degrees: Integers
    """[uniform choices]: equal for what a user would call one plan: equal tensor parallelism and experts."""

    def only(self, kept: Integers) -> Uniform:
        """Only these choices."""
        return Uniform(self.rows[kept], self.degrees[kept])


class Priced(NamedTuple):
    """Uniform plans of one pipeline problem."""

    step_s: Floats
    missing_bytes: Integers
    """What the fullest stage lacks; 0 if the plan fits."""
    fullest: Integers
    """The stage that lacks most."""


def uniform_choices(grids: Sequence[Grid], sequence: Sequence[int]) -> Uniform:
    """Choices with equal shape and sharding in all layers; recomputation and experts wherever a layer has them."""
    leader = max(dict.fromkeys(sequence), key=lambda number: _leads(grids[number], sequence.count(number)))
    head = grids[leader]
    rows = np.stack([_matching(head, grid) for grid in grids], axis=1)
    complete = np.flatnonzero((rows >= 0).all(axis=1))
    degrees = head.tensor_degrees[head.shape] * len(head.spreads) + head.spread
    return Uniform(rows[complete], degrees[complete])


def _leads(grid: Grid, count: int) -> tuple[bool, int, int]:
    """The layers that name a uniform plan: those with experts, those that recompute in most ways, the most frequent."""
    return grid.has_experts, len(np.unique(grid.recompute)), count


def _matching(head: Grid, grid: Grid) -> Integers:
    """[rows of the leader] of the row with the same parts, as far as the layer has them; -1 where there is none."""
    nothing = np.zeros_like(head.shape)
    spread = head.spread if grid.has_experts else nothing
    rows = np.full(len(head), -1)
    for recompute in (head.recompute, nothing):
        # An embedding has nothing to shard where experts alone have replicas.
        for sharding in (head.sharding, np.where(head.shards_dense[head.shape], head.sharding, nothing)):
            found = grid.find(recompute, head.offload, sharding, head.shape, spread)
            rows = np.where(rows >= 0, rows, found)
    return rows


def total_s(choices: Sequence[Choices], uniform: Uniform, counts: Integers) -> tuple[Floats, Floats]:
    """([choices, beats], [choices]) seconds of all layers together: passes of a micro-batch, and work once per step."""
    beats = sum(each.beats_s[uniform.rows[:, n]] * counts[n] for n, each in enumerate(choices))
    once = sum(each.once_s[uniform.rows[:, n]] * counts[n] for n, each in enumerate(choices))
    return np.asarray(beats), np.asarray(once)


def mean_stage_s(problem: Pipeline, uniform: Uniform) -> Floats:
    """[choices] of a step in which all stages take the mean time and the mean work once: no partition is quicker."""
    choices, stages = problem.tables[0].choices, len(problem.flights)
    beats, once = total_s(choices, uniform, np.bincount(problem.sequence, minlength=len(choices)))
    mean: Floats = peaks(problem.rhythm, beats).sum(axis=1) / stages + filling(problem.rhythm, beats) + once / stages
    return mean


def each_uniform(problem: Pipeline, uniform: Uniform, best_s: Callable[[], float]) -> Iterator[Pipeline]:
    """A problem of its own for each uniform choice that may take less than `best_s` and fit, the quickest first."""
    mean_s = mean_stage_s(problem, uniform)
    for row in np.lexsort((np.arange(len(mean_s)), mean_s)).tolist():
        if mean_s[row] >= best_s():
            return
        if _may_fit(problem, uniform.rows[row]):
            yield with_tables(problem, partial(_only, row=uniform.rows[row]))


def _may_fit(problem: Pipeline, row: Integers) -> bool:
    """Whether all stages together have room for all layers, with as few micro-batches in flight as on any stage."""
    choices, flight = problem.tables[0].choices, min(problem.flights)
    held = [int(c.fixed_bytes[r]) + flight * int(c.flight_bytes[r]) for c, r in zip(choices, row, strict=True)]
    return sum(held[number] for number in problem.sequence) <= sum(problem.limits_bytes)


def _only(table: Table, row: Integers) -> Table:
    return table._replace(choices=tuple(c.rows(np.array([r])) for c, r in zip(table.choices, row, strict=True)))


def fastest_by_degrees(uniform: Uniform, priced: Priced) -> list[int]:
    """For each set of degrees, the row of its fastest plan that fits; the fastest of all first."""
    fitting = np.flatnonzero(priced.missing_bytes == 0)
    order = fitting[np.lexsort((priced.step_s[fitting], uniform.degrees[fitting]))]
    _, first = np.unique(uniform.degrees[order], return_index=True)
    best = order[first]
    ranked: list[int] = best[np.argsort(priced.step_s[best], kind="stable")].tolist()
    return ranked


class _Kind(NamedTuple):
    """What stages have in common that cost the same."""

    counts: tuple[int, ...]
    """Layers of each class."""
    entered: tuple[int, ...]
    """Classes of the first layers of its stretches."""
    tier: int


def price_uniform(problem: Pipeline, uniform: Uniform, stages: Sequence[Sequence[tuple[int, int]]]) -> Priced:
    """Price all uniform choices on the given stretches of each stage; layouts never change inside a stage.

    Of stages that cost the same, the one with most micro-batches in flight stands for all.
    """
    kinds: dict[_Kind, list[int]] = {}
    for number, stretches in enumerate(stages):
        kinds.setdefault(_kind(problem, stretches, number), []).append(number)
    beats, once, missing, fullest = [], [], [], []
    for kind, members in kinds.items():
        longest = max(members, key=lambda number: (problem.flights[number], -problem.limits_bytes[number], -number))
        own = _stage(problem, uniform, kind, longest)
        beats.append(own[0])
        once.append(own[1])
        missing.append(own[2])
        fullest.append(longest)
    all_beats, all_missing = np.stack(beats), np.stack(missing)
    sizes = np.array([len(members) for members in kinds.values()])
    slowest = peaks(problem.rhythm, all_beats).max(axis=0).sum(axis=1)
    filled = (filling(problem.rhythm, all_beats) * sizes[:, None]).sum(axis=0)
    step = slowest + filled + np.stack(once).max(axis=0)
    return Priced(step, np.maximum(all_missing.max(axis=0), 0), np.array(fullest)[all_missing.argmax(axis=0)])


def _kind(problem: Pipeline, stretches: Sequence[tuple[int, int]], number: int) -> _Kind:
    counts = [0] * len(problem.tables[number].choices)
    for first, end in stretches:
        for layer in range(first, end):
            counts[problem.sequence[layer]] += 1
    entered = tuple(problem.sequence[first] for first, _ in stretches if first > 0)
    return _Kind(tuple(counts), entered, problem.tiers[number])


def _stage(problem: Pipeline, uniform: Uniform, kind: _Kind, number: int) -> tuple[Floats, Floats, Integers]:
    """(beats, once, missing bytes) of one stage under every uniform choice."""
    table, size = problem.tables[number], len(uniform.rows)
    room = Room(problem.flights[number], problem.limits_bytes[number], problem.host_limits_bytes[number])
    beats = np.zeros((size, len(table.message_beats)))
    once = np.zeros(size)
    fixed, flying, workspace, host = (np.zeros(size, dtype=np.int64) for _ in range(4))
    for present, count in enumerate(kind.counts):
        if count:
            choices, rows = table.choices[present], uniform.rows[:, present]
            beats += choices.beats_s[rows] * count
            once += choices.once_s[rows] * count
            fixed += choices.fixed_bytes[rows] * count
            flying += room.flying(choices.flight_bytes[rows]) * count
            workspace = np.maximum(workspace, choices.workspace_bytes[rows])
            host += choices.host_bytes[rows] * count
    for class_number in kind.entered:
        choices, rows = table.choices[class_number], uniform.rows[:, class_number]
        beats += choices.entry_s[rows, kind.tier][:, None] * np.array(table.message_beats)
        fixed += choices.entry_bytes[rows]
        flying += room.flying(choices.carried_bytes[rows])
    needed = fixed + workspace - (-flying // room.flight.denominator)
    missing = np.maximum(needed - problem.limits_bytes[number], 0)
    return beats, once, missing + np.maximum(host - problem.host_limits_bytes[number], 0)
