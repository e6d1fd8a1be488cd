"""`POST /v1/runs/{id}/windows` as an agent finds it: a service process, its SQLite file, a load that drifts or stays.

Median and p99 of the answer's time on the wall, and the CPU time of the service for a window; both at two sizes, each
under two loads. One drifts so fast that every window moves hundreds of experts; one is the same zipf in every window,
seen through the chance of which tokens came.

Run: .venv/bin/python benchmarks/bench_decide.py [windows]. Other work on the machine counts in the wall's times.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
from sqlalchemy import select
from table import Row, row, show

from api.database import open_database
from api.run_store import RunStore
from api.search_store import SearchStore
from api.tables import SearchRow
from planner.online import begin, replay_context
from planner.online.recorded.job import trace_model
from planner.spec.model import Model
from planner.spec.placement import TokenSplit
from planner.spec.request import SearchRequest
from planner.spec.run import Run, RunContext
from profiles import cluster_from_shorthand, resolve_cluster

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "api"))
from service_process import service  # noqa: E402 - a process as users start it, from the tests

BEGUN = datetime(2026, 1, 1, tzinfo=timezone.utc)


class Size(NamedTuple):
    """What a run looks like, and how quickly it is to be answered."""

    layers: int
    experts: int
    ranks: int
    extra_slots: int
    cluster: str
    median_ms: float
    p99_ms: float
    split: TokenSplit = TokenSplit.EVEN


SIZES = (
    Size(32, 64, 32, 1, "4x8:a100-sxm-80g", 15.0, 50.0),
    Size(58, 256, 64, 1, "8x8:h100-sxm-80g", 60.0, 200.0),
)


TOKENS = 1_000_000
"""Routed in each layer during a window."""

Loads = Iterator[np.ndarray]
"""Tokens [layers, experts] of one window after the other."""


def drifting(layers: int, experts: int) -> Loads:
    """Lognormal; every expert's load changes by 5 % from window to window."""
    loads = np.random.default_rng(0).lognormal(0.0, 1.0, (layers, experts))
    drift = np.random.default_rng(1)
    while True:
        yield np.rint(TOKENS * loads / loads.sum(axis=1, keepdims=True)).astype(int)
        loads = loads * drift.lognormal(0.0, 0.05, loads.shape)


def staying(layers: int, experts: int) -> Loads:
    """Zipf's law, in each layer over other experts; tokens are drawn from it."""
    rng = np.random.default_rng(0)
    shares = np.stack([rng.permutation(1.0 / np.arange(1, experts + 1)) for _ in range(layers)])
    shares /= shares.sum(axis=1, keepdims=True)
    while True:
        yield rng.multinomial(TOKENS, shares)


LOADS: dict[str, Callable[[int, int], Loads]] = {"drifting load": drifting, "zipf that stays": staying}


class Measured(NamedTuple):
    """Milliseconds by window."""

    wall_ms: np.ndarray
    cpu_ms: float
    actions: dict[str, int]


def rows(windows: int = 200) -> list[Row]:
    """The aims of the issue, measured."""
    found = []
    for size, (load, begun) in product(SIZES, LOADS.items()):
        measured = post_windows(size, begun(size.layers, size.experts), windows)
        what = f"POST windows, {size.layers} x {size.experts}, {size.ranks} ranks, {size.split} split, {load}"
        median, p99 = np.percentile(measured.wall_ms, [50, 99])
        found += [
            row(f"{what}: median", float(median), size.median_ms, "ms", 1),
            row(f"{what}: p99", float(p99), size.p99_ms, "ms", 1),
            Row(f"{what}: CPU of the service", "", f"{measured.cpu_ms:.1f} ms, {measured.actions}", None),
        ]
    return found


def post_windows(size: Size, loads: Loads, windows: int) -> Measured:
    """Start a service on a database with one run, and post windows one after the other."""
    taken, actions = [], dict[str, int]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_id = _begin_run(folder, _context(size, next(loads)))
        with service(folder, "--workers", "1") as (process, client):
            cpu_s = 0.0
            for index in range(windows + 2):
                body = _body(index, next(loads))
                if index == 2:
                    cpu_s = _cpu_s(process.pid)
                begun = time.perf_counter()
                answer = client.post(f"/v1/runs/{run_id}/windows", content=body, headers=JSON)
                seconds = time.perf_counter() - begun
                answer.raise_for_status()
                action = answer.json()["action"]
                actions[action] = actions.get(action, 0) + 1
                if index >= 2:
                    taken.append(1e3 * seconds)
            cpu_ms = 1e3 * (_cpu_s(process.pid) - cpu_s) / windows
    return Measured(np.array(taken), cpu_ms, actions)


JSON = httpx.Headers({"content-type": "application/json"})


def _context(size: Size, tokens: np.ndarray) -> RunContext:
    cluster = resolve_cluster(cluster_from_shorthand(size.cluster))
    context = replay_context(tokens[None], 2, cluster, size.ranks, size.extra_slots, _model(size))
    return context.model_copy(update={"token_split": size.split})


def _model(size: Size) -> Model:
    """Experts small enough for the memory of the cluster: what does not fit is another question."""
    data = trace_model(size.layers, size.experts, 2).model_dump(mode="json")
    data["runs"][1]["layer"]["feed_forward"]["expert_width"] = 1024
    return Model.model_validate(data)


def _begin_run(folder: Path, context: RunContext) -> str:
    """A run in a new database, on a search that never ran."""
    database = open_database(f"sqlite:///{folder}/trimtab.db")
    request = SearchRequest.model_validate(
        {
            "model": {"preset": "mixtral-8x7b"},
            "cluster": {"nodes": 1, "devices_per_node": 8, "device": "h100-sxm-80g"},
            "training": {"global_batch_size": 8, "sequence_length": 1024},
        }
    )
    SearchStore(database, lambda: BEGUN, lambda: "search").add(request, context.model, context.cluster)
    with database.writing() as session:
        session.scalars(select(SearchRow)).one().state = "failed"
    state = begin(context)
    run = Run(
        id="run",
        name="bench",
        search_id="search",
        created_at=BEGUN,
        plan_id=state.plan_id,
        placement=state.placement,
        context=context,
    )
    RunStore(database, lambda: BEGUN).begin(run, state)
    database.close()
    return run.id


def _body(index: int, counts: np.ndarray) -> bytes:
    tokens = ",".join(f"[{','.join(map(str, counted))}]" for counted in counts.tolist())
    return f'{{"index":{index},"first_step":{10 * index},"num_steps":10,"tokens":[{tokens}]}}'.encode()


def _cpu_s(pid: int) -> float:
    """Of a process so far, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100.0


if __name__ == "__main__":
    show(rows(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
