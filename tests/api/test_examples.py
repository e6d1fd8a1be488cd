"""Examples of the OpenAPI document: requests that work, answers that the service really gave, all of their schemas."""

import json
import math

import pytest
from invented_searches import TINY_REQUEST
from jsonschema import Draft202012Validator
from story import storyteller, tell

from api.answers import PROBLEM_TYPE
from api.example_answers import read_answers

SENT_ELSEWHERE = {
    "submit_search": "test_openapi.py",
    "estimate": "test_http_plans.py",
    "estimate_plan_under_other_conditions": "test_http_plans.py",
    "begin_run": "story.py",
    "post_window": "story.py",
    "put_profile": "story.py",
}
"""Where the filled-in requests of each operation are sent."""


@pytest.fixture(scope="module")
def document():
    with storyteller() as client:
        return client.get("/openapi.json").json()


def operations(document):
    return [operation for path in document["paths"].values() for operation in path.values()]


def examples_of(content):
    """Values that stand as example beside a schema."""
    if "example" in content:
        return [content["example"]]
    return [each["value"] for each in content.get("examples", {}).values()]


def problems_of(document, schema, value):
    """What is wrong with a value by a schema of the document."""
    whole = {**schema, "components": document["components"]}
    return [f"{error.json_path}: {error.message}"[:300] for error in Draft202012Validator(whole).iter_errors(value)]


def bodies(document):
    for operation in operations(document):
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            yield (operation["operationId"], "request", kind, content)


def answers(document):
    for operation in operations(document):
        for status, response in operation["responses"].items():
            for kind, content in response.get("content", {}).items():
                yield (operation["operationId"], status, kind, content)


def test_every_body_and_every_answer_has_an_example(document):
    told = [*bodies(document), *answers(document)]
    assert [where[:3] for where in told if not examples_of(where[3])] == []
    assert {where[0] for where in bodies(document)} == set(SENT_ELSEWHERE)


def test_every_example_is_of_its_schema(document):
    wrong = {}
    for operation, status, kind, content in (*bodies(document), *answers(document)):
        for value in examples_of(content) if kind in ("application/json", PROBLEM_TYPE) else ():
            found = problems_of(document, content["schema"], value)
            if found:
                wrong[operation, status] = found[:3]
    assert wrong == {}


def test_every_example_of_a_problem_has_the_status_that_it_stands_for(document):
    for operation, status, kind, content in answers(document):
        for value in examples_of(content) if kind == PROBLEM_TYPE else ():
            assert value["status"] == int(status), operation


def test_the_example_of_events_is_a_stream_of_searches_without_their_requests(document):
    ok = document["paths"]["/v1/searches/{search_id}/events"]["get"]["responses"]["200"]
    blocks = ok["content"]["text/event-stream"]["example"].removesuffix("\n\n").split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == ["event: progress", "event: end"]
    fields = set(document["components"]["schemas"]["Search"]["properties"]) - {"request"}
    for block in blocks:
        assert set(json.loads(block.splitlines()[1].removeprefix("data: "))) == fields


def test_examples_of_parameters_are_of_their_schemas(document):
    for operation in operations(document):
        for parameter in operation.get("parameters", ()):
            assert parameter["description"], (operation["operationId"], parameter["name"])
            for value in examples_of(parameter):
                assert problems_of(document, parameter["schema"], value) == [], operation["operationId"]


def difference(one, other, path="$"):
    """Where two JSON values differ, numbers by more than rounding; None if nowhere."""
    if isinstance(one, dict) and isinstance(other, dict) and set(one) == set(other):
        found = (difference(one[key], other[key], f"{path}.{key}") for key in one)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        found = (difference(*pair, f"{path}[{i}]") for i, pair in enumerate(zip(one, other, strict=True)))
    elif isinstance(one, float) and isinstance(other, int | float):
        return None if math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-12) else f"{path}: {one} and {other}"
    else:
        return None if one == other else f"{path}: {one!r:.200} and {other!r:.200}"
    return next((each for each in found if each), None)


def test_the_examples_of_answers_are_what_the_service_answers():
    with storyteller() as client:
        told = tell(client)
    where = difference(read_answers(), told)
    assert where is None, f"{where}; `make examples` writes them anew"


def test_the_profile_that_is_filled_in_is_accepted(document, client):
    [profile] = examples_of(
        document["paths"]["/v1/profiles/{name}"]["put"]["requestBody"]["content"]["application/json"]
    )
    assert client.put("/v1/profiles/our-core", json=profile).status_code == 201
    request = TINY_REQUEST | {"cluster": {"nodes": 1, "devices_per_node": 4, "device": "our-core"}}
    request["training"] = TINY_REQUEST["training"] | {"precision": "fp32"}
    assert client.post("/v1/searches", json=request).status_code == 202


def test_links_lead_to_operations_that_are_there_with_parameters_that_they_take(document):
    taken = {each["operationId"]: {p["name"] for p in each.get("parameters", ())} for each in operations(document)}
    links = [
        link
        for operation in operations(document)
        for response in operation["responses"].values()
        for link in response.get("links", {}).values()
    ]
    assert len(links) >= 30
    for link in links:
        assert set(link["parameters"]) <= taken[link["operationId"]]
