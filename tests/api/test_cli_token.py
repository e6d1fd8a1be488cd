"""`trimtab token`: tokens are made, listed and ended beside the service, and shown once."""

import json
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta, timezone

import pytest
from command_line import trimtab

from api.database import open_database, utc_now
from api.token_store import TokenStore
from api.tokens import FORM


@pytest.fixture
def tokens(capsys, tmp_path):
    """A function that runs `trimtab token …` on a database of its own."""
    url = f"sqlite:///{tmp_path}/t.db"
    open_database(url).close()
    return lambda command, *arguments: trimtab(capsys, "token", command, *arguments, "--database-url", url)


def test_a_new_token_alone_is_on_stdout_so_that_scripts_can_take_it(tokens):
    made = tokens("create", "ci", "--role", "submit", "--role", "report")
    assert made.code == 0 and FORM.fullmatch(made.out.strip())
    assert "not shown again" in made.err and made.out.strip() not in made.err


def test_json_says_all_of_it(tokens):
    made = json.loads(tokens("create", "job", "--role", "report", "--run", "r", "--expires", "30d", "--json").out)
    assert (made["name"], made["roles"], made["run"]) == ("job", ["report"], "r")
    assert FORM.fullmatch(made["token"])[1] == made["id"]
    left = datetime.fromisoformat(made["expires_at"].replace("Z", "+00:00")) - datetime.now(timezone.utc)
    assert timedelta(days=29, hours=23) < left < timedelta(days=30)


def test_the_list_shows_no_secret_and_what_has_become_of_each(tokens):
    secret = tokens("create", "old", "--role", "read").out.strip().split("_")[2]
    tokens("create", "new", "--role", "read", "--expires", "2w")
    assert tokens("revoke", "old").code == 0
    listed = tokens("list")
    assert "revoked" in listed.out and "valid until" in listed.out and secret not in listed.out
    items = json.loads(tokens("list", "--json").out)["items"]
    assert [(item["name"], item["revoked_at"] is None) for item in items] == [("old", False), ("new", True)]
    assert "digest" not in items[0] and "token" not in items[0]


def test_a_name_may_be_used_again_and_then_only_an_id_or_the_last_one_left_revokes(tokens):
    first, second = (json.loads(tokens("create", "x", "--role", "read", "--json").out)["id"] for _ in range(2))
    refused = tokens("revoke", "x")
    assert refused.code == 2 and first in refused.err and second in refused.err
    assert tokens("revoke", first).code == 0
    assert json.loads(tokens("revoke", "x", "--json").out)["id"] == second
    again = json.loads(tokens("revoke", first, "--json").out)
    assert again["id"] == first and again["revoked_at"] is not None


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["create", "x"], "--role"),
        (["create", "x", "--role", "boss"], "--role"),
        (["create", "", "--role", "read"], "NAME"),
        (["create", "x", "--role", "report", "--run", ""], "--run"),
        (["create", "x", "--role", "read", "--run", "r"], "--run"),
        (["create", "x", "--role", "report", "--role", "read", "--run", "r"], "--run"),
        (["create", "x", "--role", "read", "--expires", "soon"], "--expires"),
        (["create", "x", "--role", "read", "--expires", "0d"], "--expires"),
        (["create", "x", "--role", "read", "--expires", "-1d"], "--expires"),
        (["revoke", "nobody"], "nobody"),
    ],
)
def test_what_cannot_be_is_one_line_that_names_the_option(tokens, arguments, named):
    result = tokens(*arguments)
    assert (result.code, result.out) == (2, "")
    assert named in result.err and result.err.count("\n") == 1


def test_a_revoked_token_stays_known_as_revoked(tokens, tmp_path):
    made = json.loads(tokens("create", "x", "--role", "read", "--json").out)
    tokens("revoke", made["id"])
    database = open_database(f"sqlite:///{tmp_path}/t.db")
    assert TokenStore(database, utc_now).find(made["id"]).token.fault(utc_now()) == "this token was revoked"
    database.close()


@pytest.mark.parametrize("arguments", [["list"], ["create", "x", "--role", "read"], ["revoke", "x"]])
def test_a_mistyped_path_makes_no_database(capsys, tmp_path, arguments):
    result = trimtab(capsys, "token", *arguments, "--database-url", f"sqlite:///{tmp_path}/typo.db")
    assert result.code == 2 and "typo.db has no tables of Trimtab; trimtab serve or" in result.err
    assert not list(tmp_path.iterdir())


def test_tables_of_another_version_are_left_as_they_are(capsys, tmp_path):
    url = f"sqlite:///{tmp_path}/t.db"
    open_database(url).close()
    with closing(sqlite3.connect(tmp_path / "t.db")) as file, file:
        file.execute("UPDATE alembic_version SET version_num = '0001'")
    result = trimtab(capsys, "token", "list", "--database-url", url)
    assert result.code == 2 and "revision 0001, not" in result.err


def test_in_a_narrow_terminal_the_list_keeps_the_ids_by_which_tokens_are_revoked(tokens, monkeypatch):
    create = ("create", "alice-of-the-team", "--role", "submit", "--role", "report", "--expires", "30d", "--json")
    made = [json.loads(tokens(*create).out)["id"] for _ in range(4)]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    listed = tokens("list").out
    assert all(token_id in listed for token_id in made)
