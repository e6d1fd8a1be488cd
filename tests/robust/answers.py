"""What every answer of the service must be, whatever was asked."""

from __future__ import annotations

from typing import Any

PROBLEM = "application/problem+json"


def check_problem(answer: Any) -> None:
    """A 4xx as a problem document, whose errors name fields."""
    assert 400 <= answer.status_code < 500, f"{answer.status_code}: {answer.text[:2000]}"
    assert answer.headers["content-type"] == PROBLEM
    document = answer.json()
    assert document["status"] == answer.status_code and document["title"] and document["detail"]
    if answer.status_code == 422:
        assert document["errors"] or document["nearest_miss"]
    for error in document.get("errors", ()):
        assert error["field"] and error["message"], document


def check_sane(answer: Any) -> None:
    """Success, or a problem that is the client's."""
    if not 200 <= answer.status_code < 300:
        check_problem(answer)
