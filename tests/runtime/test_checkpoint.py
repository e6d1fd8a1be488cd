"""Checkpoints by logical expert: the training goes on as if it had never stopped, however it is spread."""

from __future__ import annotations

import os
import random

import pytest
import torch
import torch.distributed as dist
from training_samples import (
    EXPERTS,
    LAYERS,
    MODEL,
    largest_difference,
    make_job,
    my_batches,
    random_placement,
    train_step,
)

from planner.spec.errors import ConflictError, InputError, MalformedError, NotFoundError, RankFailedError
from planner.spec.placement import Placement
from runtime.checkpoint import latest, load, read_head, read_model, save
from runtime.example import LanguageModel
from runtime.exchange import num_ranks, rank
from runtime.gradients import average_gradients, clip_gradients
from runtime.launch import launch
from runtime.migration import current_placement, migrate
from runtime.moe import moe_layers

STEPS = 6
"""Between one checkpoint and the next."""


def go_on(report, folder, extra, shadows, last=False):
    """Resume from the newest checkpoint, if there is one, train on, and save; the losses, and what was found."""
    model, optimizer = make_job(seed=num_ranks(None), extra_slots_per_rank=extra, shadow_slots_per_rank=shadows)
    path = latest(folder)
    data, done, slots = my_batches(), 0, None
    if path is None:
        torch.manual_seed(0)
        model = LanguageModel(MODEL, extra_slots_per_rank=extra, shadow_slots_per_rank=shadows)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    else:
        optimizer.param_groups[0]["lr"] = 1.0  # to be put right by the checkpoint
        head = load(path, model, optimizer)
        done, slots = head.step, current_placement(moe_layers(model)) == head.placement
    for _ in range(done):
        next(data)
    losses = []
    for step in range(done, done + STEPS):
        losses.append(train_step(model, optimizer, next(data)))
        if step % 4 == 1:
            target = random_placement(random.Random(step), num_ranks(None), extra, shadows, split=True)
            migrate(moe_layers(model), target, optimizer)
    if not last:
        save(folder, done + STEPS, model, optimizer)
    return losses, slots


def test_a_job_goes_on_with_the_same_losses_on_other_ranks_with_other_slots(tmp_path):
    ways = [(2, 1, 0), (4, 0, 0), (4, 1, 1), (1, 0, 0), (1, 0, 2)]
    found = []
    for number, (ranks, extra, shadows) in enumerate(ways):
        results = launch(go_on, ranks, (tmp_path, extra, shadows, number == len(ways) - 1), timeout_s=60)
        assert all(result == results[0] for result in results)
        found += results[0][0]
        assert results[0][1] is (None if number == 0 else False), "another number of slots keeps its own placement"
    model, optimizer = make_job()
    data = my_batches()
    wanted = [train_step(model, optimizer, next(data)) for _ in range(STEPS * len(ways))]
    assert largest_difference(found, wanted) <= 1e-5
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"step-{STEPS * n:08d}" for n in range(1, len(ways))]


def test_a_job_goes_on_to_the_last_bit_where_it_was_with_its_placement_and_split(tmp_path):
    first = launch(go_on, 2, (tmp_path, 2, 1), timeout_s=60)
    again = launch(go_on, 2, (tmp_path, 2, 1, True), timeout_s=60)
    assert again[0][1] is True
    placement = read_head(latest(tmp_path)).placement
    assert placement.split is not None and placement.shadow_slots_per_rank == 1
    model_and_on = launch(train_through, 2, (2, 1), timeout_s=60)
    assert first[0][0] + again[0][0] == model_and_on[0]


def train_through(report, extra, shadows):
    model, optimizer = make_job(extra_slots_per_rank=extra, shadow_slots_per_rank=shadows)
    data, losses = my_batches(), []
    for step in range(2 * STEPS):
        losses.append(train_step(model, optimizer, next(data)))
        if step % 4 == 1:
            target = random_placement(random.Random(step), num_ranks(None), extra, shadows, split=True)
            migrate(moe_layers(model), target, optimizer)
    return losses


def test_one_process_reads_all_weights_under_the_names_of_a_model_with_experts_in_order(tmp_path):
    launch(go_on, 4, (tmp_path, 1, 0), timeout_s=60)
    weights = read_model(latest(tmp_path))
    plain, _ = make_job(seed=7)
    missing = plain.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys and all(name.endswith("_extra_state") for name in missing.missing_keys)
    loaded, _ = make_job(seed=8)
    load(latest(tmp_path), loaded)
    batch = next(my_batches())
    assert torch.equal(plain(batch), loaded(batch))


def train_in_two_groups(report, folder):
    """Experts over ranks {0, 1} and again over {2, 3}; saved before the last step, whose loss is returned."""
    expert_groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    same_experts = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    torch.manual_seed(0)
    model = LanguageModel(MODEL, expert_groups[dist.get_rank() // 2], extra_slots_per_rank=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data = my_batches()
    for _ in range(3):
        optimizer.zero_grad()
        model(next(data)).backward()
        average_gradients(model, expert_data_group=same_experts[dist.get_rank() % 2])
        clip_gradients(model, 0.5)
        optimizer.step()
    save(folder, 3, model, optimizer)
    loss = model(next(data)).detach()
    dist.all_reduce(loss)
    return loss.item() / num_ranks(None)


def test_groups_that_hold_the_same_experts_write_them_once_and_one_process_goes_on(tmp_path):
    losses = launch(train_in_two_groups, 4, (tmp_path,), timeout_s=60)
    model, optimizer = make_job(seed=5)
    assert load(latest(tmp_path), model, optimizer).placement.num_ranks == 2
    *_, batch = (batch for _, batch in zip(range(4), my_batches(), strict=False))
    assert model(batch).item() == pytest.approx(losses[0], abs=1e-5)
    plain, plain_optimizer = make_job()
    data = my_batches()
    for _ in range(3):
        plain_optimizer.zero_grad()
        plain(next(data)).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        plain_optimizer.step()
    for mine, wanted in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=1e-3)
        moments = [owner.state[p]["exp_avg"] for owner, p in ((optimizer, mine), (plain_optimizer, wanted))]
        torch.testing.assert_close(*moments, atol=1e-5, rtol=1e-3)


def die_while_saving(report, folder):
    model, optimizer = make_job()
    train_step(model, optimizer, next(my_batches()))
    save(folder, 1, model, optimizer)
    if dist.get_rank() == 1:
        torch.distributed.checkpoint.FileSystemWriter.write_data = lambda *_: os._exit(1)
    save(folder, 2, model, optimizer)


def test_a_rank_that_dies_while_it_saves_leaves_the_last_checkpoint_as_it_was(tmp_path):
    with pytest.raises(RankFailedError):
        launch(die_while_saving, 2, (tmp_path,), timeout_s=60)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000001", "step-00000002.partial"}
    assert latest(tmp_path).name == "step-00000001"
    model, optimizer = make_job()
    assert load(latest(tmp_path), model, optimizer).step == 1
    save(tmp_path, 2, model, optimizer)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000001", "step-00000002"}


def refuse_in_many_ways(report, folder):
    model, optimizer = make_job()
    errors = []
    stranger = torch.optim.AdamW(torch.nn.Linear(2, 2).parameters())
    save(folder, 3, model)
    for attempt in (
        lambda: save(folder, 3, model),
        lambda: save(folder, 4, model, stranger if rank(None) else optimizer),
        lambda: save(folder, 5 + rank(None), model),
        lambda: load(folder / "step-00000009", model),
    ):
        with pytest.raises((ConflictError, InputError, NotFoundError)) as caught:
            attempt()
        errors.append(type(caught.value))
    return errors


def test_what_one_rank_refuses_happens_on_none(tmp_path):
    results = launch(refuse_in_many_ways, 2, (tmp_path,), timeout_s=60)
    assert results == [
        [InputError, ConflictError, ConflictError, NotFoundError],
        [ConflictError, InputError, ConflictError, NotFoundError],
    ]
    assert latest(tmp_path).name == "step-00000003" and not (tmp_path / "step-00000004").exists()


def test_a_checkpoint_of_another_model_is_refused_before_anything_changes(tmp_path):
    model, optimizer = make_job()
    path = save(tmp_path, 0, model, optimizer)
    before = {name: tensor.clone() for name, tensor in read_model(path).items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"lacks 'extra\.bias'"):
        load(path, model, None)
    del model.extra, model.head
    with pytest.raises(InputError, match=r"has, unlike the model, 'head\.weight'"):
        load(path, model, None)
    assert all(not parameter.any() for parameter in model.parameters())
    assert before["head.weight"].any()


def test_folders_may_be_text(tmp_path):
    model, _ = make_job()
    path = save(str(tmp_path), 3, model)
    assert latest(str(tmp_path)) == path == tmp_path / "step-00000003"
    assert load(str(path), model).step == read_head(str(path)).step == 3
    assert read_model(str(path)).keys() == read_model(path).keys()


def test_a_damaged_checkpoint_is_named(tmp_path):
    model, _ = make_job()
    path = save(tmp_path, 0, model)
    (path / ".metadata").write_bytes(b"nonsense")
    with pytest.raises(MalformedError, match="cannot be read"):
        load(path, model)
    (path / "trimtab.json").write_text("{")
    with pytest.raises(MalformedError, match="not JSON"):
        load(path, model)


def test_placements_of_checkpoints_are_whole(tmp_path):
    model, _ = make_job()
    path = save(tmp_path, 0, model)
    assert read_head(path).placement == Placement.contiguous([EXPERTS] * LAYERS, 1)
