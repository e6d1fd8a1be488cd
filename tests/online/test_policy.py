"""Decisions: what is asked of a window, when a move is made, and what the ledger says about it."""

import numpy as np
import pytest
from moe_runs import cluster, estimate_of, imbalance_price, run_context, window

from planner.cost import estimate
from planner.cost.balance import imbalance, rank_loads
from planner.cost.migration import migration_s, switch_plan_s
from planner.online import RunState, begin, decide, replay_context
from planner.online.ledger import CREDIT, TRUST
from planner.online.standstill import SPLIT_PAUSE_S
from planner.spec.decision import Action
from planner.spec.errors import InputError
from planner.spec.model import DenseFeedForward
from planner.spec.placement import Placement, TokenSplit
from planner.spec.run import RunContext
from planner.spec.training import Training

RUN = run_context(layers=2, experts=8, ranks=4)
# Two hot experts on rank 0: a swap with any other rank evens them out.
HOT_RANK = np.array([[4.0, 4, 1, 1, 1, 1, 1, 1]] * 2)


def play(context, sequence, price=imbalance_price, **window_fields):
    state, decisions = begin(context), []
    for index, loads in enumerate(sequence):
        decision, state = decide(window(index, loads, **window_fields), state, context, price)
        decisions.append(decision)
    return decisions, state


def with_plans(context: RunContext, *others: RunContext) -> RunContext:
    return context.model_copy(update={"plans": tuple(plan for c in (context, *others) for plan in c.plans)})


def test_a_run_begins_with_the_first_plan_and_experts_in_order():
    state = begin(RUN)
    assert state.plan_id == RUN.plans[0].id
    assert state.placement == Placement.contiguous([8, 8], 4)


def test_a_run_with_extra_slots_begins_with_replicas_of_other_ranks_experts():
    placement = begin(run_context(1, 8, 4, extra_slots=1)).placement
    assert placement.layers == ((0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 0),)


def test_extra_slots_beyond_one_for_each_expert_are_not_used():
    assert begin(run_context(1, 8, 4, extra_slots=50)).placement.slots_per_rank(0) == 8


def test_a_run_cannot_begin_with_a_plan_outside_the_shortlist():
    with pytest.raises(InputError, match="plan_id: the shortlist has no plan"):
        begin(RUN, "0123456789abcdef")


def test_balanced_load_is_kept_with_the_reason_that_there_is_nothing_to_gain():
    (decision, *_), state = play(RUN, [np.ones((2, 8))] * 3)
    assert decision.action is Action.KEEP
    assert decision.imbalance_before == decision.imbalance_bound == 1.0
    assert "nothing to gain" in decision.reason
    assert state.account_s == 0


def test_a_hot_rank_is_relieved_as_soon_as_half_the_cost_was_lost():
    (decision,), state = play(RUN, [HOT_RANK])
    assert decision.action is Action.REBALANCE
    assert decision.imbalance_after == pytest.approx(decision.imbalance_bound, rel=1e-3)
    assert state.placement == decision.placement
    assert decision.payback_steps == pytest.approx(decision.cost_s / decision.gain_s_per_step)
    assert decision.payback_steps < decision.horizon_steps


def test_the_gain_is_the_difference_of_two_prices_and_the_cost_is_the_price_of_the_moves():
    (decision,), state = play(RUN, [HOT_RANK])
    shares = state.forecast.array
    before, after = (
        imbalance(rank_loads(shares, np.array(placement.layers), 4))
        for placement in (begin(RUN).placement, decision.placement)
    )
    assert decision.gain_s_per_step == pytest.approx(before - after)
    assert decision.cost_s == migration_s(RUN.model, RUN.cluster, RUN.training, RUN.plans[0], decision.moves)


def test_a_small_gain_waits_until_its_cost_is_half_lost():
    slight = np.array([[1.02, 1.02, 1, 1, 1, 1, 1, 1]] * 2)
    decisions, _ = play(RUN, [slight] * 30, num_steps=1)
    acted = [d.window for d in decisions if d.action is Action.REBALANCE]
    assert len(acted) == 1
    first = decisions[acted[0]]
    assert (acted[0] + 1) * first.gain_s_per_step >= TRUST * first.cost_s > acted[0] * first.gain_s_per_step * CREDIT
    assert decisions[0].action is Action.KEEP
    assert "not paid back" in decisions[0].reason or "waits for" in decisions[0].reason


def test_a_kept_window_shows_the_ledger_of_what_was_turned_down():
    slight = np.array([[1.02, 1.02, 1, 1, 1, 1, 1, 1]] * 2)
    (decision,), _ = play(RUN, [slight], num_steps=1)
    assert decision.gain_s_per_step > 0
    assert decision.cost_s > 0
    assert decision.payback_steps > decision.horizon_steps


def test_the_reason_is_one_sentence_with_the_numbers_of_the_ledger():
    (decision,), _ = play(RUN, [HOT_RANK])
    assert f"moving {len(decision.moves)} experts in 2 layers" in decision.reason
    assert "paid back after" in decision.reason
    assert "\n" not in decision.reason


def test_a_reason_never_contradicts_its_action():
    """A rotating hot spot: some moves are expected to pay, others are made because of what was lost."""
    decisions = []
    for bandwidth, windows in ((5e8, 5), (1e8, 3)):
        dear = run_context(layers=2, experts=8, ranks=4, bandwidth=bandwidth)
        sequence = [np.roll(HOT_RANK, 2 * (index // windows), axis=1) for index in range(120)]
        decisions += play(dear, sequence, num_steps=1)[0]
    moved = [d for d in decisions if d.action is Action.REBALANCE]
    expected = [d for d in moved if d.payback_steps < d.horizon_steps]
    forced = [d for d in moved if d.payback_steps >= d.horizon_steps]
    assert expected
    assert forced
    assert all(": paid back after" in d.reason for d in expected)
    assert all("waiting has cost so much" in d.reason for d in forced)


def test_the_balance_is_kept_once_it_is_reached():
    decisions, _ = play(RUN, [HOT_RANK] * 20)
    assert [d.action for d in decisions[1:]] == [Action.KEEP] * 19


def test_replicas_relieve_one_hot_expert_that_moves_cannot():
    hot_expert = np.array([[8.0, 1, 1, 1, 1, 1, 1, 1]] * 2)
    (without,), _ = play(RUN, [hot_expert])
    (with_replicas,), _ = play(run_context(2, 8, 4, extra_slots=1), [hot_expert])
    assert without.imbalance_bound > 2
    assert with_replicas.imbalance_after < 1.2


def test_every_layer_has_its_bound_and_their_mean_is_reported():
    loads = np.array([[8.0, 1, 1, 1, 1, 1, 1, 1], [1.0] * 8])
    (decision,), _ = play(RUN, [loads])
    assert decision.imbalance_bounds == pytest.approx((9 / 15 * 4, 1.0), rel=1e-4)
    assert decision.imbalance_bound == pytest.approx(np.mean(decision.imbalance_bounds))


def splitting(token_split, bandwidth=1e11):
    return run_context(2, 8, 4, 1, bandwidth).model_copy(update={"token_split": token_split})


UNEVEN = np.array([[5.0, 1, 1, 3, 1, 2, 1, 1]] * 2)


def test_a_new_split_alone_is_taken_if_it_gains_more_than_it_holds_training_up():
    dear = splitting(TokenSplit.WINDOW, bandwidth=5e7)
    decisions, state = play(dear, [UNEVEN, UNEVEN[:, ::-1]] * 3, num_steps=1)
    splits = [d for d in decisions if d.action is Action.REBALANCE and not d.moves]
    assert splits
    assert all(d.cost_s == SPLIT_PAUSE_S and d.placement.split is not None for d in splits)
    assert all("splitting the tokens of replicas anew saves" in d.reason for d in splits)
    assert all("costs 7 ms (assumed)" in d.reason for d in splits)
    assert state.placed_step == 0 or any(d.moves for d in decisions)


def test_a_new_split_that_gains_less_than_it_costs_waits():
    """Counts that differ by chance alone: each split gains microseconds."""
    rng = np.random.default_rng(0)
    shares = UNEVEN / UNEVEN.sum(axis=1, keepdims=True)
    chance = [np.array([rng.multinomial(10**9, row) for row in shares]) for _ in range(20)]
    decisions, _ = play(splitting(TokenSplit.WINDOW), chance, tokens=10**9)
    acted = [d for d in decisions if d.action is Action.REBALANCE]
    assert acted
    assert len(acted) <= 3
    assert all(d.gain_s_per_step * d.horizon_steps > d.cost_s for d in acted)


def test_a_job_that_splits_in_every_step_is_priced_with_the_best_split_and_told_none():
    even, _ = play(splitting(TokenSplit.EVEN), [UNEVEN])
    step, _ = play(splitting(TokenSplit.STEP), [UNEVEN])
    assert step[0].imbalance_before < even[0].imbalance_before
    assert all(d.placement is None or d.placement.split is None for d in step)


@pytest.mark.parametrize("token_split", list(TokenSplit))
def test_no_split_makes_the_imbalance_smaller_than_the_bound(token_split):
    rng = np.random.default_rng(3)
    decisions, _ = play(splitting(token_split), rng.lognormal(0, 1, (12, 2, 8)))
    assert all(d.imbalance_after >= d.imbalance_bound - 2e-3 for d in decisions)


def test_a_window_of_the_wrong_shape_is_refused_with_the_shape_that_is_expected():
    for loads in (np.ones((3, 8)), np.ones((2, 7))):
        with pytest.raises(InputError, match="tokens: must be 2 MoE layers x 8 experts"):
            decide(window(0, loads), begin(RUN), RUN, imbalance_price)


def test_an_expert_without_tokens_is_no_error():
    loads = HOT_RANK.copy()
    loads[:, 5] = 0
    (decision,), _ = play(RUN, [loads])
    assert decision.action is Action.REBALANCE


def test_a_late_or_repeated_window_changes_nothing():
    _, state = play(RUN, [HOT_RANK] * 3)
    for index in (0, 2):
        decision, after = decide(window(index, HOT_RANK[:, ::-1]), state, RUN, imbalance_price)
        assert decision.action is Action.KEEP
        assert "changes nothing" in decision.reason
        assert after == state


def test_a_late_window_that_reports_another_plan_and_placement_changes_nothing():
    _, state = play(SHORTLIST, [HOT_RANK] * 3)
    other = Placement.contiguous([8, 8], 2).model_dump()
    decision, after = decide(
        window(1, HOT_RANK, plan_id=TWO.plans[0].id, placement=other), state, SHORTLIST, imbalance_price
    )
    assert after == state
    assert (decision.action, decision.plan_id) == (Action.KEEP, FOUR.plans[0].id)


def test_gaps_between_windows_are_accepted():
    _, state = play(RUN, [HOT_RANK])
    decision, state = decide(window(40, HOT_RANK), state, RUN, imbalance_price)
    assert (decision.window, state.last_window) == (40, 40)


def test_what_the_window_says_is_in_force_overrides_what_was_decided():
    decided, state = play(RUN, [HOT_RANK])
    stayed = window(1, HOT_RANK, placement=begin(RUN).placement.model_dump())
    decision, _ = decide(stayed, state, RUN, imbalance_price)
    assert decision.imbalance_before == pytest.approx(decided[0].imbalance_before, rel=1e-3)


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        (Placement.contiguous([8, 8], 2), "placement.num_ranks: must be the plan's expert-parallel size 4"),
        (Placement.contiguous([8], 4), "placement.layers: must have 2 MoE layers, got 1"),
        (Placement.contiguous([8, 4], 4), "placement.layers: all layers must have the same number of slots"),
        (Placement.contiguous([4, 4], 4), r"placement.layers\[0\]: must hold each of the 8 experts"),
    ],
)
def test_a_placement_that_does_not_fit_the_run_is_refused(placement, message):
    with pytest.raises(InputError, match=message):
        decide(window(0, HOT_RANK, placement=placement.model_dump()), begin(RUN), RUN, imbalance_price)


def test_a_plan_outside_the_shortlist_is_refused():
    with pytest.raises(InputError, match="plan_id: the shortlist has no plan"):
        decide(window(0, HOT_RANK, plan_id="feedfeedfeedfeed"), begin(RUN), RUN, imbalance_price)


def test_a_model_without_experts_begins_but_has_no_windows():
    dense_block = RUN.model.runs[1].layer.model_copy(update={"feed_forward": DenseFeedForward(width=64)})
    runs = (RUN.model.runs[0], RUN.model.runs[1].model_copy(update={"layer": dense_block}), RUN.model.runs[2])
    dense = RUN.model_copy(update={"model": RUN.model.model_copy(update={"runs": runs, "name": "dense"})})
    dense = RunContext.model_validate(dense.model_dump())
    state = begin(dense)
    assert state.placement is None
    with pytest.raises(InputError, match="no experts to place"):
        decide(window(0, HOT_RANK), state, dense, imbalance_price)


def test_without_expert_parallelism_there_is_nothing_to_balance():
    one_rank = replay_context(np.full((1, 2, 8), 1024), 1, cluster(1, 4), 1)
    (decision,), _ = play(one_rank, [HOT_RANK])
    assert decision.action is Action.KEEP
    assert "no expert parallelism" in decision.reason


def test_moe_layers_of_unequal_expert_parallel_size_keep_their_experts():
    data = RUN.model_dump(mode="json")
    runs = data["plans"][0]["stages"][0]["runs"]
    first = {**runs[1], "num_layers": 1}
    spread = {"expert_parallel_size": 2, "expert_tensor_parallel_size": 1, "expert_data_parallel_size": 2}
    second = {**first, "first_layer": 2, "strategy": {**first["strategy"], "experts": spread}}
    data["plans"][0] = {**data["plans"][0], "stages": [{**data["plans"][0]["stages"][0]}]}
    data["plans"][0]["stages"][0]["runs"] = [runs[0], first, second, runs[2]]
    del data["plans"][0]["id"]
    unequal = RunContext.model_validate(data)
    assert begin(unequal).placement is None
    decision, _ = decide(window(0, HOT_RANK), begin(unequal), unequal)
    assert decision.action is Action.KEEP
    assert "differ in expert-parallel size" in decision.reason


def test_moe_layers_with_unequal_numbers_of_experts_are_refused():
    data = RUN.model.model_dump(mode="json")
    data["runs"][1]["num_layers"] = 1
    other = {**data["runs"][1], "layer": {**data["runs"][1]["layer"]}}
    other["layer"]["feed_forward"] = {**other["layer"]["feed_forward"], "num_experts": 16}
    data["runs"].insert(2, other)
    uneven = RunContext.model_validate({**RUN.model_dump(), "model": data})
    with pytest.raises(InputError, match=r"same number of experts, not \[8, 16\]"):
        begin(uneven)


def test_a_job_that_does_not_follow_is_told_again_what_to_do_and_never_charged():
    """In advice mode nothing is applied: every window reports the first placement."""
    stayed = begin(RUN).placement.model_dump()
    decisions, state = play(RUN, [HOT_RANK] * 10, placement=stayed)
    assert {d.action for d in decisions} == {Action.REBALANCE}
    assert state.account_s > 0
    assert {d.placement for d in decisions if d.placement} == {decisions[0].placement}


def by_ranks(seconds):
    """A price that depends on the plan's expert-parallel size and on whether the load is skewed."""

    def price(model, cluster, training, plan, workload, placement):
        shares = np.array([workload.shares(layer, 8) for layer in range(2)])
        ranks = plan.stages[0].runs[1].strategy.experts.expert_parallel_size
        return estimate_of(plan.id, workload.name, seconds[ranks][int(shares.max() > 0.3)])

    return price


FOUR = replay_context(np.full((1, 2, 8), 1024), 1, cluster(1, 4), 4)
TWO = replay_context(np.full((1, 2, 8), 1024), 1, cluster(1, 4), 2)
SHORTLIST = with_plans(FOUR, TWO)
SKEWED = np.array([[8.0, 1, 1, 1, 1, 1, 1, 1]] * 2)


def test_skew_that_makes_another_plan_better_leads_to_a_switch_when_it_pays():
    price = by_ranks({4: (1.0, 2.0), 2: (1.2, 1.3)})
    decisions, state = play(SHORTLIST, [SKEWED] * 30, price)
    switched = [d for d in decisions if d.action is Action.SWITCH_PLAN]
    assert len(switched) == 1
    (switch,) = switched
    assert switch.plan_id == state.plan_id == TWO.plans[0].id
    assert switch.placement.num_ranks == 2
    assert switch.gain_s_per_step == pytest.approx(0.7)
    assert switch.cost_s == switch_plan_s(FOUR.model, FOUR.cluster, FOUR.training, FOUR.plans[0], TWO.plans[0])
    assert switch.window * 10 * 0.7 >= TRUST * switch.cost_s - 10 * 0.7


def test_a_switch_waits_until_all_of_its_cost_is_in_the_account():
    """A step loses 0.7 s, a window 7 s."""
    decisions, _ = play(SHORTLIST, [SKEWED] * 30, by_ranks({4: (1.0, 2.0), 2: (1.2, 1.3)}))
    (switch,) = (d for d in decisions if d.action is Action.SWITCH_PLAN)
    offered = sum(d.cost_s == switch.cost_s for d in decisions)
    assert CREDIT * 7 * (offered - 1) < switch.cost_s <= CREDIT * 7 * offered


def test_a_plan_that_is_better_by_less_than_the_switch_is_never_taken():
    decisions, _ = play(SHORTLIST, [SKEWED] * 30, by_ranks({4: (1.0, 1.3), 2: (1.2, 1.25)}))
    assert all(d.action is Action.KEEP for d in decisions)


def test_balanced_load_stays_with_the_plan_that_is_best_for_it():
    decisions, _ = play(SHORTLIST, [np.ones((2, 8))] * 30, by_ranks({4: (1.0, 2.0), 2: (1.2, 1.3)}))
    assert all(d.action is Action.KEEP for d in decisions)


def test_the_state_survives_json_and_goes_on_the_same():
    rng = np.random.default_rng(0)
    sequence = rng.lognormal(0, 1, (12, 2, 8))
    straight, _ = play(RUN, sequence)
    state, decisions = begin(RUN), []
    for index, loads in enumerate(sequence):
        state = RunState.model_validate_json(state.model_dump_json())
        decision, state = decide(window(index, loads), state, RUN, imbalance_price)
        decisions.append(decision)
    assert decisions == straight


def test_equal_histories_give_equal_decisions():
    sequence = np.random.default_rng(1).lognormal(0, 1, (10, 2, 8))
    assert play(RUN, sequence) == play(RUN, sequence.copy())


def test_the_price_is_the_estimate_of_the_plan_by_default():
    state = begin(RUN)
    given, _ = decide(window(0, HOT_RANK), state, RUN, estimate)
    default, _ = decide(window(0, HOT_RANK), state, RUN)
    assert given == default
    assert default.gain_s_per_step > 0


def test_tokens_beyond_the_capacity_do_not_count_as_load():
    capped = RUN.model_copy(
        update={"training": Training.model_validate({**RUN.training.model_dump(), "capacity_factor": 1.0})}
    )
    (decision,), _ = play(capped, [HOT_RANK], estimate)
    free, _ = play(RUN, [HOT_RANK], estimate)
    assert decision.imbalance_before < free[0].imbalance_before
