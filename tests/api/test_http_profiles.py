"""Measured profiles over HTTP: kept under a name, used as device, replaced only by who knows what was there."""

import pytest
from invented_searches import TINY_REQUEST
from measured_profiles import body_of, measured_core

from planner.spec.shortlist import Shortlist
from profiles import MeasuredProfile, cluster_request_from_file, resolve_cluster
from profiles.measured import profile_text

WAIT = {"Prefer": "wait=30"}
PROFILE = measured_core()
FASTER = measured_core(
    device=PROFILE.device.model_copy(
        update={"memory_bandwidth_bytes_per_s": 10 * PROFILE.device.memory_bandwidth_bytes_per_s}
    )
)
REQUEST = {
    **TINY_REQUEST,
    "cluster": {"nodes": 1, "devices_per_node": 4, "device": "our-core"},
    "training": TINY_REQUEST["training"] | {"precision": "fp32"},
}


def put(client, profile=PROFILE, name="our-core", **headers):
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return client.put(f"/v1/profiles/{name}", json=body_of(profile), headers=named)


def test_a_profile_comes_back_as_it_was_sent(client):
    answer = put(client)
    assert (answer.status_code, answer.headers["location"]) == (201, "/v1/profiles/our-core")
    kept = client.get("/v1/profiles/our-core")
    assert MeasuredProfile.model_validate(kept.json()) == PROFILE
    assert kept.headers["etag"] == answer.headers["etag"] == f'"{answer.json()["tag"]}"'


def test_profiles_are_listed_by_name_in_pages(client):
    for name in ("b-core", "a-core", "c-core"):
        put(client, name=name)
    first = client.get("/v1/profiles", params={"limit": 2}).json()
    second = client.get(first["next"]).json()
    assert [item["name"] for item in first["items"] + second["items"]] == ["a-core", "b-core", "c-core"]
    assert first["items"][0]["device"] == PROFILE.device.name
    assert first["items"][0]["measured_on"] == PROFILE.measurement.date


def test_a_profile_stands_among_the_devices(client):
    presets = client.get("/v1/devices").json()["items"]
    put(client)
    assert client.get("/v1/devices").json()["items"] == sorted([*presets, "our-core"])
    assert MeasuredProfile.model_validate(client.get("/v1/devices/our-core").json()) == PROFILE


def test_plans_for_a_measured_device_are_priced_as_the_command_line_does_with_its_file(client, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(profile_text(PROFILE))
    put(client)
    search = client.post("/v1/searches", json=REQUEST, headers=WAIT).json()
    assert search["state"] == "succeeded", search
    shortlist = Shortlist.model_validate(client.get(search["links"]["shortlist"]).json())
    best = shortlist.plans[0]
    assert best.estimate.provenance == "measured"
    asked = {"model": REQUEST["model"], "training": REQUEST["training"], "plan": best.plan.model_dump(mode="json")}
    by_name = client.post("/v1/estimates", json=asked | {"cluster": REQUEST["cluster"]}).json()
    from_file = cluster_request_from_file(f"1x4:{file}").model_dump(mode="json", exclude_none=True)
    assert by_name == client.post("/v1/estimates", json=asked | {"cluster": from_file}).json()
    what_if = client.post(f"{search['links']['best_plan']}/estimate", json={"cluster": REQUEST["cluster"]}).json()
    assert what_if["step_time_s"] == by_name["step_time_s"] == best.estimate.step_time_s
    assert resolve_cluster(cluster_request_from_file(f"1x4:{file}")).provenance == "measured"


def test_groups_may_be_measured_devices(client):
    put(client)
    group = {"nodes": 1, "devices_per_node": 2, "device": "our-core"}
    link = {"bandwidth_bytes_per_s": 1e9, "latency_s": 1e-4}
    cluster = {"groups": [group, group], "inter_group": link}
    assert client.post("/v1/searches", json=REQUEST | {"cluster": cluster}).status_code == 202
    cluster["groups"] = [group, group | {"devices_per_node": 4096}]
    answer = client.post("/v1/searches", json=REQUEST | {"cluster": cluster})
    assert [item["field"] for item in answer.json()["errors"]] == ["cluster.groups[1].devices_per_node"]


def test_links_that_were_not_measured_are_asked_for(client):
    put(client)
    answer = client.post("/v1/searches", json=REQUEST | {"cluster": REQUEST["cluster"] | {"nodes": 2}})
    [error] = answer.json()["errors"]
    assert error["field"] == "cluster.nodes" and "give inter_node" in error["message"]


def test_a_search_keeps_the_numbers_that_it_was_asked_with_and_the_next_one_has_the_new(client):
    put(client)
    before = client.post("/v1/searches", json=REQUEST, headers=WAIT).json()
    plan = f"/v1/plans/{before['best_plan_id']}/estimate"
    old = client.get(plan).json()
    assert put(client, FASTER).status_code == 200
    after = client.post("/v1/searches", json=REQUEST, headers=WAIT).json()
    assert after["best_plan_id"] == before["best_plan_id"]
    assert client.get(plan, params={"search_id": before["id"]}).json() == old
    assert client.get(plan, params={"search_id": after["id"]}).json()["step_time_s"] < old["step_time_s"]
    client.delete("/v1/profiles/our-core")
    assert client.get(plan, params={"search_id": before["id"]}).json() == old


def test_a_profile_that_is_gone_is_no_device_any_more(client):
    put(client)
    assert client.delete("/v1/profiles/our-core").status_code == 204
    for path in ("profiles/our-core", "devices/our-core"):
        assert client.get(f"/v1/{path}").status_code == 404
    assert client.delete("/v1/profiles/our-core").status_code == 404
    answer = client.post("/v1/searches", json=REQUEST)
    assert [item["field"] for item in answer.json()["errors"]] == ["cluster.device"]


@pytest.mark.parametrize("name", ["h100-sxm-80g", "cpu-core"])
def test_no_profile_takes_the_name_of_a_preset(client, name):
    answer = put(client, name=name)
    assert answer.status_code == 422
    assert "names a device preset" in answer.json()["errors"][0]["message"]


@pytest.mark.parametrize("name", ["Our-Core", "-core", "mine.json", "x" * 65, "a b", "core%0A"])
def test_names_are_small_and_plain(client, name):
    answer = put(client, name=name)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "name"


def test_whoever_names_what_was_there_does_not_overwrite_what_others_sent(client):
    tag = put(client, if_none_match="*").headers["etag"]
    assert put(client, FASTER, if_none_match="*").status_code == 412
    newer = put(client, FASTER, if_match=tag)
    assert newer.status_code == 200
    refused = put(client, if_match=f'{tag}, "other"')
    assert (refused.status_code, refused.headers["content-type"]) == (412, "application/problem+json")
    assert newer.headers["etag"] in refused.json()["detail"]
    assert client.delete("/v1/profiles/our-core", headers={"If-Match": tag}).status_code == 412
    assert client.delete("/v1/profiles/our-core", headers={"If-Match": "*"}).status_code == 204
    assert put(client, if_match="*").status_code == 412


def test_the_same_profile_again_changes_nothing(client):
    first, again = put(client), put(client)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()


def test_a_profile_that_the_client_has_is_not_sent_again(client):
    tag = put(client).headers["etag"]
    answer = client.get("/v1/profiles/our-core", headers={"If-None-Match": f"W/{tag}"})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
    assert client.get("/v1/profiles/our-core", headers={"If-None-Match": '"other"'}).status_code == 200


def test_profiles_are_bounded_in_number_and_size(serve):
    client = serve(max_profiles=1)
    put(client, name="one")
    assert put(client, name="two").status_code == 409
    assert put(client, FASTER, name="one").status_code == 200
    large = measured_core(measurement=PROFILE.measurement.model_copy(update={"method": ("x" * 2**21,)}))
    assert put(client, large, name="one").status_code == 413


def test_what_is_no_profile_is_refused_where_it_is_wrong(client):
    answer = client.put("/v1/profiles/mine", json=body_of(PROFILE) | {"devices_per_node": 0})
    assert [item["field"] for item in answer.json()["errors"]] == ["devices_per_node"]
