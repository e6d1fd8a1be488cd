"""The service ends in order: soon, with status 0, whatever is open, and the next one finds everything."""

import signal
import threading
import time
from contextlib import suppress

import httpx
import pytest
from invented_searches import LONG_REQUEST, TINY_REQUEST
from seeded import WINDOW
from service_process import service

END_S = 60.0
"""Far more than it takes; a service that never ends is what is looked for."""


def until(told, what, seconds=60.0):
    end = time.monotonic() + seconds
    while not told():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def watch(address, location):
    """An SSE stream, read to its end."""
    with suppress(httpx.TransportError), httpx.stream("GET", f"{address}{location}/events", timeout=END_S) as stream:
        for _ in stream.iter_lines():
            pass


def wait_for_it(address, body):
    """A client that waits for a search."""
    with suppress(httpx.TransportError):
        httpx.post(f"{address}/v1/searches", json=body, headers={"Prefer": "wait=50"}, timeout=END_S)


def report(address, path, answered):
    """Windows one after the other, until the service is gone."""
    with suppress(httpx.TransportError), httpx.Client(base_url=address, timeout=END_S) as client:
        for index in range(10_000):
            answer = client.post(f"{path}/windows", json={**WINDOW, "index": index, "first_step": 10 * index})
            if not answer.is_success:
                return
            answered.append(answer.json())


@pytest.mark.parametrize("signals", [(signal.SIGTERM,), (signal.SIGINT, signal.SIGINT)])
def test_nothing_is_lost_when_the_service_is_asked_to_end(tmp_path, signals):
    answered = []
    with service(tmp_path, "--workers", "1") as (process, client):
        address = str(client.base_url).rstrip("/")
        search = client.post("/v1/searches", json=TINY_REQUEST, headers={"Prefer": "wait=60"}, timeout=90).json()
        run = client.post("/v1/runs", json={"name": "job", "search_id": search["id"]}).json()
        long = client.post("/v1/searches", json=LONG_REQUEST).headers["location"]
        until(lambda: client.get(long).json()["state"] == "running", "the long search does not run")
        path = f"/v1/runs/{run['id']}"
        others = [
            threading.Thread(target=watch, args=(address, long)),
            threading.Thread(target=wait_for_it, args=(address, LONG_REQUEST)),
            threading.Thread(target=report, args=(address, path, answered)),
        ]
        for other in others:
            other.start()
        until(lambda: answered, "no window was answered")
        for each in signals:
            process.send_signal(each)
            time.sleep(0.1)
        assert process.wait(END_S) == 0
        for other in others:
            other.join(END_S)
            assert not other.is_alive()
    assert "Traceback" not in "".join(log.read_text() for log in tmp_path.glob("*.log"))
    with service(tmp_path, "--workers", "1") as (_, client):
        kept = client.get(f"{path}/decisions?limit=500").json()["items"]
        assert kept[: len(answered)][:500] == answered[:500]
        found = client.get(long).json()
        assert found["state"] in ("queued", "running") and found.get("error") is None
        assert client.get(search["links"]["self"]).json()["state"] == "succeeded"
