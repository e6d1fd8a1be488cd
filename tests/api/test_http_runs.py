"""Runs over HTTP: begun on a shortlist, fed with windows, answered with decisions by the real online stage."""

import json
import threading
from xml.etree import ElementTree

import pytest
from invented_searches import TINY_REQUEST, misses

from api import run_pictures
from api.database import utc_now
from api.decider import Decider
from api.routes import parameters
from api.run_store import RunStore
from planner.online import begin, decide
from planner.spec.decision import Decision
from planner.spec.run import Run
from planner.spec.window import Window

WAIT = {"Prefer": "wait=30"}
HOT = [[9000, 500, 300, 200], [500, 9000, 300, 200]]
EVEN = [[2500, 2500, 2500, 2500]] * 2


def window(index, tokens=HOT, **more):
    return {"index": index, "first_step": index * 10, "num_steps": 10, "tokens": tokens, **more}


@pytest.fixture
def search(client):
    return client.post("/v1/searches", json=TINY_REQUEST, headers=WAIT).json()


@pytest.fixture
def run(client, search):
    return client.post("/v1/runs", json={"name": "job", "search_id": search["id"]}).json()


def test_a_run_begins_with_the_first_plan_and_all_that_an_agent_needs(client, search):
    answer = client.post("/v1/runs", json={"name": "job", "search_id": search["id"]})
    assert answer.status_code == 201
    run = Run.model_validate(answer.json())
    assert answer.headers["location"] == f"/v1/runs/{run.id}"
    assert run.plan_id == search["best_plan_id"]
    assert run.placement is not None and run.placement.num_ranks == 4
    assert run.context.plans[0].id == run.plan_id
    assert Run.model_validate(client.get(f"/v1/runs/{run.id}").json()) == run


def test_a_run_may_begin_with_another_plan_of_the_shortlist(client, search):
    other = client.get(search["links"]["shortlist"]).json()["plans"][1]["plan"]["id"]
    run = client.post("/v1/runs", json={"name": "job", "search_id": search["id"], "plan_id": other}).json()
    assert run["plan_id"] == other
    assert client.post(f"/v1/runs/{run['id']}/windows", json=window(0, EVEN)).json()["plan_id"] == other


def test_the_service_decides_as_an_agent_alone_would(client, run):
    context = Run.model_validate(run).context
    state = begin(context, run["plan_id"])
    for index in range(4):
        answer = client.post(f"/v1/runs/{run['id']}/windows", json=window(index))
        assert answer.status_code == 200, answer.text
        alone, state = decide(Window.model_validate(window(index)), state, context)
        assert Decision.model_validate(answer.json()) == alone


def test_the_same_index_again_gives_the_same_decision(client, run):
    path = f"/v1/runs/{run['id']}/windows"
    first = client.post(path, json=window(0)).json()
    client.post(path, json=window(1))
    assert client.post(path, json=window(0)).json() == first
    assert client.post(path, json=window(0, EVEN)).json() == first
    assert len(client.get(path).json()["items"]) == 2


def test_gaps_and_late_windows_are_accepted(client, run):
    path = f"/v1/runs/{run['id']}/windows"
    assert [client.post(path, json=window(index)).status_code for index in (3, 7, 5, 0)] == [200] * 4
    assert [item["index"] for item in client.get(path).json()["items"]] == [0, 3, 5, 7]
    decisions = client.get(f"/v1/runs/{run['id']}/decisions").json()["items"]
    assert [decision["window"] for decision in decisions] == [0, 3, 5, 7]


def test_history_is_read_in_pages(client, run):
    for index in range(5):
        client.post(f"/v1/runs/{run['id']}/windows", json=window(index))
    for kind, key in (("windows", "index"), ("decisions", "window")):
        path, seen = f"/v1/runs/{run['id']}/{kind}?limit=2", []
        while path:
            page = client.get(path).json()
            seen += [item[key] for item in page["items"]]
            path = page["next"]
        assert seen == [0, 1, 2, 3, 4]


def test_the_picture_of_a_run_draws_its_windows_and_decisions(client, run):
    path = f"/v1/runs/{run['id']}/picture"
    assert "No window has come in yet" in client.get(path).text
    for index in (0, 1, 3, 2):
        client.post(f"/v1/runs/{run['id']}/windows", json=window(index))
    answer = client.get(path)
    assert answer.headers["content-type"].startswith("image/svg+xml")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    decisions = client.get(f"/v1/runs/{run['id']}/decisions").json()["items"]
    moved = sum(decision["action"] == "rebalance" and len(decision["moves"]) > 0 for decision in decisions)
    told = ElementTree.fromstring(answer.text).findtext("{http://www.w3.org/2000/svg}desc")
    assert f"windows: 4; times experts were moved: {moved}; " in told
    assert f"imbalance was {decisions[-1]['imbalance_before']:.3f}" in told


def test_a_long_run_is_drawn_from_a_bounded_part(client, run, monkeypatch):
    monkeypatch.setattr(run_pictures, "MOST_DECISIONS", 5)
    monkeypatch.setattr(run_pictures, "MOST_WINDOWS", 3)
    monkeypatch.setattr(run_pictures, "_PAGE", 2)
    for index in range(8):
        client.post(f"/v1/runs/{run['id']}/windows", json=window(index))
    text = client.get(f"/v1/runs/{run['id']}/picture").text
    assert "Windows 3 to 7, steps 30 to 79; 3 earlier windows are not drawn nor counted" in text
    assert "3 of 5 windows, evenly spread" in text


def test_windows_at_once_are_each_decided_once_and_none_is_lost(client, run):
    path, answers = f"/v1/runs/{run['id']}/windows", {}

    def post(number):
        answer = client.post(path, json=window(number % 6))
        assert answer.status_code == 200, answer.text
        answers[number] = answer.json()

    threads = [threading.Thread(target=post, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(answers[number] == answers[number + 6] for number in range(6))
    stored = client.get(f"/v1/runs/{run['id']}/decisions").json()["items"]
    assert stored == [answers[number] for number in range(6)]


def test_two_services_on_one_store_decide_as_one(serve, search, run):
    """What each has in memory of the run is old after the other has decided."""
    services = [serve(), serve()]
    context = Run.model_validate(run).context
    state = begin(context, run["plan_id"])
    for index, tokens in enumerate((HOT, HOT, EVEN, HOT[::-1], HOT, EVEN)):
        answer = services[index % 2].post(f"/v1/runs/{run['id']}/windows", json=window(index, tokens))
        alone, state = decide(Window.model_validate(window(index, tokens)), state, context)
        assert Decision.model_validate(answer.json()) == alone


def test_runs_are_found_by_name_newest_first(client, search):
    ids = [client.post("/v1/runs", json={"name": name, "search_id": search["id"]}).json()["id"] for name in "abab"]
    assert [run["id"] for run in client.get("/v1/runs").json()["items"]] == ids[::-1]
    page = client.get("/v1/runs?name=a&limit=1").json()
    assert [run["id"] for run in page["items"]] == [ids[2]]
    assert [run["id"] for run in client.get(page["next"]).json()["items"]] == [ids[0]]
    assert client.get("/v1/runs?name=c").json() == {"items": [], "next": None}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"search_id": "none"}, "search_id"),
        ({"plan_id": "none"}, "plan_id"),
        ({"name": ""}, "name"),
        ({"extra_slots_per_rank": -1}, "extra_slots_per_rank"),
    ],
)
def test_a_run_that_cannot_be_is_refused(client, search, body, field):
    answer = client.post("/v1/runs", json={"name": "job", "search_id": search["id"]} | body)
    assert answer.status_code == 422
    assert [item["field"] for item in answer.json()["errors"]] == [field]


def test_a_run_needs_a_shortlist(serve):
    client = serve(misses)
    search = client.post("/v1/searches", json=TINY_REQUEST, headers=WAIT).json()
    answer = client.post("/v1/runs", json={"name": "job", "search_id": search["id"]})
    assert answer.status_code == 422
    assert "no plan fits" in answer.json()["errors"][0]["message"]


@pytest.mark.parametrize(
    ("wrong", "status", "field"),
    [
        (window(0, [[1, 2, 3, 4]]), 422, "tokens"),
        (window(0, [[1, 2, 3]] * 2), 422, "tokens"),
        (window(0, [[1, 2, 3, 4], [1, 2, 3]]), 422, "tokens"),
        (window(0, [[-1, 2, 3, 4]] * 2), 422, "tokens"),
        (window(0, [[1.5, 2, 3, 4]] * 2), 422, "tokens"),
        (window(0, [[0, 0, 0, 0]] * 2), 422, "tokens"),
        (window(0, []), 422, "tokens"),
        (window(0, "many"), 422, "tokens"),
        (window(0) | {"index": -1}, 422, "index"),
        (window(0) | {"num_steps": 0}, 422, "num_steps"),
        (window(0, step_time_s=-2.0), 422, "step_time_s"),
        (window(0, plan_id="none"), 422, "plan_id"),
        (window(0) | {"index": 2**64}, 422, "index"),
    ],
)
def test_an_impossible_window_is_refused_and_not_kept(client, run, wrong, status, field):
    path = f"/v1/runs/{run['id']}/windows"
    answer = client.post(path, json=wrong)
    assert answer.status_code == status, answer.text
    assert all(item["field"].startswith(field) for item in answer.json()["errors"])
    assert client.get(path).json()["items"] == []


def test_a_window_with_nan_is_malformed(client, run):
    body = '{"index": 0, "first_step": 0, "num_steps": 1, "tokens": [[NaN, 1, 1, 1], [1, 1, 1, 1]]}'
    answer = client.post(f"/v1/runs/{run['id']}/windows", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400


def test_a_window_of_an_unknown_run_is_not_found(client):
    assert client.post("/v1/runs/none/windows", json=window(0)).status_code == 404


@pytest.mark.parametrize("moment", ["just before the state is read", "just after the state is read"])
def test_a_window_that_another_decider_decides_meanwhile_is_decided_once(client, database, run, monkeypatch, moment):
    path, standing, looks, others = f"/v1/runs/{run['id']}/windows", RunStore.standing, [], []

    def overtaken(self, run_id):
        looks.append(run_id)
        first = len(looks) == 1
        found = standing(self, run_id)
        if first:
            others.append(client.post(path, json=window(0)).json())
        return standing(self, run_id) if first and "before" in moment else found

    monkeypatch.setattr(RunStore, "standing", overtaken)
    here = Decider(RunStore(database, utc_now)).decide(run["id"], Window.model_validate(window(0)))
    assert here.is_repeated and here.decision == Decision.model_validate(others[0])
    assert len(client.get(path).json()["items"]) == 1


def test_a_page_ends_at_its_bytes_and_the_next_ones_have_the_rest(client, run, monkeypatch):
    decisions = [client.post(f"/v1/runs/{run['id']}/windows", json=window(index)).json() for index in range(5)]
    size = len(json.dumps(decisions[0]))
    monkeypatch.setattr(parameters, "PAGE_BYTES", size + size // 2)
    monkeypatch.setattr(parameters, "PIECE", 3)
    path, pages = f"/v1/runs/{run['id']}/decisions?limit=50", []
    while path is not None:
        answer = client.get(path).json()
        pages.append(answer["items"])
        path = answer["next"]
    assert [len(items) for items in pages][:2] == [2, 2]
    assert [item for items in pages for item in items] == decisions
    monkeypatch.setattr(parameters, "PAGE_BYTES", 1)
    first = client.get("/v1/runs?name=job&limit=9").json()
    assert first["items"] == [run] and "name=job" in first["next"]
    assert client.get(first["next"]).json() == {"items": [], "next": None}
