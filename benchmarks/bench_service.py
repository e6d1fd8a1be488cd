"""The service's numbers beside their aims: many runs that report at once, plans read meanwhile, the start.

One service process as users start it, on a new SQLite file; windows of 32 x 64 from 200 runs on the shortlist of a real
search, posted by a process of its own (`service_load`), each as soon as the last one of its run is answered. What was
answered is held against what is in the file. Three loads: every expert's load changes by 5 % from window to window; by
0.5 %, with tokens drawn; and one that stays, with tokens drawn. Last, unless it shall be quick, what kill -9 loses
(`bench_kills`).

CPU times are those of the kernel's books: what decides where other work on the machine counts in the wall's times.

Run: make bench-service; or .venv/bin/python benchmarks/bench_service.py [--quick]
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from hashlib import sha1
from pathlib import Path
from typing import NamedTuple

import bench_kills
import httpx
import numpy as np
from bench_decide import LOADS, TOKENS, Loads
from service_load import Order, Report
from table import Row, row, row_at_least, show

from planner.online.recorded.job import trace_model

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "api"))
from service_process import descendants, service  # noqa: E402 - a process as users start it, from the tests

LAYERS, EXPERTS = 32, 64
RUNS, MANY_RUNS = 200, 1000
WINDOWS, QUICK_WINDOWS = 25, 6
TRAJECTORIES = 20
"""Different loads; runs share them."""
RATE_AIM, GET_AIM_MS, START_AIM_S = 100.0, 100.0, 2.0
PROBE_S = 0.1
"""Between two looks at a plan; they are counted with the CPU time of HTTP."""
CORES = 2


def slow(layers: int, experts: int) -> Loads:
    """As `drifting`, by 0.5 %, and tokens are drawn."""
    rng = np.random.default_rng(0)
    loads = rng.lognormal(0.0, 1.0, (layers, experts))
    while True:
        yield rng.multinomial(TOKENS, loads / loads.sum(axis=1, keepdims=True))
        loads = loads * rng.lognormal(0.0, 0.005, loads.shape)


ALL_LOADS: dict[str, Callable[[int, int], Loads]] = {**LOADS, "slow drift": slow}


def measured(quick: bool = False) -> list[Row]:
    """All that is measured of the service."""
    found = started(3 if quick else 7)
    for name, load in ALL_LOADS.items():
        found += reported(name, load, QUICK_WINDOWS if quick else WINDOWS)
    found += at_once()
    return found if quick else found + bench_kills.rows()


class Books(NamedTuple):
    """CPU seconds of the service, by part."""

    own_s: float
    """Of its first process: HTTP, and reading the store."""
    others_s: float
    """Of those that it started: deciders."""


def started(times: int) -> list[Row]:
    """From the start of the process to the first /readyz that says 200, on a database that is there."""
    taken = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(times + 1):
            begun = time.monotonic()
            with service(folder) as (_, _client):
                taken.append(time.monotonic() - begun)
    made, again = taken[0], sorted(taken[1:])
    return [
        row("start to ready, new database", made, START_AIM_S, "s", 2),
        row(f"start to ready, median of {times}", again[times // 2], START_AIM_S, "s", 2),
    ]


def reported(name: str, load: Callable[[int, int], Loads], windows: int) -> list[Row]:
    """The rate, what it costs, what was lost, and how long a plan takes meanwhile."""
    with running(RUNS) as (pid, client, runs, plan_id, folder):
        tokens = _tokens(folder, load, windows + 1)
        order = Order(client.base_url.port or 0, runs, str(tokens), windows + 1, 0, 1)
        warm = post(order)
        before = books(pid)
        with Probe(client, f"/v1/plans/{plan_id}") as probe:
            report = post(order._replace(first=1, windows=windows))
        after = books(pid)
        lost, double = compared(folder, [warm, report])
    tell_errors(warm, report)
    done = sum(map(len, report.answers.values()))
    own_ms, others_ms = (1e3 * (now - then) / done for now, then in zip(after, before, strict=True))
    load_ms, cpu_ms = 1e3 * report.cpu_s / done, own_ms + others_ms
    what = f"{RUNS} runs, {LAYERS} x {EXPERTS}, {name}"
    median, p99 = np.percentile(probe.taken_ms, [50, 99])
    return [
        row_at_least(f"{what}: decisions a second", done / report.wall_s, RATE_AIM, "/s", 1),
        row_at_least(f"{what}: what {CORES} free cores would do", 1e3 * CORES / cpu_ms, RATE_AIM, "/s", 1),
        Row(
            f"{what}: CPU for a decision",
            "",
            f"{cpu_ms:.1f} ms: HTTP {own_ms:.1f}, deciders {others_ms:.1f}; the load itself {load_ms:.2f}; "
            f"{report.actions}",
            None,
        ),
        row(f"{what}: lost or double", lost + double + len(report.errors), 0, "", 0),
        row(f"{what}: GET plan, p99", float(p99), GET_AIM_MS, "ms", 0),
        Row(f"{what}: GET plan, median of {len(probe.taken_ms)}", "", f"{median:.0f} ms", None),
    ]


def at_once() -> list[Row]:
    """Each of many runs reports at the same moment."""
    with running(MANY_RUNS) as (_, client, runs, _, folder):
        tokens = _tokens(folder, ALL_LOADS["slow drift"], 1)
        report = post(Order(client.base_url.port or 0, runs, str(tokens), 1, 0, 1))
        lost, double = compared(folder, [report])
    what = f"{MANY_RUNS} runs report at once"
    tell_errors(report)
    return [
        row(f"{what}: errors, lost or double", lost + double + len(report.errors), 0, "", 0),
        Row(f"{what}: until the last is answered", "", f"{report.wall_s:.1f} s", None),
    ]


def tell_errors(*reports: Report) -> None:
    """The first of each to stderr."""
    for report in reports:
        for error in report.errors[:3]:
            print(error, file=sys.stderr)


@contextmanager
def running(num_runs: int) -> Iterator[tuple[int, httpx.Client, list[str], str, Path]]:
    """A service with a search and runs on it: its pid, a client, the runs' ids, the best plan's, the folder."""
    with tempfile.TemporaryDirectory() as name, service(Path(name)) as (process, client):
        search = client.post("/v1/searches", json=_search(), headers={"Prefer": "wait=60"}).json()
        assert search["state"] == "succeeded", search
        body = {"name": "bench", "search_id": search["id"], "extra_slots_per_rank": 1}
        runs = [client.post("/v1/runs", json=body).raise_for_status().json()["id"] for _ in range(num_runs)]
        yield process.pid, client, runs, search["best_plan_id"], Path(name)


def _search() -> dict[str, object]:
    """Experts small enough for the memory of the cluster: what does not fit is another question."""
    model = trace_model(LAYERS, EXPERTS, 2).model_dump(mode="json")
    model["runs"][1]["layer"]["feed_forward"]["expert_width"] = 1024
    return {
        "model": {"spec": model},
        "cluster": {"nodes": 4, "devices_per_node": 8, "device": "a100-sxm-80g"},
        "training": {"global_batch_size": 512, "sequence_length": 1024},
    }


def _tokens(folder: Path, load: Callable[[int, int], Loads], windows: int) -> Path:
    """A file of windows: trajectories that begin at different times of the load."""
    file, loads = folder / "tokens", load(LAYERS, EXPERTS)
    made = [json.dumps(next(loads).tolist(), separators=(",", ":")) for _ in range(TRAJECTORIES + windows)]
    file.write_text("\n".join(line for first in range(TRAJECTORIES) for line in made[first : first + windows]))
    return file


def post(order: Order) -> Report:
    """What a process of its own has posted."""
    command = [sys.executable, str(ROOT / "benchmarks" / "service_load.py")]
    done = subprocess.run(command, input=json.dumps(order._asdict()), capture_output=True, text=True, check=True)
    return Report(**json.loads(done.stdout))


def books(pid: int) -> Books:
    """CPU seconds so far."""
    return Books(_cpu_s(pid), sum(map(_cpu_s, descendants(pid))))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Probe:
    """Asks for one thing again and again, at an even pace, while others work."""

    def __init__(self, client: httpx.Client, path: str) -> None:
        self.taken_ms: list[float] = []
        self._client, self._path = client, path
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        while not self._over.wait(PROBE_S):
            begun = time.perf_counter()
            self._client.get(self._path).raise_for_status()
            self.taken_ms.append(1e3 * (time.perf_counter() - begun))

    def __enter__(self) -> Probe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def compared(folder: Path, reports: list[Report]) -> tuple[int, int]:
    """(Windows whose answer is not in the file as it was given, decisions in the file that nobody was given)."""
    given = Counter[tuple[str, str]]()
    for report in reports:
        given.update((run_id, text) for run_id, hashes in report.answers.items() for text in hashes)
    query = (
        "SELECT runs.id, decisions.decision FROM decisions JOIN runs ON runs.number = decisions.run_number "
        'JOIN windows ON windows.run_number = runs.number AND windows."index" = decisions."index"'
    )
    with closing(sqlite3.connect(f"file:{folder}/trimtab.db?mode=ro", uri=True)) as database:
        kept = Counter((run_id, sha1(text.encode()).hexdigest()) for run_id, text in database.execute(query))
    return (given - kept).total(), (kept - given).total()


if __name__ == "__main__":
    show(measured("--quick" in sys.argv))
