"""The stores' promises, on both databases: kept over a restart, all or nothing, one winner."""

import threading
from datetime import datetime, timedelta, timezone

import invented_searches
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, StatementError

from api.database import open_database
from api.problems import status_problem
from api.run_store import RunStore
from api.search_queue import SearchQueue
from api.search_store import SearchStore
from api.values import SearchState
from planner.online import begin, decide
from planner.spec.errors import ConflictError, NotFoundError, UnavailableError
from planner.spec.request import SearchRequest
from planner.spec.run import Run, RunContext
from planner.spec.window import Window
from profiles import resolve_cluster, resolve_model

pytestmark = pytest.mark.both_databases
REQUEST = SearchRequest.model_validate(invented_searches.TINY_REQUEST)
MODEL, CLUSTER = resolve_model(REQUEST.model), resolve_cluster(REQUEST.cluster)
SHORTLIST = invented_searches.instant(MODEL, CLUSTER, REQUEST.training, REQUEST.options, lambda *_: None)
BEGIN = datetime(2026, 1, 1, tzinfo=timezone.utc)


class Clock:
    """Each look at it is a second later."""

    def __init__(self):
        self.now = BEGIN

    def __call__(self):
        self.now += timedelta(seconds=1)
        return self.now


class Numbers:
    """Ids that tests can foresee: s1, s2, …"""

    def __init__(self):
        self.last = 0

    def __call__(self):
        self.last += 1
        return f"s{self.last}"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def searches(database, clock):
    return SearchStore(database, clock, Numbers())


@pytest.fixture
def queue(database, clock):
    return SearchQueue(database, clock, "h1", lease_s=1000.0)


@pytest.fixture
def runs(database):
    return RunStore(database, Clock())


def add(searches, length=128, **more):
    training = REQUEST.training.model_copy(update={"sequence_length": length})
    return searches.add(REQUEST.model_copy(update={"training": training}), MODEL, CLUSTER, **more)


def done(searches, queue):
    search = add(searches)
    assert queue.take_next().id == search.id
    queue.succeed(search.id, SHORTLIST)
    return search.id


def begun(searches, queue, runs, run_id="r1"):
    context = RunContext(
        model=MODEL, cluster=CLUSTER, training=REQUEST.training, plans=tuple(e.plan for e in SHORTLIST.plans)
    )
    state = begin(context)
    search_id = done(searches, queue)
    run = Run(
        id=run_id,
        name="job",
        search_id=search_id,
        created_at=BEGIN,
        plan_id=state.plan_id,
        placement=state.placement,
        context=context,
    )
    runs.begin(run, state)
    return run


def window(index):
    return Window(index=index, first_step=10 * index, num_steps=10, tokens=((900, 50, 30, 20), (50, 900, 30, 20)))


def record(runs, run_id, index):
    standing = runs.standing(run_id)
    decision, state = decide(window(index), standing.state, standing.context)
    return runs.record(run_id, standing.version, window(index), decision, state), decision


def test_searches_are_taken_in_order_of_arrival(searches, queue):
    first, second = add(searches), add(searches, length=64)
    assert [queue.take_next().id, queue.take_next().id, queue.take_next()] == [first.id, second.id, None]


def test_two_takers_never_take_the_same_search(searches, queue):
    for number in range(20):
        add(searches, length=8 + number)
    taken = []

    def take():
        while (job := queue.take_next()) is not None:
            taken.append(job.id)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(f"s{number}" for number in range(1, 21))


@pytest.mark.parametrize("column", ["request", "model", "cluster"])
def test_a_search_that_cannot_be_read_has_failed_and_the_next_is_taken(searches, queue, database, column):
    unreadable, after = add(searches).id, add(searches, length=64).id
    with database.writing() as session:
        session.execute(text(f"UPDATE searches SET {column} = :other WHERE id = 's1'"), {"other": '{"of": "tomorrow"}'})
    assert queue.take_next().id == after
    assert queue.held() == {after} and not queue.work_waits()
    state, _, message = searches.marks([unreadable])[unreadable]
    assert state is SearchState.FAILED and "another version of Trimtab" in message
    with database.reading() as session:
        error, finished_at = session.execute(text("SELECT error, finished_at FROM searches WHERE id = 's1'")).one()
    assert '"status":503' in error and finished_at is not None


def test_times_are_utc(searches, queue):
    search = add(searches)
    queue.take_next()
    found = searches.search(search.id)
    assert found.created_at == BEGIN + timedelta(seconds=1)
    assert found.started_at == BEGIN + timedelta(seconds=2)
    assert found.created_at.utcoffset() == timedelta(0)


def test_a_time_without_zone_is_refused(database):
    searches = SearchStore(database, lambda: datetime(2026, 1, 1), Numbers())
    with pytest.raises(StatementError, match="needs a zone"):
        add(searches)


def test_a_job_holds_what_was_asked_for(searches, queue):
    add(searches)
    job = queue.take_next()
    assert (job.model, job.cluster, job.training, job.options) == (MODEL, CLUSTER, REQUEST.training, REQUEST.options)


def test_a_key_finds_the_earlier_search_and_refuses_another_request(searches):
    first = add(searches, key="k")
    assert add(searches, key="k") == first
    other = REQUEST.model_copy(update={"training": REQUEST.training.model_copy(update={"sequence_length": 64})})
    with pytest.raises(ConflictError, match="s1"):
        searches.add(other, MODEL, CLUSTER, key="k")


def test_the_queue_has_an_end(searches):
    add(searches, max_waiting=1)
    with pytest.raises(UnavailableError):
        add(searches, max_waiting=1)


def test_news_of_a_search_that_no_longer_runs_changes_nothing(searches, queue):
    search = add(searches)
    queue.take_next()
    cancelled = searches.cancel(search.id)
    queue.report(search.id, 0.5, "late")
    queue.succeed(search.id, SHORTLIST)
    queue.fail(search.id, status_problem(500, "late"))
    queue.worker_died(search.id, "killed")
    assert searches.search(search.id) == cancelled
    with pytest.raises(NotFoundError):
        searches.found(SHORTLIST.plans[0].plan.id)


def test_only_running_searches_wait_again_when_their_service_ends(searches, queue):
    finished, running, waiting = done(searches, queue), add(searches, length=64).id, add(searches, length=32).id
    queue.take_next()
    queue.report(running, 0.7, "far")
    assert queue.hand_back() == 1
    states = [searches.search(search_id).state for search_id in (finished, running, waiting)]
    assert states == [SearchState.SUCCEEDED, SearchState.QUEUED, SearchState.QUEUED]
    assert searches.search(running).progress == 0
    assert queue.take_next().id == running


def test_after_its_second_death_a_search_has_failed(searches, queue):
    search = add(searches)
    for expected in (SearchState.QUEUED, SearchState.FAILED):
        queue.take_next()
        assert queue.worker_died(search.id, "killed") is expected
    assert searches.search(search.id).error.detail.startswith("killed, twice")


def test_a_plan_is_found_with_the_conditions_of_its_search(searches, queue):
    done(searches, queue)
    found = searches.found(SHORTLIST.plans[1].plan.id)
    assert (found.entry, found.model, found.cluster) == (SHORTLIST.plans[1], MODEL, CLUSTER)


def test_a_window_its_decision_and_the_state_are_kept_together(searches, queue, runs):
    run = begun(searches, queue, runs)
    kept, decision = record(runs, run.id, 0)
    assert kept
    assert runs.answered(run.id, 0) == (1, decision)
    assert runs.windows(run.id, 10) == (window(0),)
    assert runs.standing(run.id).version == 1


def test_version_and_earlier_answer_are_told_together(searches, queue, runs):
    run = begun(searches, queue, runs)
    assert runs.answered(run.id, 0) == (0, None)
    _, decision = record(runs, run.id, 0)
    assert runs.answered(run.id, 0) == (1, decision)
    assert runs.answered(run.id, 1) == (1, None)
    with pytest.raises(NotFoundError):
        runs.answered("nobody", 0)


def test_whoever_decided_on_an_old_state_keeps_nothing(searches, queue, runs):
    run = begun(searches, queue, runs)
    old = runs.standing(run.id)
    record(runs, run.id, 0)
    decision, state = decide(window(1), old.state, old.context)
    assert not runs.record(run.id, old.version, window(1), decision, state)
    assert runs.answered(run.id, 1) == (1, None)
    assert runs.windows(run.id, 10) == (window(0),)


NO_DECISIONS = {
    "sqlite": ["CREATE TRIGGER no_decisions BEFORE INSERT ON decisions BEGIN SELECT RAISE(ABORT, 'no'); END"],
    "postgresql": [
        "CREATE FUNCTION no_decisions() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$",
        "CREATE TRIGGER no_decisions BEFORE INSERT ON decisions FOR EACH ROW EXECUTE FUNCTION no_decisions()",
    ],
}


def test_a_failure_in_the_middle_keeps_nothing(searches, queue, runs, database):
    run = begun(searches, queue, runs)
    standing = runs.standing(run.id)
    decision, state = decide(window(0), standing.state, standing.context)
    with database.writing() as session:
        for statement in NO_DECISIONS[session.get_bind().dialect.name]:
            session.execute(text(statement))
    with pytest.raises(Exception, match="no"):
        runs.record(run.id, standing.version, window(0), decision, state)
    assert runs.standing(run.id) == standing
    assert runs.windows(run.id, 10) == ()


@pytest.mark.parametrize(("table", "time"), [("windows", "received_at"), ("decisions", "decided_at")])
def test_an_index_stands_once_in_a_run(database, searches, queue, runs, table, time):
    run = begun(searches, queue, runs)
    record(runs, run.id, 0)
    columns = f'run_number, "index", {time}, "{table.removesuffix("s")}"'
    with pytest.raises(IntegrityError), database.writing() as session:
        session.execute(text(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {table}"))


def test_everything_is_still_there_when_the_database_is_opened_again(database, searches, queue, runs, database_url):
    run = begun(searches, queue, runs)
    record(runs, run.id, 0)
    waiting = add(searches, length=64, key="k")
    before = (searches.page(10), searches.shortlist(run.search_id), runs.page(10), runs.standing(run.id))
    history = (runs.windows(run.id, 10), runs.decisions(run.id, 10))
    database.close()
    again = open_database(database_url)
    searches, runs = SearchStore(again, Clock(), Numbers()), RunStore(again, Clock())
    queue = SearchQueue(again, Clock(), "h2", lease_s=1000.0)
    assert (searches.page(10), searches.shortlist(run.search_id), runs.page(10), runs.standing(run.id)) == before
    assert (runs.windows(run.id, 10), runs.decisions(run.id, 10)) == history
    assert add(searches, length=64, key="k") == waiting
    assert queue.take_next().id == waiting.id
    again.close()


def test_searches_of_one_state_are_listed_in_pages_of_their_own(searches, queue):
    ended = done(searches, queue)
    waiting = [add(searches, length=length).id for length in (16, 32, 64)]
    queued = SearchState.QUEUED
    assert [search.id for search in searches.page(2, state=queued)] == [waiting[2], waiting[1]]
    assert [search.id for search in searches.page(2, waiting[1], queued)] == [waiting[0]]
    assert [search.id for search in searches.page(9, state=SearchState.SUCCEEDED)] == [ended]
    assert searches.page(9, state=SearchState.FAILED) == ()
