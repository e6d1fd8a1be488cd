"""How the service answers what goes wrong, and how strictly it reads JSON. Every error leaves as a problem document."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from http import HTTPStatus
from math import ceil
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Mount

from api.bodies import read_body
from api.database import NO_DATABASE, is_away
from api.problems import ProblemDocument, problem_of, status_problem
from planner.spec.errors import (
    InputError,
    InternalError,
    Problem,
    TooManyRequestsError,
    TrimtabError,
    UnauthenticatedError,
    UnavailableError,
)

log = logging.getLogger(__name__)
LARGE_BODY_BYTES = 65_536
"""Above which a body is parsed beside the event loop."""
CLIENT_GONE = 499
"""As nginx calls it: nobody reads this status but the metrics."""
PROBLEM_TYPE = "application/problem+json"
RETRY_AFTER_S = 5
"""Where an error does not say when to try again."""


class Validate(Protocol):
    """How FastAPI makes a value of data."""

    def __call__(self, value: Any, *, loc: tuple[int | str, ...]) -> tuple[Any, list[dict[str, Any]]]:
        """The value, or pydantic's complaints, whose places begin with `loc`."""


class StrictRequest(Request):
    """A request whose JSON is read as the planner reads it: no NaN, no lone surrogates, one kind of error."""

    _read: Any

    async def json(self) -> Any:
        """The body, or the value of it that was checked before; raises MalformedError."""
        if not hasattr(self, "_read"):
            self._read = read_body(await self.body())
        return self._read

    async def check(self, validate: Validate) -> None:
        """Read the body; make the value of a large one in a thread: it takes long. Raises InputError."""
        body = await self.body()
        if len(body) <= LARGE_BODY_BYTES:
            self._read = read_body(body)
        else:
            self._read = await run_in_threadpool(_value, validate, body)


def _value(validate: Validate, body: bytes) -> Any:
    data = read_body(body)
    value, errors = validate(data, loc=("body",))
    if errors:
        raise input_error(RequestValidationError(errors, body=data))
    return value


class StrictRoute(APIRoute):
    """A route that reads its JSON body before FastAPI does, which would turn our errors into its own."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with a strict request."""
        handle = super().get_route_handler()
        field = self.body_field
        taken = [parameter.alias for parameter in self.dependant.query_params]

        async def strict(request: Request) -> Response:
            own = StrictRequest(request.scope, request.receive)
            check_query(own, taken)
            if field is not None:
                check_json_type(own)
                await own.check(field.validate)
            return await handle(own)

        return strict


def check_query(request: Request, taken: Sequence[str]) -> None:
    """Raise InputError that names the query parameters that are none of those that are taken."""
    unknown = [name for name in dict.fromkeys(request.query_params) if name not in taken]
    if unknown:
        right = f"this takes {', '.join(taken)}" if taken else "this takes none"
        raise InputError(*(Problem(f"query.{name[:80]}", f"is not known; {right}") for name in unknown[:10]))


def check_json_type(request: Request) -> None:
    """Raise HTTPException 415 unless the body is said to be JSON, and plain."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, f"the body must be application/json, not {kind or 'without a type'}")
    if (coding := request.headers.get("content-encoding", "identity").strip().lower()) != "identity":
        raise HTTPException(415, f"the body must not be encoded, it is {coding}")


def problem_response(document: ProblemDocument, headers: dict[str, str] | None = None) -> JSONResponse:
    """A problem document as a response; what passes says when to try again, also where `headers` does not."""
    again = {"Retry-After": str(RETRY_AFTER_S)} if document.status in (429, 503) else {}
    return JSONResponse(document.document(), document.status, again | (headers or {}), media_type=PROBLEM_TYPE)


def error_response(error: TrimtabError) -> JSONResponse:
    """An error of the tree as a response; one that passes says when to try again."""
    return problem_response(problem_of(error), headers_of(error))


def headers_of(error: TrimtabError) -> dict[str, str] | None:
    """What the client's next request should bring, or wait for."""
    if isinstance(error, UnauthenticatedError):
        return {"WWW-Authenticate": 'Bearer realm="trimtab"'}
    if isinstance(error, TooManyRequestsError | UnavailableError):
        return {"Retry-After": str(ceil(error.retry_after_s) or RETRY_AFTER_S)}
    return None


class AnswerProblem(Protocol):
    """How a problem is told to whoever sent a request."""

    def __call__(self, request: Request, document: ProblemDocument, headers: dict[str, str] | None = None) -> Response:
        """The answer, with the status of the document."""


def install_error_answers(app: FastAPI, answer: AnswerProblem) -> None:
    """Make every error of this application leave as `answer` puts it: a problem document, or a page for people."""

    @app.exception_handler(TrimtabError)
    async def _ours(request: Request, error: TrimtabError) -> Response:
        document = problem_of(error)
        if document.status == HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("%s %s", request.method, request.url.path, exc_info=error)
        elif document.status > HTTPStatus.INTERNAL_SERVER_ERROR:
            log.warning("%s %s: %s", request.method, request.url.path, error)
        return answer(request, document, headers_of(error))

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        return answer(request, problem_of(input_error(error)))

    @app.exception_handler(HTTPException)
    async def _of_http(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = ", ".join(_methods_at(request, app.routes) or [headers.get("Allow", "")])
        return answer(request, status_problem(error.status_code, str(error.detail)), headers)

    @app.exception_handler(SQLAlchemyError)
    async def _of_database(request: Request, error: SQLAlchemyError) -> Response:
        if not is_away(error):
            raise error
        log.error("%s %s", request.method, request.url.path, exc_info=error)
        return error_response(UnavailableError(NO_DATABASE))

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> Response:
        return answer(request, problem_of(InternalError(str(error))))


def _methods_at(request: Request, routes: Sequence[BaseRoute]) -> list[str]:
    """Those that all routes of a path take together; a router tells those of the first alone."""
    own = [route for route in routes if not isinstance(route, Mount)]  # which takes all that begins as it does
    found = {
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in own)
    }
    return sorted(found | ({"HEAD"} if "GET" in found else set()))


def input_error(error: RequestValidationError) -> InputError:
    """The same complaint in our own words: fields of the body by their path, others under query, header or path."""
    inside = ({**item, "loc": tuple(item["loc"][1:])} for item in error.errors() if item["loc"][0] == "body")
    of_body = InputError.from_details(inside, data=error.body)
    others = InputError.from_details(item for item in error.errors() if item["loc"][0] != "body")
    whole = (Problem("body", each.message) if each.field == "input" else each for each in of_body.problems)
    return InputError(*others.problems, *whole, num_more=others.num_more + of_body.num_more)
