"""Several services on one database: who holds a search, for how long, and who goes on when a holder is gone."""

from datetime import datetime, timedelta, timezone

import invented_searches
import pytest
from sqlalchemy import text

from api.app import new_id
from api.problems import status_problem
from api.search_queue import MAX_LOST_SERVICES, SearchQueue
from api.search_store import SearchStore
from api.values import SearchState
from planner.spec.errors import UnavailableError
from planner.spec.request import SearchRequest
from profiles import resolve_cluster, resolve_model

pytestmark = pytest.mark.both_databases
REQUEST = SearchRequest.model_validate(invented_searches.TINY_REQUEST)
MODEL, CLUSTER = resolve_model(REQUEST.model), resolve_cluster(REQUEST.cluster)
SHORTLIST = invented_searches.instant(MODEL, CLUSTER, REQUEST.training, REQUEST.options, lambda *_: None)
LEASE_S = 10.0


class Clock:
    """Stands still until a test moves it."""

    def __init__(self):
        self.now = datetime(2026, 1, 1, tzinfo=timezone.utc)

    def __call__(self):
        return self.now

    def move(self, seconds):
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(database, clock):
    return SearchStore(database, clock, new_id)


@pytest.fixture
def ours(database, clock):
    return SearchQueue(database, clock, "ours", LEASE_S)


@pytest.fixture
def theirs(database, clock):
    return SearchQueue(database, clock, "theirs", LEASE_S)


def add(store, length=128):
    training = REQUEST.training.model_copy(update={"sequence_length": length})
    return store.add(REQUEST.model_copy(update={"training": training}), MODEL, CLUSTER).id


def make_unreadable(database, search):
    """As a later version may write its requests."""
    with database.writing() as session:
        other = {"other": '{"of": "tomorrow"}', "id": search}
        session.execute(text("UPDATE searches SET request = :other WHERE id = :id"), other)


def test_what_one_holds_no_other_takes(store, ours, theirs, clock):
    search = add(store)
    assert ours.take_next().id == search
    clock.move(LEASE_S)
    theirs.take_back()
    assert not theirs.work_waits() and theirs.take_next() is None
    assert (ours.held(), theirs.held()) == ({search}, frozenset())


def test_a_lease_that_is_renewed_goes_on(store, ours, theirs, clock):
    search = add(store)
    ours.take_next()
    for _ in range(5):
        clock.move(0.9 * LEASE_S)
        ours.renew()
        theirs.take_back()
        assert theirs.take_next() is None
    assert ours.held() == {search}


def test_when_a_lease_is_over_another_goes_on(store, ours, theirs, clock):
    search = add(store)
    ours.take_next()
    clock.move(LEASE_S + 1)
    theirs.take_back()
    assert store.search(search).state is SearchState.QUEUED and theirs.work_waits()
    assert theirs.take_next().id == search
    assert (ours.held(), theirs.held()) == (frozenset(), {search})


def test_who_held_a_search_before_says_nothing_about_it(store, ours, theirs, clock):
    search = add(store)
    ours.take_next()
    clock.move(LEASE_S + 1)
    theirs.take_back()
    theirs.take_next()
    before = store.search(search)
    ours.renew()
    ours.report(search, 0.9, "late")
    ours.succeed(search, SHORTLIST)
    ours.fail(search, status_problem(500, "late"))
    ours.worker_died(search, "killed")
    assert ours.hand_back() == 0
    assert store.search(search) == before
    assert theirs.held() == {search}


def test_the_tenth_service_that_dies_takes_the_search_along(store, ours, theirs, clock):
    search = add(store)
    for number in range(MAX_LOST_SERVICES):
        queue = (ours, theirs)[number % 2]
        assert queue.take_next().id == search
        queue.report(search, 0.1, "exploring")
        clock.move(LEASE_S + 1)
        ours.take_back()
    assert ours.take_next() is None
    found = store.search(search)
    assert found.state is SearchState.FAILED
    assert "killed" in found.error.detail and "ten times" in found.error.detail


def test_a_search_that_had_not_begun_has_not_to_do_with_the_end_of_its_service(store, ours, clock):
    search = add(store)
    for _ in range(2 * MAX_LOST_SERVICES):
        assert ours.take_next().id == search
        clock.move(LEASE_S + 1)
        ours.take_back()
    assert store.search(search).state is SearchState.QUEUED


def test_services_and_workers_that_died_are_counted_apart(store, ours, clock):
    search = add(store)
    for _ in range(MAX_LOST_SERVICES - 1):
        assert ours.take_next().id == search
        ours.report(search, 0.1, "exploring")
        clock.move(LEASE_S + 1)
        ours.take_back()
    ours.take_next()
    assert ours.worker_died(search, "killed") is SearchState.QUEUED
    ours.take_next()
    assert ours.worker_died(search, "killed") is SearchState.FAILED


def test_a_search_that_was_interrupted_waits_again_as_often_as_that_happens(store, ours, theirs):
    search = add(store)
    for _ in range(10):
        assert ours.take_next().id == search
        theirs.interrupted(search, "not theirs")
        assert store.search(search).state is SearchState.RUNNING
        ours.interrupted(search, "the scheduler was lost")
    assert "the scheduler was lost" in store.search(search).message


def test_a_service_that_slept_longer_than_its_lease_overwrites_nothing(store, ours, theirs, clock):
    """As after SIGSTOP: its clock goes on, it does not."""
    search = add(store)
    ours.take_next()
    clock.move(10 * LEASE_S)
    theirs.take_back()
    assert theirs.take_next().id == search
    theirs.succeed(search, SHORTLIST)
    before = store.search(search)
    ours.succeed(search, SHORTLIST.model_copy(update={"search_time_s": 99.0}))
    ours.take_back()
    assert store.search(search) == before and store.shortlist(search) == SHORTLIST
    assert ours.held() == frozenset()


def test_a_holder_that_ends_in_order_hands_back_and_that_is_no_death(store, ours, theirs):
    search = add(store)
    for queue in (ours, theirs, ours, theirs):
        assert queue.take_next().id == search
        assert queue.hand_back() == 1
    assert store.search(search).state is SearchState.QUEUED


def test_a_search_of_another_version_that_is_gone_is_taken_back_and_has_failed(database, store, ours, theirs, clock):
    search = add(store)
    theirs.take_next()
    make_unreadable(database, search)
    clock.move(LEASE_S + 1)
    assert [taken[:2] for taken in ours.take_back()] == [(search, SearchState.QUEUED)]
    assert ours.take_next() is None
    assert store.ended([search]) == {search}


@pytest.mark.parametrize(
    ("says", "state"),
    [
        (lambda queue, search: queue.succeed(search, SHORTLIST), SearchState.SUCCEEDED),
        (lambda queue, search: queue.fail(search, status_problem(500, "no")), SearchState.FAILED),
        (lambda queue, search: queue.worker_died(search, "killed"), SearchState.QUEUED),
        (lambda queue, search: queue.interrupted(search, "lost"), SearchState.QUEUED),
        (lambda queue, _: queue.hand_back(), SearchState.QUEUED),
    ],
    ids=["succeed", "fail", "worker_died", "interrupted", "hand_back"],
)
def test_what_a_holder_says_of_a_search_that_it_cannot_read_any_more_counts(database, store, ours, says, state):
    search = add(store)
    ours.take_next()
    make_unreadable(database, search)
    says(ours, search)
    assert store.marks([search])[search][0] is state and ours.held() == frozenset()


def test_lists_leave_out_what_cannot_be_read_and_go_on_behind_it(database, store, caplog):
    oldest, unreadable, newest = add(store), add(store, length=64), add(store, length=32)
    make_unreadable(database, unreadable)
    assert [search.id for search in store.page(2)] == [newest, oldest]
    assert [search.id for search in store.page(3)] == [newest, oldest]
    assert [search.id for search in store.page(1, after=newest)] == [oldest]
    assert {search.id for search in store.searches([oldest, unreadable])} == {oldest}
    assert unreadable in caplog.text
    with pytest.raises(UnavailableError, match="another version"):
        store.search(unreadable)


def test_what_has_ended_is_told_whoever_ended_it(store, ours, theirs):
    hows = ("succeeded", "failed", "cancelled", "queued")
    ends = {how: add(store, length=length) for length, how in enumerate(hows, start=8)}
    ours.take_next()
    ours.succeed(ends["succeeded"], SHORTLIST)
    theirs.take_next()
    theirs.fail(ends["failed"], status_problem(422, "no"))
    store.cancel(ends["cancelled"])
    assert store.ended(list(ends.values())) == {ends["succeeded"], ends["failed"], ends["cancelled"]}


def test_a_question_that_is_being_searched_is_not_searched_again_but_answered_too(store, ours, theirs):
    first, second, other = add(store), add(store), add(store, length=64)
    assert ours.take_next().id == first
    assert theirs.take_next().id == other and not theirs.work_waits()
    ours.succeed(first, SHORTLIST)
    assert [store.search(search).state for search in (first, second)] == [SearchState.SUCCEEDED] * 2
    assert store.shortlist(second) == store.shortlist(first) == SHORTLIST
    assert store.found(SHORTLIST.plans[0].plan.id, second).entry == SHORTLIST.plans[0]
    assert store.search(other).state is SearchState.RUNNING


def test_a_question_that_was_answered_is_answered_at_once(store, ours):
    add(store)
    ours.succeed(ours.take_next().id, SHORTLIST)
    again = store.search(add(store))
    assert again.state is SearchState.SUCCEEDED and again.progress == 1 and again.finished_at is not None
    assert store.shortlist(again.id) == SHORTLIST
    assert not ours.work_waits()


def test_an_answer_that_time_cut_off_is_searched_again(store, ours):
    add(store)
    ours.succeed(ours.take_next().id, SHORTLIST.model_copy(update={"search_time_s": 60.2}))
    assert store.add(REQUEST, MODEL, CLUSTER, time_limit_s=600.0).state is SearchState.SUCCEEDED
    assert store.add(REQUEST, MODEL, CLUSTER, time_limit_s=60.0).state is SearchState.QUEUED


def test_a_question_without_answer_is_to_blame_for_all_who_ask_it(store, ours):
    first, second = add(store), add(store)
    ours.take_next()
    ours.fail(first, status_problem(422, "no plan fits"))
    assert store.search(second).error == store.search(first).error


def test_where_the_service_failed_the_next_who_asks_tries_again(store, ours):
    first, second, third = add(store), add(store), add(store)
    ours.take_next()
    ours.fail(first, status_problem(503, "too slow"))
    assert ours.take_next().id == second
    store.cancel(second)
    assert ours.take_next().id == third
