"""Server-Sent Events of a search, as a client of a real service reads them."""

import json
import signal
import time

import pytest
from invented_searches import LONG_REQUEST, TINY_REQUEST
from service_process import service


def told(response):
    """(event, data) as they come."""
    event = None
    for line in response.iter_lines():
        if line.startswith("event: "):
            event = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield event, json.loads(line.removeprefix("data: "))


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    with service(tmp_path_factory.mktemp("service"), "--workers", "1") as running:
        yield running


@pytest.fixture
def client(serving):
    return serving[1]


def test_a_search_is_told_until_its_end(client):
    search = client.post("/v1/searches", json=TINY_REQUEST).json()
    with client.stream("GET", search["links"]["events"]) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = list(told(response))
    assert [event for event, _ in events[:-1]] == ["progress"] * (len(events) - 1)
    assert events[-1][0] == "end"
    last = client.get(search["links"]["self"]).json()
    assert events[-1][1] == {key: value for key, value in last.items() if key != "request"}
    assert [data["progress"] for _, data in events] == sorted(data["progress"] for _, data in events)


def test_a_search_that_has_ended_is_told_once(client):
    search = client.post("/v1/searches", json=TINY_REQUEST, headers={"Prefer": "wait=60"}).json()
    with client.stream("GET", search["links"]["events"]) as response:
        assert [event for event, _ in told(response)] == ["end"]


def test_whoever_listens_hears_that_another_cancels(client):
    search = client.post("/v1/searches", json=LONG_REQUEST).json()
    with client.stream("GET", search["links"]["events"]) as response:
        events = told(response)
        assert next(events)[0] == "progress"
        client.delete(search["links"]["self"])
        *_, (event, data) = events
    assert (event, data["state"]) == ("end", "cancelled")


def test_an_unknown_search_has_no_events(client):
    response = client.get("/v1/searches/nobody/events")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


def test_a_service_that_ends_lets_its_listeners_go(tmp_path):
    with service(tmp_path, "--workers", "1") as (process, client):
        search = client.post("/v1/searches", json=LONG_REQUEST).json()
        with client.stream("GET", search["links"]["events"]) as response:
            events = told(response)
            next(events)
            begin = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert "end" not in {event for event, _ in events}
        process.wait(20)
        assert time.monotonic() - begin < 15
