"""Memory in the online stage: what does not fit is not proposed, and what no longer fits is left."""

import numpy as np
import pytest
from moe_runs import cluster, estimate_of, imbalance_price, run_context, window

from planner.cost import estimate
from planner.online import begin, decide, replay_context
from planner.spec.cluster import HostShare
from planner.spec.decision import Action
from planner.spec.errors import InputError
from planner.spec.placement import Placement
from planner.spec.run import RunContext
from planner.spec.training import Training
from planner.spec.workload import Workload

HOT_RANK = np.array([[4.0, 4, 1, 1, 1, 1, 1, 1]] * 2)
SKEWED = np.array([[8.0, 1, 1, 1, 1, 1, 1, 1]] * 2)
RUN = run_context(layers=2, experts=8, ranks=4)
FOUR = replay_context(np.full((1, 2, 8), 1024), 1, cluster(1, 4), 4)
TWO = replay_context(np.full((1, 2, 8), 1024), 1, cluster(1, 4), 2)
SHORTLIST = FOUR.model_copy(update={"plans": FOUR.plans + TWO.plans})


def play(context, sequence, price, **window_fields):
    state, decisions = begin(context), []
    for index, loads in enumerate(sequence):
        decision, state = decide(window(index, loads, **window_fields), state, context, price)
        decisions.append(decision)
    return decisions, state


def by_ranks(seconds, fits):
    """A price that depends on the plan's expert-parallel size and on whether the load is skewed."""

    def price(model, cluster, training, plan, workload, placement):
        shares = np.array([workload.shares(layer, 8) for layer in range(2)])
        ranks = plan.stages[0].runs[1].strategy.experts.expert_parallel_size
        skewed = int(shares.max() > 0.3)
        found = estimate_of(plan.id, workload.name, seconds[ranks][skewed])
        return found.model_copy(update={"fits": fits[ranks][skewed]})

    return price


def fitting(allowed):
    """The price of imbalance; only placements for which `allowed` holds fit."""

    def price(model, cluster, training, plan, workload, placement):
        found = imbalance_price(model, cluster, training, plan, workload, placement)
        return found.model_copy(update={"fits": placement is None or allowed(placement)})

    return price


def limited(context: RunContext, limit: int) -> RunContext:
    where = context.cluster.model_copy(update={"memory_limit_bytes": limit})
    return context.model_copy(update={"cluster": where})


def peak(context: RunContext, loads, placement: Placement | None) -> int:
    shares = loads / loads.sum(axis=1, keepdims=True)
    workload = Workload(name="seen", expert_shares=tuple(map(tuple, shares.tolist())))
    found = estimate(context.model, context.cluster, context.training, context.plans[0], workload, placement)
    return max(stage.peak_memory_bytes for stage in found.stages)


@pytest.mark.parametrize(("fits", "expected"), [(True, 1), (False, 0)])
def test_a_faster_plan_is_taken_only_if_it_fits_under_the_expected_load(fits, expected):
    price = by_ranks({4: (1.0, 2.0), 2: (1.2, 1.3)}, {4: (True, True), 2: (True, fits)})
    decisions, _ = play(SHORTLIST, [SKEWED] * 30, price)
    assert sum(d.action is Action.SWITCH_PLAN for d in decisions) == expected


def test_a_plan_that_no_longer_fits_is_left_at_once_even_for_a_slower_one():
    price = by_ranks({4: (1.0, 1.0), 2: (1.5, 1.5)}, {4: (True, False), 2: (True, True)})
    (before, decision), state = play(SHORTLIST, [np.ones((2, 8)), SKEWED], price)
    assert before.action is Action.KEEP
    assert decision.action is Action.SWITCH_PLAN
    assert decision.plan_id == TWO.plans[0].id
    assert (decision.gain_s_per_step, decision.payback_steps) == (0.0, None)
    assert decision.reason.startswith("what is in force does not fit in memory under the expected load")
    assert "loses 500 ms a step" in decision.reason
    assert state.account_s == 0.0


def test_where_no_plan_fits_none_is_switched_to_and_the_reason_says_so():
    price = by_ranks({4: (1.0, 2.0), 2: (1.2, 1.3)}, {4: (True, False), 2: (True, False)})
    (decision,), _ = play(SHORTLIST, [SKEWED], price)
    assert decision.action is Action.KEEP
    assert "nothing that was found does" in decision.reason


def test_a_placement_that_does_not_fit_is_not_proposed_while_the_one_in_force_does():
    start = begin(RUN).placement
    decisions, _ = play(RUN, [HOT_RANK] * 5, fitting(lambda placement: placement == start))
    assert {d.action for d in decisions} == {Action.KEEP}


def test_experts_still_move_to_gain_time_where_nothing_fits():
    (decision,), state = play(RUN, [HOT_RANK], fitting(lambda placement: False))
    assert decision.action is Action.REBALANCE
    assert "nothing that was found does" in decision.reason
    assert state.unconfirmed.cost_s == decision.cost_s


def test_a_hot_rank_that_overflows_is_relieved_before_it_would_pay():
    """Priced by `estimate`: one byte less than the hot rank needs, much more than the balanced ranks need."""
    full = peak(RUN, HOT_RANK, begin(RUN).placement)
    (waits,), _ = play(RUN, [HOT_RANK], estimate, num_steps=1)
    (moves,), state = play(limited(RUN, full - 10**5), [HOT_RANK], estimate, num_steps=1)
    assert waits.action is Action.KEEP
    assert moves.action is Action.REBALANCE
    assert "does not fit in memory" in moves.reason
    assert peak(RUN, HOT_RANK, state.placement) < full - 10**5


def test_a_capacity_factor_can_make_skewed_load_faster_than_balanced_load():
    price = by_ranks({4: (1.0, 2.0), 2: (3.0, 0.5)}, {4: (True, True), 2: (True, True)})
    training = Training.model_validate({**SHORTLIST.training.model_dump(), "capacity_factor": 2.8})
    capped = SHORTLIST.model_copy(update={"training": training})
    decisions, _ = play(capped, [SKEWED] * 30, price)
    assert [d.plan_id for d in decisions if d.action is Action.SWITCH_PLAN] == [TWO.plans[0].id]


# How a run begins.


def with_extra(extra: int, limit: int) -> RunContext:
    return limited(run_context(layers=2, experts=8, ranks=4, extra_slots=extra), limit)


def first_peak(extra: int) -> int:
    context = run_context(layers=2, experts=8, ranks=4, extra_slots=extra)
    return peak(context, np.ones((2, 8)), begin(context).placement)


@pytest.mark.parametrize("extra", [3, 50, 2**53 - 1])
def test_extra_slots_that_do_not_fit_are_refused_with_the_number_that_would(extra):
    limit = first_peak(2)
    assert begin(with_extra(2, limit)).placement.slots_per_rank(0) == 4
    missing = first_peak(min(extra, 6)) - limit
    with pytest.raises(InputError, match=rf"extra_slots_per_rank: must be at most 2 .* lacks {missing} bytes"):
        begin(with_extra(extra, limit))


def offloaded(extra: int, host_memory_bytes: int) -> RunContext:
    context = run_context(layers=2, experts=8, ranks=4, extra_slots=extra)
    host = HostShare(link_bytes_per_s=1e10, memory_bytes=host_memory_bytes, memory_bandwidth_bytes_per_s=1e10)
    device = context.cluster.device.model_copy(update={"host": host})
    (plan,) = context.plans
    (stage,) = plan.stages
    runs = [
        run.model_copy(update={"strategy": run.strategy.model_copy(update={"offload": True})}) for run in stage.runs
    ]
    plan = plan.model_copy(update={"stages": (stage.model_copy(update={"runs": tuple(runs)}),)})
    where = context.cluster.model_copy(update={"device": device})
    return context.model_copy(update={"plans": (plan,), "cluster": where})


def test_extra_slots_that_the_memory_of_the_host_cannot_hold_are_refused_too():
    context = offloaded(2, 10**12)
    (plan,), placement = context.plans, begin(context).placement
    (stage,) = estimate(context.model, context.cluster, context.training, plan, placement=placement).stages
    assert begin(offloaded(2, stage.host_bytes)).placement.slots_per_rank(0) == 4
    with pytest.raises(InputError, match="extra_slots_per_rank: must be at most 2"):
        begin(offloaded(3, stage.host_bytes))


def test_extra_slots_are_not_blamed_for_a_plan_that_does_not_fit_without_them():
    assert begin(with_extra(1, first_peak(0) - 1)).placement.slots_per_rank(0) == 3
