import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from number_instances import brute_force, by_layer, lifelike, pipelines, price

from planner.search.bounds import Bounds, least_slowest, mean_step_s
from planner.search.pareto import beaten, undominated
from planner.search.partition import solve_pipeline
from planner.spec.plan import ScheduleKind


def nothing(work: int) -> None:
    """Any effort may be spent."""


def check_against_brute_force(problem) -> None:
    expected = brute_force(problem)
    solution = solve_pipeline(problem, float("inf"), nothing)
    bound = Bounds(problem).step_s()
    assert mean_step_s(problem) <= expected * (1 + 1e-9)
    if not np.isfinite(expected):
        assert solution is None
        return
    assert solution is not None
    assert solution.step_s == pytest.approx(expected, rel=1e-9)
    assert bound <= expected * (1 + 1e-9)
    assert price(problem, solution.stages, by_layer(solution)) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=200, deadline=None)
@given(pipelines())
def test_one_f_one_b_pipelines_are_as_fast_as_brute_force_finds(problem):
    check_against_brute_force(problem)


@settings(max_examples=100, deadline=None)
@given(pipelines(ScheduleKind.INTERLEAVED))
def test_interleaved_pipelines_are_as_fast_as_brute_force_finds(problem):
    check_against_brute_force(problem)


@settings(max_examples=100, deadline=None)
@given(pipelines(ScheduleKind.GPIPE))
def test_gpipe_pipelines_with_two_beats_are_as_fast_as_brute_force_finds(problem):
    check_against_brute_force(problem)


@settings(max_examples=150, deadline=None)
@given(pipelines(ScheduleKind.ZERO_BUBBLE))
def test_zero_bubble_pipelines_are_as_fast_as_brute_force_finds(problem):
    check_against_brute_force(problem)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(ScheduleKind)).flatmap(lambda kind: pipelines(kind, unlike=True)))
def test_pipelines_of_unlike_stages_are_as_fast_as_brute_force_finds(problem):
    check_against_brute_force(problem)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(ScheduleKind)).flatmap(lambda kind: pipelines(kind, unlike=True)).map(lifelike))
def test_seconds_and_bytes_of_real_sizes_hide_no_better_pipeline(problem):
    check_against_brute_force(problem)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([kind for kind in ScheduleKind if kind != "interleaved"]).flatmap(lambda k: pipelines(k, 1)))
def test_a_stage_of_its_own_is_as_fast_as_brute_force_finds(problem):
    check_against_brute_force(problem)


@settings(max_examples=100, deadline=None)
@given(pipelines(unlike=True), st.floats(0.5, 1.5))
def test_with_a_best_time_to_beat_only_strictly_faster_pipelines_are_found(problem, share):
    expected = brute_force(problem)
    if not np.isfinite(expected) or expected == 0:
        return
    solution = solve_pipeline(problem, expected * share, nothing)
    # Sums of seconds are exact to rounding only, so times are told apart beyond it.
    if abs(share - 1) > 1e-9:
        assert (solution is not None) == (share > 1)
    again = solve_pipeline(problem, expected, nothing)
    assert again is None or again.step_s == pytest.approx(expected, rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(pipelines(unlike=True))
def test_a_narrow_pass_is_feasible_and_never_better_than_the_optimum(problem):
    quick = solve_pipeline(problem, float("inf"), nothing, width=4)
    if quick is not None:
        assert quick.step_s >= brute_force(problem) * (1 - 1e-9)
        assert price(problem, quick.stages, by_layer(quick)) == pytest.approx(quick.step_s, rel=1e-9)


_rows = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


def _no_worse(one, other) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True))


@settings(max_examples=100, deadline=None)
@given(_rows)
def test_undominated_keeps_exactly_the_rows_that_no_other_beats_and_the_first_of_equals(rows):
    expected = [
        i
        for i, row in enumerate(rows)
        if not any(_no_worse(other, row) and (other != row or j < i) for j, other in enumerate(rows))
    ]
    assert undominated(np.array(rows)).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(_rows, _rows)
def test_beaten_finds_exactly_the_rows_that_another_beats_or_equals(rows, others):
    expected = [any(_no_worse(other, row) for other in others) for row in rows]
    assert beaten(np.array(rows), np.array(others)).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=9), st.integers(1, 4))
def test_the_bound_on_the_slowest_stage_is_the_best_contiguous_cut(times, parts):
    parts = min(parts, len(times))

    def best(rest, left):
        if left == 1:
            return sum(rest)
        return min(max(sum(rest[:cut]), best(rest[cut:], left - 1)) for cut in range(1, len(rest) - left + 2))

    expected = best(times, parts)
    found = least_slowest(np.array(times, float), parts)
    assert found == pytest.approx(expected, rel=1e-9)
    assert found <= expected
