"""Headers that keep browsers from doing with our answers what they are not for."""

import re

import pytest
from invented_searches import TINY_REQUEST

from api.safe_headers import script_hashes


def policy(answer):
    """{directive: its sources}."""
    parts = (part.split() for part in answer.headers["content-security-policy"].split(";"))
    return {name: set(sources) for name, *sources in parts}


PATHS = [
    "/v1/models",
    "/v1/nothing",
    "/healthz",
    "/docs",
    "/sign-in",
    "/static/swagger-ui.css",
    "/metrics",
    "/openapi.json",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("access", ["open", "tokens"])
def test_every_answer_has_them(serve, path, access):
    headers = serve(access=access).get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert "frame-ancestors" in headers["content-security-policy"]
    is_guarded = path.startswith("/v1") or path == "/metrics"
    assert (headers.get("cache-control") == "no-store") == (is_guarded or path == "/sign-in")


def test_refusals_of_middleware_have_them_too(serve):
    client = serve(max_body_bytes=10)
    assert client.post("/v1/searches", content=b" " * 11).headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["searches/{search}/shortlist/picture", "plans/{plan}/picture", "runs/{run}/picture"])
def test_a_picture_runs_no_script(client, path):
    search = client.post("/v1/searches", json=TINY_REQUEST, headers={"Prefer": "wait=20"}).json()
    run = client.post("/v1/runs", json={"name": "x", "search_id": search["id"]}).json()["id"]
    names = {"search": search["id"], "plan": search["best_plan_id"], "run": run}
    answer = client.get(f"/v1/{path.format(**names)}")
    assert answer.headers["content-type"].startswith("image/svg+xml")
    found = policy(answer)
    assert found["default-src"] == {"'none'"} and "script-src" not in found and "sandbox" in found
    assert found == policy(client.get("/assets/trimtab.svg")), "one policy for all pictures"
    assert "<script" not in answer.text and not re.search(r"\son\w+=", answer.text)


def test_swagger_ui_runs_its_own_scripts_and_no_others(client):
    answer = client.get("/docs")
    (digest,) = script_hashes(answer.text)
    assert policy(answer)["script-src"] == {"'self'", f"'{digest}'"}
    assert re.findall("<script[^>]*>", answer.text) == ['<script src="static/swagger-ui-bundle.js">', "<script>"]


def test_pages_load_nothing_from_elsewhere(client):
    for path in ("/docs", "/sign-in"):
        sources = set().union(*policy(client.get(path)).values())
        assert not {source for source in sources if re.search(r"https?:|\*|'unsafe-eval'", source)}
        assert "'unsafe-inline'" not in policy(client.get(path))["script-src"]
