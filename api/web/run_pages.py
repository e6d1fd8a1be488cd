"""Pages of runs: training jobs that report, and what was decided for each."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.routes.parameters import After, BeforeIndex, RunId
from api.run_store import RunStore
from api.web.html import Html, Who
from planner.view import decision_table

ON_A_PAGE = 20


class RunPages:
    """/runs."""

    def __init__(self, html: Html, store: RunStore) -> None:
        self._html = html
        self._store = store

    def router(self) -> APIRouter:
        """All pages."""
        router = APIRouter()
        router.add_api_route("/runs", self.all, methods=["GET"], operation_id="page_runs")
        router.add_api_route("/runs/{run_id}", self.one, methods=["GET"], operation_id="page_run")
        return router

    def all(self, who: Who, after: After = None) -> Response:
        """Runs, newest first."""
        found = self._store.glances(ON_A_PAGE + 1, after)
        return self._html.page(
            "runs.html",
            who,
            runs=found[:ON_A_PAGE],
            is_first=after is None,
            older=found[ON_A_PAGE - 1].id if len(found) > ON_A_PAGE else None,
        )

    def one(self, run_id: RunId, who: Who, before: BeforeIndex = None) -> Response:
        """The picture of the run, and its decisions, the latest first."""
        run, now_in_force = self._store.run(run_id), self._store.standing(run_id).state.plan_id
        decisions = self._store.latest_decisions(run_id, ON_A_PAGE + 1, before)
        shown = decisions[:ON_A_PAGE]
        return self._html.page(
            "run.html",
            who,
            run=run,
            plan=run.context.plan(now_in_force),
            first_plan=run.context.plan(run.plan_id),
            decisions=decision_table(shown),
            is_first=before is None,
            older=shown[-1].window if len(decisions) > ON_A_PAGE else None,
        )
