"""Training runs that others measured, as questions to the planner with known answers (docs/runs-format.md)."""

from profiles.runs.case import Case, case_of, cases_of
from profiles.runs.measured import peak_memory_bytes, step_time_s
from profiles.runs.outcome import Outcome, outcome_of, outcomes_of
from profiles.runs.reading import read_runs
from profiles.runs.record import RunRecord
from profiles.runs.skipped import Skipped
from profiles.runs.stack import stack_of
from profiles.runs.summary import Errors, Summary, errors, summarise

__all__ = [
    "Case",
    "Errors",
    "Outcome",
    "RunRecord",
    "Skipped",
    "Summary",
    "case_of",
    "cases_of",
    "errors",
    "outcome_of",
    "outcomes_of",
    "peak_memory_bytes",
    "read_runs",
    "stack_of",
    "step_time_s",
    "summarise",
]
