"""A plan for human eyes: pictures, timelines, tables, explanations."""

from planner.view.certificate import certificate_line
from planner.view.diff import plan_diff
from planner.view.explanation import Rival, explain
from planner.view.explanation_tables import binding_table, diff_table, neighbour_table, reason_table
from planner.view.picture import plan_picture
from planner.view.run_life import Life, Mark, life_of, mark_of
from planner.view.run_picture import run_picture
from planner.view.scenarios import fastest_everywhere, misfit_line, scenario_table
from planner.view.shortlist_picture import shortlist_picture
from planner.view.tables import (
    Column,
    Table,
    assumption_table,
    baseline_table,
    decision_table,
    headline_table,
    memory_table,
    pruning_table,
    shortlist_table,
    stage_table,
    time_table,
)
from planner.view.timeline import plan_timeline

__all__ = [
    "Column",
    "Life",
    "Mark",
    "Rival",
    "Table",
    "assumption_table",
    "baseline_table",
    "binding_table",
    "certificate_line",
    "decision_table",
    "diff_table",
    "explain",
    "fastest_everywhere",
    "headline_table",
    "life_of",
    "mark_of",
    "memory_table",
    "misfit_line",
    "neighbour_table",
    "plan_diff",
    "plan_picture",
    "plan_timeline",
    "pruning_table",
    "reason_table",
    "run_picture",
    "scenario_table",
    "shortlist_picture",
    "shortlist_table",
    "stage_table",
    "time_table",
]
