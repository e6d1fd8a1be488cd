"""The agent on one process, against a planner that behaves well, badly, or not at all."""

from __future__ import annotations

import logging
import time

import pytest
import torch
import transformers
from planner_samples import SEARCH, InThread, SamplePlanner, keep, make_agent, sample_plan, sample_run, turn
from torch import nn
from training_samples import EXPERTS, LAYERS, TOKENS, largest_difference, make_job, my_batches, train_step

from planner.spec.decision import Action
from planner.spec.errors import InputError
from runtime.agent import Agent
from runtime.moe import moe_layers

NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens


def fixed_policy(answer):
    """A local policy that answers like `answer`."""
    return lambda run: InThread(answer)


@pytest.fixture
def planner():
    with SamplePlanner(ranks=1) as planner:
        yield planner


def train(agent, model, optimizer, steps, pause_s=0.0):
    data, losses = my_batches(union=1), []
    for _ in range(steps):
        losses.append(train_step(model, optimizer, next(data)))
        time.sleep(pause_s)
        if agent is not None:
            agent.step()
    return losses


def agent_for(planner, model, optimizer, **changes):
    url = planner if isinstance(planner, str) else planner.url
    return make_agent(url, model, optimizer, **{"window_steps": 4, "timeout_s": 2.0} | changes)


@pytest.fixture(scope="module")
def plain_losses():
    return train(None, *make_job(), 25)


def test_windows_arrive_and_decisions_are_carried_out_without_a_trace_in_the_losses(planner, plain_losses):
    model, optimizer = make_job()
    heard = []
    with agent_for(planner, model, optimizer, on_decision=heard.append) as agent:
        losses = train(agent, model, optimizer, 25, pause_s=0.02)
    assert [window.index for window in planner.windows] == list(range(6))
    assert [window.first_step for window in planner.windows] == [0, 4, 8, 12, 16, 20]
    for window in planner.windows:
        assert [sum(row) for row in window.tokens] == [4 * 2 * TOKENS * 2] * LAYERS
        assert window.step_time_s >= 0.02
    assert [decision.window for decision in heard] == list(range(5)), "the last one in the step after the last window"
    assert {decision.action for decision in heard} == {Action.REBALANCE}
    first = tuple(range(EXPERTS))
    assert [w.placement.layers[0] for w in planner.windows] == [
        tuple(first[-turns:] + first[:-turns]) if turns else first for turns in range(6)
    ]
    assert moe_layers(model)[1].slots == planner.windows[-1].placement.layers[1]
    assert planner.windows[0].pause_s is None, "nothing had moved"
    assert all(0 < window.pause_s < 5 for window in planner.windows[1:]), "what the move before it took"
    assert largest_difference(losses, plain_losses) <= 1e-5


def test_a_decision_is_carried_out_early_in_the_next_window_which_says_since_when(planner):
    """A window of 20 steps: looks at steps 23, 25, … are read a step later."""
    model, optimizer = make_job()
    heard = []
    agent = agent_for(planner, model, optimizer, window_steps=20, on_decision=lambda _: heard.append(step))
    data = my_batches(union=1)
    for step in range(1, 42):
        train_step(model, optimizer, next(data))
        if step == 23:
            until(lambda: agent._courier.answer(agent._last_window, early=True))
        agent.step()
    agent.close()
    assert heard == [24]
    assert [window.placed_step for window in planner.windows] == [None, 24]


@pytest.mark.parametrize("away", [False, True])
def test_the_local_policy_is_taken_early_only_while_the_service_is_away(planner, away):
    model, optimizer = make_job()
    heard = []
    arguments = {"window_steps": 20, "policy": fixed_policy(turn), "timeout_s": 20.0}
    agent = agent_for(planner, model, optimizer, on_decision=lambda _: heard.append(step), **arguments)
    planner.mode = 503 if away else "slow"
    data = my_batches(union=1)
    for step in range(1, 62):
        train_step(model, optimizer, next(data))
        if step in (23, 43):
            until(lambda: agent._courier.answer(agent._last_window, early=away))
        agent.step()
    placed = agent._last_window.placed_step
    agent.close(timeout_s=0.1)
    assert heard == ([24, 44] if away else [41, 61])
    assert placed == heard[-1]


def until(holds):
    deadline = time.monotonic() + 10
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_any_hugging_face_model_takes_three_lines(planner):
    run = sample_run(ranks=1)
    planner.runs[run.id] = run
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=EXPERTS,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    agent = Agent(service=planner.url, run="my-run", model=model, window_steps=5)
    for _ in range(10):
        model(input_ids=torch.randint(64, (2, 10))).logits.sum().backward()
        agent.step()
    agent.close()
    assert [window.index for window in planner.windows] == [0, 1]
    assert {sum(row) for window in planner.windows for row in window.tokens} == {5 * 2 * 10 * 2}
    assert {window.placement for window in planner.windows} == {run.placement}


def test_advise_never_touches_the_model(planner):
    model, optimizer = make_job()
    heard = []
    with agent_for(planner, model, None, apply="advise", on_decision=heard.append) as agent:
        train(agent, model, optimizer, 13, pause_s=0.02)
    assert len(heard) == 2
    assert moe_layers(model)[0].slots == tuple(range(EXPERTS))
    assert {window.placement.layers[0] for window in planner.windows} == {tuple(range(EXPERTS))}
    assert {window.pause_s for window in planner.windows} == {None}


def test_the_run_is_found_by_id_or_name_and_its_history_goes_on(planner):
    run = sample_run("old", ranks=1)
    planner.runs[run.id] = run
    for name in ("old", run.id):
        model, optimizer = make_job()
        with agent_for(planner, model, optimizer, run=name, search=None) as agent:
            train(agent, model, optimizer, 12, pause_s=0.02)
    assert [window.index for window in planner.windows] == list(range(6))
    assert [window.first_step for window in planner.windows] == [0, 4, 8, 12, 16, 20]
    assert not any(command == "POST" and path == "/v1/runs" for command, path, _ in planner.requests)


def test_in_an_old_run_what_was_decided_last_is_in_force(planner):
    first, other, mine = (sample_plan(1, micro_batch_size=size) for size in (2, 4, 8))
    run = sample_run("old", ranks=1, more_plans=(other, mine))
    planner.runs[run.id] = run
    arguments = {"run": "old", "search": None, "apply": "advise"}
    model, optimizer = make_job()
    with agent_for(planner, model, optimizer, **arguments) as agent:
        train(agent, model, optimizer, 4)
    planner.decisions[-1] = planner.decisions[-1].model_copy(update={"plan_id": other.id})
    for plan in (None, mine.id):
        with agent_for(planner, model, optimizer, **arguments, plan=plan) as agent:
            train(agent, model, optimizer, 4)
        assert planner.windows[-1].plan_id == (plan or other.id)
    with pytest.raises(InputError, match="must be of the run's shortlist"):
        agent_for(planner, model, optimizer, **arguments, plan="unknown")
    assert planner.runs[run.id].plan_id == first.id


def test_address_and_token_come_from_the_environment(planner, monkeypatch):
    monkeypatch.setenv("TRIMTAB_SERVICE", planner.url)
    monkeypatch.setenv("TRIMTAB_TOKEN", "secret")
    model, optimizer = make_job()
    with Agent(run="my-run", search=SEARCH, model=model, optimizer=optimizer):
        pass
    assert {token for _, _, token in planner.requests} == {"Bearer secret"}


def test_a_service_that_is_away_from_the_start_costs_nothing_and_gets_all_windows_later(planner, plain_losses, caplog):
    planner.mode = 503
    model, optimizer = make_job()
    agent = agent_for(planner, model, optimizer)
    losses = train(agent, model, optimizer, 13)
    planner.mode = "up"
    deadline = time.monotonic() + 10
    while len(planner.windows) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    agent.close()
    assert [window.index for window in planner.windows] == [0, 1, 2]
    assert largest_difference(losses, plain_losses[:13]) <= 1e-5
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert [("is away" in text, "is back" in text) for text in warnings] == [(True, False), (False, True)]


@pytest.mark.parametrize("mode", ["garbage", "misfit", "stale", "hang-up", 500, 503, 404, 401, 302])
def test_whatever_goes_wrong_the_local_policy_decides_and_windows_are_delivered_later(
    planner, plain_losses, caplog, mode
):
    model, optimizer = make_job()
    heard = []
    agent = agent_for(planner, model, optimizer, policy=fixed_policy(turn), on_decision=heard.append)
    planner.decide, planner.mode = keep, mode
    data, losses = my_batches(union=1), []
    for step in range(1, 14):
        losses.append(train_step(model, optimizer, next(data)))
        if step in (8, 12):
            until(lambda: agent._courier.answer(agent._last_window))
        agent.step()
    assert [decision.action for decision in heard] == [Action.REBALANCE] * 2
    agent.close(timeout_s=0.1)
    assert largest_difference(losses, plain_losses[:13]) <= 1e-5
    told = {"misfit": "does not fit", 401: "does not let us in"}.get(mode, "is away")
    assert [told in record.message for record in caplog.records if "planner service" in record.message] == [True]


@pytest.mark.parametrize("mode", [400, 409, 413, 422])
def test_a_window_that_the_service_refuses_is_given_up_and_the_next_goes_on(planner, caplog, mode):
    model, optimizer = make_job()
    agent = agent_for(planner, model, optimizer)
    planner.mode = mode
    train(agent, model, optimizer, 5)
    deadline = time.monotonic() + 10
    while not any("given up" in record.message for record in caplog.records) and time.monotonic() < deadline:
        time.sleep(0.02)
    planner.mode = "up"
    train(agent, model, optimizer, 8)
    agent.close()
    assert [window.index for window in planner.windows] == [1, 2]


def test_a_service_that_does_not_answer_holds_neither_a_step_nor_the_end_up(planner, plain_losses):
    model, optimizer = make_job()
    agent = agent_for(planner, model, optimizer, policy=fixed_policy(keep), timeout_s=20.0)
    planner.mode = "slow"
    losses = train(agent, model, optimizer, 25)
    agent.close(timeout_s=0.2)
    assert not planner.released.is_set() and not planner.windows, "it has answered nothing yet"
    assert largest_difference(losses, plain_losses) <= 1e-5


def test_a_window_in_which_nothing_was_trained_is_left_out(planner, caplog):
    model, optimizer = make_job()
    agent = agent_for(planner, model, optimizer)
    for _ in range(4):
        agent.step()
    train(agent, model, optimizer, 4)
    agent.close()
    assert [window.index for window in planner.windows] == [1]
    assert "window 0 is left out" in caplog.text


def test_a_placement_that_the_layer_cannot_hold_leaves_model_and_training_as_they_are(planner, plain_losses, caplog):
    def with_replica(window):
        decision = turn(window)
        rows = tuple((*row, 0) for row in decision.placement.layers)
        return decision.model_copy(update={"placement": decision.placement.model_copy(update={"layers": rows})})

    planner.decide = with_replica
    model, optimizer = make_job()
    with agent_for(planner, model, optimizer, policy=fixed_policy(with_replica)) as agent:
        losses = train(agent, model, optimizer, 13, pause_s=0.02)
    assert "decides what does not fit this job (placement: has 1 ranks with 9 slots" in caplog.text
    assert "nothing was moved" in caplog.text and "slots on each rank" in caplog.text
    assert moe_layers(model)[0].slots == tuple(range(EXPERTS))
    assert largest_difference(losses, plain_losses[:13]) <= 1e-5


def test_the_time_of_a_step_leaves_out_what_the_agent_and_its_callback_took(planner, monkeypatch):
    now_s = 0.0

    def pass_time(seconds):
        nonlocal now_s
        now_s += seconds

    monkeypatch.setattr("runtime.boundary.time.perf_counter", lambda: now_s)
    model, optimizer = make_job()
    data, heard = my_batches(union=1), []
    with agent_for(planner, model, optimizer, on_decision=lambda _: pass_time(1000.0) or heard.append(_)) as agent:
        for _ in range(21):
            train_step(model, optimizer, next(data))
            pass_time(2.0)
            agent.step()
            time.sleep(0.02)
    assert heard and [window.step_time_s for window in planner.windows] == [2.0] * 5


def test_an_own_executor_that_carried_out_a_switch_is_believed(planner):
    other = sample_plan(ranks=1, micro_batch_size=4)
    run = sample_run(ranks=1, more_plans=(other,))
    planner.runs[run.id] = run

    def switch(window):
        return keep(window).model_copy(update={"action": Action.SWITCH_PLAN, "plan_id": other.id})

    planner.decide = switch
    model, optimizer = make_job()
    answers = iter([False, True, True, True])
    with agent_for(planner, model, optimizer, on_decision=lambda decision: next(answers)) as agent:
        train(agent, model, optimizer, 21, pause_s=0.02)
    known = planner.windows[0].plan_id
    assert [window.plan_id for window in planner.windows] == [known, known, other.id, other.id, other.id]


def test_closing_removes_the_hooks_and_may_be_repeated(planner):
    model, optimizer = make_job()
    agent = agent_for(planner, model, optimizer)
    agent.close()
    agent.close()
    assert not any(module._forward_hooks for module in model.modules())


class OtherRouters(nn.Module):
    """Ours and a stranger's in one model."""

    def __init__(self):
        super().__init__()
        self.ours = make_job()[0]
        self.theirs = type("NewTopKRouter", (nn.Linear,), {"__module__": "transformers.new", "num_experts": 4})(2, 4)


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"service": ""}, "service", "TRIMTAB_SERVICE"),
        ({"optimizer": None}, "optimizer", "is required to move experts"),
        ({"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters())}, "optimizer", "does not hold the experts"),
        ({"search": None}, "run", "give search="),
        ({"search": "unknown"}, "search", "no search 'unknown'"),
        ({"run": None}, "run", "is required with a service"),
        ({"model": nn.Linear(2, 2)}, "model", "has no router that is known"),
        ({"model": OtherRouters()}, "model", "mixes"),
    ],
)
def test_what_cannot_be_right_is_said_when_the_agent_is_made(planner, monkeypatch, changes, field, message):
    monkeypatch.delenv("TRIMTAB_SERVICE", raising=False)
    model, optimizer = make_job()
    arguments = {"service": planner.url, "run": "my-run", "search": SEARCH, "model": model, "optimizer": optimizer}
    with pytest.raises(InputError, match=message) as caught:
        Agent(**arguments | changes)
    assert [problem.field for problem in caught.value.problems] == [field]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_run_that_was_planned_for_other_experts_or_ranks_is_refused(planner):
    model, optimizer = make_job()
    planner.ranks = 4
    with pytest.raises(InputError, match="over 4 ranks, the model over 1"):
        agent_for(planner, model, optimizer)
    del model.blocks[1]
    with pytest.raises(InputError, match="for 1 MoE layers of 8 experts, but run 'my-run' was planned for 2"):
        agent_for(planner, model, torch.optim.AdamW(model.parameters()))


@pytest.mark.parametrize("mode", [401, 403])
def test_a_token_that_is_not_let_in_is_said_when_the_agent_is_made(planner, mode):
    planner.mode = mode
    with pytest.raises(InputError, match="does not let us in"):
        agent_for(planner, *make_job())


def test_nobody_listening_is_a_warning_not_an_error(plain_losses, caplog):
    model, optimizer = make_job()
    with agent_for(NOWHERE, model, optimizer) as agent:
        losses = train(agent, model, optimizer, 8)
    assert largest_difference(losses, plain_losses[:8]) <= 1e-5
    assert "is away" in caplog.text and "2 windows were not delivered" in caplog.text
