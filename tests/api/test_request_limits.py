"""Limits on what a request asks: how deep, how much, how large, how often; each answer says which limit it met."""

import copy
import json
import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invented_searches import TINY_REQUEST
from tokens_in_store import bearer, token

from api.bodies import read_body as read
from api.examples import ESTIMATE_EXAMPLES
from api.json_limits import JsonLimits
from api.token_store import TokenStore
from planner.spec.errors import MalformedError, TooLargeError

JSON = {"content-type": "application/json"}
TREES = st.recursive(
    st.none() | st.integers() | st.text(alphabet='[]{}",:\\a\u00e9\n'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='[]{}",:\\'), inner, max_size=4),
    max_leaves=40,
)


def depth(tree):
    if isinstance(tree, dict):
        tree = list(tree.values())
    return 1 + max(map(depth, tree), default=0) if isinstance(tree, list) else 0


def size(tree):
    if isinstance(tree, dict):
        return 1 + sum(1 + size(value) for value in tree.values())
    return 1 + sum(map(size, tree)) if isinstance(tree, list) else 1


@given(TREES, st.booleans())
def test_depth_is_told_exactly_whatever_stands_in_texts(tree, ascii_only):
    body = json.dumps(tree, ensure_ascii=ascii_only).encode()
    JsonLimits(depth(tree), 10**6).check(body)
    if depth(tree):
        with pytest.raises(MalformedError, match="nested more than"):
            JsonLimits(depth(tree) - 1, 10**6).check(body)


@given(TREES)
def test_no_more_values_pass_than_the_limit_allows(tree):
    body = json.dumps(tree).encode()
    try:
        JsonLimits(10**6, 20).check(body)
    except TooLargeError:
        return
    assert size(tree) <= 1 + 20, "each value but the first has a separator or a bracket"


@given(st.binary(max_size=200))
def test_any_bytes_are_looked_at_without_a_crash(body):
    for limits in (JsonLimits(1, 10), JsonLimits(10**6, 10**6)):
        try:
            limits.check(body)
        except (MalformedError, TooLargeError):
            continue


@pytest.mark.parametrize("piece", [b"[", b"{", b'{"a":', b"[[]", b'["]",'])
def test_a_body_of_16_mib_of_brackets_is_malformed_and_nothing_parses_it(client, piece, monkeypatch):
    monkeypatch.setattr("api.answers.read_body", lambda *_: pytest.fail("parsed"))
    body = piece * (2**24 // len(piece))
    answer = client.post("/v1/searches", content=body, headers=JSON)
    assert answer.status_code == 400 and "deep" in answer.json()["detail"]


def test_a_body_of_16_mib_of_small_values_is_too_large_and_nothing_parses_it(client, monkeypatch):
    monkeypatch.setattr("api.answers.read_body", lambda *_: pytest.fail("parsed"))
    answer = client.post("/v1/searches", content=b"[" + b"[]," * (2**24 // 3 - 1) + b"0]", headers=JSON)
    assert answer.status_code == 413 and "1000000 values" in answer.json()["detail"]


def test_a_config_nested_as_deep_as_is_allowed_is_an_ordinary_mistake(client):
    nested = 0
    for _ in range(60):
        nested = [nested]
    request = TINY_REQUEST | {"model": {"hf_config": {"model_type": nested}}}
    assert client.post("/v1/searches", json=request).status_code == 422


@pytest.mark.parametrize(("num_bytes", "is_beside"), [(2**18, False), (2**18 + 1, True)])
def test_a_large_body_is_looked_at_beside_the_event_loop(client, monkeypatch, num_bytes, is_beside):
    threads = []
    monkeypatch.setattr(JsonLimits, "check", lambda *_: threads.append(threading.current_thread().name))
    client.post("/v1/searches", content=b" " * num_bytes, headers=JSON)
    assert [name.startswith("AnyIO worker") for name in threads] == [is_beside]


def asked(client, request, **changes):
    answer = client.post("/v1/searches", json=copy.deepcopy(request) | changes)
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert "this service" in error["message"]
    return error["field"]


def test_models_clusters_and_options_are_bounded_and_the_field_is_named(serve):
    client = serve(max_layers=3, max_devices=8, max_scenarios=1, max_links=1)
    assert asked(client, TINY_REQUEST) == "model.spec"
    assert asked(client, TINY_REQUEST, model={"preset": "mixtral-8x7b"}) == "model.preset"
    client = serve(max_experts=3, max_devices=8, max_scenarios=1, max_links=1)
    assert asked(client, TINY_REQUEST) == "model.spec"
    client = serve(max_devices=3, max_scenarios=1, max_links=1)
    assert asked(client, TINY_REQUEST) == "cluster.nodes"
    group = TINY_REQUEST["cluster"]
    assert asked(client, TINY_REQUEST, cluster={"groups": [group, group]}) == "cluster.groups"
    client = serve(max_scenarios=1, max_links=1)
    link = {"a": 0, "b": 1, "bandwidth_bytes_per_s": 1e9, "latency_s": 1e-6}
    assert asked(client, TINY_REQUEST, cluster=group | {"links": [link, link]}) == "cluster.links"
    scenarios = [
        {"workload": {}, "probability": 0.5},
        {"workload": {"expert_shares": [[0.25] * 4]}, "probability": 0.5},
    ]
    assert asked(client, TINY_REQUEST, options={"scenarios": scenarios}) == "options.scenarios"


def test_prices_are_bounded_as_searches_are(serve):
    client = serve(max_devices=32)
    answer = client.post("/v1/estimates", json=ESTIMATE_EXAMPLES["mixtral"]["value"])
    assert answer.status_code == 422 and answer.json()["errors"][0]["field"] == "cluster.nodes"
    search = client.post("/v1/searches", json=TINY_REQUEST, headers={"Prefer": "wait=20"}).json()
    what_if = {"cluster": TINY_REQUEST["cluster"] | {"nodes": 100}}
    answer = client.post(f"/v1/plans/{search['best_plan_id']}/estimate", json=what_if)
    assert answer.status_code == 422 and answer.json()["errors"][0]["field"] == "cluster.nodes"


def test_windows_are_bounded_by_the_experts_of_a_model(serve):
    assert asked(serve(max_experts_in_all=7), TINY_REQUEST) == "model.spec"


def test_keys_and_pages_are_bounded(client):
    answer = client.post("/v1/searches", json=TINY_REQUEST, headers={"Idempotency-Key": "x" * 256})
    assert answer.status_code == 422
    for path in ("searches", "runs", "runs/x/windows", "runs/x/decisions"):
        assert client.get(f"/v1/{path}?limit=501").status_code == 422


def test_who_asks_too_often_is_told_when_to_go_on(serve):
    client = serve(max_requests_per_minute=3)
    answers = [client.get("/v1/models") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    assert answers[-1].headers["content-type"] == "application/problem+json"
    assert client.get("/healthz").status_code == 200, "who watches the service is never in the way"


def test_what_needs_no_token_is_not_counted_for_who_has_a_cookie_but_the_page_that_looks_it_up(serve):
    client, cookie = serve(max_requests_per_minute=3, access="tokens"), {"Cookie": "trimtab_token=x"}
    for path in ("/healthz", "/assets/trimtab.css", "/docs"):
        assert {client.get(path, headers=cookie).status_code for _ in range(5)} == {200}
    assert [client.get("/sign-in", headers=cookie).status_code for _ in range(4)] == [200, 200, 200, 429]
    assert client.get("/sign-in").status_code == 200


def test_each_run_has_a_rate_of_its_own_so_that_jobs_behind_one_address_do_not_stop_each_other(serve):
    maker, client = serve(), serve(max_requests_per_minute=5)
    search = maker.post("/v1/searches", json=TINY_REQUEST, headers={"Prefer": "wait=20"}).json()["id"]
    runs = [maker.post("/v1/runs", json={"name": "x", "search_id": search}).json()["id"] for _ in range(4)]
    for _ in range(1 + 5):  # the first is the address's
        random.shuffle(runs)
        assert {client.get(f"/v1/runs/{run}/windows").status_code for run in runs} == {200}
    assert client.get(f"/v1/runs/{runs[0]}/windows").status_code == 429
    assert client.get("/v1/models").status_code == 200, "the fifth of the address"


def test_runs_that_nobody_began_have_no_rate_of_their_own(serve):
    client = serve(max_requests_per_minute=5)
    answers = [client.get(f"/v1/runs/invented-{number}").status_code for number in range(7)]
    assert answers == [404] * 5 + [429] * 2


def test_invented_tokens_are_refused_before_the_database_is_asked_too_often(serve, database, monkeypatch):
    client, asked_for, find = serve(max_requests_per_minute=3, access="tokens"), [], TokenStore.find
    monkeypatch.setattr(TokenStore, "find", lambda store, token_id: asked_for.append(token_id) or find(store, token_id))
    invented = [f"ttk_{number:012x}_{'0' * 64}" for number in range(20)]
    for number, text in enumerate(invented):
        if number % 2:
            client.get("/v1/models", headers=bearer(text))
        else:
            client.get("/sign-in", headers={"Cookie": f"trimtab_token={text}"})
    assert len(asked_for) == 3
    assert client.get("/v1/models", headers=bearer(invented[0])).status_code == 429
    assert client.get("/healthz").status_code == 200


def test_each_token_has_a_rate_of_its_own_and_guessing_has_one_too(serve, database):
    client = serve(max_requests_per_minute=4, access="tokens")
    first, second = bearer(token(database, "read")), bearer(token(database, "read"))
    assert [client.get("/v1/models", headers=first).status_code for _ in range(5)] == [200] * 4 + [429]
    assert client.get("/v1/models", headers=second).status_code == 200, "the address has counted both, the first time"
    assert [client.get("/v1/models").status_code for _ in range(3)] == [401, 401, 429]
    assert client.post("/sign-in", data={"token": "x"}).status_code == 429


def test_the_rate_may_be_unlimited(serve):
    client = serve(max_requests_per_minute=0)
    assert {client.get("/v1/devices").status_code for _ in range(5)} == {200}


@pytest.mark.parametrize("wrong", [{}, {"sequence_length": "long"}])
def test_a_large_body_is_read_beside_the_event_loop_and_answered_as_a_small_one(client, monkeypatch, wrong):
    body = {**TINY_REQUEST, "training": {**TINY_REQUEST["training"], **wrong}}
    small = client.post("/v1/searches", json=body)
    threads = []
    monkeypatch.setattr("api.answers.LARGE_BODY_BYTES", 0)
    monkeypatch.setattr("api.answers.read_body", lambda body: threads.append(threading.current_thread()) or read(body))
    large = client.post("/v1/searches", json=body)
    assert large.status_code == small.status_code == (422 if wrong else 202)
    assert not wrong or large.json() == small.json()
    assert [thread.name.startswith("AnyIO worker") for thread in threads] == [True]
