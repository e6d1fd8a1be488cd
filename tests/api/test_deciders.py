"""Decider processes: whose runs they have, what becomes of windows when one dies, and how they end."""

import asyncio
import json
import multiprocessing
import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import invented_deciders
import pytest
from invented_searches import TINY_REQUEST, instant
from service_in_process import running
from service_process import alive
from starlette.requests import Request

from api import deciders
from api.routes.runs import RunRoutes
from planner.online import begin, decide
from planner.spec.decision import Decision
from planner.spec.run import Run
from planner.spec.window import Window

WAIT = {"Prefer": "wait=30"}
HOT = [[9000, 500, 300, 200], [500, 9000, 300, 200]]
UNLUCKY = [[13, 500, 300, 200], [500, 9000, 300, 200]]


def window(index, tokens=HOT):
    return {"index": index, "first_step": index * 10, "num_steps": 10, "tokens": tokens}


def new_run(client):
    search = client.post("/v1/searches", json=TINY_REQUEST, headers=WAIT).json()
    return client.post("/v1/runs", json={"name": "job", "search_id": search["id"]}).json()


def processes():
    return [process for process in multiprocessing.active_children() if process.name.startswith("decider")]


def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def work_as(monkeypatch):
    """Let deciders of services that start now do this instead."""

    def replace(work):
        monkeypatch.setattr(deciders.Deciders.__init__, "__defaults__", (work,))

    return replace


def test_several_deciders_answer_each_run_as_an_agent_alone_would(serve):
    client = serve(deciders=3)
    runs = [new_run(client) for _ in range(8)]
    for run in runs:
        context = Run.model_validate(run).context
        state = begin(context, run["plan_id"])
        for index in range(3):
            answer = client.post(f"/v1/runs/{run['id']}/windows", json=window(index))
            assert answer.status_code == 200, answer.text
            alone, state = decide(Window.model_validate(window(index)), state, context)
            assert Decision.model_validate(answer.json()) == alone


def test_windows_are_answered_though_their_decider_is_killed(serve):
    client = serve(deciders=2)
    runs = [new_run(client) for _ in range(4)]
    given = {}

    def report(run):
        for index in range(12):
            answer = client.post(f"/v1/runs/{run['id']}/windows", json=window(index))
            given[run["id"], index] = answer.json() if answer.status_code == 200 else answer.text

    threads = [threading.Thread(target=report, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    until(lambda: len(given) >= 4)
    for process in processes():
        os.kill(process.pid, signal.SIGKILL)
    for thread in threads:
        thread.join()
    for run in runs:
        kept = client.get(f"/v1/runs/{run['id']}/decisions").json()["items"]
        assert kept == [given[run["id"], index] for index in range(12)]
    assert "trimtab_decider_deaths 2.0" in client.get("/metrics").text
    until(lambda: client.get("/readyz").status_code == 200)


@pytest.mark.parametrize("work", [invented_deciders.dies_of_13, invented_deciders.hangs_over_13])
def test_a_window_that_ends_its_deciders_is_refused_and_the_others_are_answered(
    serve, work_as, caplog, monkeypatch, work
):
    monkeypatch.setattr(deciders, "HANG_S", 3.0)
    monkeypatch.setattr(deciders, "LOOK_S", 0.1)
    work_as(work)
    client = serve()
    run = new_run(client)
    path = f"/v1/runs/{run['id']}/windows"
    answers = {}

    def post(index, tokens):
        answers[index] = client.post(path, json=window(index, tokens))

    threads = [threading.Thread(target=post, args=each) for each in ((0, UNLUCKY), (1, HOT), (2, HOT))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[index].status_code for index in range(3)] == [500, 200, 200]
    assert answers[0].json()["type"] == "urn:trimtab:problem:internal"
    assert f"of a window of run {run['id']}, which is refused" in caplog.text


def test_an_error_of_the_service_stays_in_its_log(serve, work_as, caplog):
    work_as(invented_deciders.breaks_over_13)
    client = serve()
    path = f"/v1/runs/{new_run(client)['id']}/windows"
    answer = client.post(path, json=window(0, UNLUCKY))
    assert answer.status_code == 500 and "secret" not in answer.text
    assert "a secret of the service" in caplog.text
    assert client.post(path, json=window(0)).status_code == 200


@pytest.mark.parametrize("error", [OSError("no more processes"), EOFError()])
def test_a_decider_that_cannot_be_started_is_tried_again(serve, monkeypatch, error):
    monkeypatch.setattr(deciders, "RETRY_S", 0.05)
    start, tries = deciders._start, []

    def fails_at_first(*arguments):
        tries.append(arguments)
        if len(tries) < 3:
            raise error
        return start(*arguments)

    monkeypatch.setattr(deciders, "_start", fails_at_first)
    client = serve()
    path = f"/v1/runs/{new_run(client)['id']}/windows"
    assert client.post(path, json=window(0)).status_code == 200
    assert len(tries) == 3


def deaths(client):
    return float(re.search(r"^trimtab_decider_deaths (\S+)$", client.get("/metrics").text, re.MULTILINE)[1])


def test_deciders_that_cannot_live_are_told_and_no_window_is_to_blame(serve, work_as, monkeypatch, tmp_path):
    monkeypatch.setattr(deciders, "RETRY_S", 0.05)
    marker = tmp_path / "may live"
    work_as(partial(invented_deciders.ends_at_once_before, str(marker)))
    client, answers = serve(), []
    path = f"/v1/runs/{new_run(client)['id']}/windows"
    thread = threading.Thread(target=lambda: answers.append(client.post(path, json=window(0))))
    thread.start()
    until(lambda: deaths(client) >= 4)  # they go on dying: nobody need look while it is just four
    ready = client.get("/readyz")
    assert ready.status_code == 503 and "decider 0" in ready.json()["detail"]
    marker.touch()
    thread.join()
    assert answers[0].status_code == 200
    until(lambda: client.get("/readyz").status_code == 200)


@pytest.mark.parametrize("limit", [{"max_waiting_windows": 2}, {"max_waiting_window_bytes": 150}])
def test_windows_beyond_those_that_may_wait_are_refused_and_may_come_again(serve, work_as, tmp_path, limit):
    marker = tmp_path / "go"
    work_as(partial(invented_deciders.waits_for, str(marker)))
    client = serve(**limit)
    path = f"/v1/runs/{new_run(client)['id']}/windows"
    with ThreadPoolExecutor(3) as pool:
        taken = [pool.submit(client.post, path, json=window(index)) for index in range(2)]
        try:
            until(lambda: "trimtab_windows_waiting 2.0" in client.get("/metrics").text)
            refused = pool.submit(client.post, path, json=window(2)).result(30)
        finally:
            marker.touch()
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
    assert "2 windows" in refused.json()["detail"]
    assert [answer.result().status_code for answer in taken] == [200, 200]
    assert client.post(path, json=window(2)).status_code == 200


def test_windows_that_nobody_awaits_any_more_leave_the_count(database_url, tmp_path):
    work = partial(invented_deciders.waits_for, str(tmp_path / "never"))

    async def give_up():
        crew = deciders.Deciders(database_url, 1, 100, 2**20, work=work)
        crew.start()
        asking = [asyncio.create_task(crew.decide("run", b"{}")) for _ in range(20)]
        await asyncio.sleep(0)
        assert crew.num_waiting == 20
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        left = crew.num_waiting
        await crew.close()
        return left

    assert asyncio.run(give_up()) == 0


def test_what_nobody_awaits_any_more_is_not_asked(database_url, tmp_path):
    notes = tmp_path / "notes"
    work = partial(invented_deciders.notes_what_it_is_asked, str(notes))

    async def give_up():
        crew = deciders.Deciders(database_url, 1, 100, 2**20, work=work)
        crew.start()
        body = json.dumps(window(0)).encode()
        impatient = [asyncio.create_task(crew.decide("given-up", body)) for _ in range(20)]
        patient = asyncio.create_task(crew.decide("awaited", body))
        await asyncio.sleep(0)
        for task in impatient:
            task.cancel()
        await patient
        await crew.close()

    asyncio.run(give_up())
    assert notes.read_text().split() == ["awaited"]


def test_a_window_is_given_up_when_its_client_goes():
    given_up = []

    class Slow:
        async def decide(self, run_id, body):
            try:
                await asyncio.sleep(60)
            finally:
                given_up.append(run_id)

    said = iter(({"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}))

    async def receive():
        await asyncio.sleep(0)
        return next(said)

    async def ask():
        request = Request({"type": "http", "headers": [(b"content-type", b"application/json")]}, receive)
        answer = await RunRoutes(None, None, Slow(), None).decide("r", request)
        await asyncio.sleep(0)
        return answer

    assert asyncio.run(ask()).status_code == 499
    assert given_up == ["r"]


def test_deciders_end_with_their_service(database):
    with running(database, instant, deciders=2) as client:
        until(lambda: len(processes()) == 2)
        pids = [process.pid for process in processes()]
        until(lambda: client.get("/readyz").status_code == 200)
    until(lambda: not any(map(alive, pids)))


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{", b'{"index": "x"}', b'"\\ud800"'])
def test_what_is_no_window_is_refused_as_what_is_no_search_is(serve, body):
    client, typed = serve(), {"content-type": "application/json"}
    run = client.post(f"/v1/runs/{new_run(client)['id']}/windows", content=body, headers=typed)
    search = client.post("/v1/searches", content=body, headers=typed)
    assert run.status_code == search.status_code and run.json()["type"] == search.json()["type"]
    assert run.headers["content-type"] == search.headers["content-type"]
    assert client.post("/v1/runs/none/windows", content=body).status_code == 415
