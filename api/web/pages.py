"""The pages, as one router: whoever guards it guards all that people see. Its files lie beside, under /assets."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, Request, Response
from fastapi.staticfiles import StaticFiles

from api.answers import problem_response
from api.problems import ProblemDocument
from api.web.html import Html
from api.web.plan_pages import PlanPages
from api.web.run_pages import RunPages
from api.web.search_pages import SearchPages

API = "/v1/"
"""What lies under it answers programs, whoever looks."""


def page_router(searches: SearchPages, plans: PlanPages, runs: RunPages) -> APIRouter:
    """Everything that people see, from / on; none of it is in the OpenAPI document."""
    router = APIRouter(include_in_schema=False)
    for pages in (searches, plans, runs):
        router.include_router(pages.router())
    return router


def assets() -> StaticFiles:
    """Style sheet, script and icon of the pages; nothing in them is secret."""
    return StaticFiles(directory=str(files("api.web") / "assets"))


class Problems:
    """Tells problems: a page to people, a problem document to programs."""

    def __init__(self, html: Html) -> None:
        self._html = html

    def __call__(self, request: Request, document: ProblemDocument, headers: dict[str, str] | None = None) -> Response:
        """The answer, with the status of the document."""
        wants_page = "text/html" in request.headers.get("accept", "")
        if wants_page and not request.url.path.startswith(API):
            return self._html.page(
                "problem.html", request.scope.get("caller"), document.status, headers, problem=document
            )
        return problem_response(document, headers)
