"""`trimtab serve` says at start who may come in, and how the first one does."""

import gc
import json
import re
import socket

import pytest
from command_line import trimtab
from service_process import service
from tokens_in_store import bearer

ELSEWHERE = "127.1"
"""Loopback all the same, so that nobody reaches a test; but no form of it that `serve` knows."""


def told(tmp_path):
    return "".join(log.read_text() for log in sorted(tmp_path.glob("service-*.log")))


def test_off_loopback_the_first_token_is_made_as_serve_says(tmp_path, capsys):
    url = f"sqlite:///{tmp_path}/trimtab.db"
    with service(tmp_path, "--host", ELSEWHERE, "--workers", "1") as (_, client):
        command = re.search(r"make the first: trimtab (token create NAME .*)", told(tmp_path))[1]
        assert client.get("/v1/models").status_code == 401
        text = trimtab(capsys, *command.replace("NAME", "me").split(), "--database-url", url).out.strip()
        answer = client.get("/v1/models", headers=bearer(text))
        assert answer.status_code == 200 and "server" not in answer.headers
    (first,) = tmp_path.glob("service-*.log")
    first.unlink()
    with service(tmp_path, "--host", ELSEWHERE, "--workers", "1"):
        assert "Access: with a token\n" in told(tmp_path)


def test_insecure_is_a_warning_off_loopback(tmp_path):
    with service(tmp_path, "--host", ELSEWHERE, "--workers", "1", "--insecure") as (_, client):
        assert client.get("/v1/models").status_code == 200
    assert "WARNING: open to everybody" in told(tmp_path)


def test_on_loopback_serve_says_that_it_is_open(tmp_path):
    with service(tmp_path, "--workers", "1") as (_, client):
        assert client.get("/v1/models").status_code == 200
    assert "Access: open" in told(tmp_path) and "WARNING: open" not in told(tmp_path)


@pytest.mark.parametrize("host", ["127.0.0.1", ELSEWHERE])
def test_a_service_that_logs_json_writes_nothing_else(tmp_path, host):
    with service(tmp_path, "--host", host, "--workers", "1", "--log-format", "json", "--insecure"):
        pass
    lines = [json.loads(line) for line in told(tmp_path).splitlines()]
    access = [(line["level"], line["message"]) for line in lines if "open to" in line["message"]]
    assert [level for level, _ in access] == ["INFO" if host == "127.0.0.1" else "WARNING"]
    assert any(line["message"].startswith("Database: ") for line in lines)


@pytest.mark.parametrize("options", [["--insecure", "--access", "tokens"], ["--access", "sometimes"]])
def test_options_that_cannot_be_are_refused(capsys, options):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        result = trimtab(capsys, "serve", "--port", taken.getsockname()[1], *options)
    assert result.code == 2 and result.err.count("\n") == 1 and ("insecure" in result.err or "access" in result.err)


def test_an_executor_that_is_not_installed_is_refused_before_anything_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("api.executors.choice.find_spec", lambda name: None)
    url = f"sqlite:///{tmp_path}/trimtab.db"
    result = trimtab(capsys, "serve", "--port", 0, "--database-url", url, "--executor", "dask://127.0.0.1:1")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("trimtab: executor: needs Dask")


def test_an_executor_that_there_is_not_is_told_what_would_be_right(capsys):
    result = trimtab(capsys, "serve", "--executor", "foo")
    assert result.code == 2
    assert result.err == "trimtab: --executor: must be local or dask://HOST:PORT, got 'foo'\n"


def test_a_start_that_fails_leaves_the_collector_of_garbage_as_it_was(capsys):
    assert trimtab(capsys, "serve", "--host", "no.such.host.invalid").code == 2
    assert gc.isenabled()
