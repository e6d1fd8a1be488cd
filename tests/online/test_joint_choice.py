"""The best plan changes with the skew: what SmartMoE's logs show, the prices tell and the policy decides."""

from pathlib import Path

import numpy as np
import pytest
from moe_runs import window
from smartmoe_runs import LAYERS, MEASURED_S, context, predicted_s, zipf

from planner.cost.migration import switch_plan_s
from planner.online import begin, decide
from planner.spec.decision import Action

TRACE = Path(__file__).parents[3] / "shared" / "data" / "traces" / "gpt_moe_24l_32e_layers_0_11.npz"
ALONE, NEAR, DEEP = "pp1-dp16-ep16", "pp2-dp8-ep8", "pp4-dp4-ep2"
ALONE_32, NEAR_32, DEEP_32 = "pp1-dp32-ep32", "pp4-dp8-ep8", "pp8-dp4-ep2"


def exponent_for(ratio, of):
    """Of Zipf's law, the exponent at which `of(shares exponent)` reaches a ratio that grows with it; by halving."""
    low, high = 0.0, 2.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if of(middle) < ratio else (low, middle)
    return high


def test_the_skew_that_slows_expert_parallelism_as_measured_changes_the_order_of_plans_with_the_capacity():
    def slowdown(exponent):
        shares = zipf(16, exponent)
        return predicted_s(16, 4.8, ALONE, shares) / predicted_s(16, 1.2, ALONE, shares)

    measured = MEASURED_S[16, 4.8, ALONE] / MEASURED_S[16, 1.2, ALONE]
    shares = zipf(16, exponent_for(measured, slowdown))
    assert slowdown(exponent_for(measured, slowdown)) == pytest.approx(measured, rel=1e-3)
    small, large = ({plan: predicted_s(16, capacity, plan, shares) for plan in (NEAR, DEEP)} for capacity in (1.2, 4.8))
    assert min(small, key=small.get) == NEAR
    assert min(large, key=large.get) == DEEP
    assert (16, 1.2, NEAR) in MEASURED_S and (16, 4.8, DEEP) in MEASURED_S, "what SmartMoE chose"


def test_the_plan_that_is_best_for_balanced_load_loses_under_the_naive_gate_as_measured():
    def slowdown(exponent):
        shares = zipf(32, exponent)
        return predicted_s(32, None, ALONE_32, shares) / predicted_s(32, None, DEEP_32, shares)

    measured = MEASURED_S[32, None, ALONE_32] / MEASURED_S[32, None, DEEP_32]
    shares, even = zipf(32, exponent_for(measured, slowdown)), np.full((LAYERS, 32), 1 / 32)
    near, deep = (predicted_s(32, None, plan, shares) for plan in (NEAR_32, DEEP_32))
    assert predicted_s(32, None, NEAR_32, even) < predicted_s(32, None, DEEP_32, even)
    assert MEASURED_S[32, None, NEAR_32] > MEASURED_S[32, None, DEEP_32]
    assert near / deep == pytest.approx(MEASURED_S[32, None, NEAR_32] / MEASURED_S[32, None, DEEP_32], rel=0.1)


def windows_until_switch(run, shares, most=40):
    """Windows of 50 steps under these shares until the policy switches the plan: all decisions."""
    state, decisions = begin(run), []
    for index in range(most):
        decision, state = decide(window(index, shares, num_steps=50), state, run)
        decisions.append(decision)
        if decision.action is Action.SWITCH_PLAN:
            break
    return decisions


def check_switched(run, decisions):
    """The last one goes over to the deep plan, and its ledger says why."""
    last = decisions[-1]
    before, after = run.plans
    assert (last.action, last.plan_id) == (Action.SWITCH_PLAN, after.id)
    assert last.cost_s == pytest.approx(switch_plan_s(run.model, run.cluster, run.training, before, after))
    assert last.gain_s_per_step * last.horizon_steps > last.cost_s
    assert last.payback_steps == pytest.approx(last.cost_s / last.gain_s_per_step)
    assert last.imbalance_after < last.imbalance_before
    assert "plan" in last.reason
    assert {each.plan_id for each in decisions[:-1]} <= {before.id}


def test_a_run_under_the_skew_of_the_naive_gate_goes_over_to_the_plan_that_was_measured_to_be_faster():
    run = context(32, None, NEAR_32, DEEP_32)
    check_switched(run, windows_until_switch(run, zipf(32, 1.5)))


def test_a_run_under_balanced_load_stays_with_its_plan():
    run = context(32, None, NEAR_32, DEEP_32)
    decisions = windows_until_switch(run, np.full((LAYERS, 32), 1 / 32), most=10)
    assert {decision.action for decision in decisions} == {Action.KEEP}


def test_a_capacity_factor_keeps_the_plan_that_skew_alone_would_leave():
    run = context(32, 1.2, NEAR_32, DEEP_32)
    decisions = windows_until_switch(run, zipf(32, 1.5), most=20)
    assert Action.SWITCH_PLAN not in {decision.action for decision in decisions}


@pytest.mark.skipif(not TRACE.exists(), reason=f"needs the recorded loads in {TRACE}")
def test_a_run_under_recorded_loads_goes_over_too():
    tokens = np.load(TRACE)["tokens"][100].astype(float)
    shares = (tokens / tokens.sum(axis=1, keepdims=True))[np.arange(LAYERS) % 12]
    run = context(32, None, NEAR_32, DEEP_32)
    check_switched(run, windows_until_switch(run, shares))
