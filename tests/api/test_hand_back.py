"""The end of a service, in order, while the database keeps others waiting."""

import threading
import time
from functools import partial

import invented_searches
import pytest
from service_process import alive
from sqlalchemy import text, update
from sqlalchemy.exc import OperationalError
from test_jobs import MEMORY_BYTES, add, store  # noqa: F401
from test_leases import LEASE_S, SHORTLIST

from api.app import new_id
from api.database import utc_now
from api.executors.local import LocalExecutor
from api.jobs import Jobs
from api.search_queue import SearchQueue
from api.tables import SearchRow
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


def test_who_has_less_time_waits_less_for_the_lock(database):
    began = time.monotonic()
    with database.writing() as session:
        session.connection()
        with pytest.raises(OperationalError, match="lock"), database.writing(patience_s=0.2) as other:
            other.connection()
        assert time.monotonic() - began < 8, "not BUSY_TIMEOUT_MS"
    with database.writing(patience_s=0.2) as session:
        session.connection()


def test_short_patience_is_not_left_to_the_next_writer(database):
    told = (("sqlite", "PRAGMA busy_timeout", (10_000, 200)), ("postgresql", "SHOW lock_timeout", ("10s", "200ms")))
    for patience_s, which in ((None, 0), (0.2, 1), (None, 0), (0.2, 1)):
        with database.writing(patience_s=patience_s) as session:
            (ask, values) = next(more for name, *more in told if name == session.get_bind().dialect.name)
            assert session.scalar(text(ask)) == values[which]


@pytest.mark.parametrize(
    "step",
    [
        lambda queue, search: queue.renew(),
        lambda queue, search: queue.report(search, 0.5, "half way"),
        lambda queue, search: queue.succeed(search, SHORTLIST),
        lambda queue, search: queue.worker_died(search, "killed"),
        lambda queue, search: queue.interrupted(search, "lost"),
        lambda queue, search: queue.take_next(),
    ],
    ids=["renew", "report", "succeed", "worker_died", "interrupted", "take_next"],
)
def test_no_step_of_the_dispatcher_waits_so_long_for_others_that_its_leases_end(database, store, step):  # noqa: F811
    lease_s = 2.0
    queue, search = SearchQueue(database, utc_now, new_id(), lease_s), add(store)
    queue.take_next()
    with database.writing() as session:
        session.execute(update(SearchRow).values(progress=0.1))
        began = time.monotonic()
        with pytest.raises(OperationalError, match="lock"):
            step(queue, search)
        assert time.monotonic() - began < 8, "a part of the lease, not BUSY_TIMEOUT_MS"
