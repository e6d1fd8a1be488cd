"""Clients that do not give up, of a service that is killed again and again, and what is left in the end."""

import os
import random
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from dask_processes import free_port
from invented_searches import TINY_REQUEST
from service_process import descendants, service

RETRY_S = 0.1
LOOK_S = 0.5
PAUSE_S = 0.1
"""Of a run between two windows: training is slower than that."""
PATIENCE_S = 300.0
WORKERS = 2
LEASE_S = 2.0
ALIVE_S = (0.3, 6.0)
"""What a service gets before it is killed."""
BETWEEN_S = (0.1, 0.5)
"""From the end of a worker to that of its service."""
SEARCHES = "SELECT id, idempotency_key, state, shortlist IS NOT NULL, deaths + lost_services FROM searches"
DECISIONS = 'SELECT runs.id, decisions."index" FROM decisions JOIN runs ON runs.number = decisions.run_number'


class Storm(NamedTuple):
    """What is asked, and how often the service is killed over it."""

    kills: int
    worker_kills: int
    searches: int
    windows: int
    runs: int
    seed: int = 0


class Left(NamedTuple):
    """What was found in the end."""

    kills: int
    worker_kills: int
    searches_acknowledged: int
    searches_lost: int
    """Acknowledged, and not there or without a result."""
    searches_doubled: int
    """Made more than once for one key."""
    windows_acknowledged: int
    windows_lost: int
    """Acknowledged, and not there or with another decision."""
    windows_doubled: int
    requeued: int
    """How often searches started again after their service or worker was killed."""
    asked_again: int
    """Requests that were not answered, or with 503, and were sent again."""
    seconds: float


class Clients:
    """Everybody who asks, each in a thread of its own, and what they were told."""

    def __init__(self, storm: Storm, address: str) -> None:
        self._storm = storm
        self._address = address
        self.searches: dict[str, str] = {}
        """Key → id."""
        self.ends: dict[str, dict[str, Any]] = {}
        self.windows: dict[tuple[str, int], dict[str, Any]] = {}
        """(run, index) → decision."""
        self.runs: list[str] = []
        self.sent: dict[tuple[str, int], dict[str, Any]] = {}
        self.asked_again = 0
        self.errors: list[BaseException] = []
        self._lock = threading.Lock()

    def begin(self) -> list[threading.Thread]:
        """All of them."""
        works = [lambda part=part: self._search(part) for part in range(4)]
        works += [lambda number=number: self._report(number) for number in range(self._storm.runs)]
        threads = [threading.Thread(target=self._noting, args=(work,), daemon=True) for work in works]
        for thread in threads:
            thread.start()
        return threads

    def _noting(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.errors.append(error)

    def _search(self, part: int) -> None:
        """Every fifth question was asked before."""
        with httpx.Client(base_url=self._address, timeout=30) as client:
            for number in range(part, self._storm.searches, 4):
                body = _question(number % (self._storm.searches * 4 // 5 or 1))
                key = f"search-{number}"
                answer = self._until_answered(client, "POST", "/v1/searches", body, {"Idempotency-Key": key})
                self.searches[key] = answer["id"]
            for number in range(part, self._storm.searches, 4):
                key = f"search-{number}"
                self.ends[key] = self._until_ended(client, self.searches[key])
                assert self.ends[key]["state"] == "succeeded", self.ends[key]

    def _until_ended(self, client: httpx.Client, search_id: str) -> dict[str, Any]:
        while True:
            search = self._until_answered(client, "GET", f"/v1/searches/{search_id}")
            if search["state"] not in ("queued", "running"):
                return search
            time.sleep(LOOK_S)

    def _report(self, number: int) -> None:
        """A run's windows, one after the other, as an agent sends them."""
        with httpx.Client(base_url=self._address, timeout=30) as client:
            body = _question(0)
            headers = {"Idempotency-Key": f"run-{number}"}
            search = self._until_answered(client, "POST", "/v1/searches", body, headers)
            assert self._until_ended(client, search["id"])["state"] == "succeeded"
            begin = {"name": f"run-{number}", "search_id": search["id"]}
            run = self._until_answered(client, "POST", "/v1/runs", begin)
            self.runs.append(run["id"])
            path, rng = f"/v1/runs/{run['id']}/windows", random.Random(number)
            for index in range(self._storm.windows // self._storm.runs):
                tokens = [[rng.randint(1, 9000) for _ in range(4)] for _ in range(2)]
                window = {"index": index, "first_step": 10 * index, "num_steps": 10, "tokens": tokens}
                self.sent[run["id"], index] = window
                self.windows[run["id"], index] = self._until_answered(client, "POST", path, window)
                time.sleep(PAUSE_S)

    def until_all_report(self, end: float) -> None:
        """Return when every run has begun; raises AssertionError when it is later than `end`."""
        while len(self.runs) < self._storm.runs:
            assert not self.errors, self.errors
            assert time.monotonic() < end, self.told()
            time.sleep(LOOK_S)

    def told(self) -> str:
        """How far they are."""
        ended = f"{len(self.searches)} searches acknowledged, {len(self.ends)} heard to end"
        return f"{ended}; {len(self.windows)} windows decided"

    def repeat(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Every window again: what is answered now."""
        with httpx.Client(base_url=self._address, timeout=30) as client:
            return {
                (run, index): self._until_answered(client, "POST", f"/v1/runs/{run}/windows", window)
                for (run, index), window in self.sent.items()
            }

    def _until_answered(
        self, client: httpx.Client, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Any:
        """As a careful client: nobody answers, or 503: the same again."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            with suppress(httpx.TransportError):
                answer = client.request(method, path, json=body, headers=headers)
                if answer.status_code != 503:
                    assert answer.is_success, answer.text
                    return answer.json()
            with self._lock:
                self.asked_again += 1
            time.sleep(RETRY_S)
        raise AssertionError(f"no answer for {PATIENCE_S:g} s: {method} {path}")


def rage(
    folder: Path, storm: Storm, log: Callable[[str], None] = lambda line: None, patience_s: float = 1200.0
) -> Left:
    """Let it happen in a new folder; raises AssertionError if a client gave up."""
    (folder / "trimtab.toml").write_text(f"lease_s = {LEASE_S}\nworkers = {WORKERS}\n")
    rng, port, began, worker_kills = random.Random(storm.seed), free_port(), time.monotonic(), 0
    clients = Clients(storm, f"http://127.0.0.1:{port}")
    threads: list[threading.Thread] = []
    for number in range(1, storm.kills + 1):
        with _serving(folder, port) as process:
            threads = threads or clients.begin()
            clients.until_all_report(began + patience_s)
            time.sleep(rng.uniform(*ALIVE_S))
            if worker_kills < storm.worker_kills:
                worker_kills += _kill_a_worker(process.pid, rng)
                time.sleep(rng.uniform(*BETWEEN_S))
            process.send_signal(signal.SIGKILL)
            process.wait()
        log(f"kill {number}: {clients.told()}")
    with _serving(folder, port):
        while any(thread.is_alive() for thread in threads):
            assert not clients.errors, clients.errors
            assert time.monotonic() - began < patience_s, f"clients still wait; {clients.told()}"
            time.sleep(LOOK_S)
        assert not clients.errors, clients.errors
        return _left(folder, storm, worker_kills, clients, time.monotonic() - began)


@contextmanager
def _serving(folder: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    with service(folder, "--port", str(port), "--config", str(folder / "trimtab.toml")) as (process, _):
        yield process


def _kill_a_worker(pid: int, rng: random.Random) -> int:
    """End one of the processes that search, if there are any: they lead groups of their own; how many."""
    workers = sorted(child for child in descendants(pid) if _leads(child))
    if not workers:
        return 0
    with suppress(ProcessLookupError):
        os.kill(rng.choice(workers), signal.SIGKILL)
    return 1


def _leads(pid: int) -> bool:
    with suppress(ProcessLookupError):
        return os.getpgid(pid) == pid
    return False


def _question(number: int) -> dict[str, Any]:
    """A small one, each its own."""
    return {**TINY_REQUEST, "training": {"global_batch_size": 8, "sequence_length": 64 * (number + 1)}}


def _left(folder: Path, storm: Storm, worker_kills: int, clients: Clients, seconds: float) -> Left:
    """Hold what clients were told against the file, and against what they are told when they ask again."""
    with closing(sqlite3.connect(folder / "trimtab.db")) as file:
        searches = file.execute(SEARCHES).fetchall()
        decisions = Counter((run, index) for run, index in file.execute(DECISIONS))
    with_result = {search for search, _, state, has_result, _ in searches if state == "succeeded" and has_result}
    keys = Counter(key for _, key, *_ in searches)
    repeated = clients.repeat()
    return Left(
        kills=storm.kills,
        worker_kills=worker_kills,
        searches_acknowledged=len(clients.searches),
        searches_lost=len(set(clients.searches.values()) - with_result),
        searches_doubled=sum(number - 1 for number in keys.values()),
        windows_acknowledged=len(clients.windows),
        windows_lost=sum(decisions[key] == 0 or repeated[key] != told for key, told in clients.windows.items()),
        windows_doubled=sum(number - 1 for number in decisions.values()),
        requeued=sum(deaths for *_, deaths in searches),
        asked_again=clients.asked_again,
        seconds=seconds,
    )
