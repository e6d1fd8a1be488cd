"""A decision costs when it is carried out: what the next windows say is in force settles the account."""

import pytest
from moe_runs import estimate_of, imbalance_price, run_context, window
from numpy import array, ones

from planner.cost.balance import imbalance, rank_loads
from planner.online import begin, decide
from planner.online.intake import in_force
from planner.online.ledger import CREDIT
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


def test_a_window_of_few_tokens_books_as_little_of_its_loss():
    """The load stays: so a move gains after either window, and either books a loss."""
    _, state = decide(window(0, HOT_RANK, num_steps=1), START, RUN_OF_DEAR_MOVES, imbalance_price)

    def booked_s(tokens):
        seen = window(1, HOT_RANK, num_steps=1, tokens=tokens)
        return decide(seen, state, RUN_OF_DEAR_MOVES, imbalance_price)[1].account_s - state.account_s

    assert booked_s(100_000) > 0.1
    beside_usual = 14 / 50_007  # the mean of 100000 and 14
    assert booked_s(14) == pytest.approx(beside_usual * booked_s(100_000), rel=1e-3)


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


def test_steps_before_a_late_change_are_known_until_their_window_was_counted():
    """The move was carried out after the window: its steps ran at the start."""
    reported = window(1, HOT_RANK, placement=DECISION.placement.model_dump(), placed_step=20)
    settled = in_force(reported, DECIDED, RUN)
    (stood,) = settled.earlier
    assert (stood.placement, stood.first_step, settled.since_step) == (START.placement, 0, 20)
    _, state = decide(reported, DECIDED, RUN, imbalance_price)
    assert state.account_s <= max(DECIDED.account_s, 0.0), "what was decided already is no reason to move again"
    assert state.earlier == (), "no later window can have steps under it"


def total_of_a_job_that_never_switches(run, other_id, windows=160):
    """(Seconds of its steps and moves, decisions by action): the hot rank is another every 40 windows."""
    state, total_s, actions = begin(run), 0.0, []
    placement = state.placement

    def price(model, cluster, training, plan, workload, placed):
        found = imbalance_price(model, cluster, training, plan, workload, placed)
        return estimate_of(plan.id, workload.name, found.step_time_s - (0.5 if plan.id == other_id else 0.0))

    for index in range(windows):
        loads = ones((1, 8))
        loads[0, 2 * (index // 40) : 2 * (index // 40) + 2] = 4.0
        seen = window(index, loads, num_steps=50, placement=placement.model_dump(), plan_id=run.plans[0].id)
        shares = array(seen.tokens) / sum(seen.tokens[0])
        total_s += 50 * (1 + imbalance(rank_loads(shares, array(placement.layers), 4)))
        decision, state = decide(seen, state, run, price)
        actions.append(decision.action)
        if decision.action is Action.REBALANCE:
            placement, total_s = decision.placement, total_s + decision.cost_s
    return total_s, actions


def test_a_job_that_switches_no_plans_is_still_told_which_experts_to_move():
    alone, other = run_context(1, 8, 4), run_context(1, 8, 2).plans[0]
    beside = alone.model_copy(update={"plans": (alone.plans[0], other)})
    with_one_plan_s, _ = total_of_a_job_that_never_switches(alone, other.id)
    with_two_s, actions = total_of_a_job_that_never_switches(beside, other.id)
    assert Action.SWITCH_PLAN in actions and Action.REBALANCE in actions
    assert with_two_s <= 1.01 * with_one_plan_s


def test_a_switch_that_was_made_is_not_held_against_later_ones():
    alone, other = run_context(1, 8, 4), run_context(1, 8, 2).plans[0]
    run = alone.model_copy(update={"plans": (alone.plans[0], other)})
    state = begin(run).model_copy(update={"declined": (other.id,)})
    assert in_force(window(0, ones((1, 8)), plan_id=other.id), state, run).declined == ()


def decided_at_last(run):
    """The first decision to move that HOT_RANK leads to, and the state after it."""
    state = begin(run)
    for index in range(30):
        decision, state = decide(window(index, HOT_RANK), state, run, imbalance_price)
        if decision.action is Action.REBALANCE:
            break
    return decision, state


@pytest.mark.parametrize(
    ("load", "hottest_at_start", "hottest_now", "lost"),
    [
        ((4.0, 4.0, 2.5, 1.0, 1.0, 1.0, 1.0, 1.0), 8.0, 6.5, 1.5),
        ((2.0, 4.0, 4.0, 1.0, 1.0, 1.0, 1.0, 1.0), 6.0, 8.0, 1.0),
    ],
)
def test_steps_before_a_late_change_count_no_more_than_the_new_placement_would_have_lost_in_them_nor_they_did(
    load, hottest_at_start, hottest_now, lost
):
    """The best placement has 5 on its hottest rank. `lost`: the smaller excess, of what was and of what is in force."""
    decision, decided = decided_at_last(RUN_OF_DEAR_MOVES)
    for placement, hottest in ((START.placement, hottest_at_start), (decision.placement, hottest_now)):
        assert rank_loads(array([load] * 2), array(placement.layers), 4).max() == hottest
    index = decision.window + 1
    reported = window(index, [load] * 2, placement=decision.placement.model_dump(), placed_step=10 * index + 10)
    _, state = decide(reported, decided, RUN_OF_DEAR_MOVES, imbalance_price)
    lost_s = 10 * lost / (sum(load) / 4)
    assert state.account_s - decided.account_s == pytest.approx(CREDIT * lost_s, rel=1e-3)
