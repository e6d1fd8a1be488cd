import subprocess
import sys
import zipfile

import pytest
from service_process import ROOT

SCRIPT = """
import sys
import time
sys.path.insert(0, sys.argv[1])
import api
assert api.__file__.startswith(sys.argv[1]), api.__file__
from fastapi.testclient import TestClient
from api.app import create_app
from api.database import open_database
from api.settings import Settings
from planner.search import search
database = open_database("sqlite:///from-wheel.db")
with TestClient(create_app(Settings(allowed_hosts=["testserver"]), database, search)) as client:
    end = time.monotonic() + 30
    while not client.get("/readyz").is_success:
        assert time.monotonic() < end, client.get("/readyz").text
        time.sleep(0.05)
    assert "swagger-ui" in client.get("/docs").text
    assert "Plan the parallelism" in client.get("/").text
    for name in ("trimtab.css", "trimtab.js", "trimtab.svg"):
        assert client.get(f"/assets/{name}").is_success
database.close()
"""


def test_the_installed_service_has_its_migrations_and_pages(tmp_path):
    pytest.importorskip("hatchling", reason="building a wheel without network needs hatchling installed")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "installed")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
