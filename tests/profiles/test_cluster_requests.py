import json

import pytest

from planner.spec.cluster import Level, Link
from planner.spec.errors import InputError, MalformedError
from planner.spec.request import ClusterRequest, Target
from profiles import cluster_from_shorthand, cluster_request_from_file, device_preset, resolve_cluster

LINK = Link(bandwidth_bytes_per_s=1e9, latency_s=1e-5, efficiency_ratio=0.5)


def problem(work, *arguments, error=InputError):
    with pytest.raises(error) as caught:
        work(*arguments)
    (found,) = caught.value.problems
    return found


def levels(text):
    return [(level.name, level.num_devices) for level in resolve_cluster(cluster_from_shorthand(text)).levels]


def test_shorthand_names_nodes_devices_per_node_and_device():
    request = cluster_from_shorthand(" 8x4:h100 ")
    assert request == ClusterRequest(nodes=8, devices_per_node=4, device="h100")


@pytest.mark.parametrize("text", ["", "8", "8x8", "8:h100", "8x8:", "x8:h100", "-1x8:h100", "8x8:h 100", "8×8:h100"])
def test_other_shorthand_is_refused_with_an_example(text):
    found = problem(cluster_from_shorthand, text)
    assert found.field == "cluster"
    assert "8x8:h100-sxm-80g" in found.message


@pytest.mark.parametrize(("text", "field"), [("0x8:h100", "cluster.nodes"), ("8x0:h100", "cluster.devices_per_node")])
def test_no_node_or_no_device_is_refused(text, field):
    assert problem(cluster_from_shorthand, text).field == field


def test_a_tier_stands_only_where_it_joins_something():
    assert levels("8x8:h100") == [("node", 8), ("cluster", 64)]
    assert levels("1x8:h100") == [("node", 8)]
    assert levels("8x1:h100") == [("cluster", 8)]
    assert levels("1x1:h100") == [("node", 1)]


def test_links_default_to_the_usual_node_of_the_device():
    cluster = resolve_cluster(cluster_from_shorthand("2x8:a100-80g"))
    preset = device_preset("a100-sxm-80g")
    assert [level.link for level in cluster.levels] == [preset.intra_node, preset.inter_node]
    assert cluster.device == preset.device


def test_links_that_are_given_replace_the_usual_ones():
    request = ClusterRequest(nodes=2, devices_per_node=8, device="h100", inter_node=LINK)
    assert resolve_cluster(request).levels[-1].link == LINK


def test_a_given_link_that_says_no_share_reaches_the_usual_one():
    bare = Link(bandwidth_bytes_per_s=1e9, latency_s=1e-5)
    request = ClusterRequest(nodes=2, devices_per_node=8, device="h100", intra_node=bare, inter_node=bare)
    found, usual = resolve_cluster(request).levels, device_preset("h100")
    assert [level.link.efficiency_ratio for level in found] == [
        usual.intra_node.efficiency_ratio,
        usual.inter_node.efficiency_ratio,
    ]


def test_a_node_larger_than_the_usual_one_needs_its_links():
    request = cluster_from_shorthand("1x16:h100")
    assert problem(resolve_cluster, request).field == "devices_per_node"
    wired = request.model_copy(update={"intra_node": LINK})
    assert resolve_cluster(wired).levels == (Level(name="node", num_devices=16, link=LINK),)


def test_far_too_many_nodes_are_called_too_many_not_unreadable():
    assert "at most 1048576 devices" in problem(cluster_from_shorthand, "1000000000x8:h100").message


def test_an_unknown_device_is_an_error_at_device_with_close_matches():
    found = problem(resolve_cluster, cluster_from_shorthand("8x8:h100-80"))
    assert found.field == "device"
    assert "did you mean h100" in found.message


def test_an_inline_device_needs_the_links_of_the_tiers_that_the_cluster_has():
    device = device_preset("h100").device
    one_node = ClusterRequest(nodes=1, devices_per_node=2, device=device)
    assert problem(resolve_cluster, one_node).field == "intra_node"
    single = ClusterRequest(nodes=2, devices_per_node=1, device=device)
    assert problem(resolve_cluster, single).field == "inter_node"
    assert resolve_cluster(single.model_copy(update={"inter_node": LINK})).num_devices == 2


def test_levels_stand_instead_of_links():
    tiers = tuple(Level(name=name, num_devices=size, link=LINK) for name, size in (("a", 2), ("b", 8), ("c", 16)))
    request = ClusterRequest(nodes=2, devices_per_node=8, device="h100", levels=tiers)
    assert resolve_cluster(request).levels == tiers


def test_levels_that_do_not_span_the_cluster_are_refused():
    tiers = (Level(name="node", num_devices=8, link=LINK),)
    request = ClusterRequest(nodes=2, devices_per_node=8, device="h100", levels=tiers)
    found = problem(resolve_cluster, request)
    assert (found.field, "must span all 16 devices" in found.message) == ("levels", True)


def test_a_memory_limit_above_the_device_is_refused():
    request = ClusterRequest(nodes=1, devices_per_node=8, device="h100", memory_limit_bytes=10**12)
    assert problem(resolve_cluster, request).field == "memory_limit_bytes"


def test_a_file_holds_a_request(tmp_path):
    file = tmp_path / "cluster.json"
    file.write_text(json.dumps({"nodes": 2, "devices_per_node": 8, "device": "h100"}))
    assert cluster_request_from_file(str(file)) == cluster_from_shorthand("2x8:h100")
    assert cluster_request_from_file("2x8:h100") == cluster_from_shorthand("2x8:h100")


def test_a_wrong_file_is_an_error_under_cluster(tmp_path):
    file = tmp_path / "cluster.json"
    file.write_text(json.dumps({"nodes": 2, "devices_per_node": 8}))
    assert problem(cluster_request_from_file, str(file)).field == "cluster.device"
    file.write_text("nodes: 2")
    assert problem(cluster_request_from_file, str(file), error=MalformedError).field == "cluster"
    assert problem(cluster_request_from_file, "nowhere.json", error=MalformedError).field == "cluster"


@pytest.mark.parametrize(
    ("target", "stack"),
    [
        (Target.ANY, "megatron-core-2026"),
        (Target.MEGATRON, "megatron-core-2026"),
        (Target.TORCHTITAN, "torchtitan"),
        (Target.DEEPSPEED, "megatron-deepspeed"),
    ],
)
def test_without_a_stack_it_is_that_of_the_target(target, stack):
    request = cluster_from_shorthand("2x8:h100")
    named = request.model_copy(update={"stack": "pytorch-fsdp"})
    assert resolve_cluster(request, target).stack.name == stack
    assert resolve_cluster(named, target).stack.name == "pytorch-fsdp"
