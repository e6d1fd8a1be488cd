"""The OpenAPI document: complete enough to work from, and true."""

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from tokens_in_store import bearer, token

from api.documentation import TAGS
from api.examples import SEARCH_EXAMPLES
from planner.spec.parse import parse
from planner.spec.request import SearchRequest
from planner.spec.timeline import PlanTimeline


@pytest.fixture
def document(client):
    return client.get("/openapi.json").json()


def operations(document):
    return [operation for path in document["paths"].values() for operation in path.values()]


def test_the_description_does_not_begin_as_the_summary_does(document):
    first_words = " ".join(document["info"]["summary"].split()[:4])
    assert first_words not in document["info"]["description"]


def test_every_operation_has_an_id_a_description_and_a_known_tag(document):
    tags = {tag["name"] for tag in TAGS}
    ids = [operation["operationId"] for operation in operations(document)]
    assert len(ids) == len(set(ids)) >= 20
    for operation in operations(document):
        assert operation["description"] and operation["summary"]
        assert len(operation["tags"]) == 1 and operation["tags"][0] in tags


def test_every_problem_is_documented_as_a_problem_document(document):
    for operation in operations(document):
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                assert list(response["content"]) == ["application/problem+json"], (operation["operationId"], status)
                assert response["content"]["application/problem+json"]["schema"]["$ref"].endswith("/ProblemDocument")


def test_refusals_at_the_door_are_documented_as_they_are_answered(document, serve, database):
    client = serve(access="tokens", max_requests_per_minute=2)
    reader = bearer(token(database, "read"))
    asked = {
        "401": client.get("/v1/searches"),
        "403": client.post("/v1/searches", json={}, headers=reader),
        "429": [client.get("/v1/searches", headers=reader) for _ in range(3)][-1],
    }
    for status, answer in asked.items():
        assert answer.status_code == int(status), answer.text
        for operation in operations(document):
            if (told := operation["responses"].get(status)) is None:
                continue
            (example,) = told["content"]["application/problem+json"]["examples"].values()
            for key in ("type", "title"):
                assert example["value"][key] == answer.json()[key]
            documented = {name.lower() for name in told["headers"]}
            assert {"www-authenticate", "retry-after"} & set(answer.headers) <= documented


def test_what_takes_a_body_documents_how_bodies_fail(document):
    for operation in operations(document):
        if "requestBody" in operation:
            assert {"400", "413", "415", "422"} <= set(operation["responses"]), operation["operationId"]


def test_nothing_speaks_of_fastapi_s_own_errors(document):
    assert "HTTPValidationError" not in str(document)


@pytest.mark.parametrize(
    "path", ["plans/{plan_id}/picture", "searches/{search_id}/shortlist/picture", "runs/{run_id}/picture"]
)
def test_pictures_are_documented_as_svg_with_an_example(document, path):
    ok = document["paths"][f"/v1/{path}"]["get"]["responses"]["200"]
    assert list(ok["content"]) == ["image/svg+xml"]
    assert ok["content"]["image/svg+xml"]["example"].startswith("<svg")


def test_the_timeline_is_documented_with_a_true_example(document):
    ok = document["paths"]["/v1/plans/{plan_id}/timeline"]["get"]["responses"]["200"]
    assert ok["content"]["application/json"]["schema"]["$ref"].endswith("/PlanTimeline")
    PlanTimeline.model_validate(ok["content"]["application/json"]["example"])


def test_the_first_example_of_a_search_is_mixtral_on_64_devices():
    request = parse(SearchRequest, next(iter(SEARCH_EXAMPLES.values()))["value"])
    assert request.model.preset == "mixtral-8x7b"
    assert (request.cluster.nodes, request.cluster.devices_per_node) == (8, 8)
    assert (request.training.global_batch_size, request.training.sequence_length) == (1024, 4096)


@pytest.mark.parametrize("name", SEARCH_EXAMPLES)
def test_the_examples_of_searches_are_accepted(client, name):
    assert client.post("/v1/searches", json=SEARCH_EXAMPLES[name]["value"]).status_code == 202


def test_swagger_ui_comes_with_the_service(client):
    page = client.get("/docs").text
    assert "SwaggerUIBundle" in page
    assert "http://" not in page and "https://" not in page
    for path in ("static/swagger-ui-bundle.js", "static/swagger-ui.css", "assets/trimtab.svg", "openapi.json"):
        assert f'"{path}"' in page
        assert client.get(f"/{path}").status_code == 200


def test_the_document_is_openapi(document):
    OpenAPIV31SpecValidator(document).validate()


def test_no_schema_stands_twice_so_that_generated_clients_have_one_plan(document):
    schemas = document["components"]["schemas"]
    assert [name for name in schemas if name.endswith(("-Input", "-Output"))] == []
    titles = [schema["title"] for schema in schemas.values() if "title" in schema]
    assert len(titles) == len(set(titles))
    assert {"id", "summary"} <= set(schemas["Plan"]["properties"])
    assert not {"id", "summary"} & set(schemas["Plan"]["required"])


def test_what_comes_in_headers_is_documented(document):
    paths = document["paths"]
    assert {"Location", "Preference-Applied"} <= set(paths["/v1/searches"]["post"]["responses"]["202"]["headers"])
    assert "Location" in paths["/v1/runs"]["post"]["responses"]["201"]["headers"]
    assert "Retry-After" in paths["/v1/searches"]["post"]["responses"]["503"]["headers"]
    assert "ETag" in paths["/v1/profiles/{name}"]["get"]["responses"]["200"]["headers"]
    for operation in operations(document):
        for response in operation["responses"].values():
            assert "X-Request-ID" in response["headers"]


def test_the_numbers_for_prometheus_begin_as_documented(document, client):
    ok = document["paths"]["/metrics"]["get"]["responses"]["200"]
    for line in ok["content"]["text/plain"]["example"].splitlines():
        assert line in client.get("/metrics").text


def test_redoc_comes_with_the_service(client):
    page = client.get("/redoc").text
    assert '<redoc spec-url="openapi.json"' in page and "<script>" not in page
    assert "http://" not in page and "https://" not in page
    script = client.get("/static/redoc.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert "Redoc" in script.text and "cdn.redoc.ly" not in script.text
