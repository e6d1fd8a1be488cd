"""Loads of ranks, imbalance, and bounds on it, against brute force."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.balance import (
    hottest_rank_bound,
    imbalance,
    imbalance_bound,
    rank_loads,
    replica_counts,
    spread_replicas,
)

whole_loads = st.lists(st.integers(0, 60), min_size=6, max_size=6).filter(any)


def test_a_rank_carries_the_experts_of_its_slots():
    assert rank_loads([0.1, 0.2, 0.3, 0.4], [0, 3, 2, 1], 2).tolist() == pytest.approx([0.5, 0.5])


def test_replicas_split_the_tokens_of_their_expert_evenly():
    assert rank_loads([0.6, 0.2, 0.2], [0, 1, 0, 2], 2).tolist() == pytest.approx([0.5, 0.5])


def test_layers_are_computed_side_by_side():
    shares, slots = np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([[0, 1], [1, 0]])
    assert rank_loads(shares, slots, 2).tolist() == [[0.5, 0.5], [0.1, 0.9]]


def test_an_expert_without_a_slot_is_refused():
    with pytest.raises(ValueError, match="every expert"):
        rank_loads([0.5, 0.5], [0, 0], 2)


def test_slots_that_ranks_cannot_share_are_refused():
    with pytest.raises(ValueError, match="3 cannot be shared evenly by 2 ranks"):
        rank_loads([0.4, 0.3, 0.3], [0, 1, 2], 2)


def test_imbalance_is_max_over_mean_averaged_over_layers():
    assert imbalance([[1.0, 3.0], [2.0, 2.0]]) == pytest.approx((1.5 + 1.0) / 2)


@given(whole_loads)
def test_loads_of_ranks_sum_to_the_loads_of_experts(loads):
    assert rank_loads(loads, [0, 1, 2, 0, 3, 4, 5, 0, 1], 3).sum() == pytest.approx(sum(loads))


@given(whole_loads)
@settings(max_examples=60)
def test_without_replicas_the_bound_is_below_every_placement(loads):
    best = min(
        max(sum(loads[e] for e in range(6) if where[e] == rank) for rank in range(3))
        for where in product(range(3), repeat=6)
        if all(where.count(rank) == 2 for rank in range(3))
    )
    assert float(hottest_rank_bound(loads, 3, 2)) <= best + 1e-9


def test_without_replicas_the_bound_knows_the_company_of_the_hottest_experts():
    # Of three hot experts on two ranks two must meet; the hottest at least meets the lightest.
    assert float(hottest_rank_bound([10, 10, 10, 0], 2, 2)) == 20
    assert float(hottest_rank_bound([10, 3, 2, 1], 2, 2)) == 11


@given(st.lists(st.integers(0, 40), min_size=4, max_size=4).filter(any), st.integers(2, 4))
@settings(max_examples=60)
def test_replica_counts_make_the_largest_load_per_replica_least(loads, ranks):
    slots = 2 * ranks if ranks > 2 else 3 * ranks
    found = spread_replicas(loads, ranks, slots // ranks)
    assert found.sum() == slots
    assert found.max() <= ranks
    best = min(
        max(load / count for load, count in zip(loads, counts, strict=True))
        for counts in product(range(1, ranks + 1), repeat=4)
        if sum(counts) == slots
    )
    assert max(np.array(loads) / found) == pytest.approx(best)


@given(whole_loads, st.permutations([0, 1, 2, 3, 4, 5, 0, 1, 2]))
def test_with_replicas_the_bound_is_below_every_placement(loads, slots):
    assert float(hottest_rank_bound(loads, 3, 3)) <= rank_loads(loads, slots, 3).max() + 1e-9


@given(whole_loads)
def test_more_slots_never_raise_the_bound(loads):
    bounds = [imbalance_bound(loads, 3, slots) for slots in (2, 3, 4, 5)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] >= 1.0


def test_even_load_has_an_even_bound():
    assert imbalance_bound(np.ones((3, 8)), 4, 2) == 1.0


def test_too_few_slots_are_refused():
    with pytest.raises(ValueError, match="cannot hold 6 experts"):
        hottest_rank_bound([1] * 6, 2, 2)


def test_replicas_are_counted_by_layer():
    assert replica_counts([[0, 0, 1], [2, 1, 0]], 3).tolist() == [[2, 1, 0], [1, 1, 1]]
