"""The whole offline stage over HTTP, with the real search in worker processes."""

import os
import time

import pytest
from invented_searches import LONG_REQUEST, TINY_REQUEST
from service_process import alive, descendants

from planner.search import search
from planner.spec.shortlist import Shortlist

WAIT = {"Prefer": "wait=60"}


@pytest.fixture
def client(serve):
    return serve(search)


def test_a_search_ends_with_plans_that_fit_and_whose_pictures_are_there(client):
    done = client.post("/v1/searches", json=TINY_REQUEST, headers=WAIT).json()
    assert done["state"] == "succeeded", done
    shortlist = Shortlist.model_validate(client.get(done["links"]["shortlist"]).json())
    assert "balanced" in shortlist.plans[0].best_for
    for entry in shortlist.plans:
        assert entry.estimate.fits
        assert client.get(f"/v1/plans/{entry.plan.id}/picture").status_code == 200


def test_a_cluster_that_is_too_small_is_told_what_lacks_where(client):
    request = TINY_REQUEST | {"model": {"preset": "llama-3.1-70b"}, "cluster": TINY_REQUEST["cluster"] | {"nodes": 1}}
    done = client.post("/v1/searches", json=request, headers=WAIT).json()
    assert done["state"] == "failed"
    answer = client.get(f"/v1/searches/{done['id']}/shortlist")
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["missing_bytes"] > 0 and problem["stage"] >= 0 and problem["nearest_miss"]
    assert problem["limit_bytes"] == 80 * 2**30


def test_a_search_that_its_time_limit_ends_has_a_plan_and_a_bound(client):
    request = LONG_REQUEST | {"options": {"time_limit_s": 0.5}}
    done = client.post("/v1/searches", json=request, headers=WAIT).json()
    assert done["state"] == "succeeded", done
    shortlist = Shortlist.model_validate(client.get(done["links"]["shortlist"]).json())
    assert shortlist.certificate.status == "bounded"
    assert 0 < shortlist.certificate.lower_bound_s < shortlist.plans[0].estimate.step_time_s


def test_a_long_search_that_is_cancelled_ends_with_its_process(serve):
    client = serve(search, workers=1)
    first = client.post("/v1/searches", json=LONG_REQUEST).headers["location"]
    end = time.monotonic() + 30
    while not client.get(first).json()["progress"]:
        assert time.monotonic() < end
        time.sleep(0.02)
    before = descendants(os.getpid())
    assert client.delete(first).json()["state"] == "cancelled"
    second = client.post("/v1/searches", json=TINY_REQUEST, headers=WAIT).json()
    assert second["state"] == "succeeded", "the place is free again"
    assert any(not alive(process) for process in before)
    assert client.get(first).json()["state"] == "cancelled"


def test_a_search_over_groups_puts_each_stage_on_one_of_them(client):
    groups = [
        {"nodes": 1, "devices_per_node": 2, "device": "a100-sxm-80g"},
        {"nodes": 1, "devices_per_node": 1, "device": "v100-sxm2-32g"},
    ]
    training = TINY_REQUEST["training"] | {"precision": "fp16"}
    request = TINY_REQUEST | {"cluster": {"groups": groups}, "training": training}
    done = client.post("/v1/searches", json=request, headers=WAIT).json()
    assert done["state"] == "succeeded", done
    best = Shortlist.model_validate(client.get(done["links"]["shortlist"]).json()).plans[0]
    assert {stage.device for stage in best.estimate.stages} == {"a100-sxm-80g", "v100-sxm2-32g"}
    assert client.get(f"/v1/plans/{best.plan.id}/picture").status_code == 200
    assert client.get(f"/v1/plans/{best.plan.id}/explanation").status_code == 200


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"training": {"global_batch_size": 1, "sequence_length": 128}, "options": {"axes": ["dp"]}}, "batch"),
        ({"training": {"global_batch_size": 8, "sequence_length": 128, "precision": "fp8"}}, "precision"),
    ],
)
def test_what_no_plan_can_do_points_to_the_field(client, change, field):
    done = client.post("/v1/searches", json=TINY_REQUEST | change, headers=WAIT).json()
    assert done["state"] == "failed", done
    answer = client.get(f"/v1/searches/{done['id']}/shortlist")
    assert answer.status_code == 422, answer.text
    assert any(field in item["field"] for item in answer.json()["errors"])


def test_a_run_on_a_found_shortlist_decides(client):
    done = client.post("/v1/searches", json=TINY_REQUEST, headers=WAIT).json()
    run = client.post("/v1/runs", json={"name": "job", "search_id": done["id"]}).json()
    window = {"index": 0, "first_step": 0, "num_steps": 10, "tokens": [[9000, 500, 300, 200], [500, 9000, 300, 200]]}
    decision = client.post(f"/v1/runs/{run['id']}/windows", json=window)
    assert decision.status_code == 200, decision.text
    assert decision.json()["plan_id"] == run["plan_id"] or decision.json()["action"] == "switch_plan"
    wrong = window | {"index": 1, "tokens": [[1] * 8] * 32}
    assert client.post(f"/v1/runs/{run['id']}/windows", json=wrong).status_code == 422
