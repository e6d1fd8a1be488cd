"""A service in this process: real database file, real worker processes, and the search that a test asks for."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import invented_searches
import pytest
from fastapi.testclient import TestClient
from service_in_process import running

from api.database import Database, open_database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(f"sqlite:///{tmp_path}/trimtab.db")
    yield opened
    opened.close()


Serve = Callable[..., TestClient]


@pytest.fixture
def serve(database: Database) -> Iterator[Serve]:
    """A function that starts a service with the given search and settings, and returns its client."""
    with ExitStack() as stack:

        def start(search=invented_searches.instant, **settings: object) -> TestClient:
            return stack.enter_context(running(database, search, **settings))

        yield start


@pytest.fixture
def client(serve: Serve) -> TestClient:
    """A service whose searches succeed at once."""
    return serve()
