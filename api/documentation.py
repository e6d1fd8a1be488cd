"""Swagger UI that needs no internet, and the parts of the OpenAPI document that FastAPI does not write by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, RedirectResponse

from api.answers import PROBLEM_TYPE

DOCS_PAGE = Path(__file__).parent / "pages" / "docs.html"
DESCRIPTION = """
Plans the parallelism of Transformer training, and keeps re-planning while the training runs.

1. `POST /v1/searches` finds a **shortlist** of plans for a model on a cluster. Try it: the filled-in request plans
   Mixtral-8x7B on 8 nodes with 8 H100. With `Prefer: wait=30` the answer is the finished search.
2. `GET /v1/searches/{search_id}/shortlist/picture` shows the plans side by side, `GET /v1/plans/{plan_id}/picture` one
   of them, `GET /v1/plans/{plan_id}/timeline` a step of it for Perfetto; `GET /v1/plans/{plan_id}/explanation` says why
   it is as it is. The finished search names its best one. `GET /v1/plans/{plan_id}/export/{target}` writes the
   launch files of a plan for Megatron-LM, torchtitan, DeepSpeed or Galvatron.
3. `POST /v1/runs` begins a training job on that shortlist; `POST /v1/runs/{run_id}/windows` takes its token counts and
   answers with a decision: keep, rebalance the experts, or switch to another plan. `GET /v1/runs/{run_id}/picture`
   shows what became of it.

Errors are problem documents (RFC 9457) whose `errors` point into the input.
"""
TAGS: list[dict[str, Any]] = [
    {"name": "searches", "description": "The offline stage: searches are jobs that end with a shortlist"},
    {"name": "plans", "description": "Plans, their prices, pictures and explanations"},
    {"name": "runs", "description": "The online stage: windows of token counts in, decisions out"},
    {"name": "presets", "description": "Models and devices that are known by name"},
    {"name": "health", "description": "For those who watch the service"},
]


def documentation_router() -> APIRouter:
    """Swagger UI at /docs, and the way there from /."""
    router = APIRouter(include_in_schema=False)

    async def swagger_ui() -> FileResponse:
        return FileResponse(DOCS_PAGE, media_type="text/html")

    async def start() -> RedirectResponse:
        return RedirectResponse("docs")

    router.add_api_route("/docs", swagger_ui, methods=["GET"])
    router.add_api_route("/", start, methods=["GET"])
    return router


def describe(app: FastAPI) -> None:
    """Let the application's OpenAPI document say that problems are problem documents."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                tags=app.openapi_tags,
                routes=app.routes,
            )
            _retype_problems(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _retype_problems(schema: dict[str, Any]) -> None:
    """Move each answer that is a problem document from application/json to its own media type."""
    for path in schema["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                content = response.get("content", {})
                if status.isdigit() and int(status) >= 400:
                    found = next((value for value in content.values() if "ProblemDocument" in str(value)), None)
                    if found:
                        response["content"] = {PROBLEM_TYPE: found}
