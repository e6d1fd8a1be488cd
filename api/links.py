"""Links of the OpenAPI document: from an answer to what may be asked next, with the parts of it that this needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_SEARCH, _BEST, _RUN = "$response.body#/id", "$response.body#/best_plan_id", "$response.body#/id"
_FIRST, _SECOND = "$response.body#/plans/0/plan/id", "$response.body#/plans/1/plan/id"
_OF_SEARCH = ("get_search", "get_shortlist", "get_shortlist_picture", "watch_search", "cancel_search")
_OF_PLAN = ("get_plan", "get_plan_estimate", "get_plan_picture", "get_plan_timeline", "explain_plan")
_OF_RUN = ("get_run", "post_window", "list_windows", "list_decisions", "get_run_picture")


def _to(operations: Iterable[str], parameter: str, value: str) -> dict[str, Mapping[str, str]]:
    return {operation: {parameter: value} for operation in operations}


_AFTER_SEARCH = {**_to(_OF_SEARCH, "search_id", _SEARCH), **_to(_OF_PLAN, "plan_id", _BEST)}
LINKS: dict[tuple[str, str], dict[str, Mapping[str, str]]] = {
    ("submit_search", "201"): _AFTER_SEARCH,
    ("submit_search", "202"): _to(_OF_SEARCH, "search_id", _SEARCH),
    ("get_search", "200"): _AFTER_SEARCH,
    ("get_shortlist", "200"): {
        **_to(_OF_PLAN, "plan_id", _FIRST),
        "export_plan": {"plan_id": _FIRST},
        "diff_plans": {"plan_id": _FIRST, "other_plan_id": _SECOND},
        "begin_run": {},
    },
    ("get_plan", "200"): {
        **_to(_OF_PLAN[1:], "plan_id", "$response.body#/id"),
        "export_plan": {"plan_id": "$response.body#/id"},
    },
    ("begin_run", "201"): _to(_OF_RUN, "run_id", _RUN),
    ("get_run", "200"): _to(_OF_RUN[1:], "run_id", _RUN),
    ("post_window", "200"): _to(("list_decisions", "get_run_picture"), "run_id", "$request.path.run_id"),
    ("put_profile", "200"): _to(("get_profile", "delete_profile"), "name", "$request.path.name"),
    ("put_profile", "201"): _to(("get_profile", "delete_profile"), "name", "$request.path.name"),
}
"""By operation and status: operation that may follow, and its parameters. The body that `begin_run` takes names the
search, which is `search_id` of the path."""


def links_of(operation: str, status: str) -> dict[str, Any]:
    """As OpenAPI writes them."""
    found = {}
    for follows, parameters in LINKS.get((operation, status), {}).items():
        link: dict[str, Any] = {"operationId": follows, "parameters": dict(parameters)}
        if follows == "begin_run":
            link["requestBody"] = {"name": "my-run", "search_id": "$request.path.search_id"}
        found[follows] = link
    return found
