"""Which choices an expert of limited capacity keeps, and buffers of one size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from planner.spec.errors import InputError
from runtime.capacity import Capacity, limited, padded_counts, within_capacity
from runtime.dispatch import count, share_out, through_experts
from runtime.exchange import rank
from runtime.gates import ExpertRouter
from runtime.launch import launch
from runtime.topology import Topology

EXPERTS, HIDDEN = 4, 6


@given(
    st.lists(st.tuples(st.permutations(range(EXPERTS)), st.integers(0, 3), st.booleans()), max_size=12),
    st.integers(1, EXPERTS),
    st.integers(0, 5),
    st.booleans(),
)
def test_first_choices_go_first_and_then_early_tokens_or_those_of_priority(tokens, top_k, limit, by_priority):
    chosen = [[-1 if dropped and choice else row[choice] for choice in range(top_k)] for row, _, dropped in tokens]
    order = sorted(range(len(tokens)), key=lambda token: -tokens[token][1]) if by_priority else range(len(tokens))
    room, wanted = dict.fromkeys(range(EXPERTS), limit), [[-1] * top_k for _ in tokens]
    for choice in range(top_k):
        for token in order:
            expert = chosen[token][choice]
            if expert >= 0 and room[expert] > 0:
                room[expert] -= 1
                wanted[token][choice] = expert
    experts = torch.tensor(chosen, dtype=torch.int64).view(-1, top_k)
    priority = torch.tensor([float(level) for _, level, _ in tokens]) if by_priority else None
    assert within_capacity(experts, limit, EXPERTS, priority).tolist() == wanted


def routing_of(logits, top_k=2):
    gate = ExpertRouter(EXPERTS, EXPERTS, top_k)
    nn.init.eye_(gate.projection.weight)
    return gate(logits)


def test_batch_prioritized_routing_keeps_the_tokens_that_the_gate_is_most_sure_of():
    routing = routing_of(torch.tensor([[2.0, 1, 0, 0], [4.0, 1, 0, 0], [3.0, 1, 0, 0], [1.0, 2, 0, 0]]))
    assert limited(routing, Capacity(1.0)).tolist() == [[0, 1], [0, -1], [-1, -1], [1, -1]]
    assert limited(routing, Capacity(1.0, by_priority=True)).tolist() == [[-1, -1], [0, 1], [0, -1], [1, -1]]


def test_without_a_capacity_or_with_one_of_zero_nothing_is_dropped():
    routing = routing_of(torch.randn(9, EXPERTS))
    assert limited(routing, None) is routing.experts
    assert limited(routing, Capacity(0.0)) is routing.experts
    assert torch.equal(limited(routing, Capacity(-0.5)), limited(routing, Capacity(0.5)))


@given(st.integers(1, 400), st.integers(1, 5000), st.integers(1, 8), st.integers(1, 256))
def test_the_most_an_expert_takes_is_rounded_up_from_exact_decimals(hundredths, tokens, top_k, experts):
    wanted = -(-hundredths * tokens * top_k // (100 * experts))
    assert Capacity(hundredths / 100).limit(tokens, top_k, experts) == wanted
    assert Capacity(-hundredths / 100).limit(tokens, top_k, experts) == wanted


def test_a_factor_that_no_binary_number_equals_gives_no_row_too_many():
    assert Capacity(1.1).limit(100, 2, 20) == 11
    assert Capacity(1).limit(100, 2, 20) == 10
    assert Capacity(0.0).limit(100, 2, 20) is None


def test_a_capacity_that_is_no_number_is_refused():
    with pytest.raises(InputError, match="must be finite, got nan"):
        Capacity(float("nan"))


CAPACITIES = [Capacity(factor, padded=True) for factor in (1.0, 0.0, -0.5, -9.0)]
TOKENS = (6, 0, 3)


def padded_and_not(report):
    """For each capacity: rows of a padded slot, and the largest need of this rank. Padding must change no result."""
    topology = Topology()
    torch.manual_seed(rank(None))
    hidden, logits = torch.randn(TOKENS[topology.rank], HIDDEN), torch.randn(TOKENS[topology.rank], 6)
    gate = ExpertRouter(6, 6, 2)
    nn.init.eye_(gate.projection.weight)
    found = []
    for capacity in CAPACITIES:
        choices = limited(gate(logits), capacity)
        slot, counts = share_out(choices, range(6), lambda counts: counts, topology)
        padded = padded_counts(choices, 6, 6, capacity, topology)
        results = []
        for rows in (padded, counts):
            torch.manual_seed(9)
            experts = [nn.Linear(HIDDEN, HIDDEN) for _ in range(2)]
            tokens = hidden.clone().requires_grad_()
            output = through_experts(tokens, slot, rows, experts, topology, pieces=2)
            output.square().sum().backward()
            results.append([output, tokens.grad, *(p.grad for one in experts for p in one.parameters())])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)
        found.append((set(padded.ravel().tolist()), count(choices, 6).max().item()))
    return found


def test_buffers_of_one_size_change_no_result_and_are_as_large_as_the_largest_need_of_any_rank():
    by_rank = launch(padded_and_not, len(TOKENS), timeout_s=60)
    for number, capacity in enumerate(CAPACITIES):
        sizes, needs = zip(*(found[number] for found in by_rank), strict=True)
        assert sizes[0] == sizes[1] == sizes[2] and len(sizes[0]) == 1
        limit = capacity.limit(max(TOKENS), 2, 6) if capacity.factor > 0 else None
        assert sizes[0] == {max(needs) if limit is None else limit}
    assert max(found[1][1] for found in by_rank) > 2  # what is needed exceeds what a factor of 1 gives


def test_ranks_of_equal_tokens_need_not_ask_each_other():
    choices = torch.zeros(8, 1, dtype=torch.int64)
    capacity = Capacity(1.5, padded=True, equal_tokens=True)
    assert padded_counts(choices, 4, 4, capacity, SilentRanks()).tolist() == [[3] * 4] * 2


class SilentRanks(Topology):
    """Two ranks, without a process group: whoever talks to them fails."""

    num_ranks = 2
