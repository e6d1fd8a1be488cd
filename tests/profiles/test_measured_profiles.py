"""A measured profile as a file: written, read, and taken as the device of a cluster."""

import json

import pytest
from machine_samples import KNOWN, MACHINE, samples

from planner.spec.cluster import Link
from planner.spec.errors import InputError, MalformedError
from planner.spec.request import ClusterRequest
from profiles import cluster_from_shorthand, cluster_request_from_file, resolve_cluster
from profiles.devices import profile_from_file
from profiles.measured import measured_profile, profile_text
from profiles.measurement import CollectiveSample, OverlapSample

LINK = {"bandwidth_bytes_per_s": 1e9, "latency_s": 1e-5}


@pytest.fixture(scope="module")
def profile():
    return measured_profile(None, MACHINE, samples(), "2026-11-21", 12.34)


@pytest.fixture(scope="module")
def lonely():
    """Of a machine with one device."""
    machine = MACHINE.model_copy(update={"num_devices": 1, "devices_per_node": 1})
    alone = [sample for sample in samples() if not isinstance(sample, CollectiveSample | OverlapSample)]
    return measured_profile("lonely", machine, alone, "2026-11-21", 12.34)


@pytest.fixture
def file(tmp_path, profile):
    path = tmp_path / "mine.json"
    path.write_text(profile_text(profile))
    return path


def problem(work, *arguments, error=InputError):
    with pytest.raises(error) as caught:
        work(*arguments)
    (found,) = caught.value.problems
    return found


def test_a_device_without_a_name_is_called_by_its_product(profile, lonely):
    assert (profile.name, profile.device.name) == ("known-9000", "known-9000")
    assert lonely.name == "lonely"


def test_the_file_says_when_what_and_how_was_measured(file):
    content = json.loads(file.read_text())
    evidence = content["measurement"]
    assert content["device"]["provenance"] == "measured"
    assert (evidence["date"], evidence["took_s"]) == ("2026-11-21", 12.3)
    assert evidence["machine"]["torch_version"] == "2.13.0"
    assert evidence["machine"]["device"] == "Known 9000"
    assert len(evidence["samples"]) == len(samples())
    assert {error["kind"] for error in evidence["errors"]} > {"launch", "all_reduce"}
    assert any("quartile" in line for line in evidence["method"])


def test_what_is_written_is_read_again(file, profile):
    assert profile_from_file(file, "profile") == profile
    assert max(map(len, file.read_text().splitlines())) < 400


def test_shorthand_takes_the_file_as_device_with_its_links_and_its_software(file, profile):
    cluster = resolve_cluster(cluster_from_shorthand(f"2x8:{file}"))
    assert cluster.device == profile.device
    assert [level.link for level in cluster.levels] == [profile.intra_node, profile.inter_node]
    assert cluster.stack == profile.stack
    assert cluster.stack.elementwise_ratio == pytest.approx(KNOWN.stack.elementwise_ratio, rel=0.02)
    assert cluster_request_from_file(f"2x8:{file}") == cluster_from_shorthand(f"2x8:{file}")


def test_a_cluster_file_names_the_profile_beside_it(file):
    cluster = file.with_name("cluster.json")
    cluster.write_text(json.dumps({"nodes": 1, "devices_per_node": 4, "device": "mine.json"}))
    assert cluster_request_from_file(str(cluster)) == cluster_from_shorthand(f"1x4:{file}")


def test_what_the_cluster_file_says_goes_before_what_was_measured(file, profile):
    cluster = file.with_name("cluster.json")
    content = {"nodes": 1, "devices_per_node": 16, "device": "mine.json", "intra_node": LINK, "stack": "pytorch-fsdp"}
    cluster.write_text(json.dumps(content))
    found = resolve_cluster(cluster_request_from_file(str(cluster)))
    assert found.levels[0].link == Link(**LINK)
    assert found.stack.name == "pytorch-fsdp"
    assert found.device == profile.device


def test_more_devices_or_nodes_than_were_measured_need_their_links(file, tmp_path, lonely):
    assert problem(cluster_from_shorthand, f"1x16:{file}").field == "cluster.devices_per_node"
    (tmp_path / "lonely.json").write_text(profile_text(lonely))
    assert problem(cluster_from_shorthand, f"1x2:{tmp_path}/lonely.json").field == "cluster.devices_per_node"
    assert problem(cluster_from_shorthand, f"2x1:{tmp_path}/lonely.json").field == "cluster.nodes"


def test_a_single_device_needs_no_link(tmp_path, lonely):
    (tmp_path / "lonely.json").write_text(profile_text(lonely))
    assert resolve_cluster(cluster_from_shorthand(f"1x1:{tmp_path}/lonely.json")).device == lonely.device


def test_a_file_that_is_no_profile_is_an_error_at_the_device(tmp_path):
    assert problem(cluster_from_shorthand, "1x4:nowhere.json", error=MalformedError).field == "cluster.device"
    (tmp_path / "odd.json").write_text('{"name": "odd", "colour": 1}')
    with pytest.raises(InputError, match=r"cluster\.device"):
        cluster_from_shorthand(f"1x4:{tmp_path}/odd.json")


def test_a_name_of_a_file_in_a_request_over_http_is_no_file():
    """Requests that do not come from this machine's user open no files."""
    request = ClusterRequest(nodes=1, devices_per_node=4, device="mine.json")
    assert problem(resolve_cluster, request).field == "device"
