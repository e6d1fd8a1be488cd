"""Searches: ask, look, wait, cancel, and fetch the shortlist."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from api.answers import StrictRoute, problem_response
from api.examples import SEARCH_EXAMPLES
from api.jobs import Jobs
from api.pictures import SvgResponse, picture_of
from api.problems import ProblemDocument
from api.profile_store import ProfileStore
from api.routes.parameters import READS_BODY, After, Limit, SearchId, header, page, problems
from api.search_news import SearchNews
from api.search_store import SearchStore
from api.settings import Settings
from api.size_limits import SizeLimits
from api.turns import in_turn
from api.values import Page, Search, SearchState
from planner.spec.errors import InputError
from planner.spec.request import SearchRequest
from planner.spec.shortlist import Shortlist
from planner.view import shortlist_picture

Prefer = Annotated[
    str | None,
    Header(
        description="`wait=N` (RFC 7240): answer when the search has ended, or after N seconds",
        openapi_examples={
            "at once": {"summary": "Answer at once", "value": ""},
            "wait": {"summary": "Wait up to 30 s for the result", "value": "wait=30"},
        },
    ),
]
IdempotencyKey = Annotated[
    str | None,
    Header(max_length=255, description="The same key with the same body makes one search, however often it is sent"),
]
State = Annotated[SearchState | None, Query(description="Only searches that are in this state now")]
LOOK_S = 0.5
"""How often a waiting client's request looks whether the service stops."""
NEWS_S = 0.25
"""How often the streams of events look for news, all together: about as often as a worker reports."""
RETRY_MS = 1000
"""After which a listener whose stream broke off comes back."""
SILENCE_S = 15.0
"""After which a stream shows that it lives: proxies close what is silent for half a minute or longer."""
UNBUFFERED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""For proxies, which else may keep a stream until it ends."""
EVENTS: dict[str, Any] = {
    "description": "`event: progress` or `event: end`, each with `data:` the search as JSON but for its request",
    "content": {"text/event-stream": {}},
}
"""Without a schema: that of a stream's items is for OpenAPI 3.2, and generators of clients read 3.1."""
_PLACE = {"Location": header("Path of the search")}
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})\"?\s*(?:$|[,;])", re.IGNORECASE)


class SearchRoutes:
    """Routes under /searches."""

    def __init__(
        self,
        store: SearchStore,
        profiles: ProfileStore,
        jobs: Jobs,
        settings: Settings,
        sizes: SizeLimits,
        stopping: Callable[[], bool],
    ) -> None:
        self._store = store
        self._profiles = profiles
        self._jobs = jobs
        self._settings = settings
        self._sizes = sizes
        self._stopping = stopping
        self._listened = SearchNews(store, NEWS_S)

    def router(self) -> APIRouter:
        """All routes."""
        router = APIRouter(prefix="/searches", tags=["searches"], route_class=StrictRoute)
        add = router.add_api_route
        finished: dict[int | str, dict[str, Any]] = {
            201: {
                "model": Search,
                "description": "The search has ended within the time that was asked for, one way or another",
                "headers": {**_PLACE, "Preference-Applied": header("What of `Prefer` was granted")},
            },
            202: {"headers": {**_PLACE, "Preference-Applied": header("What of `Prefer` was granted, if it was sent")}},
        }
        add(
            "",
            self.submit,
            methods=["POST"],
            status_code=202,
            operation_id="submit_search",
            summary="Search for plans",
            response_description="The search is queued; Location says where to look",
            responses={**finished, **problems(*READS_BODY, 404, 409, 503)},
        )
        add(
            "",
            self.list,
            methods=["GET"],
            operation_id="list_searches",
            summary="All searches",
            responses=problems(422),
        )
        one = "/{search_id}"
        add(
            one,
            self.get,
            methods=["GET"],
            operation_id="get_search",
            summary="How far a search is",
            responses=problems(404, 422),
        )
        add(
            one,
            in_turn(self.cancel),
            methods=["DELETE"],
            operation_id="cancel_search",
            summary="Cancel a search",
            responses=problems(404, 409, 422),
        )
        add(
            f"{one}/events",
            self.events,
            methods=["GET"],
            operation_id="watch_search",
            summary="Hear how far a search is, until its end",
            response_class=StreamingResponse,
            responses={200: EVENTS, **problems(404, 422)},
        )
        add(
            f"{one}/shortlist",
            self.shortlist,
            methods=["GET"],
            operation_id="get_shortlist",
            summary="The plans that a search found",
            response_model=Shortlist,
            responses=problems(404, 409, 422),
        )
        add(
            f"{one}/shortlist/picture",
            self.picture,
            methods=["GET"],
            operation_id="get_shortlist_picture",
            summary="The plans that a search found, side by side (SVG)",
            response_class=SvgResponse,
            responses={200: picture_of("Time in parts, regret and memory of each plan"), **problems(404, 409, 422)},
        )
        return router

    async def submit(
        self,
        request: Annotated[SearchRequest, Body(openapi_examples=SEARCH_EXAMPLES)],
        response: Response,
        prefer: Prefer = None,
        idempotency_key: IdempotencyKey = None,
    ) -> Search:
        """Queue a search for the parallel plans of a model on a cluster.

        The answer comes at once with 202; with `Prefer: wait=N` it comes when the search has ended, with 201, or after
        N seconds, with 202. Ended is ended: a search that failed is answered with 201 too; its `state` says so, and its
        `error` why. A search that succeeded links to its shortlist, its best plan, and the picture of that plan.
        """
        wait_s = min(_wait_s(prefer), self._settings.max_wait_s)
        search = await in_turn(self.ask)(request, idempotency_key)
        if wait_s > 0 and not search.state.is_final:
            await self._wait(search.id, wait_s)
            search = await run_in_threadpool(self._store.search, search.id)
        response.headers["Location"] = search.links.self
        if wait_s > 0 and search.state.is_final:
            response.status_code = 201
        if wait_s > 0:
            response.headers["Preference-Applied"] = f"wait={wait_s:g}"
        return search

    def ask(self, request: SearchRequest, key: str | None = None) -> Search:
        """Queue a search, whoever asks for it; raises InputError, ConflictError and UnavailableError."""
        limit_s = self._settings.search_time_limit_s
        if request.options.time_limit_s is not None and request.options.time_limit_s > limit_s:
            raise InputError.at("options.time_limit_s", f"must be at most {limit_s:g} on this service")
        self._sizes.check_options(request.options)
        model = self._sizes.model_of(request.model)
        cluster = self._sizes.cluster_of(request.cluster, self._profiles.find, request.options.target)
        search = self._store.add(request, model, cluster, key, self._settings.max_waiting_searches, limit_s)
        self._jobs.wake()
        return search

    def list(self, limit: Limit = 50, after: After = None, state: State = None) -> Page[Search]:
        """Searches, newest first."""
        read = partial(self._store.page, state=state)
        return page(read, limit, after, "/v1/searches", lambda search: search.id, state=state and state.value)

    def get(self, search_id: SearchId) -> Search:
        """State, progress from 0 to 1, and what it is at."""
        return self._store.search(search_id)

    def cancel(self, search_id: SearchId) -> Search:
        """End a search that waits or runs; its process is killed at once. Cancelling again changes nothing."""
        return self._jobs.cancel(search_id)

    async def events(self, search_id: SearchId) -> StreamingResponse:
        """Server-Sent Events: `progress` whenever there is news, `end` when the search has ended; then the stream ends.

        Each carries the search as JSON but for its request, so a client that comes late or comes back misses nothing. A
        stream that ends without `end` belongs to a service that stops: connect again.
        """
        first = await run_in_threadpool(self._store.search, search_id)
        return StreamingResponse(self._news(first), headers=UNBUFFERED, media_type="text/event-stream")

    def shortlist(self, search_id: SearchId) -> Response:
        """The shortlist with its certificate; for a search that failed, the problem that it met."""
        result = self._store.shortlist(search_id)
        if isinstance(result, ProblemDocument):
            return problem_response(result)
        return Response(result.model_dump_json(), media_type="application/json")

    def picture(self, search_id: SearchId) -> Response:
        """Plans side by side: time in its parts, regret in the scenarios, memory against the limit.

        Legible on light and dark pages. For a search that failed, the problem that it met.
        """
        result = self._store.shortlist(search_id)
        if isinstance(result, ProblemDocument):
            return problem_response(result)
        return SvgResponse(shortlist_picture(self._store.conditions(search_id).model, result))

    async def _wait(self, search_id: str, seconds: float) -> None:
        """Until the search has ended, the time is over, or the service stops."""
        ended = asyncio.wrap_future(await run_in_threadpool(self._jobs.ended, search_id))
        end = time.monotonic() + seconds
        while not ended.done() and not self._stopping() and (left := end - time.monotonic()) > 0:
            await asyncio.wait([ended], timeout=min(left, LOOK_S))

    async def _news(self, search: Search) -> AsyncGenerator[bytes, None]:
        """What is told of a search, as it changes; a comment where nothing changes for long, for proxies' sake."""
        told, told_at = search, time.monotonic()
        yield _event(search)
        if told.state.is_final:
            return
        async with aclosing(self._listened.of(search)) as news:
            async for latest in news:
                if self._stopping():
                    return
                if latest != told:
                    told, told_at = latest, time.monotonic()
                    yield _event(latest)
                elif time.monotonic() - told_at > SILENCE_S:
                    told_at = time.monotonic()
                    yield KEEPALIVE_COMMENT
                if told.state.is_final:
                    return


def _event(search: Search) -> bytes:
    return format_sse_event(
        data_str=search.model_dump_json(exclude={"request"}),
        event="end" if search.state.is_final else "progress",
        retry=RETRY_MS,
    )


def _wait_s(prefer: str | None) -> float:
    """Seconds that a Prefer header asks to wait; 0 where it asks for something else, as RFC 7240 wants."""
    found = _WAIT.search(prefer) if prefer else None
    return float(found[1]) if found else 0.0
