"""Requests that are open when the service ends: answered, in the form of all errors."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import httpx
import invented_deciders
from invented_searches import instant
from service_in_process import until_ready
from test_deciders import new_run, until, window

from api import deciders, server
from api.app import create_app
from api.settings import Settings

UPLOAD = b"POST /v1/searches HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"


@contextmanager
def served(database, work, monkeypatch):
    """A client of a real server in a thread, and the server; its deciders do `work`."""
    monkeypatch.setattr(deciders.Deciders.__init__, "__defaults__", (work,))
    monkeypatch.setattr(deciders, "EXIT_S", 0.1)
    monkeypatch.setattr(server, "GRACE_S", 1)
    app = create_app(Settings(workers=1, deciders=1), database, instant, lambda: orderly.should_exit)
    orderly = server.OrderlyServer(app, ())
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=orderly.run, args=([listener],))
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=30) as client:
            until(lambda: orderly.started)
            until_ready(client)
            yield client, orderly
    finally:
        orderly.should_exit = True
        thread.join()


def test_windows_that_wait_when_the_service_ends_are_told_to_come_again(database, monkeypatch, caplog, tmp_path):
    work = partial(invented_deciders.waits_for, str(tmp_path / "never"))
    with served(database, work, monkeypatch) as (client, orderly), ThreadPoolExecutor(6) as pool:
        path = f"/v1/runs/{new_run(client)['id']}/windows"
        asking = [pool.submit(client.post, path, json=window(index)) for index in range(6)]
        until(lambda: "trimtab_windows_waiting 6.0" in client.get("/metrics").text)
        orderly.should_exit = True
        answers = [each.result() for each in asking]
    assert {answer.status_code for answer in answers} == {503}
    assert {answer.headers["content-type"] for answer in answers} == {"application/problem+json"}
    assert {answer.json()["detail"] for answer in answers} == {"the service is ending; ask again"}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
    assert not [record for record in caplog.records if record.exc_info]


def test_an_upload_that_is_not_over_when_the_service_ends_is_told_to_come_again(database, monkeypatch, caplog):
    with served(database, deciders.work, monkeypatch) as (client, orderly):
        address = client.base_url.host, client.base_url.port
        with socket.create_connection(address, timeout=30) as connection, connection.makefile("rb") as answer:
            connection.sendall(UPLOAD)
            time.sleep(0.3)
            orderly.should_exit = True
            assert answer.readline().split()[1] == b"503"
    assert not [record for record in caplog.records if record.exc_info]
