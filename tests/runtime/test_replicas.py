"""Experts in several slots: the training does not notice them, and they stay equal to the last bit."""

from __future__ import annotations

import hashlib
import random
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from training_samples import (
    EXPERT_SHAPE,
    EXPERTS,
    LAYERS,
    RANKS,
    largest_difference,
    make_job,
    my_batches,
    random_placement,
    train_step,
)

from planner.online.placement.copies import copies_between
from planner.spec.placement import Placement, TokenSplit
from runtime.capacity import Capacity
from runtime.exchange import num_ranks
from runtime.gradients import average_gradients, clip_gradients, gradient_norm
from runtime.launch import launch
from runtime.migration import current_placement, migrate
from runtime.moe import ExpertParallelMoe, moe_layers
from runtime.slots import SlotMap, as_slot_maps, token_shares
from runtime.topology import Topology

EVERY = 6
"""Steps between placements."""


def parts_of_experts(model, optimizer):
    """Weights and Adam state in the lasting slots of this rank: [(layer, expert), bytes]."""
    found = []
    for number, layer in enumerate(moe_layers(model)):
        for expert, slot in zip(layer.experts, layer.local_slots, strict=False):
            parts = [p.detach() for p in expert.parameters()]
            parts += [value for p in expert.parameters() for value in optimizer.state[p].values()]
            packed = torch.cat([part.double().flatten() for part in parts])
            found.append(((number, layer.slots[slot]), packed.numpy().tobytes()))
    return found


class Case(NamedTuple):
    """How a job spreads its experts, and how their tokens travel."""

    ranks: int
    extra: int
    shadows: int
    split: TokenSplit
    steps: int = 13
    ranks_per_node: int | None = None
    pieces: int = 1
    padded: bool = False


def train_with_replicas(report, case):
    """Losses, and by step what the lasting slots of this rank held."""
    model, optimizer = make_job(
        extra_slots_per_rank=case.extra,
        shadow_slots_per_rank=case.shadows,
        token_split=case.split,
        topology=Topology.of_nodes(None, case.ranks_per_node) if case.ranks_per_node else None,
        pieces=case.pieces,
        capacity=Capacity(0.0, padded=True) if case.padded else None,
    )
    model.double()
    data, random_numbers, losses, digests = my_batches(), random.Random(1), [], []
    for step in range(1, case.steps + 1):
        losses.append(train_step(model, optimizer, next(data)))
        digests.append([(key, hashlib.sha256(content).digest()) for key, content in parts_of_experts(model, optimizer)])
        if step % EVERY == 0:
            split = case.split is TokenSplit.WINDOW
            target = random_placement(random_numbers, num_ranks(None), case.extra, case.shadows, split)
            migrate(moe_layers(model), target, optimizer)
            assert current_placement(moe_layers(model)) == target
    return losses, digests


@pytest.fixture(scope="module")
def losses_of_one_process():
    return train_with_replicas(None, Case(1, 0, 0, TokenSplit.EVEN, steps=50))[0]


CASES = [
    Case(4, 2, 1, TokenSplit.WINDOW, steps=50),
    Case(4, 1, 0, TokenSplit.EVEN),
    Case(4, 0, 2, TokenSplit.STEP),
    Case(4, 2, 1, TokenSplit.STEP, ranks_per_node=2, pieces=3),
    Case(2, 1, 1, TokenSplit.WINDOW, padded=True),
    Case(1, 0, 2, TokenSplit.EVEN),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_with_replicas_equals_one_process_and_replicas_stay_equal_to_the_last_bit(losses_of_one_process, case):
    results = launch(train_with_replicas, case.ranks, (case,), timeout_s=120)
    for losses, _ in results:
        assert largest_difference(losses, losses_of_one_process[: case.steps]) <= 1e-6
    for step in range(case.steps):
        contents = {}
        for _, digests in results:
            for key, content in digests[step]:
                contents.setdefault(key, set()).add(content)
        assert len(contents) == LAYERS * EXPERTS
        assert all(len(copies) == 1 for copies in contents.values())
    assert losses_of_one_process[-1] < losses_of_one_process[0] - 1, "the model must learn for this to say anything"


def losses_with_accumulation_and_clipping(report, extra, shadows):
    """Losses and gradient norms of steps of two micro-batches, clipped to a norm that bites; a pass goes to waste."""
    model, optimizer = make_job(extra_slots_per_rank=extra, shadow_slots_per_rank=shadows)
    model.double()
    data, found = my_batches(), []
    for step in range(8):
        if step % 3 == 1:
            model(next(data)).backward()
        optimizer.zero_grad()
        for _ in range(2):
            loss = model(next(data)) / 2
            loss.backward()
        average_gradients(model)
        norm = clip_gradients(model, 0.5)
        optimizer.step()
        found.append(norm.item())
    return found


@pytest.mark.parametrize(("extra", "shadows"), [(0, 0), (1, 2), (EXPERTS // RANKS, 0)])
def test_the_gradient_norm_counts_each_expert_once_and_clips_as_on_one_process(extra, shadows):
    model, optimizer = make_job()
    wanted, data = [], my_batches()
    model.double()
    for step in range(8):
        if step % 3 == 1:
            next(data)
        optimizer.zero_grad()
        for _ in range(2):
            (model(next(data)) / 2).backward()
        wanted.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
        optimizer.step()
    assert max(wanted) > 0.5
    slots = SlotMap.first(EXPERTS, RANKS, extra, shadows)
    firsts = {holders[0] // slots.per_rank for holders in slots.holders}
    assert (len(firsts) < RANKS) == (extra == EXPERTS // RANKS), "there must be a case of a rank without a first slot"
    results = launch(losses_with_accumulation_and_clipping, RANKS, (extra, shadows), timeout_s=60)
    assert all(norms == results[0] for norms in results)
    assert largest_difference(results[0], wanted) <= 1e-5


@pytest.mark.parametrize("with_experts", [True, False])
def test_the_gradient_norm_is_made_where_the_gradients_are(with_experts):
    model = ExpertParallelMoe(8, EXPERT_SHAPE).to("meta") if with_experts else nn.Linear(3, 3, device="meta")
    assert gradient_norm(model).device.type == "meta"
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    assert clip_gradients(model, 1.0).device.type == "meta"


def test_no_optimizer_and_no_state_dict_ever_sees_a_shadow_expert():
    plain, with_shadows = (ExpertParallelMoe(8, EXPERT_SHAPE, shadow_slots_per_rank=shadows) for shadows in (0, 2))
    assert with_shadows.slots_per_rank == EXPERTS + 2 and len(with_shadows.shadows) == 2
    assert [p.shape for p in plain.parameters()] == [p.shape for p in with_shadows.parameters()]
    assert plain.state_dict().keys() == with_shadows.state_dict().keys()
    assert with_shadows.double().shadows[0].up.dtype == torch.float64


@pytest.mark.parametrize("frozen", [["up", "down"], ["up"]])
def test_what_is_not_trained_is_not_trained_in_shadow_experts_either(frozen):
    layer = ExpertParallelMoe(8, EXPERT_SHAPE, shadow_slots_per_rank=3)
    for expert in layer.experts:
        for name in frozen:
            getattr(expert, name).requires_grad_(False)
    whole = ExpertParallelMoe(8, EXPERT_SHAPE)
    whole.load_state_dict({**layer.state_dict(), "_extra_state": whole.get_extra_state()})
    tokens = torch.randn(40, 8)
    for _ in range(2):
        for each in (layer, whole):
            each(tokens).square().sum().backward()
    average_gradients(layer)
    for expert, wanted in zip(layer.experts, whole.experts, strict=True):
        for (name, parameter), gradient in zip(expert.named_parameters(), wanted.parameters(), strict=True):
            assert (parameter.grad is None) == (name in frozen)
            assert name in frozen or torch.allclose(parameter.grad, gradient.grad, atol=1e-5, rtol=1e-4)


@settings(deadline=None)
@given(st.data())
def test_each_source_shares_out_all_its_tokens_by_the_parts(data):
    ranks, experts = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    extra = data.draw(st.lists(st.integers(0, experts - 1), max_size=6))
    slots = data.draw(st.permutations([*range(experts), *extra]))
    slots = [*slots, *[0] * (-len(slots) % ranks)]
    weights = np.array(data.draw(st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=len(slots), max_size=len(slots))))
    weights[[slots.index(expert) for expert in range(experts)]] += 0.25
    parts = weights / np.bincount(slots, weights)[slots]
    counts = np.array(
        data.draw(
            st.lists(st.lists(st.integers(0, 30), min_size=experts, max_size=experts), min_size=ranks, max_size=ranks)
        )
    )
    table = SlotMap(tuple(slots), experts, ranks, split=tuple(parts.tolist()))
    shares = token_shares(table, TokenSplit.WINDOW, None)(counts)
    assert shares.min() >= 0
    for expert in range(experts):
        held = [slot for slot, other in enumerate(slots) if other == expert]
        assert (shares[:, held].sum(axis=1) == counts[:, expert]).all()
        assert (np.abs(shares[:, held] - counts[:, [expert]] * parts[held]) <= 1).all()


def test_single_tokens_of_many_ranks_do_not_all_go_to_the_first_replica():
    table = SlotMap((0, 1, 0, 1), 2, 2)
    shares = token_shares(table, TokenSplit.EVEN, None)(np.ones((2, 2), dtype=np.int64))
    assert shares.sum(axis=0).tolist() == [1, 1, 1, 1]


def replicate_then_drop(report):
    model, optimizer = make_job(extra_slots_per_rank=1)
    train_step(model, optimizer, next(my_batches()))
    layers = moe_layers(model)
    rows = [list(row) for row in current_placement(layers).layers]
    start = rows[0].copy()
    moved = []
    for wanted in (0, 0, start[5]):
        rows[0][5] = wanted  # the last slot of rank 1
        target = Placement(layers=tuple(map(tuple, rows)), num_ranks=RANKS)
        moved.append(migrate(layers, target, optimizer))
    split = tuple(tuple(1.0 / row.count(expert) for expert in row) for row in target.layers)
    moved.append(migrate(layers, target.model_copy(update={"split": split}), optimizer))
    assert moe_layers(model)[0].slot_map.split == split[0]
    return [(done.moved_experts, done.received_bytes, done.pause_s > 0) for done in moved]


def test_a_replica_comes_from_the_nearest_rank_and_what_nobody_wants_vanishes_at_no_cost():
    one_expert = (96 * 32 + 32 * 48) * 4 * 4 + 2 * 16
    results = launch(replicate_then_drop, RANKS, timeout_s=60)
    nothing = (0, 0, True)
    assert results[1] == [(1, one_expert, True), nothing, (1, one_expert, True), nothing]
    assert all(result == [(1, 0, True), nothing, (1, 0, True), nothing] for result in (results[0], *results[2:]))


def test_experts_come_from_the_rank_that_the_policy_has_priced():
    random_numbers = random.Random(0)
    for shadows in (0, 1):
        before, after = (random_placement(random_numbers, extra=1, shadows=shadows) for _ in range(2))
        slots = [np.array(placement.layers) for placement in (before, after)]
        maps = as_slot_maps(before, [EXPERTS] * LAYERS)
        copies = copies_between(*slots, RANKS, shadows)
        assert len(copies.layer) > LAYERS
        for layer, expert, from_rank, to_rank in zip(*(column.tolist() for column in copies[:4]), strict=True):
            assert maps[layer].rank_of(maps[layer].nearest(expert, to_rank)) == from_rank


def test_a_replica_is_copied_from_the_nearest_rank_by_number():
    table = SlotMap((0, 1, 2, 0, 1, 2, 0, 1), 3, 4)
    assert [table.rank_of(table.nearest(2, rank)) for rank in range(4)] == [1, 1, 2, 2]
