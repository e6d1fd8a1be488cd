"""Lines of workers and deciders are as the service's own: JSON where it was asked for, and without secrets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_deciders import window

from api.database import open_database

ROOT = Path(__file__).parents[2]
WORKER = """
from invented_searches import breaks
from test_leases import CLUSTER, MODEL, REQUEST
from api.executors.choice import executor_of
from api.settings import Settings
from api.values import SearchJob

executor = executor_of(Settings(workers=1, log_format="json"), breaks)
executor.start()
job = SearchJob(id="17", model=MODEL, cluster=CLUSTER, training=REQUEST.training, options=REQUEST.options)
print(executor.submit(job, lambda *_: None).result(60))
executor.close()
"""
DECIDER = """
import asyncio, sys
from invented_deciders import tells_a_password
from api.deciders import Deciders

async def ask():
    url, window = sys.argv[1:]
    deciders = Deciders(url, 1, 10, 2**20, "json", tells_a_password)
    deciders.start()
    print(await deciders.decide("run-17", window.encode()))
    await deciders.close()

asyncio.run(ask())
"""


@pytest.mark.parametrize(
    ("script", "logger", "said"),
    [(WORKER, "api.executors.attempt", "search 17"), (DECIDER, "invented_deciders", "a window of run-17")],
)
def test_a_process_that_the_service_started_logs_as_it_does(tmp_path, script, logger, said):
    url = f"sqlite:///{tmp_path}/trimtab.db"
    open_database(url).close()
    ended = subprocess.run(
        [sys.executable, "-c", script, url, json.dumps(window(0))],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests" / "api")))},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (line,) = (json.loads(line) for line in ended.stderr.splitlines())
    assert line["logger"] == logger and said in line["message"]
    assert "hush" not in ended.stderr
