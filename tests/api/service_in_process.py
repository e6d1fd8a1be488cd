"""A service in the process of the test."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi.testclient import TestClient

from api.app import create_app
from api.database import Database
from api.settings import Settings


@contextmanager
def running(database: Database, search, **settings: object) -> Iterator[TestClient]:
    app = create_app(
        Settings(**{"workers": 2, "deciders": 1, "allowed_hosts": ["testserver"], **settings}), database, search
    )
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def until_ready(client: TestClient, seconds: float = 30.0) -> None:
    """Wait for its deciders, which come after the service itself."""
    end = time.monotonic() + seconds
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < end, client.get("/readyz").text
        time.sleep(0.02)
