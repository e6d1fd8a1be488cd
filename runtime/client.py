"""The planner service over HTTP, as the agent needs it. Blocks; the agent calls it off the training thread.

Whatever the service does wrong (does not answer, answers with an error of its own or with something else than promised)
is UnavailableError: later may be better. What the service finds wrong with a request is InputError, and so is a token
that it does not take when the job begins; one that it takes no longer later on is ForbiddenError.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote

from planner.spec.decision import Decision
from planner.spec.errors import ForbiddenError, InputError, Problem, UnavailableError
from planner.spec.parse import parse
from planner.spec.placement import Placement
from planner.spec.run import Run, RunRequest
from planner.spec.value import GREATEST_INDEX, Index, Value
from planner.spec.window import Window
from runtime.arguments import ADDRESS, Service, check
from runtime.request import Answer, Requester

T = TypeVar("T", bound=Value)
Get = Callable[[str], Answer]

_REFUSALS = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.CONFLICT,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    }
)
"""Answers that will be the same next time."""
_CLOSED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
"""Answers that say that our token is none, or not the right one."""
_ARGUMENTS = {
    "search_id": "search",
    "plan_id": "plan",
    "name": "run",
    "extra_slots_per_rank": "model",
    "shadow_slots_per_rank": "model",
    "token_split": "model",
}
"""Fields of the body that begins a run, and the agent's arguments that they come from."""
ATTACH_PATIENCE = 3.0
"""To find a run takes several requests: together at most so many times as long as one may take."""
DELIVERY_TIMEOUT_S = 60.0
"""For a window, for whose answer nobody waits: a service that needs long to decide still gets them all."""


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
        self._requester = Requester(url, token)
        self._timeout_s = timeout_s

    def attach(self, name: str, new: RunRequest | None, plan: str | None) -> Attachment:
        """Find the run of this id, or the newest of this name; else begin the `new` one.

        In an existing run, what was decided last counts as in force, unless `plan` says otherwise. Takes at most
        `ATTACH_PATIENCE` times as long as one request may.
        Raises InputError if there is none and no new one to begin, or if the service refuses.
        """
        until = time.monotonic() + ATTACH_PATIENCE * self._timeout_s

        def send(method: str, path: str, body: str | None = None) -> Answer:
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise UnavailableError(f"the run was not found within {ATTACH_PATIENCE * self._timeout_s:g} s")
            return self._requester.send(method, path, body, min(left_s, self._timeout_s))

        def get(path: str) -> Answer:
            return send("GET", path)

        run = _find(get, name)
        if run is not None:
            return _with_history(get, run, plan)
        if new is None:
            raise InputError.at("run", f"the service has no run {name!r}; give search= (a search's id) to begin one")
        begun = _read(Run, _accepted(send("POST", "/v1/runs", new.model_dump_json(exclude_none=True))))
        return Attachment(run=begun, plan_id=begun.plan_id, placement=begun.placement)

    def post_window(self, run_id: str, window: Window) -> tuple[Decision, bool]:
        """Deliver a window; the decision, and whether it was made before, for another window of this index.

        Raises InputError if this window will never be accepted, ForbiddenError if our token lets us not in, or no more.
        """
        path, body = f"/v1/runs/{quote(run_id, safe='')}/windows", window.model_dump_json(exclude_none=True)
        answer = self._requester.send("POST", path, body, max(self._timeout_s, DELIVERY_TIMEOUT_S))
        if answer.status in _REFUSALS:
            raise InputError.at(f"window {window.index}", f"the service refused it: {answer.detail()}")
        if answer.status in _CLOSED:
            raise ForbiddenError(answer.detail())
        if not answer.is_success:
            raise answer.failure()
        decision = _read(Decision, answer)
        if decision.window != window.index:
            raise UnavailableError(f"the answer is for window {decision.window}, not {window.index}")
        return decision, answer.is_repeated


def service_for(
    run: str | None, search: str | None, address: str | None, token: str | None, timeout_s: float, *, records: bool
) -> PlannerService | None:
    """The service of a job on its rank 0, address and token from the environment where not given; None: no service.

    Raises InputError without one for a job that does not record either, or that asks for what needs one.
    """
    address, token = address or os.environ.get("TRIMTAB_SERVICE"), token or os.environ.get("TRIMTAB_TOKEN")
    if not address:
        if records and run is None and search is None:
            return None
        raise InputError.at(
            "service",
            f"is required, here or in TRIMTAB_SERVICE: {ADDRESS}. Without one, record= alone writes the loads down: "
            "Agent(model=…, record=…), without run= and search=",
        )
    check(Service, service=address, token=token or None)
    if run is None:
        raise InputError.at("run", "is required with a service: the id of a run, or a name for this job")
    return PlannerService(address, token, timeout_s)


def _find(get: Get, name: str) -> Run | None:
    answer = get(f"/v1/runs/{quote(name, safe='')}")
    if answer.is_success:
        return _read(Run, answer)
    if answer.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY):  # 422: no id looks so
        _accepted(answer)
    return _first(Run, get(f"/v1/runs?name={quote(name, safe='')}&limit=1"))


def _with_history(get: Get, run: Run, plan: str | None) -> Attachment:
    """Go on after the last window that the service has."""
    last = _last_window(get, f"/v1/runs/{run.id}/windows?limit=1")
    if last is None:
        return Attachment(run=run, plan_id=plan or run.plan_id, placement=run.placement)
    if last.index == GREATEST_INDEX:
        raise InputError.at("run", f"has window {GREATEST_INDEX}, after which none can come; begin one of another name")
    after = f"&after={last.index - 1}" if last.index else ""
    decision = _first(Decision, get(f"/v1/runs/{run.id}/decisions?limit=1{after}"))
    if decision is None or decision.window != last.index:
        raise UnavailableError(f"the service has window {last.index}, but no decision for it")
    return Attachment(
        run=run,
        plan_id=plan or decision.plan_id,
        placement=decision.placement or last.placement or _last_placed(get, run) or run.placement,
        next_index=last.index + 1,
        next_step=last.first_step + last.num_steps,
    )


def _last_window(get: Get, path: str) -> Window | None:
    """The window of the greatest index, in some 2 log2(windows) requests: strides that double, then halves."""
    last = _first(Window, get(path))
    if last is None:
        return None
    stride = 1
    while (found := _first(Window, get(f"{path}&after={_index(last.index + stride - 1)}"))) is not None:
        last, stride = _later(found, last), 2 * stride
    highest = _index(last.index + stride - 1)
    while last.index < highest:
        middle = (last.index + highest) // 2
        found = _first(Window, get(f"{path}&after={middle}"))
        if found is None:
            highest = middle
        else:
            last = _later(found, last)
    return last


def _index(number: int) -> int:
    """A number that an index may be."""
    return min(number, GREATEST_INDEX)


def _last_placed(get: Get, run: Run) -> Placement | None:
    """The placement that was decided last, if any; for a run whose windows do not tell theirs, as the agent's do."""
    placement, path = None, f"/v1/runs/{run.id}/decisions"
    while path:
        answer = get(path)
        for item in _items(answer):
            placement = _value(Decision, item).placement or placement
        path = answer.json().get("next")
    return placement


def _later(found: Window, last: Window) -> Window:
    if found.index <= last.index:
        raise UnavailableError(f"the service shows window {found.index} among those after window {last.index}")
    return found


def _first(kind: type[T], answer: Answer) -> T | None:
    """The first of the items that a list holds."""
    items = _items(answer)
    return _value(kind, items[0]) if items else None


def _items(answer: Answer) -> list[Any]:
    content = _accepted(answer).json()
    items = content.get("items") if isinstance(content, dict) else None
    if not isinstance(items, list):
        raise UnavailableError(f"{answer.path} did not answer with a list of items")
    return items


def _accepted(answer: Answer) -> Answer:
    """The answer if it is a success; InputError if the request was at fault, UnavailableError if the service was."""
    if answer.is_success:
        return answer
    if answer.status in _CLOSED:
        raise InputError.at("token", f"the service does not let us in: {answer.detail()}")
    if answer.status == HTTPStatus.NOT_FOUND:
        raise InputError.at(
            "service",
            f"must be the address of a Trimtab service, such as {ADDRESS}; it has no {answer.path.split('?')[0]}",
        )
    if answer.status in _REFUSALS:
        said = answer.problems() or [("search_id", answer.detail())]
        raise InputError(
            *(Problem(_ARGUMENTS.get(field, "run"), f"{message} (said the service)") for field, message in said)
        )
    raise answer.failure()


def _read(kind: type[T], answer: Answer) -> T:
    return _value(kind, answer.json())


def _value(kind: type[T], data: Any) -> T:
    try:
        return parse(kind, data)
    except InputError as error:
        raise UnavailableError(f"the answer is no {kind.__name__.lower()}: {str(error)[:500]}") from None
