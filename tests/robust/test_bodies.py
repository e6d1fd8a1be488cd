"""JSON made by hypothesis to every operation that takes a body: accepted, or refused with fields that are named."""

from __future__ import annotations

import json

import pytest
from answers import check_problem, check_sane
from effort import effort
from hypothesis import given
from hypothesis import strategies as st
from mutations import ANY_JSON, RAW, mangled, mutated, renumbered
from seeded import bodies
from test_every_operation import DOCUMENT

JSON = {"content-type": "application/json"}
TAKES_BODY = {
    operation["operationId"]: (method.upper(), path, operation["requestBody"])
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
    if "requestBody" in operation
}


@pytest.fixture(params=TAKES_BODY)
def operation(request, service):
    """A function that sends bytes to an operation, and bodies that it accepts."""
    client, ids = service
    method, path, body = TAKES_BODY[request.param]
    examples = body["content"]["application/json"].get("examples", {})
    valid = [*bodies(ids).get(request.param, ()), *(example["value"] for example in examples.values())]
    assert valid, f"{request.param} has no example"

    def send(content: bytes):
        return client.request(method, path.format(**ids, name="mine"), content=content, headers=JSON)

    return send, valid


def text(value) -> bytes:
    return json.dumps(value).encode()


def test_any_json_is_refused_with_a_field_or_accepted(operation):
    send, _ = operation

    @effort(25)
    @given(ANY_JSON)
    def ask(value):
        check_sane(send(text(value)))

    ask()


def test_what_is_nearly_right_is_refused_with_a_field_or_accepted(operation):
    send, valid = operation

    @effort(40)
    @given(st.sampled_from(valid).flatmap(lambda body: mutated(body) | renumbered(body)))
    def ask(value):
        answer = send(text(value))
        check_sane(answer)
        if answer.status_code == 422:
            for error in answer.json().get("errors", ()):
                assert error["pointer"].startswith("#"), error

    ask()


def test_text_that_is_nearly_json_is_refused_or_read(operation):
    send, valid = operation

    @effort(25)
    @given(st.sampled_from(valid[:2]).flatmap(mangled))
    def ask(content):
        check_sane(send(content))

    ask()


@pytest.mark.parametrize("raw", RAW)
def test_what_is_no_json_is_refused(operation, raw):
    check_problem(operation[0](raw.encode()))


@pytest.mark.parametrize("depth", [50, 500, 5000, 100_000])
def test_depth_has_an_end(operation, depth):
    send, _ = operation
    check_problem(send(b"[" * depth + b"]" * depth))
    check_problem(send(b'{"model":' * depth + b"1" + b"}" * depth))


def test_a_thousand_errors_are_one_problem_document(operation):
    send, _ = operation
    answer = send(text({f"unknown {number}": number for number in range(1000)}))
    check_problem(answer)


MANY = 100_000
WRONG_OVER_AND_OVER = {
    "submit_search": (lambda body: body["cluster"].update(links=[{}] * MANY), "links.0"),
    "begin_run": (lambda body: body.update({f"unknown_{number}": 1 for number in range(MANY)}), "and 99980 more"),
    "post_window": (lambda body: body.update(tokens=[["x"] * MANY] * 2), "tokens.0.0"),
}


@pytest.mark.parametrize("operation", WRONG_OVER_AND_OVER, indirect=True)
def test_a_large_body_that_is_wrong_over_and_over_gets_a_small_answer(operation, request):
    send, valid = operation
    body = json.loads(text(valid[0]))
    spoil, said = WRONG_OVER_AND_OVER[request.node.callspec.params["operation"]]
    spoil(body)
    answer = send(text(body))
    check_problem(answer)
    assert answer.status_code == 422 and said in answer.json()["detail"]
    assert len(answer.content) < 10_000
