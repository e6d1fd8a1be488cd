import pytest
from pydantic import TypeAdapter

from planner.spec.cluster import Cluster, Level, Link, Provenance
from planner.spec.mixed_cluster import AnyCluster, MixedCluster
from profiles import device_preset

FAST = Link(bandwidth_bytes_per_s=3e11, latency_s=3e-6)
SLOW = Link(bandwidth_bytes_per_s=2e10, latency_s=1e-5)
BETWEEN = Link(bandwidth_bytes_per_s=1e10, latency_s=2e-5)


def group(nodes=1, per_node=8, device="a100-sxm-80g", **changes):
    levels = [Level(name="node", num_devices=per_node, link=FAST)]
    if nodes > 1:
        levels.append(Level(name="cluster", num_devices=nodes * per_node, link=SLOW))
    found = device_preset(device).device
    return Cluster(nodes=nodes, devices_per_node=per_node, device=found, levels=tuple(levels), **changes)


MIXED = MixedCluster(groups=(group(nodes=2), group(per_node=4, device="v100-sxm2-32g")), inter_group=BETWEEN)


def test_devices_are_numbered_group_after_group():
    assert (MIXED.num_devices, MIXED.first_devices) == (20, (0, 16))
    assert [MIXED.group_number(device) for device in (0, 15, 16, 19)] == [0, 0, 1, 1]


def test_a_stage_lies_in_the_group_of_its_devices():
    assert MIXED.group_of(8, 8) == MIXED.groups[0]
    assert MIXED.group_of(16, 4) == MIXED.groups[1]


@pytest.mark.parametrize("place", [(12, 8), (15, 2), (16, 5), (20, 1)])
def test_devices_of_several_groups_or_of_none_are_refused(place):
    with pytest.raises(ValueError, match=r"one group of the cluster: devices 0–15 a100-sxm-80g, devices 16–19 v100"):
        MIXED.group_of(*place)


@pytest.mark.parametrize(
    ("one", "other", "link"), [(0, 7, FAST), (8, 15, FAST), (7, 8, SLOW), (15, 16, BETWEEN), (16, 19, FAST)]
)
def test_two_devices_are_joined_inside_a_node_a_group_or_between_groups(one, other, link):
    assert MIXED.link_between(one, other) == MIXED.link_between(other, one) == link


def test_any_two_devices_can_count_on_the_narrowest_link():
    (level,) = MIXED.levels
    assert (level.num_devices, level.link) == (20, BETWEEN)


def test_numbers_are_as_sure_as_the_weakest_of_the_groups():
    sure = group().device.model_copy(update={"provenance": Provenance.MEASURED})
    measured = group().model_copy(update={"device": sure})
    both = MIXED.model_copy(update={"groups": (measured, group())})
    assert both.provenance is Provenance.FITTED


def test_equal_devices_are_one_group():
    cluster = group(nodes=2)
    assert (cluster.groups, cluster.first_devices) == ((cluster,), (0,))
    assert cluster.group_of(4, 12) == cluster
    with pytest.raises(ValueError, match="16 devices"):
        cluster.group_of(4, 13)


@pytest.mark.parametrize("cluster", [MIXED, group(nodes=2)], ids=["mixed", "equal"])
def test_either_kind_survives_json(cluster):
    any_cluster = TypeAdapter(AnyCluster)
    assert any_cluster.validate_json(cluster.model_dump_json()) == cluster


def test_the_last_island_of_a_tier_may_be_smaller():
    levels = (Level(name="rack", num_devices=72, link=FAST), Level(name="cluster", num_devices=76, link=SLOW))
    cluster = group().model_copy(update={"nodes": 19, "devices_per_node": 4, "levels": levels})
    assert cluster.link_between(0, 71) == FAST
    assert cluster.link_between(71, 72) == SLOW
    assert cluster.link_between(72, 75) == FAST


@pytest.mark.parametrize("order", [(0,), (0,) * 8, (1, 2, 3, 4, 5, 6, 7, 8)])
def test_an_order_names_each_device_once(order):
    with pytest.raises(ValueError, match="each of 8 devices once"):
        group(device_order=order)
