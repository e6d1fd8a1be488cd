"""The real service with the real search in processes of their own: started, used, killed, started again."""

import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import httpx
import pytest
from invented_searches import LONG_REQUEST, TINY_REQUEST
from service_process import ROOT, alive, descendants, service

HOT = [[9000, 500, 300, 200], [500, 9000, 300, 200]]


def wait_for(client, location, *states, seconds=30.0):
    end = time.monotonic() + seconds
    while (search := client.get(location).json())["state"] not in states:
        assert time.monotonic() < end, search
        time.sleep(0.05)
    return search


def until_gone(pids, seconds=5.0):
    end = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < end, "workers outlived the service"
        time.sleep(0.02)


def test_all_that_was_kept_is_there_after_a_kill(tmp_path):
    with service(tmp_path, "--workers", "1") as (process, client):
        search = client.post("/v1/searches", json=TINY_REQUEST, headers={"Prefer": "wait=60"}).json()
        assert search["state"] == "succeeded", search
        run = client.post("/v1/runs", json={"name": "job", "search_id": search["id"]}).json()
        path = f"/v1/runs/{run['id']}"
        window = {"index": 0, "first_step": 0, "num_steps": 10, "tokens": HOT}
        decision = client.post(f"{path}/windows", json=window).json()
        long = client.post("/v1/searches", json=LONG_REQUEST).headers["location"]
        other = {**LONG_REQUEST, "options": {"shortlist_size": 3}}
        waiting = client.post("/v1/searches", json=other).headers["location"]
        wait_for(client, long, "running")
        shortlist = client.get(search["links"]["shortlist"]).json()
        before = descendants(process.pid)
        assert before
        process.send_signal(signal.SIGKILL)
        process.wait()
        until_gone(before)
    with service(tmp_path, "--workers", "2") as (_, client):
        assert client.get(search["links"]["self"]).json() == search
        assert client.get(search["links"]["shortlist"]).json() == shortlist
        assert client.get(path).json() == run
        assert client.get(f"{path}/decisions").json()["items"] == [decision]
        assert client.post(f"{path}/windows", json=window).json() == decision
        wait_for(client, waiting, "running")
        wait_for(client, long, "running")  # at the latest when the lease of the service that was killed is over
        begin = time.monotonic()
        assert client.delete(long).json()["state"] == "cancelled"
        assert time.monotonic() - begin < 1.0


def test_a_busy_port_is_refused_with_one_line(tmp_path):
    with service(tmp_path) as (_, client):
        command = [sys.executable, "-m", "api.cli", "serve", "--port", str(client.base_url.port)]
        url = f"sqlite:///{tmp_path}/other.db"
        command += ["--database-url", url]
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert second.returncode == 2
    [line] = second.stderr.splitlines()
    assert "--port" in line and str(client.base_url.port) in line
    assert not (tmp_path / "other.db").exists()


def post_and_wait(address):
    with suppress(httpx.TransportError):
        httpx.post(f"{address}/v1/searches", json=LONG_REQUEST, headers={"Prefer": "wait=50"}, timeout=60)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_the_service_ends_in_order_when_asked_to(tmp_path, how):
    with service(tmp_path) as (process, client):
        location = client.post("/v1/searches", json=LONG_REQUEST).headers["location"]
        wait_for(client, location, "running")
        before = descendants(process.pid)
        waiter = threading.Thread(target=post_and_wait, args=(client.base_url,))
        waiter.start()
        time.sleep(0.5)
        process.send_signal(how)
        process.wait(10)
        waiter.join()
        until_gone(before)
    assert "Traceback" not in "".join(path.read_text() for path in tmp_path.glob("*.log"))
