"""What a job meets around its agent: no service, advice only, steps after the end, another agent, own routers."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from planner_samples import SEARCH, SamplePlanner, keep, sample_run
from torch import nn
from training_samples import EXPERTS, LAYERS, TOKENS, make_job, my_batches, train_step

from planner.online.recorded.trace import trace_of
from planner.spec.errors import InputError
from runtime import Agent, RouterKind
from runtime.hooks import Choices, Counts, RoutingMap, attach
from runtime.launch import launch


def train(agent, model, optimizer, steps, union=1):
    data = my_batches(union=union)
    for _ in range(steps):
        train_step(model, optimizer, next(data))
        agent.step()


def read(path):
    with np.load(path, allow_pickle=False) as data:
        return trace_of(dict(data))


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_job_can_record_without_a_service_and_nothing_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("TRIMTAB_SERVICE", raising=False)
    model, optimizer = make_job()
    with Agent(model=model, optimizer=optimizer, window_steps=2, record=tmp_path / "trace.npz") as agent:
        train(agent, model, optimizer, 9)
    trace = read(tmp_path / "trace.npz")
    assert trace.tokens.shape == (4, LAYERS, EXPERTS)
    assert (trace.top_k, trace.model) == (2, "LanguageModel")
    assert not warnings_of(caplog)


def record_alone(report, path):
    model, optimizer = make_job()
    with Agent(model=model, optimizer=optimizer, window_steps=5, record=path) as agent:
        train(agent, model, optimizer, 12, union=2)


def test_the_ranks_of_a_job_can_record_without_a_service(tmp_path, monkeypatch):
    monkeypatch.delenv("TRIMTAB_SERVICE", raising=False)
    launch(record_alone, 2, (str(tmp_path / "trace.npz"),), timeout_s=120)
    trace = read(tmp_path / "trace.npz")
    assert trace.tokens.sum(axis=2).tolist() == [[5 * 2 * 2 * TOKENS * 2] * LAYERS] * 2


@pytest.mark.parametrize("changes", [{"run": "my-run"}, {"search": "s"}, {"record": None}])
def test_a_job_that_asks_for_a_run_needs_a_service(changes, tmp_path, monkeypatch):
    monkeypatch.delenv("TRIMTAB_SERVICE", raising=False)
    model, optimizer = make_job()
    with pytest.raises(InputError, match=r"^service: is required") as caught:
        Agent(**{"model": model, "optimizer": optimizer, "record": tmp_path / "trace.npz"} | changes)
    assert "record= alone" in str(caught.value)


def test_a_trace_of_a_job_whose_service_is_away_says_how_many_experts_a_token_has(tmp_path):
    with SamplePlanner(ranks=1, mode=503) as planner:
        model, optimizer = make_job()
        options = {"service": planner.url, "run": "r", "window_steps": 2, "timeout_s": 0.5}
        agent = Agent(model=model, optimizer=optimizer, record=tmp_path / "trace.npz", **options)
        train(agent, model, optimizer, 3)
        agent.close(0.1)
    assert read(tmp_path / "trace.npz").top_k == 2


def test_the_trace_of_a_resumed_job_goes_on_with_the_steps_of_its_run(tmp_path):
    with SamplePlanner(ranks=1, decide=keep) as planner:
        for _ in range(2):
            model, optimizer = make_job()
            options = {"service": planner.url, "run": "my-run", "search": SEARCH, "window_steps": 2}
            with Agent(model=model, optimizer=optimizer, record=tmp_path / "trace.npz", **options) as agent:
                train(agent, model, optimizer, 5)
    assert read(tmp_path / "trace.npz").steps.tolist() == [0, 2]
    assert read(tmp_path / "trace-2.npz").steps.tolist() == [4, 6]


class Router(nn.Linear):
    """Stands for a router of another framework: found by its names."""

    num_experts = EXPERTS

    def forward(self, tokens):
        logits = super().forward(tokens)
        return logits, logits.topk(2).indices


Router.__module__, Router.__name__ = "transformers.models", "NewTopKRouter"


def other_model():
    return nn.ModuleList([Router(2, EXPERTS) for _ in range(LAYERS)])


@pytest.mark.parametrize(
    ("arguments", "told"), [({}, 1), ({"apply": "advise"}, 0), ({"on_decision": print}, 0)], ids=str
)
def test_a_model_whose_experts_cannot_be_moved_gets_advice_only_and_is_told_so_once(arguments, told, caplog):
    run = sample_run(ranks=1)
    with SamplePlanner(ranks=1, runs=(run,)) as planner:
        Agent(service=planner.url, run="my-run", model=other_model(), **arguments).close()
    said = [message for message in warnings_of(caplog) if message.startswith("advice only")]
    assert len(said) == told
    assert all("on_decision=" in message and 'apply="advise"' in message for message in said)


def test_a_step_after_the_end_does_nothing_and_is_told_once(caplog):
    with SamplePlanner(ranks=1, decide=keep) as planner:
        model, optimizer = make_job()
        options = {"service": planner.url, "run": "my-run", "search": SEARCH, "window_steps": 2}
        with Agent(model=model, optimizer=optimizer, **options) as agent:
            train(agent, model, optimizer, 4)
        train(agent, model, optimizer, 6)
    assert len(planner.windows) == 2
    assert warnings_of(caplog) == ["step() after close(): nothing is counted any more"]


def test_a_second_agent_on_a_model_is_refused_until_the_first_is_closed():
    with SamplePlanner(ranks=1, decide=keep) as planner:
        model, optimizer = make_job()
        options = {"service": planner.url, "search": SEARCH, "model": model, "optimizer": optimizer, "window_steps": 2}
        first = Agent(run="one", **options)
        with pytest.raises(InputError, match=r"^model: has another agent already, at router .*: close\(\) that one"):
            Agent(run="two", **options)
        train(first, model, optimizer, 3)
        first.close()
        Agent(run="two", **options).close()
    assert len(planner.windows) == 1, "the first counts on"


def test_what_a_copy_of_the_model_does_is_not_counted():
    model = other_model()
    counters = attach(model)
    copied = copy.deepcopy(model)
    for router in (*model, *copied):
        router.train()(torch.ones(3, 2))
    assert [counter.take(torch.device("cpu")).sum().item() for counter in counters] == [6] * LAYERS


def test_where_one_router_cannot_be_counted_no_hook_is_left_on_the_others():
    model = other_model()
    model[1].num_experts = None
    with pytest.raises(InputError, match="does not say its num_experts"):
        attach(model)
    assert not model[0]._forward_hooks


class Mine(nn.Module):
    num_experts = 4

    def forward(self, tokens):
        return tokens


Mine.__module__ = "my_package"


@pytest.mark.parametrize(
    ("routing", "message"),
    [
        (lambda router, output: output.long(), "must return Choices, RoutingMap or Counts of runtime.hooks, got a Ten"),
        (lambda router, output: [1, 2], "must return Choices, RoutingMap or Counts of runtime.hooks, got a list"),
        (lambda router, output: Choices([0, 1]), "Choices must be made of a tensor, got a list"),
        (lambda router, output: Choices(torch.tensor(3)), "Choices must be made of a tensor, got a Tensor without dim"),
        (lambda router, output: RoutingMap(output), "RoutingMap must say of each expert whether, not torch.float32"),
        (lambda router, output: RoutingMap(output > 0), r"RoutingMap must be \[tokens, 4 experts\], got \[3, 5\]"),
        (lambda router, output: Counts([1, 2, 3, 4]), "Counts must be made of a tensor, got a list"),
        (lambda router, output: Counts(torch.arange(5)), "Counts must be one for each of 4 experts, got 5"),
    ],
)
def test_an_own_kind_of_router_that_is_read_wrongly_is_one_clear_error(routing, message):
    model = Mine()
    attach(model, [RouterKind("my_package", ("Mine",), routing)])
    with pytest.raises(InputError, match=f"^routers: .*{message}"):
        model(torch.ones(3, 5, requires_grad=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("my.package", ("Mine",)), "package must be the first part of a module's name"),
        ((None, ("Mine",)), "package must be the first part of a module's name"),
        (("my_package", "Mine"), "class_names must be a tuple of names, got the text 'Mine'"),
        (("my_package", 5), "class_names must be a tuple of names, got 5"),
        (("my_package", ("Mine",), Choices(torch.zeros(1, 1, dtype=torch.int64))), "routing must be a function"),
        (("my_package", ("Mine",), lambda router, output: None, 8), "num_experts must be a function, got 8"),
    ],
)
def test_an_own_kind_of_router_that_is_described_wrongly_is_one_clear_error(arguments, message):
    with pytest.raises(InputError, match=f"^routers: {message}"):
        RouterKind(*arguments)
