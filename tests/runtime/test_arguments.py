"""What a user of the agent and of the expert-parallel layer is told about an argument that cannot be right."""

from __future__ import annotations

import threading

import pytest
from planner_samples import SEARCH, SamplePlanner
from torch import nn
from training_samples import EXPERT_SHAPE, make_job

from planner.spec.errors import InputError
from planner.spec.model import MoeFeedForward
from planner.spec.placement import TokenSplit
from runtime import Agent, ExpertParallelMoe

NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("argument", "values", "message"),
    [
        ("run", ["", 5, ".", "x" * 201], "must "),
        ("search", ["", 5], "must "),
        ("plan", ["", 5], "must "),
        ("model", [None, 5, [], ["x"], [nn.Linear(1, 1), None]], "must be a torch module, or a list of modules"),
        ("window_steps", [0, -3], "must be greater than or equal to 1"),
        ("window_steps", [2.5, "5", True, None], "must be a whole number"),
        ("apply", ["perhaps", 5], "must be 'migrate' or 'advise'"),
        ("optimizer", [5, nn.Linear(1, 1)], "must be a torch optimizer"),
        ("on_decision", [5, "print"], "must be a function"),
        ("policy", [None, 5], "must be a function"),
        ("timeout_s", [0, -1.0, NAN, INFINITY, "5", 1e9, None], "must be "),
        ("routers", [5, "MyRouter", None], "must be a list"),
        ("record", [5, "trace.json", "", b"trace.npz"], "must be a path that ends in .npz"),
        ("moe_layers", [5, "01"], "must be a list of the numbers"),
        ("group", [5, "all"], "must be a torch.distributed.ProcessGroup"),
        ("same_tokens", [5, "all"], "must be a torch.distributed.ProcessGroup"),
        (
            "service",
            ["planner:8000", "http://", "ftp://planner", "http://planner:99999", "http://a b"],
            "such as http:",
        ),
        ("service", ["http://planner:8000/v1", "http://planner/trimtab/v1/"], "the address without /v1"),
        ("service", [5], "must be text"),
        ("token", ["secret\n", "two words", "é"], "must be ASCII without spaces and line ends"),
    ],
)
def test_an_argument_that_cannot_be_right_is_named_before_anything_has_begun(argument, values, message):
    model, optimizer = make_job()
    good = {"service": "http://127.0.0.1:9", "run": "my-run", "model": model, "optimizer": optimizer}
    threads = threading.active_count()
    for value in values:
        with pytest.raises(InputError) as caught:
            Agent(**good | {argument: value})
        [problem] = caught.value.problems
        assert problem.field == argument and message in problem.message, caught.value
    assert threading.active_count() == threads
    assert not any(module._forward_hooks for module in model.modules())


def test_a_kind_of_router_that_is_none_is_named_by_its_place_in_the_list():
    model, optimizer = make_job()
    with pytest.raises(InputError, match=r"^routers\.0: must be a runtime\.hooks\.kinds\.RouterKind, got 'MyRouter'$"):
        Agent(service="http://127.0.0.1:9", run="r", model=model, optimizer=optimizer, routers=["MyRouter"])


def test_a_token_is_not_shown():
    model, optimizer = make_job()
    with pytest.raises(InputError) as caught:
        Agent(service="http://127.0.0.1:9", run="r", model=model, optimizer=optimizer, token="my secret")
    assert "secret" not in str(caught.value)


def test_everything_that_is_wrong_is_said_at_once():
    with pytest.raises(InputError) as caught:
        Agent(run="", model=None, window_steps=0)
    assert {problem.field for problem in caught.value.problems} == {"run", "model", "window_steps"}


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"search": "unknown"}, "search", "no search 'unknown'"),
        ({"plan": "unknown"}, "plan", "must be a plan of the shortlist"),
    ],
)
def test_what_the_service_does_not_know_is_said_of_the_argument_that_asks_for_it(changes, field, message):
    model, optimizer = make_job()
    with SamplePlanner(ranks=1) as planner:
        given = {"service": planner.url, "run": "my-run", "search": SEARCH, "model": model, "optimizer": optimizer}
        with pytest.raises(InputError, match=message) as caught:
            Agent(**given | changes)
    assert [problem.field for problem in caught.value.problems] == [field]
    assert not any(module._forward_hooks for module in model.modules())


def test_an_address_where_another_service_answers_is_said_to_be_none_of_ours():
    model, optimizer = make_job()
    with SamplePlanner(ranks=1, mode=404) as planner, pytest.raises(InputError) as caught:
        Agent(service=f"{planner.url}/other", run="my-run", model=model, optimizer=optimizer)
    assert str(caught.value) == (
        "service: must be the address of a Trimtab service, such as http://host:port; it has no /v1/runs"
    )


def test_closing_takes_a_time_that_can_pass():
    model, optimizer = make_job()
    with SamplePlanner(ranks=1) as planner:
        agent = Agent(service=planner.url, run="r", search=SEARCH, model=model, optimizer=optimizer)
        for wrong in (NAN, -1.0, INFINITY, "5"):
            with pytest.raises(InputError, match=r"^timeout_s: must be "):
                agent.close(wrong)
        agent.close(0)


def test_a_mask_that_is_no_tensor_is_refused_where_it_is_set():
    model, optimizer = make_job()
    with (
        SamplePlanner(ranks=1) as planner,
        Agent(service=planner.url, run="r", search=SEARCH, model=model, optimizer=optimizer) as agent,
        pytest.raises(InputError, match=r"^mask: must be a tensor or None, got a list"),
    ):
        agent.mask([1, 1, 0])


@pytest.mark.parametrize(
    ("argument", "values", "message"),
    [
        ("hidden_size", [0, -1], "must be greater than or equal to 1"),
        ("hidden_size", [8.0, "8", None], "must be a whole number"),
        ("shape", [None, 5], "must be a planner.spec.model.MoeFeedForward"),
        ("group", [5], "must be a torch.distributed.ProcessGroup"),
        ("slots", [5, "01"], "must be a list of the expert in each slot"),
        ("extra_slots_per_rank", [-1], "must be greater than or equal to 0"),
        ("extra_slots_per_rank", [1.5, "2", None], "must be a whole number"),
        ("shadow_slots_per_rank", [-1], "must be greater than or equal to 0"),
        ("shadow_slots_per_rank", [1.5, "2"], "must be a whole number"),
        ("shadow_slots_per_rank", [10**9], "must be at most the 8 experts"),
        ("token_split", ["foo", 5, None], "must be 'even', 'window' or 'step'"),
        ("pieces", [0, 1.5], "must be "),
        ("gate", [5], "must be a runtime.gates.ExpertRouter"),
        ("capacity", [1.25], "must be a runtime.capacity.Capacity, got 1.25"),
        ("topology", [5], "must be a runtime.topology.Topology"),
        ("auxiliary", [0.01], "must be a runtime.auxiliary.AuxiliaryLoss, got 0.01"),
    ],
)
def test_an_argument_of_the_layer_that_cannot_be_right_is_named(argument, values, message):
    good = {"hidden_size": 16, "shape": EXPERT_SHAPE}
    for value in values:
        with pytest.raises(InputError) as caught:
            ExpertParallelMoe(**good | {argument: value})
        [problem] = caught.value.problems
        assert problem.field == argument and message in problem.message, caught.value


def test_slots_say_themselves_how_many_there_are():
    with pytest.raises(InputError, match=r"^extra_slots_per_rank: must be left out with slots"):
        ExpertParallelMoe(16, EXPERT_SHAPE, slots=[*range(8), 0], extra_slots_per_rank=1)


def test_a_token_split_may_be_given_by_its_name():
    layer = ExpertParallelMoe(16, EXPERT_SHAPE, token_split="step")
    assert layer.token_split is TokenSplit.STEP


@pytest.mark.parametrize(("num_experts", "top_k"), [(0, 1), (4, 0), (4, 5), (2.5, 1)])
def test_the_shape_itself_refuses_impossible_numbers(num_experts, top_k):
    with pytest.raises(ValueError, match=r"num_experts|top_k"):
        MoeFeedForward(num_experts=num_experts, top_k=top_k, expert_width=8)


def test_a_job_of_another_size_than_the_plan_is_told_once(caplog):
    class Router(nn.Linear):
        num_experts = 8

    Router.__module__, Router.__name__ = "transformers.models", "NewTopKRouter"
    with SamplePlanner(ranks=4) as planner:
        model = nn.ModuleList([Router(2, 8), Router(2, 8)])
        Agent(service=planner.url, run="r", search=SEARCH, model=model, apply="advise").close()
    [message] = [record.getMessage() for record in caplog.records if "is for" in record.getMessage()]
    assert "is for 4 devices, this job runs on 1: gains" in message


def test_a_run_that_was_begun_from_another_search_goes_on_and_that_is_told(caplog):
    with SamplePlanner(ranks=1) as planner:
        for search in (SEARCH, "a-later-search"):
            model, optimizer = make_job()
            Agent(service=planner.url, run="r", search=search, model=model, optimizer=optimizer).close()
    [message] = [record.getMessage() for record in caplog.records if "goes on as it was begun" in record.getMessage()]
    assert SEARCH in message and "a-later-search needs another name" in message
