"""The split of replicas' tokens against a linear program, and its invariants."""

import numpy as np
import pytest
from exact_placements import least_hottest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from planner.cost.balance import hottest_rank_bound, rank_loads
from planner.online.placement.options import afresh
from planner.online.placement.split import TOLERANCE, StepSplit, best_split

EXPERTS, RANKS, EACH = 6, 4, 3

placements = st.permutations([*range(EXPERTS), *range(EXPERTS)]).map(np.array)
counts_of_a_step = arrays(np.int64, EXPERTS, elements=st.integers(0, 500)).filter(lambda counts: counts.sum() > 0)
counts_by_source = arrays(np.int64, (RANKS, EXPERTS), elements=st.integers(0, 90))


def hottest(loads, slots, ranks, parts):
    return rank_loads(loads, slots, ranks, parts).max()


@given(counts_of_a_step, placements)
@settings(max_examples=60, deadline=None)
def test_the_splits_of_a_step_and_of_a_window_are_within_two_tolerances_of_the_lp(counts, slots):
    """One for the search's stop; another for its bound, which may be that of a set not quite level yet."""
    optimum = least_hottest(counts, slots, RANKS)
    of_window = best_split(counts[None].astype(float), slots[None], RANKS)[0]
    for parts in (StepSplit(slots.tolist(), RANKS).parts(counts.tolist()), of_window):
        found = hottest(counts, slots, RANKS, parts)
        assert optimum * (1 - 1e-6) <= found <= optimum * (1 + 2 * TOLERANCE) + 1e-9


@pytest.mark.parametrize("drift", [0.05, 0.3])
def test_at_64_ranks_the_gap_to_the_lp_is_below_half_a_percent_after_drift(drift):
    """24 sweeps end the search before it is level; the mean gap is below a tenth of that."""
    rng = np.random.default_rng(5)
    loads = rng.lognormal(0, 1, (4, 256))
    slots = afresh(loads, 64, 5)
    drifted = loads * rng.lognormal(0, drift, loads.shape)
    found = rank_loads(drifted, slots, 64, best_split(drifted, slots, 64)).max(axis=1)
    gaps = [peak / least_hottest(row, placed, 64) - 1 for row, placed, peak in zip(drifted, slots, found, strict=True)]
    assert min(gaps) > -1e-6
    assert max(gaps) < 0.005


@given(counts_of_a_step, placements)
@settings(max_examples=60, deadline=None)
def test_parts_are_a_split_never_worse_than_even_nor_better_than_the_bound(counts, slots):
    parts = np.array(StepSplit(slots.tolist(), RANKS).parts(counts.tolist()))
    assert (parts >= 0).all()
    assert np.allclose(np.bincount(slots, parts), 1.0)
    assert hottest(counts, slots, RANKS, parts) <= rank_loads(counts, slots, RANKS).max() * (1 + 1e-12)
    assert hottest(counts, slots, RANKS, parts) >= hottest_rank_bound(counts, RANKS, EACH) * (1 - 1e-12)


@given(st.lists(st.tuples(counts_of_a_step, placements), min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_all_layers_at_once_split_as_each_alone(layers):
    loads, slots = (np.stack(rows) for rows in zip(*layers, strict=True))
    together = best_split(loads.astype(float), slots, RANKS)
    alone = [best_split(load[None].astype(float), placed[None], RANKS)[0] for load, placed in layers]
    assert (together == np.stack(alone)).all()


@given(counts_of_a_step, placements, st.sampled_from([0.25, 2.0, 1024.0]))
@settings(max_examples=40, deadline=None)
def test_the_split_does_not_depend_on_the_unit_of_load(counts, slots, unit):
    split = StepSplit(slots.tolist(), RANKS)
    assert split.parts(counts.tolist()) == split.parts((counts * unit).tolist())


@given(counts_by_source, placements, st.sampled_from([None, 1, 2, 4]))
@settings(max_examples=80, deadline=None)
def test_sources_send_whole_tokens_all_of_them_and_each_slot_gets_its_part(counts, slots, ranks_per_node):
    split = StepSplit(slots.tolist(), RANKS, ranks_per_node)
    shares = split.shares_of_sources(counts)
    assert (shares >= 0).all()
    for expert in range(EXPERTS):
        assert (shares[:, slots == expert].sum(axis=1) == counts[:, expert]).all()
    totals = counts.sum(axis=0)
    wanted = np.array(split.parts(totals.tolist())) * totals[slots]
    assert (np.abs(shares.sum(axis=0) - wanted) <= 1 + 1e-6).all()


@given(counts_by_source, placements)
@settings(max_examples=60, deadline=None)
def test_a_source_sends_elsewhere_only_what_its_own_slots_do_not_take(counts, slots):
    shares = StepSplit(slots.tolist(), RANKS, 2).shares_of_sources(counts)
    received = shares.sum(axis=0)
    for slot, expert in enumerate(slots):
        rank = slot // EACH
        twins = [other for other in range(rank * EACH, (rank + 1) * EACH) if slots[other] == expert]
        own = shares[rank, twins].sum()
        assert own == min(counts[rank, expert], received[twins].sum())


def test_tokens_stay_on_the_node_before_they_cross_to_another():
    slots = np.array([0, 1, 1, 0])
    counts = np.array([[0, 8], [8, 0], [0, 8], [8, 0]])
    by_node = StepSplit(slots.tolist(), 4, 2).shares_of_sources(counts)
    assert by_node[0].tolist() == [0, 8, 0, 0]
    assert by_node[1].tolist() == [8, 0, 0, 0]


def test_one_hot_expert_levels_the_ranks_that_it_stands_on():
    split = StepSplit([0, 1, 0, 2, 0, 3], 3)
    assert split.parts([60, 0, 15, 30]) == pytest.approx([35 / 60, 1, 20 / 60, 1, 5 / 60, 1], abs=1e-3)


def test_an_expert_without_tokens_takes_equal_parts_and_twins_share_their_ranks_part():
    assert StepSplit([0, 1, 0, 1], 2).parts([0, 0]) == [0.5, 0.5, 0.5, 0.5]
    assert StepSplit([0, 0, 0, 1], 2).parts([90, 30]) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1], abs=1e-3)
