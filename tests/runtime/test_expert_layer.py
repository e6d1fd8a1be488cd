"""The expert-parallel layer against the definition of a Mixture of Experts, token by token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import gelu, relu, silu
from torch.utils.checkpoint import checkpoint
from training_samples import RANKS

from planner.spec.errors import InputError
from planner.spec.model import MoeFeedForward
from runtime.auxiliary import AuxiliaryLoss, balance_loss
from runtime.capacity import Capacity, within_capacity
from runtime.gates import ExpertRouter
from runtime.gradients import average_gradients
from runtime.launch import launch
from runtime.moe import ExpertParallelMoe
from runtime.slots import SlotMap

HIDDEN = 12


def network_of(layer, expert):
    """The first copy of an expert on this process."""
    return layer.expert_at(layer.slots.index(expert))


def by_definition(layer, tokens):
    """Σ over the chosen experts: weight times gate(x) · value(x) down."""
    rows = []
    probabilities = layer.router.projection(tokens).softmax(dim=-1)
    for token, row in zip(tokens, probabilities, strict=True):
        weights, experts = row.topk(layer.router.top_k)
        outputs = []
        for expert in experts.tolist():
            network = network_of(layer, expert)
            inner = network.up @ token + (0 if network.up_bias is None else network.up_bias)
            if network.gated:
                gate, value = inner.chunk(2)
                inner = silu(gate) * value
            else:
                inner = relu(inner) if network.relu else gelu(inner)
            outputs.append(network.down @ inner + (0 if network.down_bias is None else network.down_bias))
        rows.append((weights / weights.sum()) @ torch.stack(outputs))
    return torch.stack(rows)


EXPERT_KINDS = [{}, {"gated": False}, {"gated": False, "relu": True}, {"bias": True}, {"gated": False, "bias": True}]


@settings(max_examples=40, deadline=None)
@given(
    num_experts=st.integers(1, 6),
    tokens=st.integers(1, 9),
    kind=st.sampled_from(EXPERT_KINDS),
    data=st.data(),
    seed=st.integers(0, 99),
)
def test_output_and_gradients_are_those_of_the_definition_whatever_the_replicas_and_their_split(
    num_experts, tokens, kind, data, seed
):
    top_k = data.draw(st.integers(1, num_experts))
    replicas = data.draw(st.lists(st.integers(0, num_experts - 1), max_size=4))
    slots = data.draw(st.permutations([*range(num_experts), *replicas]))
    torch.manual_seed(seed)
    shape = MoeFeedForward(num_experts=num_experts, top_k=top_k, expert_width=5, **kind)
    layer = ExpertParallelMoe(HIDDEN, shape, slots=slots)
    parts = torch.tensor(data.draw(st.lists(st.floats(0, 1), min_size=len(slots), max_size=len(slots)))) + 1e-3
    whole = torch.zeros(num_experts).index_add(0, torch.tensor(slots), parts)
    layer.place(replace(layer.slot_map, split=tuple((parts / whole[torch.tensor(slots)]).tolist())))
    hidden = torch.randn(tokens, HIDDEN, requires_grad=True)
    weight = torch.randn(tokens, HIDDEN)
    wanted = by_definition(layer, hidden)
    (wanted * weight).sum().backward()
    experts = [[zero_or(p) for p in network_of(layer, e).parameters()] for e in range(num_experts)]
    expected = hidden.grad, layer.router.projection.weight.grad
    layer.zero_grad()
    hidden.grad = None
    found = layer(hidden)
    assert torch.allclose(found, wanted, atol=1e-5)
    (found * weight).sum().backward()
    average_gradients(layer)
    actual = hidden.grad, layer.router.projection.weight.grad
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(actual, expected, strict=True))
    for slot, expert in enumerate(layer.slots):
        for parameter, gradient in zip(layer.expert_at(slot).parameters(), experts[expert], strict=True):
            assert torch.allclose(parameter.grad, gradient, atol=1e-5)


def zero_or(parameter):
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()


def test_weights_of_an_expert_do_not_depend_on_the_placement():
    shape = MoeFeedForward(num_experts=4, top_k=1, expert_width=3)
    torch.manual_seed(1)
    one = ExpertParallelMoe(HIDDEN, shape)
    torch.manual_seed(1)
    other = ExpertParallelMoe(HIDDEN, shape, slots=[3, 1, 0, 2])
    for expert in range(4):
        assert torch.equal(one.experts[expert].up, other.experts[other.slots.index(expert)].up)


@given(st.lists(st.permutations(range(4)), min_size=1, max_size=12), st.integers(1, 3), st.integers(1, 5))
def test_capacity_keeps_first_choices_and_early_tokens(choices, top_k, capacity):
    experts = torch.tensor(choices)[:, :top_k]
    room, kept = dict.fromkeys(range(4), capacity), []
    for choice in range(top_k):
        for token in range(len(choices)):
            expert = choices[token][choice]
            if room[expert] > 0:
                room[expert] -= 1
                kept.append(token * top_k + choice)
    left = within_capacity(experts, capacity, 4)
    assert (left >= 0).flatten().nonzero().flatten().tolist() == sorted(kept)
    assert torch.equal(left[left >= 0], experts[left >= 0])


def test_what_exceeds_the_capacity_adds_nothing_to_its_token():
    shape = MoeFeedForward(num_experts=2, top_k=1, expert_width=4)
    layer = ExpertParallelMoe(HIDDEN, shape, capacity=Capacity(0.5))
    nn.init.zeros_(layer.router.projection.weight)  # equal probabilities: all tokens choose the same expert
    tokens = torch.randn(8, HIDDEN)
    output = layer(tokens)
    assert torch.equal(output[2:], torch.zeros(6, HIDDEN)) and output[:2].abs().min() > 0
    dropless = ExpertParallelMoe(HIDDEN, shape)
    dropless.load_state_dict(layer.state_dict())
    assert torch.allclose(dropless(tokens)[:2], output[:2])


def test_balance_loss_is_one_when_balanced_and_the_number_of_experts_when_all_choose_one():
    experts = torch.arange(8).view(8, 1) % 4
    assert balance_loss(torch.full((8, 4), 0.25), experts, None).item() == pytest.approx(1.0)
    certain = torch.zeros(8, 4)
    certain[:, 2] = 1.0
    assert balance_loss(certain, torch.full((8, 1), 2), None).item() == pytest.approx(4.0)


def balance_loss_of_my_part(report):
    torch.manual_seed(0)
    rank, shape = torch.distributed.get_rank(), MoeFeedForward(num_experts=8, top_k=2, expert_width=4)
    layer = ExpertParallelMoe(HIDDEN, shape, auxiliary=AuxiliaryLoss(balance=1.0))
    layer(torch.randn(32, HIDDEN)[rank * 8 : rank * 8 + 8])
    return layer.auxiliary_loss.item()


def test_the_mean_balance_loss_of_the_ranks_is_that_of_one_process_on_all_tokens():
    torch.manual_seed(0)
    layer = ExpertParallelMoe(
        HIDDEN, MoeFeedForward(num_experts=8, top_k=2, expert_width=4), auxiliary=AuxiliaryLoss(balance=1.0)
    )
    layer(torch.randn(32, HIDDEN))
    parts = launch(balance_loss_of_my_part, RANKS, timeout_s=60)
    assert sum(parts) / RANKS == pytest.approx(layer.auxiliary_loss.item(), abs=1e-6)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_layer_that_carries_its_auxiliary_loss_trains_as_if_the_caller_had_added_it(checkpointed):
    shape, gradients = MoeFeedForward(num_experts=4, top_k=2, expert_width=3), []
    tokens = torch.randn(6, HIDDEN)
    for carry in (False, True):
        torch.manual_seed(1)
        layer = ExpertParallelMoe(HIDDEN, shape, auxiliary=AuxiliaryLoss(0.3), carry_auxiliary_loss=carry)
        loss = (checkpoint(layer, tokens, use_reentrant=False) if checkpointed and carry else layer(tokens)).sum()
        (loss if carry else loss + layer.auxiliary_loss).backward()
        gradients.append(layer.router.projection.weight.grad)
    assert torch.allclose(*gradients, atol=1e-7)


def test_a_checkpoint_brings_its_placement_along():
    shape = MoeFeedForward(num_experts=4, top_k=2, expert_width=3)
    saved = ExpertParallelMoe(HIDDEN, shape, slots=[2, 0, 3, 1])
    loaded = ExpertParallelMoe(HIDDEN, shape)
    tokens = torch.randn(5, HIDDEN)
    loaded.load_state_dict(saved.state_dict())
    assert loaded.slots == (2, 0, 3, 1)
    assert torch.equal(loaded(tokens), saved(tokens))


def test_a_checkpoint_of_another_rank_is_refused():
    layer = ExpertParallelMoe(HIDDEN, MoeFeedForward(num_experts=4, top_k=2, expert_width=3))
    state = layer.state_dict()
    state["_extra_state"] = {**state["_extra_state"], "rank": 1, "num_ranks": 2}
    with pytest.raises(InputError, match="written by rank 1 of 2, this is rank 0 of 1"):
        layer.load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"shared_width": 8}, {}, "beside the expert-parallel layer"),
        ({}, {"slots": [0, 1, 2]}, "must stand in some slot"),
        ({}, {"slots": [0, 1, 2, 3, 4]}, "must stand in some slot"),
        ({}, {"slots": [0, 1, 2, 3], "shadow_slots_per_rank": 1}, "expert 3 stands in shadow slots only"),
        ({}, {"gate": ExpertRouter(HIDDEN, 4, 1)}, "chooses 1 of 4, not 2 of 4"),
    ],
)
def test_what_the_layer_cannot_do_is_refused(change, arguments, message):
    shape = MoeFeedForward(num_experts=4, top_k=2, expert_width=3, **change)
    with pytest.raises(InputError, match=message):
        ExpertParallelMoe(HIDDEN, shape, **arguments)


def test_slots_that_ranks_cannot_share_evenly_are_refused():
    with pytest.raises(InputError, match="cannot be shared evenly by 3 ranks"):
        SlotMap(tuple(range(4)), 4, 3)
