"""What is in the service before anybody sends it nonsense, and requests that it accepts."""

from __future__ import annotations

import json
from typing import Any

from invented_searches import TINY_MODEL, TINY_REQUEST, plan_with

WINDOW = {
    "index": 0,
    "first_step": 0,
    "num_steps": 10,
    "tokens": [[9000, 500, 300, 200], [500, 9000, 300, 200]],
    "step_time_s": 0.5,
}
PLAN = json.loads(plan_with(micro_batch_size=2).model_dump_json(exclude={"id", "summary"}))


def seeded(client) -> dict[str, str]:
    """Search, run and windows by the names that paths have for them."""
    search = client.post("/v1/searches", json=TINY_REQUEST, headers={"Prefer": "wait=60"}).json()
    run = client.post("/v1/runs", json={"name": "job", "search_id": search["id"]}).json()
    for index in range(3):
        client.post(f"/v1/runs/{run['id']}/windows", json={**WINDOW, "index": index, "first_step": 10 * index})
    shortlist = client.get(search["links"]["shortlist"]).json()["plans"]
    return {
        "search_id": search["id"],
        "run_id": run["id"],
        "plan_id": shortlist[0]["plan"]["id"],
        "other_plan_id": shortlist[1]["plan"]["id"],
        "target": "megatron",
    }


def bodies(ids: dict[str, str]) -> dict[str, tuple[Any, ...]]:
    """Bodies that are accepted, by operation: small ones beside the examples of the OpenAPI document."""
    return {
        "submit_search": (TINY_REQUEST,),
        "estimate": ({**TINY_REQUEST, "plan": PLAN},),
        "estimate_plan_under_other_conditions": (
            {"workload": {"name": "skew", "expert_shares": [[0.4, 0.3, 0.2, 0.1]]}, **without_model()},
        ),
        "begin_run": ({"name": "job", "search_id": ids["search_id"], "extra_slots_per_rank": 1},),
        "post_window": (WINDOW, {**WINDOW, "index": 7, "placed_step": 3, "pause_s": 0.1}),
    }


def without_model() -> dict[str, Any]:
    """Cluster and recipe of the tiny request."""
    return {key: value for key, value in TINY_REQUEST.items() if key != "model"}


__all__ = ["PLAN", "TINY_MODEL", "WINDOW", "bodies", "seeded"]
