"""The standstill around a move: assumed until the run has measured it, then what was measured."""

import numpy as np
import pytest
from moe_runs import imbalance_price, run_context, window

from planner.cost.migration import PAUSE_S
from planner.online import RunState, begin, decide
from planner.online.standstill import (
    ASSUMED,
    SPLIT_PAUSE_S,
    Standstill,
    split_pause_of,
    standstill_of,
    with_measured,
)
from planner.online.state import Debit, Refund
from planner.spec.decision import Action
from planner.spec.placement import TokenSplit
from planner.spec.window import Window

RUN = run_context(layers=2, experts=8, ranks=4)
HOT_RANK = np.array([[4.0, 4, 1, 1, 1, 1, 1, 1]] * 2)
OTHER_HOT_RANK = HOT_RANK[:, ::-1]


def moved():
    """The decision to move, and the state after it."""
    decision, state = decide(window(0, HOT_RANK), begin(RUN), RUN, imbalance_price)
    assert decision.action is Action.REBALANCE
    return decision, state


def after_move(**fields):
    """The state after the window that follows the move; `fields` of that window."""
    _, state = moved()
    return decide(window(1, HOT_RANK, **fields), state, RUN, imbalance_price)[1]


def test_without_a_measurement_the_standstill_is_assumed_and_the_reason_says_so():
    decision, state = moved()
    assert standstill_of(state) == ASSUMED == Standstill(PAUSE_S, measured=False)
    assert "(50 ms of it standstill, assumed)" in decision.reason
    assert standstill_of(after_move()) == ASSUMED, "a window without the field changes nothing"


def test_what_was_measured_beyond_the_predicted_transfer_is_the_standstill_of_the_next_move():
    decision, _ = moved()
    transfer_s = decision.cost_s - PAUSE_S
    state = after_move(pause_s=transfer_s + 0.2)
    assert standstill_of(state) == pytest.approx(Standstill(0.2, measured=True))
    index = 2
    while True:
        decision, state = decide(window(index, OTHER_HOT_RANK), state, RUN, imbalance_price)
        if decision.action is Action.REBALANCE:
            break
        index += 1
    assert "(200 ms of it standstill, measured)" in decision.reason
    assert decision.cost_s > 0.2
    assert state.unconfirmed.transfer_s == pytest.approx(decision.cost_s - 0.2)


def test_a_move_that_was_quicker_than_its_predicted_transfer_has_no_standstill():
    assert standstill_of(after_move(pause_s=0.0)) == Standstill(0.0, measured=True)


def test_samples_are_smoothed():
    _, state = moved()
    transfer_s = state.unconfirmed.transfer_s
    known = state.model_copy(update={"standstill_s": 0.1})
    found = with_measured(known, known, window(1, HOT_RANK, pause_s=transfer_s + 0.3))
    assert found.standstill_s == pytest.approx(0.2)


def test_the_pause_of_a_move_that_was_not_decided_here_is_not_taken():
    start = begin(RUN).placement
    state = after_move(pause_s=0.7, placement=start)
    assert state.refunded is not None
    assert standstill_of(state) == ASSUMED
    _, untouched = decide(window(0, HOT_RANK, pause_s=0.7), begin(RUN), RUN, imbalance_price)
    assert standstill_of(untouched) == ASSUMED


def test_the_pause_of_a_move_that_was_carried_out_late_is_taken():
    _, state = moved()
    made = state.unconfirmed
    refunded = Refund(plan_id=state.plan_id, placement=state.placement, debit=made)
    late = state.model_copy(update={"unconfirmed": None, "refunded": refunded})
    found = with_measured(late, state, window(2, HOT_RANK, pause_s=made.transfer_s + 0.3))
    assert found.standstill_s == pytest.approx(0.3)


def test_the_pause_of_a_new_split_is_told_apart_from_that_of_moves():
    """Moves are dear here, so only the split follows the load."""
    run = run_context(2, 8, 4, extra_slots=1, bandwidth=5e6).model_copy(update={"token_split": TokenSplit.WINDOW})
    uneven = np.array([[5.0, 1, 1, 3, 1, 2, 1, 1]] * 2)
    decision, state = decide(window(0, uneven), begin(run), run, imbalance_price)
    assert decision.action is Action.REBALANCE
    assert not decision.moves
    assert split_pause_of(state) == Standstill(SPLIT_PAUSE_S, measured=False)
    _, state = decide(window(1, uneven, pause_s=0.02), state, run, imbalance_price)
    assert split_pause_of(state) == Standstill(0.02, measured=True)
    assert standstill_of(state) == ASSUMED
    decision, _ = decide(window(2, uneven[:, ::-1]), state, run, imbalance_price)
    assert "costs 20 ms (measured)" in decision.reason


def test_states_and_windows_from_before_are_read_as_they_are():
    _, state = moved()
    old = state.model_dump(mode="json")
    del old["standstill_s"], old["unconfirmed"]["transfer_s"]
    read = RunState.model_validate(old)
    assert standstill_of(read) == ASSUMED
    answered = decide(window(1, HOT_RANK, pause_s=0.3), read, RUN, imbalance_price)[1]
    assert standstill_of(answered) == ASSUMED, "what the move was predicted to take is not known"
    assert Debit.model_validate(old["unconfirmed"]).transfer_s is None
    assert Window(index=0, first_step=0, num_steps=1, tokens=((1,),)).pause_s is None
