"""Requests as no well-behaved client sends them, over a real socket: answered or cut off, and nobody suffers."""

import json
import socket
import time
from contextlib import closing

import pytest
from answers import check_sane
from invented_searches import TINY_REQUEST
from service_process import service

TIMEOUT_S = 30.0
BODY = json.dumps(TINY_REQUEST).encode()
POST = b"POST /v1/searches HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
POST_WINDOW = POST.replace(b"/v1/searches", b"/v1/runs/x/windows")
MIB = 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the service's log."""
    return tmp_path_factory.mktemp("wire")


@pytest.fixture(scope="module")
def real(folder):
    with service(folder, "--workers", "1") as (_, client):
        yield client


def connected(client):
    address = (client.base_url.host, client.base_url.port)
    return closing(socket.create_connection(address, timeout=TIMEOUT_S))


def status(connection):
    """Of the answer; 0 where the connection was closed without one."""
    try:
        line = connection.makefile("rb").readline()
    except ConnectionResetError:
        return 0
    return int(line.split()[1]) if line else 0


def raw(client, *parts):
    """The status of the answer to these bytes."""
    with connected(client) as connection:
        try:
            for part in parts:
                connection.sendall(part)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has been answered already
        return status(connection)


REFUSED = {
    "nonsense": b"nonsense\r\n\r\n",
    "TLS to a port without": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "no such version": b"GET / HTTP/9.9\r\n\r\n",
    "a long path": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
    "a transfer that is no chunks": POST + b"Transfer-Encoding: gzip\r\n\r\n",
    "chunks without a size": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "an encoded body": POST + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\n12345",
    "no body": POST + b"Content-Length: 0\r\n\r\n",
    "a way up": b"GET /v1/../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a way up from files": b"GET /static/../../../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an encoded way up": b"GET /static/%2e%2e/%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a zero byte": b"GET /v1/plans/%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no UTF-8": b"GET /v1/plans/%ff%fe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a method of its own": b"BREW /v1/searches HTTP/1.1\r\nHost: localhost\r\n\r\n",
}
TOLERATED = {
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "a long header": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    "many headers": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 20_000 + b"\r\n",
    "a proxy's request": b"GET http://elsewhere/healthz HTTP/1.1\r\nHost: elsewhere\r\n\r\n",
}
"""The parser decides, of which uvicorn has two."""


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_request_is_refused(real, what):
    assert raw(real, REFUSED[what]) in (0, 400, 404, 405, 415, 422, 501)
    assert real.get("/healthz").is_success


@pytest.mark.parametrize("what", TOLERATED)
def test_what_is_odd_hurts_nobody(real, what):
    assert raw(real, TOLERATED[what]) in (0, 200, 400, 403, 404, 431)
    assert real.get("/healthz").is_success


def test_an_endless_body_without_length_is_refused_at_the_limit(real):
    chunk = b"100000\r\n" + b" " * MIB + b"\r\n"
    assert raw(real, POST + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 40) in (413, 0)


def test_a_body_in_small_chunks_is_read(real):
    chunks = [f"{len(BODY[i : i + 50]):x}\r\n".encode() + BODY[i : i + 50] + b"\r\n" for i in range(0, len(BODY), 50)]
    assert raw(real, POST + b"Transfer-Encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n") == 202


def test_many_slow_clients_keep_nobody_from_an_answer(real):
    slow = [connected(real) for _ in range(100)]
    for number, holder in enumerate(slow):
        connection = holder.__enter__()
        connection.sendall(POST if number % 2 else POST + b"Content-Length: 1000\r\n\r\n{")
    try:
        assert all(real.get(path).is_success for path in ("/healthz", "/readyz", "/v1/searches"))
    finally:
        for holder in slow:
            holder.__exit__(None, None, None)


def test_a_client_that_goes_away_in_the_middle_hurts_nobody(real, folder):
    (log,) = folder.glob("*.log")
    before = len(log.read_text())
    uploads = [place + b"Content-Length: 1000\r\n\r\n{" for place in (POST, POST_WINDOW)]
    for part in (POST, *uploads, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        with connected(real) as connection:
            connection.sendall(part)
            time.sleep(0.1)  # or the service sees that the client has gone before it sees a request
    assert real.get("/readyz").is_success
    said = log.read_text()[before:]
    assert all(f'"POST {path}" 499 ' in said for path in ("/v1/searches", "/v1/runs/x/windows"))
    assert "Traceback" not in said and '" 500 ' not in said


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/searches/", "/v1//searches", "//v1/searches", "/V1/searches", "/v1/searches?limit=1&limit=2"),
        *(f"/v1/{kind}?limit={limit}" for kind in ("searches", "runs") for limit in (0, -1, 10**9, "1e3", "%00", "")),
        *(
            f"/v1/{kind}?after={after}"
            for kind in ("searches", "runs")
            for after in ("", "%00", "x" * 5000, "-1", "%ff")
        ),
        *("/v1/runs/x/windows?after=-1", "/v1/runs/x/windows?after=9007199254740993", "/v1/runs/x/decisions?after=1.5"),
        *("/v1/runs?name=" + "x" * 201, "/v1/runs?name=%00", "/docs?x=1", "/openapi.json?x", "/static/", "/static/%00"),
        *("/v1/plans/a/diff/", "/v1/plans/../searches", "/v1/models/..%2f..%2fx", "/v1/devices/%2e%2e", "/metrics/"),
    ],
)
def test_every_path_and_parameter_is_answered_sanely(real, path):
    check_sane(real.get(path, follow_redirects=True))


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE"])
@pytest.mark.parametrize(
    "path", ["/healthz", "/v1/searches", "/v1/plans/x", "/docs", "/openapi.json", "/static/x.js", "/"]
)
def test_every_method_is_answered_sanely(real, method, path):
    answer = real.request(method, path)
    assert answer.status_code < 500
    if method == "HEAD":
        assert not answer.content


@pytest.mark.parametrize(
    "headers",
    [
        *(
            {"Range": "bytes=0-1"},
            {"Range": "bytes=999999999-"},
            {"If-None-Match": "*"},
            {"If-None-Match": '"x", W/"y"'},
        ),
        *(
            {"If-Modified-Since": "nonsense"},
            {"Accept": "image/png"},
            {"Accept-Encoding": "x"},
            {"Expect": "100-continue"},
        ),
        *({"X-Forwarded-For": "x" * 1000}, {"Prefer": "wait=" + "9" * 500}, {"Prefer": "wait=-1"}, {"Host": "evil"}),
        *(
            {"Idempotency-Key": "x" * 256},
            {"Upgrade": "websocket", "Connection": "Upgrade"},
            {"Cookie": "a=" + "x" * 4000},
        ),
    ],
)
def test_headers_change_nothing_for_the_worse(real, headers):
    for path in ("/v1/models", "/docs", "/static/swagger-ui.css", "/v1/searches"):
        assert real.get(path, headers=headers).status_code < 500
    check_sane(real.post("/v1/searches", content=BODY, headers={"content-type": "application/json", **headers}))
