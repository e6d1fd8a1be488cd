"""Who may do what: every operation of the document, every kind of caller, and whatever else a client may bring."""

import asyncio
import re
import threading
import time
from datetime import timedelta

import pytest
from fastapi import APIRouter
from invented_searches import TINY_REQUEST
from sqlalchemy.exc import OperationalError
from starlette.routing import Mount
from tokens_in_store import bearer, id_of, token

import api.access
from api.access import ELSE, OPEN, Access, RunNames, allowed
from api.app import create_app
from api.database import utc_now
from api.settings import Settings, is_loopback, requires_tokens
from api.token_store import TokenStore
from api.tokens import Role, fits

OPEN_OPERATIONS = {"healthz", "readyz"}
SUBMITS = {
    "submit_search",
    "cancel_search",
    "estimate",
    "estimate_plan_under_other_conditions",
    "put_profile",
    "delete_profile",
}
REPORTS = {"begin_run", "post_window"}
READS_RUNS = {"list_runs", "get_run", "list_windows", "list_decisions", "get_run_picture"}
HOT = [[9000, 500, 300, 200], [500, 9000, 300, 200]]
SECRET = "0" * 64


def roles_of(operation_id, method):
    """Who may, as docs/operations.md says; what is new and not named here may only read."""
    if operation_id in OPEN_OPERATIONS:
        return set()
    if operation_id in REPORTS:
        return {"report"}
    if operation_id in READS_RUNS:
        return {"read", "submit", "report"}
    if operation_id in SUBMITS:
        return {"submit"}
    assert method == "GET", f"{operation_id} changes something: say here and in docs/operations.md who may"
    return {"read", "submit"}


@pytest.fixture
def guarded(serve):
    return serve(access="tokens")


def operations(client):
    paths = client.get("/openapi.json").json()["paths"]
    return [
        (method.upper(), path, operation) for path, methods in paths.items() for method, operation in methods.items()
    ]


def filled(path):
    return re.sub(r"\{\w+\}", "x", path)


def test_every_operation_admits_the_roles_that_it_declares_and_no_others(guarded, database):
    tokens = {role: token(database, role) for role in Role}
    found = operations(guarded)
    assert len(found) >= 20
    for method, path, operation in found:
        expected = roles_of(operation["operationId"], method)
        headers = {"content-type": "application/json"}
        without = guarded.request(method, filled(path), headers=headers, content="{}").status_code
        assert (without == 401) == bool(expected), operation["operationId"]
        for role, text in tokens.items():
            answer = guarded.request(method, filled(path), headers=headers | bearer(text), content="{}")
            assert (answer.status_code == 403) == (bool(expected) and role not in expected), operation["operationId"]
            assert answer.status_code != 401


def test_the_document_declares_what_is_refused(guarded):
    document = guarded.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["token"] | {"description": ""} == {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "ttk_<id>_<secret>",
        "description": "",
    }
    for method, _, operation in operations(guarded):
        expected = roles_of(operation["operationId"], method) - ({"submit"} if method == "GET" else set())
        assert {role for each in operation["security"] for role in each["token"]} == expected
        refusals = {"401", "403", "429"} & set(operation["responses"])
        assert refusals == ({"401", "403", "429"} if expected else set())


UNGUARDED = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/docs"),
    ("GET", "/redoc"),
    ("GET", "/openapi.json"),
    ("GET", "/static/redoc.js"),
    ("GET", "/sign-in"),
    ("POST", "/sign-in"),
    ("POST", "/sign-out"),
    ("GET", "/static/x"),
    ("GET", "/assets/x"),
}


def routes_of(router, prefix=""):
    """(method, path) of everything that can be asked for, also of routers within."""
    for route in router.routes:
        if isinstance(inner := getattr(route, "original_router", None), APIRouter):
            yield from routes_of(inner, prefix + route.include_context.prefix)
        else:
            for method in sorted(getattr(route, "methods", None) or {"GET"}):
                yield method, prefix + route.path + ("/x" if isinstance(route, Mount) else "")


def test_every_route_of_the_application_is_guarded_unless_it_is_named_as_open(database):
    routes = set(routes_of(create_app(Settings(workers=1), database, lambda *_: None)))
    assert {("GET", "/"), ("GET", "/searches/{search_id}"), ("POST", "/searches"), ("POST", "/v1/searches")} <= routes
    free = {(method, path) for method, path in routes if allowed(method, filled(path)).roles == OPEN}
    assert {(method, path) for method, path in free if method != "HEAD"} <= UNGUARDED


def test_no_route_answers_whoever_has_no_token_unless_it_is_named_as_open(guarded):
    for method, path in sorted(set(routes_of(guarded.app)) - UNGUARDED):
        if (method, path) in {("HEAD", path) for _, path in UNGUARDED}:
            continue
        assert guarded.request(method, filled(path)).status_code == 401, (method, path)
        if method == "GET":
            page = guarded.get(filled(path), headers={"Accept": "text/html"}, follow_redirects=False)
            assert page.status_code == 303 and page.headers["location"].startswith("/sign-in"), path


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
@pytest.mark.parametrize("path", ["/v1/new", "/", "/v2", "/metrics", "/healthz/", "/static", "//docs"])
def test_what_no_rule_names_is_guarded(method, path):
    roles = allowed(method, path).roles
    assert roles == (frozenset({Role.READ}) if method in ("GET", "HEAD", "OPTIONS") else ELSE)


@pytest.mark.parametrize(
    "path",
    ["/", "/metrics", "/v1/nothing", "/v1/runs", "/v1/runs%0A", "/x"],
)
def test_without_a_token_there_is_a_problem_document_that_says_what_is_missing(guarded, path):
    answer = guarded.get(path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert "Authorization: Bearer" in answer.json()["detail"]


@pytest.mark.parametrize(("path", "status"), [("/static/../metrics", 401), ("/static/%2e%2e/metrics", 404)])
def test_no_way_leads_from_an_open_folder_to_what_is_guarded(guarded, path, status):
    assert guarded.get(path).status_code == status


def test_the_host_header_does_not_choose_the_path_that_is_looked_at(guarded):
    for host in ("x/healthz?", "x/docs#", "x/static/"):
        assert guarded.get("/v1/runs", headers={"Host": host}).status_code == 401


def test_a_request_without_token_is_refused_before_its_body_is_read(serve):
    guarded = serve(access="tokens", max_body_bytes=10)
    assert guarded.post("/v1/searches", content=b"[" * 1000).status_code == 401


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("Bearer nonsense", "no token of Trimtab"),
        ("Bearer ", "no token of Trimtab"),
        (f"Bearer ttk_{'0' * 12}_{SECRET}", "not known"),
        ("Basic dXNlcjpwYXNz", "must be Authorization: Bearer"),
        ("ttk_x", "must be Authorization: Bearer"),
    ],
)
def test_a_token_that_is_none_is_told_so(guarded, header, said):
    answer = guarded.get("/v1/runs", headers={"Authorization": header})
    assert answer.status_code == 401 and said in answer.json()["detail"]


def test_each_part_of_a_token_counts(guarded, database):
    mine, other = token(database, "read"), token(database, "read")
    assert guarded.get("/v1/runs", headers=bearer(mine)).status_code == 200
    mixed = "_".join([*mine.split("_")[:2], other.split("_")[2]])
    shorter = mine[:-1]
    upper = "ttk_" + mine[4:].upper()
    for wrong in (mixed, shorter, upper, mine + "0", mine + "\x00"):
        assert guarded.get("/v1/runs", headers=bearer(wrong)).status_code == 401


def test_tokens_are_looked_up_by_id_and_compared_in_constant_time(monkeypatch, database):
    compared = []
    monkeypatch.setattr("api.tokens.hmac.compare_digest", lambda one, two: compared.append((one, two)) or one == two)
    text = token(database, "read")
    digest = TokenStore(database, utc_now).find(id_of(text)).digest
    assert fits(text.split("_")[2], digest) and not fits(SECRET, digest)
    assert len(compared) == 2 and all(len(one) == len(two) == 64 for one, two in compared)


def test_no_secret_is_kept(database, tmp_path):
    text = token(database, "read")
    database.close()
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert id_of(text).encode() in kept and text.split("_")[2].encode() not in kept


def test_an_expired_token_and_a_revoked_one_are_told_apart(guarded, database):
    expired = token(database, "read", expires_at=utc_now() - timedelta(seconds=1))
    revoked = token(database, "read")
    TokenStore(database, utc_now).revoke(id_of(revoked))
    assert "expired" in guarded.get("/v1/runs", headers=bearer(expired)).json()["detail"]
    assert "revoked" in guarded.get("/v1/runs", headers=bearer(revoked)).json()["detail"]


class Asked:
    """A store that counts how often it is asked."""

    def __init__(self, store):
        self.store, self.times, self.uses = store, 0, 0

    def find(self, token_id):
        self.times += 1
        return self.store.find(token_id)

    def note_use(self, used):
        self.uses += 1
        self.store.note_use(used)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_the_database_is_asked_once_in_a_while_and_a_revocation_counts_then(database):
    store, clock = Asked(TokenStore(database, utc_now)), [0.0]
    access = Access(store, RunNames(str), utc_now, lambda: clock[0])
    text = token(database, "read")
    await asyncio.gather(*(access.caller(text) for _ in range(100)))
    await access._noting
    assert (store.times, store.uses) == (1, 1)
    store.store.revoke(id_of(text))
    await access.caller(text)
    clock[0] = api.access.BELIEVED_S + 0.1
    with pytest.raises(api.access.UnauthenticatedError, match="revoked"):
        await access.caller(text)
    assert (store.times, store.uses) == (2, 1)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_ids_that_nobody_has_are_remembered_too_and_not_without_end(database, monkeypatch):
    monkeypatch.setattr(api.access, "TOKENS_AT_HAND", 3)
    store = Asked(TokenStore(database, utc_now))
    access = Access(store, RunNames(str), utc_now)
    text = token(database, "read")
    await access.caller(text)
    for number in (0, 0, 1, 2, 3, 4, 4):
        with pytest.raises(api.access.UnauthenticatedError, match="not known"):
            await access.caller(f"ttk_{number:012x}_{SECRET}")
    assert store.times == 1 + 5 and len(access._unknown) == 3
    await access.caller(text)
    assert store.times == 1 + 5 and access.knows(text), "invented tokens do not push out real ones"


def test_a_use_that_cannot_be_noted_keeps_nobody_out(guarded, database, monkeypatch):
    def busy(*_):
        raise OperationalError("UPDATE", {}, Exception("database is locked"))

    monkeypatch.setattr(TokenStore, "note_use", busy)
    assert guarded.get("/v1/runs", headers=bearer(token(database, "read"))).status_code == 200


def test_the_last_use_is_noted_to_the_minute(guarded, database):
    text = token(database, "read")
    unused = TokenStore(database, utc_now).find(id_of(text)).token
    for _ in range(3):
        guarded.get("/v1/runs", headers=bearer(text))
    store, end = TokenStore(database, utc_now), time.monotonic() + 20
    while (used := store.find(id_of(text)).token.last_used_at) is None and time.monotonic() < end:
        time.sleep(0.01)
    assert utc_now() - used < timedelta(minutes=1)
    store.note_use(unused)
    assert store.find(id_of(text)).token.last_used_at == used, "what is out of date writes nothing"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_nobody_waits_until_the_use_is_noted(database):
    store, release = Asked(TokenStore(database, utc_now)), threading.Event()
    store.note_use = lambda _: release.wait(20)
    access = Access(store, RunNames(str), utc_now)
    await access.caller(token(database, "read"))
    assert not access._noting.done()
    release.set()
    await access._noting


@pytest.mark.parametrize("path", ["/v1/runs?token={}", "/v1/runs/{}", "/v1/runs?x=%74{}"])
@pytest.mark.parametrize("access", ["tokens", "open"])
def test_a_token_in_an_address_is_refused_even_if_it_is_right(serve, database, path, access):
    text = token(database, "read")
    given = path.format(text[1:] if "%74" in path else text)
    answer = serve(access=access).get(given, headers=bearer(text))
    assert answer.status_code == 401 and "revoke this one" in answer.json()["detail"]


def begun(client, headers, name, search):
    return client.post("/v1/runs", json={"name": name, "search_id": search}, headers=headers)


@pytest.fixture
def search(guarded, database):
    headers = bearer(token(database, "submit")) | {"Prefer": "wait=20"}
    return guarded.post("/v1/searches", json=TINY_REQUEST, headers=headers).json()["id"]


def test_a_runs_token_begins_reports_and_reads_its_run_and_nothing_else(guarded, database, search):
    mine = bearer(token(database, "report", run="mine"))
    all_runs = bearer(token(database, "report"))
    run = begun(guarded, mine, "mine", search).json()["id"]
    other = begun(guarded, all_runs, "other", search).json()["id"]
    window = {"index": 0, "first_step": 0, "num_steps": 10, "tokens": HOT}
    assert guarded.post(f"/v1/runs/{run}/windows", json=window, headers=mine).status_code == 200
    assert guarded.get("/v1/runs?name=mine", headers=mine).json()["items"][0]["id"] == run
    assert guarded.get("/v1/runs/mine", headers=mine).status_code == 404, "as the agent asks: is it an id?"
    for part in ("", "/windows", "/decisions", "/picture"):
        assert guarded.get(f"/v1/runs/{run}{part}", headers=mine).status_code == 200
        assert guarded.get(f"/v1/runs/{other}{part}", headers=mine).status_code == 403
    refused = [
        begun(guarded, mine, "other", search),
        guarded.post(f"/v1/runs/{other}/windows", json=window, headers=mine),
        guarded.post("/v1/runs/none/windows", json=window, headers=mine),
        guarded.get("/v1/runs", headers=mine),
        guarded.get("/v1/runs?name=other", headers=mine),
        guarded.get("/v1/runs?name=mine&name=other", headers=mine),
        guarded.get(f"/v1/searches/{search}", headers=mine),
        guarded.post("/v1/searches", json=TINY_REQUEST, headers=mine),
        guarded.get("/metrics", headers=mine),
    ]
    assert [answer.status_code for answer in refused] == [403] * len(refused)
    assert "'mine'" in refused[0].json()["detail"]


def test_a_token_may_be_bound_to_the_id_of_a_run(guarded, database, search):
    run, other = (begun(guarded, bearer(token(database, "report")), "x", search).json()["id"] for _ in range(2))
    mine = bearer(token(database, "report", run=run))
    assert guarded.get(f"/v1/runs/{run}", headers=mine).status_code == 200
    assert guarded.get(f"/v1/runs/{other}", headers=mine).status_code == 403


def test_a_database_that_does_not_answer_is_a_problem_and_lets_nobody_in(guarded, database):
    text = token(database, "read")
    with database.writing() as session:
        session.connection().exec_driver_sql("DROP TABLE tokens")
    assert guarded.get("/v1/models", headers=bearer(text)).status_code == 503


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.1", False),
        ("planner", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_only_loopback_is_open_by_itself(host, alone):
    assert is_loopback(host) == alone
    assert requires_tokens(Settings(host=host)) != alone
    assert requires_tokens(Settings(host=host, access="tokens")) and not requires_tokens(
        Settings(host=host, access="open")
    )
