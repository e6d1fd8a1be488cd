"""Rules of others against small cases worked out by hand, what always holds for them, and a recorded trace."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from planner.cost.balance import imbalance, rank_loads, replica_counts
from planner.online.pricing import placement_from
from planner.online.recorded.rivals import (
    ShadowCosts,
    balanced_replicas,
    greedy_exchange,
    on_all_ranks,
    shadowed_experts,
)
from planner.online.recorded.rivals.eplb import packed
from planner.spec.errors import InputError

TRACE = Path(__file__).parents[3] / "shared" / "data" / "traces" / "gpt_moe_24l_32e_layers_0_11.npz"
LOADS = arrays(np.int64, (2, 8), elements=st.integers(1, 1000)).map(lambda loads: loads.astype(np.float64))


def test_packing_gives_the_heaviest_to_the_lightest_pack_that_has_room():
    # 9 to pack 0, 7 and 5 to pack 1, which is full then; 1 goes to pack 0 although that is 9 against 12.
    assert packed(np.array([[1.0, 9.0, 5.0, 7.0]]), 2).tolist() == [[1, 0, 3, 2]]
    # 9 | 4, 3: pack 1 is full at 7; 2 joins 9.
    assert packed(np.array([[9.0, 4.0, 3.0, 2.0]]), 2).tolist() == [[0, 3, 1, 2]]


def test_packs_of_one_item_keep_the_order():
    assert packed(np.array([[1.0, 9.0, 5.0]]), 3).tolist() == [[0, 1, 2]]


def test_eplb_gives_slots_to_the_largest_load_per_replica():
    # 2 ranks x 3 slots: the first extra slot goes to 12 (6 each), the second to 6 = 6, the first of both.
    slots = balanced_replicas(np.array([[12.0, 6.0, 2.0, 2.0]]), 2, 3)
    assert replica_counts(slots, 4).tolist() == [[3, 1, 1, 1]]
    # Replicas 4 4 4, then 6 2 2; heaviest first: 6 | 4, then 4 on rank 1 (4 < 6), 4 on rank 0 (6 < 8), 2 on 1, 2 on 0.
    assert slots.tolist() == [[1, 0, 3, 0, 0, 2]]


def test_eplb_may_put_an_expert_twice_on_one_rank():
    slots = balanced_replicas(np.array([[100.0, 1.0, 1.0, 1.0]]), 2, 4)
    by_rank = slots.reshape(2, 4)
    assert any(len(set(rank)) < 4 for rank in by_rank.tolist())


def test_eplb_keeps_groups_of_experts_on_one_node():
    # 4 groups of 2 experts on 2 nodes: loads of the groups 10 9 2 1, so {0, 3} and {1, 2}.
    loads = np.array([[8.0, 2.0, 5.0, 4.0, 1.0, 1.0, 1.0, 0.0]])
    slots = balanced_replicas(loads, 4, 2, num_nodes=2, num_groups=4)
    assert [set(node) for node in slots.reshape(2, 4).tolist()] == [{0, 1, 6, 7}, {2, 3, 4, 5}]


def test_eplb_takes_all_ranks_as_one_node_where_nodes_do_not_divide_the_groups():
    loads = np.random.default_rng(0).lognormal(size=(2, 12))
    apart = balanced_replicas(loads, 4, 4, num_nodes=2, num_groups=3)
    assert np.array_equal(apart, balanced_replicas(loads, 4, 4))


def test_eplb_wants_nodes_that_divide_the_ranks_and_groups_that_divide_the_experts():
    with pytest.raises(InputError, match="expert_groups: 3 groups and 2 nodes must divide 8 experts and 4 ranks"):
        balanced_replicas(np.ones((1, 8)), 4, 2, num_nodes=2, num_groups=3)


def test_smartmoe_sorts_experts_by_load_and_fills_the_lightest_rank():
    # 9 → 0, 7 → 1, 5 → 1 (7 < 9), and 1 takes the last room.
    slots = greedy_exchange(np.array([[9.0, 1.0, 7.0, 5.0]]), 2, np.array([[0, 2, 1, 3]]))
    assert slots.tolist() == [[0, 1, 2, 3]]


def test_smartmoe_leaves_an_expert_at_home_where_that_is_as_good():
    # Ranks are equally empty for the first expert, and it lives on rank 1.
    slots = greedy_exchange(np.array([[1.0, 1.0, 9.0, 9.0]]), 2, np.array([[0, 1, 2, 3]]))
    assert 2 in slots.reshape(2, 2)[1]


def test_smartmoe_changes_nothing_without_a_predicted_gain_and_all_for_a_small_one():
    even = np.array([[5.0, 5.0, 5.0, 5.0]])
    current = np.array([[3, 1, 0, 2]])
    assert np.array_equal(greedy_exchange(even, 2, current), current)
    hardly = np.array([[50.0, 49.0, 50.0, 50.0]])
    moved = greedy_exchange(hardly, 2, np.array([[0, 2, 1, 3]]))
    assert rank_loads(hardly, moved, 2).max() == 100.0  # no better: 50 + 50 on one rank
    uneven = np.array([[50.0, 48.0, 50.0, 49.0]])
    assert not np.array_equal(greedy_exchange(uneven, 2, np.array([[0, 2, 1, 3]])), [[0, 2, 1, 3]])


@given(LOADS, st.sampled_from([(2, 4), (4, 2), (8, 1)]))
@settings(max_examples=60, deadline=None)
def test_smartmoe_always_places_each_expert_once_and_never_raises_the_hottest_rank(loads, shape):
    ranks, _ = shape
    rng = np.random.default_rng(int(loads.sum()))
    current = np.stack([rng.permutation(8) for _ in loads])
    slots = greedy_exchange(loads, ranks, current)
    assert np.array_equal(np.sort(slots, axis=1), np.sort(current, axis=1))
    after, before = (rank_loads(loads, placed, ranks).max(axis=1) for placed in (slots, current))
    assert (after <= before).all()


@given(LOADS, st.sampled_from([(2, 4), (2, 5), (4, 3), (8, 1), (8, 2)]))
@settings(max_examples=60, deadline=None)
def test_eplb_fills_all_slots_and_no_other_replica_counts_lower_its_largest_replica(loads, shape):
    ranks, each = shape
    counts = replica_counts(balanced_replicas(loads, ranks, each), 8)
    assert (counts >= 1).all() and (counts.sum(axis=1) == ranks * each).all()
    largest = (loads / counts).max(axis=1)
    # Were another slot to leave an expert that has some to spare, that one would have more load than the largest.
    spare = np.where(counts > 1, loads / np.maximum(counts - 1, 1), np.inf).min(axis=1)
    assert (largest <= spare + 1e-9).all()


@given(LOADS)
@settings(max_examples=30, deadline=None)
def test_eplb_forgets_the_past_and_relabelling_the_experts_relabels_its_answer(loads):
    distinct = loads + np.arange(8) / 16
    turned = np.roll(distinct, 3, axis=1)
    slots, after = balanced_replicas(distinct, 4, 3), balanced_replicas(turned, 4, 3)
    one, other = (rank_loads(*pair, 4) for pair in ((distinct, slots), (turned, after)))
    assert np.allclose(np.sort(one, axis=1), np.sort(other, axis=1))


@pytest.mark.skipif(not TRACE.exists(), reason="the recorded trace is not part of the repository")
@pytest.mark.parametrize(
    ("ranks", "extra", "found", "published"),
    [(4, 0, 1.551, 1.52), (8, 0, 3.054, 2.91), (16, 0, 6.104, 5.81), (8, 1, 1.148, 1.158), (8, 2, 1.115, 1.117)],
)
def test_on_the_recorded_trace_they_do_as_well_as_the_originals(ranks, extra, found, published):
    """Placed from the previous sample, 12 of 24 layers.

    `published`: what the originals reached on the artifact's record; of which layers is not known, so it is near only.
    """
    with np.load(TRACE) as trace:
        tokens = trace["tokens"].astype(np.float64)
    before, now = tokens[:-1], tokens[1:]
    if extra:  # which knows the last sample only, so all can be asked at once
        placed = balanced_replicas(before.reshape(-1, 32), ranks, 32 // ranks + extra).reshape(*before.shape[:2], -1)
    else:
        current, placed = np.tile(np.arange(32), (tokens.shape[1], 1)), []
        for loads in before:
            current = greedy_exchange(loads, ranks, current)
            placed.append(current)
    uneven = [imbalance(rank_loads(loads, slots, ranks)) for loads, slots in zip(now, placed, strict=True)]
    assert np.mean(uneven) == pytest.approx(found, abs=0.001)
    assert np.mean(uneven) == pytest.approx(published, rel=0.06)


def test_fastermoe_shadows_the_heaviest_as_long_as_each_shortens_the_step():
    tokens, slots = np.array([[100.0, 60, 10, 10]]), np.arange(4)[None]
    # Latency by shadows, 7 s a token: 700, then 420 + 2 w, 70 + 4 w, 70 + 6 w.
    for weights_s, wanted in ((10.0, [True, True, False, False]), (139.0, [True, True, False, False])):
        costs = ShadowCosts(compute_s=1.0, token_s=1.0, weights_s=weights_s)
        assert shadowed_experts(tokens, slots, 4, costs).tolist() == [wanted]
    for weights_s in (140.0, 1000.0):
        costs = ShadowCosts(compute_s=1.0, token_s=1.0, weights_s=weights_s)
        assert not shadowed_experts(tokens, slots, 4, costs).any()


def test_fastermoe_stops_at_the_first_expert_that_does_not_cool_the_busiest_rank():
    # 50 + 40 on rank 0, 60 + 1 on rank 1: the heaviest expert is not on the busiest rank.
    tokens, slots = np.array([[50.0, 40, 60, 1]]), np.arange(4)[None]
    assert not shadowed_experts(tokens, slots, 2, ShadowCosts(1.0, 1.0, 1e-3)).any()


@given(LOADS)
def test_a_shadow_of_fastermoe_is_computed_by_each_rank_for_its_own_tokens(loads):
    slots = np.tile(np.arange(8), (2, 1))
    shadowed = shadowed_experts(loads, slots, 4, ShadowCosts(1.0, 1.0, 1.0))
    seats = on_all_ranks(shadowed, slots, 4)
    placement_from(seats)
    carried = rank_loads(loads, seats.layers, 4, seats.split)
    stays = np.where(shadowed, 0.0, loads).reshape(2, 4, 2).sum(axis=2)
    assert np.allclose(carried, stays + np.where(shadowed, loads, 0.0).sum(axis=1, keepdims=True) / 4)
