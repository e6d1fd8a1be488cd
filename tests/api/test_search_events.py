"""Server-Sent Events of a search, as a client of a real service reads them."""

import asyncio
import json
import signal
import time
from contextlib import aclosing

import httpx
import pytest
from invented_searches import LONG_REQUEST, TINY_REQUEST
from service_process import service

from api.app import new_id
from api.database import utc_now
from api.search_news import SearchNews
from api.search_store import SearchStore
from api.values import SearchState
from planner.spec.request import SearchRequest
from profiles import resolve_cluster, resolve_model

REQUEST = SearchRequest.model_validate(TINY_REQUEST)


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


def test_a_client_that_waits_and_goes_away_leaves_its_search_running(client):
    headers = {"Idempotency-Key": "impatient"}
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/searches", json=LONG_REQUEST, headers={**headers, "Prefer": "wait=50"}, timeout=2.0)
    search = client.post("/v1/searches", json=LONG_REQUEST, headers=headers).json()
    assert search["state"] in ("queued", "running")
    assert client.delete(search["links"]["self"]).json()["state"] == "cancelled"


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


def test_many_listeners_cost_one_look_at_the_store_each_time(database):
    store = Counted(database)
    search = store.add(REQUEST, resolve_model(REQUEST.model), resolve_cluster(REQUEST.cluster))

    async def listen_all():
        news = SearchNews(store, 0.02)

        async def listen():
            return [found async for found in news_until_cancelled(news, search)]

        listeners = [asyncio.create_task(listen()) for _ in range(50)]
        await asyncio.sleep(0.2)
        await asyncio.to_thread(store.cancel, search.id)
        return await asyncio.gather(*listeners)

    heard = asyncio.run(listen_all())
    assert all(found[-1].state is SearchState.CANCELLED for found in heard)
    assert store.looks <= max(map(len, heard)) + 1
    assert store.loads == 2, "one when they came, one when it was cancelled"


def test_listeners_go_on_after_a_look_that_broke(database, monkeypatch):
    store = Counted(database)
    search = store.add(REQUEST, resolve_model(REQUEST.model), resolve_cluster(REQUEST.cluster))
    marks, failures = store.marks, iter([True])

    def unreliable(search_ids):
        if next(failures, False):
            raise RuntimeError("not of the database")
        return marks(search_ids)

    monkeypatch.setattr(store, "marks", unreliable)

    async def listen():
        async with aclosing(SearchNews(store, 0.02).of(search)) as news:
            return [await asyncio.wait_for(anext(news), 10) for _ in range(3)]

    assert len(asyncio.run(listen())) == 3


async def news_until_cancelled(news, search):
    async with aclosing(news.of(search)) as found:
        async for latest in found:
            yield latest
            if latest.state is SearchState.CANCELLED:
                return


class Counted(SearchStore):
    """Counts what is read."""

    def __init__(self, database):
        super().__init__(database, utc_now, new_id)
        self.looks = self.loads = 0

    def marks(self, search_ids):
        self.looks += 1
        return super().marks(search_ids)

    def searches(self, search_ids):
        self.loads += 1
        return super().searches(search_ids)
