"""The plan of least memory on stages of equally many layers: the measure of a miss where there are no uniform plans."""

from __future__ import annotations

from typing import NamedTuple

from planner.search.partition import Solution
from planner.search.problem import Pipeline


class Smallest(NamedTuple):
    """The plan, and what its fullest stage lacks."""

    solution: Solution
    stage: int
    missing_bytes: int


def smallest(problem: Pipeline) -> Smallest:
    """Every layer under the strategy that holds least while as many micro-batches are in flight as on its stage."""
    layers, count = len(problem.sequence), len(problem.flights)
    ends = [number * layers // count for number in range(count + 1)]
    stages, chosen, missing = [], [], []
    for stage in range(count):
        rows, lacks = _stage(problem, stage, ends[stage], ends[stage + 1])
        stages.append(((ends[stage], ends[stage + 1]),))
        chosen.append(rows)
        missing.append(lacks)
    fullest = max(range(count), key=lambda stage: (missing[stage], -stage))
    return Smallest(Solution(0.0, tuple(stages), tuple(chosen)), fullest, missing[fullest])


def _stage(problem: Pipeline, stage: int, first: int, end: int) -> tuple[tuple[int, ...], int]:
    """(rows, missing bytes)."""
    flight, rows = problem.flights[stage], []
    fixed, flying, workspace, host = 0, 0, 0, 0
    for layer in range(first, end):
        choices = problem.tables[stage].choices[problem.sequence[layer]]
        row = int((choices.fixed_bytes + float(flight) * choices.flight_bytes + choices.workspace_bytes).argmin())
        rows.append(row)
        fixed += int(choices.fixed_bytes[row])
        flying += int(choices.flight_bytes[row])
        host += int(choices.host_bytes[row])
        workspace = max(workspace, int(choices.workspace_bytes[row]))
        if layer == first > 0:
            fixed += int(choices.entry_bytes[row])
            flying += int(choices.carried_bytes[row])
    needed = fixed + workspace - (-flying * flight.numerator // flight.denominator)
    return tuple(rows), needed - problem.limits_bytes[stage] + max(host - problem.host_limits_bytes[stage], 0)
