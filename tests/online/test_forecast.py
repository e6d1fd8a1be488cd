"""The forecast follows what drifts, averages what comes and goes, and knows how long it can be trusted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_runs import window

from planner.online.forecast import Forecast, begin_forecast, update_forecast

FLAT = np.ones((2, 8))
HOT = np.array([[8.0] + [1.0] * 7] * 2)
COLD = np.array([[1.0] * 7 + [8.0]] * 2)


def shares(loads):
    return loads / loads.sum(axis=1, keepdims=True)


def forecast_after(sequence, num_steps=10):
    forecast = begin_forecast(window(0, sequence[0], num_steps))
    for index, loads in enumerate(sequence[1:], start=1):
        forecast = update_forecast(forecast, window(index, loads, num_steps))
    return forecast


def distance(forecast, loads):
    return float(np.abs(forecast.array - shares(np.asarray(loads, dtype=float))).max())


def test_after_one_window_the_forecast_is_the_window_for_as_long_again():
    forecast = forecast_after([HOT])
    assert distance(forecast, HOT) < 1e-4
    assert forecast.horizon_steps == 10


def test_steady_load_with_the_noise_of_counting_is_averaged():
    rng = np.random.default_rng(0)
    noisy = [np.array([rng.multinomial(2000, row) for row in shares(HOT)]) for _ in range(40)]
    forecast = begin_forecast(window(0, noisy[0], tokens=2000))
    for index, loads in enumerate(noisy[1:], start=1):
        forecast = update_forecast(forecast, window(index, loads, tokens=2000))
    typical = np.mean([np.abs(shares(loads) - shares(HOT)).max() for loads in noisy])
    assert distance(forecast, HOT) < typical / 2
    assert forecast.horizon_steps > 200


def test_the_variance_of_a_layer_is_what_its_windows_missed_their_forecast_by():
    """Layer 0 is the same in every window, layer 1 is 2000 tokens drawn by chance; nobody can foresee the draw."""
    rng = np.random.default_rng(0)
    hot = shares(HOT)[1]
    drawn = [np.array([2000 * hot, rng.multinomial(2000, hot)]) for _ in range(80)]
    forecast = begin_forecast(window(0, drawn[0], tokens=2000))
    assert forecast.variances == ()
    for index, loads in enumerate(drawn[1:], start=1):
        forecast = update_forecast(forecast, window(index, loads, tokens=2000))
    constant, noisy = forecast.variances
    of_a_draw = (1 - np.square(hot).sum()) / 2000
    assert constant < 1e-3 * of_a_draw
    assert of_a_draw / 2 < noisy < 2 * of_a_draw


def test_a_steady_drift_is_followed_at_once():
    rng = np.random.default_rng(1)
    walk = np.cumsum(rng.normal(0, 0.3, (30, 2, 8)), axis=0)
    forecast = forecast_after(np.exp(walk))
    last, before = shares(np.exp(walk[-1])), shares(np.exp(walk[-2]))
    assert np.abs(forecast.array - last).max() < 0.35 * np.abs(before - last).max()


def test_a_lasting_change_is_followed_from_its_second_window_on():
    forecast = forecast_after([HOT] * 20 + [COLD] * 2)
    assert distance(forecast, COLD) < 0.05


def test_a_spike_of_one_window_hardly_moves_the_forecast():
    forecast = forecast_after([HOT] * 20 + [COLD])
    assert distance(forecast, HOT) < 0.1 * distance(forecast, COLD)


@pytest.mark.parametrize("period", [2, 3, 4])
def test_a_load_that_comes_and_goes_is_forecast_by_its_mean(period):
    rotating = [np.roll(HOT, 2 * (index % period), axis=1) for index in range(24 * period)]
    mean = np.mean([shares(loads) for loads in rotating[:period]], axis=0)
    assert np.abs(forecast_after(rotating).array - mean).max() < 0.1


def test_the_horizon_is_short_while_the_load_drifts_and_grows_while_it_stays():
    rng = np.random.default_rng(2)
    drifting = list(np.exp(np.cumsum(rng.normal(0, 0.5, (20, 2, 8)), axis=0)))
    moving = forecast_after(drifting)
    settled = forecast_after(drifting + [drifting[-1]] * 60)
    assert moving.horizon_steps < 100
    assert settled.horizon_steps > 3 * moving.horizon_steps


def test_the_horizon_never_exceeds_what_the_run_has_lasted():
    assert forecast_after([HOT] * 7).horizon_steps <= 70


def test_missing_windows_count_as_drift_over_their_steps():
    near = update_forecast(forecast_after([HOT, HOT, COLD]), window(3, HOT))
    far = update_forecast(forecast_after([HOT, HOT, COLD]), window(300, HOT))
    assert distance(far, HOT) <= distance(near, HOT)


GAPS = pytest.mark.parametrize("gap_steps", [20_000, 10**6])


def noisy_forecast(windows, gap_steps=0, gap_at=30, later=None):
    """After so many windows of 10 steps with the noise of 2,000 tokens; a gap comes before window `gap_at`."""
    rng = np.random.default_rng(3)
    forecast = None
    for index in range(windows):
        load = HOT if later is None or index < gap_at else later
        rows = np.array([rng.multinomial(2000, row) for row in shares(load)])
        first_step = 10 * index + (gap_steps if index >= gap_at else 0)
        seen = window(index, rows, tokens=2000, first_step=first_step)
        forecast = begin_forecast(seen) if forecast is None else update_forecast(forecast, seen)
    return forecast


def mean_horizon(windows, **run):
    return np.mean([noisy_forecast(number, **run).horizon_steps for number in range(*windows)])


@GAPS
@pytest.mark.parametrize("gap_at", [1, 2, 30])
def test_after_a_gap_the_horizon_of_a_noisy_load_is_that_without_the_gap(gap_steps, gap_at):
    windows = gap_at + 5, gap_at + 15
    without, with_gap = mean_horizon(windows), mean_horizon(windows, gap_steps=gap_steps, gap_at=gap_at)
    assert without / 2 < with_gap < 2 * without
    assert noisy_forecast(gap_at + 5, gap_steps=gap_steps, gap_at=gap_at).horizon_steps <= 10 * (gap_at + 5)


@GAPS
def test_drift_that_was_known_before_a_gap_is_known_after_it(gap_steps):
    walk = np.exp(np.cumsum(np.random.default_rng(1).normal(0, 0.3, (40, 2, 8)), axis=0))
    forecast = forecast_after(walk[:30])
    drifting = forecast.horizon_steps
    for index in range(30, 40):
        seen = window(index, walk[index], first_step=10 * index + gap_steps)
        forecast = update_forecast(forecast, seen)
        assert forecast.horizon_steps < 3 * drifting


@GAPS
def test_a_load_that_changed_over_a_gap_is_followed_at_once_and_is_no_drift_after_it(gap_steps):
    changed = {"gap_steps": gap_steps, "later": COLD}
    assert distance(noisy_forecast(31, **changed), COLD) < 0.05
    assert distance(noisy_forecast(60, **changed), COLD) < 0.02
    without = mean_horizon((35, 45))
    assert without / 2 < mean_horizon((35, 45), **changed) < 2 * without


def test_a_load_that_stayed_over_a_gap_is_still_averaged():
    assert noisy_forecast(31, gap_steps=20_000).weight < 0.2


def test_a_job_set_back_far_takes_its_other_load_for_no_drift():
    back = noisy_forecast(40, gap_steps=-280, later=COLD)
    assert distance(back, COLD) < 0.05
    assert back.horizon_steps > 200


def test_windows_that_are_always_far_apart_say_nothing_about_drift():
    forecast = begin_forecast(window(0, HOT))
    for index in range(1, 5):
        forecast = update_forecast(forecast, window(index, COLD, first_step=1000 * index))
    assert distance(forecast, COLD) < 1e-3
    assert forecast.horizon_steps == 50


def test_windows_of_more_steps_than_can_be_counted_exactly_are_taken():
    most = 2**53 - 1
    forecast = begin_forecast(window(0, HOT).model_copy(update={"num_steps": most}))
    following = update_forecast(forecast, window(1, HOT).model_copy(update={"num_steps": most}))
    assert following.horizon_steps == pytest.approx(2.0 * most)


def test_a_job_set_back_to_an_earlier_step_goes_on():
    back = window(9, COLD).model_copy(update={"first_step": 5})
    forecast = update_forecast(forecast_after([HOT] * 5), back)
    assert forecast.horizon_steps > 0


def test_all_tokens_on_one_expert_is_a_load_like_any_other():
    only = np.eye(8)[:2] + 0.0
    forecast = forecast_after([only, only, only])
    assert distance(forecast, only) == 0


ONE_TOKEN = np.eye(8)[[3, 5]]
"""All of the one token that a layer got went to one expert."""


@pytest.mark.parametrize("drifts", [False, True])
def test_a_window_of_one_token_hardly_moves_the_forecast(drifts):
    steps = np.random.default_rng(1).normal(0, 0.3 if drifts else 0.0, (30, 2, 8))
    before = forecast_after(HOT * np.exp(np.cumsum(steps, axis=0)))
    after = update_forecast(before, window(30, ONE_TOKEN, tokens=1))
    assert after.counted < 1e-3
    assert np.abs(after.array - before.array).max() < 1e-3
    assert after.horizon_steps > 0.9 * before.horizon_steps


def test_a_run_that_begins_with_one_token_forgets_it_at_once():
    forecast = begin_forecast(window(0, ONE_TOKEN, tokens=1))
    assert distance(update_forecast(forecast, window(1, HOT)), HOT) < 1e-3


def test_a_job_whose_windows_become_thin_is_followed():
    forecast = forecast_after([HOT] * 10)
    for index in range(10, 30):
        forecast = update_forecast(forecast, window(index, COLD, tokens=10_000))
    assert forecast.counted > 0.5
    assert distance(forecast, COLD) < 0.05


def test_what_versions_before_kept_goes_on():
    forecast = forecast_after([HOT] * 5)
    old = forecast.model_dump(mode="json")
    for name in ("counted", "usual_tokens", "doubt", "noises", "seen_steps"):
        del old[name]
    for seen in old["recent"]:
        del seen["tokens"], seen["num_steps"], seen["after_gap"]
    following = update_forecast(Forecast.model_validate(old), window(5, HOT))
    assert distance(following, HOT) < 1e-4
    assert following.horizon_steps == 60


@given(
    st.lists(
        st.lists(st.lists(st.integers(0, 1000), min_size=4, max_size=4).filter(any), min_size=2, max_size=2),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 100),
)
@settings(max_examples=100, deadline=None)
def test_every_history_gives_shares_and_a_finite_horizon(history, num_steps):
    forecast = begin_forecast(window(0, history[0], num_steps))
    for index, loads in enumerate(history[1:], start=1):
        forecast = update_forecast(forecast, window(index, loads, num_steps))
    assert forecast.array.sum(axis=1) == pytest.approx(1)
    assert (forecast.array >= 0).all()
    assert 0 <= forecast.horizon_steps <= num_steps * len(history)
    assert Forecast.model_validate_json(forecast.model_dump_json()) == forecast
