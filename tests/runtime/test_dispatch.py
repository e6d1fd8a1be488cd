"""The way of tokens to experts and back, on real ranks, against the definition: each choice through its own expert."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from planner.online.placement.split import StepSplit
from planner.spec.errors import InputError
from runtime.crossing import there_and_back
from runtime.dispatch import count, cut, share_out, slots_of, through_experts
from runtime.launch import launch
from runtime.topology import Topology, swapped

HIDDEN = 6


class Case(NamedTuple):
    """One layer's dispatch; `tokens` by rank."""

    tokens: tuple[int, ...]
    slots: tuple[int, ...]
    top_k: int
    choosable: int = 99
    """Experts from this one on are never chosen."""
    pieces: int = 1
    ranks_per_node: int = 1
    padded_to: int | None = None
    dtype: torch.dtype = torch.float32
    recomputed: str = ""
    """By activation checkpointing, `with` or `without` reentrance."""
    split_anew: bool = False
    """By the planner's split for the counts of a step, instead of at random."""
    seed: int = 0


def network(expert, dtype):
    """With biases, so that zeros do not become zeros."""
    torch.manual_seed(1000 + expert)
    return nn.Sequential(nn.Linear(HIDDEN, 5), nn.GELU(), nn.Linear(5, HIDDEN)).to(dtype)


def inputs(case, rank):
    """Tokens, experts chosen (some of them -1), and what the output is multiplied by to make a loss."""
    torch.manual_seed(case.seed * 100 + rank)
    experts = min(max(case.slots) + 1, case.choosable)
    chosen = [torch.randperm(experts)[: case.top_k] for _ in range(case.tokens[rank])]
    choices = torch.stack(chosen) if chosen else torch.zeros(0, case.top_k, dtype=torch.int64)
    choices = choices.masked_fill(torch.rand(choices.shape) < 0.15, -1)
    hidden = torch.randn(case.tokens[rank], HIDDEN).to(case.dtype).requires_grad_()
    return hidden, choices, torch.randn(*choices.shape, HIDDEN).to(case.dtype)


def uneven_split(slots):
    """Of an expert's n tokens of rank r, its slots get random parts, the same on all ranks."""

    def split(counts):
        random = np.random.default_rng(7)
        shares = np.zeros((len(counts), len(slots)), dtype=np.int64)
        for source, expert in np.ndindex(*counts.shape):
            mine = [slot for slot, other in enumerate(slots) if other == expert]
            shares[source, mine] = random.multinomial(counts[source, expert], np.ones(len(mine)) / len(mine))
        return shares

    return split


def dispatched(case):
    """Output, gradient of the tokens, gradients of this rank's networks."""
    topology = Topology.of_nodes(None, case.ranks_per_node)
    split = uneven_split(case.slots)
    if case.split_anew:
        split = StepSplit(case.slots, topology.num_ranks, case.ranks_per_node).shares_of_sources
    hidden, choices, factor = inputs(case, topology.rank)
    each = len(case.slots) // topology.num_ranks
    mine = [network(expert, case.dtype) for expert in case.slots[topology.rank * each :][:each]]

    def go(hidden):
        slot, counts = share_out(choices, case.slots, split, topology)
        if case.padded_to is not None:
            counts = np.full_like(counts, case.padded_to)
        return through_experts(hidden, slot, counts, mine, topology, case.pieces)

    output = checkpoint(go, hidden, use_reentrant=case.recomputed == "with") if case.recomputed else go(hidden)
    (output * factor).sum().backward()
    return output.detach(), hidden.grad, [[p.grad for p in one.parameters()] for one in mine]


def all_dispatched(report, cases):
    return [dispatched(case) for case in cases]


def by_definition(case):
    """[rank] of outputs and gradients of tokens; gradients of the networks by expert, over all ranks."""
    networks = [network(expert, case.dtype) for expert in range(max(case.slots) + 1)]
    outputs, gradients = [], []
    for rank, tokens in enumerate(case.tokens):
        hidden, choices, factor = inputs(case, rank)
        output = torch.zeros(*choices.shape, HIDDEN, dtype=case.dtype)
        for token in range(tokens):
            for choice, expert in enumerate(choices[token].tolist()):
                if expert >= 0:
                    output[token, choice] = networks[expert](hidden[token])
        if output.requires_grad:
            (output * factor).sum().backward()
        outputs.append(output.detach())
        gradients.append(torch.zeros_like(hidden) if hidden.grad is None else hidden.grad)
    return outputs, gradients, [[p.grad for p in one.parameters()] for one in networks]


def check(case, results, atol=1e-5):
    outputs, gradients, of_experts = by_definition(case)
    summed = [[torch.zeros_like(p) for p in network(e, case.dtype).parameters()] for e in range(max(case.slots) + 1)]
    each = len(case.slots) // len(case.tokens)
    for rank, (output, gradient, of_networks) in enumerate(results):
        torch.testing.assert_close(output, outputs[rank], atol=atol, rtol=atol)
        torch.testing.assert_close(gradient, gradients[rank], atol=atol, rtol=atol)
        for expert, found in zip(case.slots[rank * each :], of_networks, strict=False):
            summed[expert] = [total + one for total, one in zip(summed[expert], found, strict=True)]
    for expert, found in enumerate(summed):
        for one, wanted in zip(found, of_experts[expert], strict=True):
            torch.testing.assert_close(one, torch.zeros_like(one) if wanted is None else wanted, atol=atol, rtol=atol)


FOUR = (3, 1, 0, 2, 1, 3, 0, 2)
"""Slots of four experts, each twice, on one, two or four ranks."""
ON_ONE = [
    Case((7,), (2, 0, 1), 2),
    Case((5,), FOUR, 4, pieces=3),
    Case((0,), (0, 1), 1),
    Case((4,), FOUR, 2, padded_to=9),
]
ON_TWO = [
    Case((5, 9), (3, 1, 0, 2), 2),
    Case((0, 4), (3, 1, 0, 2), 4, pieces=2),
    Case((0, 0), (1, 0), 1),
    Case((6, 3), FOUR, 3, choosable=3, pieces=3),
    Case((6, 3), FOUR, 2, padded_to=7, pieces=2),
    Case((6, 3), FOUR, 2, pieces=3, recomputed="with"),
    Case((6, 3), FOUR, 2, pieces=3, recomputed="without"),
]
ON_FOUR = [
    Case((5, 0, 9, 2), FOUR, 2),
    Case((5, 0, 9, 2), FOUR, 4, pieces=4, ranks_per_node=2),
    Case((1, 8, 1, 1), (0, 1, 2, 3), 1, choosable=1, ranks_per_node=2),
    Case((5, 3, 2, 2), (0, 1, 2, 3), 2, padded_to=6, pieces=4, ranks_per_node=2),
    Case((9, 0, 7, 5), FOUR, 2, pieces=2, ranks_per_node=2, split_anew=True),
]


@pytest.mark.parametrize("cases", [ON_ONE, ON_TWO, ON_FOUR], ids=["one rank", "two ranks", "four ranks"])
def test_outputs_and_gradients_are_those_of_each_choice_through_its_expert(cases):
    ranks = len(cases[0].tokens)
    results = launch(all_dispatched, ranks, (cases,), timeout_s=120)
    for number, case in enumerate(cases):
        check(case, [results[rank][number] for rank in range(ranks)])


def test_bfloat16_stays_bfloat16_and_near_the_definition():
    cases = [Case((9, 4), FOUR, 2, dtype=torch.bfloat16, pieces=2)]
    results = launch(all_dispatched, 2, (cases,), timeout_s=60)
    assert results[0][0][0].dtype == torch.bfloat16
    check(cases[0], [result[0] for result in results], atol=0.05)


def test_over_nodes_everything_is_as_it_is_straight_to_the_bit():
    straight = [Case((5, 0, 9, 7), FOUR, 3, pieces=pieces, seed=3) for pieces in (1, 3)]
    over_nodes = [case._replace(ranks_per_node=2) for case in straight]
    for flat, *_ in [launch(all_dispatched, 4, (straight + over_nodes,), timeout_s=120)]:
        for one, other in zip(flat[:2], flat[2:], strict=True):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
            assert all(
                torch.equal(a, b) for x, y in zip(one[2], other[2], strict=True) for a, b in zip(x, y, strict=True)
            )


def groups_of_three_and_a_pair(report):
    """Nodes of a group that is not all ranks, made twice; and nodes that cannot be."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3, 4, 5])]
    mine = groups[dist.get_rank() > 1]
    found = []
    if dist.get_rank() > 1:
        for _ in range(2):
            topology = Topology.of_nodes(mine, 2)
            counts = np.arange(16).reshape(4, 4)
            rows = torch.arange(counts[topology.rank].sum()).float().unsqueeze(1) + 1000 * topology.rank
            flat = Topology(mine).exchange(rows, counts)
            found.append(torch.equal(topology.exchange(rows, counts), flat))
        with pytest.raises(InputError, match="must divide the group's 4 ranks, got 3"):
            Topology.of_nodes(mine, 3)
        assert Topology.of_nodes(mine, 4) == Topology.of_nodes(mine, 1) == Topology(mine)
    dist.barrier()
    return found


def test_nodes_can_be_those_of_any_group():
    assert launch(groups_of_three_and_a_pair, 6, timeout_s=120) == [[], []] + [[True, True]] * 4


def test_the_next_piece_travels_while_one_is_computed_there_and_back_and_so_do_gradients():
    notes: list[str] = []

    class Diary(Topology):
        num_ranks = 2

        def begin(self, rows, counts):
            number = len([entry for entry in notes if entry.startswith("send")])
            notes.append(f"send {number}")
            return rows.clone(), lambda: notes.append(f"wait {number}")

    class Computed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, rows, number):
            ctx.number = number
            notes.append(f"compute {number}")
            return rows * 2

        @staticmethod
        def backward(ctx, gradient):
            notes.append(f"gradient {ctx.number}")
            return gradient * 2, None

    pieces = [torch.ones(2, 1, requires_grad=True) for _ in range(3)]
    counts = [np.array([[2]])] * 3
    back = there_and_back(pieces, counts, lambda number, rows: Computed.apply(rows, number), Diary())
    # Sends by number: 0, 1, 3 are the pieces on their way there, 2, 4, 5 the same on their way back.
    there = [
        *("send 0", "send 1", "wait 0", "compute 0", "send 2", "send 3", "wait 1", "compute 1", "send 4"),
        *("wait 3", "compute 2", "send 5", "wait 2", "wait 4", "wait 5"),
    ]
    assert notes == there
    notes.clear()
    torch.cat(back).sum().backward()
    gradients = [
        *("send 0", "send 1", "send 2", "wait 0", "gradient 2", "send 3", "wait 1", "gradient 1", "send 4"),
        *("wait 3", "wait 2", "gradient 0", "send 5", "wait 4", "wait 5"),
    ]
    assert notes == gradients
    assert all(torch.equal(piece.grad, torch.full((2, 1), 2.0)) for piece in pieces)


def test_gradients_of_gradients_are_refused_but_the_same_gradient_may_be_asked_for_twice():
    class Twice(Topology):
        num_ranks = 2

        def begin(self, rows, counts):
            return rows.clone(), lambda: None

    rows = torch.ones(2, 1, requires_grad=True)
    (back,) = there_and_back([rows], [np.array([[2]])], lambda number, rows: rows**3, Twice())
    first, second = (torch.autograd.grad(back.sum(), rows, create_graph=True)[0] for _ in range(2))
    assert first.tolist() == second.tolist() == [[3.0], [3.0]]
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.sum().backward()


@given(st.lists(st.lists(st.integers(-1, 3), min_size=2, max_size=2), max_size=9), st.randoms(use_true_random=False))
def test_of_an_experts_choices_the_first_go_to_its_first_slot(choices, random):
    slots, chosen = FOUR, torch.tensor(choices, dtype=torch.int64).view(-1, 2)
    wanted, shares = torch.full((chosen.numel(),), -1), np.zeros(len(slots), dtype=np.int64)
    for expert in range(4):
        places = (chosen.flatten() == expert).nonzero().flatten().tolist()
        first, second = (slot for slot, other in enumerate(slots) if other == expert)
        cut_at = random.randint(0, len(places))
        shares[first], shares[second] = cut_at, len(places) - cut_at
        for number, place in enumerate(places):
            wanted[place] = first if number < cut_at else second
    assert slots_of(chosen, slots, shares).flatten().tolist() == wanted.tolist()


@given(st.lists(st.integers(0, 20), min_size=4, max_size=4), st.integers(1, 6))
def test_pieces_sum_to_the_whole_and_differ_by_one_row_at_most(counts, pieces):
    sizes = cut(np.array(counts).reshape(2, 2), pieces)
    assert sizes.sum(axis=0).ravel().tolist() == counts
    assert (sizes.max(axis=0) - sizes.min(axis=0)).max() <= 1 and sizes.min() >= 0


@settings(max_examples=50)
@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_rows_that_lie_by_two_numbers_are_put_in_the_order_of_the_second(first, second, data):
    sizes = np.array(data.draw(st.lists(st.integers(0, 3), min_size=first * second, max_size=first * second)))
    sizes = sizes.reshape(first, second)
    labels = [(a, b, n) for a in range(first) for b in range(second) for n in range(sizes[a, b])]
    found = [labels[place] for place in swapped(sizes, torch.device("cpu")).tolist()]
    assert found == sorted(labels, key=lambda label: (label[1], label[0], label[2]))


def test_counting_leaves_out_what_is_not_sent():
    assert count(torch.tensor([[0, 2], [-1, 2]]), 4).tolist() == [1, 0, 2, 0]


def test_less_than_one_piece_is_refused():
    with pytest.raises(InputError, match="must be at least 1, got 0"):
        through_experts(torch.randn(1, HIDDEN), torch.zeros(1, 1).long(), np.ones((1, 1)), [], Topology(), pieces=0)


def test_more_choices_of_a_slot_than_rows_for_it_are_an_error():
    with pytest.raises(IndexError, match="out of bounds"):
        through_experts(torch.randn(3, HIDDEN), torch.zeros(3, 1).long(), np.array([[2]]), [nn.Identity()], Topology())
