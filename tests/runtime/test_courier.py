"""The courier: a bounded queue in order, a policy that fails, a service that comes back."""

from __future__ import annotations

import logging
import time

import pytest
from planner_samples import SEARCH, InThread, SamplePlanner, keep, sample_run
from training_samples import EXPERTS, LAYERS

import runtime.courier
from planner.spec.errors import InputError, UnavailableError
from planner.spec.run import RunRequest
from planner.spec.window import Window
from runtime.client import PlannerService
from runtime.courier import Courier


def window(index):
    row = tuple(index + expert + 1 for expert in range(EXPERTS))
    return Window(index=index, first_step=4 * index, num_steps=4, tokens=(row,) * LAYERS)


def make_courier(planner, policy=keep, name="my-run"):
    service = PlannerService(planner.url, None, 2.0)
    new = RunRequest(name=name, search_id=SEARCH)
    return Courier(service, lambda: service.attach(name, new, None), lambda run: InThread(policy))


def wait_until(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


@pytest.fixture
def planner():
    with SamplePlanner(ranks=1, decide=keep) as planner:
        yield planner


def test_a_full_queue_gives_up_the_oldest_windows_and_keeps_the_order_of_the_others(planner, monkeypatch, caplog):
    monkeypatch.setattr(runtime.courier, "MAX_WINDOWS_KEPT", 3)
    courier = make_courier(planner)
    courier.attach()
    planner.mode = 503
    for index in range(6):
        courier.submit(window(index))
    planner.mode = "up"
    courier.close(5.0)
    seen = [window.index for window in planner.windows]
    # A window that is on its way when it is given up may still arrive, before the others.
    assert seen == sorted(set(seen))
    assert seen[-3:] == [3, 4, 5]
    assert len(seen) <= 4
    assert "window 0 was never delivered: too many wait" in caplog.text


def test_a_policy_that_fails_decides_nothing_and_stops_nothing(planner, caplog):
    def failing(_):
        raise InputError.at("tokens", "as asked")

    courier = make_courier(planner, policy=failing)
    courier.attach()
    planner.mode = 503
    courier.submit(window(0))
    wait_until(lambda: "tokens: as asked" in caplog.text or courier.answer(window(0)) is not None)
    assert courier.answer(window(0)) is None
    planner.mode = "up"
    courier.close(5.0)
    assert [seen.index for seen in planner.windows] == [0]


def test_an_answer_of_the_service_goes_before_that_of_the_local_policy(planner):
    courier = make_courier(planner, policy=lambda w: keep(w).model_copy(update={"reason": "alone"}))
    courier.attach()
    courier.submit(window(0))
    wait_until(lambda: (found := courier.answer(window(0))) is not None and found[1] == "service")
    assert courier.answer(window(0))[0] == planner.decisions[0]
    courier.close(5.0)


def test_answers_are_given_for_the_last_window_only(planner):
    courier = make_courier(planner)
    courier.attach()
    courier.submit(window(0))
    courier.submit(window(1))
    wait_until(lambda: courier.answer(window(1)) is not None)
    courier.close(5.0)
    assert courier.answer(window(2)) is None


def test_a_run_that_turns_out_to_be_unknown_later_is_logged_once_and_windows_wait(planner, caplog, monkeypatch):
    monkeypatch.setattr(runtime.courier, "FIRST_PAUSE_S", 0.01)
    planner.mode = 503
    service = PlannerService(planner.url, None, 2.0)
    courier = Courier(service, lambda: service.attach("unknown", None, None), lambda run: InThread(keep))
    with pytest.raises(UnavailableError):
        courier.attach()
    planner.mode = "up"
    courier.submit(window(0))
    wait_until(lambda: sum(path == "/v1/runs/unknown" for _, path, _ in planner.requests) >= 3)
    run = sample_run("unknown", ranks=1)
    planner.runs[run.id] = run
    wait_until(lambda: planner.windows)
    courier.close(5.0)
    texts = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert ["has no run for us" in text for text in texts] == [True, False]
    assert "is back" in texts[1]


def test_a_job_that_attaches_late_is_numbered_after_what_the_run_has_seen(planner):
    first = make_courier(planner)
    first.attach()
    for index in range(3):
        first.submit(window(index))
    first.close(5.0)
    planner.mode = 503
    second = make_courier(planner)
    with pytest.raises(UnavailableError):
        second.attach()
    planner.mode = "up"
    second.submit(window(0))
    second.close(5.0)
    assert [(seen.index, seen.first_step) for seen in planner.windows] == [(0, 0), (1, 4), (2, 8), (3, 12)]
