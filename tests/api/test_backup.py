"""Backups: a copy of one moment, made while others write, that opens as a database of its own."""

import json
import os
import subprocess
import threading

import pytest
from postgres_server import name_of
from test_stores import Clock, Numbers, begun, queue, record, searches  # noqa: F401

from api.cli import run as run_command
from api.database import newest_revision, open_database
from api.engines import PAGE_BYTES
from api.run_store import RunStore
from api.search_store import SearchStore


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def runs(database, clock):
    return RunStore(database, clock)


@pytest.fixture
def run(searches, queue, runs):  # noqa: F811
    run = begun(searches, queue, runs)
    record(runs, run.id, 0)
    return run


def contents(url):
    database = open_database(url)
    kept = SearchStore(database, Clock(), Numbers()), RunStore(database, Clock())
    found = (kept[0].page(10), kept[1].windows("r1", 100), kept[1].decisions("r1", 100), kept[1].standing("r1"))
    database.close()
    return found


def test_a_file_is_copied_whole_while_the_service_writes(database_url, runs, run, tmp_path, capsys):
    stop, copy = threading.Event(), tmp_path / "copy.db"

    def go_on():
        index = 0
        while not stop.is_set():
            index += 1
            record(runs, run.id, index)

    writer = threading.Thread(target=go_on)
    writer.start()
    code = run_command(["database", "backup", str(copy), "--database-url", database_url])
    stop.set()
    writer.join()
    assert code == 0 and "checked" in capsys.readouterr().out
    found, windows, decisions, standing = contents(f"sqlite:///{copy}")
    assert len(windows) == len(decisions) == standing.version >= 1 and len(found) == 1
    assert [decision.window for decision in decisions] == [window.index for window in windows]
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_backup_overwrites_nothing_and_needs_a_database(database_url, run, tmp_path, capsys):
    (tmp_path / "there").write_text("precious")
    for target, url in (("there", database_url), ("new", f"sqlite:///{tmp_path}/none.db"), ("new", "postgresql://h/d")):
        assert run_command(["database", "backup", str(tmp_path / target), "--database-url", url]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [said in line for said, line in zip(("there already", "is no file", "pg_dump"), lines, strict=True)] == [
        True
    ] * 3
    assert (tmp_path / "there").read_text() == "precious" and not (tmp_path / "new").exists()


def test_a_source_that_is_no_database_or_is_damaged_is_named_and_not_the_copy(database_url, run, tmp_path, capsys):
    (tmp_path / "none.db").write_text("no database" * 1000)
    open_database(f"sqlite:///{tmp_path}/damaged.db").close()
    with (tmp_path / "damaged.db").open("r+b") as file:
        file.seek(PAGE_BYTES)
        file.write(b"\xff" * PAGE_BYTES)
    for source in ("none.db", "damaged.db"):
        url = f"sqlite:///{tmp_path / source}"
        assert run_command(["database", "backup", str(tmp_path / "new"), "--database-url", url]) == 2
        told = capsys.readouterr().err
        assert "database_url" in told and source in told and "new" not in told, told
        assert not list(tmp_path.glob("new*"))


def test_a_copy_that_cannot_be_written_is_named(database_url, run, tmp_path, capsys):
    target = tmp_path / "no-folder" / "new"
    assert run_command(["database", "backup", str(target), "--database-url", database_url]) == 2
    assert f"FILE: {target} cannot be written" in capsys.readouterr().err


def test_both_commands_tell_machines_in_json(database_url, run, tmp_path, capsys):
    copy = tmp_path / "copy.db"
    assert run_command(["database", "backup", str(copy), "--database-url", database_url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(copy), "bytes": copy.stat().st_size}
    assert run_command(["database", "upgrade", "--database-url", f"sqlite:///{copy}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"database": str(copy), "revision": newest_revision()}


def test_tables_are_brought_to_this_version_by_a_command(tmp_path, capsys):
    assert run_command(["database", "upgrade", "--database-url", f"sqlite:///{tmp_path}/new.db"]) == 0
    assert "revision 00" in capsys.readouterr().out


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_dump_of_postgresql_is_restored_into_a_new_database(database_url, run, postgres, postgres_url, tmp_path):
    before, dump = contents(database_url), tmp_path / "dump"
    server = {**os.environ, "PGHOST": str(postgres.folder), "PGUSER": "trimtab"}
    for command in (
        ["pg_dump", "--format=custom", "--file", dump, name_of(database_url)],
        ["pg_restore", "--no-owner", "--exit-on-error", "--dbname", name_of(postgres_url), dump],
    ):
        subprocess.run([postgres.programs / command[0], *command[1:]], env=server, check=True)
    assert contents(postgres_url) == before
