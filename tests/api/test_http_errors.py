"""Bad input over HTTP: each kind is one problem document that says what and where."""

import copy
import json

import invented_searches
import pytest
from invented_searches import TINY_REQUEST
from service_in_process import until_ready

from api.examples import ESTIMATE_EXAMPLES

PROBLEM = "application/problem+json"
JSON = {"content-type": "application/json"}


def problem(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    document = answer.json()
    assert document["status"] == status
    assert document["title"] and document["detail"] and document["type"]
    return document


def fields(answer):
    return [item["field"] for item in problem(answer, 422)["errors"]]


def changed(request, path, value):
    request = copy.deepcopy(request)
    *way, last = path.split(".")
    here = request
    for part in way:
        here = here[part]
    here[last] = value
    return request


@pytest.mark.parametrize(
    "body", ["", "{", "nonsense", '{"a": NaN}', '{"a": Infinity}', "\xff", "[" * 100_000, "9" * 5000]
)
def test_what_is_not_json_is_malformed(client, body):
    content = body.encode("latin-1")
    answer = client.post("/v1/searches", content=content, headers=JSON)
    assert problem(answer, 400)["errors"][0]["pointer"] == "#"


def test_a_lone_surrogate_is_malformed(client):
    body = json.dumps(TINY_REQUEST | {"model": {"hf_config": {"model_type": "\ud800"}}})
    problem(client.post("/v1/searches", content=body, headers=JSON), 400)


def test_a_body_of_another_type_is_refused(client):
    problem(client.post("/v1/searches", content="{}", headers={"content-type": "text/plain"}), 415)
    problem(client.post("/v1/searches"), 415)


@pytest.mark.parametrize("body", [[], 5, "text", None, True])
def test_json_that_is_no_object_is_refused(client, body):
    assert problem(client.post("/v1/searches", content=json.dumps(body), headers=JSON), 422)["errors"]


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("cluster.nodes", 0, "cluster.nodes"),
        ("cluster.nodes", 1.0, "cluster.nodes"),
        ("cluster.nodes", 2**52, "cluster.nodes"),
        ("cluster.nodes", "1", "cluster.nodes"),
        ("cluster.devices_per_node", -4, "cluster.devices_per_node"),
        ("cluster.device", "abacus", "cluster.device"),
        ("cluster.colour", "red", "cluster.colour"),
        ("cluster.memory_limit_bytes", 10**15, "cluster.memory_limit_bytes"),
        ("training.global_batch_size", 0, "training.global_batch_size"),
        ("training.global_batch_size", "most", "training.global_batch_size"),
        ("training.precision", "int1", "training.precision"),
        ("training.capacity_factor", -1.0, "training.capacity_factor"),
        ("model", {"preset": "no-such-model"}, "model.preset"),
        ("model", {"preset": "mixtral-8x7b", "spec": None, "hf_config": {}}, "model"),
        ("model", {}, "model"),
        ("model", {"hf_config": {"model_type": "perceiver"}}, "model.hf_config.model_type"),
        ("model", {"hf_config": {}}, "model.hf_config.model_type"),
        ("options", {"shortlist_size": 0}, "options.shortlist_size"),
        ("options", {"axes": ["dp", "zz"]}, "options.axes.1"),
        ("options", {"time_limit_s": 0}, "options.time_limit_s"),
    ],
)
def test_impossible_requests_point_to_the_field(client, path, value, field):
    answer = client.post("/v1/searches", json=changed(TINY_REQUEST, path, value))
    assert fields(answer) == [field]


def test_heads_that_do_not_divide_point_to_the_attention(client):
    request = copy.deepcopy(TINY_REQUEST)
    request["model"]["spec"]["runs"][1]["layer"]["attention"]["num_kv_heads"] = 3
    answer = client.post("/v1/searches", json=request)
    assert fields(answer) == ["model.spec.runs.1.layer.attention.num_heads"]
    assert "num_kv_heads (3)" in answer.json()["errors"][0]["message"]


def test_all_that_is_wrong_is_said_at_once(client):
    request = changed(changed(TINY_REQUEST, "cluster.nodes", 0), "training.sequence_length", -1)
    assert fields(client.post("/v1/searches", json=request)) == ["cluster.nodes", "training.sequence_length"]


def test_missing_parts_are_named(client):
    assert fields(client.post("/v1/searches", json={})) == ["model", "cluster", "training"]


def test_the_plan_of_an_estimate_is_checked(client):
    request = ESTIMATE_EXAMPLES["mixtral"]["value"]
    assert fields(client.post("/v1/estimates", json=changed(request, "plan.num_micro_batches", 100))) == [
        "plan.global_batch_size"
    ]
    assert problem(client.post("/v1/estimates", json=changed(request, "cluster.nodes", 4)), 422)["errors"]
    assert problem(client.post("/v1/estimates", json=changed(request, "training.sequence_length", 8)), 422)["errors"]


def test_shares_that_do_not_sum_to_one_are_refused(client):
    request = ESTIMATE_EXAMPLES["mixtral"]["value"] | {"workload": {"name": "x", "expert_shares": [[0.5, 0.6]]}}
    assert fields(client.post("/v1/estimates", json=request)) == ["workload.expert_shares[0]"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/searches/none",
        "/v1/searches/none/shortlist",
        "/v1/plans/none",
        "/v1/plans/none/estimate",
        "/v1/plans/none/picture",
        "/v1/runs/none",
        "/v1/runs/none/windows",
        "/v1/runs/none/decisions",
        "/v1/models/none",
        "/v1/devices/none",
        "/v1/nothing-here",
        "/static/nothing.js",
    ],
)
def test_what_is_not_there_is_not_found(client, path):
    problem(client.get(path), 404)


def test_a_close_name_is_suggested(client):
    assert "mixtral-8x7b" in problem(client.get("/v1/models/mixtral-8x7"), 404)["detail"]


@pytest.mark.parametrize(("method", "path"), [("PUT", "/v1/searches"), ("DELETE", "/v1/runs"), ("POST", "/healthz")])
def test_a_method_that_a_route_does_not_have_is_not_allowed(client, method, path):
    answer = client.request(method, path)
    problem(answer, 405)
    assert answer.headers["allow"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/searches", "GET, HEAD, POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("PUT", "/v1/searches/x", "DELETE, GET, HEAD"),
        ("DELETE", "/v1/runs/x/windows", "GET, HEAD, POST"),
        ("PUT", "/v1/estimates", "POST"),
        ("PUT", "/sign-in", "GET, HEAD, POST"),
        ("PUT", "/static/swagger-ui.css", "GET, HEAD"),
    ],
)
def test_a_path_s_methods_are_all_told(client, method, path, allowed):
    assert client.request(method, path).headers["allow"] == allowed


def test_parameters_are_checked(client):
    assert fields(client.get("/v1/searches?limit=0")) == ["limit"]
    assert fields(client.get("/v1/runs?limit=many")) == ["limit"]
    assert fields(client.get("/v1/runs?after=nothing")) == ["after"]


def test_a_declared_body_above_the_limit_is_refused(serve):
    client = serve(max_body_bytes=1000)
    document = problem(client.post("/v1/searches", content=b" " * 1001, headers=JSON), 413)
    assert "1000" in document["detail"]


def test_a_streamed_body_above_the_limit_is_refused(serve):
    client = serve(max_body_bytes=1000)
    problem(client.post("/v1/searches", content=iter([b" " * 100] * 11), headers=JSON), 413)


def test_a_body_at_the_limit_is_read(serve):
    body = json.dumps(TINY_REQUEST).encode()
    assert serve(max_body_bytes=len(body)).post("/v1/searches", content=body, headers=JSON).status_code == 202


def test_a_bug_in_the_search_is_an_internal_error_without_details(serve):
    client = serve(invented_searches.breaks)
    search = client.post("/v1/searches", json=TINY_REQUEST, headers={"Prefer": "wait=30"}).json()
    assert (search["state"], search["error"]["status"]) == ("failed", 500)
    answer = client.get(f"/v1/searches/{search['id']}/shortlist")
    problem(answer, 409)
    assert not any(word in text for word in ("secret", "Zero") for text in (answer.text, str(search)))


def test_a_bug_in_the_service_is_an_internal_error_without_details(client, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("api.search_store.SearchStore.search", broken)
    answer = client.get("/v1/searches/x")
    problem(answer, 500)
    assert "secret" not in answer.text


@pytest.mark.parametrize("path", ["/v1/searches", "/v1/models", "/v1/runs", "/v1/plans/some/picture", "/v1/profiles"])
def test_unknown_query_parameters_are_named(client, path):
    answer = client.get(path, params={"colour": "red"})
    (error,) = problem(answer, 422)["errors"]
    assert error["field"] == "colour" and "is not known; this takes" in error["message"] and "pointer" not in error


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/docs", "/openapi.json", "/v1/searches", "/v1/nobody"])
def test_head_is_answered_as_get_without_the_body(client, path):
    until_ready(client)  # or what /readyz says changes between the two
    got, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers["content-length"] == got.headers["content-length"]


def test_head_of_a_stream_ends_at_once(serve):
    client = serve(invented_searches.endless, workers=1)
    search = client.post("/v1/searches", json=TINY_REQUEST).json()
    answer = client.head(f"{search['links']['self']}/events")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
    client.delete(search["links"]["self"])


def test_a_list_in_the_place_of_the_body_is_pointed_to_as_the_whole(client):
    (error,) = problem(client.post("/v1/searches", json=[1]), 422)["errors"]
    assert (error["pointer"], error["field"]) == ("#", "body")


def test_a_wrong_path_beside_a_wrong_body_is_no_field_of_the_body(client):
    errors = problem(client.put(f"/v1/profiles/{'x' * 300}", json={}), 422)["errors"]
    assert "pointer" not in errors[0] and errors[0]["field"] == "name" and "path parameter" in errors[0]["message"]
    assert all(error["pointer"].startswith("#/") for error in errors[1:])


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"cluster": {**TINY_REQUEST["cluster"], "nodes": 2}}, "cluster"),
        ({"training": {**TINY_REQUEST["training"], "global_batch_size": 16}}, "training.global_batch_size"),
        ({"training": {**TINY_REQUEST["training"], "sequence_length": 64}}, "training.sequence_length"),
    ],
)
def test_a_what_if_that_the_plan_does_not_fit_is_told_by_what_was_sent(client, sent, field):
    search = client.post("/v1/searches", json=TINY_REQUEST, headers={"Prefer": "wait=30"}).json()
    (error,) = problem(client.post(f"{search['links']['best_plan']}/estimate", json=sent), 422)["errors"]
    assert error["field"] == field and "must be" in error["message"]


def test_a_run_of_a_model_without_experts_does_not_begin(serve):
    client = serve(invented_searches.refuses)
    dense = {**TINY_REQUEST, "model": {"preset": "llama-3.1-8b"}}
    search = client.post("/v1/searches", json=dense, headers={"Prefer": "wait=30"}).json()
    answer = client.post("/v1/runs", json={"name": "job", "search_id": search["id"]})
    (error,) = problem(answer, 422)["errors"]
    assert error["field"] == "search_id" and "experts" in error["message"]
