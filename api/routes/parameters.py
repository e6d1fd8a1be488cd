"""Parameters that several routes take, and the problems that they document."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar
from urllib.parse import urlencode

from fastapi import Path, Query
from pydantic import BaseModel

from api.problems import ProblemDocument
from api.values import Page
from planner.spec.errors import NO_NUL

T = TypeVar("T", bound=BaseModel)
K = TypeVar("K", str, int)

PAGE_BYTES = 4 * 2**20
"""Of JSON, after which a page ends: decisions, runs and searches may have a megabyte each."""
PIECE = 10
"""Items that are read at once, so that one look at the database holds some megabytes at most."""
Limit = Annotated[
    int, Query(ge=1, le=500, description="Items of one page; it ends earlier at 4 MiB, and `next` leads to the rest")
]
After = Annotated[str | None, Query(description="Id of the last item of the page before", pattern=NO_NUL)]
AfterIndex = Annotated[int | None, Query(ge=0, lt=2**53, description="Index of the last item of the page before")]
BeforeIndex = Annotated[
    int | None, Query(ge=0, lt=2**53, description="Index of the last item of the page before, newest first")
]
SearchId = Annotated[str, Path(description="Id of a search", max_length=64, pattern=NO_NUL)]
PlanId = Annotated[str, Path(description="Id of a plan, as a shortlist names it", max_length=64, pattern=NO_NUL)]
RunId = Annotated[str, Path(description="Id of a run", max_length=64, pattern=NO_NUL)]
FoundBy = Annotated[
    str | None,
    Query(
        description="The search that found the plan; without it, the latest one that did", max_length=64, pattern=NO_NUL
    ),
]
OtherFoundBy = Annotated[
    str | None, Query(description="The search whose conditions hold for the second plan", max_length=64, pattern=NO_NUL)
]

_WHAT = {
    400: "The body cannot be read: it is not JSON, or holds NaN",
    401: "A token is required, and this is none that is valid",
    403: "The token has not the role, or is for another run; or a page of another site asks",
    404: "Nothing has this id",
    409: "The state of the thing forbids this",
    412: "The thing is another than `If-Match` or `If-None-Match` expects",
    413: "The body is too large",
    415: "The body is not application/json",
    422: "The input cannot be right; `errors` points into it",
    429: "Too many requests; `Retry-After` says for how many seconds to rest",
    500: "An error of the service itself",
    503: "The service cannot take this now",
}


def header(description: str) -> dict[str, Any]:
    """How OpenAPI describes a header of an answer."""
    return {"description": description, "schema": {"type": "string"}}


RETRY_AFTER = {"Retry-After": header("Seconds after which to try again")}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documented problems of a route, besides those that every route may have."""
    found: dict[int | str, dict[str, Any]] = {
        status: {"model": ProblemDocument, "description": _WHAT[status]} for status in sorted({*statuses, 500, 503})
    }
    for status in {429, 503} & set(found):
        found[status]["headers"] = RETRY_AFTER
    if 401 in found:
        found[401]["headers"] = {"WWW-Authenticate": header('`Bearer realm="trimtab"`')}
    return found


READS_BODY = (400, 413, 415, 422)


def body_of(kind: type[BaseModel], examples: Mapping[str, Any]) -> dict[str, Any]:
    """How a route documents a body that it does not read itself; the kind must be among the document's schemas."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}}
    }


def page(
    read: Callable[[int, K | None], Sequence[T]],
    limit: int,
    after: K | None,
    path: str,
    key: Callable[[T], K],
    **query: object,
) -> Page[T]:
    """A page of a list at `path`, from the item after `after` on; `read` takes (at most so many, after which key).

    It ends with the item that makes it `PAGE_BYTES` long. A page that is full, either way, has a next one.
    """
    items, left_bytes, at = list[T](), PAGE_BYTES, after
    while len(items) < limit and left_bytes > 0:
        asked = min(PIECE, limit - len(items))
        found = read(asked, at)
        for item in found:
            items.append(item)
            left_bytes -= len(item.model_dump_json())
            if left_bytes <= 0:
                break
        else:
            if len(found) < asked:
                return Page(items=tuple(items))
        at = key(items[-1])
    given = {name: value for name, value in query.items() if value is not None}
    return Page(items=tuple(items), next=f"{path}?{urlencode({**given, 'limit': limit, 'after': at})}")
