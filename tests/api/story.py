"""One story told to a service by the filled-in requests, and what it answers: the examples of the OpenAPI document.

`python tests/api/story.py` writes api/example_answers.json anew, where the answers have changed.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from fastapi.testclient import TestClient
from httpx import Response
from measured_profiles import body_of, measured_core
from service_in_process import running

from api.database import open_database
from api.example_answers import ANSWERS_FILE
from api.examples import ESTIMATE_EXAMPLES, RUN_EXAMPLES, SEARCH_EXAMPLES, WHAT_IF_EXAMPLES, WINDOW_EXAMPLES
from planner.search import search

WAIT = {"Prefer": "wait=60"}
KEPT = {
    "plans": 2,
    "neighbours": 1,
    "refused": 1,
    "traceEvents": 6,
    "layers": 2,
    "tokens": 2,
    "imbalance_bounds": 2,
    "samples": 6,
    "sources": 2,
    "assumptions": 3,
    "items": 4,
    "files": 2,
}
"""Of lists by these names, how many items an example has at most."""
TEXT = 600
"""Characters that an example has of a file's text."""
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
Told = dict[str, dict[str, dict[str, object]]]
"""By operation and status: summary and value."""


class Teller:
    """Hears answers, and keeps them as examples."""

    def __init__(self) -> None:
        self.told: Told = {}
        self.names: dict[str, str] = {}
        """What stands for ids that differ from story to story."""

    def hears(self, operation: str, answer: Response, summary: str) -> dict[str, object]:
        """Note an answer; what it holds, as it was."""
        content = answer.json()
        text = json.dumps(content)
        for own, shown in self.names.items():
            text = text.replace(own, shown)
        value = shortened(json.loads(text))
        self.told.setdefault(operation, {})[str(answer.status_code)] = {"summary": summary, "value": value}
        return content

    def calls(self, own: str, shown: str) -> None:
        """An id that is another each time has this name in examples."""
        self.names[own] = shown


def shortened(value: object, name: str = "") -> object:
    """The value with long lists and texts cut, and one time for all times."""
    if isinstance(value, dict):
        return {key: 0.0 if key == "search_time_s" else shortened(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [shortened(inner) for inner in value[: KEPT.get(name, len(value))]]
    if isinstance(value, str) and name == "text":
        return value if len(value) <= TEXT else value[:TEXT] + "…"
    return TIME.sub("2026-01-01T12:00:00Z", value) if isinstance(value, str) else value


def tell(client: TestClient) -> Told:
    """The whole story, with each answer as an example."""
    teller = Teller()
    best, second, search_id = _searches(client, teller)
    _plans(client, teller, best, second)
    _runs(client, teller, search_id)
    _presets(client, teller)
    teller.hears("healthz", client.get("/healthz"), "The process answers")
    teller.hears("readyz", client.get("/readyz"), "It can work")
    return teller.told


def _searches(client: TestClient, teller: Teller) -> tuple[str, str, str]:
    hears, asked = teller.hears, SEARCH_EXAMPLES["mixtral"]["value"]
    found = client.post("/v1/searches", json=asked, headers=WAIT | {"Idempotency-Key": "mixtral-1"})
    search_id, best = found.json()["id"], found.json()["best_plan_id"]
    teller.calls(search_id, "5f0c8a1e2b3d4c5f")
    hears("submit_search", found, "The search has ended within the seconds of Prefer: wait")
    # The one worker is busy with the first of these, so the second waits.
    busy = client.post("/v1/searches", json=SEARCH_EXAMPLES["gates"]["value"]).json()["id"]
    queued = client.post("/v1/searches", json=SEARCH_EXAMPLES["lengths"]["value"])
    other = queued.json()["id"]
    teller.calls(other, "81d7e0b9c6a54f32")
    hears("submit_search", queued, "The search waits for a worker")
    hears("submit_search", client.post("/v1/searches", json={**asked, "cluster": {}}), "What is missing is named")
    taken = client.post(
        "/v1/searches", json=SEARCH_EXAMPLES["llama"]["value"], headers={"Idempotency-Key": "mixtral-1"}
    )
    hears("submit_search", taken, "The key was used for another request")
    hears("get_shortlist", client.get(f"/v1/searches/{other}/shortlist"), "The search has not ended")
    hears("cancel_search", client.delete(f"/v1/searches/{other}"), "The search is cancelled")
    client.delete(f"/v1/searches/{busy}")
    hears("cancel_search", client.delete(f"/v1/searches/{search_id}"), "It has ended already")
    hears("get_search", client.get(f"/v1/searches/{search_id}"), "A search that has succeeded")
    hears("get_search", client.get("/v1/searches/unknown"), "No search has this id")
    hears("list_searches", client.get("/v1/searches", params={"limit": 1}), "The first page, of one search")
    shortlist = hears(
        "get_shortlist", client.get(f"/v1/searches/{search_id}/shortlist"), "Mixtral-8x7B on 64 H100, two plans of it"
    )
    return best, shortlist["plans"][1]["plan"]["id"], search_id


def _plans(client: TestClient, teller: Teller, best: str, second: str) -> None:
    hears, one = teller.hears, f"/v1/plans/{best}"
    hears("get_plan", client.get(one), "Mixtral-8x7B on 64 H100, the best plan")
    hears("get_plan", client.get("/v1/plans/unknown"), "No search found such a plan")
    hears("get_plan_estimate", client.get(f"{one}/estimate"), "Under balanced load")
    hears("get_plan_timeline", client.get(f"{one}/timeline"), "The first events of a step")
    hears("explain_plan", client.get(f"{one}/explanation"), "The best plan, with one of its neighbours")
    hears("diff_plans", client.get(f"{one}/diff/{second}"), "The best plan and the runner-up")
    skewed = client.post(f"{one}/estimate", json=WHAT_IF_EXAMPLES["skew"]["value"])
    hears("estimate_plan_under_other_conditions", skewed, "Two of 8 experts get half of the tokens")
    hears("export_plan", client.get(f"{one}/export/megatron"), "Megatron-LM cannot run it, by this rule")
    asked = {**SEARCH_EXAMPLES["mixtral"]["value"], "options": {"target": "megatron"}}
    for_megatron = client.post("/v1/searches", json=asked, headers=WAIT).json()
    written = client.get(f"{for_megatron['links']['best_plan']}/export/megatron")
    hears("export_plan", written, "A plan that was searched with options.target, beginnings of its files")
    hears("estimate", client.post("/v1/estimates", json=ESTIMATE_EXAMPLES["mixtral"]["value"]), "pp4 · tp2 dp8 · ep8")
    wrong = {**ESTIMATE_EXAMPLES["mixtral"]["value"], "cluster": {"nodes": 4, "devices_per_node": 8, "device": "h100"}}
    hears("estimate", client.post("/v1/estimates", json=wrong), "The plan is for other devices")


def _runs(client: TestClient, teller: Teller, search_id: str) -> None:
    hears, asked = teller.hears, {**RUN_EXAMPLES["run"]["value"], "search_id": search_id}
    begun = client.post("/v1/runs", json=asked)
    one = f"/v1/runs/{begun.json()['id']}"
    teller.calls(begun.json()["id"], "c3a9d15e7f8b4260")
    hears("begin_run", begun, "A job on the shortlist, with one plan and two layers of its placement")
    hears("begin_run", client.post("/v1/runs", json=RUN_EXAMPLES["run"]["value"]), "No search has this id")
    hears("get_run", client.get(one), "The run as it began")
    hears("get_run", client.get("/v1/runs/unknown"), "No run has this id")
    decided = client.post(f"{one}/windows", json=WINDOW_EXAMPLES["mixtral"]["value"])
    hears("post_window", decided, "Two of 32 layers of the placement are shown")
    shuffled = {**WINDOW_EXAMPLES["mixtral"]["value"], "index": 1, "tokens": [[1, 2]]}
    hears("post_window", client.post(f"{one}/windows", json=shuffled), "Counts of other layers than the model has")
    hears("list_runs", client.get("/v1/runs"), "All runs")
    hears("list_windows", client.get(f"{one}/windows"), "Two of 32 layers are shown")
    hears("list_decisions", client.get(f"{one}/decisions"), "Two of 32 layers are shown")


def _presets(client: TestClient, teller: Teller) -> None:
    hears, profile = teller.hears, body_of(measured_core())
    hears("list_models", client.get("/v1/models"), "The first names")
    hears("get_model", client.get("/v1/models/mixtral-8x7b"), "Mixtral-8x7B")
    hears("get_model", client.get("/v1/models/mixtrall"), "A name that is nearly right")
    hears("list_devices", client.get("/v1/devices"), "The first names")
    hears("get_device", client.get("/v1/devices/h100-sxm-80g"), "H100 with 80 GB")
    hears("list_stacks", client.get("/v1/stacks"), "All names")
    hears("get_stack", client.get("/v1/stacks/megatron-core-2026"), "What is usual today")
    kept = client.put("/v1/profiles/our-core", json=profile)
    tag = kept.headers["etag"]
    hears("put_profile", kept, "The profile is new")
    hears("put_profile", client.put("/v1/profiles/our-core", json=profile), "The same profile again")
    late = client.put("/v1/profiles/our-core", json=profile, headers={"If-Match": '"another"'})
    hears("put_profile", late, "Somebody else changed it meanwhile")
    hears("put_profile", client.put("/v1/profiles/h100-sxm-80g", json=profile), "The name of a preset")
    hears("list_profiles", client.get("/v1/profiles"), "One profile")
    hears("get_profile", client.get("/v1/profiles/our-core"), "A processor core, with some of its samples")
    hears("get_profile", client.get("/v1/profiles/unknown"), "No profile has this name")
    refused = client.delete("/v1/profiles/our-core", headers={"If-Match": f"{tag}-old"})
    hears("delete_profile", refused, "Somebody else changed it meanwhile")
    assert client.delete("/v1/profiles/our-core", headers={"If-Match": tag}).status_code == 204


@contextmanager
def storyteller() -> Iterator[TestClient]:
    """A service with the real search, on a database of its own."""
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(open_database(f"sqlite:///{folder}/story.db")) as database,
        running(database, search, max_wait_s=600.0, workers=1) as client,
    ):
        yield client


def text_of(told: Told) -> str:
    """The content of the file."""
    return json.dumps(told, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> None:
    """Write the file."""
    with storyteller() as client:
        Path(ANSWERS_FILE).write_text(text_of(tell(client)), encoding="utf-8")
    print(f"{ANSWERS_FILE}: {Path(ANSWERS_FILE).stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
