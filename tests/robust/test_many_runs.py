"""Many training jobs report at once to a real service: no error, nothing lost, one decision for each window.

64 jobs in `make check`, 1,000 under `make fuzz`.
"""

from __future__ import annotations

import asyncio
import os

import httpx
from invented_searches import TINY_REQUEST
from seeded import WINDOW
from service_process import service

NUM_RUNS = int(os.environ.get("FUZZ_RUNS", "64"))
NUM_WINDOWS = 2
TIMEOUT_S = 300.0
"""A hang is an error; slowness is not."""


async def job(client: httpx.AsyncClient, search_id: str, number: int) -> list[dict]:
    """One job: begins, reports each window twice at once, as after a lost answer; the decisions that it got."""
    began = await client.post("/v1/runs", json={"name": f"job-{number}", "search_id": search_id})
    assert began.status_code == 201, began.text
    path, decisions = f"/v1/runs/{began.json()['id']}", []
    for index in range(NUM_WINDOWS):
        window = {**WINDOW, "index": index, "first_step": 10 * index}
        answers = await asyncio.gather(*(client.post(f"{path}/windows", json=window) for _ in range(2)))
        assert [answer.status_code for answer in answers] == [200, 200], [answer.text for answer in answers]
        first, second = (answer.json() for answer in answers)
        assert first == second and first["window"] == index
        decisions.append(first)
    kept = (await client.get(f"{path}/decisions")).json()["items"]
    assert kept == decisions
    return decisions


async def all_jobs(address: httpx.URL, search_id: str) -> list[list[dict]]:
    limits = httpx.Limits(max_connections=NUM_RUNS, max_keepalive_connections=NUM_RUNS)
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=TIMEOUT_S) as client:
        return await asyncio.gather(*(job(client, search_id, number) for number in range(NUM_RUNS)))


def test_many_runs_report_at_once(tmp_path):
    with service(tmp_path, "--workers", "1") as (_, client):
        search = client.post("/v1/searches", json=TINY_REQUEST, headers={"Prefer": "wait=60"}, timeout=90).json()
        assert search["state"] == "succeeded", search
        decisions = asyncio.run(all_jobs(client.base_url, search["id"]))
        assert [len(of_one) for of_one in decisions] == [NUM_WINDOWS] * NUM_RUNS
        told = [line for line in client.get("/metrics").text.splitlines() if line.startswith("trimtab_decisions_total")]
        counted = sum(float(line.split()[-1]) for line in told)
        assert counted == NUM_RUNS * NUM_WINDOWS
    assert "Traceback" not in "".join(path.read_text() for path in tmp_path.glob("*.log"))
