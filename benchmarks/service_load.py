"""Runs that report to a service, all at once: a process of its own, for `bench_service`.

Each run has a connection, and posts its next window when the last one is answered. Sockets and headers are written and
read by hand: the load shares the machine with what it measures.

Reads one JSON object from stdin (`Order`) and a file of windows; writes one to stdout (`Report`).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from hashlib import sha1
from pathlib import Path
from typing import NamedTuple


class Order(NamedTuple):
    """What to post."""

    port: int
    runs: list[str]
    tokens: str
    """A file with one window's tokens a line, as JSON: `rows` of them for each of some loads."""
    rows: int
    first: int
    """The index of the first window to post."""
    windows: int
    """How many to post for each run."""


class Report(NamedTuple):
    """What came of it."""

    wall_s: float
    cpu_s: float
    """Of this process, while it posted."""
    seconds: list[float]
    """Of each answer."""
    answers: dict[str, list[str]]
    """By run: SHA-1 of the text of each decision, in order of its window."""
    actions: dict[str, int]
    errors: list[str]


class _Run(asyncio.Protocol):
    """One run on one connection."""

    def __init__(self, order: Order, run_id: str, lines: list[bytes]) -> None:
        self.order, self.run_id, self.lines = order, run_id, lines
        self.index, self.begun, self.received, self.missing = order.first, 0.0, bytearray(), 0
        self.seconds: list[float] = []
        self.hashes: list[str] = []
        self.actions: list[bytes] = []
        self.error = ""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def post(self) -> None:
        tokens = self.lines[self.index % self.order.rows]
        body = b'{"index":%d,"first_step":%d,"num_steps":10,"tokens":%b}' % (self.index, 10 * self.index, tokens)
        head = b"POST /v1/runs/%b/windows HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        self.begun = time.perf_counter()
        self.transport.write(head % self.run_id.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if len(self.received) < self.missing:
            return
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self.received[:end]).lower()
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        self.missing = end + 4 + length
        if len(self.received) >= self.missing:
            body = bytes(self.received[end + 4 :])
            self.received.clear()
            self.missing = 0
            self.answered(head, body)

    def answered(self, head: bytes, body: bytes) -> None:
        self.seconds.append(time.perf_counter() - self.begun)
        if not head.startswith(b"http/1.1 200") or b"idempotent-replayed" in head:
            self.end(f"{head[:200]!r} {body[:200]!r}")
            return
        self.hashes.append(sha1(body).hexdigest())
        self.actions.append(body[:80].split(b'"action":"')[1].split(b'"')[0])
        self.index += 1
        if self.index == self.order.first + self.order.windows:
            self.end()
        else:
            self.post()

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(f"connection lost: {exc}")

    def end(self, error: str = "") -> None:
        if not self.done.done():
            self.error = error
            self.done.set_result(None)


async def report(order: Order) -> Report:
    """Post all windows."""
    lines = Path(order.tokens).read_bytes().splitlines()
    loads = len(lines) // order.rows
    loop = asyncio.get_running_loop()
    runs = []
    for number, run_id in enumerate(order.runs):
        of_run = lines[number % loads * order.rows :][: order.rows]
        made = await loop.create_connection(
            lambda run_id=run_id, of_run=of_run: _Run(order, run_id, of_run), "127.0.0.1", order.port
        )
        runs.append(made[1])
    cpu_s, begun = time.process_time(), time.perf_counter()
    for run in runs:
        run.post()
    for run in runs:
        await run.done
    wall_s, cpu_s = time.perf_counter() - begun, time.process_time() - cpu_s
    actions: dict[str, int] = {}
    for run in runs:
        for action in run.actions:
            actions[action.decode()] = actions.get(action.decode(), 0) + 1
    return Report(
        wall_s,
        cpu_s,
        [seconds for run in runs for seconds in run.seconds],
        {run.run_id: run.hashes for run in runs},
        actions,
        [f"{run.run_id}: {run.error}" for run in runs if run.error],
    )


if __name__ == "__main__":
    json.dump(asyncio.run(report(Order(**json.load(sys.stdin))))._asdict(), sys.stdout)
