"""One choice of a strategy changes, and what must follow follows."""

import pytest
from view_samples import strategy

from planner.spec.strategy import Axis, AxisKind, Recompute, Sharding, Strategy
from planner.view import respread
from planner.view.respread import Setting

DP, SDP, TP, CP = AxisKind.DP, AxisKind.SDP, AxisKind.TP, AxisKind.CP
SETTING = Setting(4096, Sharding.OPTIMIZER)
PLAIN = strategy(tp=2, dp=4, sharding=Sharding.GRADIENTS, sequence_parallel=True)


def test_an_exchange_keeps_the_devices_and_all_other_choices():
    changed = respread.exchange(PLAIN, DP, TP, 2, SETTING)
    assert changed == strategy(tp=4, dp=2, sharding=Sharding.GRADIENTS, sequence_parallel=True)


@pytest.mark.parametrize(("giver", "factor"), [(CP, 2), (DP, 3), (TP, 4)])
def test_an_axis_gives_only_what_divides_it(giver, factor):
    assert respread.exchange(PLAIN, giver, TP if giver is not TP else DP, factor, SETTING) is None


def test_a_new_axis_stands_where_the_search_would_put_it():
    changed = respread.exchange(PLAIN, DP, CP, 2, SETTING)
    assert changed is not None
    assert [axis.kind for axis in changed.axes] == [DP, CP, TP]


def test_without_copies_nothing_is_left_to_shard():
    changed = respread.exchange(strategy(tp=4, dp=2, sharding=Sharding.FULL), DP, TP, 2, SETTING)
    assert changed == strategy(tp=8)


def test_first_copies_are_sharded_as_the_rest_of_the_plan():
    changed = respread.exchange(strategy(tp=8), TP, DP, 2, SETTING)
    assert changed == strategy(tp=4, dp=2, sharding=Sharding.OPTIMIZER)


@pytest.mark.parametrize(("sequence_length", "expected"), [(4096, True), (4097, False)])
def test_sequence_parallelism_comes_with_tensor_parallelism_where_it_divides_the_sequence(sequence_length, expected):
    changed = respread.exchange(strategy(dp=8), DP, TP, 2, Setting(sequence_length, Sharding.NONE))
    assert changed is not None
    assert changed.sequence_parallel is expected


def test_hybrid_sharding_whose_replicas_are_gone_is_zero3():
    hybrid = Strategy(axes=(Axis(DP, 2), Axis(SDP, 4)), sharding=Sharding.FULL)
    changed = respread.exchange(hybrid, DP, TP, 2, SETTING)
    assert changed == strategy(dp=4, tp=2, sharding=Sharding.FULL, sequence_parallel=True)
    assert respread.shard(hybrid, -1) is None


def test_on_fewer_devices_copies_of_experts_go_first():
    moe = strategy(tp=2, dp=8, ep=8, sequence_parallel=True)
    fewer = respread.on_fewer_devices(moe, DP, 2, SETTING)
    assert fewer == strategy(tp=2, dp=4, ep=8, sequence_parallel=True)
    assert respread.on_fewer_devices(fewer, DP, 2, SETTING) == strategy(tp=2, dp=2, ep=4, sequence_parallel=True)


def test_where_the_wanted_axis_cannot_give_the_outermost_that_can_does():
    assert respread.on_fewer_devices(strategy(tp=8), DP, 2, SETTING) == strategy(tp=4)
    assert respread.on_fewer_devices(strategy(dp=3), DP, 2, SETTING) is None


def test_on_more_devices_experts_get_copies():
    moe = strategy(tp=2, dp=4, ep=8, sequence_parallel=True)
    more = respread.on_more_devices(moe, DP, 2, SETTING)
    assert more == strategy(tp=2, dp=8, ep=8, sequence_parallel=True, sharding=Sharding.NONE)


@pytest.mark.parametrize(("levels", "expected"), [(1, Sharding.FULL), (-1, Sharding.OPTIMIZER)])
def test_sharding_goes_one_level(levels, expected):
    changed = respread.shard(PLAIN, levels)
    assert changed is not None
    assert changed.sharding is expected


def test_levels_end_somewhere():
    assert respread.recompute(strategy(dp=2), -1) is None
    assert respread.recompute(strategy(dp=2, recompute=Recompute.FULL), 1) is None
    assert respread.shard(strategy(tp=2), 1) is None
    assert respread.turn_sequence_parallel(strategy(dp=2), True) is None
