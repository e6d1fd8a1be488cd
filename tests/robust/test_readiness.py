"""Readiness that means it: false whenever no work would be done; liveness stays."""

import time

import invented_searches
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import create_engine

from api.app import create_app
from api.database import Database, open_database
from api.jobs import Jobs
from api.settings import Settings


@pytest.fixture
def database(tmp_path):
    opened = open_database(f"sqlite:///{tmp_path}/trimtab.db")
    yield opened
    opened.close()


def statuses(database, stopping=lambda: False, spoil=lambda: None):
    """(/readyz, /healthz, what /readyz says)."""
    app = create_app(Settings(workers=1, allowed_hosts=["testserver"]), database, invented_searches.instant, stopping)
    with TestClient(app, raise_server_exceptions=False) as client:
        spoil()
        end = time.monotonic() + 30
        while (ready := client.get("/readyz")).status_code == 503 and "decider" in ready.json()["detail"]:
            assert time.monotonic() < end
            time.sleep(0.02)
        alive = client.get("/healthz")
        return ready.status_code, alive.status_code, ready.json().get("detail", "")


def test_a_service_that_works_is_ready(database):
    assert statuses(database) == (200, 200, "")


def test_a_service_that_ends_is_not_ready(database):
    ready, alive, why = statuses(database, stopping=lambda: True)
    assert (ready, alive) == (503, 200) and "ending" in why


def test_a_service_without_dispatcher_is_not_ready(database, monkeypatch):
    monkeypatch.setattr(Jobs, "_dispatch", lambda self: None)
    ready, alive, why = statuses(database)
    assert (ready, alive) == (503, 200) and "dispatcher" in why


def test_a_service_whose_tables_are_gone_is_not_ready(database):
    def drop():
        with database.writing() as session:
            session.connection().exec_driver_sql("DROP TABLE alembic_version")

    ready, alive, why = statuses(database, spoil=drop)
    assert (ready, alive) == (503, 200) and "database" in why


def test_a_service_whose_database_is_away_is_not_ready(tmp_path):
    away = Database(create_engine(f"sqlite:///{tmp_path}/no-such-folder/trimtab.db"))
    ready, alive, why = statuses(away)
    away.close()
    assert (ready, alive) == (503, 200) and "database" in why
