"""What the store keeps of a run: small, exact, and readable where an older version wrote it."""

import json

import numpy as np
import pytest
from moe_runs import imbalance_price, run_context, window
from pydantic import ValidationError

from planner.online import RunState, begin, decide
from planner.online.forecast import begin_forecast, update_forecast
from planner.online.standstill import standstill_of
from planner.spec.packed import Packed, PackedPlacement
from planner.spec.placement import Placement, TokenSplit

RUN = run_context(layers=2, experts=8, ranks=4, extra_slots=1).model_copy(update={"token_split": TokenSplit.WINDOW})
LOADS = np.random.default_rng(0).lognormal(0, 1, (5, 2, 8))


def played(windows=5):
    state = begin(RUN)
    for index in range(windows):
        _, state = decide(window(index, LOADS[index]), state, RUN, imbalance_price)
    return state


def as_version_0_1(state: RunState) -> dict:
    """The same state as the first version wrote it: rows of numbers, nothing packed, no uncertainty."""
    found = json.loads(state.model_dump_json())
    forecast = found["forecast"]
    for name in ("smoothed", "variances", "mistakes"):
        del forecast[name]
    forecast["shares"] = state.forecast.array.tolist()
    forecast["first_step"] = 0
    for kept, seen in zip(forecast["recent"], state.forecast.recent, strict=True):
        kept["shares"] = seen.array.tolist()
    for name in ("since_step", "earlier", "standstills", "split_pauses", "step_ratios"):
        del found[name]
    found["standstill_s"] = 0.3
    placement = found["placement"] = state.placement.model_dump(mode="json")
    if found["unconfirmed"] is not None:
        found["unconfirmed"] |= {"plan_id": state.plan_id, "placement": placement}
    if state.refunded is not None:
        stood = {"plan_id": state.refunded.plan_id, "placement": state.refunded.placement.model_dump(mode="json")}
        found["refunded"] = found["refunded"]["debit"] | stood
    return found


def test_the_state_comes_back_from_json_as_it_was():
    state = played()
    assert RunState.model_validate_json(state.model_dump_json()) == state


def test_a_state_of_the_first_version_is_read_and_goes_on():
    state = played()
    old = RunState.model_validate_json(json.dumps(as_version_0_1(state)))
    assert old.placement == state.placement
    assert standstill_of(old) == (0.3, True)
    assert np.array_equal(old.forecast.array, state.forecast.array)
    decision, following = decide(window(5, LOADS[0]), old, RUN, imbalance_price)
    assert decision.window == following.last_window == 5
    assert len(following.forecast.variances) == 2


def test_arrays_take_some_bytes_for_each_number():
    layers, experts, ranks = 16, 128, 16
    context = run_context(layers, experts, ranks, extra_slots=1)
    loads = np.random.default_rng(1).lognormal(0, 1, (3, layers, experts))
    forecast = begin_forecast(window(0, loads[0]))
    for index in (1, 2):
        forecast = update_forecast(forecast, window(index, loads[index]))
    state = begin(context).model_copy(update={"forecast": forecast})
    numbers = layers * experts
    assert len(state.model_dump_json()) < 4 * numbers * 16 / 3 + 8 * numbers


@pytest.mark.parametrize(
    ("change", "message"),
    [({"shape": (3, 2)}, "must have 24 bytes"), ({"shape": (1, 2), "data": b"\xff" * 8}, "must be finite")],
)
def test_packed_bytes_that_are_no_such_array_are_refused(change, message):
    good = Packed.of(np.zeros((2, 2)), "<f4")
    with pytest.raises(ValidationError, match=message):
        Packed.model_validate({**dict(good), **change})


def test_a_placement_is_packed_and_unpacked_with_its_split():
    placement = Placement(layers=((0, 1, 0, 2),), num_ranks=2, split=((0.25, 1.0, 0.75, 1.0),))
    kept = PackedPlacement.model_validate_json(PackedPlacement.of(placement).model_dump_json())
    assert kept.placement == placement
