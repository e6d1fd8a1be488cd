"""Pages of searches: the list with the form that begins one, one search while it runs, and what it found."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Form, Response
from fastapi.responses import RedirectResponse

from api.jobs import Jobs
from api.problems import ProblemDocument, problem_of
from api.routes.parameters import After, SearchId
from api.search_store import SearchStore
from api.tokens import Caller
from api.turns import in_turn
from api.values import PresetList, Search
from api.web.html import Html, Who
from api.web.search_form import FIRST_FORM, LABELS, SearchForm, by_place
from planner.spec.cluster import Precision
from planner.spec.errors import ConflictError, InputError, UnavailableError
from planner.spec.parse import parse
from planner.spec.request import SearchRequest, Target
from planner.view import certificate_line, fastest_everywhere, misfit_line, scenario_table, shortlist_table
from profiles import model_names

ON_A_PAGE = 20
Ask = Callable[[SearchRequest], Search]


class SearchPages:
    """/ and /searches."""

    def __init__(self, html: Html, store: SearchStore, jobs: Jobs, ask: Ask, devices: Callable[[], PresetList]) -> None:
        """`ask` queues a search, as the API does; `devices` are those that a cluster can have."""
        self._html = html
        self._store = store
        self._jobs = jobs
        self._ask = ask
        self._devices = devices

    def router(self) -> APIRouter:
        """All pages."""
        router = APIRouter()
        add = router.add_api_route
        add("/", self.all, methods=["GET"], operation_id="page_searches")
        add("/searches", in_turn(self.begin), methods=["POST"], operation_id="page_begin_search")
        add("/searches/{search_id}", self.one, methods=["GET"], operation_id="page_search")
        add("/searches/{search_id}/cancel", in_turn(self.cancel), methods=["POST"], operation_id="page_cancel_search")
        add("/searches/{search_id}/again", in_turn(self.again), methods=["POST"], operation_id="page_search_again")
        return router

    def all(self, who: Who, after: After = None) -> Response:
        """Searches, newest first, below the form."""
        return self._list(who, after, FIRST_FORM)

    def begin(self, form: Annotated[SearchForm, Form()], who: Who) -> Response:
        """Queue a search and go to its page; what is wrong is shown beside what was typed."""
        try:
            search = self._ask(form.request())
        except (InputError, UnavailableError) as error:
            return self._list(who, None, form, problem_of(error))
        return RedirectResponse(f"/searches/{search.id}", HTTPStatus.SEE_OTHER)

    def one(self, search_id: SearchId, who: Who) -> Response:
        """How far it is, or what it found, or why it failed."""
        search = self._store.search(search_id)
        if search.best_plan_id is None:
            return self._html.page("search.html", who, search=search)
        shortlist = self._store.shortlist(search_id)
        assert not isinstance(shortlist, ProblemDocument)
        sureness, _, space = certificate_line(shortlist).partition("\n")
        return self._html.page(
            "search_found.html",
            who,
            search=search,
            shortlist=shortlist,
            plans=shortlist_table(shortlist),
            scenarios=scenario_table(shortlist),
            misfit=misfit_line(shortlist, shortlist.plans[0]),
            safe=fastest_everywhere(shortlist),
            sureness=sureness,
            space=space,
        )

    def cancel(self, search_id: SearchId) -> Response:
        """End it; a search that has ended meanwhile shows how."""
        with suppress(ConflictError):
            self._jobs.cancel(search_id)
        return RedirectResponse(f"/searches/{search_id}", HTTPStatus.SEE_OTHER)

    def again(self, search_id: SearchId, target: Annotated[Target, Form()]) -> Response:
        """Ask the same for another framework, and go to that search."""
        request = self._store.search(search_id).request
        options = request.options.model_copy(update={"target": target})
        asked = parse(SearchRequest, request.model_copy(update={"options": options}).model_dump(exclude_unset=True))
        return RedirectResponse(f"/searches/{self._ask(asked).id}", HTTPStatus.SEE_OTHER)

    def _list(
        self, who: Caller, after: str | None, form: SearchForm, problem: ProblemDocument | None = None
    ) -> Response:
        found = self._store.glances(ON_A_PAGE + 1, after)
        wrong = by_place(form, problem.errors or ()) if problem else {}
        if problem and not problem.errors:
            wrong = {"": [problem.detail]}
        return self._html.page(
            "searches.html",
            who,
            problem.status if problem else HTTPStatus.OK,
            searches=found[:ON_A_PAGE],
            is_first=after is None,
            older=found[ON_A_PAGE - 1].id if len(found) > ON_A_PAGE else None,
            form=form,
            wrong=wrong,
            labels=LABELS,
            models=model_names(),
            devices=self._devices().items,
            precisions=[precision.value for precision in Precision],
            targets=[target.value for target in Target],
        )
