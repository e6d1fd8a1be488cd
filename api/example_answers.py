"""Examples of answers in the OpenAPI document: what the service really answered to the filled-in requests, shortened.

`tests/api/story.py` asks, and writes the file; a test asks again and compares. Problems that no request of that story
meets are made here, from the errors that they stand for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from api.problems import problem_of, status_problem
from planner.spec.errors import (
    ConflictError,
    ForbiddenError,
    InputError,
    InternalError,
    MalformedError,
    NearestMiss,
    NoPlanFitsError,
    NotFoundError,
    TooLargeError,
    TooManyRequestsError,
    TrimtabError,
    UnauthenticatedError,
    UnavailableError,
)
from planner.spec.parse import read_json

ANSWERS_FILE = Path(__file__).with_name("example_answers.json")
Told = dict[str, dict[str, dict[str, Any]]]

_USUAL: dict[int, TrimtabError] = {
    400: MalformedError.at("body", "is not JSON: Expecting value: line 1 column 1 (char 0)"),
    401: UnauthenticatedError("this service needs a token: send Authorization: Bearer ttk_…, or sign in at /sign-in"),
    403: ForbiddenError("this needs a token with the role submit"),
    404: NotFoundError("no search 'unknown'"),
    409: ConflictError("search 5f0c8a1e2b3d4c5f is running and has no shortlist"),
    413: TooLargeError("the body is larger than the 16777216 bytes that this service accepts"),
    422: InputError.at("query.limit", "must be less than or equal to 500, got 1000"),
    429: TooManyRequestsError("more than 12000 requests within a minute; go on in 17 s", 17.0),
    500: InternalError("not shown"),
    503: UnavailableError("1000 searches wait already; try again later"),
}
_NOTHING_FITS = NoPlanFitsError(NearestMiss("pp1 · dp8 zero3 · full", 0, 5 * 2**30, 80 * 10**9))
_SPECIAL: dict[tuple[str, int], TrimtabError] = {
    ("get_shortlist", 422): _NOTHING_FITS,
    ("get_shortlist_picture", 422): _NOTHING_FITS,
}


def read_answers() -> Told:
    """By operation and status what was answered: `summary` and `value`."""
    content = read_json(ANSWERS_FILE.read_bytes(), ANSWERS_FILE.name)
    assert isinstance(content, dict)
    return content


def events_of(answers: Told) -> str:
    """A stream of events: the search that waits, and the one that has succeeded, each without its request."""
    told = (("progress", answers["submit_search"]["202"]["value"]), ("end", answers["get_search"]["200"]["value"]))
    searches = ((event, {key: search[key] for key in search if key != "request"}) for event, search in told)
    return "".join(f"event: {event}\ndata: {json.dumps(search, ensure_ascii=False)}\n\n" for event, search in searches)


def example_of(answers: Told, operation: str, status: int, description: str) -> dict[str, Any] | None:
    """The example of an answer; None for one that is no problem and stands nowhere."""
    found = answers.get(operation, {}).get(str(status))
    if found is not None or status < 400:
        return found
    error = _SPECIAL.get((operation, status)) or _USUAL.get(status)
    document = problem_of(error) if error else status_problem(status, description)
    return {"summary": document.title, "value": document.document()}
