"""The tests of robustness start the service with the same code as the tests of the service itself."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))

import invented_searches
import pytest
from seeded import seeded
from service_in_process import running

from api.database import open_database


@pytest.fixture(scope="session")
def service(tmp_path_factory):
    """A service that has answered a search, a run and its windows: its client, and the ids of these things."""
    database = open_database(f"sqlite:///{tmp_path_factory.mktemp('robust')}/trimtab.db")
    with running(database, invented_searches.instant) as client:
        yield client, seeded(client)
    database.close()
