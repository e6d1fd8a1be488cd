"""A plan for human eyes: pictures and tables."""

from planner.view.picture import plan_picture
from planner.view.tables import (
    Column,
    Table,
    assumption_table,
    baseline_table,
    decision_table,
    headline_table,
    memory_table,
    shortlist_table,
    stage_table,
    time_table,
)

__all__ = [
    "Column",
    "Table",
    "assumption_table",
    "baseline_table",
    "decision_table",
    "headline_table",
    "memory_table",
    "plan_picture",
    "shortlist_table",
    "stage_table",
    "time_table",
]
