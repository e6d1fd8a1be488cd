"""Experts in several slots: the training does not notice them, and they stay equal to the last bit."""

from __future__ import annotations

import hashlib
import random

import pytest
import torch
import torch.distributed as dist
from training_samples import (
    EXPERT_SHAPE,
    EXPERTS,
    LAYERS,
    MODEL,
    RANKS,
    largest_difference,
    make_job,
    my_batches,
    random_placement,
    train_step,
)

from planner.spec.errors import InputError
from planner.spec.placement import Placement, TokenSplit
from runtime.example import LanguageModel
from runtime.exchange import num_ranks, rank
from runtime.gradients import average_gradients, clip_gradients, gradient_norm
from runtime.launch import launch
from runtime.migration import current_placement, migrate
from runtime.moe import ExpertParallelMoe, moe_layers
from runtime.slots import SlotMap, SlotTable

STEPS, EVERY = 50, 6


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


def train_with_replicas(report, steps, extra, shadows, split):
    """Losses; whether, after each step, slots of one expert on this rank were equal; what the slots hold at the end."""
    model, optimizer = make_job(extra_slots_per_rank=extra, shadow_slots_per_rank=shadows)
    model.double()
    data, random_numbers, losses, digests = my_batches(), random.Random(1), [], []
    for step in range(1, steps + 1):
        losses.append(train_step(model, optimizer, next(data)))
        digests.append([(key, hashlib.sha256(content).digest()) for key, content in parts_of_experts(model, optimizer)])
        if step % EVERY == 0:
            target = random_placement(random_numbers, num_ranks(None), extra, shadows, split)
            migrate(moe_layers(model), target, optimizer)
            assert current_placement(moe_layers(model)) == target
    return losses, digests, [sum(p.numel() for p in model.parameters()), len(optimizer.state)]


@pytest.fixture(scope="module")
def losses_of_one_process():
    return train_with_replicas(None, STEPS, 0, 0, False)[0]


@pytest.mark.parametrize(
    ("ranks", "extra", "shadows", "split"),
    [(4, 1, 0, False), (4, 2, 0, True), (2, 1, 0, True), (4, 0, 2, True), (2, 1, 1, False), (1, 0, 2, True)],
)
def test_training_with_replicas_equals_one_process_and_replicas_stay_equal_to_the_last_bit(
    losses_of_one_process, ranks, extra, shadows, split
):

    results = launch(train_with_replicas, ranks, (STEPS, extra, shadows, split), timeout_s=120)
    for losses, _, _ in results:
        assert largest_difference(losses, losses_of_one_process) <= 1e-6
    for step in range(STEPS):
        contents = {}
        for _, digests, _ in results:
            for key, content in digests[step]:
                contents.setdefault(key, set()).add(content)
        assert len(contents) == LAYERS * EXPERTS
        assert all(len(copies) == 1 for copies in contents.values())
    assert losses_of_one_process[-1] < losses_of_one_process[0] - 1, "the model must learn for this to say anything"
