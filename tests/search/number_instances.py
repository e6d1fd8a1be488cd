"""Random small instances of the search's number problems, and their brute-force answers."""

from fractions import Fraction
from itertools import combinations, pairwise, product

import numpy as np
from hypothesis import strategies as st

from planner.cost.pipeline import beat, beats_of, rhythm
from planner.search.grid import Grid, Shape
from planner.search.problem import Pipeline
from planner.search.table import Choices, Table
from planner.spec.plan import Schedule, ScheduleKind

GIGABYTE = 10**9
MILLISECONDS = 1e-2 / 7


@st.composite
def pipelines(
    draw, kind: ScheduleKind = ScheduleKind.ONE_F_ONE_B, stages: int | None = None, unlike: bool = False
) -> Pipeline:
    """Whole-number costs, so that equal sums are equal. `unlike`: stages may have tables of their own."""
    interleaved = kind is ScheduleKind.INTERLEAVED
    numbers = len(beat(beats_of(kind), 0.0, 0.0, 0.0))
    num_stages = stages or draw(st.integers(2, 2) if interleaved else st.integers(1, 3))
    virtual = 2 if interleaved else 1
    num_layers = draw(st.integers(num_stages * virtual, 5 if not interleaved else 6))
    num_classes = draw(st.integers(1, 2))
    message = beat(beats_of(kind), 1.0, 1.0, 0.0)
    tables = [draw(_tables(numbers, num_classes, message)) for _ in range(1 if not unlike else min(2, num_stages))]
    problem = Pipeline(
        tables=tuple(tables[draw(st.integers(0, len(tables) - 1))] for _ in range(num_stages)),
        sequence=tuple(draw(st.lists(st.integers(0, num_classes - 1), min_size=num_layers, max_size=num_layers))),
        pieces=_pieces(num_layers, num_stages, virtual) if interleaved else None,
        flights=tuple(Fraction(draw(st.integers(1, 6)), draw(st.integers(1, 2))) for _ in range(num_stages)),
        tiers=tuple(draw(st.integers(0, 1)) for _ in range(num_stages)),
        host_limits_bytes=tuple(draw(st.integers(2, 16)) for _ in range(num_stages)),
        limits_bytes=(0,) * num_stages,
        rhythm=rhythm(Schedule(kind=kind, virtual_stages=virtual), num_stages, draw(st.integers(1, 6))),
    )
    shares = [draw(st.integers(0, 20)) / 20 for _ in range(num_stages)]
    return problem._replace(limits_bytes=tuple(_limit(problem, *pair) for pair in enumerate(shares)))


def _limit(problem: Pipeline, stage: int, share: float) -> int:
    """From room for the smallest choices of the stage's share of the layers up to the largest of half as many more."""
    flight, mean = float(problem.flights[stage]), len(problem.sequence) / len(problem.flights)
    used = [c.fixed_bytes + flight * c.flight_bytes + c.workspace_bytes for c in problem.tables[stage].choices]
    low = min(float(each.min()) for each in used) * mean
    high = max(float(each.max()) for each in used) * mean * 1.5
    return int(low + (high - low) * share)


@st.composite
def _tables(draw, numbers: int, num_classes: int, message: tuple[float, ...]) -> Table:
    layouts = draw(st.integers(1, 3))
    size = layouts**2 * numbers
    transition = np.array(draw(st.lists(st.integers(0, 6), min_size=size, max_size=size)), float)
    transition = transition.reshape(layouts, layouts, numbers)
    transition[np.arange(layouts), np.arange(layouts)] = 0.0
    return Table(tuple(draw(_choices(numbers, layouts)) for _ in range(num_classes)), transition, message)


@st.composite
def _choices(draw, numbers: int, layouts: int) -> Choices:
    size = draw(st.integers(1, 3))

    def column(largest: int) -> list[int]:
        return draw(st.lists(st.integers(0, largest), min_size=size, max_size=size))

    layout = np.array([value % layouts for value in column(5)], dtype=np.int64)
    entry_s = np.array([column(4), column(8)], dtype=float).T.reshape(size, 2)
    entry_bytes, carried_bytes = (np.array(column(most), dtype=np.int64) for most in (3, 2))
    if draw(st.booleans()):
        # As in real tables: entered alike where the layout is alike, so that strategies can be compared.
        same = np.unique(layout, return_index=True)[1][np.unique(layout, return_inverse=True)[1].reshape(-1)]
        entry_s, entry_bytes, carried_bytes = entry_s[same], entry_bytes[same], carried_bytes[same]
    return Choices(
        strategies=_nameless(size),
        beats_s=np.array([column(20) for _ in range(numbers)], dtype=float).T.reshape(size, numbers),
        once_s=np.array(column(10), dtype=float),
        fixed_bytes=np.array(column(12), dtype=np.int64),
        flight_bytes=np.array(column(6), dtype=np.int64),
        workspace_bytes=np.array(column(10), dtype=np.int64),
        layout=layout,
        entry_s=entry_s,
        entry_bytes=entry_bytes,
        carried_bytes=carried_bytes,
        host_bytes=np.array(column(3), dtype=np.int64),
    )


def _nameless(size: int) -> Grid:
    """So many strategies that solvers can tell apart by their rows alone."""
    zeros = np.zeros(size, dtype=np.int64)
    return Grid((Shape((), False),) * size, (None,), zeros, zeros, zeros, np.arange(size), zeros)


def _pieces(num_layers, num_stages, virtual):
    size, rest = divmod(num_layers, num_stages * virtual)
    starts = [0, *(size * piece for piece in range(1, num_stages * virtual))]
    ends = [*starts[1:], num_layers]
    assert rest >= 0
    pieces = list(zip(starts, ends, strict=True))
    return tuple(tuple(pieces[stage::num_stages]) for stage in range(num_stages))


def partitions(problem: Pipeline):
    """All ways to cut the layers into stages: for each stage its stretches."""
    if problem.pieces is not None:
        yield problem.pieces
        return
    layers, stages = len(problem.sequence), len(problem.flights)
    for cuts in combinations(range(1, layers), stages - 1):
        bounds = (0, *cuts, layers)
        yield tuple(((first, end),) for first, end in pairwise(bounds))


def price(problem: Pipeline, stages, rows) -> float:
    """Step time of one complete choice (row of each layer), inf if it does not fit: written down from the formulas."""
    peaks, filling = np.array(problem.rhythm.peaks), np.array(problem.rhythm.filling)
    slowest = np.zeros(len(peaks))
    total = longest = 0.0
    for stage, stretches in enumerate(stages):
        table = problem.tables[stage]
        beats, once, fixed, flying, workspace, host = np.zeros_like(filling), 0.0, 0, 0, 0, 0
        for first, end in stretches:
            for layer in range(first, end):
                choices = table.choices[problem.sequence[layer]]
                row = rows[layer]
                beats = beats + choices.beats_s[row]
                once += choices.once_s[row]
                fixed += int(choices.fixed_bytes[row])
                flying += int(choices.flight_bytes[row])
                workspace = max(workspace, int(choices.workspace_bytes[row]))
                host += int(choices.host_bytes[row])
                if layer == first and layer > 0:
                    message = choices.entry_s[row, problem.tiers[stage]]
                    beats = beats + message * np.array(table.message_beats)
                    fixed += int(choices.entry_bytes[row])
                    flying += int(choices.carried_bytes[row])
                elif layer > first:
                    before = table.choices[problem.sequence[layer - 1]].layout[rows[layer - 1]]
                    beats = beats + table.transition_s[before, choices.layout[row]]
        if (
            fixed + problem.flights[stage] * flying + workspace > problem.limits_bytes[stage]
            or host > problem.host_limits_bytes[stage]
        ):
            return float("inf")
        slowest = np.maximum(slowest, peaks @ beats)
        total += float(filling @ beats)
        longest = max(longest, once)
    return float(slowest.sum()) + total + longest


def by_layer(solution) -> dict[int, int]:
    """The row of each layer of a solution."""
    return {
        layer: row
        for stretches, chosen in zip(solution.stages, solution.chosen, strict=True)
        for layer, row in zip((n for first, end in stretches for n in range(first, end)), chosen, strict=True)
    }


def every_choice(problem: Pipeline):
    """All (stretches of each stage, row of each layer)."""
    for stages in partitions(problem):
        options = [range(0)] * len(problem.sequence)
        for table, stretches in zip(problem.tables, stages, strict=True):
            for layer in (layer for first, end in stretches for layer in range(first, end)):
                options[layer] = range(len(table.choices[problem.sequence[layer]].once_s))
        for rows in product(*options):
            yield stages, rows


def brute_force(problem: Pipeline) -> float:
    """The least step time over every partition and every choice for every layer; inf if nothing fits."""
    return min((price(problem, stages, rows) for stages, rows in every_choice(problem)), default=float("inf"))


def lifelike(problem: Pipeline) -> Pipeline:
    """The instance with milliseconds and gigabytes, and a few bytes more here and there: sums are no longer exact."""
    tables: dict[int, Table] = {id(table): _lifelike(table) for table in problem.tables}
    return problem._replace(
        tables=tuple(tables[id(table)] for table in problem.tables),
        limits_bytes=tuple(limit * GIGABYTE + limit % 13 for limit in problem.limits_bytes),
    )


def _lifelike(table: Table) -> Table:
    def bytes_of(column):
        return column * GIGABYTE + (column * 7 + np.arange(len(column))) % 5

    choices = tuple(
        c._replace(
            beats_s=c.beats_s * MILLISECONDS,
            once_s=c.once_s * MILLISECONDS,
            entry_s=c.entry_s * MILLISECONDS,
            fixed_bytes=bytes_of(c.fixed_bytes),
            flight_bytes=bytes_of(c.flight_bytes),
            workspace_bytes=bytes_of(c.workspace_bytes),
            entry_bytes=bytes_of(c.entry_bytes),
            carried_bytes=bytes_of(c.carried_bytes),
        )
        for c in table.choices
    )
    return table._replace(choices=choices, transition_s=table.transition_s * MILLISECONDS)
