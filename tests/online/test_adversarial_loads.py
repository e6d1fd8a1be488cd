"""The policy against loads made to hurt it: within what is proved, and near the best fixed placement."""

import numpy as np
import pytest
from adversaries import ADVERSARIES, CHEAP, DEAR, EXPERTS, RANKS, hot, play, spiteful, step_s
from hypothesis import given, settings
from hypothesis import strategies as st

DELAYS = (0.1, 1.0)
"""In windows: as the agent does it, and as late as it can."""


@pytest.mark.parametrize(
    ("run", "num_steps", "factor"),
    [(CHEAP, 1, 1.1), (CHEAP, 10, 1.1), (CHEAP, 100, 1.1), (DEAR, 100, 1.1), (DEAR, 10, 1.1), (DEAR, 1, 1.5)],
)
@pytest.mark.parametrize("name", ADVERSARIES)
def test_the_total_is_within_the_proved_bound_and_near_the_best_fixed_placement(name, run, num_steps, factor):
    """Farthest where one move costs a twentieth of the whole game, and the best fixed placement is had for nothing."""
    game = play(ADVERSARIES[name], 120, num_steps, run)
    assert game.stays_within_what_is_proved()
    assert game.total_s <= factor * game.best_fixed_s


@pytest.mark.parametrize(
    ("run", "num_steps", "factor"),
    [(CHEAP, 1, 1.4), (CHEAP, 10, 1.4), (CHEAP, 100, 1.4), (DEAR, 100, 1.4), (DEAR, 10, 1.5), (DEAR, 1, 1.5)],
)
@pytest.mark.parametrize("every_rank", [False, True])
def test_an_adversary_that_sees_the_placement_and_heats_one_rank_stays_within_its_factor(
    run, num_steps, factor, every_rank
):
    """No deterministic policy can do much: it is wrong in every window. Even experts cost it 2.6 s / 2 s."""
    game = play(spiteful(every_rank), 120, num_steps, run)
    assert game.stays_within_what_is_proved()
    assert game.total_s <= factor * game.best_fixed_s


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize(
    ("run", "num_steps"), [(CHEAP, 1), (CHEAP, 10), (CHEAP, 100), (DEAR, 100), (DEAR, 10), (DEAR, 1)]
)
@pytest.mark.parametrize("name", ADVERSARIES)
def test_decisions_that_are_carried_out_late_stay_within_the_proved_bound(name, run, num_steps, delay):
    assert play(ADVERSARIES[name], 120, num_steps, run, delay).stays_within_what_is_proved()


@pytest.mark.parametrize("delay", [0.0, *DELAYS])
@pytest.mark.parametrize("run", [CHEAP, DEAR])
@pytest.mark.parametrize("num_steps", [3, 10, 100])
def test_a_load_that_is_even_until_the_decision_is_carried_out_does_not_make_the_policy_thrash(num_steps, run, delay):
    """The adversary knows what is coming: easy under what is in force, hard under what takes its place."""

    def between(index, placement, coming):
        if placement == coming:
            return hot(*coming.layers[0][index % RANKS * 2 :][:2], by=20.0)
        pairs = [(a, b) for a in range(EXPERTS) for b in range(a)]
        return hot(*max(pairs, key=lambda pair: worse(hot(*pair, by=20.0), placement, coming)), by=20.0)

    def worse(loads, placement, coming):
        shares = np.array([loads / loads.sum()])
        return step_s(shares, coming) - step_s(shares, placement)

    assert play(between, 60, num_steps, run, delay).stays_within_what_is_proved()


@given(
    st.lists(st.lists(st.integers(0, 50), min_size=8, max_size=8).filter(any), min_size=1, max_size=25),
    st.sampled_from([1, 10, 100]),
    st.sampled_from([CHEAP, DEAR]),
    st.sampled_from([0.0, *DELAYS]),
)
@settings(max_examples=40, deadline=None)
def test_no_load_history_breaks_the_proved_bound(history, num_steps, run, delay):
    game = play(lambda index, *_: np.asarray(history[index]), len(history), num_steps, run, delay)
    assert game.stays_within_what_is_proved()


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("run", [CHEAP, DEAR])
@pytest.mark.parametrize("name", ["rotating hot spot, every 5 windows", "another pair every window", "bursts"])
def test_the_bound_holds_in_the_jobs_own_time_however_that_wanders(name, run, delay):
    times = np.random.default_rng(2).lognormal(1.0, 1.0, 120)
    game = play(ADVERSARIES[name], 120, 10, run, delay, clock=lambda index: times[index])
    assert game.stays_within_what_is_proved()


@pytest.mark.parametrize("name", ["hot expert", "hot rank", "spike of one window"])
def test_a_load_that_settles_is_answered_at_most_once(name):
    assert play(ADVERSARIES[name], 120).actions <= 1


@pytest.mark.parametrize("name", ["oscillation at the window's frequency", "rotating hot spot, every window"])
def test_a_load_faster_than_the_windows_is_not_chased(name):
    assert play(ADVERSARIES[name], 120).actions <= 12


@pytest.mark.parametrize("name", ["hot rank", "rotating hot spot, every 20 windows", "slow oscillation"])
def test_adapting_beats_never_moving_where_it_can(name):
    game = play(ADVERSARIES[name], 120)
    assert game.total_s < game.static_s


@pytest.mark.parametrize("num_steps", [1, 10])
def test_chasing_noise_costs_less_than_one_percent(num_steps):
    rng = np.random.default_rng(0)
    game = play(lambda index, *_: rng.multinomial(4000, np.ones(EXPERTS) / EXPERTS), 120, num_steps)
    assert game.total_s <= 1.01 * game.best_fixed_s


@pytest.mark.parametrize(("on", "off", "by"), [(8, 2, 4.0), (4, 4, 20.0), (8, 8, 100.0)])
def test_what_was_lost_is_not_forgotten_in_a_window_without_loss(on, off, by):
    """Ski rental: a hot rank that comes and goes is as dear as one that stays, so its move must come."""

    def load(index, *_):
        return hot(0, 1, by=by) if index % (on + off) < on else np.ones(EXPERTS)

    game = play(load, 400, 1, DEAR)
    assert game.stays_within_what_is_proved()
    assert game.total_s <= 1.1 * game.best_fixed_s
