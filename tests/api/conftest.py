"""A service in this process: real database file, real worker processes, and the search that a test asks for."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import invented_searches
import pytest
from command_line import trimtab
from fastapi.testclient import TestClient
from missing import without
from postgres_server import PostgresServer, binaries, name_of, postgres_server
from service_in_process import running

from api.database import Database, open_database


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What is marked `both_databases` runs on each, where it uses a database."""
    if metafunc.definition.get_closest_marker("both_databases") and "database_url" in metafunc.fixturenames:
        metafunc.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server, one for each test process."""
    programs = binaries()
    if programs is None:
        without("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    with postgres_server(programs) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres: PostgresServer) -> str:
    """The name of a database that has the tables: a copy is quicker than the migrations."""
    url = postgres.new_database()
    open_database(url).close()
    return name_of(url)


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """The URL of an empty database on PostgreSQL."""
    url = postgres.new_database()
    yield url
    postgres.drop(url)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database with tables and nothing in them, SQLite unless a test is marked `both_databases`."""
    if getattr(request, "param", "sqlite") == "sqlite":
        yield f"sqlite:///{tmp_path}/trimtab.db"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.new_database(request.getfixturevalue("postgres_template"))
    yield url
    server.drop(url)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = open_database(database_url)
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


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A model file for the command line."""
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(invented_searches.TINY_MODEL))
    return file


@pytest.fixture
def shortlist_file(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """What `trimtab plan` found for that model on four devices."""
    file = tmp_path / "shortlist.json"
    training = ("--global-batch-size", 8, "--sequence-length", 128)
    assert trimtab(capsys, "plan", tiny, "1x4:a100-sxm-80g", *training, "--output", file).code == 0
    return file
