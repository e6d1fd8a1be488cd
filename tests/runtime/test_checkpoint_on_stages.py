"""Checkpoints of pipeline stages: one for all, from which a job goes on that is cut in other places."""

from __future__ import annotations

import os
import random
from contextlib import suppress

import pytest
import torch
import torch.distributed as dist
from pipeline_samples import BLOCKS, IN_ORDER, INTERLEAVED, ONE_EACH, UNCUT, OneProcess, PipelineJob
from torch import nn
from torch.distributed.checkpoint import FileSystemWriter
from training_samples import EXPERTS, largest_difference

from planner.spec.errors import InputError, RankFailedError
from planner.spec.placement import Placement
from runtime.checkpoint import latest, load, read_head, read_model, save
from runtime.launch import launch
from runtime.migration import migrate
from runtime.moe import moe_layers
from runtime.parts import Part
from runtime.slots import SlotMap

STEPS, MAX_NORM = 4, 0.5
"""Between one checkpoint and the next; a norm that bites."""


def shuffled(random_numbers, ranks, extra):
    """A placement of each block."""
    rows = []
    for _ in range(BLOCKS):
        row = [*range(EXPERTS), *random_numbers.choices(range(EXPERTS), k=extra * ranks)]
        random_numbers.shuffle(row)
        rows.append(tuple(row))
    return Placement(layers=tuple(rows), num_ranks=ranks)


def part_of(job):
    return Part(job.model, moe_layers=job.moe_layers, names=job.names)


def slots_of(job):
    layers = (layer for chunk in job.model for layer in moe_layers(chunk))
    return dict(zip(job.moe_layers, (layer.slots for layer in layers), strict=True))


def go_on(report, folder, layout, expert_ranks, extra):
    """From the newest checkpoint, if there is one, `STEPS` further; losses, norms, slots as found and as left."""
    path = latest(folder)
    job = PipelineJob(layout, expert_ranks, seed=9 if path else 0, max_norm=MAX_NORM, extra_slots_per_rank=extra)
    done = 0 if path is None else load(path, part_of(job), job.optimizer).step
    found, losses, norms = slots_of(job), [], []
    for _ in range(done):
        next(job.data)
    for step in range(done, done + STEPS):
        losses.append(job.train_step())
        norms.append(job.norm)
        if step % STEPS == 1:
            everywhere = shuffled(random.Random(step), expert_ranks, extra)
            mine = Placement(layers=tuple(everywhere.layers[n] for n in job.moe_layers), num_ranks=expert_ranks)
            migrate([layer for chunk in job.model for layer in moe_layers(chunk)], mine, job.optimizer)
    save(folder, done + STEPS, part_of(job), job.optimizer)
    return losses, norms, found, slots_of(job)


WAYS = [(IN_ORDER, 2, 1), (INTERLEAVED, 2, 1), (INTERLEAVED, 1, 0), (ONE_EACH, 1, 0), (UNCUT, 2, 0)]
"""Which stage has which blocks, expert-parallel ranks of each stage, extra slots of each rank."""


def test_a_job_goes_on_with_the_same_losses_and_norms_on_other_stages_with_other_ranks(tmp_path):
    losses, norms, left = [], [], {}
    for layout, expert_ranks, extra in WAYS:
        ranks = expert_ranks * (max(stage for stage, _ in layout) + 1)
        results = launch(go_on, ranks, (tmp_path, layout, expert_ranks, extra), timeout_s=120)
        assert all(result[:2] == results[0][:2] for result in results)
        losses += results[0][0]
        norms += results[0][1]
        found, before = {}, left
        left = {}
        for _, _, mine_found, mine_left in results:
            found |= mine_found
            left |= mine_left
        if layout == INTERLEAVED and expert_ranks == 2:
            assert found == before, "as many ranks and slots as before: the placement is taken over"
        assert read_head(latest(tmp_path)).placement.layers == tuple(left[number] for number in range(BLOCKS))
    plain = OneProcess(MAX_NORM)
    wanted = [(plain.train_step(), plain.norm) for _ in range(STEPS * len(WAYS))]
    assert largest_difference(losses, [loss for loss, _ in wanted]) <= 1e-5
    assert norms == pytest.approx([norm for _, norm in wanted], rel=1e-4)
    assert min(norms) > MAX_NORM
    one = OneProcess()
    assert load(latest(tmp_path), one.model, one.optimizer).step == STEPS * len(WAYS)
    for mine, other in zip(one.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-3)
        moments = (owner.optimizer.state[p]["exp_avg_sq"] for owner, p in ((one, mine), (plain, other)))
        torch.testing.assert_close(*moments, atol=1e-5, rtol=1e-3)
    weights = read_model(latest(tmp_path))
    assert all(torch.equal(weights[name], p) for name, p in one.model.named_parameters())


def die_while_saving(report, folder):
    job = PipelineJob(IN_ORDER)
    job.train_step()
    save(folder, 1, part_of(job), job.optimizer)
    if dist.get_rank() == 3:
        FileSystemWriter.write_data = lambda *_: os._exit(1)
    job.train_step()
    save(folder, 2, part_of(job), job.optimizer)


def test_a_rank_of_the_last_stage_that_dies_while_it_saves_leaves_the_last_checkpoint_as_it_was(tmp_path):
    with pytest.raises(RankFailedError):
        launch(die_while_saving, 4, (tmp_path,), timeout_s=60)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000001", "step-00000002.partial"}
    one, wanted = OneProcess(), OneProcess()
    assert load(latest(tmp_path), one.model, one.optimizer).step == 1
    wanted.train_step()
    next(one.data)
    assert one.train_step() == pytest.approx(wanted.train_step(), abs=1e-5)


def save_wrongly(report, folder, parts):
    """The error of each way to say what the stages hold."""
    job, errors = PipelineJob(IN_ORDER), []
    for by_stage in parts:
        told = {"moe_layers": job.moe_layers, "names": job.names, **by_stage[job.stage]}
        with pytest.raises(InputError) as caught:
            save(folder, 1, Part(job.model, **told), job.optimizer)
        errors.append(str(caught.value))
    with suppress(InputError):
        load(latest(folder) or save(folder, 2, part_of(job)), Part(job.model, [0, 1], job.names))
    return errors


WRONG = [
    ([{"names": ()}] * 2, "names: ranks 0 and 2 hold different parts of the model, and both have 'blocks.0.experts'"),
    (
        [{"moe_layers": [0, 1]}] * 2,
        "names: MoE layer 0 is 'blocks.0.experts' on rank 0 and 'blocks.2.experts' on rank 2",
    ),
    ([{"moe_layers": [0, 1]}, {"moe_layers": [3, 4]}], "moe_layers: no rank holds MoE layer 2, but rank 2 holds 4"),
    ([{"moe_layers": None}, {}], "moe_layers: rank 0 has 2 of the model's 4 MoE layers"),
    (
        [{}, {"names": [{"blocks.0": "blocks.2", "blocks.1": "blocks.3", "norm": "tokens"}]}],
        "names: ranks 0 and 2 hold different parts of the model, and both have 'tokens.weight'",
    ),
]


def test_stages_that_do_not_make_one_model_together_are_one_clear_error_on_all_ranks_and_no_checkpoint(tmp_path):
    results = launch(save_wrongly, 4, (tmp_path, [case for case, _ in WRONG]), timeout_s=60)
    assert all(errors == results[0] for errors in results)
    for error, (_, wanted) in zip(results[0], WRONG, strict=True):
        assert error.startswith(wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_a_part_that_cannot_be_is_refused_when_it_is_made():
    model = OneProcess().model
    for wrong, message in (
        ({"moe_layers": [0, 1]}, r"moe_layers: has 2 numbers, but this rank has 4 MoE layers"),
        ({"moe_layers": [0, 1, 2, 2]}, r"moe_layers: must be different whole numbers from 0 on"),
        ({"names": [{}, {}]}, r"names: must be for each of the 1 chunks, not 2"),
        ({"names": [{"block.0": "blocks.4"}]}, r"names: no module and no parameter of its chunk is called 'block\.0'"),
    ):
        with pytest.raises(InputError, match=message):
            Part([model], **wrong)
    with pytest.raises(InputError, match="model: must have at least one chunk"):
        Part([])
    twice = Part([model], names=[{"blocks.1": "blocks.0"}])
    with pytest.raises(InputError, match=r"names: two things on this rank are called 'blocks\.0\."):
        list(twice.state())


def test_a_stage_with_numbers_that_a_checkpoint_does_not_have_is_refused(tmp_path):
    model = OneProcess().model
    path = save(tmp_path, 1, model)
    with pytest.raises(InputError, match=r"moe_layers: has 4, the checkpoint 4 MoE layers from 0 on"):
        load(path, Part([model], moe_layers=[0, 1, 2, 4]))


def test_compiled_and_wrapped_models_have_the_names_of_the_model(tmp_path):
    plain = OneProcess().model
    path = save(
        tmp_path, 1, Part([torch.compile(nn.ModuleDict({"inner": plain}), backend="eager")], names=[{"inner": ""}])
    )
    names = read_model(path).keys()
    assert names == {name for name, _ in plain.named_parameters()}
    other = OneProcess().model
    for parameter in other.parameters():
        parameter.data.zero_()
    assert load(path, torch.compile(other, backend="eager")).step == 1
    for mine, wanted in zip(other.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, wanted)
    assert moe_layers(other)[0].slot_map == SlotMap(tuple(range(EXPERTS)), EXPERTS, 1)
