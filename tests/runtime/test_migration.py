"""Live migration: the training does not notice it, and it happens everywhere or nowhere."""

from __future__ import annotations

import random

import pytest
import torch
import torch.distributed as dist
from planner_samples import SamplePlanner, keep, make_agent
from training_samples import (
    EXPERTS,
    LAYERS,
    RANKS,
    largest_difference,
    make_job,
    my_batches,
    random_placement,
    train_step,
    train_with_migrations,
)

from planner.spec.errors import ConflictError, InputError
from planner.spec.placement import Placement
from runtime.launch import launch
from runtime.migration import check_movable, current_placement, migrate
from runtime.moe import moe_layers

STEPS = 24


@pytest.fixture(scope="module")
def losses_of_one_process():
    return train_with_migrations(None, STEPS, 0)


@pytest.mark.parametrize("every", [0, 1, 5])
def test_losses_on_four_ranks_with_forced_migrations_equal_those_of_one_process(losses_of_one_process, every):
    by_rank = launch(train_with_migrations, RANKS, (STEPS, every), timeout_s=120)
    assert all(losses == by_rank[0] for losses in by_rank)
    assert largest_difference(by_rank[0], losses_of_one_process) <= 1e-5
    assert losses_of_one_process[-1] < losses_of_one_process[0] - 1, "the model must learn for this to say anything"


def describe_experts(model, optimizer):
    """Weights and Adam state of the local experts, by (layer, logical expert)."""
    described = {}
    for number, layer in enumerate(moe_layers(model)):
        for expert, slot in zip(layer.experts, layer.local_slots, strict=True):
            parts = {}
            for name, parameter in expert.named_parameters():
                parts[name] = parameter.detach().clone()
                parts |= {f"{name}.{key}": value.clone() for key, value in optimizer.state[parameter].items()}
            described[number, layer.slots[slot]] = parts
    return described


def migrate_there_and_back(report):
    model, optimizer = make_job()
    data = my_batches()
    for _ in range(3):
        train_step(model, optimizer, next(data))
    parameters = [id(parameter) for parameter in model.parameters()]
    before = describe_experts(model, optimizer)
    start = current_placement(moe_layers(model))
    done = migrate(moe_layers(model), random_placement(random.Random(3)), optimizer)
    between = describe_experts(model, optimizer)
    migrate(moe_layers(model), start, optimizer)
    after = describe_experts(model, optimizer)
    assert before.keys() == after.keys()
    for key, parts in before.items():
        assert parts.keys() == after[key].keys()
        assert all(torch.equal(part, after[key][name]) for name, part in parts.items())
    assert parameters == [id(parameter) for parameter in model.parameters()]
    return before, between, done


def test_each_expert_arrives_with_weights_moments_and_step_count():
    results = launch(migrate_there_and_back, RANKS, timeout_s=60)
    before = {key: parts for rank_before, _, _ in results for key, parts in rank_before.items()}
    between = {key: parts for _, rank_between, _ in results for key, parts in rank_between.items()}
    assert len(before) == LAYERS * EXPERTS and before.keys() == between.keys()
    for key, parts in before.items():
        assert parts.keys() == between[key].keys() >= {"up", "up.exp_avg", "up.exp_avg_sq", "up.step"}
        assert all(torch.equal(part, between[key][name]) for name, part in parts.items())
    assert any(rank_between.keys() != rank_before.keys() for rank_before, rank_between, _ in results)


def swap_two_experts(report):
    model, optimizer = make_job()
    train_step(model, optimizer, next(my_batches()))
    layers = moe_layers(model)
    rows = [list(row) for row in current_placement(layers).layers]
    rows[1][0], rows[1][EXPERTS - 1] = rows[1][EXPERTS - 1], rows[1][0]
    done = migrate(layers, Placement(layers=tuple(map(tuple, rows)), num_ranks=RANKS), optimizer)
    return done.moved_experts, done.received_bytes


def test_only_what_changes_its_slot_is_sent():
    # up 96 x 32 and down 32 x 48 in float32: weight, gradient and two moments, and two step counts in 16 bytes each
    one_expert = (96 * 32 + 32 * 48) * 4 * 4 + 2 * 16
    results = launch(swap_two_experts, RANKS, timeout_s=60)
    assert results == [(2, one_expert), (2, 0), (2, 0), (2, one_expert)]


def ask_for_different_things(report):
    model, optimizer = make_job()
    train_step(model, optimizer, next(my_batches()))
    before = describe_experts(model, optimizer)
    errors = []
    mine = random_placement(random.Random(dist.get_rank() == 2))
    stranger = torch.optim.AdamW(torch.nn.Linear(2, 2).parameters())
    for target, owner in (
        (mine, optimizer),
        (random_placement(random.Random(0)), [optimizer, stranger][dist.get_rank() % 2]),
    ):
        with pytest.raises((ConflictError, InputError)) as caught:
            migrate(moe_layers(model), target, owner)
        errors.append(type(caught.value))
    after = describe_experts(model, optimizer)
    assert all(torch.equal(part, after[key][name]) for key, parts in before.items() for name, part in parts.items())
    assert current_placement(moe_layers(model)) == Placement.contiguous([EXPERTS] * LAYERS, RANKS)
    return errors


def test_nothing_moves_anywhere_if_one_rank_disagrees_or_refuses():
    results = launch(ask_for_different_things, RANKS, timeout_s=60)
    assert results == [[ConflictError, ConflictError], [ConflictError, InputError]] * 2


@pytest.mark.parametrize(
    ("placement", "field"),
    [
        (Placement(layers=(tuple(range(EXPERTS)),), num_ranks=1), "placement.layers"),
        (Placement.contiguous([EXPERTS] * LAYERS, 2), "placement.num_ranks"),
        (Placement.contiguous([EXPERTS, EXPERTS - 1], 1), "placement.layers[1].slots"),
        (Placement(layers=((*range(EXPERTS), 0),) * LAYERS, num_ranks=1), "placement.layers[0]"),
    ],
)
def test_a_placement_that_does_not_fit_the_model_is_refused(placement, field):
    model, optimizer = make_job()
    with pytest.raises(InputError) as caught:
        migrate(moe_layers(model), placement, optimizer)
    assert [problem.field for problem in caught.value.problems] == [field]


def test_an_optimizer_that_does_not_train_the_experts_is_refused():
    model, _ = make_job()
    stranger = torch.optim.AdamW(torch.nn.Linear(2, 2).parameters())
    with pytest.raises(InputError, match="does not hold the experts"):
        check_movable(moe_layers(model), stranger)


def test_experts_under_different_options_of_the_optimizer_are_refused():
    model, _ = make_job()
    first, *others = moe_layers(model)[0].experts
    optimizer = torch.optim.AdamW(
        [{"params": first.parameters(), "lr": 0.1}, {"params": [p for e in others for p in e.parameters()]}]
    )
    with pytest.raises(InputError, match="differ in gradients, optimizer state or options"):
        check_movable(moe_layers(model)[:1], optimizer)


def test_on_one_process_slots_change_and_the_training_goes_on_the_same():
    plain, _ = make_job()
    moved, optimizer = make_job()
    migrate(moe_layers(moved), random_placement(random.Random(5), ranks=1), optimizer)
    batch = next(my_batches())
    assert moe_layers(moved)[0].slots != moe_layers(plain)[0].slots
    assert torch.allclose(plain(batch), moved(batch), atol=1e-6)


@pytest.mark.parametrize("trained_first", [False, True])
def test_a_window_says_since_when_experts_are_where_they_were_moved_by_hand(trained_first):
    """At the end of the first window, in the middle of the second, not in the third."""
    model, optimizer = make_job()
    data = my_batches(union=1)
    with SamplePlanner(ranks=1, decide=keep) as planner:
        agent = make_agent(planner.url, model, optimizer, window_steps=4)
        for step in range(13):
            if trained_first:
                train_step(model, optimizer, next(data))
            if step in (4, 6):
                turned = Placement(layers=((*range(step, EXPERTS), *range(step)),) * LAYERS, num_ranks=1)
                migrate(moe_layers(model), turned, optimizer)
            if not trained_first:
                train_step(model, optimizer, next(data))
            agent.step()
        agent.close()
    assert [window.placed_step for window in planner.windows] == [4 + trained_first, 6 + trained_first, None]
    assert [window.placement.layers[0][0] for window in planner.windows] == [4, 6, 6]
    assert planner.windows[2].step_time_s
