"""What a platform team watches and sets: settings and their origins, metrics, log lines with request ids."""

import json
import logging
import os
import re
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from logging.config import DictConfigurator

import invented_searches
import pytest
from anyio import to_thread
from command_line import trimtab
from invented_searches import TINY_REQUEST
from prometheus_client.parser import text_string_to_metric_families
from service_in_process import until_ready
from service_process import service
from tokens_in_store import bearer, token

from api.logs import is_accepted_id, settings
from api.settings import Settings, check_variables, num_cores
from api.tokens import Role

HOT = [[9000, 500, 300, 200], [500, 9000, 300, 200]]


def read(client, **more):
    """{(metric, labels): value}."""
    answer = client.get("/metrics", **more)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(answer.text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for each in families
        for sample in each.samples
    }


def number(found, name, **labels):
    return found[name, tuple(sorted(labels.items()))]


def test_requests_are_counted_by_operation_and_status(client):
    client.get("/v1/searches/nobody")
    client.get("/v1/searches/nobody-else")
    client.get("/no/such/path")
    found = read(client)
    answered = {"method": "GET", "operation": "get_search"}
    assert number(found, "trimtab_http_requests_total", **answered, status="404") == 2
    assert number(found, "trimtab_http_request_seconds_count", **answered) == 2
    assert number(found, "trimtab_http_requests_total", method="GET", operation="none", status="404") == 1


def test_searches_and_the_queue_are_told(serve):
    client = serve(invented_searches.endless, workers=1)
    for length in (8, 16, 32):
        request = {**TINY_REQUEST, "training": {**TINY_REQUEST["training"], "sequence_length": length}}
        last = client.post("/v1/searches", json=request).json()
    client.delete(last["links"]["self"])
    found = read(client)
    states = {state: number(found, "trimtab_searches", state=state) for state in ("queued", "running", "cancelled")}
    assert states["cancelled"] == 1 and states["queued"] + states["running"] == 2
    assert number(found, "trimtab_queue_age_seconds") >= 0


def test_searches_are_timed_by_how_they_ended(serve):
    client = serve(invented_searches.misses)
    client.post("/v1/searches", json=TINY_REQUEST, headers={"Prefer": "wait=20"})
    assert number(read(client), "trimtab_search_seconds_count", state="failed") == 1


def test_decisions_are_counted_by_action_and_once_for_a_window(client):
    search = client.post("/v1/searches", json=TINY_REQUEST, headers={"Prefer": "wait=20"}).json()
    run = client.post("/v1/runs", json={"name": "job", "search_id": search["id"]}).json()
    for index in (0, 0, 1):
        window = {"index": index, "first_step": 10 * index, "num_steps": 10, "tokens": HOT}
        client.post(f"/v1/runs/{run['id']}/windows", json=window)
    found = read(client)
    by_action = [number(found, "trimtab_decisions_total", action=a) for a in ("keep", "rebalance", "switch_plan")]
    assert sum(by_action) == 2 == number(found, "trimtab_decision_seconds_count")


@contextmanager
def busy_threads(client):
    """All threads that answer requests have something to do."""
    limiter = client.portal.call(limiter_of_threads)
    holders = [object() for _ in range(int(limiter.total_tokens))]
    for holder in holders:
        client.portal.call(limiter.acquire_on_behalf_of, holder)
    try:
        yield
    finally:
        for holder in holders:
            client.portal.call(limiter.release_on_behalf_of, holder)


async def limiter_of_threads():
    return to_thread.current_default_thread_limiter()


def test_health_is_told_while_all_threads_wait(client):
    until_ready(client)
    with ThreadPoolExecutor(3) as pool, busy_threads(client):
        answers = [pool.submit(client.get, path) for path in ("/healthz", "/readyz", "/metrics")]
        wait(answers, timeout=20)
        assert all(answer.done() for answer in answers)
    assert [answer.result().status_code for answer in answers] == [200, 200, 200]


def test_a_service_without_its_database_tells_that_and_what_it_knows_itself(client, database):
    assert number(read(client), "trimtab_database_up") == 1
    with database.writing() as session:
        session.connection().exec_driver_sql("DROP TABLE plans")
        session.connection().exec_driver_sql("DROP TABLE searches")
    assert client.get("/v1/searches").status_code >= 500
    found = read(client)
    assert number(found, "trimtab_database_up") == 0
    assert not [name for name, _ in found if name in ("trimtab_searches", "trimtab_queue_age_seconds")]
    told = {dict(labels)["operation"] for name, labels in found if name == "trimtab_http_requests_total"}
    assert told >= {"list_searches", "metrics"} and number(found, "trimtab_decider_deaths") == 0


@pytest.mark.parametrize("path", ["/healthz", "/v1/searches/nobody", "/no/such/path"])
def test_an_answer_carries_the_id_of_its_request(client, path):
    assert client.get(path, headers={"X-Request-ID": "job-17:step-3"}).headers["x-request-id"] == "job-17:step-3"
    made = [client.get(path).headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1] and all(is_accepted_id(each) for each in made)


@pytest.mark.parametrize("bad", ["", "a b", 'x"}{', "x" * 65, "line\nline", "é"])
def test_an_id_that_could_forge_a_line_is_not_taken_over(bad):
    assert not is_accepted_id(bad)


def formatted(form, message, **more):
    configured = DictConfigurator(settings(form))
    formatter = configured.configure_formatter(configured.config["formatters"][form])
    record = logging.LogRecord("api.jobs", logging.INFO, "jobs.py", 1, message, (), None)
    record.correlation_id = "r1"
    record.__dict__.update(more)
    return formatter.format(record)


def test_a_json_line_is_one_object_with_its_request():
    line = formatted("json", "two\nlines", color_message="not for logs")
    assert "\n" not in line
    found = json.loads(line)
    assert {key: found[key] for key in ("level", "logger", "message", "request")} == {
        "level": "INFO",
        "logger": "api.jobs",
        "message": "two\nlines",
        "request": "r1",
    }
    assert re.match(r"\d{4}-\d\d-\d\dT", found["time"]) and "color_message" not in found


def test_the_service_logs_each_request_with_its_id(tmp_path):
    with service(tmp_path, "--workers", "1", "--log-format", "json") as (_, client):
        client.get("/v1/searches/nobody", headers={"X-Request-ID": "abc"})
    lines = [line for log in tmp_path.glob("service-*.log") for line in log.read_text().splitlines()]
    found = [json.loads(line) for line in lines if line.startswith("{")]
    (access,) = [each for each in found if each["logger"] == "api.requests" and "nobody" in each["message"]]
    assert access["request"] == "abc" and "404" in access["message"]
    told = {key: access[key] for key in ("method", "path", "status", "operation")}
    assert told == {"method": "GET", "path": "/v1/searches/nobody", "status": 404, "operation": "get_search"}
    assert access["seconds"] > 0 and "token" not in access
    assert not [each for each in found if each["logger"] == "uvicorn.access"]


def test_a_request_s_line_names_the_token_and_never_its_secret(serve, database, caplog):
    client, reader = serve(access="tokens"), token(database, Role.READ)
    with caplog.at_level(logging.INFO, "api.requests"):
        client.get("/v1/searches?limit=1", headers=bearer(reader))
    (line,) = [record for record in caplog.records if record.name == "api.requests"]
    assert line.token and "GET /v1/searches?limit=1" in line.getMessage()
    assert reader not in f"{vars(line)}"


def test_refused_requests_are_counted_under_their_operation(serve, database):
    client = serve(access="tokens")
    assert client.post("/v1/runs/some/windows", json={}).status_code == 401
    assert client.head("/v1/searches/some").status_code == 401
    found = read(client, headers=bearer(token(database, Role.READ)))
    for method, operation in (("POST", "post_window"), ("HEAD", "get_search")):
        labels = {"method": method, "operation": operation, "status": "401"}
        assert number(found, "trimtab_http_requests_total", **labels) == 1


def test_a_body_that_is_too_large_is_counted_under_its_operation(serve):
    client = serve(max_body_bytes=1000)
    assert client.post("/v1/runs/some/windows", json="x" * 2000).status_code == 413
    labels = {"method": "POST", "operation": "post_window", "status": "413"}
    assert number(read(client), "trimtab_http_requests_total", **labels) == 1


@pytest.fixture
def clean(monkeypatch):
    """No variable of the machine's own; a function sets some."""
    for field in Settings.model_fields:
        monkeypatch.delenv(f"TRIMTAB_{field.upper()}", raising=False)
    monkeypatch.delenv("TRIMTAB_CONFIG", raising=False)
    return monkeypatch.setenv


def told(capsys, *arguments):
    return json.loads(trimtab(capsys, "config", "--json", *arguments).out)


def test_the_environment_goes_over_the_file_and_the_file_over_the_defaults(capsys, clean, tmp_path):
    file = tmp_path / "trimtab.toml"
    file.write_text("port = 9001\nworkers = 3\n")
    clean("TRIMTAB_PORT", "9002")
    found = told(capsys, "--config", file)
    assert (found["port"], found["workers"], found["host"]) == (9002, 3, "127.0.0.1")
    table = trimtab(capsys, "config", "--config", file).out.splitlines()
    row = {line.split()[0]: line for line in table if line.split()}
    assert "TRIMTAB_PORT" in row["port"] and str(tmp_path)[:12] in row["workers"] and "default" in row["host"]


def test_the_table_shows_values_as_variables_take_them(capsys, clean):
    clean("TRIMTAB_ALLOWED_HOSTS", '["plan.example", "x"]')
    table = trimtab(capsys, "config").out.splitlines()
    row = {line.split()[0]: line for line in table if line.split()}
    assert '["plan.example", "x"]' in row["allowed_hosts"]
    assert row["workers"].split()[1] == row["trusted_proxies"].split()[1] == "–"


def test_the_file_may_be_named_by_a_variable(capsys, clean, tmp_path):
    (tmp_path / "x.toml").write_text("lease_s = 5.0\n")
    clean("TRIMTAB_CONFIG", str(tmp_path / "x.toml"))
    assert told(capsys)["lease_s"] == 5.0


def test_passwords_are_not_printed(capsys, clean):
    clean("TRIMTAB_DATABASE_URL", "postgresql://me:hush@host/db")
    assert "hush" not in trimtab(capsys, "config").out + json.dumps(told(capsys))


FLOATS = [name for name, field in Settings.model_fields.items() if "float" in str(field.annotation)]


@pytest.mark.parametrize(
    ("text", "named"),
    [("prt = 1", "prt"), ('port = "x"', "port"), ("port = = 1", "--config"), ("lease_s = 0.5", "lease_s")]
    + [(f"{name} = {value}", name) for name in FLOATS for value in ("inf", "nan", "1e10")],
)
def test_a_wrong_file_is_refused_in_one_line(capsys, clean, tmp_path, text, named):
    (tmp_path / "x.toml").write_text(text)
    result = trimtab(capsys, "config", "--config", tmp_path / "x.toml")
    assert result.code == 2 and result.out == ""
    assert named in result.err and result.err.count("\n") == 1


@pytest.mark.parametrize(("told", "most"), [("50000 100000", 1), ("100000 100000", 1), ("150000 100000", 2)])
def test_a_container_has_as_many_cores_as_its_quota_lets_it_use(tmp_path, told, most):
    (tmp_path / "cpu.max").write_text(told + "\n")
    assert num_cores(tmp_path / "cpu.max") == min(most, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("told", [None, "max 100000\n", "-1\n"])
def test_without_a_quota_all_cores_of_the_process_count(tmp_path, told):
    if told is not None:
        (tmp_path / "cpu.max").write_text(told)
    assert num_cores(tmp_path / "cpu.max") == len(os.sched_getaffinity(0))


def test_a_misspelt_variable_is_refused_in_one_line(capsys, clean):
    clean("TRIMTAB_ACESS", "tokens")
    result = trimtab(capsys, "config")
    assert result.code == 2 and result.err.count("\n") == 1
    assert "TRIMTAB_ACESS" in result.err and "TRIMTAB_ACCESS" in result.err


@pytest.mark.parametrize(
    "others",
    ["SERVICE", "TOKEN", "CONFIG", "SERVICE_HOST", "SERVICE_PORT_HTTP", "PORT_8000_TCP_ADDR", "POSTGRES_PORT"],
)
def test_variables_of_agents_and_of_kubernetes_are_none_of_the_service_s(others):
    check_variables({f"TRIMTAB_{others}": "x", "PATH": "/bin"})


def test_a_misspelt_setting_of_the_file_is_told_with_the_file_and_what_is_meant(capsys, clean, tmp_path):
    file = tmp_path / "x.toml"
    file.write_text("prot = 9\nlease_s = 'x'\n")
    result = trimtab(capsys, "config", "--config", file)
    assert f"prot in {file}: is no setting; perhaps port is meant" in result.err
    assert f"lease_s in {file}: must be a number" in result.err


@pytest.mark.parametrize(("name", "text"), [("WORKERS", "viele"), ("ALLOWED_HOSTS", "plan.example"), ("PORT", "70000")])
def test_a_wrong_variable_is_named_as_it_was_set(capsys, clean, name, text):
    clean(f"TRIMTAB_{name}", text)
    result = trimtab(capsys, "config")
    assert result.code == 2 and result.err.startswith(f"trimtab: TRIMTAB_{name}: must be") and text in result.err


def test_a_file_that_is_not_there_is_no_empty_one(capsys, clean, tmp_path):
    result = trimtab(capsys, "config", "--config", tmp_path / "none.toml")
    assert result.code == 2 and "cannot be read" in result.err
