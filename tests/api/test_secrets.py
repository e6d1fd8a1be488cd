"""Secrets stay out of everything that is written down: log lines of each form, tracebacks, answers, settings."""

import json
import logging
from logging.config import DictConfigurator

import pytest
from command_line import trimtab
from invented_searches import TINY_REQUEST
from service_process import service
from tokens_in_store import bearer, token

from api.access_guard import COOKIE
from api.database import open_database
from api.logs import hidden_secrets, settings

SECRET = "5ec2e7" * 10 + "abcd"
TOKEN = f"ttk_0123456789ab_{SECRET}"
HUSH = "postgresql+psycopg://me:hush!hush@db/x"
IN_QUERY = "postgresql+psycopg://db/x?user=me&password=hush!hush&sslpassword=hush&connect_timeout=3"


def line(form, message, *args, error=None):
    """What the handler writes for one record."""
    configured = DictConfigurator(settings(form))
    configured.config["formatters"][form] = configured.configure_formatter(configured.config["formatters"][form])
    configured.config["filters"] = {}
    handler = configured.configure_handler({**configured.config["handlers"]["stderr"], "filters": []})
    info = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord("x", logging.ERROR, "x.py", 1, message, args, info)
    record.correlation_id = "-"
    return handler.format(record)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_never_has_a_secret_whatever_brought_it_there(form):
    lines = [
        line(form, f"token {TOKEN} came"),
        line(form, '%s - "%s %s"', "127.0.0.1", "GET", f"/v1/runs?token={TOKEN}"),
        line(form, "cannot open %s", HUSH),
        line(form, "broken", error=ValueError(f"{TOKEN} {HUSH}")),
        line(form, f'cannot open "{IN_QUERY}"'),
    ]
    for each in lines:
        assert SECRET not in each and "hush" not in each
    assert "0123456789ab" in lines[0], "the id stays, so that one knows which to revoke"
    if form == "json":
        assert all(json.loads(each) for each in lines)


def test_what_is_no_secret_stays():
    text = "http://planner:8000/v1/runs?after=me@x ttk_ ttk_123_456 a:b@c sqlite:////tmp/x.db 12:30 user@host"
    assert hidden_secrets(text) == text


def test_nothing_that_a_client_brings_as_a_token_is_logged_or_answered(tmp_path):
    database = open_database(f"sqlite:///{tmp_path}/trimtab.db")
    text = token(database, "submit")
    database.close()
    wrong = f"{text[:-4]}0000"
    answers = []
    with service(tmp_path, "--workers", "1", "--access", "tokens") as (_, client):
        for given in (text, wrong):
            client.cookies.clear()
            ways = (
                {"headers": bearer(given)},
                {"headers": {"Cookie": f"{COOKIE}={given}"}},
                {"params": {"token": given}},
            )
            answers += [client.get("/v1/runs", **way) for way in ways]
            encoded = given.replace("_", "%5F")
            addresses = (given, encoded, encoded.replace("%", "%25"), f"?after=a%20b&name={encoded}")
            answers += [client.get(f"/v1/runs/{address}") for address in addresses]
            answers.append(client.post("/sign-in", data={"token": given, "next": "/x"}))
            answers.append(client.post("/v1/searches", json=TINY_REQUEST | {"model": given}, headers=bearer(given)))
    assert [answer.status_code for answer in answers] == [
        *(200, 200, 401, *[401] * 4, 303, 422),
        *(401, 401, 401, *[401] * 4, 401, 401),
    ]
    logged = "".join(log.read_text() for log in tmp_path.glob("service-*.log"))
    assert "/v1/runs" in logged
    for given in (text, wrong):
        secret = given.split("_")[2]
        assert secret not in logged
        told = [answer for answer in answers if secret in answer.text]
        assert not [answer for answer in told if answer.status_code == 401]


@pytest.mark.parametrize(
    "url", [HUSH, IN_QUERY, "postgresql://me:hush@127.0.0.1:9/x", "nonsense:hush", "oracle://me:hush@h/x"]
)
def test_a_database_that_cannot_be_opened_keeps_its_password(capsys, url):
    for command in (["serve", "--port", "0"], ["token", "list"]):
        result = trimtab(capsys, *command, "--database-url", url)
        assert result.code == 2 and "database_url" in result.err
        assert "hush" not in result.err + result.out


@pytest.mark.parametrize("url", [HUSH, IN_QUERY])
def test_settings_are_printed_without_the_password(capsys, monkeypatch, url):
    monkeypatch.setenv("TRIMTAB_DATABASE_URL", url)
    said = trimtab(capsys, "config", "--json").out + trimtab(capsys, "config").out
    assert "hush" not in said and "db/x" in said
    assert ("connect_timeout=3" in said) == (url == IN_QUERY)
