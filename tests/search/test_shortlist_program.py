from itertools import combinations

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.search.shortlist import choose, regrets


def loss_of(chosen, regret, probabilities):
    """(probability of no plan, expected, largest regret) when every scenario is served by the best chosen plan."""
    served = regret[list(chosen)].min(axis=0)
    fits = np.isfinite(served)
    return (float(probabilities[~fits].sum()), float(served[fits] @ probabilities[fits]), float(served[fits].max()))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_program_loses_as_little_as_the_best_of_all_subsets(data):
    plans, scenarios = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    cells = st.one_of(st.integers(10, 60).map(float), st.just(float("inf")))
    times = np.array(data.draw(st.lists(cells, min_size=plans * scenarios, max_size=plans * scenarios)))
    times = times.reshape(plans, scenarios)
    times[0, 0] = 10.0
    assume(np.isfinite(times).any(axis=0).all())
    weights = np.array(data.draw(st.lists(st.integers(1, 9), min_size=scenarios, max_size=scenarios)), float)
    probabilities = weights / weights.sum()
    size = data.draw(st.integers(1, plans))
    regret = regrets(times)
    subsets = [(0, *others) for count in range(size) for others in combinations(range(1, plans), count)]
    best = min(loss_of(subset, regret, probabilities) for subset in subsets)
    chosen = choose(times, probabilities, size)
    assert chosen[0] == 0
    assert len(chosen) == len(set(chosen)) <= min(size, plans)
    found = loss_of(chosen, regret, probabilities)
    assert found[0] <= best[0] + 1e-6
    if abs(found[0] - best[0]) < 1e-9:
        assert found[1] <= best[1] + 1e-6
        if abs(found[1] - best[1]) < 1e-9:
            assert found[2] <= best[2] + 1e-6


def test_a_scenario_with_a_winner_of_its_own_brings_it_in():
    times = np.array([[10.0, 30.0], [11.0, 12.0], [10.1, 29.0]])
    assert choose(times, np.array([0.5, 0.5]), 2) == [0, 1]


def test_of_plans_with_equal_expected_regret_the_one_with_the_least_worst_is_taken():
    times = np.array([[10.0, 20.0, 20.0], [30.0, 10.0, 20.0], [30.0, 15.0, 15.0], [30.0, 40.0, 10.0]])
    assert choose(times, np.array([0.5, 0.25, 0.25]), 2) == [0, 2]


def test_spare_places_go_to_the_plans_of_least_expected_regret():
    times = np.array([[10.0, 10.0], [20.0, 20.0], [10.5, 10.5]])
    assert choose(times, np.array([0.5, 0.5]), 2) == [0, 2]


def test_spare_places_stay_empty_rather_than_hold_plans_that_nobody_would_weigh():
    times = np.array([[10.0, 10.0], [20.0, 20.0], [10.5, 10.5]])
    assert choose(times, np.array([0.5, 0.5]), 3) == [0, 2]
