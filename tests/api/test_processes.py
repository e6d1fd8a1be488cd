"""Several processes behind one address: whichever answers, it is one service, and one that is killed is replaced."""

import json
import os
import re
import signal
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from invented_searches import LONG_REQUEST, TINY_REQUEST
from service_process import alive, descendants, service
from test_service_process import HOT, until_gone, wait_for

from api import processes
from api.processes import share_of, supervise
from api.settings import Settings
from planner.spec.errors import UnavailableError


@pytest.fixture
def served(database_url, tmp_path):
    """Three processes: the parent, and a client that takes a new connection, so any process, for each request."""
    options = ("--processes", "3", "--workers", "2")
    with service(tmp_path, *options, database_url=database_url) as (process, client):
        headers = {"Connection": "close"}
        with httpx.Client(base_url=client.base_url, timeout=60, headers=headers) as any_process:
            until(lambda: len(serving(tmp_path)) == 3)
            yield process, any_process


def until(holds, seconds=60.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def serving(folder):
    """Ids of the processes that have come up, dead ones too."""
    text = "".join(path.read_text() for path in folder.glob("*.log"))
    return [int(number) for number in re.findall(r"Started server process \[(\d+)\]", text)]


def counted(client, name):
    """A sum over all labels of a metric."""
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}(\{{|\s)", line))


def request(length):
    return {**TINY_REQUEST, "training": {**TINY_REQUEST["training"], "sequence_length": length}}


def begun(client):
    search = client.post("/v1/searches", json=TINY_REQUEST, headers={"Prefer": "wait=60"}).json()
    assert search["state"] == "succeeded", search
    return client.post("/v1/runs", json={"name": "job", "search_id": search["id"]}).json()


def post_windows(client, run, indices):
    def post(index):
        window = {"index": index, "first_step": 10 * index, "num_steps": 10, "tokens": HOT}
        return index, client.post(f"/v1/runs/{run['id']}/windows", json=window).raise_for_status().text

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(post, indices))


@pytest.mark.both_databases
def test_each_search_runs_once_and_each_window_has_one_decision_whoever_answers(served):
    process, client = served
    lengths = [16 * number for number in range(1, 7)]
    found = [client.post("/v1/searches", json=request(length)).headers["location"] for length in 2 * lengths]
    assert {wait_for(client, location, "succeeded", seconds=120)["state"] for location in found} == {"succeeded"}
    assert counted(client, "trimtab_search_seconds_count") == len(lengths), "equal questions share one search"
    run = begun(client)
    answers = post_windows(client, run, [index for index in range(12) for _ in range(3)])
    assert Counter(index for index, _ in set(answers)) == Counter(range(12)), "an answer each"
    decisions = client.get(f"/v1/runs/{run['id']}/decisions").json()["items"]
    assert [decision["window"] for decision in decisions] == list(range(12))
    assert dict(answers) == {decision["window"]: json.dumps(decision, separators=(",", ":")) for decision in decisions}
    assert counted(client, "trimtab_decisions_total") == 12, "counts are of all processes, wherever they are asked for"
    before = descendants(process.pid)
    process.terminate()
    process.wait(20)
    until_gone(before)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_progress_and_cancelling_work_at_any_process(served):
    _, client = served
    location = client.post("/v1/searches", json=LONG_REQUEST).headers["location"]
    wait_for(client, location, "running")
    with ThreadPoolExecutor(3) as pool:
        heard = [pool.submit(lambda: client.get(f"{location}/events").text) for _ in range(3)]
        time.sleep(1.0)
        assert client.delete(location).json()["state"] == "cancelled"
        for told in heard:
            assert told.result(30).count("event: end") == 1


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_process_that_is_killed_loses_nothing_and_is_replaced(served, tmp_path):
    _, client = served
    run = begun(client)
    kept = dict(post_windows(client, run, range(5)))
    long = client.post("/v1/searches", json=LONG_REQUEST).headers["location"]
    wait_for(client, long, "running")
    for victim in serving(tmp_path)[:2]:
        os.kill(victim, signal.SIGKILL)
    until(lambda: len(serving(tmp_path)) == 5)
    assert dict(post_windows(client, run, range(5))) == kept
    assert dict(post_windows(client, run, range(10)))[4] == kept[4]
    assert counted(client, "trimtab_decisions_total") == 10, "what the dead had counted is counted still"
    wait_for(client, long, "running", seconds=60)
    assert client.delete(long).json()["state"] == "cancelled"


def test_when_the_parent_is_killed_its_children_end_too(served, tmp_path):
    process, _ = served
    process.kill()
    process.wait()
    until(lambda: not any(alive(pid) for pid in serving(tmp_path)))


def test_processes_divide_the_searches_that_may_run_at_once():
    shares = [share_of(Settings(processes=4, workers=6), place).workers for place in range(4)]
    assert shares == [2, 2, 1, 1]
    few = [share_of(Settings(processes=3, workers=1, deciders=1), place) for place in range(3)]
    assert [(one.workers, one.deciders) for one in few] == [(1, 1), (0, 1), (0, 1)]


@pytest.mark.parametrize("executor", ["local", "dask://scheduler:8786"])
def test_a_service_without_workers_has_none_in_any_of_its_processes(executor):
    settings = Settings(processes=2, workers=0, executor=executor)
    assert [share_of(settings, place).workers for place in range(2)] == [0, 0]


def ends_at_once(settings, listener, ready):
    raise SystemExit(3)


def test_a_service_whose_processes_cannot_live_ends(monkeypatch):
    monkeypatch.setattr(processes, "_child", ends_at_once)
    monkeypatch.setattr(processes, "RETRY_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(UnavailableError, match="exit code 3"):
        supervise(Settings(processes=2), listener)
