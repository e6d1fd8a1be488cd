"""What was predicted for a row beside what was measured: the line that a validation is made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from planner.cost.estimate import estimate
from profiles.runs.case import Case, case_of, fits
from profiles.runs.measured import counted_bytes, peak_memory_bytes, step_time_s, why_unmeasured
from profiles.runs.record import RunRecord
from profiles.runs.skipped import Skipped

_TITLE_END = re.compile(r" \(| Table\b| Figure\b| recipe\b| - |: |,| abstract\b| logs\b")


@dataclass(frozen=True)
class Outcome:
    """One row of a RUNS file, priced or skipped; None where nothing is known."""

    record: RunRecord
    case: Case | None
    skipped: str | None
    """Why the row has no price."""
    predicted_step_time_s: float | None
    measured_step_time_s: float | None
    predicted_peak_memory_bytes: int | None
    measured_peak_memory_bytes: int | None
    fits: bool | None
    """Whether the plan is predicted to fit."""

    @property
    def error_ratio(self) -> float | None:
        """Predicted over measured step time, less one."""
        return _relative(self.predicted_step_time_s, self.measured_step_time_s)

    @property
    def unmeasured(self) -> str | None:
        """Why a row that has a price and did not run out of memory has no error."""
        silent = self.case is not None and self.measured_step_time_s is None and not self.record.oom
        return why_unmeasured(self.record) if silent else None

    @property
    def memory_error_ratio(self) -> float | None:
        """Predicted over measured peak memory, less one."""
        return _relative(self.predicted_peak_memory_bytes, self.measured_peak_memory_bytes)

    @property
    def source(self) -> str:
        """The source without tables, figures and parts: "LiBai v0.2 benchmarks"."""
        return source_family(self.record.source)


def source_family(source: str) -> str:
    """What a source is called without its tables, figures and parts."""
    return _TITLE_END.split(source, maxsplit=1)[0].strip() or source


def outcome_of(record: RunRecord, case: Case | Skipped) -> Outcome:
    """Price one row; `case` is what `case_of` made of it."""
    memory = peak_memory_bytes(record)
    if isinstance(case, Skipped):
        return Outcome(record, None, case.reason, None, step_time_s(record, None), None, memory, None)
    price = estimate(case.model, case.cluster, case.training, case.plan)
    return Outcome(
        record=record,
        case=case,
        skipped=None,
        predicted_step_time_s=price.step_time_s,
        measured_step_time_s=step_time_s(record, case.model, case.cluster.device),
        predicted_peak_memory_bytes=max(counted_bytes(record, case.stack, stage.memory) for stage in price.stages),
        measured_peak_memory_bytes=memory,
        fits=fits(price, case),
    )


def outcomes_of(
    records: Iterable[RunRecord], report: Callable[[float, str], None] = lambda progress, message: None
) -> tuple[Outcome, ...]:
    """Price all rows in order; `report` is told the share done."""
    rows = tuple(records)
    found = []
    for number, record in enumerate(rows):
        found.append(outcome_of(record, case_of(record)))
        report((number + 1) / len(rows), f"{number + 1} of {len(rows)} runs")
    return tuple(found)


def _relative(predicted: float | None, measured: float | None) -> float | None:
    return None if predicted is None or measured is None else predicted / measured - 1
