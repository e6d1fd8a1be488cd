"""Placements for loads that jump, where tokens are split in every step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from planner.cost.balance import hottest_rank_bound, imbalance, rank_loads
from planner.online.placement.assign import twins
from planner.online.placement.copies import copies_between
from planner.online.placement.hedge import suited
from planner.online.placement.options import afresh, first_placement, options
from planner.online.placement.split import best_split
from planner.spec.placement import TokenSplit

RANKS, EACH, EXPERTS = 4, 4, 8
STEP = TokenSplit.STEP
histories = arrays(np.int64, (3, 2, EXPERTS), elements=st.integers(0, 100))


def in_order(layers, experts=EXPERTS, ranks=RANKS, each=EACH):
    return np.tile(first_placement(experts, ranks, each), (layers, 1))


def imbalance_split(loads, slots, ranks):
    return imbalance(rank_loads(loads, slots, ranks, best_split(loads, slots, ranks)))


def walk(drift, windows=30, layers=4, experts=32):
    """Lognormal loads [windows, layers, experts] whose logarithms drift and keep their variance."""
    rng = np.random.default_rng(0)
    logs = rng.normal(0, 1, (layers, experts))
    for _ in range(windows):
        yield np.exp(logs) / np.exp(logs).sum(axis=1, keepdims=True)
        logs = (logs + rng.normal(0, drift, logs.shape)) / np.hypot(1, drift)


def excesses(windows, place):
    """Mean excess of max over mean when each window is placed from those before and split on its own load."""
    windows = list(windows)
    placed, found = in_order(4, 32, 8, 6), []
    for now in range(1, len(windows)):
        placed = place(windows[max(0, now - 8) : now], placed)
        found.append(imbalance_split(windows[now], placed, 8) - 1)
    return np.mean(found)


@pytest.mark.parametrize("drift", [0.2, 0.5])
def test_while_loads_jump_broad_placements_leave_less_than_two_thirds_of_the_excess(drift):
    near = excesses(walk(drift), lambda recent, placed: options(recent[-1], 8, placed, STEP).choose(0.0))
    broad = excesses(walk(drift), lambda recent, placed: suited(recent, 8, placed, STEP))
    assert broad < 2 / 3 * near


@given(histories, st.sampled_from(list(TokenSplit)), st.floats(0, 20))
@settings(max_examples=60, deadline=None)
def test_what_suits_is_complete_has_no_avoidable_twins_and_its_moves_lead_to_it(history, mode, price):
    before = in_order(2)
    after = suited(list(history.astype(float)), RANKS, before, mode, price)
    reached = before.copy()
    for move in copies_between(before, after, RANKS).moves():
        reached[move.layer, move.to_slot] = move.expert
    assert (reached == after).all()
    assert all(set(row) == set(range(EXPERTS)) for row in after)
    assert not twins(after, RANKS).any()


@given(histories)
@settings(max_examples=40, deadline=None)
def test_what_suits_does_not_depend_on_the_unit_of_load(history):
    history = history.astype(float)
    one, other = (suited(list(unit * history), RANKS, in_order(2), STEP) for unit in (1.0, 1024.0))
    assert (one == other).all()


def test_a_load_that_stays_is_served_by_the_best_option_near():
    rng = np.random.default_rng(1)
    loads = rng.lognormal(0, 1, (3, EXPERTS))
    near = options(loads, RANKS, in_order(3), STEP).choose(0.0)
    assert (suited([loads, 1.01 * loads], RANKS, in_order(3), STEP) == near).all()


def test_a_broad_placement_is_even_for_the_latest_load_and_gives_more_experts_replicas_than_one_afresh():
    rng = np.random.default_rng(1)
    loads = rng.lognormal(0, 1.5, (6, 32))
    before = in_order(6, 32, 8, 6)
    broad, fresh = suited([loads], 8, before, STEP), afresh(loads, 8, 6, STEP)
    assert imbalance_split(loads, broad, 8) < 1.02 * np.mean(hottest_rank_bound(loads, 8, 6) * 8 / loads.sum(axis=1))
    assert replicated(broad) > replicated(fresh)


def replicated(slots):
    return sum((np.bincount(row) > 1).sum() for row in slots)


def test_a_price_beyond_any_gain_leaves_everything_in_place():
    loads = np.random.default_rng(2).lognormal(0, 1.5, (2, EXPERTS))
    assert (suited([loads], RANKS, in_order(2), STEP, move_price=1e6) == in_order(2)).all()
