"""A rank that dies in the middle takes the job with it, and leaves a checkpoint from which it goes on: same losses."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch.distributed as dist
from planner_samples import InThread, SamplePlanner, make_agent, real_policy, sample_plan, sample_run, turn
from training_samples import largest_difference, make_job, my_batches, train_step

from planner.spec.errors import RankFailedError
from planner.spec.placement import Placement
from runtime.boundary import Boundary
from runtime.checkpoint import latest, load, save
from runtime.exchange import num_ranks, rank
from runtime.launch import launch
from runtime.migration import migrate
from runtime.moe import moe_layers
from runtime.shipment import Shipment

STEPS, EVERY, WINDOW, RANKS = 14, 5, 3, 2


def die(*_arguments, **_options):
    """As a machine does that loses its power."""
    os.kill(os.getpid(), signal.SIGKILL)


def at_the_second(function, instead):
    """`function` the first time, `instead` the second."""
    calls = []

    def count(*arguments, **options):
        calls.append(arguments)
        return (instead if len(calls) == 2 else function)(*arguments, **options)

    return count


def arm(where):
    """Make this process die at a place; a migration takes place at each window's end from the second on."""
    if where == "all-reduce of counts":
        Boundary.__init__ = at_the_second(Boundary.__init__, die)
    if where == "prepare":
        Shipment.pack = at_the_second(Shipment.pack, die)
    if where == "exchange":
        Shipment.exchange = at_the_second(Shipment.exchange, die)
    if where == "commit":
        Shipment.unpack = at_the_second(Shipment.unpack, die)


def train(report, url, folder, where, elsewhere=False):
    """Go on from the newest checkpoint, if there is one; rank 1 dies at `where`. Losses by step."""
    if where and dist.get_rank() == 1:
        arm(where)
    model, optimizer = make_job(seed=0 if latest(folder) is None else 7)
    done = 0
    if (path := latest(folder)) is not None:
        done = load(path, model, optimizer).step
    if elsewhere:
        rows = tuple(tuple(reversed(layer.slot_map.experts)) for layer in moe_layers(model))
        migrate(moe_layers(model), Placement(layers=rows, num_ranks=num_ranks(None)), optimizer)
    data, losses = my_batches(), {}
    for _ in range(done):
        next(data)
    agent = make_agent(url, model, optimizer, window_steps=WINDOW, policy=lambda run: InThread(turn))
    for step in range(done, STEPS):
        if where == "step" and step == 8 and rank(None) == 1:
            die()
        losses[step] = train_step(model, optimizer, next(data))
        agent.step()
        time.sleep(0.02)  # for the policy's thread
        if (step + 1) % EVERY == 0:
            save(folder, step + 1, model, optimizer)
    agent.close(0.0)
    return losses, [layer.slot_map.experts for layer in moe_layers(model)]


@pytest.fixture(scope="module")
def plain_losses():
    model, optimizer = make_job()
    data = my_batches()
    return [train_step(model, optimizer, next(data)) for _ in range(STEPS)]


@pytest.mark.parametrize("where", ["step", "all-reduce of counts", "prepare", "exchange", "commit"])
def test_a_job_goes_on_after_a_rank_was_killed(tmp_path, plain_losses, where):
    run = sample_run(ranks=RANKS, more_plans=(sample_plan(ranks=RANKS, expert_ranks=1),))
    with SamplePlanner(ranks=RANKS, decide=turn, runs=[run]) as planner:
        with pytest.raises(RankFailedError) as caught:
            launch(train, RANKS, (planner.url, tmp_path, where), timeout_s=60)
        assert caught.value.summary == "rank 1 died without a word" or caught.value.summary.startswith(
            "rank 0 failed: RuntimeError"
        ), "the other rank hears of it from torch"
        assert latest(tmp_path).name == f"step-{EVERY:08d}"
        seen = len(planner.windows)
        if where == "step":
            planner.decide = real_policy(run)
        ranks, elsewhere = 1 if where == "step" else RANKS, where == "exchange"
        results = launch(train, ranks, (planner.url, tmp_path, None, elsewhere), timeout_s=60)
    assert all(result == results[0] for result in results)
    losses = results[0][0]
    assert list(losses) == list(range(EVERY, STEPS))
    assert largest_difference(list(losses.values()), plain_losses[EVERY:]) <= 1e-5
    indices = [window.index for window in planner.windows]
    assert len(indices) > seen and indices == sorted(set(indices)), "windows go on after those of the job that died"
    under = {(window.plan_id, window.placement.num_ranks) for window in planner.windows[seen:]}
    assert under == {(run.context.plans[RANKS - ranks].id, ranks)}, "a smaller job, under the plan of its size"
