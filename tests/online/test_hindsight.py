"""The best sequence in hindsight: exact over its candidates, against all sequences one by one."""

from itertools import product

import numpy as np
import pytest
from moe_runs import imbalance_price, run_context

from planner.online import begin
from planner.online.placement.assign import align_slots
from planner.online.placement.copies import copies_between
from planner.online.pricing import Pricing, seats_of
from planner.online.recorded.hindsight import Stretch, best_sequence
from planner.spec.placement import Placement, TokenSplit

RUN = run_context(layers=1, experts=8, ranks=4, bandwidth=5e8)
PRICING = Pricing(RUN, imbalance_price)
START = begin(RUN).placement


def rotating(windows, every=2):
    return np.array([[np.roll([4.0, 4, 1, 1, 1, 1, 1, 1], 2 * (index // every))] for index in range(windows)]) / 14


def move_s(before, after):
    slots = align_slots(seats_of(after).layers, seats_of(before).layers, 4)
    return PRICING.migration_s(RUN.plans[0], copies_between(seats_of(before).layers, slots, 4).copied)


def priced(known, placements):
    """Seconds of a sequence that begins with the first placement of the run."""
    total, before = 0.0, START
    for shares, steps, placement in zip(known.shares, known.lengths, placements, strict=True):
        total += move_s(before, placement) + steps * PRICING.step(RUN.plans[0], shares, placement).seconds
        before = placement
    return total


def test_the_total_is_that_of_its_steps_and_pauses():
    known = Stretch(rotating(8), np.full(8, 10.0))
    found = best_sequence(known, PRICING, RUN.plans[0], START)
    assert found.total_s == pytest.approx(priced(known, [step.placement for step in found.steps]))
    assert sum(step.pause_s for step in found.steps) == pytest.approx(
        found.total_s
        - sum(
            10 * PRICING.step(RUN.plans[0], shares, step.placement).seconds
            for shares, step in zip(known.shares, found.steps, strict=True)
        )
    )


@pytest.mark.parametrize("steps", [1.0, 3.0, 30.0])
def test_no_sequence_of_given_placements_is_better(steps):
    known = Stretch(rotating(4), np.full(4, steps))
    also = [START, Placement(layers=((0, 2, 1, 3, 4, 5, 6, 7),), num_ranks=4)]
    also.append(Placement(layers=((0, 1, 2, 4, 3, 5, 6, 7),), num_ranks=4))
    found = best_sequence(known, PRICING, RUN.plans[0], START, also)
    assert found.total_s <= min(priced(known, each) for each in product(also, repeat=4)) + 1e-9


def test_dear_moves_are_not_made_and_cheap_ones_are():
    load = rotating(6)
    still = best_sequence(Stretch(load, np.full(6, 0.01)), PRICING, RUN.plans[0], START)
    moving = best_sequence(Stretch(load, np.full(6, 1000.0)), PRICING, RUN.plans[0], START)
    assert sum(step.moves for step in still.steps) == 0
    assert sum(step.moves for step in moving.steps) > 0


def test_tokens_that_can_be_split_anew_follow_every_window():
    run = run_context(1, 8, 4, extra_slots=1).model_copy(update={"token_split": TokenSplit.STEP})
    pricing = Pricing(run, imbalance_price)
    even = Pricing(run.model_copy(update={"token_split": TokenSplit.EVEN}), imbalance_price)
    known = Stretch(rotating(6), np.full(6, 10.0))
    start = begin(run).placement
    split = best_sequence(known, pricing, run.plans[0], start)
    # The best split is within a thousandth of the best there is.
    assert split.total_s <= 1.001 * best_sequence(known, even, run.plans[0], start).total_s
    assert all(step.placement.split is not None for step in split.steps)
