"""What is special in one framework's routers: capacities, older versions, counters that grow too often, own kinds."""

from __future__ import annotations

import doubles_paddle
import doubles_routers as doubles
import pytest
import torch
from planner_samples import SEARCH, SamplePlanner, keep
from router_samples import EXPERTS, HIDDEN, TOP_K, autoep_layer, deepspeed_layer, megatron_router
from torch import nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils.checkpoint import checkpoint
from training_samples import LAYERS

from planner.spec.errors import InputError
from runtime import Agent, RouterKind
from runtime.hooks import ROUTERS, Choices, Counts, RoutingMap, TokenMask, attach

CPU = torch.device("cpu")
TOKENS = 24


@pytest.fixture
def hidden():
    return torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize("drop_tokens", [True, False])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_deepspeeds_gate_counts_the_demand_before_tokens_are_dropped(hidden, top_k, drop_tokens):
    layer = deepspeed_layer(k=top_k, drop_tokens=drop_tokens, capacity_factor=0.5)
    [counter] = attach(layer)
    layer(hidden, None)
    counts = counter.take(CPU)
    assert counts.tolist() == layer.exp_counts.tolist() and counts.sum() == TOKENS * top_k


def test_a_mask_on_a_deepspeed_gate_that_drops_tokens_is_refused_with_what_would_help(hidden):
    layer = deepspeed_layer(drop_tokens=True)
    attach(layer, mask=TokenMask(torch.ones(TOKENS)))
    with pytest.raises(InputError, match=r"mask: cannot be applied: DeepSpeed's TopKGate .* with drop_tokens=False"):
        layer(hidden, None)


def test_autoep_is_counted_once_where_its_own_counter_grows_with_evaluation_and_recomputation(hidden):
    layer = autoep_layer().train()
    [counter] = attach(layer)
    layer(hidden[None])
    once = counter.take(CPU).tolist()
    assert once == layer.tokens_per_expert.tolist(), "in plain training both say the same"
    with torch.no_grad():
        layer(hidden[None])
    checkpoint(layer, hidden[None], use_reentrant=False)[0].sum().backward()
    assert counter.take(CPU).tolist() == once
    assert layer.tokens_per_expert.tolist() == [4 * number for number in once]


def test_torchtitan_is_counted_once_where_its_own_counter_grows_with_recomputation(hidden):
    layer = doubles.MoE(HIDDEN, EXPERTS, TOP_K)
    [counter] = attach(layer)
    checkpoint(layer, hidden[None], use_reentrant=False).sum().backward()
    counts = counter.take(CPU)
    assert counts.sum() == TOKENS * TOP_K
    assert layer.tokens_per_expert_E.tolist() == (2 * counts).tolist()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"moe_router_enable_expert_bias": True, "moe_router_score_function": "sigmoid"},
        {"moe_router_num_groups": 4, "moe_router_group_topk": 2},
        {"moe_expert_capacity_factor": 0.5},
    ],
)
def test_megatrons_router_counts_its_routing_map(hidden, monkeypatch, changes):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: CPU)
    router = megatron_router(**changes)
    monkeypatch.setattr("megatron.core.transformer.moe.moe_utils.te_general_gemm", None, raising=False)
    [counter] = attach(router)
    _, routing_map = router(hidden[:, None])
    counts = counter.take(CPU)
    assert counts.tolist() == routing_map.sum(dim=0).tolist()
    if router.local_tokens_per_expert is not None:
        assert counts.tolist() == router.local_tokens_per_expert.tolist()
    if "moe_expert_capacity_factor" in changes:
        assert counts.max() <= TOKENS * TOP_K * 0.5 / EXPERTS + 1, "with a capacity, what is left of the demand"


def test_an_older_tutel_is_counted_but_cannot_be_masked_nor_batch_prioritised(hidden):
    layer = doubles.MOELayer(HIDDEN, EXPERTS, TOP_K, old=True)
    mask = TokenMask()
    [counter] = attach(layer, mask=mask)
    layer(hidden)
    assert counter.take(CPU).tolist() == layer.dispatch_count.tolist()
    mask.real = torch.ones(TOKENS)
    with pytest.raises(InputError, match="this version of Tutel"):
        layer(hidden)
    layer.batch_prioritized_routing = True
    with pytest.raises(InputError, match="does not return chosen experts"):
        layer(hidden)


def test_choices_that_fastmoe_drops_are_not_counted(hidden):
    gate = doubles.GShardGate(HIDDEN, EXPERTS, 1, capacity=3)
    [counter] = attach(gate)
    chosen, _ = gate(hidden)
    assert (chosen == -1).any()
    wanted = torch.bincount(chosen[chosen >= 0], minlength=EXPERTS)
    assert counter.take(CPU).tolist() == wanted.tolist()


def test_gates_of_paddle_are_counted_in_training_only():
    model = doubles_paddle.Model(num_expert=2, world_size=2)
    first, second = attach(model)
    assert (first.name, second.name, first.num_experts) == ("first.gate", "second.gate", 4)
    model([[0, 1], [0, -1]], [[3, 2], [2, 1]])
    with doubles_paddle.no_grad():
        model([[0, 0]], [[0, 0]])
    model([[3, 0]], [[3, 0]])
    model.eval()
    model([[1, 1]], [[1, 1]])
    assert first.take(CPU).tolist() == [3, 1, 0, 1]
    assert second.take(CPU).tolist() == [1, 1, 2, 2]
    first.detach()
    assert not model.first.gate.hooks and model.second.gate.hooks


class BoolRouter(nn.Linear):
    """Returns a routing map in a dictionary."""

    def forward(self, hidden):
        return {"map": super().forward(hidden) > 0}


class CountingRouter(nn.Module):
    """Around a known router."""

    def __init__(self):
        super().__init__()
        self.inner = doubles.NaiveGate(HIDDEN, EXPERTS, 1)

    def forward(self, hidden):
        return self.inner(hidden)


def test_an_own_kind_of_router_is_a_row_of_one_line(hidden):
    own = RouterKind(
        __name__, ("BoolRouter",), lambda _, output: RoutingMap(output["map"]), lambda router: router.out_features
    )
    router = BoolRouter(HIDDEN, EXPERTS)
    mask = TokenMask()
    [counter] = attach(router, (own, *ROUTERS), mask=mask)
    wanted = router(hidden)["map"]
    assert counter.take(CPU).tolist() == wanted.sum(dim=0).tolist()
    mask.real = torch.arange(TOKENS) % 3
    router(hidden)
    assert counter.take(CPU).tolist() == wanted[mask.real != 0].sum(dim=0).tolist()


def test_a_module_around_a_known_router_is_not_counted_again():
    around = RouterKind(__name__, ("CountingRouter",), num_experts=lambda _: EXPERTS)
    assert [counter.name for counter in attach(CountingRouter(), (around, *ROUTERS))] == ["inner"]


def test_numbers_that_are_no_expert_are_not_counted():
    chosen = torch.tensor([[0, -1], [2, 3], [7, 0]], dtype=torch.int32)
    assert Choices(chosen).count(3, None).tolist() == [2, 0, 1]
    assert Choices(chosen).count(3, torch.tensor([[0, 1, 1]])).tolist() == [1, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_probabilities_and_maps_are_not_taken_for_choices(dtype):
    with pytest.raises(InputError, match="routers: Choices must be numbers of experts, whole ones, not torch"):
        Choices(torch.zeros(4, 3, dtype=dtype)).count(3, None)


def test_a_kind_with_one_name_instead_of_several_is_refused():
    with pytest.raises(InputError, match="routers: class_names must be a tuple of names, got the text 'MyRouter'"):
        RouterKind(__name__, "MyRouter")


def test_a_mask_of_another_number_of_tokens_or_on_another_device_is_refused():
    for routing in (Choices(torch.zeros(4, 2, dtype=torch.int64)), RoutingMap(torch.ones(4, 3, dtype=torch.bool))):
        with pytest.raises(InputError, match="mask: is on meta, but the router on cpu"):
            routing.count(3, torch.ones(4, device="meta"))
        with pytest.raises(InputError, match="mask: is for 5 tokens, but the router saw 4"):
            routing.count(3, torch.ones(5))


@pytest.mark.parametrize("real", [None, torch.ones(4)])
def test_counting_never_waits_for_the_device(real):
    """Tensors without contents: what needs to see them, as `item` and `bincount` do, raises."""
    with FakeTensorMode() as fake:
        real = None if real is None else fake.from_tensor(real)
        Choices(torch.empty(4, 2, dtype=torch.int32)).count(3, real)
        RoutingMap(torch.empty(4, 3, dtype=torch.bool)).count(3, real)
        with pytest.raises(DynamicOutputShapeException):
            torch.bincount(torch.empty(4, dtype=torch.int64), minlength=3)


def test_counts_made_by_a_framework_cannot_be_masked():
    counts = Counts(torch.tensor([1, 2]), "it sums them itself")
    assert counts.count(2, None).tolist() == [1, 2]
    with pytest.raises(InputError, match="it sums them itself"):
        counts.count(2, torch.ones(3))
    with pytest.raises(InputError, match="this router says only how many tokens each expert gets"):
        Counts(torch.tensor([1, 2])).count(2, torch.ones(3))


def test_an_agent_counts_an_own_kind_of_router(hidden):
    own = RouterKind(
        __name__, ("BoolRouter",), lambda _, output: RoutingMap(output["map"]), lambda router: router.out_features
    )
    model = nn.ModuleList(BoolRouter(HIDDEN, EXPERTS) for _ in range(LAYERS))
    with SamplePlanner(ranks=1, decide=keep) as planner:
        agent = Agent(service=planner.url, run="my-run", search=SEARCH, model=model, window_steps=1, routers=[own])
        wanted = [router(hidden)["map"].sum(dim=0).tolist() for router in model]
        agent.step()
        agent.close()
    assert [list(row) for row in planner.windows[0].tokens] == wanted


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_compiled_router_is_counted(fullgraph):
    layer = doubles.MoE(HIDDEN, EXPERTS, TOP_K)
    layer.router.compile(backend="eager", fullgraph=fullgraph)
    [counter] = attach(layer)
    for reentrant in (False, True):
        checkpoint(layer, torch.randn(1, TOKENS, HIDDEN, requires_grad=True), use_reentrant=reentrant).sum().backward()
        assert counter.take(CPU).sum() == TOKENS * TOP_K


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.compile looks at it
def test_a_block_around_a_router_is_counted_when_compiled_but_not_as_one_full_graph():
    block = nn.Sequential(doubles.MoE(HIDDEN, EXPERTS, TOP_K))
    [counter] = attach(block)
    torch.compile(block, backend="eager")(torch.randn(1, TOKENS, HIDDEN))
    assert counter.take(CPU).sum() == TOKENS * TOP_K
    torch._dynamo.reset()  # forget the graphs that it has
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"RouterCounter\._hook"):
        torch.compile(block, backend="eager", fullgraph=True)(torch.randn(1, TOKENS, HIDDEN))
