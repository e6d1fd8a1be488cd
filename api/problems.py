"""The one translation of the error tree: to problem documents (RFC 9457) for HTTP, and to exit codes for the shell."""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus

from pydantic import BaseModel, ConfigDict

from planner.spec.errors import (
    CancelledError,
    ConflictError,
    ForbiddenError,
    InputError,
    InternalError,
    MalformedError,
    NoPlanFitsError,
    NotFoundError,
    PreconditionError,
    Problem,
    RankFailedError,
    TooLargeError,
    TooManyRequestsError,
    TrimtabError,
    UnauthenticatedError,
    UnavailableError,
)


@dataclass(frozen=True)
class Meaning:
    """What one kind of error is for the world outside."""

    status: HTTPStatus
    exit_code: int
    title: str


MEANINGS: dict[type[TrimtabError], Meaning] = {
    TrimtabError: Meaning(HTTPStatus.INTERNAL_SERVER_ERROR, 1, "Internal error"),
    InputError: Meaning(HTTPStatus.UNPROCESSABLE_ENTITY, 2, "The input cannot be right"),
    MalformedError: Meaning(HTTPStatus.BAD_REQUEST, 2, "The input cannot be read"),
    NoPlanFitsError: Meaning(HTTPStatus.UNPROCESSABLE_ENTITY, 3, "No plan fits in memory"),
    NotFoundError: Meaning(HTTPStatus.NOT_FOUND, 2, "Not found"),
    ConflictError: Meaning(HTTPStatus.CONFLICT, 2, "The state forbids this"),
    PreconditionError: Meaning(HTTPStatus.PRECONDITION_FAILED, 2, "It has changed meanwhile"),
    TooLargeError: Meaning(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, 2, "Too large"),
    ForbiddenError: Meaning(HTTPStatus.FORBIDDEN, 2, "Not allowed"),
    UnauthenticatedError: Meaning(HTTPStatus.UNAUTHORIZED, 2, "A token is required"),
    TooManyRequestsError: Meaning(HTTPStatus.TOO_MANY_REQUESTS, 1, "Too many requests"),
    UnavailableError: Meaning(HTTPStatus.SERVICE_UNAVAILABLE, 1, "Unavailable"),
    CancelledError: Meaning(HTTPStatus.CONFLICT, 130, "Cancelled"),
    RankFailedError: Meaning(HTTPStatus.INTERNAL_SERVER_ERROR, 1, "A rank failed"),
    InternalError: Meaning(HTTPStatus.INTERNAL_SERVER_ERROR, 1, "Internal error"),
}
"""Every class of planner.spec.errors stands here itself; tests/api/test_problems.py proves it."""


class FieldProblem(BaseModel):
    """One thing wrong with the input."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    pointer: str | None = None
    """JSON pointer into the body; absent where another part of the request is wrong."""
    field: str
    """Dotted path, as messages name it."""
    message: str
    """What would be right."""


class ProblemDocument(BaseModel):
    """A problem as RFC 9457 writes it; members without a value are left out."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: tuple[FieldProblem, ...] | None = None
    """What is wrong with the input, part by part."""
    nearest_miss: str | None = None
    """Where no plan fits: the plan that came closest."""
    stage: int | None = None
    """Where no plan fits: the stage of that plan that lacks memory."""
    missing_bytes: int | None = None
    """Where no plan fits: what this stage lacks."""
    limit_bytes: int | None = None
    """Where no plan fits: what this stage may use."""

    def document(self) -> dict[str, object]:
        """As JSON data, without the members that have no value."""
        return self.model_dump(mode="json", exclude_none=True)


def meaning(error: TrimtabError) -> Meaning:
    """How the world outside sees this error: the entry of its class, or of the nearest class above."""
    return next(MEANINGS[kind] for kind in type(error).__mro__ if kind in MEANINGS)


def problem_of(error: TrimtabError) -> ProblemDocument:
    """The problem document of an error; what went wrong inside stays inside."""
    means = meaning(error)
    kind = type(error).__name__.removesuffix("Error")
    base = ProblemDocument(
        type=f"urn:trimtab:problem:{re.sub(r'(?<!^)(?=[A-Z])', '-', kind).lower()}",
        title=means.title,
        status=means.status,
        detail=str(error) if means.status is not HTTPStatus.INTERNAL_SERVER_ERROR else INTERNAL_DETAIL,
    )
    if isinstance(error, InputError):
        return base.model_copy(update={"errors": tuple(_field_problem(problem) for problem in error.problems)})
    if isinstance(error, NoPlanFitsError):
        miss = error.nearest_miss
        return base.model_copy(
            update={
                "nearest_miss": miss.summary,
                "stage": miss.stage,
                "missing_bytes": miss.missing_bytes,
                "limit_bytes": miss.limit_bytes,
            }
        )
    return base


INTERNAL_DETAIL = "an error of the service itself; its log says more"


def status_problem(status: int, detail: str) -> ProblemDocument:
    """A problem that HTTP itself knows: no such route, method not allowed."""
    return ProblemDocument(title=HTTPStatus(status).phrase, status=status, detail=detail)


def _field_problem(problem: Problem) -> FieldProblem:
    place, _, path = problem.field.partition(".")
    if place in ("query", "header", "path"):
        return FieldProblem(field=path or place, message=f"{problem.message} ({place} parameter)")
    parts = re.findall(r"[^.\[\]]+", problem.field)
    pointer = "#/" + "/".join(part.replace("~", "~0").replace("/", "~1") for part in parts)
    return FieldProblem(
        pointer="#" if problem.field == "body" else pointer, field=problem.field, message=problem.message
    )
