"""Expert parallelism inside data parallelism, and checkpoints of a job whose experts have moved."""

from __future__ import annotations

import copy
import random

import pytest
import torch
import torch.distributed as dist
from training_samples import (
    MODEL,
    RANKS,
    largest_difference,
    make_job,
    my_batches,
    random_placement,
    train_step,
    train_with_migrations,
)

from planner.spec.errors import InputError
from planner.spec.placement import TokenSplit
from runtime.example import LanguageModel
from runtime.gradients import average_gradients
from runtime.launch import launch
from runtime.migration import migrate
from runtime.moe import moe_layers

STEPS = 20


def train_in_two_groups(report, extra, shadows):
    """Experts over ranks {0, 1} and again over {2, 3}; ranks {0, 2} and {1, 3} hold the same experts."""
    expert_groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    same_experts = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = LanguageModel(
        MODEL,
        expert_groups[rank // 2],
        extra_slots_per_rank=extra,
        shadow_slots_per_rank=shadows,
        token_split=TokenSplit.STEP,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data, random_numbers, losses = my_batches(), random.Random(2), []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(next(data))
        loss.backward()
        average_gradients(model, expert_data_group=same_experts[rank % 2])
        optimizer.step()
        total = loss.detach().clone()
        dist.all_reduce(total)
        losses.append(total.item() / RANKS)
        if step % 6 == 5:
            migrate(moe_layers(model), random_placement(random_numbers, 2, extra, shadows), optimizer)
    return losses, [layer.num_ranks for layer in moe_layers(model)]


@pytest.mark.parametrize(("extra", "shadows"), [(0, 0), (1, 1)])
def test_two_expert_parallel_groups_train_like_one_process(extra, shadows):
    results = launch(train_in_two_groups, RANKS, (extra, shadows), timeout_s=60)
    assert results[0][1] == [2, 2]
    assert all(result == results[0] for result in results)
    assert largest_difference(results[0][0], train_with_migrations(None, STEPS, 0)) <= 1e-5


def resume_after_a_migration(report):
    model, optimizer = make_job()
    data, random_numbers = my_batches(), random.Random(4)
    for _ in range(4):
        train_step(model, optimizer, next(data))
    migrate(moe_layers(model), random_placement(random_numbers), optimizer)
    train_step(model, optimizer, next(data))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    batches = [next(data) for _ in range(4)]
    went_on = [train_step(model, optimizer, batch) for batch in batches]
    resumed, resumed_optimizer = make_job(seed=99)
    resumed.load_state_dict(saved[0])
    resumed_optimizer.load_state_dict(saved[1])
    return went_on, [train_step(resumed, resumed_optimizer, batch) for batch in batches], saved[0]


def test_a_checkpoint_after_a_migration_goes_on_exactly():
    results = launch(resume_after_a_migration, RANKS, timeout_s=60)
    for went_on, resumed, _ in results:
        assert went_on == resumed
    model, _ = make_job()
    with pytest.raises(InputError, match="was written by rank 2 of 4, this is rank 0 of 1"):
        model.load_state_dict(results[2][2], strict=False)
