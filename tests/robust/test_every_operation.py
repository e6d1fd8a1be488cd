"""Schemathesis over the whole OpenAPI document: no answer that it does not have, on things that are there and not.

Not checked is whether all that fits the schemas is accepted: much that a plan must hold to is no matter of a schema.
"""

from __future__ import annotations

import pytest
import schemathesis
from answers import check_problem
from effort import effort
from hypothesis import given
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS
from sqlalchemy import create_engine

from api.app import create_app
from api.database import Database
from api.settings import Settings
from planner.search import search

DOCUMENT = create_app(Settings(), Database(create_engine("sqlite://")), search).openapi()
for _operations in DOCUMENT["paths"].values():
    for _operation in _operations.values():
        _operation.pop("security", None)  # this service is on loopback, open to everybody
DOCUMENT.pop("security", None)
OPERATIONS = {
    operation.definition.raw["operationId"]: operation
    for operation in (found.ok() for found in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations())
}
UNCHECKED = [CHECKS.get_one("positive_data_acceptance")]
ABOUT_WHAT_IS_THERE = [*UNCHECKED, CHECKS.get_one("negative_data_rejection")]
"""A true id may take the place of the very thing that was wrong with a case."""
TAKES_NOTHING = {"list_models", "list_devices", "list_stacks", "healthz", "readyz", "metrics"}
"""Operations that no input can be wrong for."""
SENT = {"method": "method", "url": "url", "headers": "headers", "params": "params", "json": "json", "data": "content"}
"""What a case says of a request, by the names that the client has for it."""


def send(client, case):
    """The answer to a case."""
    said = case.as_transport_kwargs(base_url="http://testserver")
    return client.request(**{SENT[name]: value for name, value in said.items() if name in SENT})


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_answer_is_documented(service, name, mode):
    client, ids = service
    if mode is GenerationMode.NEGATIVE and name in TAKES_NOTHING:
        assert not OPERATIONS[name].definition.raw.get("parameters"), "it takes something by now"
        return

    @effort(10)
    @given(OPERATIONS[name].as_strategy(generation_mode=mode), st.integers(0, 3))
    def ask(case, chance):
        if chance:  # three of four go to what is there
            known = {key: ids[key] for key in case.path_parameters or () if key in ids}
            case.path_parameters = {**(case.path_parameters or {}), **known}
        answer = send(client, case)
        case.validate_response(answer, excluded_checks=ABOUT_WHAT_IS_THERE if chance else UNCHECKED)
        if answer.status_code >= 400:
            check_problem(answer)

    ask()
