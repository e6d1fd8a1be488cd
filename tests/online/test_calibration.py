"""Gains in the job's own time: what steps were measured to take over what they are priced at."""

import numpy as np
import pytest
from moe_runs import imbalance_price, run_context, window

from planner.online import begin, decide
from planner.online.calibration import SAMPLES, Calibration, calibration_of
from planner.online.pricing import Pricing
from planner.spec.decision import Action

RUN = run_context(layers=1, experts=8, ranks=4)
DEAR = run_context(layers=1, experts=8, ranks=4, bandwidth=1e7)
"""Nothing moves: 40 s for a move."""
HOT_RANK = np.array([[4.0, 4, 1, 1, 1, 1, 1, 1]])


def price_s(run, state, loads=HOT_RANK):
    return Pricing(run, imbalance_price).step(run.plans[0], loads / loads.sum(), state.placement).seconds


def after(times, run=DEAR, **fields):
    """The last decision and the state after windows whose steps took so many times their price."""
    state, decision = begin(run), None
    for index, ratio in enumerate(times):
        seen = window(index, HOT_RANK, num_steps=1, step_time_s=ratio * price_s(run, state), **fields)
        decision, state = decide(seen, state, run, imbalance_price)
    return decision, state


def test_until_three_windows_were_measured_gains_are_as_priced():
    decision, state = after([10.0, 10.0])
    assert calibration_of(state) == Calibration(1.0, None)
    assert "scaled to this job" not in decision.reason


def test_gains_are_told_and_counted_in_the_time_that_steps_take():
    priced, plain = after([1.0] * 4)
    measured, state = after([10.0] * 4)
    assert calibration_of(state).ratio == pytest.approx(10.0, rel=1e-3)
    assert measured.gain_s_per_step == pytest.approx(10 * priced.gain_s_per_step, rel=1e-3)
    assert measured.cost_s == priced.cost_s
    assert "gains are scaled to this job, whose steps take 10 times as long as predicted" in measured.reason
    # Three windows count as priced, the fourth ten times.
    assert state.account_s == pytest.approx(plain.account_s * 13 / 4, rel=1e-3)


def test_no_single_window_sets_the_ratio():
    steady = calibration_of(after([2.0] * 9)[1])
    for odd in (0, 4, 8):
        times = [2.0] * 9
        times[odd] = 500.0
        assert calibration_of(after(times)[1]).ratio == pytest.approx(steady.ratio, rel=1e-3)


def test_a_lasting_change_is_followed():
    assert calibration_of(after([2.0] * SAMPLES + [6.0] * 4)[1]).ratio == pytest.approx(6.0, rel=1e-3)


@pytest.mark.parametrize(("ratio", "told"), [(1e-4, "0.0001"), (1e4, "10,000")])
def test_an_absurd_ratio_scales_nothing_and_the_reason_says_why(ratio, told):
    decision, state = after([ratio] * 4)
    assert calibration_of(state).ratio == 1.0
    assert decision.gain_s_per_step == pytest.approx(after([1.0] * 4)[0].gain_s_per_step, rel=1e-3)
    assert (
        f"measured steps take {told} times as long as predicted, so model or cluster are not those" in decision.reason
    )


def test_a_move_that_prices_think_too_dear_is_made_where_steps_are_slow():
    slow, quick = after([50.0] * 8), after([1.0] * 8)
    assert slow[1].placement != begin(DEAR).placement
    assert quick[1].placement == begin(DEAR).placement


def test_a_window_that_was_over_before_the_move_is_held_against_what_stood_earlier():
    decision, state = decide(window(0, HOT_RANK), begin(RUN), RUN, imbalance_price)
    assert decision.action is Action.REBALANCE
    late = window(1, HOT_RANK, step_time_s=3 * price_s(RUN, begin(RUN)), placed_step=20)
    _, state = decide(late, state, RUN, imbalance_price)
    assert state.step_ratios == pytest.approx((3.0,), rel=1e-3)


def test_a_window_under_what_nobody_knows_says_nothing():
    unknown = window(0, HOT_RANK, step_time_s=3.0, placed_step=10)
    assert decide(unknown, begin(RUN), RUN, imbalance_price)[1].step_ratios == ()
