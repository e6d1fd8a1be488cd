"""The revision of best plans on a database from before: lists show the best plans of searches that ended long ago."""

import runpy

from alembic import command
from alembic.config import Config
from invented_searches import TINY_REQUEST, instant
from service_in_process import running
from sqlalchemy import create_engine

from api.database import MIGRATIONS, open_database

(REVISION,) = MIGRATIONS.glob("versions/*_best_plans.py")
BEFORE = runpy.run_path(str(REVISION))["down_revision"]


def go_back(url):
    """To the revision before; what is there stays."""
    config, engine = Config(), create_engine(url)
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, BEFORE)
    engine.dispose()


def listed(url, *requests):
    """What a service on this database lists after it has answered the requests."""
    database = open_database(url)
    with running(database, instant) as client:
        for request in requests:
            client.post("/v1/searches", json=request, headers={"Prefer": "wait=30"})
        items = client.get("/v1/searches").json()["items"]
    database.close()
    return items


def test_searches_from_before_know_their_best_plan(tmp_path):
    url = f"sqlite:///{tmp_path}/trimtab.db"
    told = listed(url, TINY_REQUEST)
    assert told[0]["best_plan_summary"] and told[0]["best_step_time_s"] > 0
    go_back(url)
    assert listed(url) == told
