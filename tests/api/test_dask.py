"""Jobs on a Dask cluster that comes late, goes away and comes back, and whose service is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from functools import partial
from socketserver import BaseRequestHandler, TCPServer

import invented_searches
import pytest
from dask_processes import ROOT, free_port, scheduler, worker

from api.app import new_id
from api.database import utc_now
from api.executors.choice import executor_of
from api.executors.dask import DaskExecutor
from api.jobs import Jobs
from api.search_queue import SearchQueue
from api.search_store import SearchStore
from api.settings import Settings
from api.values import SearchState
from planner.spec.errors import InputError, UnavailableError
from planner.spec.request import SearchRequest
from profiles import resolve_cluster, resolve_model

REQUEST = SearchRequest.model_validate(invented_searches.TINY_REQUEST)
MODEL, CLUSTER = resolve_model(REQUEST.model), resolve_cluster(REQUEST.cluster)
LEASE_S = 10.0


@pytest.fixture
def store(database):
    return SearchStore(database, utc_now, new_id)


@pytest.fixture
def jobs_at(database, store):
    """A function that starts jobs at a Dask scheduler with a search; closed at the end."""
    started = []

    def start(port, search):
        executor = DaskExecutor(search, f"dask://127.0.0.1:{port}", None)
        jobs = Jobs(store, SearchQueue(database, utc_now, new_id(), LEASE_S), executor, 600.0)
        jobs.start()
        started.append(jobs)
        return jobs

    yield start
    for jobs in started:
        jobs.close()


class AtHand(DaskExecutor):
    """As if connected."""

    def _connected(self):
        return None


def test_a_process_whose_share_of_the_places_is_none_sends_nothing():
    found = []
    for num_places in (0, 3, None):
        executor = AtHand(invented_searches.instant, "dask://127.0.0.1:1", num_places)
        executor._num_threads = 4
        found.append(executor.places())
    assert found == [0, 3, 4]


def add(store, length=128):
    training = REQUEST.training.model_copy(update={"sequence_length": length})
    return store.add(REQUEST.model_copy(update={"training": training}), MODEL, CLUSTER).id


def test_searches_wait_for_a_scheduler_that_is_away_and_go_on_after_it_was_lost(store, jobs_at, tmp_path, caplog):
    port = free_port()
    jobs = jobs_at(port, partial(invented_searches.until_told, str(tmp_path / "end")))
    search = add(store)
    until(lambda: "does not answer" in caplog.text)
    with pytest.raises(UnavailableError, match=f"dask://127.0.0.1:{port}"):
        jobs.check()
    assert store.search(search).state is SearchState.QUEUED
    with scheduler(port), worker(port):
        until(lambda: store.search(search).progress > 0)
        jobs.check()
    until(lambda: store.search(search).state is SearchState.QUEUED)
    assert caplog.text.count("does not answer") <= 2, "told once each time"
    (tmp_path / "end").touch()
    with scheduler(port), worker(port):
        jobs.ended(search).result(60)
        assert store.search(search).state is SearchState.SUCCEEDED


class AnotherProtocol(BaseRequestHandler):
    """What answers at a port that is not a scheduler's."""

    def handle(self):
        self.request.recv(64)
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" * 4)


def test_searches_go_on_after_something_else_answered_at_the_scheduler_s_address(
    store, jobs_at, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr("api.executors.dask.RETRY_S", 0.1)
    port = free_port()
    with TCPServer(("127.0.0.1", port), AnotherProtocol, bind_and_activate=False) as other:
        other.allow_reuse_address = True
        other.server_bind()
        other.server_activate()
        thread = threading.Thread(target=other.serve_forever, args=(0.02,))
        thread.start()
        jobs = jobs_at(port, invented_searches.instant)
        search = add(store)
        until(lambda: "stumbled" in caplog.text)
        other.shutdown()
        thread.join()
    with scheduler(port), worker(port):
        jobs.ended(search).result(60)
    assert store.search(search).state is SearchState.SUCCEEDED


def test_a_service_whose_scheduler_is_away_starts_takes_searches_and_is_not_ready(serve):
    port = free_port()
    client = serve(invented_searches.instant, executor=f"dask://127.0.0.1:{port}")
    answer = client.post("/v1/searches", json=invented_searches.TINY_REQUEST)
    assert answer.status_code == 202
    ready = client.get("/readyz")
    assert ready.status_code == 503 and f"dask://127.0.0.1:{port}" in ready.json()["detail"]
    assert client.get(answer.headers["location"]).json()["state"] == "queued"
    with scheduler(port), worker(port):
        until(lambda: client.get(answer.headers["location"]).json()["state"] == "succeeded")
        until(lambda: client.get("/readyz").status_code == 200)


def test_a_search_whose_dask_worker_is_killed_waits_once_and_fails_the_second_time(store, jobs_at):
    port = free_port()
    with scheduler(port):
        jobs = jobs_at(port, invented_searches.endless)
        search = add(store)
        for _ in range(2):
            with worker(port) as process:
                until(lambda: store.search(search).progress > 0)
                process.kill()
                until(lambda: store.search(search).progress == 0 or store.search(search).state.is_final)
        jobs.ended(search).result(60)
        found = store.search(search)
    assert found.state is SearchState.FAILED and found.error.status == 503
    assert "its Dask worker tcp://127.0.0.1" in found.error.detail and "twice" in found.error.detail


def test_a_worker_with_another_trimtab_fails_the_search_with_one_clear_line(store, jobs_at, monkeypatch):
    monkeypatch.setattr("api.executors.dask.VERSION", "9.9")
    port = free_port()
    with scheduler(port), worker(port):
        jobs = jobs_at(port, invented_searches.instant)
        search = add(store)
        jobs.ended(search).result(60)
    detail = store.search(search).error.detail
    assert "9.9" in detail and "Trimtab" in detail and "\n" not in detail


def test_what_a_killed_service_left_on_the_cluster_stops_and_frees_the_worker(store, jobs_at, tmp_path):
    port = free_port()
    with scheduler(port), worker(port), ExitStack() as stack:
        orphan = stack.enter_context(sending(port, tmp_path))
        stack.callback(orphan.kill)
        until(lambda: list(tmp_path.glob("*.runs")))
        [file] = tmp_path.glob("*.runs")
        orphan.send_signal(signal.SIGKILL)
        orphan.wait()
        jobs = jobs_at(port, invented_searches.instant)
        search = add(store)
        jobs.ended(search).result(60)
        before = file.read_text()
        time.sleep(0.3)
        assert file.read_text() == before


def sending(port, folder):
    """A process that sends one endless search to the cluster and waits for it."""
    code = (
        "import sys; sys.path.insert(0, 'tests/api')\n"
        "from functools import partial\n"
        "from test_executors import JOB, DaskExecutor, has_places, invented_searches, until\n"
        f"search = partial(invented_searches.until_stopped, {str(folder)!r})\n"
        f"executor = DaskExecutor(search, 'dask://127.0.0.1:{port}', 1)\n"
        "executor.start()\n"
        "until(lambda: has_places(executor, 1))\n"
        "executor.submit(JOB, print).result()\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_an_executor_that_nobody_has_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr("api.executors.choice.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"trimtab\[dask\]"):
        executor_of(Settings(executor="dask://127.0.0.1:8786"), invented_searches.instant)


def until(holds, seconds=60.0):
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.02)
