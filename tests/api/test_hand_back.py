"""The end of a service, in order, while the database keeps others waiting."""

import threading
import time
from functools import partial

import invented_searches
import pytest
from service_process import alive
from sqlalchemy.exc import OperationalError
from test_jobs import MEMORY_BYTES, add, store  # noqa: F401
from test_leases import LEASE_S

from api.app import new_id
from api.database import utc_now
from api.executors.local import LocalExecutor
from api.jobs import Jobs
from api.search_queue import SearchQueue
from api.values import SearchState

pytestmark = pytest.mark.both_databases


class StuckQueue(SearchQueue):
    """One whose renewals wait until a test lets them go."""

    def __init__(self, database):
        super().__init__(database, utc_now, new_id(), LEASE_S)
        self.stuck, self.released = threading.Event(), threading.Event()

    def renew(self):
        self.stuck.set()
        assert self.released.wait(30)


def until(holds, seconds=20.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_searches_are_handed_back_while_the_dispatcher_waits_for_the_database(database, store):  # noqa: F811
    queue = StuckQueue(database)
    jobs = Jobs(store, queue, LocalExecutor(invented_searches.endless, 1, MEMORY_BYTES), 60.0)
    search = add(store)
    jobs.start()
    try:
        assert queue.stuck.wait(30)
        closing = threading.Thread(target=jobs.close)
        closing.start()
        until(lambda: store.search(search).state is SearchState.QUEUED)
    finally:
        queue.released.set()
        closing.join()


def test_what_is_handed_back_does_not_go_on_here_while_the_dispatcher_waits(database, store, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("api.jobs.END_S", 60.0)
    pid_file, queue = tmp_path / "pid", StuckQueue(database)
    jobs = Jobs(store, queue, LocalExecutor(partial(invented_searches.deaf, str(pid_file)), 1, MEMORY_BYTES), 60.0)
    search = add(store)
    jobs.start()
    try:
        until(lambda: pid_file.exists() and pid_file.read_text())
        assert queue.stuck.wait(30)
        closing = threading.Thread(target=jobs.close)
        closing.start()
        until(lambda: store.search(search).state is SearchState.QUEUED)
        until(lambda: not alive(int(pid_file.read_text())))
    finally:
        queue.released.set()
        closing.join()


def test_a_service_that_ends_waits_less_for_the_lock_than_one_that_works(database):
    began = time.monotonic()
    with database.writing() as session:
        session.connection()
        with pytest.raises(OperationalError, match="lock"), database.writing(patient=False) as other:
            other.connection()
        assert time.monotonic() - began < 8, "LAST_TIMEOUT_MS, not BUSY_TIMEOUT_MS"
    with database.writing(patient=False) as session:
        session.connection()
