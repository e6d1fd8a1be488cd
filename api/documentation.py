"""Swagger UI and ReDoc, which need no internet, and what the OpenAPI document says first."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader

from api.safe_headers import page_policy, script_hashes

LOGO_ELSEWHERE = "https://cdn.redoc.ly/redoc/logo-mini.svg"
"""The one thing that ReDoc's script fetches from another host."""
DESCRIPTION = """
Give it a model, a cluster and a batch size, and it answers with plans; while the training runs, it keeps re-planning.

1. `POST /v1/searches` finds a **shortlist** of plans for a model on a cluster. Try it: the filled-in request plans
   Mixtral-8x7B on 8 nodes with 8 H100. With `Prefer: wait=30` the answer is the finished search.
2. `GET /v1/searches/{search_id}/shortlist/picture` shows the plans side by side, `GET /v1/plans/{plan_id}/picture` one
   of them, `GET /v1/plans/{plan_id}/timeline` a step of it for Perfetto; `GET /v1/plans/{plan_id}/explanation` says why
   it is as it is. The finished search names its best one. `GET /v1/plans/{plan_id}/export/{target}` writes the
   launch files of a plan for Megatron-LM, torchtitan, DeepSpeed or Galvatron.
3. `POST /v1/runs` begins a training job on that shortlist; `POST /v1/runs/{run_id}/windows` takes its token counts and
   answers with a decision: keep, rebalance the experts, or switch to another plan. `GET /v1/runs/{run_id}/picture`
   shows what became of it.

Errors are problem documents (RFC 9457) whose `errors` point into the input. Units are in names: `_s` seconds, `_bytes`
bytes, `_flops` floating-point operations, `_bytes_per_s` and so on, `_ratio` a share or factor without unit; times are
UTC. Every answer has the header `X-Request-ID`, which the service's log has too. Examples of answers are true, and
shortened: the plans in them are those of the filled-in search. The same to read: [ReDoc](redoc).
"""
TAGS: list[dict[str, Any]] = [
    {
        "name": "searches",
        "description": "The offline stage: searches are jobs that end with a shortlist. `queued` and `running` go on "
        "by themselves; `succeeded`, `failed` and `cancelled` are final",
    },
    {"name": "plans", "description": "Plans, their prices, pictures, explanations, and launch files of them"},
    {"name": "runs", "description": "The online stage: windows of token counts in, decisions out"},
    {
        "name": "presets",
        "description": "Models, devices and software stacks that are known by name, and measured profiles of machines",
    },
    {"name": "health", "description": "For those who watch the service"},
]


def documentation_router() -> APIRouter:
    """Swagger UI at /docs, ReDoc at /redoc."""
    router = APIRouter(include_in_schema=False)

    pages = Environment(loader=PackageLoader("api", "pages"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    docs_page = pages.get_template("docs.html").render()
    redoc_page = pages.get_template("redoc.html").render()
    policy = {"Content-Security-Policy": page_policy(*script_hashes(docs_page))}

    async def swagger_ui() -> HTMLResponse:
        return HTMLResponse(docs_page, headers=policy)

    async def redoc() -> HTMLResponse:
        return HTMLResponse(redoc_page)

    async def redoc_script() -> Response:
        script = (files("fastapi_offline") / "static" / "redoc.standalone.js").read_text(encoding="utf-8")
        text = script.replace(LOGO_ELSEWHERE, "static/favicon.png")
        return Response(text, media_type="text/javascript", headers={"Cache-Control": "public, max-age=86400"})

    router.add_api_route("/docs", swagger_ui, methods=["GET"])
    router.add_api_route("/redoc", redoc, methods=["GET"])
    router.add_api_route("/static/redoc.js", redoc_script, methods=["GET"])
    return router
