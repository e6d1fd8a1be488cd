"""Jobs: real worker processes, one for each running search, that die, hang, break and are restarted."""

import time
from functools import partial

import invented_searches
import pytest

from api.app import new_id
from api.database import utc_now
from api.jobs import Jobs
from api.search_store import SearchStore
from api.values import SearchState
from planner.spec.request import SearchRequest
from profiles import resolve_cluster, resolve_model

REQUEST = SearchRequest.model_validate(invented_searches.TINY_REQUEST)
MODEL, CLUSTER = resolve_model(REQUEST.model), resolve_cluster(REQUEST.cluster)


@pytest.fixture
def store(database):
    return SearchStore(database, utc_now, new_id)


@pytest.fixture
def working(store):
    """A function that starts jobs with a search; closed at the end."""
    started = []

    def start(search, num_workers=2, time_limit_s=60.0):
        jobs = Jobs(store, search, num_workers, time_limit_s)
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


def test_searches_that_ran_when_the_service_ended_start_again(store, working):
    search = add(store)
    first = Jobs(store, invented_searches.endless, 1, 60.0)
    first.start()
    wait_for(store, search, SearchState.RUNNING)
    first.close()
    assert store.search(search).state is SearchState.RUNNING
    end(working(invented_searches.instant), search)
    assert store.search(search).state is SearchState.SUCCEEDED


def test_a_store_that_fails_for_a_moment_does_not_end_the_dispatcher(store, working, monkeypatch):
    monkeypatch.setattr("api.jobs.RETRY_S", 0.05)
    take_next, failures = SearchStore.take_next, iter([True, True, False])

    def unreliable(self):
        if next(failures, False):
            raise OSError("the disk is gone")
        return take_next(self)

    monkeypatch.setattr(SearchStore, "take_next", unreliable)
    search = add(store)
    end(working(invented_searches.instant), search)
    assert store.search(search).state is SearchState.SUCCEEDED


def test_a_worker_that_cannot_be_started_counts_as_lost(store, working, monkeypatch):
    def refused(self, job):
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(Jobs, "_start_worker", refused)
    search = add(store)
    end(working(invented_searches.instant), search)
    assert "no more processes" in store.search(search).error.detail


def test_a_worker_that_hangs_after_its_last_news_frees_its_place(store, working, monkeypatch):
    monkeypatch.setattr("api.jobs.EXIT_S", 0.2)
    first, second = add(store), add(store)
    jobs = working(invented_searches.hangs_at_exit, num_workers=1)
    end(jobs, first)
    end(jobs, second)
    assert store.search(second).state is SearchState.SUCCEEDED


def test_waiting_for_a_search_that_has_ended_is_over_at_once(store, working):
    search = add(store)
    jobs = working(invented_searches.instant)
    end(jobs, search)
    assert jobs.ended(search).done()


def wait_for(store, search, state, seconds=20.0):
    limit = time.monotonic() + seconds
    while store.search(search).state is not state:
        assert time.monotonic() < limit
        time.sleep(0.02)
