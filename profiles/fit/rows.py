"""Measured runs as rows of a fit: those that are usable for accuracy, with the family of their source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from profiles.fit.search import Row
from profiles.runs import RunRecord, Skipped, case_of, step_time_s
from profiles.runs.outcome import source_family

THINNED = 100
"""A source with many more rows than this gives every n-th, such that about so many remain."""


def rows_of(records: Iterable[RunRecord]) -> list[Row]:
    """All rows that can be fitted to, in order."""
    rows = []
    for record in records:
        case = case_of(record) if record.usable_for_accuracy else None
        if case is None or isinstance(case, Skipped):
            continue
        measured = step_time_s(record, case.model, case.cluster.device)
        if measured is not None:
            rows.append(Row(family(record.source), source_family(record.source), case, measured, 1.0))
    return rows


def family(source: str) -> str:
    """What the sections of one publication have in common: the text before a dash with spaces around it."""
    return source.split(" - ", maxsplit=1)[0]


def thinned(rows: list[Row], at_most: int = THINNED) -> list[Row]:
    """Every n-th row of sources that have many more than `at_most`; the rest of them is a check."""
    counts, seen = Counter(row.source for row in rows), Counter[str]()
    kept = []
    for row in rows:
        if seen[row.source] % max(1, round(counts[row.source] / at_most)) == 0:
            kept.append(row)
        seen[row.source] += 1
    return kept
