"""Placements for split tokens against a MILP; shadow slots and node-limited routing keep their rules."""

from itertools import pairwise

import numpy as np
import pytest
from exact_placements import exact_hottest_split
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from planner.cost.balance import hottest_rank_bound, rank_loads
from planner.online.placement.assign import twins
from planner.online.placement.copies import copies_between
from planner.online.placement.nodes import afresh_on_nodes, hottest_rank_bound_on_nodes, options_on_nodes
from planner.online.placement.options import afresh, first_placement, options
from planner.online.placement.split import best_split
from planner.spec.placement import Placement, TokenSplit

WINDOW = TokenSplit.WINDOW
layer_loads = arrays(np.int64, (2, 8), elements=st.integers(0, 100)).filter(lambda loads: loads.sum(axis=1).all())
with_room = st.sampled_from([(4, 3), (4, 4), (2, 5), (8, 2)])


def contiguous(experts, ranks, slots_per_rank, layers=1):
    return np.tile(first_placement(experts, ranks, slots_per_rank), (layers, 1))


def hottest_split(loads, slots, ranks):
    loads = loads.astype(float)
    return rank_loads(loads, slots, ranks, best_split(loads, slots, ranks)).max(axis=-1)


@pytest.mark.parametrize(("experts", "ranks", "each"), [(6, 3, 3), (8, 4, 3), (10, 4, 3)])
def test_for_split_tokens_the_mean_gap_to_the_milp_is_below_three_percent(experts, ranks, each):
    rng = np.random.default_rng(2)
    loads = np.rint(100 * rng.lognormal(0, 1, (10, experts)))
    found = hottest_split(loads, options(loads, ranks, contiguous(experts, ranks, each, 10), WINDOW).choose(0.0), ranks)
    optima = np.array([exact_hottest_split(row, ranks, each) for row in loads])
    assert (found >= optima * (1 - 1e-6)).all()
    assert (hottest_rank_bound(loads, ranks, each) <= optima * (1 + 1e-6)).all()
    assert np.mean(found / optima - 1) < 0.03
    assert np.max(found / optima - 1) < 0.12


@given(layer_loads, with_room, st.floats(0, 20))
@settings(max_examples=60, deadline=None)
def test_placements_for_split_tokens_are_complete_and_reached_by_their_moves(loads, shape, price):
    ranks, each = shape
    before = contiguous(8, ranks, each, layers=2)
    found = options(loads.astype(float), ranks, before, WINDOW)
    for slots in found.slots.reshape(-1, ranks * each):
        assert set(slots) == set(range(8))
        assert not twins(slots, ranks).any()
    after, reached = found.choose(price), before.copy()
    for move in copies_between(before, after, ranks).moves():
        reached[move.layer, move.to_slot] = move.expert
    assert (reached == after).all()
    assert (hottest_split(loads, after, ranks) <= hottest_split(loads, before, ranks) * 1.003 + 1e-9).all()


def test_split_tokens_need_fewer_moves_for_more_balance_than_even_parts():
    rng = np.random.default_rng(6)
    loads = rng.lognormal(0, 1, (6, 32))
    before = afresh(loads, 8, 5)
    drifted = loads * rng.lognormal(0, 0.2, loads.shape)
    even, split = (options(drifted, 8, before, mode).choose(0.0) for mode in (TokenSplit.EVEN, WINDOW))
    assert 2 * len(copies_between(before, split, 8).moves()) < len(copies_between(before, even, 8).moves())
    assert hottest_split(drifted, split, 8).sum() < rank_loads(drifted, even, 8).max(axis=-1).sum()


@given(layer_loads, st.sampled_from([1, 2]), st.sampled_from(list(TokenSplit)))
@settings(max_examples=60, deadline=None)
def test_shadow_slots_alone_change_and_their_content_is_no_move(loads, shadows, mode):
    before = contiguous(8, 4, 2 + shadows, layers=2)
    found = options(loads.astype(float), 4, before, mode, shadow_slots_per_rank=shadows)
    assert (found.moves == 0).all()
    after = found.choose(1.0)
    own = np.arange(before.shape[1]) % (2 + shadows) < 2
    assert (after[:, own] == before[:, own]).all()
    Placement(layers=tuple(map(tuple, after.tolist())), num_ranks=4, shadow_slots_per_rank=shadows)
    assert (found.hottest.min(axis=0) <= found.hottest[0]).all()


def test_a_hot_expert_gets_shadows_on_other_ranks():
    """25 would be even; the search stops where the last useful shadow would first heat another rank."""
    loads = np.array([[70.0, 10, 10, 10]])
    before = contiguous(4, 4, 2)
    after = options(loads, 4, before, TokenSplit.STEP, shadow_slots_per_rank=1).choose(0.0)
    assert hottest_split(loads, before, 4)[0] == 35
    assert hottest_split(loads, after, 4)[0] < 27


@given(layer_loads, st.sampled_from([2, 3]), st.sampled_from([TokenSplit.EVEN, WINDOW]))
@settings(max_examples=60, deadline=None)
def test_with_nodes_groups_stay_whole_on_one_node(loads, each, mode):
    loads = loads.astype(float)
    placed = afresh_on_nodes(loads, 4, each, num_nodes=2, num_groups=4, token_split=mode)
    later = options_on_nodes(loads[:, ::-1].copy(), 4, placed, 2, mode).choose(0.0)
    for slots in (*placed, *later):
        nodes = [set(half) for half in slots.reshape(2, -1)]
        assert nodes[0] | nodes[1] == set(range(8))
        assert all(len({expert // 2 for expert in node}) == 2 and len(node) == 4 for node in nodes)


def test_with_nodes_no_placement_beats_the_bound_found_by_brute_force():
    rng = np.random.default_rng(4)
    loads = np.rint(100 * rng.lognormal(0, 1, (20, 4)))
    bound = hottest_rank_bound_on_nodes(loads, 4, 1, num_nodes=2, num_groups=2)
    found = rank_loads(loads, afresh_on_nodes(loads, 4, 1, num_nodes=2, num_groups=2), 4).max(axis=-1)
    assert (bound <= found + 1e-9).all()
    assert (found == loads.max(axis=1)).all()


def test_more_slots_never_raise_the_bound():
    loads = np.random.default_rng(7).lognormal(0, 1, (20, 8))
    bounds = [hottest_rank_bound(loads, 4, each) for each in range(2, 9)]
    assert all((more <= fewer + 1e-12).all() for fewer, more in pairwise(bounds))


@given(layer_loads, with_room, st.sampled_from(list(TokenSplit)))
@settings(max_examples=40, deadline=None)
def test_placements_do_not_depend_on_the_unit_of_load(loads, shape, mode):
    ranks, each = shape
    before = contiguous(8, ranks, each, layers=2)
    one, other = (options(loads * unit, ranks, before, mode) for unit in (1.0, 1024.0))
    assert (one.slots == other.slots).all()
    assert (one.moves == other.moves).all()
