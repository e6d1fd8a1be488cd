"""A decision costs when it is carried out: what the next windows say is in force settles the account."""

import pytest
from moe_runs import imbalance_price, run_context, window
from numpy import array

from planner.online import begin, decide
from planner.online.intake import in_force
from planner.spec.decision import Action

RUN = run_context(layers=2, experts=8, ranks=4)
HOT_RANK = array([[4.0, 4, 1, 1, 1, 1, 1, 1]] * 2)
RUN_OF_DEAR_MOVES = run_context(layers=2, experts=8, ranks=4, bandwidth=1e7)
START = begin(RUN)
DECISION, DECIDED = decide(window(0, HOT_RANK), START, RUN, imbalance_price)


def after(state, index, placement=None, **fields):
    """The state once window `index` has said what is in force."""
    if placement is not None:
        fields["placement"] = placement.model_dump()
    return in_force(window(index, HOT_RANK, **fields), state, RUN)


def test_the_cost_is_taken_when_the_move_is_decided():
    assert DECISION.action is Action.REBALANCE
    assert DECIDED.unconfirmed is not None
    assert DECIDED.unconfirmed.cost_s == DECISION.cost_s
    assert DECIDED.placed_step == 10


def test_a_window_that_still_has_the_old_placement_gives_the_cost_and_the_age_back():
    state = after(DECIDED, 1, START.placement)
    assert state.account_s == pytest.approx(DECIDED.account_s + DECISION.cost_s)
    assert state.placement == START.placement
    assert state.placed_step == 0


def test_the_cost_is_given_back_once():
    once = after(DECIDED, 1, START.placement)
    assert after(once, 2, START.placement) == once


@pytest.mark.parametrize("reported", [None, DECISION.placement])
def test_a_window_that_confirms_the_move_or_says_nothing_keeps_the_cost(reported):
    state = after(DECIDED, 1, reported)
    assert (state.account_s, state.placed_step) == (DECIDED.account_s, 10)
    assert state.unconfirmed is None


def test_a_confirmed_move_that_is_undone_later_is_not_given_back():
    state = after(after(DECIDED, 1, DECISION.placement), 2, START.placement)
    assert state.account_s == DECIDED.account_s


def test_a_move_that_is_carried_out_a_window_late_costs_after_all():
    state = after(after(DECIDED, 1, START.placement), 2, DECISION.placement)
    assert state.account_s == pytest.approx(DECIDED.account_s)
    assert state.placed_step == 20
    assert after(state, 3, START.placement).account_s == state.account_s


def test_a_window_that_ran_under_another_placement_books_no_loss():
    """Counts of ten steps; the start is reported, in force from the step on that is said."""

    def account_s(**fields):
        return decide(window(0, HOT_RANK, **fields), START, RUN_OF_DEAR_MOVES, imbalance_price)[1].account_s

    whole = account_s()
    assert whole > 0
    assert account_s(placed_step=3) == pytest.approx(0.7 * whole)
    assert account_s(placed_step=10) == account_s(placed_step=11) == 0.0
    assert account_s(placed_step=0) == whole


def test_a_placement_that_nobody_decided_is_as_old_as_it_is_reported():
    settled = after(after(DECIDED, 1, DECISION.placement), 2)
    assert after(settled, 3, START.placement).placed_step == 30
    assert after(settled, 3, START.placement, placed_step=34).placed_step == 34


def test_another_placement_than_the_decided_one_gives_the_cost_back_and_is_as_old_as_it_is_reported():
    other = START.placement.model_copy(update={"layers": tuple(row[::-1] for row in START.placement.layers)})
    state = after(DECIDED, 1, other, placed_step=13)
    assert state.account_s == pytest.approx(DECIDED.account_s + DECISION.cost_s)
    assert state.placed_step == 13


def test_an_agent_that_is_always_a_window_late_pays_for_each_move_once():
    """The answer to window 0 arrives during window 1, which so reports the start; its own answer is the same."""
    again, state = decide(window(1, HOT_RANK, placement=START.placement.model_dump()), DECIDED, RUN, imbalance_price)
    assert again.placement == DECISION.placement
    told_twice = state.account_s
    state = after(state, 2, DECISION.placement)
    assert state.account_s == told_twice
    assert (state.unconfirmed, state.refunded) == (None, None)


def test_two_moves_on_their_way_are_told_apart():
    """While the second is decided the first is carried out: the first is paid, the second given back."""
    refunded = after(DECIDED, 1, START.placement)
    second, state = decide(window(1, HOT_RANK[:, ::-1]), refunded, RUN, imbalance_price)
    for index in range(2, 30):
        if second.action is Action.REBALANCE:
            break
        second, state = decide(window(index, HOT_RANK[:, ::-1]), state, RUN, imbalance_price)
    assert second.placement not in (None, DECISION.placement)
    settled = after(state, 30, DECISION.placement)
    assert settled.account_s == pytest.approx(state.account_s + second.cost_s - DECISION.cost_s)
    assert settled.refunded.placement == second.placement


def test_steps_before_a_late_change_count_no_more_than_the_new_placement_would_have_lost_in_them():
    """The move was carried out after the window: its steps ran at the start, which was hot; the new one is not."""
    reported = window(1, HOT_RANK, placement=DECISION.placement.model_dump(), placed_step=20)
    settled = in_force(reported, DECIDED, RUN)
    (stood,) = settled.earlier
    assert (stood.placement, stood.first_step, settled.since_step) == (START.placement, 0, 20)
    _, state = decide(reported, DECIDED, RUN, imbalance_price)
    assert state.account_s <= max(DECIDED.account_s, 0.0), "what was decided already is no reason to move again"
    assert state.earlier == (), "no later window can have steps under it"
