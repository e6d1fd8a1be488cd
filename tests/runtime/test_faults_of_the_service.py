"""Whatever comes over the wire from a service: windows arrive later, once and in order, and one warning says so."""

from __future__ import annotations

import logging
import time

import pytest
from faulty_service import MISFITS, NONSENSE, Wire, answer, status
from planner_samples import SEARCH, InThread, SamplePlanner, keep, sample_plan, sample_run, turn
from training_samples import EXPERTS, LAYERS, largest_difference, make_job, my_batches, train_step

import runtime.client
import runtime.courier
import runtime.request
from planner.spec.errors import InputError, UnavailableError
from planner.spec.run import RunRequest
from planner.spec.window import Window
from runtime.agent import Agent
from runtime.client import Attachment, PlannerService
from runtime.courier import Courier
from runtime.hooks import attach
from runtime.joining import fitted
from runtime.moe import moe_layers
from runtime.shares import my_share, whole_model


@pytest.fixture
def planner():
    with SamplePlanner(ranks=1, decide=keep) as planner:
        yield planner


@pytest.fixture
def wire(planner, monkeypatch):
    monkeypatch.setattr(runtime.client, "DELIVERY_TIMEOUT_S", 0.5)
    monkeypatch.setattr(runtime.courier, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(runtime.courier, "LONGEST_PAUSE_S", 0.1)
    monkeypatch.setattr(runtime.request, "MAX_ANSWER_BYTES", 500_000)
    with Wire(planner.server.server_port) as wire:
        yield wire


def window(index):
    row = tuple(index + expert + 1 for expert in range(EXPERTS))
    return Window(index=index, first_step=4 * index, num_steps=4, tokens=(row,) * LAYERS)


def make_courier(wire, policy=keep):
    service = PlannerService(wire.url, None, 0.5)
    return Courier(
        service,
        lambda: service.attach("my-run", RunRequest(name="my-run", search_id=SEARCH), None),
        lambda run: InThread(policy),
    )


def wait_until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def told(caplog):
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("kind", NONSENSE)
def test_windows_arrive_after_any_nonsense_once_and_in_order(planner, wire, caplog, kind):
    courier = make_courier(wire)
    courier.attach()
    wire.mode, wire.attempts = NONSENSE[kind], 0
    for index in range(3):
        courier.submit(window(index))
    wait_until(lambda: wire.attempts >= 2)
    assert courier.answer(window(2))[1] == "local policy"
    wire.mode = None
    wait_until(lambda: len(planner.windows) == 3)
    courier.close(20.0)
    assert [seen.index for seen in planner.windows] == [0, 1, 2]
    trouble = "does not let us in" if kind in ("401", "403") else "is away"
    first, *between, last = told(caplog)
    assert trouble in first and "is back" in last
    assert all("no answer within" in message for message in between)  # of a machine that is slow, too
    assert len(set(between)) == len(between)
    assert "is back" in told(caplog)[1]


@pytest.mark.parametrize("kind", NONSENSE)
def test_a_job_begins_in_bounded_time_whatever_the_service_says(wire, kind):
    courier = make_courier(wire)
    courier.close(20.0)
    wire.mode = NONSENSE[kind]
    courier = make_courier(wire)
    with pytest.raises((UnavailableError, InputError)):
        courier.attach()
    courier.close(20.0)


@pytest.mark.parametrize("kind", MISFITS)
def test_a_decision_for_another_job_is_not_used_and_its_window_is_not_sent_again(planner, wire, caplog, kind):
    courier = make_courier(wire)
    courier.attach()
    planner.decide = MISFITS[kind]
    for index in range(2):
        courier.submit(window(index))
        wait_until(lambda index=index: len(planner.windows) == index + 1)
        wait_until(lambda index=index: courier.answer(window(index)) is not None)
        assert courier.answer(window(index))[1] == "local policy"
    planner.decide = keep
    courier.submit(window(2))
    wait_until(lambda: (courier.answer(window(2)) or " ")[-1] == "service")
    courier.close(20.0)
    assert [seen.index for seen in planner.windows] == [0, 1, 2]
    assert ["does not fit this job" in message for message in told(caplog)] == [True, False]


def test_a_service_that_needs_longer_than_a_job_would_wait_at_its_begin_gets_all_windows(
    planner, wire, monkeypatch, caplog
):
    courier = make_courier(wire)
    courier.attach()
    monkeypatch.setattr(runtime.client, "DELIVERY_TIMEOUT_S", 60.0)
    wire.delay_s = 1.0
    for index in range(3):
        courier.submit(window(index))
    courier.close(30.0)
    assert [seen.index for seen in planner.windows] == [0, 1, 2]
    assert not told(caplog)


def test_a_service_that_asks_for_a_pause_gets_it(planner, wire, monkeypatch):
    courier = make_courier(wire)
    courier.attach()
    wire.mode, wire.attempts = status(429, "Retry-After: 3600"), 0
    courier.submit(window(0))
    wait_until(lambda: wire.attempts == 1)
    time.sleep(0.5)
    assert wire.attempts == 1, "many of our own pauses have passed"
    wire.mode = None
    courier.close(20.0)
    assert [seen.index for seen in planner.windows] == [0], "the end of the job makes one more attempt"


@pytest.mark.parametrize(
    ("header", "least_s", "most_s"),
    [("7", 7, 7), ("Fri, 31 Dec 9998 23:59:59 GMT", 1e9, 1e12), ("Thu, 01 Jan 1970 00:00:00 GMT", 0, 0), ("-1", 0, 0)]
    + [(text, 0, 0) for text in ("soon", "", "1e9", "٣", "9" * 400 + ".")],
)
def test_of_a_header_that_asks_for_a_pause_only_what_can_be_understood_counts(wire, header, least_s, most_s):
    wire.mode = status(503, f"Retry-After: {header}".encode().decode("latin-1"))
    with pytest.raises(UnavailableError) as caught:
        PlannerService(wire.url, None, 5.0).post_window("run", window(0))
    assert least_s <= caught.value.retry_after_s <= most_s


def test_a_service_that_shows_ever_more_windows_does_not_keep_a_job_from_beginning(planner, wire):
    courier = make_courier(wire)
    courier.attach()
    courier.close(20.0)
    wire.mode = answer({"items": [window(7).model_dump(mode="json")], "next": None})
    service = PlannerService(wire.url, None, 5.0)
    run_id = next(iter(planner.runs))
    with pytest.raises(UnavailableError):
        service.attach(run_id, None, None)


def test_a_delivering_thread_that_dies_is_told_and_replaced(planner, wire, caplog, monkeypatch):
    monkeypatch.setattr("threading.excepthook", lambda arguments: None)
    courier = make_courier(wire)
    courier.attach()
    deaths = iter([SystemExit("as asked")])

    def die_once(*arguments):
        for death in deaths:
            raise death
        return post(*arguments)

    post = courier._service.post_window
    monkeypatch.setattr(courier._service, "post_window", die_once)
    courier.submit(window(0))
    wait_until(lambda: not courier._thread.is_alive())
    courier.submit(window(1))
    courier.close(20.0)
    assert [seen.index for seen in planner.windows] == [0, 1]
    assert told(caplog) == ["the thread that delivers windows has died; another one takes over"]


def test_what_waits_is_bounded_by_its_size_too(planner, wire, monkeypatch, caplog):
    monkeypatch.setattr(runtime.courier, "MAX_COUNTS_KEPT", 5 * LAYERS * EXPERTS)
    courier = make_courier(wire)
    courier.attach()
    wire.mode, wire.attempts = NONSENSE["503"], 0
    for index in range(9):
        courier.submit(window(index))
    assert courier._counts_waiting == 5 * LAYERS * EXPERTS
    wire.mode = None
    courier.close(20.0)
    assert [seen.index for seen in planner.windows][-5:] == [4, 5, 6, 7, 8]
    assert courier._counts_waiting == 0
    assert sum("too many wait" in message for message in told(caplog)) == 4


def test_a_job_trains_through_all_of_it_as_without_an_agent(planner, wire):
    def losses_of(agent_for):
        model, optimizer = make_job()
        data, losses, agent = my_batches(union=1), [], agent_for(model, optimizer)
        kinds = iter([None, *NONSENSE.values()])
        for _ in range(2 * len(NONSENSE) + 2):
            losses.append(train_step(model, optimizer, next(data)))
            if agent is not None:
                agent.step()
                wire.mode = next(kinds, None)
        if agent is not None:
            wire.mode = None
            agent.close(60.0)
        return losses, moe_layers(model)[0].slots

    def agent_for(model, optimizer):
        arguments = {"service": wire.url, "run": "my-run", "search": SEARCH, "window_steps": 2, "timeout_s": 2.0}
        return Agent(model=model, optimizer=optimizer, apply="advise", policy=lambda run: InThread(turn), **arguments)

    planner.decide = turn
    losses, slots = losses_of(agent_for)
    plain, first = losses_of(lambda model, optimizer: None)
    assert slots == first and largest_difference(losses, plain) == 0.0
    assert [seen.index for seen in planner.windows] == list(range(len(NONSENSE) + 1))


def test_a_run_goes_on_under_a_plan_of_the_jobs_size(caplog):
    model, _ = make_job()
    share = my_share(attach(model), moe_layers(model), None, "advise", None)
    layers, _ = whole_model([share.model_dump(mode="json")])
    alone = sample_plan(ranks=4, expert_ranks=1)
    run = sample_run(ranks=4, more_plans=(alone,))
    found = Attachment(run=run, plan_id=run.plan_id, placement=run.placement, next_index=7, next_step=70)
    changed = fitted(found, layers, None)
    assert (changed.plan_id, changed.placement, changed.next_index) == (alone.id, None, 7)
    assert "goes on with experts over 1 ranks, not 4" in caplog.text
    with pytest.raises(InputError, match=r"over 4 ranks, the model over 1: .* has 4 .*, 1 "):
        fitted(found, layers, run.plan_id)
