"""Collectives at their limits, by monotonicity, and all-to-all against published times."""

from itertools import product
from math import prod

import pytest
from cost_samples import NETWORK_LINK, NODE_LINK, cluster
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.collectives import (
    Group,
    all_gather_s,
    all_reduce_s,
    all_to_all_s,
    point_to_point_s,
    reduce_scatter_s,
    tiers,
)
from planner.spec.cluster import Level, Link
from profiles import cluster_from_shorthand, resolve_cluster

POD = Level(name="pod", num_devices=32, link=Link(bandwidth_bytes_per_s=1e10, latency_s=2e-5))
LEVELS = (*cluster(nodes=2).levels, POD)
OVER_GROUPS = (all_gather_s, reduce_scatter_s, all_reduce_s, all_to_all_s)


@st.composite
def groups(draw):
    """Up to two dimensions of powers of two inside 32 devices, as strategies make them."""
    steps = draw(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=2, max_size=4))
    dimensions, stride = [], 1
    for number, degree in enumerate(steps):
        if stride * degree > 32:
            break
        if number % 2 == 0:
            dimensions.append((degree, stride))
        stride *= degree
    return tuple(dimensions)


def members_near(group: Group, island: int) -> int:
    """By enumeration: members of device 0's group in its island."""
    offsets = product(*(range(0, degree * stride, stride) for degree, stride in group))
    return sum(sum(offset) < island for offset in offsets)


@pytest.mark.parametrize("collective", OVER_GROUPS)
@pytest.mark.parametrize("group", [(), ((1, 1),), ((1, 4), (1, 16))])
def test_a_group_of_one_pays_nothing(collective, group):
    assert collective(LEVELS, group, 1e9) == 0.0


@given(group=groups())
@settings(deadline=None, max_examples=60)
def test_each_level_sees_as_many_members_as_stand_in_one_of_its_islands(group):
    near = [members_near(group, level.num_devices) for level in LEVELS]
    crossed = [(now, before) for now, before in zip(near, [1, *near], strict=False) if now > before]
    assert [(tier.members, tier.below) for tier in tiers(LEVELS, group)] == crossed


@given(group=groups(), moved=st.floats(0, 1e10))
@settings(deadline=None, max_examples=60)
def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather(group, moved):
    parts = reduce_scatter_s(LEVELS, group, moved) + all_gather_s(LEVELS, group, moved)
    assert all_reduce_s(LEVELS, group, moved) == pytest.approx(parts, rel=1e-12)


def test_a_large_all_reduce_inside_a_node_runs_at_the_bus_bandwidth():
    # 2 (n-1)/n of the bytes at 0.8 x 3e11 bytes/s, and a ring of seven steps twice.
    expected = 2 * 7 / 8 * 1e9 / 2.4e11 + 2 * 7 * 4e-6
    assert all_reduce_s(LEVELS, ((8, 1),), 1e9) == pytest.approx(expected, rel=1e-12)


def test_across_nodes_the_members_of_a_node_use_their_uplinks_together():
    # 16 devices over 2 nodes: each node sends through 8 uplinks of 0.8 x 2.5e10, less than inside the node.
    expected = 15 / 16 * 1e9 / (8 * 2e10) + 7 * 4e-6 + 1e-5
    assert all_gather_s(LEVELS, ((16, 1),), 1e9) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("collective", OVER_GROUPS)
@pytest.mark.parametrize("degree", [2, 4])
def test_the_same_group_is_slower_across_nodes_than_inside_one(collective, degree):
    assert collective(LEVELS, ((degree, 8),), 1e8) > collective(LEVELS, ((degree, 1),), 1e8)


@pytest.mark.parametrize("collective", OVER_GROUPS)
@given(group=groups(), moved=st.floats(1, 1e10), factor=st.floats(1, 100), level=st.integers(0, 2))
@settings(deadline=None, max_examples=60)
def test_more_bandwidth_less_latency_and_fewer_bytes_are_never_slower(collective, group, moved, factor, level):
    now = collective(LEVELS, group, moved)
    for better in (
        LEVELS[level].link.model_copy(
            update={"bandwidth_bytes_per_s": LEVELS[level].link.bandwidth_bytes_per_s * factor}
        ),
        LEVELS[level].link.model_copy(update={"latency_s": LEVELS[level].link.latency_s / factor}),
    ):
        levels = tuple(lv.model_copy(update={"link": better}) if n == level else lv for n, lv in enumerate(LEVELS))
        assert collective(levels, group, moved) <= now * (1 + 1e-12)
    assert collective(LEVELS, group, moved / factor) <= now * (1 + 1e-12)


@pytest.mark.parametrize("collective", [all_gather_s, all_reduce_s])
@given(group=groups(), moved=st.floats(1, 1e10), more=st.sampled_from([2, 4]))
@settings(deadline=None, max_examples=60)
def test_a_group_on_one_level_is_never_faster_for_more_members(collective, group, moved, more):
    one_level = (LEVELS[0].model_copy(update={"num_devices": 2**20}),)
    span = prod(degree for degree, _ in group)
    assert collective(one_level, ((span * more, 1),), moved) >= collective(one_level, ((span, 1),), moved)


def test_a_mesh_of_pairwise_links_is_slow_between_two_and_fast_among_all():
    mesh = NODE_LINK.model_copy(update={"pair_bandwidth_bytes_per_s": 3e11 / 7})
    levels = cluster(node_link=mesh).levels
    pair = all_to_all_s(levels, ((2, 1),), 1e9)
    assert pair == pytest.approx(0.5e9 / (0.8 * 3e11 / 7) + 4e-6, rel=1e-12)
    assert all_to_all_s(levels, ((8, 1),), 1e9) == pytest.approx(7 / 8 * 1e9 / 2.4e11 + 7 * 4e-6, rel=1e-12)


def test_a_message_takes_the_nearest_link_that_joins_both_devices():
    assert point_to_point_s(LEVELS, 3, 3, 1e9) == 0.0
    assert point_to_point_s(LEVELS, 0, 7, 1e9) == pytest.approx(1e9 / NODE_LINK.pair_bytes_per_s + 4e-6)
    assert point_to_point_s(LEVELS, 7, 8, 1e9) == pytest.approx(1e9 / NETWORK_LINK.pair_bytes_per_s + 1e-5)
    assert point_to_point_s(LEVELS, 15, 16, 1e9) == pytest.approx(1e9 / 1e10 + 2e-5)


# Measured: Megatron Core MoE report (arXiv 2603.07685), table 7, H100 with plain all-to-all, microseconds of dispatch
# and combine; DeepSeek-V3's shape: 4096 tokens to 8 experts each, 7168 channels in bf16.
@pytest.mark.parametrize(
    ("ranks", "dispatch_us", "combine_us"),
    [(8, 1265, 1277), (16, 5774, 5628), (32, 8059, 7815), (64, 9164, 8727)],
)
def test_all_to_all_on_h100_is_within_15_percent_of_published_times(ranks, dispatch_us, combine_us):
    levels = resolve_cluster(cluster_from_shorthand("8x8:h100-sxm-80g")).levels
    predicted_us = all_to_all_s(levels, ((ranks, 1),), 4096 * 8 * 7168 * 2.0) * 1e6
    assert predicted_us == pytest.approx(dispatch_us, rel=0.15)
    assert predicted_us == pytest.approx(combine_us, rel=0.15)
