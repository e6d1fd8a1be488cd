"""How reasons are worded: in units, and in numbers that people read."""

from types import SimpleNamespace

import pytest

from planner.online.calibration import Calibration
from planner.online.reasons import act, clock, not_yet
from planner.spec.decision import Action


def a_switch(**fields):
    given = {"action": Action.SWITCH_PLAN, "plan": SimpleNamespace(summary="pp1"), "standstill": None, "net_s": 1.0}
    return SimpleNamespace(**{**given, "gain_s": 0.5, "cost_s": 20.1, "life_steps": 1749.6, **fields})


def test_steps_are_told_as_steps_and_never_as_powers_of_ten():
    assert act(a_switch(), 0.0) == (
        "switching to plan pp1 saves 500 ms a step and costs 20.1 s: "
        "paid back after 40.2 steps, and the gain is expected to last 1,750 steps"
    )
    dear = a_switch(cost_s=2150.0, net_s=-1.0, life_steps=1449.0)
    assert not_yet(dear, 0.0, 0.0) == (
        "switching to plan pp1 would save 500 ms a step and cost 2,150 s: "
        "not paid back within the 1,450 steps that the gain is expected to last"
    )


@pytest.mark.parametrize(
    ("cost_s", "said"), [(0.2, "less than a step"), (0.5, "1 step,"), (50.0, "100 steps"), (1e6, "2,000,000 steps")]
)
def test_few_and_many_steps_are_told_in_words_that_fit(cost_s, said):
    assert f"paid back after {said}" in act(a_switch(cost_s=cost_s), 0.0)


def test_a_scale_is_told_with_what_it_compares():
    told = clock(Calibration(0.894, 0.894))
    assert told == "; gains are scaled to this job, whose steps take 0.894 times as long as predicted"
