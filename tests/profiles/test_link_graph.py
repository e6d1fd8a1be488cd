import random
from itertools import pairwise
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.spec.errors import InputError
from planner.spec.request import ClusterRequest, Connection, MixedClusterRequest
from profiles import device_preset, resolve_cluster
from profiles.link_graph import group_tiers, link_tiers

NVLINKS_OF_DGX1 = {
    (0, 1): 1, (0, 2): 1, (0, 3): 2, (0, 4): 2, (1, 2): 2, (1, 3): 1, (1, 5): 2, (2, 3): 2,
    (2, 6): 1, (3, 7): 1, (4, 5): 1, (4, 6): 1, (4, 7): 2, (5, 6): 2, (5, 7): 1, (6, 7): 2,
}  # fmt: skip
"""NVIDIA DGX-1 System Architecture white paper WP-08437-001, section 3.1, with the pairs of V100's six links."""


def join(one, other, bandwidth, latency=1e-6):
    return Connection(a=one, b=other, bandwidth_bytes_per_s=bandwidth, latency_s=latency)


def mesh(first=0):
    return [join(first + a, first + b, count * 25e9) for (a, b), count in NVLINKS_OF_DGX1.items()]


def fat_tree(uplink, leaves=4, spines=2, per_leaf=8):
    """Devices at 50e9 under leaves; each leaf's `uplink` is shared by the spines."""
    down = [join(device, f"leaf {device // per_leaf}", 50e9) for device in range(leaves * per_leaf)]
    return down + [join(f"leaf {x}", f"spine {y}", uplink / spines) for x in range(leaves) for y in range(spines)]


def rails(pods=2, nodes=4, per_node=8, uplink=100e9):
    """Nodes of NVSwitches; device i of every node of a pod under rail switch i; rail switches under spines."""
    links = []
    for device in range(pods * nodes * per_node):
        node, rail = divmod(device, per_node)
        links.append(join(device, f"nvswitch {node}", 450e9, 1e-6))
        links.append(join(device, f"rail {node // nodes}.{rail}", 50e9, 5e-6))
    return links + [join(f"rail {p}.{r}", "spine", uplink, 5e-6) for p in range(pods) for r in range(per_node)]


def tiers(links, num_devices, per_node):
    found = link_tiers(links, num_devices, per_node)
    return [(level.num_devices, level.link.bandwidth_bytes_per_s) for level in found.levels]


def refusal(links, num_devices=4, per_node=4):
    with pytest.raises(InputError) as caught:
        link_tiers(links, num_devices, per_node)
    (problem,) = caught.value.problems
    return problem


def test_the_mesh_of_a_dgx1_is_the_node_of_the_preset():
    (level,) = link_tiers(mesh(), 8, 8).levels
    preset = device_preset("v100-sxm2-32g").intra_node
    assert level.link.bandwidth_bytes_per_s == preset.bandwidth_bytes_per_s
    assert level.link.pair_bandwidth_bytes_per_s == preset.pair_bandwidth_bytes_per_s
    assert (level.name, level.link.latency_s) == ("node", 2e-6)


def test_meshes_under_a_network_are_two_tiers():
    network = [join(device, f"adapter {device // 2}", 12.5e9) for device in range(16)]
    network += [join(f"adapter {number}", "switch", 12.5e9) for number in range(8)]
    assert tiers(mesh() + mesh(8) + network, 16, 8) == [(8, 150e9), (16, 6.25e9)]


@pytest.mark.parametrize(("uplink", "reached"), [(400e9, 50e9), (200e9, 25e9), (800e9, 50e9)])
def test_leaves_share_their_uplink_and_no_device_gets_more_than_its_own(uplink, reached):
    assert tiers(fat_tree(uplink), 32, 8) == [(8, 50e9), (32, reached)]


def test_the_way_over_the_spine_has_four_links():
    first, second = link_tiers(fat_tree(400e9), 32, 8).levels
    assert (first.link.latency_s, second.link.latency_s) == (2e-6, 4e-6)


def test_rails_join_nodes_at_full_speed_and_pods_at_what_the_spine_leaves():
    assert tiers(rails(), 64, 8) == [(8, 450e9), (32, 50e9), (64, 25e9)]


def test_nodes_with_a_full_rack_and_the_beginning_of_another_are_islands_of_72():
    planes = [join(device, f"switch {device // 72}.{plane}", 100e9) for device in range(76) for plane in range(9)]
    network = [join(device, "network", 50e9) for device in range(76)]
    assert tiers(planes + network, 76, 4) == [(72, 900e9), (76, 50e9)]


@st.composite
def trees(draw):
    """Devices per island and bandwidth per device, by tier; from tier to tier islands are larger and links slower."""
    factors = draw(st.lists(st.integers(2, 5), min_size=1, max_size=4))
    rates = sorted(draw(st.lists(st.integers(1, 10**6), min_size=4, max_size=4, unique=True)), reverse=True)
    return [(prod(factors[: tier + 1]), float(rate)) for tier, rate in enumerate(rates[: len(factors)])]


def tree_links(expected, order):
    """A switch on every island, with an uplink for all its devices; device i stands where `order` says."""
    links = [join(order[i], f"0.{i // expected[0][0]}", expected[0][1]) for i in range(expected[-1][0])]
    for tier, ((size, _), (larger, rate)) in enumerate(pairwise(expected)):
        for island in range(expected[-1][0] // size):
            links.append(join(f"{tier}.{island}", f"{tier + 1}.{island * size // larger}", rate * size))
    return links


@given(expected=trees(), random=st.randoms(use_true_random=False), shuffled=st.booleans())
def test_the_tiers_of_a_tree_are_found_however_devices_are_numbered(expected, random, shuffled):
    num_devices = expected[-1][0]
    order = list(range(num_devices))
    if shuffled:
        random.shuffle(order)
    links = tree_links(expected, order)
    random.shuffle(links)
    found = link_tiers(links, num_devices, expected[0][0])
    assert [(level.num_devices, level.link.bandwidth_bytes_per_s) for level in found.levels] == expected
    renumbered = found.device_order or range(num_devices)
    place = {device: position for position, device in enumerate(order)}
    for size, _ in expected:
        for first in range(0, num_devices, size):
            assert len({place[device] // size for device in renumbered[first : first + size]}) == 1


def test_links_between_the_same_ends_add_up():
    assert tiers([join(0, 1, 25e9), join(1, 0, 25e9)], 2, 2) == [(2, 50e9)]


def test_switches_in_a_row_are_as_narrow_as_the_narrowest_link():
    row = [join(0, "a", 5e9), join("a", "b", 40e9), join("b", 1, 40e9)]
    assert tiers(row, 2, 2) == [(2, 5e9)]


@pytest.mark.parametrize("seed", range(5))
def test_devices_that_are_numbered_across_islands_are_renumbered(seed):
    shuffled = list(range(64))
    random.Random(seed).shuffle(shuffled)
    links = [link.model_copy(update={"a": shuffled[link.a]}) if isinstance(link.a, int) else link for link in rails()]
    found, straight = link_tiers(links, 64, 8), link_tiers(rails(), 64, 8)
    assert found.levels == straight.levels
    assert straight.device_order == ()
    nodes = {frozenset(shuffled[first : first + 8]) for first in range(0, 64, 8)}
    assert {frozenset(found.device_order[first : first + 8]) for first in range(0, 64, 8)} == nodes


def test_a_smaller_island_becomes_the_last():
    links = [join(device, "small" if device < 2 else "large", 9e9) for device in range(6)]
    found = link_tiers([*links, join("small", "large", 1e9)], 6, 2)
    assert found.device_order == (2, 3, 4, 5, 0, 1)
    assert [level.num_devices for level in found.levels] == [4, 6]


def test_islands_of_unequal_sizes_are_refused_with_their_devices():
    links = [join(device, "abc"[min(device // 4, 2)], 5e9) for device in range(16)]
    found = refusal(links + [join(leaf, "spine", 5e9) for leaf in "abc"], 16, 4)
    assert found.field == "links"
    assert "devices 0–3: 4; devices 4–7: 4; devices 8–15: 8" in found.message
    assert "groups" in found.message


def test_devices_that_nothing_joins_are_refused():
    found = refusal([join(0, 1, 1e9), join(2, "s", 1e9), join(3, "s", 1e9)])
    assert (found.field, "from devices 0–1 to devices 2–3" in found.message) == ("links", True)
    assert "to device 1" in refusal([], 2).message


def test_a_link_to_a_device_beyond_the_cluster_is_refused():
    assert refusal([join(0, 4, 1e9)]).field == "links[0].b"


def test_one_device_needs_no_graph():
    assert "one device" in refusal([], 1).message


def two_kinds(fast=8, slow=8):
    """Nodes of one kind with NVSwitches, and a mesh of pairs, under one network at 25e9 and 12.5e9."""
    links = [join(device, f"nvswitch {device // 4}", 300e9) for device in range(fast)]
    links += [join(fast + device, fast + device + 1, 50e9) for device in range(0, slow, 2)]
    return links + [join(device, "network", 25e9 if device < fast else 12.5e9) for device in range(fast + slow)]


def test_a_graph_around_groups_gives_each_its_own_tiers():
    found = group_tiers(two_kinds(), [(8, 4), (8, 2)])
    first, second = ([(lv.num_devices, lv.link.bandwidth_bytes_per_s) for lv in each.levels] for each in found.groups)
    assert first == [(4, 300e9), (8, 25e9)]
    assert second == [(2, 50e9), (8, 12.5e9)]
    assert found.link.bandwidth_bytes_per_s == 12.5e9
    assert [level.name for level in found.groups[1].levels] == ["node", "cluster"]


def test_a_group_inside_a_graph_is_renumbered_by_itself():
    pairs = [join(4 + a, 4 + b, 50e9) for a, b in ((0, 2), (1, 3))]
    network = [join(device, "network", 5e9) for device in range(8)]
    found = group_tiers([*pairs, *network], [(4, 4), (4, 2)])
    assert [each.device_order for each in found.groups] == [(), (0, 2, 1, 3)]
    assert [[level.num_devices for level in each.levels] for each in found.groups] == [[4], [2, 4]]


def test_a_group_of_one_device_has_the_link_that_joins_it():
    found = group_tiers([join(0, 1, 9e9), join(1, 2, 4e9)], [(2, 2), (1, 1)])
    assert [level.link.bandwidth_bytes_per_s for level in found.groups[1].levels] == [2e9]


def test_nodes_with_fewer_devices_become_a_group_under_one_graph():
    nodes = [join(device, f"nvswitch {device // 8}", 450e9) for device in range(28)]
    nodes += [join(device, "network", 50e9) for device in range(28)]
    found = group_tiers(nodes, [(24, 8), (4, 4)])
    assert [[level.num_devices for level in each.levels] for each in found.groups] == [[8, 24], [4]]
    request = MixedClusterRequest(
        groups=(
            ClusterRequest(nodes=3, devices_per_node=8, device="h100"),
            ClusterRequest(nodes=1, devices_per_node=4, device="h100"),
        ),
        links=tuple(nodes),
    )
    cluster, usual = resolve_cluster(request), device_preset("h100").inter_node
    assert cluster.inter_group.bandwidth_bytes_per_s == 50e9
    assert cluster.inter_group.efficiency_ratio == usual.efficiency_ratio


def test_a_graph_around_groups_stands_instead_of_their_links():
    group = ClusterRequest(nodes=1, devices_per_node=1, device="h100", inter_node=device_preset("h100").inter_node)
    with pytest.raises(ValueError, match="links of its groups"):
        MixedClusterRequest(groups=(group, group), links=(join(0, 1, 1e9),))


def test_a_graph_stands_instead_of_links_and_reaches_what_is_usual():
    request = ClusterRequest(nodes=8, devices_per_node=8, device="h100", links=tuple(rails()))
    cluster, preset = resolve_cluster(request), device_preset("h100")
    assert [level.name for level in cluster.levels] == ["node", "island of 32", "cluster"]
    ratios = [level.link.efficiency_ratio for level in cluster.levels]
    between = preset.inter_node.efficiency_ratio
    assert ratios == [preset.intra_node.efficiency_ratio, between, between]


def test_a_graph_and_links_exclude_each_other():
    with pytest.raises(ValueError, match="either links or levels"):
        ClusterRequest(
            nodes=1,
            devices_per_node=2,
            device="h100",
            links=(join(0, 1, 1e9),),
            inter_node=device_preset("h100").inter_node,
        )


def test_a_link_joins_two_ends():
    with pytest.raises(ValueError, match="another end"):
        join(1, 1, 1e9)


@pytest.mark.parametrize("hub", [True, False])
def test_a_graph_in_which_hardly_two_links_are_equal_is_refused_before_it_takes_minutes(hub):
    ends = ((device, "switch" if hub else device + 1) for device in range(2047))
    links = [join(one, other, 1e9 + one) for one, other in ends]
    with pytest.raises(InputError, match="equal links"):
        link_tiers(links, 2048, 8)


def test_a_graph_of_more_devices_than_can_be_walked_is_refused_before_it_is_built():
    with pytest.raises(InputError, match="at most 262144 devices and links"):
        link_tiers([join(0, 1, 1e9)], 2**20, 8)


def test_a_large_regular_graph_needs_few_rounds():
    (only,) = link_tiers([join(device, "switch", 1e9) for device in range(2**12)], 2**12, 8).levels
    assert only.num_devices == 2**12
