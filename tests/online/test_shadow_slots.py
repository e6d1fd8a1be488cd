"""Shadow slots from the beginning of a run to its decisions: idle for nothing, filled where that pays, never moved."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from moe_runs import cluster, window

from planner.cost import Seats
from planner.online import begin, decide, replay, replay_context
from planner.online.placement.copies import copies_between
from planner.online.placement.shadows import filled_shadows, first_slots, left_idle, shadow_options
from planner.online.pricing import Pricing, seats_of
from planner.online.recorded.hindsight import Stretch, best_sequence
from planner.online.recorded.trace import trace_of
from planner.online.standstill import SPLIT_PAUSE_S
from planner.spec.decision import Action
from planner.spec.errors import InputError
from planner.spec.placement import Placement, TokenSplit

HOT = [[6, 5, 1, 1, 1, 1, 1, 1]] * 2
EVEN = [[1] * 8] * 2


def run(extra=0, shadows=1, tokens=65536, bandwidth=1e10, split=TokenSplit.EVEN, **changes):
    where = cluster(1, 4, bandwidth).model_copy(update=changes)
    counts = np.full((1, 2, 8), tokens)
    return replay_context(counts, 1, where, 4, extra, shadow_slots=shadows, token_split=split)


def play(context, loads, num_steps):
    state, decisions = begin(context), []
    for index, load in enumerate(loads):
        decision, state = decide(window(index, load, num_steps), state, context)
        decisions.append(decision)
    return decisions, state


def filled(placement):
    return int(filled_shadows(np.array(placement.layers), placement.num_ranks, placement.shadow_slots_per_rank).sum())


@pytest.mark.parametrize("extra", [0, 1, 2])
@pytest.mark.parametrize("shadows", [1, 3])
def test_a_run_begins_with_idle_shadow_slots_that_take_no_tokens_from_other_ranks(extra, shadows):
    first = begin(run(extra, shadows)).placement
    assert first.shadow_slots_per_rank == shadows and first.slots_per_rank(0) == 2 + extra + shadows
    assert filled(first) == 0
    if extra == 0:
        # Two experts on each rank; both copies of one of them stand there.
        assert first_slots(8, 4, 2, 1).tolist() == [0, 1, 0, 2, 3, 2, 4, 5, 4, 6, 7, 6]


def test_idle_shadow_slots_cost_no_traffic_and_filled_ones_do():
    context = run()
    pricing, idle = Pricing(context), seats_of(begin(context).placement)
    assert pricing.rates(context.plans[0], idle).shadow_s > 0
    none = idle._replace(layers=np.tile(np.arange(8), (2, 1)), shadow_slots_per_rank=0)
    assert pricing.rates(context.plans[0], none).shadow_s == 0


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.int64, (2, 8), elements=st.integers(1, 1000)),
    st.integers(0, 2),
    st.integers(1, 2),
    st.sampled_from(TokenSplit),
)
def test_contents_begin_with_idle_ones_keep_lasting_slots_and_count_filled_slots(loads, extra, shadows, split):
    seats = seats_of(begin(run(extra, shadows)).placement)
    found = shadow_options(loads.astype(float), seats, split)
    lasting = np.arange(seats.layers.shape[1]) % (2 + extra + shadows) < 2 + extra
    assert (found.moves[0] == 0).all()
    for price in (0.0, 0.01, np.inf):
        slots = found.slots[0] if np.isinf(price) else found.choose(price)
        assert np.array_equal(slots[:, lasting], seats.layers[:, lasting])
        Placement(layers=tuple(map(tuple, slots.tolist())), num_ranks=4, shadow_slots_per_rank=shadows)
    dear = found.choose(1e12)
    assert not filled_shadows(dear, 4, shadows).any()
    assert np.array_equal(left_idle(dear, seats.layers, 4, shadows), seats.layers)


def test_what_goes_into_a_shadow_slot_is_no_copy_and_what_stands_in_one_is_no_source():
    before = np.array([[0, 1, 4, 2, 3, 2, 4, 5, 4, 6, 7, 6]])
    only_shadows = np.array([[0, 1, 7, 2, 3, 0, 4, 5, 4, 6, 7, 6]])
    assert copies_between(before, only_shadows, 4, 1).moves() == ()
    # Expert 4 stood in a shadow slot of rank 0, which has no optimizer state of it: it comes from rank 2.
    lasting = np.array([[0, 4, 4, 2, 3, 2, 1, 5, 4, 6, 7, 6]])
    moves = copies_between(before, lasting, 4, 1).moves()
    assert [(m.expert, m.from_rank, m.to_rank, m.to_slot) for m in moves] == [(4, 2, 0, 1), (1, 0, 2, 6)]


def test_a_short_spell_is_met_by_shadows_and_lasting_skew_by_moves():
    spell, spell_state = play(run(), [EVEN, EVEN, HOT], num_steps=1)
    assert spell[2].action is Action.REBALANCE and spell[2].moves == () and spell[2].cost_s == SPLIT_PAUSE_S
    assert "shadow slots" in spell[2].reason
    assert filled(spell_state.placement) > 0 and spell[2].imbalance_after < spell[2].imbalance_before
    lasting, _ = play(run(), [EVEN, EVEN, *[HOT] * 8], num_steps=200)
    assert sum(len(decision.moves) for decision in lasting) > 0


def test_shadow_slots_are_idle_again_when_the_spell_is_over():
    _, state = play(run(), [EVEN, EVEN, HOT, *[EVEN] * 4], num_steps=1)
    assert filled(state.placement) == 0


def test_where_fetching_weights_costs_more_than_it_saves_shadow_slots_stay_idle():
    decisions, state = play(run(tokens=256, bandwidth=1e8), [EVEN, HOT, HOT, HOT], num_steps=1)
    assert filled(state.placement) == 0
    assert all(decision.action is Action.KEEP for decision in decisions)


@pytest.mark.parametrize("split", [TokenSplit.WINDOW, TokenSplit.STEP])
def test_split_tokens_and_shadow_experts_go_together(split):
    decisions, state = play(run(extra=1, split=split), [EVEN, *[HOT] * 5], num_steps=20)
    assert state.placement.shadow_slots_per_rank == 1
    assert decisions[-1].imbalance_after < 1.2


def test_the_first_hot_window_changes_shadow_slots_even_when_nothing_is_expected_to_last():
    """Windows that jump have a horizon of no step to speak of; what was lost in the first pays for so little."""
    hottest = [[30, 1, 1, 1, 1, 1, 1, 1]] * 2
    decisions, _ = play(run(), [EVEN, EVEN, *[hottest] * 7, *[EVEN] * 3], num_steps=2)
    assert any(decision.horizon_steps < 1e-6 and decision.action is Action.REBALANCE for decision in decisions)


def test_a_report_with_other_shadow_slots_than_the_run_has_is_refused():
    with pytest.raises(InputError, match=r"placement.shadow_slots_per_rank: must be the run's 1, got 0"):
        decide(window(0, EVEN, placement=Placement.contiguous([8, 8], 4)), begin(run()), run())


def test_shadow_slots_that_do_not_fit_in_memory_are_refused_before_extra_slots_are():
    def most(**slots):
        context = run(**slots)
        with pytest.raises(InputError) as refused:
            begin(
                context.model_copy(update={"cluster": context.cluster.model_copy(update={"memory_limit_bytes": LIMIT})})
            )
        return str(refused.value)

    assert "shadow_slots_per_rank: must be at most " in most(shadows=6)
    assert "extra_slots_per_rank: must be at most " in most(extra=6, shadows=0)


LIMIT = 6 * 10**9


def recorded(samples=10):
    """A hot expert that wanders; made up."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(20_000, 40_000, (samples, 2, 8))
    tokens[np.arange(samples), :, np.arange(samples) // 3 % 8] *= 6
    return trace_of({"tokens": tokens, "steps": np.arange(samples) * 5, "top_k": np.array(1)})


def test_all_policies_replay_with_shadow_slots_and_what_is_known_in_hindsight_is_best():
    trace = recorded()
    context = replay_context(
        trace.step_tokens, 1, cluster(1, 4, 1e10), 4, shadow_slots=1, token_split=TokenSplit.WINDOW
    )
    found = replay(trace, context)["policies"]
    assert found["hindsight"]["total_time_s"] <= min(found[n]["total_time_s"] for n in ("trimtab", "static"))
    assert found["trimtab"]["total_time_s"] < found["static"]["total_time_s"]


def test_hindsight_fills_shadow_slots_window_by_window_for_nothing():
    context = run(tokens=65536)
    loads = np.array([EVEN, HOT, EVEN]) / np.array([EVEN, HOT, EVEN]).sum(axis=2, keepdims=True)
    found = best_sequence(Stretch(loads, np.ones(3)), Pricing(context), context.plans[0], begin(context).placement)
    assert [filled(step.placement) > 0 for step in found.steps] == [False, True, False]
    assert all(step.moves == 0 for step in found.steps)


def test_seats_without_shadow_slots_have_no_shadows():
    seats = Seats(np.arange(8)[None], 4)
    assert filled_shadows(seats.layers, 4, 0).shape == (1, 4, 0)
