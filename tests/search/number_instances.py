"""Random small instances of the search's number problems, and their brute-force answers."""

from fractions import Fraction
from itertools import combinations, pairwise, product

import numpy as np
from hypothesis import strategies as st

from planner.cost.pipeline import beat, beats_of, rhythm
from planner.search.problem import Pipeline
from planner.search.table import Choices, Table
from planner.spec.plan import Schedule, ScheduleKind
from planner.spec.strategy import Strategy


@st.composite
def pipelines(draw, kind: ScheduleKind = ScheduleKind.ONE_F_ONE_B) -> Pipeline:
    """Whole-number costs, so that equal sums are equal."""
    interleaved = kind is ScheduleKind.INTERLEAVED
    rhythms = 1 if interleaved or kind is ScheduleKind.ONE_F_ONE_B else 2
    num_stages = draw(st.integers(2, 2) if interleaved else st.integers(1, 3))
    virtual = 2 if interleaved else 1
    num_layers = draw(st.integers(num_stages * virtual, 5 if not interleaved else 6))
    num_classes = draw(st.integers(1, 2))
    layouts = draw(st.integers(1, 2))
    choices = tuple(draw(_choices(rhythms, layouts)) for _ in range(num_classes))
    transition = np.array(draw(st.lists(_small, min_size=layouts**2 * rhythms, max_size=layouts**2 * rhythms)), float)
    transition = transition.reshape(layouts, layouts, rhythms)
    transition[np.arange(layouts), np.arange(layouts)] = 0.0
    micro_batches = draw(st.integers(1, 6))
    pieces = _pieces(num_layers, num_stages, virtual) if interleaved else None
    return Pipeline(
        tables=(Table(choices, transition, beat(beats_of(kind), 1.0, 1.0, 0.0)),) * num_stages,
        sequence=tuple(draw(st.lists(st.integers(0, num_classes - 1), min_size=num_layers, max_size=num_layers))),
        pieces=pieces,
        flights=tuple(Fraction(draw(st.integers(1, 6)), draw(st.integers(1, 2))) for _ in range(num_stages)),
        tiers=tuple(draw(st.integers(0, 1)) for _ in range(num_stages)),
        host_limits_bytes=tuple(draw(st.integers(0, 12)) for _ in range(num_stages)),
        limits_bytes=tuple(draw(st.integers(5, 120)) for _ in range(num_stages)),
        rhythm=rhythm(Schedule(kind=kind, virtual_stages=virtual), num_stages, micro_batches),
    )


_small = st.integers(0, 6)


@st.composite
def _choices(draw, rhythms: int, layouts: int) -> Choices:
    size = draw(st.integers(1, 3))

    def column(largest: int) -> list[int]:
        return draw(st.lists(st.integers(0, largest), min_size=size, max_size=size))

    return Choices(
        strategies=(Strategy(),) * size,
        beats_s=np.array([column(20) for _ in range(rhythms)], dtype=float).T.reshape(size, rhythms),
        once_s=np.array(column(10), dtype=float),
        fixed_bytes=np.array(column(12), dtype=np.int64),
        flight_bytes=np.array(column(6), dtype=np.int64),
        workspace_bytes=np.array(column(10), dtype=np.int64),
        layout=np.array([value % layouts for value in column(5)], dtype=np.int64),
        entry_s=np.array([column(4), column(8)], dtype=float).T.reshape(size, 2),
        entry_bytes=np.array(column(3), dtype=np.int64),
        carried_bytes=np.array(column(2), dtype=np.int64),
        host_bytes=np.array(column(3), dtype=np.int64),
    )


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


def brute_force(problem: Pipeline) -> float:
    """The least step time over every partition and every choice for every layer."""
    options = [range(len(problem.tables[0].choices[number].strategies)) for number in problem.sequence]
    return min(price(problem, stages, rows) for stages in partitions(problem) for rows in product(*options))
