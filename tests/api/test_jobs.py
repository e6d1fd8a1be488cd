"""Jobs: real worker processes, one for each running search, that die, hang, break and are restarted."""

import sys
import threading
import time
from functools import partial

import invented_searches
import pytest
from service_process import alive
from sqlalchemy import select

from api.app import new_id
from api.database import utc_now
from api.executors.local import LocalExecutor
from api.jobs import Jobs
from api.search_queue import SearchQueue
from api.search_store import SearchStore
from api.tables import SearchRow
from api.values import SearchState
from planner.spec.request import SearchRequest
from profiles import resolve_cluster, resolve_model

pytestmark = pytest.mark.both_databases
REQUEST = SearchRequest.model_validate(invented_searches.TINY_REQUEST)
LEASE_S = 10.0
MEMORY_BYTES = 8 * 2**30
MODEL, CLUSTER = resolve_model(REQUEST.model), resolve_cluster(REQUEST.cluster)


@pytest.fixture
def store(database):
    return SearchStore(database, utc_now, new_id)


def jobs_on(database, store, search, num_workers=2, time_limit_s=60.0, memory_bytes=MEMORY_BYTES):
    """The jobs of one service; several on one database are several services."""
    executor = LocalExecutor(search, num_workers, memory_bytes)
    return Jobs(store, SearchQueue(database, utc_now, new_id(), LEASE_S), executor, time_limit_s)


@pytest.fixture
def working(database, store):
    """A function that starts jobs with a search; closed at the end."""
    started = []

    def start(search, **more):
        jobs = jobs_on(database, store, search, **more)
        jobs.start()
        started.append(jobs)
        return jobs

    yield start
    for jobs in started:
        jobs.close()


def add(store, sequence_length=128, **options):
    training = REQUEST.training.model_copy(update={"sequence_length": sequence_length})
    changed = {"training": training, "options": REQUEST.options.model_copy(update=options)}
    return store.add(REQUEST.model_copy(update=changed), MODEL, CLUSTER).id


def end(jobs, search_id, seconds=20.0):
    jobs.ended(search_id).result(timeout=seconds)


def test_a_search_whose_worker_was_killed_starts_again_once(store, working, tmp_path):
    search = add(store)
    jobs = working(partial(invented_searches.dies_once, str(tmp_path / "died")))
    end(jobs, search)
    assert store.search(search).state is SearchState.SUCCEEDED


def test_a_search_whose_worker_was_killed_twice_has_failed_and_says_how(store, working):
    search = add(store)
    end(working(invented_searches.dies), search)
    found = store.search(search)
    assert found.state is SearchState.FAILED
    assert "SIGKILL" in found.error.detail and found.error.status == 503


def test_jobs_go_on_after_a_worker_died(store, working):
    first = add(store)
    jobs = working(invented_searches.dies, num_workers=1)
    end(jobs, first)
    second = add(store)
    jobs.wake()
    end(jobs, second)
    assert store.search(second).state is SearchState.FAILED


def test_searches_run_one_after_the_other_where_there_is_one_worker(store, working, tmp_path):
    log = tmp_path / "log"
    searches = [add(store, sequence_length=length) for length in (8, 16, 32)]
    jobs = working(partial(invented_searches.notes_its_turn, str(log)), num_workers=1)
    for search in searches:
        end(jobs, search)
    assert log.read_text().split("\n")[:-1] == [f"{what} {n}" for n in (8, 16, 32) for what in ("begin", "end")]


def test_no_more_searches_run_at_once_than_there_are_workers(store, working, tmp_path):
    log = tmp_path / "log"
    searches = [add(store, sequence_length=length) for length in (8, 16, 32, 64)]
    jobs = working(partial(invented_searches.notes_its_turn, str(log)), num_workers=2)
    for search in searches:
        end(jobs, search)
    running, most = 0, 0
    for line in log.read_text().splitlines():
        running += 1 if line.startswith("begin") else -1
        most = max(most, running)
    assert most == 2


def test_a_search_that_ignores_its_time_limit_is_ended(store, working, monkeypatch):
    monkeypatch.setattr("api.jobs.GRACE_S", 0.5)
    search = add(store, time_limit_s=0.5)
    begin = time.monotonic()
    end(working(invented_searches.endless), search)
    found = store.search(search)
    assert found.state is SearchState.FAILED
    assert found.error.status == 503, "the service failed, not the request"
    assert "0.5 s after its time limit of 0.5 s" in found.error.detail
    assert time.monotonic() - begin < 10


def test_the_service_limits_the_time_of_a_search(store, working, monkeypatch):
    monkeypatch.setattr("api.jobs.GRACE_S", 0.2)
    search = add(store, time_limit_s=1000.0)
    end(working(invented_searches.endless, time_limit_s=0.5), search)
    assert store.search(search).state is SearchState.FAILED


def test_searches_that_ran_when_the_service_ended_start_again(store, working, database):
    search = add(store)
    first = jobs_on(database, store, invented_searches.endless)
    first.start()
    wait_for(store, search, SearchState.RUNNING)
    first.close()
    assert store.search(search).state is SearchState.QUEUED
    end(working(invented_searches.instant), search)
    assert store.search(search).state is SearchState.SUCCEEDED


def test_two_services_share_the_searches_and_run_each_once(store, working, tmp_path):
    log = tmp_path / "log"
    lengths = [8 * number for number in range(1, 13)]
    searches = [add(store, sequence_length=length) for length in lengths]
    noted = partial(invented_searches.notes_its_turn, str(log))
    first, second = working(noted, num_workers=1), working(noted, num_workers=1)
    for number, search in enumerate(searches):
        end((first, second)[number % 2], search, seconds=60)
    begun = [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("begin")]
    assert sorted(begun) == lengths


def test_a_search_that_another_service_cancels_is_ended_here(store, working, tmp_path):
    pid_file = tmp_path / "pid"
    search = add(store)
    runs_it = working(partial(invented_searches.deaf, str(pid_file)))
    wait_for(store, search, SearchState.RUNNING)
    elsewhere = working(invented_searches.instant)
    until(lambda: pid_file.exists() and pid_file.read_text())
    begin = time.monotonic()
    elsewhere.cancel(search)
    until(lambda: not alive(int(pid_file.read_text())))
    assert time.monotonic() - begin < 10, "a second where the machine is free"
    assert runs_it.ended(search).result(timeout=5) is None


def test_a_client_that_waits_at_one_service_hears_of_the_end_at_another(store, working):
    first = add(store)
    busy = working(invented_searches.endless, num_workers=1)
    wait_for(store, first, SearchState.RUNNING)
    search = add(store, shortlist_size=3)
    told = busy.ended(search)
    working(invented_searches.instant)
    told.result(timeout=20)
    assert store.search(search).state is SearchState.SUCCEEDED


def test_a_store_that_fails_for_a_moment_does_not_end_the_dispatcher(store, working, monkeypatch):
    monkeypatch.setattr("api.jobs.RETRY_S", 0.05)
    take_next, failures = SearchQueue.take_next, iter([True, True, False])

    def unreliable(self):
        if next(failures, False):
            raise OSError("the disk is gone")
        return take_next(self)

    monkeypatch.setattr(SearchQueue, "take_next", unreliable)
    search = add(store)
    end(working(invented_searches.instant), search)
    assert store.search(search).state is SearchState.SUCCEEDED


def test_a_service_that_was_without_database_longer_than_its_lease_keeps_its_search(
    store, working, database, tmp_path, monkeypatch
):
    monkeypatch.setattr("api.jobs.RETRY_S", 0.05)
    gone, queue = threading.Event(), SearchQueue(database, utc_now, new_id(), 2.0)
    for name in ("renew", "held", "take_back", "report", "work_waits"):
        monkeypatch.setattr(queue, name, partial(unless, gone, getattr(queue, name)))
    marker, search = tmp_path / "go", add(store)
    jobs = Jobs(store, queue, LocalExecutor(partial(invented_searches.until_told, str(marker)), 1, MEMORY_BYTES), 60.0)
    jobs.start()
    try:
        until(lambda: store.search(search).progress > 0)
        gone.set()
        time.sleep(3.0)
        gone.clear()
        time.sleep(1.0)  # two looks around
        marker.touch()
        end(jobs, search)
        assert store.search(search).state is SearchState.SUCCEEDED
        with database.reading() as session:
            assert session.scalar(select(SearchRow.lost_services)) == 0
    finally:
        jobs.close()


@pytest.mark.parametrize(
    ("error", "said"), [(BlockingIOError("no more processes"), "no more"), (EOFError(), "EOFError")]
)
def test_a_worker_that_cannot_be_started_counts_as_lost(store, working, monkeypatch, error, said):
    def refused(self, job):
        raise error

    monkeypatch.setattr(LocalExecutor, "_start", refused)
    search = add(store)
    end(working(invented_searches.instant), search)
    assert said in store.search(search).error.detail


def test_a_search_that_was_taken_but_never_sent_is_taken_again(store, working, monkeypatch):
    take_next, failures = SearchQueue.take_next, iter([True])

    def breaks_off(self):
        job = take_next(self)
        if next(failures, False):
            raise OSError("the answer to the commit was lost")
        return job

    monkeypatch.setitem(globals(), "LEASE_S", 600.0)
    monkeypatch.setattr(SearchQueue, "take_next", breaks_off)
    monkeypatch.setattr("api.jobs.RETRY_S", 0.05)
    search = add(store)
    end(working(invented_searches.instant), search)
    assert store.search(search).state is SearchState.SUCCEEDED


def test_a_worker_that_hangs_after_its_last_news_frees_its_place(store, working, monkeypatch):
    monkeypatch.setattr("api.executors.local.EXIT_S", 0.2)
    first, second = add(store), add(store)
    jobs = working(invented_searches.hangs_at_exit, num_workers=1)
    end(jobs, first)
    end(jobs, second)
    assert store.search(second).state is SearchState.SUCCEEDED


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of private memory is Linux's")
def test_a_search_that_eats_memory_fails_and_says_so_and_the_service_goes_on(store, working):
    search = add(store)
    jobs = working(invented_searches.glutton, num_workers=1, memory_bytes=512 * 2**20)
    end(jobs, search)
    found = store.search(search)
    assert found.state is SearchState.FAILED and found.error.status == 503
    assert "more memory" in found.error.detail and "search_memory_bytes" in found.error.detail
    again = add(store)
    jobs.wake()
    end(jobs, again)
    assert store.search(again).state is SearchState.FAILED, "the service goes on"


def test_a_service_that_slept_longer_than_its_lease_stops_its_search_and_another_one_ends_it(
    store, working, database, tmp_path, monkeypatch
):
    awake = threading.Event()
    queue = SearchQueue(database, utc_now, new_id(), 2.0)
    renew = queue.renew
    monkeypatch.setattr(queue, "renew", lambda: awake.wait(60) and renew())  # as in a process that got SIGSTOP
    search = add(store)
    sleeper = Jobs(store, queue, LocalExecutor(invented_searches.endless, 1, MEMORY_BYTES), 60.0)
    sleeper.start()
    try:
        wait_for(store, search, SearchState.RUNNING)
        end(working(invented_searches.instant), search)
        before = store.search(search)
        awake.set()
        until(lambda: not sleeper._running)
        assert store.search(search) == before and before.state is SearchState.SUCCEEDED
    finally:
        awake.set()
        sleeper.close()


def test_waiting_for_a_search_that_has_ended_is_over_at_once(store, working):
    search = add(store)
    jobs = working(invented_searches.instant)
    end(jobs, search)
    assert jobs.ended(search).done()


def wait_for(store, search, state, seconds=20.0):
    until(lambda: store.search(search).state is state, seconds)


def until(holds, seconds=20.0):
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.02)


def unless(gone, method, *arguments):
    """As a database that is away while `gone` is set."""
    if gone.is_set():
        raise OSError("the database is away")
    return method(*arguments)
