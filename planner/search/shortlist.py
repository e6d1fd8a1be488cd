"""The shortlist: at most k plans that together lose least over the scenarios.

    minimise    sum over scenarios s of p(s) * regret(plan that serves s, s)           [objective]
    subject to  each scenario is served by one plan                                    [_served_once]
                only chosen plans serve, and only where they fit                       [_served_by_chosen]
                at most k plans, the best for balanced load among them                 [_at_most]
                the largest regret of a served scenario, second in order               [second pass]

An integer program (a k-median problem with one fixed median) for PuLP with HiGHS. Places left over go to the plans of
least expected regret on their own, as far as they are worth comparing. Sees numbers only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from planner.spec.errors import InternalError

if TYPE_CHECKING:  # it takes a tenth of a second to load, and services only ask others to solve
    import pulp

Floats = NDArray[np.float64]

COMPARABLE = 0.2
"""A plan whose expected regret exceeds the least by more is no alternative that a user would weigh."""


def regrets(times: Floats) -> Floats:
    """[plans, scenarios]: loss against the fastest plan of each scenario, as a ratio; inf where a plan does not fit."""
    regret: Floats = times / times.min(axis=0) - 1.0
    return regret


def choose(times: Floats, probabilities: Floats, size: int) -> list[int]:
    """At most `size` of the plans [plans, scenarios] by time; plan 0 is always in, and first.

    `times` in seconds per sample, inf where a plan does not fit; each scenario has a plan that fits.
    """
    regret = regrets(times)
    chosen = _solve(regret, probabilities, size)
    alone = np.where(np.isfinite(regret), regret, _worst(regret)) @ probabilities
    ranked: list[int] = np.lexsort((np.arange(len(alone)), alone)).tolist()
    rest = [plan for plan in ranked if plan not in chosen and alone[plan] <= alone.min() + COMPARABLE]
    filled = [*chosen, *rest][:size]
    return [0, *sorted((plan for plan in filled if plan != 0), key=lambda plan: (times[plan, 0], plan))]


def _worst(regret: Floats) -> float:
    """A plan that runs out of memory in a scenario counts as worse than any that runs."""
    return float(regret[np.isfinite(regret)].max()) + 1.0


def _solve(regret: Floats, probabilities: Floats, size: int) -> list[int]:
    """Least expected regret; among those, least largest regret."""
    expected, _ = _program(regret, probabilities, size, None)
    _, chosen = _program(regret, probabilities, size, expected)
    return chosen


def _program(regret: Floats, probabilities: Floats, size: int, expected: float | None) -> tuple[float, list[int]]:
    import pulp  # noqa: PLC0415

    plans, scenarios = regret.shape
    program = pulp.LpProblem("shortlist", pulp.LpMinimize)
    pick = [program.add_variable(f"pick_{plan}", cat="Binary") for plan in range(plans)]
    serve = {
        (plan, scenario): program.add_variable(f"serve_{plan}_{scenario}", lowBound=0, upBound=1)
        for plan in range(plans)
        for scenario in range(scenarios)
        if np.isfinite(regret[plan, scenario])
    }
    # A scenario in which no chosen plan fits is served by none; any other choice is better than that.
    unserved = [program.add_variable(f"unserved_{scenario}", lowBound=0, upBound=1) for scenario in range(scenarios)]
    terms = [(regret[p, s], s, variable) for (p, s), variable in serve.items()]
    out_of_memory = _worst(regret) / float(probabilities.min())
    terms += [(out_of_memory, s, variable) for s, variable in enumerate(unserved)]
    loss = pulp.lpSum(probabilities[s] * lost * variable for lost, s, variable in terms)
    if expected is None:
        program += loss
    else:
        largest = program.add_variable("largest", lowBound=0)
        program += largest
        # The first pass's optimum, and the solver's own feasibility tolerance.
        program += loss <= expected + 1e-9
        for scenario in range(scenarios):
            program += largest >= pulp.lpSum(lost * variable for lost, s, variable in terms if s == scenario)
    _served_once(program, serve, unserved)
    _served_by_chosen(program, serve, pick)
    _at_most(program, pick, size)
    program.solve(pulp.HiGHS(msg=False, threads=1))
    if program.sol_status != pulp.LpSolutionOptimal:
        raise InternalError(f"the shortlist program ended {pulp.LpSolution[program.sol_status]}")
    return float(pulp.value(loss)), [plan for plan in range(plans) if pick[plan].value() > 0.5]


def _served_once(
    program: pulp.LpProblem, serve: dict[tuple[int, int], pulp.LpVariable], unserved: list[pulp.LpVariable]
) -> None:
    import pulp  # noqa: PLC0415

    for scenario, nobody in enumerate(unserved):
        program += pulp.lpSum(variable for (_, s), variable in serve.items() if s == scenario) + nobody == 1


def _served_by_chosen(
    program: pulp.LpProblem, serve: dict[tuple[int, int], pulp.LpVariable], pick: list[pulp.LpVariable]
) -> None:
    for (plan, _), variable in serve.items():
        program += variable <= pick[plan]


def _at_most(program: pulp.LpProblem, pick: list[pulp.LpVariable], size: int) -> None:
    import pulp  # noqa: PLC0415

    program += pulp.lpSum(pick) <= size
    program += pick[0] == 1
