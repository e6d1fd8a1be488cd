"""The best placements and splits there are, from solvers: what heuristics are compared with."""

import numpy as np
import pulp


def exact_hottest(loads, ranks, each):
    """MILP: the least possible load of the hottest rank, one slot for each expert."""
    problem = pulp.LpProblem("placement", pulp.LpMinimize)
    on = problem.add_variable_dicts("on", (range(len(loads)), range(ranks)), cat="Binary")
    peak = problem.add_variable("peak")
    problem += peak
    for expert in range(len(loads)):
        problem += pulp.lpSum(on[expert][rank] for rank in range(ranks)) == 1
    for rank in range(ranks):
        problem += pulp.lpSum(on[expert][rank] for expert in range(len(loads))) == each
        problem += pulp.lpSum(int(load) * on[expert][rank] for expert, load in enumerate(loads)) <= peak
    assert problem.solve(pulp.HiGHS(msg=False, gapRel=0.0)) == pulp.LpStatusOptimal
    return pulp.value(peak)


def exact_hottest_split(loads, ranks, each):
    """MILP: the least possible load of the hottest rank over placements and splits, whole experts on `each` slots.

    on[e, r] 0 or 1: rank r has expert e; amount[e, r] <= load[e] on[e, r]; every expert's amounts sum to its load.
    """
    experts = range(len(loads))
    problem = pulp.LpProblem("placement", pulp.LpMinimize)
    on = problem.add_variable_dicts("on", (experts, range(ranks)), cat="Binary")
    amount = problem.add_variable_dicts("amount", (experts, range(ranks)), lowBound=0)
    peak = problem.add_variable("peak")
    problem += peak
    for expert in experts:
        problem += pulp.lpSum(amount[expert][rank] for rank in range(ranks)) == float(loads[expert])
        problem += pulp.lpSum(on[expert][rank] for rank in range(ranks)) >= 1
        for rank in range(ranks):
            problem += amount[expert][rank] <= float(loads[expert]) * on[expert][rank]
    for rank in range(ranks):
        problem += pulp.lpSum(on[expert][rank] for expert in experts) <= each
        problem += pulp.lpSum(amount[expert][rank] for expert in experts) <= peak
    assert problem.solve(pulp.HiGHS(msg=False, gapRel=0.0)) == pulp.LpStatusOptimal
    return pulp.value(peak)


def least_hottest(loads, slots, ranks):
    """LP: the least possible load of the hottest rank over all splits."""
    problem = pulp.LpProblem("split", pulp.LpMinimize)
    amount = [problem.add_variable(f"amount_{slot}", lowBound=0) for slot in range(len(slots))]
    peak = problem.add_variable("peak")
    problem += peak
    for expert, load in enumerate(loads):
        problem += pulp.lpSum(amount[slot] for slot in np.flatnonzero(slots == expert)) == float(load)
    for of_rank in np.arange(len(slots)).reshape(ranks, -1):
        problem += pulp.lpSum(amount[slot] for slot in of_rank) <= peak
    assert problem.solve(pulp.HiGHS(msg=False)) == pulp.LpStatusOptimal
    return pulp.value(peak)
