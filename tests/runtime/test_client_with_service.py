"""The agent's client against the real service, as a process of its own."""

from __future__ import annotations

import time

import pytest
from planner_samples import InThread, keep

from api.demo import EXPERTS, RANKS, model, plan, running_service
from planner.spec.errors import InputError, UnavailableError
from planner.spec.placement import Placement
from planner.spec.run import RunRequest
from planner.spec.window import Window
from runtime.client import PlannerService
from runtime.courier import Courier

LAYERS = len(model().moe_layers)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with running_service(tmp_path_factory.mktemp("service"), 0) as url:
        client = PlannerService(url, None, 20.0)
        search, shortlist = plan(url)
        yield client, search, shortlist.plans[0].plan


def new(name, search, plan=None):
    return RunRequest(name=name, search_id=search, plan_id=plan)


def window(index, num_experts=EXPERTS.num_experts):
    row = tuple(100 + 10 * expert for expert in range(num_experts))
    return Window(index=index, first_step=5 * index, num_steps=5, tokens=(row,) * LAYERS)


def test_a_run_begins_and_is_found_again_with_its_history(service):
    client, search, best = service
    begun = client.attach("some run", new("some run", search), None)
    assert (begun.run.name, begun.next_index, begun.next_step) == ("some run", 0, 0)
    assert begun.plan_id == best.id == begun.run.context.plans[0].id
    assert begun.placement == Placement.contiguous([EXPERTS.num_experts] * LAYERS, RANKS)
    assert client.attach("some run", None, None) == begun
    decisions, repeated = zip(*(client.post_window(begun.run.id, window(index)) for index in range(3)), strict=True)
    assert repeated == (False,) * 3
    assert [decision.window for decision in decisions] == [0, 1, 2]
    assert client.post_window(begun.run.id, window(1)) == (decisions[1], True)
    placed = [decision.placement for decision in decisions if decision.placement is not None]
    for name in ("some run", begun.run.id):
        found = client.attach(name, None, None)
        assert found.run == begun.run
        assert (found.next_index, found.next_step, found.plan_id) == (3, 15, decisions[-1].plan_id)
        assert found.placement == (placed[-1] if placed else begun.placement)


@pytest.mark.parametrize("name", ["nobody/knows?this", "x" * 150, "ünïcode"])
def test_any_name_may_be_asked_for(service, name):
    client, search, _ = service
    with pytest.raises(InputError, match="give search="):
        client.attach(name, None, None)
    begun = client.attach(name, new(name, search), None)
    assert client.attach(name, None, None).run == begun.run


def test_a_search_or_plan_that_does_not_exist_is_the_users_error(service):
    client, search, _ = service
    with pytest.raises(InputError, match="no search 'unknown'"):
        client.attach("new", new("new", "unknown"), None)
    with pytest.raises(InputError, match="must be a plan of the shortlist"):
        client.attach("new", new("new", search, "unknown"), "unknown")


def test_a_window_of_the_wrong_shape_is_refused_for_good(service):
    client, search, _ = service
    run = client.attach("shapes", new("shapes", search), None).run
    with pytest.raises(InputError, match="refused it: 422"):
        client.post_window(run.id, window(0, num_experts=3))


def test_a_run_that_is_gone_may_come_back(service):
    client, _, _ = service
    with pytest.raises(UnavailableError, match="404"):
        client.post_window("gone", window(0))


def test_a_second_job_in_a_live_run_is_told_and_uses_no_decision_about_the_loads_of_the_other(service, caplog):
    client, search, _ = service
    request = new("shared", search)
    jobs = []
    for _ in range(2):
        jobs.append(Courier(client, lambda: client.attach("shared", request, None), lambda run: InThread(keep)))
        jobs[-1].attach()
    for job, source in zip(jobs, ("service", "local policy"), strict=True):
        for index in range(2):
            job.submit(window(index))
            deadline = time.monotonic() + 20
            while (answer := job.answer(window(index))) is None or answer[1] != source:
                assert time.monotonic() < deadline
                time.sleep(0.01)
    for job in jobs:
        job.close(20.0)
    [message] = [record.getMessage() for record in caplog.records if "another job" in record.getMessage()]
    assert "run: window 0 of run 'shared' was there already: each job needs its own run" in message
