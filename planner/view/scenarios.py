"""A shortlist seen from its scenarios."""

from __future__ import annotations

from planner.spec.shortlist import Shortlist, ShortlistEntry
from planner.spec.workload import Scenario
from planner.view.quantities import percent, seconds
from planner.view.tables import Column, Table


def scenario_table(shortlist: Shortlist) -> Table:
    """One row per scenario: its best plan of the shortlist, and what the first plan would lose there."""
    columns = (
        Column("scenario"),
        Column("probability", True),
        Column("best plan"),
        Column("step", True),
        Column("proven"),
        Column("regret of plan 1", True),
    )
    rows = [_row(shortlist, scenario) for scenario in shortlist.scenarios]
    rows += [(name, "–", "none fits", "–", "–", "–") for name in shortlist.without_plan]
    return Table("Scenarios", columns, tuple(rows))


def _row(shortlist: Shortlist, scenario: Scenario) -> tuple[str, ...]:
    name, first = scenario.name, shortlist.plans[0]
    best = next((entry for entry in shortlist.plans if name in entry.best_for), None)
    here = any(entry.scenario_regret_ratio.get(name) == 0 for entry in shortlist.plans)
    return (
        name,
        percent(scenario.probability),
        f"{best.rank}: {best.plan.summary}" if best else "none of these",
        seconds(best.scenario_step_time_s[name]) if best else "–",
        "yes" if here and name in shortlist.proven_in else "no",
        _loss(first, name),
    )


def _loss(entry: ShortlistEntry, scenario: str) -> str:
    if scenario in entry.cannot_run_in:
        return "cannot run"
    return "out of memory" if scenario in entry.out_of_memory_in else percent(entry.scenario_regret_ratio[scenario])
