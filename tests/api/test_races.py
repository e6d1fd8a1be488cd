"""What several services do to one database at the same moment: each promise has one winner, and nobody an error."""

import threading
from collections import Counter

import pytest
from test_stores import CLUSTER, MODEL, REQUEST, SHORTLIST, Clock, Numbers, begun, window

from api.app import new_id
from api.database import open_database, utc_now
from api.decider import Decider
from api.run_store import RunStore
from api.search_queue import SearchQueue
from api.search_store import SearchStore
from api.values import SearchState
from planner.spec.errors import ConflictError, UnavailableError

pytestmark = pytest.mark.both_databases
SERVICES = 4


@pytest.fixture
def databases(database_url):
    """One for each service, with connections of its own."""
    opened = [open_database(database_url) for _ in range(SERVICES)]
    yield opened
    for database in opened:
        database.close()


def at_once(works):
    """What each of the functions returned, or raised, where all begin together."""
    barrier, results = threading.Barrier(len(works)), [None] * len(works)

    def one(place, work):
        barrier.wait()
        try:
            results[place] = work()
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=one, args=pair) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def store(database):
    return SearchStore(database, utc_now, new_id)


def queue(database, holder):
    return SearchQueue(database, utc_now, holder, lease_s=1000.0)


def add(searches, length=128, **more):
    training = REQUEST.training.model_copy(update={"sequence_length": length})
    return searches.add(REQUEST.model_copy(update={"training": training}), MODEL, CLUSTER, **more)


def test_one_key_makes_one_search(databases):
    for key in ("a", "b", "c"):
        made = at_once([lambda one=one, key=key: add(store(one), key=key).id for one in databases])
        assert len(set(made)) == 1, made
    assert len(store(databases[0]).page(50)) == 3


def test_the_queue_never_holds_more_than_it_may(databases):
    made = at_once(
        [
            lambda one=one, length=length: add(store(one), length=length, max_waiting=2)
            for length, one in enumerate(databases, start=8)
        ]
    )
    assert Counter(type(one) for one in made)[UnavailableError] == SERVICES - 2, made
    assert store(databases[0]).standing()[0] == {SearchState.QUEUED: 2}


def test_one_search_has_one_taker_and_one_question_too(databases):
    for length in (8, 16, 24):
        twins = [add(store(databases[0]), length=length).id for _ in range(SERVICES)]
        taken = at_once([queue(one, f"h{place}").take_next for place, one in enumerate(databases)])
        jobs = [job for job in taken if job is not None]
        assert [job.id for job in jobs] == twins[:1], taken
        holder = next(place for place, job in enumerate(taken) if job is not None)
        queue(databases[holder], f"h{holder}").succeed(jobs[0].id, SHORTLIST)


def test_who_asks_while_the_answer_comes_has_it_too(databases):
    for length in range(8, 88, 8):
        first = add(store(databases[0]), length=length).id
        assert queue(databases[0], "h").take_next().id == first
        asks = [lambda one=one, length=length: add(store(one), length=length).id for one in databases[1:]]
        _, *others = at_once([lambda first=first: queue(databases[0], "h").succeed(first, SHORTLIST), *asks])
        states = {store(databases[0]).search(other).state for other in others}
        assert states == {SearchState.SUCCEEDED}, "asked again, the question would be searched again"


def test_a_search_is_cancelled_or_succeeds_and_never_both(databases):
    for length in range(8, 88, 8):
        search = add(store(databases[0]), length=length).id
        queue(databases[0], "h").take_next()
        _, told = at_once(
            [
                lambda search=search: queue(databases[0], "h").succeed(search, SHORTLIST),
                lambda search=search: store(databases[1]).cancel(search),
            ]
        )
        found = store(databases[2]).search(search)
        expected = SearchState.SUCCEEDED if isinstance(told, ConflictError) else SearchState.CANCELLED
        assert found.state is expected, told
        assert (found.best_plan_id is None) == (expected is SearchState.CANCELLED)


def test_services_that_decide_on_one_run_give_each_window_one_decision(databases):
    searches, numbers = SearchStore(databases[0], Clock(), Numbers()), Numbers()
    run = begun(searches, queue(databases[0], numbers()), RunStore(databases[0], Clock()))
    services = [Decider(RunStore(one, utc_now)) for one in databases]

    def report(service):
        return {index: service.decide(run.id, window(index)).decision for index in range(12)}

    told = at_once([lambda one=one: report(one) for one in services])
    assert all(one == told[0] for one in told), told
    kept = RunStore(databases[0], utc_now)
    assert kept.decisions(run.id, 50) == tuple(told[0].values())
    assert kept.standing(run.id).version == 12
    assert kept.standing(run.id).state.last_window == 11
