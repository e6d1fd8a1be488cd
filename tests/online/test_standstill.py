"""The standstill around a move: assumed until the run has measured it, then what was measured."""

import numpy as np
import pytest
from moe_runs import imbalance_price, run_context, window

from planner.cost.migration import PAUSE_S
from planner.online import RunState, begin, decide
from planner.online.standstill import (
    ASSUMED,
    LIFE_WINDOWS,
    SAMPLES,
    SPLIT_PAUSE_S,
    Standstill,
    split_pause_of,
    standstill_of,
    with_measured,
)
from planner.online.state import Debit, Pause, Refund
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


def next_move(state, index, loads):
    """The first window from `index` on whose decision is to move, under a load that stays: decision and state."""
    for number in range(index, index + 100):
        decision, state = decide(window(number, loads), state, RUN, imbalance_price)
        if decision.action is Action.REBALANCE:
            return number, decision, state
    raise AssertionError("no move in 100 windows")


def after_pauses(*standstills_s, kind="standstills"):
    """The state of a run in which moves held training up so long, one in each window from 1 on."""
    pauses = tuple(Pause(window=index, pause_s=taken_s) for index, taken_s in enumerate(standstills_s, start=1))
    return begin(RUN).model_copy(update={kind: pauses})


def test_what_two_moves_took_beyond_their_predicted_transfer_is_the_standstill_of_the_next():
    decision, _ = moved()
    state = after_move(pause_s=decision.cost_s - PAUSE_S + 0.2)
    assert state.standstills[0].pause_s == pytest.approx(0.2)
    assert standstill_of(state) == ASSUMED, "one alone is not believed"
    state = state.model_copy(update={"standstills": state.standstills * 2})
    _, decision, state = next_move(state, 2, OTHER_HOT_RANK)
    assert "(200 ms of it standstill, measured)" in decision.reason
    assert decision.cost_s > 0.2
    assert state.unconfirmed.transfer_s == pytest.approx(decision.cost_s - 0.2)


def test_a_move_that_was_quicker_than_its_predicted_transfer_has_no_standstill():
    assert standstill_of(after_move(pause_s=0.0)) == Standstill(0.0, measured=True)


def test_one_odd_pause_changes_nothing_and_stops_no_move():
    state = after_move(pause_s=600.0)
    assert standstill_of(state) == ASSUMED
    _, decision, _ = next_move(state, 2, OTHER_HOT_RANK)
    assert "(50 ms of it standstill, assumed)" in decision.reason


@pytest.mark.parametrize(
    ("samples_s", "seconds", "measured"),
    [
        ((0.3, 0.3), 0.3, True),
        ((600.0, 0.3), 0.3, True),
        ((600.0, 600.0, 0.3, 0.2), 0.3, True),
        ((0.3, 0.3, 0.3, 600.0, 600.0, 600.0), 0.3, True),
        ((0.3, 600.0, 600.0, 600.0, 600.0, 0.3), 600.0, True),
        ((0.02,), 0.02, True),
        ((0.02, 600.0), PAUSE_S, False),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_the_estimate_is_the_lower_median_of_what_is_assumed_and_the_samples(samples_s, seconds, measured, turned):
    found = standstill_of(after_pauses(*(samples_s[::-1] if turned else samples_s)))
    assert found == Standstill(seconds, measured)


def test_only_the_last_samples_are_kept():
    _, state = moved()
    known = state.model_copy(update={"standstills": after_pauses(*[0.1] * SAMPLES).standstills})
    ended = window(SAMPLES + 1, HOT_RANK, pause_s=state.unconfirmed.transfer_s + 0.3)
    taken_s = [sample.pause_s for sample in with_measured(known, known, ended).standstills]
    assert taken_s == pytest.approx([0.1] * (SAMPLES - 1) + [0.3])


@pytest.mark.parametrize(("kind", "estimate"), [("standstills", standstill_of), ("split_pauses", split_pause_of)])
def test_samples_are_forgotten_where_no_new_ones_come(kind, estimate):
    state = after_pauses(600.0, 600.0, kind=kind)
    assert estimate(state) == Standstill(600.0, measured=True)
    last = 1 + LIFE_WINDOWS
    assert estimate(with_measured(state, state, window(last, HOT_RANK))) == Standstill(600.0, measured=True)
    assert not estimate(with_measured(state, state, window(last + 1, HOT_RANK))).measured
    assert getattr(with_measured(state, state, window(last + 2, HOT_RANK)), kind) == ()


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
    assert [sample.window for sample in found.standstills] == [2]
    assert found.standstills[0].pause_s == pytest.approx(0.3)


def test_the_pause_of_a_new_split_is_told_apart_from_that_of_moves():
    """Moves are dear here, so only the split follows the load."""
    run = run_context(2, 8, 4, extra_slots=1, bandwidth=5e6).model_copy(update={"token_split": TokenSplit.WINDOW})
    uneven = np.array([[5.0, 1, 1, 3, 1, 2, 1, 1]] * 2)
    decision, state = decide(window(0, uneven), begin(run), run, imbalance_price)
    assert decision.action is Action.REBALANCE
    assert not decision.moves
    assert split_pause_of(state) == Standstill(SPLIT_PAUSE_S, measured=False)
    _, state = decide(window(1, uneven, pause_s=0.02), state, run, imbalance_price)
    assert state.split_pauses == (Pause(window=1, pause_s=0.02),)
    assert state.standstills == ()
    state = state.model_copy(update={"split_pauses": state.split_pauses * 2})
    assert split_pause_of(state) == Standstill(0.02, measured=True)
    assert standstill_of(state) == ASSUMED
    decision, _ = decide(window(2, uneven[:, ::-1]), state, run, imbalance_price)
    assert "costs 20 ms (measured)" in decision.reason


def test_a_standstill_that_was_smoothed_before_counts_until_it_is_forgotten():
    old = begin(RUN).model_dump(mode="json") | {"standstill_s": 0.3, "split_pause_s": None, "last_window": 7}
    del old["standstills"], old["split_pauses"]
    read = RunState.model_validate(old)
    assert standstill_of(read) == Standstill(0.3, measured=True)
    assert not split_pause_of(read).measured
    assert standstill_of(with_measured(read, read, window(8 + LIFE_WINDOWS, HOT_RANK))) == ASSUMED


def test_states_and_windows_from_before_are_read_as_they_are():
    _, state = moved()
    old = state.model_dump(mode="json")
    del old["standstills"], old["split_pauses"], old["unconfirmed"]["transfer_s"]
    read = RunState.model_validate(old)
    assert standstill_of(read) == ASSUMED
    answered = decide(window(1, HOT_RANK, pause_s=0.3), read, RUN, imbalance_price)[1]
    assert standstill_of(answered) == ASSUMED, "what the move was predicted to take is not known"
    assert Debit.model_validate(old["unconfirmed"]).transfer_s is None
    assert Window(index=0, first_step=0, num_steps=1, tokens=((1,),)).pause_s is None
