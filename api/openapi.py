"""The parts of the OpenAPI document that FastAPI does not write by itself: media types of problems, examples, links,
roles.

All of it is made when the document is asked for the first time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.access_document import declare_access
from api.answers import PROBLEM_TYPE
from api.example_answers import Told, events_of, example_of, read_answers
from api.links import links_of
from api.logs import ID_HEADER

Json = dict[str, Any]


def describe(app: FastAPI) -> None:
    """Let the application's OpenAPI document say all of this."""

    def openapi() -> Json:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                summary=app.summary,
                description=app.description,
                tags=app.openapi_tags,
                servers=app.servers,
                license_info=app.license_info,
                routes=app.routes,
            )
            app.openapi_schema = _joined(schema)
            declare_access(app.openapi_schema)
            _complete(app.openapi_schema, read_answers())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _joined(schema: Json) -> Json:
    """One schema for what is told and sent alike, not two: what only answers hold may be left out of requests.

    Of two of the same title, generated clients keep one and lose the other, with all that refers to it.
    """
    schemas = schema["components"]["schemas"]
    names = [name.removesuffix("-Input") for name in schemas if name.endswith("-Input")]
    for name in names:
        sent, told = schemas.pop(f"{name}-Input"), schemas.pop(f"{name}-Output")
        schemas[name] = {**told, "required": sent["required"]}
    text = json.dumps(schema)
    for name in names:
        for kind in ("Input", "Output"):
            text = text.replace(f'"#/components/schemas/{name}-{kind}"', f'"#/components/schemas/{name}"')
    joined: Json = json.loads(text)
    return joined


def _complete(schema: Json, answers: Told) -> None:
    schema["components"].setdefault("headers", {})["RequestId"] = {
        "description": "Id of the request, the client's own if it sent one: log lines of the service have it",
        "schema": {"type": "string"},
    }
    for operation in _operations(schema):
        name = operation["operationId"]
        if name == "put_profile":
            body = operation["requestBody"]["content"]["application/json"]
            body["examples"] = {"core": answers["get_profile"]["200"]}
        if name == "watch_search":
            operation["responses"]["200"]["content"]["text/event-stream"]["example"] = events_of(answers)
        for parameter in operation.get("parameters", ()):
            _fill_in(parameter, answers)
        for status, response in operation["responses"].items():
            _retype_problem(status, response)
            response.setdefault("headers", {})[ID_HEADER] = {"$ref": "#/components/headers/RequestId"}
            if links := links_of(name, status):
                response["links"] = links
            _add_example(name, int(status), response, answers)


def _operations(schema: Json) -> Iterator[Json]:
    for path in schema["paths"].values():
        yield from path.values()


def _retype_problem(status: str, response: Json) -> None:
    """Move an answer that is a problem document from application/json, or whatever, to its own media type."""
    if int(status) >= 400:
        found = next((value for value in response.get("content", {}).values() if "ProblemDocument" in str(value)), None)
        if found:
            response["content"] = {PROBLEM_TYPE: found}


def _add_example(operation: str, status: int, response: Json, answers: Told) -> None:
    """One example where an answer has a schema and none yet."""
    for kind in ("application/json", PROBLEM_TYPE):
        content = response.get("content", {}).get(kind)
        if content is not None and not {"example", "examples"} & set(content):
            example = example_of(answers, operation, status, response["description"])
            if example is not None:
                content["examples"] = {"answer": example}


def _fill_in(parameter: Json, answers: Told) -> None:
    """Ids in paths are those of the story that the examples tell; the plans' are true of the filled-in search."""
    plans = [entry["plan"]["id"] for entry in answers["get_shortlist"]["200"]["value"]["plans"]]
    ids = {
        "plan_id": plans[0],
        "other_plan_id": plans[1],
        "search_id": answers["get_search"]["200"]["value"]["id"],
        "run_id": answers["get_run"]["200"]["value"]["id"],
    }
    if parameter["in"] == "path" and parameter["name"] in ids:
        parameter["example"] = ids[parameter["name"]]
