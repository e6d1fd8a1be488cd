"""Searches over HTTP: asked for, waited for, listed, cancelled."""

import threading
import time
from functools import partial

import invented_searches
import pytest
from invented_searches import TINY_REQUEST, breaks, endless, instant, misses, refuses
from service_in_process import running, until_ready
from service_process import alive

from api.app import new_id
from api.database import utc_now
from api.search_store import SearchStore

PROBLEM = "application/problem+json"
WAIT = {"Prefer": "wait=30"}


def until(client, path, state, seconds=20.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        search = client.get(path).json()
        if search["state"] == state:
            return search
        time.sleep(0.02)
    raise AssertionError(f"still {search['state']}: {search['message']}")


def test_a_search_is_accepted_and_found_at_its_location(client):
    answer = client.post("/v1/searches", json=TINY_REQUEST)
    assert answer.status_code == 202
    search = answer.json()
    assert search["state"] in ("queued", "running")
    assert answer.headers["location"] == f"/v1/searches/{search['id']}" == search["links"]["self"]
    done = until(client, answer.headers["location"], "succeeded")
    assert done["progress"] == 1.0
    assert done["created_at"].endswith("Z") and done["created_at"] <= done["started_at"] <= done["finished_at"]
    assert done["request"]["model"]["spec"]["name"] == "tiny-moe"
    shortlist = client.get(done["links"]["shortlist"]).json()
    assert [entry["rank"] for entry in shortlist["plans"]] == [1, 2]
    assert done["best_plan_id"] == shortlist["plans"][0]["plan"]["id"]


def test_a_client_that_prefers_to_wait_gets_the_finished_search(client):
    answer = client.post("/v1/searches", json=TINY_REQUEST, headers=WAIT)
    assert answer.status_code == 201
    assert answer.json()["state"] == "succeeded"
    assert client.get(answer.json()["links"]["best_plan_picture"]).status_code == 200


def test_waiting_ends_after_the_seconds_asked_for(serve):
    client = serve(endless)
    begin = time.monotonic()
    answer = client.post("/v1/searches", json=TINY_REQUEST, headers={"Prefer": "respond-async, wait=1"})
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "wait=1"
    assert 1.0 <= time.monotonic() - begin < 3.0


def test_waiting_is_capped_by_the_service(serve):
    client = serve(endless, max_wait_s=0.5)
    begin = time.monotonic()
    assert client.post("/v1/searches", json=TINY_REQUEST, headers=WAIT).status_code == 202
    assert time.monotonic() - begin < 3.0


@pytest.mark.parametrize("prefer", ["", "respond-async", "wait=soon", "wait=-1", "handling=lenient"])
def test_other_preferences_are_ignored(client, prefer):
    answer = client.post("/v1/searches", json=TINY_REQUEST, headers={"Prefer": prefer})
    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers


def test_the_same_key_and_body_make_one_search(client):
    headers = {"Idempotency-Key": "k1"}
    first = client.post("/v1/searches", json=TINY_REQUEST, headers=headers).json()
    again = client.post("/v1/searches", json=TINY_REQUEST, headers=headers | WAIT)
    assert again.json()["id"] == first["id"]
    assert again.status_code == 201
    assert len(client.get("/v1/searches").json()["items"]) == 1


def test_the_same_key_with_another_body_is_a_conflict(client):
    headers = {"Idempotency-Key": "k1"}
    client.post("/v1/searches", json=TINY_REQUEST, headers=headers)
    other = TINY_REQUEST | {"training": {"global_batch_size": 16, "sequence_length": 128}}
    answer = client.post("/v1/searches", json=other, headers=headers)
    assert answer.status_code == 409
    assert answer.headers["content-type"] == PROBLEM
    assert "k1" in answer.json()["detail"]


def test_searches_are_listed_in_pages_newest_first(client):
    ids = [client.post("/v1/searches", json=TINY_REQUEST).json()["id"] for _ in range(5)]
    path, seen, pages = "/v1/searches?limit=2", [], 0
    while path:
        page = client.get(path).json()
        seen += [search["id"] for search in page["items"]]
        path, pages = page["next"], pages + 1
    assert seen == ids[::-1]
    assert pages == 3


def test_searches_are_listed_by_their_state(client):
    for _ in range(2):
        client.post("/v1/searches", json=TINY_REQUEST, headers=WAIT)
    first = client.get("/v1/searches", params={"state": "succeeded", "limit": 1}).json()
    assert "state=succeeded" in first["next"]
    assert len(client.get(first["next"]).json()["items"]) == 1
    assert client.get("/v1/searches", params={"state": "queued"}).json()["items"] == []
    assert client.get("/v1/searches", params={"state": "foo"}).status_code == 422


def test_a_page_after_an_unknown_search_is_refused(client):
    answer = client.get("/v1/searches?after=nothing")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "after"


def test_progress_grows_while_a_search_runs(serve):
    client = serve(endless)
    location = client.post("/v1/searches", json=TINY_REQUEST).headers["location"]
    until(client, location, "running")
    seen = []
    end = time.monotonic() + 10
    while len(set(seen)) < 3 and time.monotonic() < end:
        seen.append(client.get(location).json()["progress"])
        time.sleep(0.05)
    assert len(set(seen)) >= 3 and seen == sorted(seen)
    assert client.get(location).json()["message"].startswith("step ")


def test_cancelling_kills_the_worker_and_its_solver_within_a_second(serve, tmp_path):
    pids = tmp_path / "pids"
    client = serve(partial(invented_searches.endless_with_solver, str(pids)))
    location = client.post("/v1/searches", json=TINY_REQUEST).headers["location"]
    end = time.monotonic() + 20
    while not pids.exists() or not pids.read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
    worker, solver = map(int, pids.read_text().split())
    begin = time.monotonic()
    answer = client.delete(location)
    assert answer.status_code == 200 and answer.json()["state"] == "cancelled"
    while alive(worker) or alive(solver):
        assert time.monotonic() - begin < 1.0
        time.sleep(0.01)
    assert client.delete(location).json()["state"] == "cancelled"
    assert client.get(f"{location}/shortlist").status_code == 409


def test_a_search_in_one_long_step_is_cancelled_too_and_frees_its_place(serve, tmp_path):
    pid_file = tmp_path / "pid"
    client = serve(partial(invented_searches.deaf, str(pid_file)), workers=1)
    first = client.post("/v1/searches", json=TINY_REQUEST).headers["location"]
    second = client.post("/v1/searches", json=TINY_REQUEST).headers["location"]
    end = time.monotonic() + 20
    while not pid_file.exists() or not pid_file.read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
    worker = int(pid_file.read_text())
    assert client.delete(first).json()["state"] == "cancelled"
    until(client, second, "running")
    while alive(worker):  # killed, and on a busy machine not dead at once
        assert time.monotonic() < end
        time.sleep(0.02)
    assert client.get(first).json()["state"] == "cancelled"


def test_a_waiting_search_can_be_cancelled_and_never_runs(serve):
    client = serve(endless, workers=1)
    first = client.post("/v1/searches", json=TINY_REQUEST).headers["location"]
    until(client, first, "running")
    second = client.post("/v1/searches", json=TINY_REQUEST).headers["location"]
    assert client.get(second).json()["state"] == "queued"
    assert client.delete(second).json()["state"] == "cancelled"
    client.delete(first)
    third = client.post("/v1/searches", json=TINY_REQUEST).headers["location"]
    until(client, third, "running")
    assert client.get(second).json()["started_at"] is None


def test_a_finished_search_cannot_be_cancelled(client):
    location = client.post("/v1/searches", json=TINY_REQUEST, headers=WAIT).headers["location"]
    answer = client.delete(location)
    assert answer.status_code == 409
    assert "succeeded" in answer.json()["detail"]


def test_a_client_that_waits_is_answered_when_another_cancels(serve):
    client = serve(endless)
    key = {"Idempotency-Key": "shared"}
    location = client.post("/v1/searches", json=TINY_REQUEST, headers=key).headers["location"]
    canceller = threading.Timer(0.5, client.delete, [location])
    canceller.start()
    begin = time.monotonic()
    answer = client.post("/v1/searches", json=TINY_REQUEST, headers=key | {"Prefer": "wait=20"})
    canceller.join()
    assert answer.json()["state"] == "cancelled"
    assert time.monotonic() - begin < 5


def test_where_no_plan_fits_the_search_tells_the_nearest_miss(serve):
    client = serve(misses)
    search = client.post("/v1/searches", json=TINY_REQUEST, headers=WAIT).json()
    assert search["state"] == "failed"
    assert search["error"]["missing_bytes"] == 5 * 2**30
    answer = client.get(f"/v1/searches/{search['id']}/shortlist")
    assert answer.status_code == 422
    assert answer.headers["content-type"] == PROBLEM
    problem = answer.json()
    assert (problem["stage"], problem["missing_bytes"], problem["limit_bytes"]) == (0, 5 * 2**30, 80 * 2**30)
    assert problem["nearest_miss"] == "pp1 · dp4"
    assert "errors" not in problem


def test_input_that_only_the_search_finds_impossible_points_to_its_field(serve):
    client = serve(refuses)
    search = client.post("/v1/searches", json=TINY_REQUEST, headers=WAIT).json()
    answer = client.get(f"/v1/searches/{search['id']}/shortlist")
    assert answer.status_code == 422
    assert answer.json()["errors"] == [
        {
            "pointer": "#/training/global_batch_size",
            "field": "training.global_batch_size",
            "message": "must be at least 4",
        }
    ]


@pytest.mark.parametrize("part", ["shortlist", "shortlist/picture"])
@pytest.mark.parametrize(
    ("search", "failed", "answered"), [(breaks, 500, 409), (misses, 422, 422), (refuses, 422, 422)]
)
def test_a_search_that_failed_is_the_client_s_error_only_where_its_question_is(serve, search, failed, answered, part):
    client = serve(search)
    found = client.post("/v1/searches", json=TINY_REQUEST, headers=WAIT).json()
    assert found["error"]["status"] == failed
    answer = client.get(f"{found['links']['self']}/{part}")
    assert answer.status_code == answer.json()["status"] == answered
    assert answer.headers["content-type"] == PROBLEM and found["error"]["detail"] in answer.json()["detail"]


def test_a_service_without_workers_leaves_searches_to_another_on_its_database(serve):
    client = serve(breaks, workers=0)
    answer = client.post("/v1/searches", json=TINY_REQUEST, headers={"Prefer": "wait=2"})
    assert answer.status_code == 202 and answer.json()["state"] == "queued"
    until_ready(client)
    serve(instant, workers=1)
    until(client, answer.headers["location"], "succeeded")


def test_more_waiting_searches_than_the_service_takes_are_refused(serve):
    client = serve(endless, workers=1, max_waiting_searches=2)
    first = client.post("/v1/searches", json=TINY_REQUEST).headers["location"]
    until(client, first, "running")
    answers = [client.post("/v1/searches", json=TINY_REQUEST) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 503]
    assert int(answers[2].headers["retry-after"]) >= 1


def test_the_shortlist_of_a_search_that_runs_is_not_there_yet(serve):
    client = serve(endless)
    location = client.post("/v1/searches", json=TINY_REQUEST).headers["location"]
    answer = client.get(f"{location}/shortlist")
    assert answer.status_code == 409


def test_the_service_is_ready_only_while_searches_can_start(database):
    with running(database, instant) as client:
        until_ready(client)
        assert client.get("/readyz").json()["status"] == "ready"
        assert client.get("/healthz").json()["status"] == "ok"
        database.close()
        assert client.get("/readyz").status_code == 200, "connections come back"


def test_a_longer_time_than_the_service_grants_is_refused(serve):
    client = serve(search_time_limit_s=60)
    answer = client.post("/v1/searches", json=TINY_REQUEST | {"options": {"time_limit_s": 61}})
    assert answer.status_code == 422
    assert [item["field"] for item in answer.json()["errors"]] == ["options.time_limit_s"]
    assert client.post("/v1/searches", json=TINY_REQUEST | {"options": {"time_limit_s": 60}}).status_code == 202


def test_cancelling_a_search_leaves_who_asked_the_same_alone(serve):
    client = serve(endless, workers=1)
    first = client.post("/v1/searches", json=TINY_REQUEST).headers["location"]
    second = client.post("/v1/searches", json=TINY_REQUEST).headers["location"]
    until(client, first, "running")
    assert client.get(second).json()["state"] == "queued"
    client.delete(first)
    until(client, second, "running")


def test_a_search_for_a_target_is_priced_with_the_software_of_that_target(client, database):
    searches = SearchStore(database, utc_now, new_id)
    for target, stack in (("torchtitan", "torchtitan"), ("any", "megatron-core-2026")):
        search = client.post("/v1/searches", json={**TINY_REQUEST, "options": {"target": target}}).json()
        assert searches.conditions(search["id"]).cluster.stack.name == stack
