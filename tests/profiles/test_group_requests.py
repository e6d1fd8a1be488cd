import json

import pytest

from planner.spec.cluster import Link
from planner.spec.errors import InputError
from planner.spec.parse import parse
from planner.spec.request import ClusterRequest, MixedClusterRequest, SearchRequest
from profiles import cluster_from_shorthand, cluster_request_from_file, device_preset, resolve_cluster

LINK = Link(bandwidth_bytes_per_s=1e9, latency_s=1e-5)
BOTH = "1x8:a100-sxm-80g+2x4:v100-sxm2-32g"


def problem(work, *arguments):
    with pytest.raises(InputError) as caught:
        work(*arguments)
    (found,) = caught.value.problems
    return found


def groups(*shorthands, **changes):
    return MixedClusterRequest(groups=tuple(map(cluster_from_shorthand, shorthands)), **changes)


def test_shorthand_joins_groups_by_plus():
    assert cluster_from_shorthand(BOTH) == groups("1x8:a100-sxm-80g", "2x4:v100-sxm2-32g")


@pytest.mark.parametrize("text", ["1x8:a100+", "+1x8:a100", "1x8:a100+8", "1x8:a100 + 1x8:v100"])
def test_other_shorthand_of_groups_is_refused_with_an_example(text):
    found = problem(cluster_from_shorthand, text)
    assert (found.field, "1x8:a100+1x8:v100" in found.message) == ("cluster", True)


def test_each_group_is_the_cluster_that_it_would_be_alone():
    mixed = resolve_cluster(cluster_from_shorthand(BOTH))
    assert mixed.groups == tuple(resolve_cluster(cluster_from_shorthand(part)) for part in BOTH.split("+"))
    assert mixed.num_devices == 16


def test_groups_are_joined_by_the_narrowest_of_their_networks():
    mixed = resolve_cluster(cluster_from_shorthand(BOTH))
    assert mixed.inter_group == device_preset("v100-sxm2-32g").inter_node


def test_a_link_that_is_given_joins_groups_and_reaches_what_is_usual():
    usual = device_preset("v100-sxm2-32g").inter_node.efficiency_ratio
    found = resolve_cluster(groups("1x8:a100", "1x8:v100", inter_group=LINK)).inter_group
    assert found == LINK.model_copy(update={"efficiency_ratio": usual})


def test_a_group_of_an_inline_device_needs_the_link_between_groups():
    inline = ClusterRequest(nodes=1, devices_per_node=8, device=device_preset("a100").device, intra_node=LINK)
    request = MixedClusterRequest(groups=(inline, cluster_from_shorthand("1x8:v100")))
    assert problem(resolve_cluster, request).field == "inter_group"
    assert resolve_cluster(request.model_copy(update={"inter_group": LINK})).num_devices == 16


def test_nodes_with_fewer_devices_are_a_group_of_their_own():
    mixed = resolve_cluster(cluster_from_shorthand("3x8:h100+1x4:h100"))
    assert mixed.num_devices == 28
    assert {group.device.name for group in mixed.groups} == {"h100-sxm-80g"}


def test_what_is_wrong_in_a_group_is_named_by_its_number():
    assert problem(resolve_cluster, cluster_from_shorthand("1x8:a100+1x8:v10")).field == "groups[1].device"
    small = cluster_from_shorthand("1x8:v100").model_copy(update={"memory_limit_bytes": 10**12})
    request = MixedClusterRequest(groups=(cluster_from_shorthand("1x8:a100"), small))
    assert problem(resolve_cluster, request).field == "groups[1].memory_limit_bytes"


def test_error_bands_are_the_widest_of_the_groups_and_name_all_their_runs():
    mixed = resolve_cluster(cluster_from_shorthand("1x8:a100-sxm-80g+1x8:v100-sxm2-32g"))
    bands = [group.error_bands.dense for group in mixed.groups]
    assert mixed.error_bands.dense.low_ratio == min(band.low_ratio for band in bands)
    assert mixed.error_bands.dense.high_ratio == max(band.high_ratio for band in bands)
    twice = resolve_cluster(cluster_from_shorthand("1x8:a100+1x4:a100"))
    assert twice.error_bands == twice.groups[0].error_bands


def test_a_file_holds_groups(tmp_path):
    file = tmp_path / "cluster.json"
    content = [{"nodes": 1, "devices_per_node": 8, "device": name} for name in ("a100", "v100")]
    file.write_text(json.dumps({"groups": content, "inter_group": LINK.model_dump()}))
    assert cluster_request_from_file(str(file)).groups == groups("1x8:a100", "1x8:v100").groups


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({"groups": []}, "cluster.groups"),
        ({"groups": {}}, "cluster.groups"),
        ({"groups": [{"nodes": 1, "devices_per_node": 8}]}, "cluster.groups[0].device"),
        ({"groups": [{"nodes": 1, "devices_per_node": 8, "device": "a100"}]}, "cluster.groups"),
        ({"groups": [3]}, "cluster.groups.0"),
    ],
)
def test_a_wrong_file_of_groups_is_an_error_under_cluster(tmp_path, content, field):
    file = tmp_path / "cluster.json"
    file.write_text(json.dumps(content))
    assert problem(cluster_request_from_file, str(file)).field == field


def test_a_request_takes_either_form_and_names_the_field_that_is_wrong():
    common = {"model": {"preset": "gpt2"}, "training": {"global_batch_size": 8, "sequence_length": 128}}
    group = {"nodes": 1, "devices_per_node": 8, "device": "a100"}
    found = parse(SearchRequest, {**common, "cluster": {"groups": [group, group]}})
    assert isinstance(found.cluster, MixedClusterRequest)
    assert isinstance(parse(SearchRequest, {**common, "cluster": group}).cluster, ClusterRequest)
    bad = {**common, "cluster": {"groups": [group, {**group, "nodes": 0}]}}
    assert problem(parse, SearchRequest, bad).field == "cluster.groups.1.nodes"
    assert problem(parse, SearchRequest, {**common, "cluster": {**group, "nodes": 0}}).field == "cluster.nodes"


@pytest.mark.parametrize(
    ("nodes", "sizes"),
    [
        (1, [4]),
        (16, [4, 64]),
        (18, [4, 72]),
        (19, [4, 72, 76]),
        (32, [4, 64, 128]),
        (36, [4, 72, 144]),
        (37, [4, 72, 148]),
    ],
)
def test_racks_are_shared_evenly_or_filled_with_a_smaller_one_at_the_end(nodes, sizes):
    cluster = resolve_cluster(cluster_from_shorthand(f"{nodes}x4:gb200"))
    assert [level.num_devices for level in cluster.levels] == sizes
