"""From plans and their prices to the entries of a shortlist: what is chosen, and what each entry says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.switch import Known, switch_plan_s
from planner.search.prices import Row
from planner.search.progress import Checkpoint, Tick
from planner.search.question import Question
from planner.search.shortlist import choose, regrets
from planner.spec.errors import InputError
from planner.spec.plan import Plan
from planner.spec.shortlist import ShortlistEntry
from planner.spec.workload import Scenario

Floats = NDArray[np.float64]
AGREEMENT = 1e-9
"""Relative difference up to which times are one: the search and estimate() sum in another order."""


class Members(NamedTuple):
    """The entries of a shortlist, and the scenarios that they are for."""

    entries: tuple[ShortlistEntry, ...]
    scenarios: tuple[Scenario, ...]
    """Those in which some plan fits, with probabilities scaled to sum to 1."""


class _Chosen(NamedTuple):
    """What the entries are made of: plans that were chosen, in scenarios in which some plan fits."""

    plans: list[Plan]
    rows: list[Row]
    columns: list[int]
    """Which numbers of the rows belong to the scenarios."""
    scenarios: tuple[Scenario, ...]
    loss: Floats
    """[plans, scenarios]; inf where a plan does not fit."""
    best: NDArray[np.bool_]
    """[plans, scenarios]: no chosen plan is faster."""


class _Switches(NamedTuple):
    """What all prices of switches share."""

    known: Known
    tick: Tick
    out_of_time: Callable[[], bool]


def members(
    question: Question,
    scenarios: Sequence[Scenario],
    priced: Mapping[Plan, Row],
    size: int,
    checkpoint: Checkpoint,
    out_of_time: Callable[[], bool],
) -> Members:
    """At most `size` of the plans; the first is always in, and first.

    Raises InputError if none fits in any scenario.
    """
    plans, rows = list(priced), list(priced.values())
    times = np.array([row.per_sample_s for row in rows])
    columns = np.flatnonzero(np.isfinite(times).any(axis=0)).tolist()
    if not columns:
        raise InputError.at(
            "options.scenarios", "no plan fits in memory under any of them; add a milder one, or memory"
        )
    times = times[:, columns]
    total = sum(scenarios[i].probability for i in columns)
    kept = tuple(scenarios[i].model_copy(update={"probability": scenarios[i].probability / total}) for i in columns)
    probabilities = np.array([scenario.probability for scenario in kept])
    checkpoint(0.4, "choosing the shortlist")
    chosen = choose(times, probabilities, min(size, len(plans)))
    best = np.isfinite(times[chosen]) & np.isclose(times[chosen], times[chosen].min(axis=0), rtol=AGREEMENT, atol=0.0)
    made = _Chosen([plans[i] for i in chosen], [rows[i] for i in chosen], columns, kept, regrets(times)[chosen], best)
    known: Known = {}
    entries = []
    for number in range(len(chosen)):
        switched = partial(checkpoint, 0.5 + 0.5 * number / len(chosen), "pricing switches between plans")
        entries.append(_entry(question, made, number, _Switches(known, switched, out_of_time)))
    return Members(tuple(entries), kept)


def _entry(question: Question, chosen: _Chosen, number: int, switches: _Switches) -> ShortlistEntry:
    plan, row, loss = chosen.plans[number], chosen.rows[number], chosen.loss[number]
    names = [scenario.name for scenario in chosen.scenarios]
    fits, runs = np.isfinite(loss), np.array(row.runs)[chosen.columns]
    probabilities = np.array([scenario.probability for scenario in chosen.scenarios])[fits]

    def named(where: NDArray[np.bool_]) -> tuple[str, ...]:
        return tuple(name for name, there in zip(names, where.tolist(), strict=True) if there)

    return ShortlistEntry(
        rank=number + 1,
        plan=plan,
        estimate=row.estimate,
        best_for=named(chosen.best[number]),
        regret_ratio=float(loss[fits] @ probabilities / probabilities.sum()) if fits.any() else 0.0,
        worst_regret_ratio=float(loss[fits].max(initial=0.0)),
        out_of_memory_in=named(runs & ~fits),
        cannot_run_in=named(~runs),
        scenario_step_time_s={names[i]: row.step_time_s[chosen.columns[i]] for i in np.flatnonzero(fits).tolist()},
        scenario_regret_ratio={names[i]: float(loss[i]) for i in np.flatnonzero(fits).tolist()},
        switch_cost_s=_switch_costs(question, plan, chosen.plans, switches),
    )


def _switch_costs(question: Question, plan: Plan, plans: Sequence[Plan], switches: _Switches) -> dict[str, float]:
    """Seconds to go over to each other plan, by its id, as far as time allows."""
    found = {}
    for other in plans:
        if other.id != plan.id and not switches.out_of_time():
            switches.tick()
            found[other.id] = switch_plan_s(*question, plan, other, known=switches.known)
    return found
