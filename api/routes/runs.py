"""Runs: training jobs, their windows, and the decisions that answer them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Request, Response

from api.access_guard import caller_of
from api.answers import CLIENT_GONE, StrictRoute, check_json_type, problem_response
from api.decider import Refused
from api.deciders import Answer, Deciders
from api.examples import RUN_EXAMPLES, WINDOW_EXAMPLES
from api.pictures import SvgResponse, picture_of
from api.routes.parameters import READS_BODY, After, AfterIndex, Limit, RunId, body_of, header, page, problems
from api.run_pictures import life
from api.run_store import RunStore
from api.runs import Runs
from api.tokens import Caller
from api.turns import in_turn
from api.values import Page
from planner.spec.decision import Action, Decision
from planner.spec.errors import NO_NUL
from planner.spec.run import Run, RunRequest
from planner.spec.window import Window
from planner.view import run_picture

Name = Annotated[str | None, Query(max_length=200, pattern=NO_NUL, description="Only runs of this name")]
log = logging.getLogger(__name__)


class RunRoutes:
    """Routes under /runs."""

    def __init__(
        self, runs: Runs, store: RunStore, deciders: Deciders, on_decision: Callable[[Action, float], None]
    ) -> None:
        """`on_decision` hears of each new decision, and after how many seconds it was kept."""
        self._runs = runs
        self._store = store
        self._deciders = deciders
        self._on_decision = on_decision

    def router(self) -> APIRouter:
        """All routes."""
        router = APIRouter(prefix="/runs", tags=["runs"], route_class=StrictRoute)
        add = router.add_api_route
        add(
            "",
            in_turn(self.begin),
            methods=["POST"],
            status_code=201,
            operation_id="begin_run",
            summary="A training job begins",
            responses={201: {"headers": {"Location": header("Path of the run")}}, **problems(*READS_BODY, 409)},
        )
        add("", self.list, methods=["GET"], operation_id="list_runs", summary="All runs", responses=problems(422))
        one, misses = "/{run_id}", problems(404, 422)
        add(one, self.get, methods=["GET"], operation_id="get_run", summary="One run", responses=misses)
        add(
            f"{one}/windows",
            self.decide,
            methods=["POST"],
            operation_id="post_window",
            summary="Token counts in, decision out",
            response_model=Decision,
            responses={
                200: {"headers": {"Idempotent-Replayed": header("`true` where the window was answered before")}},
                **problems(404, *READS_BODY, 503),
            },
            openapi_extra=body_of(Window, WINDOW_EXAMPLES),
        )
        add(
            f"{one}/windows",
            self.windows,
            methods=["GET"],
            operation_id="list_windows",
            summary="Windows of a run",
            responses=misses,
        )
        add(
            f"{one}/decisions",
            self.decisions,
            methods=["GET"],
            operation_id="list_decisions",
            summary="Decisions of a run",
            responses=misses,
        )
        add(
            f"{one}/picture",
            self.picture,
            methods=["GET"],
            operation_id="get_run_picture",
            summary="A run so far (SVG)",
            response_class=SvgResponse,
            responses={200: picture_of("Loads of experts, imbalance, decisions and what they gain"), **misses},
        )
        return router

    def begin(
        self,
        request: Annotated[RunRequest, Body(openapi_examples=RUN_EXAMPLES)],
        response: Response,
        caller: Annotated[Caller, Depends(caller_of)],
    ) -> Run:
        """Begin a run on the shortlist of a search. The answer holds the first placement, and all that an agent needs
        to decide alone while the service is away.
        """
        caller.check_reports_for(request.name)
        run = self._runs.begin(request)
        response.headers["Location"] = f"/v1/runs/{run.id}"
        return run

    def list(self, limit: Limit = 50, after: After = None, name: Name = None) -> Page[Run]:
        """Runs, newest first."""
        read = partial(self._store.page, name=name)
        return page(read, limit, after, "/v1/runs", lambda run: run.id, name=name)

    def get(self, run_id: RunId) -> Run:
        """The run as it began."""
        return self._store.run(run_id)

    async def decide(self, run_id: RunId, request: Request) -> Response:
        """Keep, rebalance or switch plan, with the reason, the gain and the cost.

        The same index again gives the same decision, whatever else the window holds, and the header
        Idempotent-Replayed: true.
        Windows may be missing or come late.
        """
        check_json_type(request)
        answer = await _while_awaited(request, self._deciders.decide(run_id, await request.body()))
        if answer is None:
            return Response(status_code=CLIENT_GONE)
        if isinstance(answer, Refused):
            if answer.problem.status >= 500:
                log.error("%s %s: %s", request.method, request.url.path, answer.trace or answer.problem.detail)
            return problem_response(answer.problem)
        if not answer.is_repeated:
            self._on_decision(answer.action, answer.seconds)
        headers = {"Idempotent-Replayed": "true"} if answer.is_repeated else None
        return Response(answer.text, headers=headers, media_type="application/json")

    def windows(self, run_id: RunId, limit: Limit = 50, after: AfterIndex = None) -> Page[Window]:
        """Windows in order of their index, as long as the service keeps them; decisions it keeps for good."""
        read = partial(self._store.windows, run_id)
        return page(read, limit, after, f"/v1/runs/{run_id}/windows", lambda window: window.index)

    def decisions(self, run_id: RunId, limit: Limit = 50, after: AfterIndex = None) -> Page[Decision]:
        """Decisions in order of the index of their window."""
        read = partial(self._store.decisions, run_id)
        return page(read, limit, after, f"/v1/runs/{run_id}/decisions", lambda decision: decision.window)

    def picture(self, run_id: RunId) -> SvgResponse:
        """Imbalance before and after each decision, the predicted gain so far, and heat maps of the experts' loads.

        Legible on light and dark pages. It draws the latest 1,000 windows, and the loads of at most 96 of them, and
        says so where there are more.
        """
        return SvgResponse(run_picture(life(self._store, run_id)))


async def _while_awaited(request: Request, asking: Coroutine[Any, Any, Answer]) -> Answer | None:
    """The answer; None where its client has gone before, for whom nobody need decide any more."""
    answer, gone = asyncio.create_task(asking), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else None
    finally:
        answer.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
