"""A service in this process: real database file, real worker processes, and the search that a test asks for."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import invented_searches
import pytest
from command_line import trimtab
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
