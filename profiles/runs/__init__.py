"""Training runs that others measured, as questions to the planner with known answers (docs/runs-format.md)."""

from profiles.runs.case import Case, case_of, cases_of
from profiles.runs.measured import peak_memory_bytes, step_time_s
from profiles.runs.record import RunRecord, read_runs
from profiles.runs.skipped import Skipped
from profiles.runs.stack import stack_of

__all__ = [
    "Case",
    "RunRecord",
    "Skipped",
    "case_of",
    "cases_of",
    "peak_memory_bytes",
    "read_runs",
    "stack_of",
    "step_time_s",
]
