"""The two constants of memory that no formula gives: what the allocator holds beyond, and what libraries take.

Both are of a stack. They are chosen from a grid by the least mean absolute logarithm of predicted over measured peak
memory; of equal ones the smaller. Repeated with the same rows, the fit gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from math import fabs, log
from typing import NamedTuple

from planner.cost.estimate import estimate
from planner.spec.errors import InputError
from profiles.runs.case import Case, case_of
from profiles.runs.measured import counted_bytes, peak_memory_bytes
from profiles.runs.record import RunRecord

COMES_AND_GOES = ("activations", "logits", "workspace")
"""Parts of memory that are allocated and freed in every step."""
RATIOS = tuple(hundredths / 100 for hundredths in range(0, 61, 5))
LIBRARY_BYTES = tuple(range(0, 8_000_000_001, 200_000_000))


class MemoryFit(NamedTuple):
    """Constants of one stack, and how well they fit."""

    fragmentation_ratio: float
    library_bytes: int
    mean_error: float
    """Mean absolute logarithm of predicted over measured."""
    rows: int


class _Row(NamedTuple):
    measured_bytes: int
    stages: tuple[tuple[int, int], ...]
    """(what stays, what comes and goes) of each stage."""


def fit_memory(stack: str, records: Iterable[RunRecord]) -> MemoryFit:
    """Fit the stack of this name to the rows that ran with it and say their peak; InputError if there is none."""
    rows = [row for record in records if (row := _row(stack, record)) is not None]
    if not rows:
        raise InputError.at("runs", f"must have a row of stack {stack!r} with measured.peak_mem_gb")
    choices = [
        MemoryFit(ratio, taken, sum(_error(row, ratio, taken) for row in rows) / len(rows), len(rows))
        for ratio, taken in product(RATIOS, LIBRARY_BYTES)
    ]
    return min(choices, key=lambda choice: (choice.mean_error, choice.fragmentation_ratio, choice.library_bytes))


def _error(row: _Row, ratio: float, taken: int) -> float:
    return fabs(log(max(stays + goes * (1 + ratio) + taken for stays, goes in row.stages) / row.measured_bytes))


def _row(stack: str, record: RunRecord) -> _Row | None:
    measured, case = peak_memory_bytes(record), case_of(record)
    if measured is None or record.oom or not isinstance(case, Case) or case.stack != stack:
        return None
    bare = case.cluster.stack.model_copy(update={"fragmentation_ratio": 0.0, "library_bytes": 0})
    cluster = case.cluster.model_copy(update={"stack": bare})
    price = estimate(case.model, cluster, case.training, case.plan)
    parts = [(counted_bytes(record, stack, stage.memory), stage.memory) for stage in price.stages]
    goes = [sum(memory[name] for name in COMES_AND_GOES) for _, memory in parts]
    return _Row(measured, tuple((whole - some, some) for (whole, _), some in zip(parts, goes, strict=True)))
