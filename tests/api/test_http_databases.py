"""The service on both databases: what comes in is kept the same way or refused, and a server that is away is told."""

import json

import pytest
from invented_searches import TINY_REQUEST

HOT = [[9000, 500, 300, 200], [500, 9000, 300, 200]]


def search(client, **changes):
    answer = client.post("/v1/searches", json={**TINY_REQUEST, **changes}, headers={"Prefer": "wait=20"})
    assert answer.status_code == 201, answer.text
    return answer.json()


@pytest.mark.both_databases
@pytest.mark.parametrize(
    "path",
    [
        "/v1/searches/a%00b",
        "/v1/plans/%00",
        "/v1/runs/%00",
        "/v1/runs/%00/windows",
        "/v1/runs?name=%00",
        "/v1/runs?after=%00",
        "/v1/searches?after=%00",
        "/v1/plans/x?search_id=%00",
        "/v1/profiles?after=%00",
    ],
)
def test_the_character_nul_is_nothing_to_look_for(client, path):
    answer = client.get(path)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] in {"search_id", "plan_id", "run_id", "name", "after"}


@pytest.mark.both_databases
def test_the_character_nul_is_in_no_name_that_is_kept(client):
    found = search(client)
    answer = client.post("/v1/runs", json={"name": "a\0b", "search_id": found["id"]})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "name")
    answer = client.post("/v1/runs", json={"name": "run", "search_id": "\0"})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "search_id")


@pytest.mark.both_databases
def test_the_largest_index_and_any_script_are_kept_as_they_came(client):
    run = client.post("/v1/runs", json={"name": "läuft 走 🏃 \u2028", "search_id": search(client)["id"]}).json()
    path = f"/v1/runs/{run['id']}"
    window = {"index": 2**53 - 1, "first_step": 0, "num_steps": 10, "tokens": HOT}
    decision = client.post(f"{path}/windows", json=window)
    assert decision.status_code == 200, decision.text
    assert client.get(path).json() == run
    assert client.get("/v1/runs", params={"name": run["name"]}).json()["items"] == [run]
    assert client.get(f"{path}/decisions").json()["items"] == [decision.json()]
    window["index"] = 2**63
    assert client.post(f"{path}/windows", content=json.dumps(window)).status_code in (415, 422)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_while_the_server_is_away_the_service_says_so_and_then_goes_on(client, postgres):
    found = search(client)
    postgres.stop()
    for path in ("/v1/searches", "/readyz"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
        assert "database" in answer.json()["detail"]
    assert client.get("/healthz").status_code == 200
    assert "\ntrimtab_database_up 0.0\n" in client.get("/metrics").text
    postgres.start()
    assert client.get(f"/v1/searches/{found['id']}").json() == found
    assert search(client, options={"shortlist_size": 3})["state"] == "succeeded"


@pytest.fixture
def standby(postgres):
    """A function that makes the server one that follows another, and so is read only, until the end of the test."""
    signal = postgres.folder / "data" / "standby.signal"

    def follow():
        postgres.stop()
        signal.touch()
        postgres.start()

    yield follow
    postgres.stop()
    signal.unlink(missing_ok=True)
    postgres.start()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_server_that_has_become_a_standby_is_away_for_those_who_write(client, standby):
    found = search(client)
    run = client.post("/v1/runs", json={"name": "job", "search_id": found["id"]}).json()
    standby()
    window = {"index": 0, "first_step": 0, "num_steps": 10, "tokens": HOT}
    begin = {"name": "job", "search_id": found["id"]}
    for path, body in (("/v1/runs", begin), (f"/v1/runs/{run['id']}/windows", window), ("/v1/runs", begin)):
        answer = client.post(path, json=body)
        assert answer.status_code == 503 and "database" in answer.json()["detail"], answer.text
        assert client.get(f"/v1/runs/{run['id']}").json() == run
