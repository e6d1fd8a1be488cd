"""A shortlist seen from its scenarios."""

from __future__ import annotations

from planner.spec.shortlist import Shortlist, ShortlistEntry
from planner.spec.workload import Scenario
from planner.view.captions import listed
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


def misfit_line(shortlist: Shortlist, entry: ShortlistEntry) -> str | None:
    """`runs out of memory in zipf-0.8 (probability 50 %), and cannot run in batch 3`; None: it runs in all scenarios.

    The probability is the sum of those of the scenarios named before it; without one, none is in the mean.
    """
    ways = (("runs out of memory in", entry.out_of_memory_in), ("cannot run in", entry.cannot_run_in))
    return ", and ".join(_failing(shortlist, way, names) for way, names in ways if names) or None


def _failing(shortlist: Shortlist, way: str, names: tuple[str, ...]) -> str:
    probability = sum(scenario.probability for scenario in shortlist.scenarios if scenario.name in names)
    return f"{way} {listed(names)}" + (f" (probability {percent(probability)})" if probability else "")


def fastest_everywhere(shortlist: Shortlist) -> ShortlistEntry | None:
    """The plan with the most tokens a second of those that run and fit in all scenarios, equal ones by rank."""
    safe = (entry for entry in shortlist.plans if not entry.out_of_memory_in and not entry.cannot_run_in)
    return min(safe, key=lambda entry: (-entry.estimate.tokens_per_s, entry.rank), default=None)
