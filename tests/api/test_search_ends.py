"""How searches end: each end is counted and logged once, whichever way it came, and none holds up the others."""

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError
from test_jobs import add, store, until  # noqa: F401
from test_leases import LEASE_S, SHORTLIST

from api.app import new_id
from api.database import utc_now
from api.executors.port import STARTING, Died, Failed, Interrupted, Succeeded
from api.jobs import Jobs
from api.problems import status_problem
from api.search_queue import MAX_LOST_SERVICES, SearchQueue
from api.tables import SearchRow
from api.values import SearchState

pytestmark = pytest.mark.both_databases
CANCELLED, FAILED, SUCCEEDED = SearchState.CANCELLED, SearchState.FAILED, SearchState.SUCCEEDED
DIED = Died("its worker ended with signal SIGKILL")


class Hands:
    """An executor in the hands of a test, which ends what was sent."""

    def __init__(self):
        self.sent = {}

    def start(self):
        pass

    def places(self):
        return 8

    def submit(self, job, report):
        report(0.0, STARTING)
        outcome = self.sent[job.id] = Future()
        return outcome

    def end(self, search_id, outcome):
        until(lambda: search_id in self.sent)
        self.sent.pop(search_id).set_result(outcome)

    def close(self):
        for outcome in self.sent.values():
            outcome.cancel()


class Ends(list):
    """Of the searches of one service, as its metrics hear them: (state, seconds)."""

    def __call__(self, state, seconds):
        self.append((state, seconds))

    @property
    def states(self):
        return [state for state, _ in self]


@pytest.fixture
def ends():
    return Ends()


@pytest.fixture
def hands():
    return Hands()


@pytest.fixture
def queue(database):
    return SearchQueue(database, utc_now, new_id(), LEASE_S)


@pytest.fixture
def jobs(store, queue, hands, ends, monkeypatch, caplog):  # noqa: F811
    """They look around often, and are closed at the end."""
    monkeypatch.setattr("api.jobs.TICK_S", 0.05)
    monkeypatch.setattr("api.jobs.RETRY_S", 0.05)
    caplog.set_level(logging.INFO, "api.jobs")
    made = Jobs(store, queue, hands, 60.0, ends)
    made.start()
    yield made
    made.close()


def logged(caplog, search):
    """The states in which the log says that a search has ended."""
    heads = [record.getMessage().partition(" after ") for record in caplog.records]
    return [head.removeprefix(f"search {search}: ") for head, after, _ in heads if after and search in head]


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ([Succeeded(SHORTLIST)], SUCCEEDED),
        ([Failed(status_problem(422, "nothing fits"))], FAILED),
        ([DIED, DIED], FAILED),
        ([DIED, Succeeded(SHORTLIST)], SUCCEEDED),
        ([Interrupted("the scheduler was lost"), DIED, DIED], FAILED),
    ],
)
def test_a_search_that_ends_is_counted_once(store, jobs, hands, ends, caplog, outcomes, state):  # noqa: F811
    search = add(store)
    jobs.wake()
    for outcome in outcomes:
        hands.end(search, outcome)
    jobs.ended(search).result(20)
    until(lambda: ends)
    assert ends.states == [state] == [store.search(search).state]
    assert logged(caplog, search) == [state.value]
    for outcome in (DIED, Interrupted("the scheduler was lost")):
        assert caplog.text.count(outcome.reason) == outcomes.count(outcome)


def test_the_log_says_whether_a_search_starts_again_when_its_worker_has_died(store, jobs, hands, ends, caplog):  # noqa: F811
    search = add(store)
    jobs.wake()
    for _ in range(2):
        hands.end(search, DIED)
    until(lambda: ends)
    told = [record.getMessage() for record in caplog.records if DIED.reason in record.getMessage()]
    assert told == [
        f"search {search}: {DIED.reason}; it {what}" for what in ("waits to start again", "is not started again")
    ]


def test_a_search_that_outlives_its_time_is_counted(store, jobs, ends, caplog, monkeypatch):  # noqa: F811
    monkeypatch.setattr("api.jobs.GRACE_S", 0.1)
    search = add(store, time_limit_s=0.1)
    jobs.wake()
    until(lambda: ends)
    assert store.search(search).state is FAILED
    assert ends.states == [FAILED] and ends[0][1] >= 0.2
    assert logged(caplog, search) == ["failed"]


@pytest.mark.parametrize("is_here", [True, False])
def test_a_search_that_is_cancelled_here_or_elsewhere_is_counted(store, jobs, hands, ends, caplog, is_here):  # noqa: F811
    search = add(store)
    jobs.wake()
    until(lambda: search in hands.sent)
    (jobs if is_here else store).cancel(search)
    until(hands.sent[search].cancelled)
    until(lambda: ends)
    assert ends.states == [CANCELLED] and logged(caplog, search) == ["cancelled"]


def test_a_search_that_is_cancelled_while_it_is_sent_is_counted(store, jobs, hands, ends, caplog, monkeypatch):  # noqa: F811
    submit, sent = hands.submit, []

    def slow(job, report):
        jobs.cancel(job.id)
        sent.append(submit(job, report))
        return sent[0]

    monkeypatch.setattr(hands, "submit", slow)
    search = add(store)
    jobs.wake()
    until(lambda: ends)
    assert sent[0].cancelled()
    assert ends.states == [CANCELLED] and logged(caplog, search) == ["cancelled"]


def test_a_search_that_is_taken_back_for_the_last_time_is_counted(database, store, hands, ends, caplog, request):  # noqa: F811
    gone = SearchQueue(database, lambda: utc_now() - timedelta(hours=1), "gone", LEASE_S)
    other, search = SearchQueue(database, utc_now, "other", LEASE_S), add(store)
    for _ in range(MAX_LOST_SERVICES):
        other.take_back()
        gone.take_next()
        gone.report(search, 0.1, "exploring")
    request.getfixturevalue("jobs")
    until(lambda: ends)
    assert store.search(search).state is FAILED
    assert ends.states == [FAILED] and ends[0][1] >= 3600
    assert not hands.sent and logged(caplog, search) == ["failed"]


def test_a_search_that_goes_on_elsewhere_is_not_counted_here(database, store, jobs, hands, ends):  # noqa: F811
    search = add(store)
    jobs.wake()
    until(lambda: search in hands.sent)
    with database.writing() as session:
        session.execute(update(SearchRow).values(holder="another"))
    until(hands.sent[search].cancelled)
    handed_back = add(store, sequence_length=64)
    jobs.wake()
    until(lambda: handed_back in hands.sent)
    jobs.close()
    assert ends == [] and store.search(handed_back).state is SearchState.QUEUED


def failing_once(method, search, error, again=False):
    """The queue's method, but for one search, which it cannot keep: once, or `again` and again."""
    failures = [error]

    def fails(search_id, *arguments):
        if search_id == search and failures:
            raise failures[0] if again else failures.pop()
        return method(search_id, *arguments)

    return fails


def test_a_search_whose_outcome_cannot_be_kept_has_failed_and_holds_up_no_other(
    store,  # noqa: F811
    jobs,
    queue,
    hands,
    ends,
    caplog,
    monkeypatch,
):
    broken, sound = add(store), add(store, sequence_length=64)
    monkeypatch.setattr(queue, "succeed", failing_once(queue.succeed, broken, ValueError("a bug"), again=True))
    jobs.wake()
    for search in (broken, sound):
        hands.end(search, Succeeded(SHORTLIST))
    for search in (sound, broken):
        jobs.ended(search).result(20)
    until(lambda: len(ends) == 2)
    assert store.search(sound).state is SUCCEEDED and store.search(broken).error.status == 500
    assert sorted(ends.states) == [FAILED, SUCCEEDED] and "a bug" in caplog.text


def test_an_outcome_that_met_no_database_is_kept_when_it_is_back(store, jobs, queue, hands, ends, monkeypatch):  # noqa: F811
    search = add(store)
    away = OperationalError("UPDATE", {}, Exception("the server closed the connection"))
    monkeypatch.setattr(queue, "succeed", failing_once(queue.succeed, search, away))
    jobs.wake()
    hands.end(search, Succeeded(SHORTLIST))
    jobs.ended(search).result(20)
    until(lambda: ends)
    assert ends.states == [SUCCEEDED]


@pytest.mark.parametrize(
    ("act", "question"), [("cancel", "cancel"), ("cancel", "ended"), ("ended", "search"), ("ended", "ended")]
)
def test_a_client_whom_the_database_keeps_waiting_keeps_no_other_waiting(
    store,  # noqa: F811
    jobs,
    hands,
    monkeypatch,
    act,
    question,
):
    asked, released = threading.Event(), threading.Event()

    def slow(method, *arguments):
        if threading.current_thread().name.startswith("slow"):
            asked.set()
            assert released.wait(60)
        return method(*arguments)

    first, second = add(store), add(store, sequence_length=64)
    jobs.ended(first)
    monkeypatch.setattr(store, question, partial(slow, getattr(store, question)))
    with ThreadPoolExecutor(1, "slow") as slow_client, ThreadPoolExecutor(1) as client:
        try:
            slow_client.submit(getattr(jobs, act), first)
            assert asked.wait(20)
            hands.end(second, Succeeded(SHORTLIST))
            client.submit(lambda: jobs.ended(second).result(20)).result(20)
        finally:
            released.set()
