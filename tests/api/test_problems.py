"""The translation of the error tree: nothing missing, nothing leaked, fields that point into the input."""

import inspect

import pytest

from api.answers import RETRY_AFTER_S, problem_response
from api.problems import MEANINGS, meaning, problem_of, status_problem
from planner.spec import errors
from planner.spec.errors import InputError, InternalError, NearestMiss, NoPlanFitsError, Problem, TrimtabError


def classes_of_the_tree():
    members = inspect.getmembers(errors, inspect.isclass)
    return [kind for _, kind in members if issubclass(kind, TrimtabError)]


@pytest.mark.parametrize("kind", classes_of_the_tree(), ids=lambda kind: kind.__name__)
def test_every_class_of_the_error_tree_has_a_meaning_of_its_own(kind):
    assert kind in MEANINGS


def test_the_table_names_no_class_that_is_not_in_the_tree():
    assert set(MEANINGS) == set(classes_of_the_tree())


def test_a_class_below_takes_the_meaning_of_the_nearest_above():
    class Special(InputError):
        pass

    assert meaning(Special.at("x", "y")) is MEANINGS[InputError]


@pytest.mark.parametrize(
    ("field", "pointer"),
    [
        ("cluster.nodes", "#/cluster/nodes"),
        ("plan.stages.0.runs", "#/plan/stages/0/runs"),
        ("stages[2].runs[0]", "#/stages/2/runs/0"),
        ("model.hf_config.a~b", "#/model/hf_config/a~0b"),
        ("body", "#"),
    ],
)
def test_problems_point_into_the_body(field, pointer):
    [problem] = problem_of(InputError(Problem(field, "is wrong"))).errors
    assert problem.pointer == pointer


def test_problems_of_parameters_have_no_pointer():
    [problem] = problem_of(InputError.at("query.limit", "must be at most 500")).errors
    assert problem.pointer is None
    assert problem.field == "limit"
    assert "query" in problem.message


def test_an_internal_error_keeps_its_details_inside():
    assert "secret" not in problem_of(InternalError("secret")).model_dump_json()


def test_the_nearest_miss_travels_as_numbers():
    document = problem_of(NoPlanFitsError(NearestMiss("pp2", 1, 2**30, 2**34))).document()
    assert document["stage"] == 1
    assert document["missing_bytes"] == 2**30
    assert document["status"] == 422
    assert "errors" not in document


@pytest.mark.parametrize(("status", "said"), [(503, str(RETRY_AFTER_S)), (429, str(RETRY_AFTER_S)), (500, None)])
def test_a_problem_that_passes_says_when_to_try_again_whoever_answers_it(status, said):
    assert problem_response(status_problem(status, "x")).headers.get("retry-after") == said
    assert problem_response(status_problem(status, "x"), {"Retry-After": "60"}).headers["retry-after"] == "60"
