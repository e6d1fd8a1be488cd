"""Migrations, from the first revision on, on both databases: what was kept is kept, and read as before."""

import subprocess
import sys

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from service_process import ROOT
from sqlalchemy import text
from test_stores import CLUSTER, MODEL, REQUEST, SHORTLIST, Clock, Numbers, window

from api.database import MIGRATIONS, newest_revision, open_database
from api.engines import PURPOSE, Writes, make_engine
from api.run_store import RunStore
from api.search_queue import SearchQueue
from api.search_store import SearchStore
from api.tables import Table
from api.values import SearchState
from planner.online import begin, decide
from planner.spec.errors import InputError
from planner.spec.parse import parse
from planner.spec.request import SearchRequest
from planner.spec.run import Run, RunContext

CONFIG = Config()
CONFIG.set_main_option("script_location", str(MIGRATIONS))
REVISIONS = [revision.revision for revision in ScriptDirectory.from_config(CONFIG).walk_revisions()][::-1]
TIME = "2026-01-01 00:00:00"


@pytest.fixture
def empty_url(request, tmp_path):
    """The URL of a database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/trimtab.db"
    return request.getfixturevalue("postgres_url")


on_both = pytest.mark.parametrize("empty_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def engine(empty_url):
    made = make_engine(empty_url).execution_options(**{PURPOSE: Writes.MIGRATION})
    yield made
    made.dispose()


def migrate(engine, how, revision):
    with engine.begin() as connection:
        CONFIG.attributes["connection"] = connection
        how(CONFIG, revision)


def insert(connection, table, **values):
    names = ", ".join(f'"{name}"' for name in values)
    places = ", ".join(f":{name}" for name in values)
    connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({places})"), values)


def fill_the_first_revision(connection):
    """A search that succeeded, one that ran and one that waits, and a run with one window: by plain SQL."""
    request = {
        "request_hash": "h",
        "request": REQUEST.model_dump_json(),
        "model": MODEL.model_dump_json(),
        "cluster": CLUSTER.model_dump_json(),
        "created_at": TIME,
    }
    new = {"progress": 0.0, "message": "", "deaths": 0}
    best = SHORTLIST.plans[0].plan.id
    ended = {"finished_at": TIME, "best_plan_id": best, "shortlist": SHORTLIST.model_dump_json()}
    insert(connection, "searches", id="s1", state="succeeded", idempotency_key="k", **request, **new, **ended)
    insert(connection, "searches", id="s2", state="running", started_at=TIME, **request, **new)
    insert(connection, "searches", id="s3", state="queued", **request, **new)
    for entry in SHORTLIST.plans:
        insert(connection, "plans", search_number=1, rank=entry.rank, plan_id=entry.plan.id)
    context = RunContext(
        model=MODEL, cluster=CLUSTER, training=REQUEST.training, plans=tuple(entry.plan for entry in SHORTLIST.plans)
    )
    first = begin(context)
    fields = {"plan_id": first.plan_id, "placement": first.placement, "context": context}
    run = Run(id="r1", name="job", search_id="s1", created_at="2026-01-01T00:00:00Z", **fields)
    decision, state = decide(window(0), first, context)
    run_row = {"name": "job", "search_number": 1, "created_at": TIME, "run": run.model_dump_json()}
    insert(connection, "runs", id="r1", version=1, state=state.model_dump_json(), **run_row)
    of_run = {"run_number": 1, "index": 0}
    insert(connection, "windows", **of_run, received_at=TIME, window=window(0).model_dump_json())
    insert(connection, "decisions", **of_run, decided_at=TIME, decision=decision.model_dump_json())
    return run, decision, state


@on_both
def test_what_the_first_revision_kept_is_read_after_each_step_to_the_newest(empty_url, engine):
    migrate(engine, command.upgrade, REVISIONS[0])
    with engine.begin() as connection:
        run, decision, state = fill_the_first_revision(connection)
    for revision in REVISIONS[1:]:
        migrate(engine, command.upgrade, revision)
    database = open_database(empty_url)
    searches, runs = SearchStore(database, Clock(), Numbers()), RunStore(database, Clock())
    assert searches.shortlist("s1") == SHORTLIST
    assert [search.id for search in searches.page(10)] == ["s3", "s2", "s1"]
    assert (runs.run("r1"), runs.standing("r1").state, runs.standing("r1").version) == (run, state, 1)
    assert (runs.windows("r1", 10), runs.decisions("r1", 10)) == ((window(0),), (decision,))
    queue = SearchQueue(database, Clock(), "h1", lease_s=10.0)
    queue.take_back()
    assert searches.search("s2").state is SearchState.QUEUED, "what ran without a lease is anybody's"
    assert queue.take_next().id == "s2"
    second, state = decide(window(1), state, run.context)
    assert runs.record("r1", 1, window(1), second, state), "numbers go on where they were"
    database.close()


@on_both
def test_searches_from_before_know_what_people_call_them(empty_url, engine):
    device = CLUSTER.device.model_dump(mode="json")
    groups = [{"nodes": 1, "devices_per_node": 8, "device": name} for name in ("a100-sxm-80g", "v100-sxm2-32g")]
    asked = [
        {},
        {"model": {"preset": "mixtral-8x7b"}, "cluster": {"groups": groups}},
        {"model": {"hf_config": {"_name_or_path": "house/" * 99}}, "cluster": {"groups": groups * 16}},
        {"model": {"hf_config": {"model_type": 7}}, "cluster": {"nodes": 1, "devices_per_node": 4, "device": device}},
    ]
    requests = [parse(SearchRequest, REQUEST.model_dump(exclude_unset=True) | changes) for changes in asked]
    database = open_database(empty_url)
    searches = SearchStore(database, Clock(), Numbers())
    unreadable, *_ = [searches.add(request, MODEL, CLUSTER).id for request in [*requests[:1], *requests]]
    named = {one.id: (one.model_name, one.cluster_name) for one in searches.glances(10)}
    migrate(engine, command.downgrade, "0007")
    with engine.begin() as connection:
        values = {"id": unreadable, "other": '{"model": "tomorrow"}'}
        connection.execute(text("UPDATE searches SET request = :other WHERE id = :id"), values)
    migrate(engine, command.upgrade, "head")
    found = {one.id: (one.model_name, one.cluster_name) for one in searches.glances(10)}
    assert found == named | {unreadable: (None, None)}
    database.close()


@on_both
def test_each_step_goes_back_and_forth_with_all_that_it_finds(engine):
    migrate(engine, command.upgrade, REVISIONS[0])
    with engine.begin() as connection:
        fill_the_first_revision(connection)
    migrate(engine, command.upgrade, "head")
    migrate(engine, command.downgrade, REVISIONS[0])
    migrate(engine, command.upgrade, "head")
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM searches")) == 3
        assert connection.scalar(text("SELECT count(*) FROM windows")) == 1
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []
    migrate(engine, command.downgrade, "base")
    with engine.connect() as connection:
        assert MigrationContext.configure(connection).get_current_revision() is None


@on_both
def test_the_migrations_make_exactly_the_tables(empty_url, engine):
    open_database(empty_url).close()
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []


@on_both
def test_a_database_of_a_newer_program_is_refused(empty_url, engine):
    open_database(empty_url).close()
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(InputError, match=r"database_url: .*9999.* newer Trimtab.*upgrade"):
        open_database(empty_url)


OPEN = "import sys; from api.database import open_database; input(); open_database(sys.argv[1]).close()"


@on_both
def test_services_that_start_at_once_on_an_empty_database_all_come_up(empty_url, engine):
    begun = [
        subprocess.Popen([sys.executable, "-c", OPEN, empty_url], cwd=ROOT, text=True, stdin=subprocess.PIPE)
        for _ in range(4)
    ]
    for process in begun:
        process.stdin.write("\n")
        process.stdin.close()
    assert [process.wait(120) for process in begun] == [0] * 4
    with engine.connect() as connection:
        assert MigrationContext.configure(connection).get_current_revision() == REVISIONS[-1]


def test_the_newest_revision_is_known_without_alembic():
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert newest_revision() == ScriptDirectory.from_config(config).get_current_head()
