"""Decisions that change shadow slots, carried out by agents on two real processes: same losses, no expert moved."""

from __future__ import annotations

import numpy as np
import pytest
from planner_samples import SamplePlanner, keep, make_agent
from training_samples import EXPERTS, LAYERS, largest_difference, make_job, my_batches, train_step

from planner.online.pricing import whole_split
from planner.spec.decision import Action, Decision
from planner.spec.placement import Placement, TokenSplit
from runtime.launch import launch
from runtime.moe import moe_layers

STEPS, WINDOW = 24, 4


def with_shadows(window):
    """In every window other experts of the other rank, the hottest of the window first; tokens are split for it."""
    rows, parts = [], []
    for counts in window.tokens:
        hottest = np.argsort(-np.array(counts), kind="stable")
        halves = [range(EXPERTS // 2), range(EXPERTS // 2, EXPERTS)]
        guests = [next(e for e in hottest.tolist() if e not in half) for half in halves]
        row = [*halves[0], guests[0], *halves[1], guests[1]]
        rows.append(tuple(row))
        split = whole_split(np.array([counts], dtype=float), np.array([row]), 2)
        parts.append(tuple(split[0].tolist()))
    placement = Placement(layers=tuple(rows), num_ranks=2, shadow_slots_per_rank=1, split=tuple(parts))
    changes = {"action": Action.REBALANCE, "placement": placement, "reason": "the sample fills shadow slots"}
    return Decision(**keep(window).model_dump() | changes)


def train_with_shadows(report, url):
    """Losses, decisions, and what stood in the slots after each step."""
    model, optimizer = make_job(shadow_slots_per_rank=1, token_split=TokenSplit.WINDOW)
    losses, heard, slots, data = [], [], [], my_batches(union=2)
    agent = make_agent(url, model, optimizer, window_steps=WINDOW, timeout_s=5.0, on_decision=heard.append)
    for _ in range(STEPS):
        losses.append(train_step(model, optimizer, next(data)))
        agent.step()
        slots.append([tuple(layer.slots) for layer in moe_layers(model)])
    agent.close(5.0)
    return losses, heard, slots


@pytest.fixture(scope="module")
def losses_of_one_process():
    model, optimizer = make_job()
    data = my_batches(union=2)
    return [train_step(model, optimizer, next(data)) for _ in range(STEPS)]


def test_shadow_slots_that_a_decision_fills_are_filled_and_the_losses_stay(losses_of_one_process):
    with SamplePlanner(ranks=2, decide=with_shadows) as planner:
        results = launch(train_with_shadows, 2, (planner.url,), timeout_s=120)
    losses, heard, slots = results[0]
    assert results[1] == results[0]
    assert heard and all(decision.placement.shadow_slots_per_rank == 1 for decision in heard)
    assert slots[0] == [(0, 1, 2, 3, 0, 4, 5, 6, 7, 4)] * LAYERS, "idle at first"
    assert slots[-1] == list(heard[-1].placement.layers)
    assert largest_difference(losses, losses_of_one_process) <= 1e-5
    assert planner.windows[-1].placement.shadow_slots_per_rank == 1
