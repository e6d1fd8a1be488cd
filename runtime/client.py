"""The planner service over HTTP, as the agent needs it. Blocks; the agent calls it off the training thread.

Whatever the service does wrong (does not answer, answers with an error of its own or with something else than promised)
is UnavailableError: later may be better. What the service finds wrong with a request is InputError.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from planner.spec.decision import Decision
from planner.spec.errors import InputError, UnavailableError
from planner.spec.parse import parse, read_json
from planner.spec.placement import Placement
from planner.spec.run import Run, RunRequest
from planner.spec.value import Index, Value
from planner.spec.window import Window

T = TypeVar("T", bound=Value)

_REFUSALS = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.CONFLICT,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    }
)
"""Answers that will be the same next time."""


class Attachment(Value):
    """A run that an agent reports to, what is in force there, and where its history goes on."""

    run: Run
    plan_id: str
    placement: Placement | None
    next_index: Index = 0
    next_step: Index = 0


class PlannerService:
    """The routes of a planner service that belong to runs."""

    def __init__(self, url: str, token: str | None, timeout_s: float) -> None:
        """`url` is the service's root; `token` goes along as a bearer token. Raises InputError for no HTTP address."""
        if httpx.URL(url).scheme not in ("http", "https"):
            raise InputError.at("service", f"must be an http or https address, got {url!r}")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)

    def attach(self, name: str, search: str | None, plan: str | None) -> Attachment:
        """Find the run of this id, or the newest of this name; else begin one from the search.

        In an existing run, what was decided last counts as in force, unless `plan` says otherwise.
        Raises InputError if there is none and no search to begin it from, or if the service refuses.
        """
        run = self._find(name)
        if run is not None:
            return self._with_history(run, plan)
        if search is None:
            raise InputError.at("run", f"the service has no run {name!r}; give search= (a search's id) to begin one")
        request = RunRequest(name=name, search_id=search, plan_id=plan)
        response = self._send("POST", "/v1/runs", request)
        begun = _read(Run, _accepted(response))
        return Attachment(run=begun, plan_id=begun.plan_id, placement=begun.placement)

    def post_window(self, run_id: str, window: Window) -> Decision:
        """Deliver a window, get the decision; InputError: this window will never be accepted."""
        response = self._send("POST", f"/v1/runs/{quote(run_id, safe='')}/windows", window)
        if response.status_code in _REFUSALS:
            raise InputError.at(f"window {window.index}", f"the service refused it: {_detail(response)}")
        if not response.is_success:
            raise UnavailableError(_detail(response))
        return _read(Decision, response)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _find(self, name: str) -> Run | None:
        response = self._send("GET", f"/v1/runs/{quote(name, safe='')}")
        if response.is_success:
            return _read(Run, response)
        if response.status_code not in (HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY):  # 422: no id looks so
            _accepted(response)
        named = self._items(_accepted(self._send("GET", f"/v1/runs?name={quote(name, safe='')}&limit=1")))
        return _value(Run, named[0]) if named else None

    def _with_history(self, run: Run, plan: str | None) -> Attachment:
        """Go on after the last window that the service has."""
        last: Decision | None = None
        placement, path = run.placement, f"/v1/runs/{run.id}/decisions"
        while path is not None:
            response = _accepted(self._send("GET", path))
            for item in self._items(response):
                last = _value(Decision, item)
                placement = last.placement or placement
            path = _json(response).get("next")
        if last is None:
            return Attachment(run=run, plan_id=plan or run.plan_id, placement=placement)
        after = f"&after={last.window - 1}" if last.window else ""
        windows = self._items(_accepted(self._send("GET", f"/v1/runs/{run.id}/windows?limit=1{after}")))
        if not windows:
            raise UnavailableError(f"the service has a decision for window {last.window}, but not the window")
        window = _value(Window, windows[0])
        return Attachment(
            run=run,
            plan_id=plan or last.plan_id,
            placement=placement,
            next_index=last.window + 1,
            next_step=window.first_step + window.num_steps,
        )

    def _items(self, response: httpx.Response) -> list[Any]:
        content = _json(response)
        items = content.get("items") if isinstance(content, dict) else None
        if not isinstance(items, list):
            raise UnavailableError(f"{response.request.url.path} did not answer with a list of items")
        return items

    def _send(self, method: str, path: str, body: Value | None = None) -> httpx.Response:
        content = None if body is None else body.model_dump_json(exclude_none=True)
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            return self._client.request(method, path, content=content, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnavailableError(f"{type(error).__name__}: {error}") from None


def _accepted(response: httpx.Response) -> httpx.Response:
    """The response if it is a success; InputError if the request was at fault, UnavailableError if the service was."""
    status = response.status_code
    if response.is_success:
        return response
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise InputError.at("token", f"the service does not let us in: {_detail(response)}")
    if status in _REFUSALS or status == HTTPStatus.NOT_FOUND:
        raise InputError.at("run", f"the service refused: {_detail(response)}")
    raise UnavailableError(_detail(response))


def _detail(response: httpx.Response) -> str:
    """What the problem document says, or at least the status."""
    try:
        content = response.json()
    except ValueError:
        content = None
    said = content.get("detail") if isinstance(content, dict) else None
    return f"{response.status_code} {response.reason_phrase}" + (f": {said}" if said else "")


def _json(response: httpx.Response) -> Any:
    try:
        return read_json(response.content, "answer")
    except InputError as error:
        raise UnavailableError(f"{response.request.url.path}: {error}") from None


def _read(kind: type[T], response: httpx.Response) -> T:
    return _value(kind, _json(response))


def _value(kind: type[T], data: object) -> T:
    try:
        return parse(kind, data)
    except InputError as error:
        raise UnavailableError(f"the answer is no {kind.__name__.lower()}: {error}") from None
