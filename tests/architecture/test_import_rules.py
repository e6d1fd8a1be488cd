"""The import rules hold, and each of them catches the import that it is there for."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from source_tree import PACKAGES, ROOT

LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")


def _lint(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LINT_IMPORTS, "--no-cache"], cwd=directory, capture_output=True, text=True, timeout=120, check=False
    )


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.fixture
def empty_house(tmp_path: Path) -> Path:
    """All packages of the house with nothing in them, under the rules of the real one."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        for source in (ROOT / package).rglob("__init__.py"):
            target = tmp_path / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
    return tmp_path


def test_imports_of_the_house_point_down():
    result = _lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"Contracts: \d+ kept, 0 broken", _plain(result.stdout))


def test_a_house_without_imports_keeps_all_rules(empty_house):
    result = _lint(empty_house)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("importer", "imports"),
    [
        ("planner/spec", "planner.cost"),
        ("planner/cost", "planner.search"),
        ("planner/search", "planner.online"),
        ("planner/view", "planner.search"),
        ("planner/export", "planner.search"),
        ("planner/export", "profiles"),
        ("planner", "profiles"),
        ("profiles", "runtime"),
        ("runtime", "api"),
        ("runtime", "planner.search"),
        ("runtime", "planner.view"),
        ("runtime", "planner.export"),
        ("planner/cost", "torch"),
        ("profiles", "torch"),
        ("api", "torch"),
        ("planner/online", "fastapi"),
        ("planner/online/placement", "planner.online.recorded"),
        ("runtime", "sqlalchemy"),
        ("planner/cost", "pulp"),
        ("planner/export", "pulp"),
    ],
)
def test_a_wrong_import_breaks_a_rule(empty_house, importer, imports):
    (empty_house / importer / "intruder.py").write_text(f"import {imports}\n")
    result = _lint(empty_house)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{importer.replace('/', '.')}.intruder -> {imports}" in _plain(result.stdout)
