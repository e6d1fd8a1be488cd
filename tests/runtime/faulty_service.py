"""A wire to a planner service that can be cut, slowed and fed with nonsense; and the real service, to be killed."""

from __future__ import annotations

import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
from planner_samples import keep, turn

from planner.spec.decision import Action

START_S = 60.0
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def answer(body, head=OK):
    """A whole HTTP answer."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head + b"Content-Length: %d\r\n\r\n" % len(content) + content


def status(code, *headers):
    """An answer of this status with a problem document."""
    head = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {code} As told", *headers))
    return answer({"detail": "as told"}, head.encode())


def endless(first, piece, pause_s):
    """Send `first`, then `piece` again and again."""

    def send(connection):
        connection.sendall(first)
        while True:
            connection.sendall(piece)
            time.sleep(pause_s)

    return send


def silence(connection):
    """Say nothing until the other side gives up."""
    while connection.recv(1):
        pass


def reset(connection):
    """Break the connection, as a machine that crashed and came back does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


NONSENSE = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "nothing": b"",
    "no JSON": answer(b"<html>Welcome to this network</html>"),
    "no text": answer(b"\xff\xfe\x00{"),
    "a number": answer(b"7"),
    "NaN": answer(b'{"window": NaN}'),
    "nested": answer(b"[" * 100_000),
    "a list": answer([1, 2, 3]),
    "null": answer(None),
    "wrong types": answer({"window": "0", "action": 7, "plan_id": [], "reason": {}}),
    "truncated": OK + b'Content-Length: 1000\r\n\r\n{"window": 0, "act',
    "no chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nzzz\r\n",
    "reset": reset,
    "huge": endless(OK + b"\r\n", b" " * 65536, 0.0),
    "huge head": endless(b"HTTP/1.1 200 OK\r\n", b"X-A: " + b"a" * 60_000 + b"\r\n", 0.0),
    "drip": endless(OK + b"\r\n", b" ", 0.02),
    "head drips": endless(b"HTTP/1.1 200 OK\r\nX-A: ", b"a", 0.02),
    "silence": silence,
    "redirects": status(302, "Location: /v1/runs"),
    "redirects for ever": status(308, "Location: http://127.0.0.1:9/"),
    **{str(code): status(code) for code in (204, 401, 403, 404, 418, 429, 500, 502, 503, 504)},
}
"""What a service, or what stands before it, may answer instead; bytes, or a function of the connection."""


def _changed(decision, **changes):
    return decision.model_copy(update=changes)


def _with_layers(window, *layers):
    decision = turn(window)
    placement = decision.placement.model_copy(update={"layers": layers})
    return _changed(decision, placement=placement)


MISFITS = {
    "fewer experts": lambda window: _with_layers(window, *[(0, 1, 2, 3)] * len(window.tokens)),
    "more slots": lambda window: _with_layers(
        window, *[(*window.placement.layers[0], 0, 1, 2, 3)] * len(window.tokens)
    ),
    "fewer layers": lambda window: _with_layers(window, window.placement.layers[0]),
    "more layers": lambda window: _with_layers(window, *[window.placement.layers[0]] * 9),
    "other ranks": lambda window: _changed(
        turn(window), placement=turn(window).placement.model_copy(update={"num_ranks": 8})
    ),
    "shadows": lambda window: _changed(
        turn(window), placement=window.placement.model_copy(update={"shadow_slots_per_rank": 0, "num_ranks": 2})
    ),
    "unknown plan": lambda window: _changed(keep(window), plan_id="0123456789abcdef"),
    "switch to an unknown plan": lambda window: _changed(
        keep(window), plan_id="0123456789abcdef", action=Action.SWITCH_PLAN
    ),
}
"""Decisions of the right form, for another job than ours."""


class Wire:
    """Listens at `url`, and carries each connection to the service at port `upstream`, as long as `mode` is None.

    Else `mode` is an entry of NONSENSE, or "lost": requests arrive at the service, answers do not arrive at the agent.
    """

    def __init__(self, upstream):
        self.upstream, self.mode = upstream, None
        self.attempts = 0
        self.delay_s = 0.0  # until a request is carried to the service
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection, self.mode), daemon=True).start()

    def _serve(self, connection, mode):
        with connection, suppress(OSError):
            self.attempts += 1
            request = _request(connection)
            if mode in (None, "lost"):
                time.sleep(self.delay_s)
                with socket.create_connection(("127.0.0.1", self.upstream)) as service:
                    service.sendall(request)
                    while piece := service.recv(65536):
                        if mode is None:
                            connection.sendall(piece)
            elif callable(mode):
                mode(connection)
            else:
                connection.sendall(mode)


def _request(connection):
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    length = re.search(rb"(?i)content-length: (\d+)", data)
    wanted = data.index(b"\r\n\r\n") + 4 + (int(length[1]) if length else 0)
    while len(data) < wanted:
        data += connection.recv(65536)
    return data


def free_port():
    """A port that nobody listens at now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class ServiceProcess:
    """`trimtab serve` at one port over one database, to be killed and begun again."""

    def __init__(self, folder: Path):
        self.port, self._folder = free_port(), folder
        self.url = f"http://127.0.0.1:{self.port}"
        self._process = None

    def __enter__(self):
        self.begin()
        return self

    def __exit__(self, *_):
        self.kill()

    def begin(self):
        """Start it, and wait until it is ready."""
        command = [sys.executable, "-m", "api.cli", "serve", "--port", str(self.port), "--workers", "1"]
        command += ["--database-url", f"sqlite:///{self._folder / 'trimtab.db'}"]
        with (self._folder / "service.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz").is_success:
                    return
            time.sleep(0.05)
        raise AssertionError((self._folder / "service.log").read_text())

    def kill(self):
        """SIGKILL: it can say nothing to anybody."""
        self._process.kill()
        self._process.wait()
