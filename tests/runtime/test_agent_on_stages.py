"""The agent under pipeline parallelism, on four real processes: each holds some MoE layers, a decision is for all."""

from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist
from doubles_routers import MoE
from pipeline_samples import BLOCKS, IN_ORDER, INTERLEAVED, MODEL, OneProcess, PipelineJob, pipeline_run
from planner_samples import InThread, SamplePlanner, Warnings, turn
from torch import nn
from training_samples import EXPERTS, RANKS, largest_difference

from planner.spec.errors import ConflictError, InputError
from planner.spec.placement import Placement
from runtime.agent import Agent
from runtime.example import LanguageModel
from runtime.hooks import attach
from runtime.launch import launch
from runtime.moe import moe_layers
from runtime.shares import my_share, whole_model
from runtime.shipment import Shipment
from runtime.stages import Stage

STEPS, WINDOW = 17, 4
FIRST = tuple(range(EXPERTS))


def turning_policy(run):
    return InThread(turn)


def slots_of(job):
    return [layer.slots for chunk in job.model for layer in moe_layers(chunk)]


def train_on_stages(report, url, layout, failing_rank=None):
    """Returns losses, decisions by step, slots by step, warnings; on `failing_rank` the first migration fails."""
    if failing_rank == dist.get_rank():
        fail_to_pack_once()
    warnings = Warnings()
    job = PipelineJob(layout)
    losses, heard, slots = [], [], []
    arguments = {"service": url, "run": "my-run", "window_steps": WINDOW, "policy": turning_policy}
    with Agent(
        model=job.model,
        moe_layers=job.moe_layers,
        optimizer=job.optimizer,
        on_decision=lambda decision: heard.append((len(losses), decision)),
        **arguments,
    ) as agent:
        for _ in range(STEPS):
            losses.append(job.train_step())
            agent.step()
            slots.append(slots_of(job))
            time.sleep(0.02)
    return losses, heard, slots, warnings.told


def fail_to_pack_once():
    pack, tries = Shipment.pack, []

    def fail(*arguments):
        tries.append(arguments)
        if len(tries) == 1:
            raise RuntimeError("out of memory, as asked")
        return pack(*arguments)

    Shipment.pack = fail


@pytest.fixture(scope="module")
def plain():
    """Losses of one process, and its counts by window."""
    job = OneProcess()
    counters, losses, counts = attach(job.model), [], []
    for step in range(1, STEPS + 1):
        losses.append(job.train_step())
        if step % WINDOW == 0:
            counts.append([counter.take(torch.device("cpu")).tolist() for counter in counters])
    return losses, counts


def turned(turns):
    return (*FIRST[EXPERTS - turns :], *FIRST[: EXPERTS - turns])


def check_in_time(heard, decisions):
    """Each at a look within the window that follows, or at its end."""
    assert [decision.window for _, decision in heard] == list(range(decisions))
    for step, decision in heard:
        assert (decision.window + 1) * WINDOW + 2 < step <= (decision.window + 2) * WINDOW + 1


def carried_out(heard, step):
    return sum(at <= step for at, _ in heard)


@pytest.mark.parametrize("layout", [IN_ORDER, INTERLEAVED], ids=["one chunk per stage", "interleaved chunks"])
def test_stages_count_together_and_move_at_the_same_step_without_a_trace_in_the_losses(plain, layout):
    with SamplePlanner(runs=[pipeline_run()]) as planner:
        results = launch(train_on_stages, RANKS, (planner.url, layout), timeout_s=120)
    losses, heard, slots, warned = results[0]
    assert all(other == (losses, heard, slots, warned) for other in results) and not warned
    assert largest_difference(losses, plain[0]) <= 1e-5
    check_in_time(heard, 3)
    assert slots == [[turned(carried_out(heard, step))] * 2 for step in range(1, STEPS + 1)]
    assert [window.placement.layers for window in planner.windows] == [(turned(n),) * BLOCKS for n in range(4)]
    for window, counts in zip(planner.windows, plain[1], strict=True):
        assert [list(row) for row in window.tokens] == counts


def test_a_stage_that_refuses_stops_the_move_on_all_stages(plain):
    with SamplePlanner(runs=[pipeline_run()]) as planner:
        results = launch(train_on_stages, RANKS, (planner.url, IN_ORDER, 2), timeout_s=120)
    losses, heard, slots, _ = results[0]
    assert all(other[:3] == (losses, heard, slots) for other in results)
    assert largest_difference(losses, plain[0]) <= 1e-5
    check_in_time(heard, 3)
    assert slots == [[turned(max(0, carried_out(heard, step) - 1))] * 2 for step in range(1, STEPS + 1)], "one less"
    assert [window.placement.layers for window in planner.windows] == [(turned(n),) * BLOCKS for n in (0, 0, 1, 2)]
    refused = "window 0: not carried out, nothing was moved: rank {} of the group cannot prepare the migration"
    here, there = refused.format(0), refused.format("2, 3")
    assert [told for _, _, _, told in results] == [
        [(there, None)],
        [(there, None)],
        [(here, "out of memory, as asked")],
        [(here, None)],
    ]


HELD = {0: [], 1: [0], 2: [1, 2], 3: []}
"""Stages of one rank each; the first and the last have no MoE layer."""


def count_on_stages_without_routers(report, url):
    rank = dist.get_rank()
    torch.manual_seed(rank)
    stage = nn.Sequential(nn.Linear(16, 16), *(MoE(16, EXPERTS, 2) for _ in HELD[rank]))
    heard, counts = [], []
    counters = attach(stage, may_have_none=True)
    with Agent(
        service=url,
        run="my-run",
        model=[stage],
        moe_layers=HELD[rank],
        window_steps=WINDOW,
        on_decision=lambda decision: heard.append((step, decision)),
        policy=turning_policy,
    ) as agent:
        for step in range(1, 2 * WINDOW + 2):
            stage(torch.randn(1, 24, 16)).sum().backward()
            if step == WINDOW:
                counts = [counter.take(torch.device("cpu")).tolist() for counter in counters]
            agent.step()
            time.sleep(0.02)
    return heard, counts


def test_stages_without_a_router_hear_what_is_decided_and_count_nothing():
    with SamplePlanner(runs=[pipeline_run(num_blocks=3)]) as planner:
        results = launch(count_on_stages_without_routers, RANKS, (planner.url,), timeout_s=60)
    heard, _ = results[0]
    check_in_time(heard, 1)
    assert all(other == heard for other, _ in results)
    assert [list(row) for row in planner.windows[0].tokens] == [row for _, counts in results for row in counts]


def begin_each(report, url, cases):
    """The error of each case, and whether hooks are left. All in one launch: who failed can try again."""
    job, found = PipelineJob(IN_ORDER), []
    for by_stage in cases:
        arguments = {"model": job.model, "optimizer": job.optimizer, **by_stage[job.stage]}
        try:
            Agent(service=url, run="my-run", **arguments).close()
        except InputError as error:
            hooks = [module for chunk in job.model for module in chunk.modules() if module._forward_hooks]
            found.append((str(error), bool(hooks)))
        else:
            found.append(None)
    return found


def held(*by_stage):
    return [{"moe_layers": numbers} for numbers in by_stage]


WRONG = [
    (
        held(None, None),
        "model: has routers for 2 MoE layers of 8 experts, but run 'my-run' was planned for 4 MoE layers",
    ),
    (held(None, [2, 3]), "moe_layers: rank 0 has 2 of the model's 4 MoE layers"),
    (held([0, 1], [3, 4]), "moe_layers: no rank holds MoE layer 2, but rank 2 holds 4"),
    (held([0, 1], [2]), "moe_layers: has 1 numbers, but this rank has 2 routers: blocks.0.experts.router, "),
    (held([], []), "moe_layers: has 0 numbers, but this rank has 2 routers"),
    (held([0, 1], [2, 2]), "moe_layers: must be different whole numbers from 0 on, got [2, 2] (on rank 2)"),
    (held([0, 1], [2, -3]), "moe_layers: must be different whole numbers from 0 on, got [2, -3] (on rank 2)"),
    (held([0, 1], [2, 10**12]), "moe_layers: no rank holds MoE layer 3, but rank 2 holds 1000000000000"),
    ([{"moe_layers": [0, 1]}, {"moe_layers": [2, 3], "apply": "advise"}], "apply: must be the same on all ranks"),
    ([{"moe_layers": [0, 1]}, {"moe_layers": [2, 3], "model": ["x"]}], "model: must be a torch module, or a list of"),
    (held([0, 1], [2, 3]), None),
]


def test_wrong_numbers_of_layers_are_one_clear_error_on_all_ranks():
    with SamplePlanner(runs=[pipeline_run()]) as planner:
        everywhere = launch(begin_each, RANKS, (planner.url, [case for case, _ in WRONG]), timeout_s=120)
    for (_, wanted), *answers in zip(WRONG, *everywhere, strict=True):
        assert len(set(answers)) == 1, answers
        if wanted is None:
            assert answers[0] is None
        else:
            message, hooks_left = answers[0]
            assert message.startswith(wanted) and not hooks_left


def refuse_in_one_of_two_groups(report):
    """Two expert-parallel groups that hold the same layers; rank 2 refuses once. Slots and error of both tries."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    if dist.get_rank() == 2:
        fail_to_pack_once()
    model = LanguageModel(MODEL, groups[dist.get_rank() // 2])
    optimizer = torch.optim.AdamW(model.parameters())
    layers = moe_layers(model)
    share = my_share(attach(model), layers, None, None, optimizer)
    stage = Stage(whole_model([share.model_dump(mode="json")])[0], layers, range(BLOCKS))
    target, found = Placement(layers=(turned(1),) * BLOCKS, num_ranks=2), []
    for _ in range(2):
        try:
            stage.migrate(target, optimizer, None, torch.device("cpu"))
        except ConflictError as error:
            found.append(str(error))
        found.append(stage.placement().layers)
    return found


def test_a_group_that_refuses_stops_the_other_groups_of_the_same_layers():
    results = launch(refuse_in_one_of_two_groups, RANKS, timeout_s=60)
    stayed, moved = (FIRST,) * BLOCKS, (turned(1),) * BLOCKS
    refused = "rank {} of the group cannot prepare the migration"
    wanted = [refused.format(who) for who in ("2, 3", "2, 3", 0, 0)]
    assert results == [[message, stayed, moved] for message in wanted]
