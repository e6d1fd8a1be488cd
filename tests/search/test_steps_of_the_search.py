"""Each step on the way to the exact solution, alone and one after the other, against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from number_instances import brute_force, by_layer, every_choice, pipelines, price

from planner.search.bounds import Bounds, mean_step_s, promising
from planner.search.explore import _rows_in
from planner.search.partition import Solution, once_in_passes, solve_pipeline, step_s
from planner.search.table import without_dominated
from planner.spec.plan import ScheduleKind

kinds = st.sampled_from(list(ScheduleKind))
problems = kinds.flatmap(lambda kind: pipelines(kind, unlike=True))
shares = st.sampled_from([0.3, 0.7, 0.9, 1.0, 1.001, 1.2, 2.0, float("inf")])


def nothing(work: int) -> None:
    """Any effort may be spent."""


def nobody() -> None:
    """Nobody waits for the time between comparisons."""


def undominated(problem):
    """The problem without dominated strategies, as the search makes it."""
    kept = {id(t): t._replace(choices=tuple(without_dominated(c, nobody) for c in t.choices)) for t in problem.tables}
    return problem._replace(tables=tuple(kept[id(table)] for table in problem.tables))


def roomy(problem):
    """The problem with memory for everything."""
    much = (10**9,) * len(problem.flights)
    return problem._replace(limits_bytes=much, host_limits_bytes=much)


def solved(problem, best_s=float("inf")) -> float:
    solution = solve_pipeline(problem, best_s, nothing)
    return solution.step_s if solution else float("inf")


@settings(max_examples=150, deadline=None)
@given(problems, shares)
def test_no_pipeline_that_beats_the_best_has_a_strategy_that_was_not_promising(problem, share):
    expected = brute_force(problem)
    if not np.isfinite(expected):
        return
    best_s = expected * share
    found = brute_force(promising(problem, best_s))
    assert found >= expected
    if best_s > expected:
        assert found == expected


@settings(max_examples=150, deadline=None)
@given(problems)
def test_without_dominated_strategies_the_optimum_is_the_same(problem):
    assert brute_force(undominated(problem)) == brute_force(problem)


def measured(choices) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Of each strategy what it must share with one that dominates it, and what it must not exceed."""
    c = choices
    places = np.column_stack([c.layout, c.entry_bytes, c.carried_bytes, c.entry_s])
    costs = [c.beats_s, c.once_s, c.fixed_bytes, c.flight_bytes, c.workspace_bytes, c.host_bytes]
    return list(zip(map(tuple, places.tolist()), map(tuple, np.column_stack(costs).tolist()), strict=True))


@settings(max_examples=300, deadline=None)
@given(problems)
def test_a_strategy_is_dominated_only_by_one_that_is_no_worse_in_every_number(problem):
    for choices in (choices for table in problem.tables for choices in table.choices):
        kept = measured(without_dominated(choices, nobody))
        for place, costs in measured(choices):
            assert any(place == other and all(a <= b for a, b in zip(less, costs, strict=True)) for other, less in kept)


@settings(max_examples=150, deadline=None)
@given(problems)
def test_with_work_once_per_step_among_the_passes_no_choice_takes_longer(problem):
    moved = once_in_passes(problem)
    for stages, rows in every_choice(problem):
        before, after = price(problem, stages, rows), price(moved, stages, rows)
        assert after <= before * (1 + 1e-12)
        assert np.isfinite(after) == np.isfinite(before)


@settings(max_examples=150, deadline=None)
@given(pipelines(ScheduleKind.ONE_F_ONE_B, 1))
def test_on_one_stage_work_once_per_step_counts_whole_among_the_passes(problem):
    assert solved(once_in_passes(problem)) == pytest.approx(brute_force(problem), rel=1e-9)


@settings(max_examples=150, deadline=None)
@given(problems, st.data())
def test_the_step_of_a_solution_is_what_the_formulas_say(problem, data):
    every = list(every_choice(problem))
    stages, rows = every[data.draw(st.integers(0, len(every) - 1))]
    chosen = tuple(tuple(rows[n] for first, end in each for n in range(first, end)) for each in stages)
    free = roomy(problem)
    assert step_s(problem, Solution(0.0, stages, chosen)) == pytest.approx(price(free, stages, rows), rel=1e-12)


@settings(max_examples=200, deadline=None)
@given(problems, shares)
def test_bounds_are_never_above_the_optimum_and_inf_only_where_nothing_that_is_better_fits(problem, share):
    expected = brute_force(problem)
    free = brute_force(roomy(problem))
    assert mean_step_s(problem) <= free * (1 + 1e-9)
    best_s = expected * share if np.isfinite(expected) else float("inf")
    for part in (problem, promising(problem, best_s)):
        bound = Bounds(part).step_s(best_s)
        if expected < best_s:
            assert bound <= expected * (1 + 1e-9)
        else:
            assert bound <= brute_force(part) * (1 + 1e-9)


@settings(max_examples=200, deadline=None)
@given(problems, shares)
def test_all_steps_one_after_the_other_find_the_optimum_if_it_beats_the_best(problem, share):
    expected = brute_force(problem)
    best_s = expected * share if np.isfinite(expected) else float("inf")
    kept = undominated(promising(problem, best_s))
    # The steps of explore: a narrow pass, the bound with work once per step among the passes, the exact solution.
    quick = solve_pipeline(kept, best_s, nothing, width=4)
    if quick is not None:
        assert expected * (1 - 1e-9) <= quick.step_s < best_s
        best_s = quick.step_s
    relaxed = undominated(once_in_passes(promising(kept, best_s)))
    solution = solve_pipeline(relaxed, best_s, nothing)
    if solution is not None:
        whole = Solution(0.0, solution.stages, _rows_in(kept, relaxed, solution))
        found = step_s(kept, whole)
        assert solution.step_s <= expected * (1 + 1e-9)
        assert price(kept, whole.stages, by_layer(whole)) == pytest.approx(found, rel=1e-9)
        best_s = min(best_s, found)
    best_s = min(best_s, solved(kept, best_s))
    if np.isfinite(expected):
        assert best_s == pytest.approx(expected * min(share, 1.0), rel=1e-9)
    else:
        assert not np.isfinite(best_s)
