"""Two policies tell one job what to do, the service's and the agent's own: their accounts know of every move."""

import numpy as np
import pytest
from adversaries import CHEAP, DEAR, EXPERTS, RANKS, spiteful, step_s, step_times
from moe_runs import imbalance_price, window

from planner.online import begin, decide
from planner.online.ledger import CREDIT, TRUST
from planner.spec.decision import Action

WINDOWS = 80


def over_the_bound_s(next_load, run, missed_by_second):
    """(What a job takes beyond the bound of one account, listening to the one and the other for three windows each; how
    many moves the second had not decided.)

    `missed_by_second(index)`: windows that the second never hears of. With equal windows both decide the same.
    """
    states = [begin(run), begin(run)]
    placement = states[0].placement
    steps_s = best_s = moves_s = dearest_s = 0.0
    foreign = 0
    for index in range(WINDOWS):
        loads = np.asarray([next_load(index, placement, placement)], dtype=float)
        seen = window(index, loads, placement=placement.model_dump())
        shares = np.array(seen.tokens) / np.sum(seen.tokens)
        steps_s += 10 * step_s(shares, placement)
        best_s += 10 * step_times(shares[0]).min()
        first, states[0] = decide(seen, states[0], run, imbalance_price)
        second = None
        if not missed_by_second(index):
            second, states[1] = decide(seen, states[1], run, imbalance_price)
        chosen = first if second is None or index // 3 % 2 else second
        if chosen.action is not Action.KEEP:
            foreign += second is None or second.placement != chosen.placement
            placement = chosen.placement
            moves_s, dearest_s = moves_s + chosen.cost_s, max(dearest_s, chosen.cost_s)
    bound_s = best_s + (1 + CREDIT) * (steps_s - best_s) + (1 - TRUST) * dearest_s
    return steps_s + moves_s - bound_s, foreign


WALK = np.exp(np.cumsum(np.random.default_rng(5).normal(0, 0.4, (WINDOWS, EXPERTS)), axis=0))
CALM = np.exp(np.cumsum(np.random.default_rng(6).normal(0, 0.2, (WINDOWS, EXPERTS)), axis=0))
LOADS = {"a walk": lambda index, *_: WALK[index], "a calm one": lambda index, *_: CALM[index]}


@pytest.mark.parametrize("run", [CHEAP, DEAR])
@pytest.mark.parametrize("missed", [lambda index: 3 < index < 40, lambda index: index % 2 == 1])
@pytest.mark.parametrize("name", LOADS)
def test_a_job_that_listens_to_the_one_and_the_other_stays_within_the_bound_of_one(name, missed, run):
    over_s, foreign = over_the_bound_s(LOADS[name], run, missed)
    assert over_s <= 1e-6
    assert foreign


@pytest.mark.parametrize("run", [CHEAP, DEAR])
@pytest.mark.parametrize("missed", [lambda index: 3 < index < 40, lambda index: index % 6 >= 3])
@pytest.mark.parametrize("by", [4.0, 20.0])
def test_an_adversary_does_not_get_each_account_to_pay_what_the_other_has_paid(by, missed, run):
    over_s, foreign = over_the_bound_s(spiteful(every_rank=False, by=by), run, missed)
    assert over_s <= 1e-6
    assert foreign


def swapped(placement, rank):
    """Another placement: the experts of two ranks change places by halves."""
    (slots,) = placement.layers
    row, each = list(slots), EXPERTS // RANKS
    one, other = rank * each, (rank + 1) % RANKS * each
    row[one], row[other] = row[other], row[one]
    return placement.model_copy(update={"layers": (tuple(row),)})


EVEN = np.ones((1, EXPERTS))
HOT = np.array([[4.0, 4, 1, 1, 1, 1, 1, 1]])


def account_after(placements, run=DEAR, loads=HOT):
    state, seen = begin(run), []
    for index, placement in enumerate(placements):
        reported = window(index, loads, num_steps=1, placement=placement.model_dump())
        seen.append(decide(reported, state, run, imbalance_price))
        state = seen[-1][1]
    return state.account_s


def test_each_move_that_others_decided_is_charged_at_its_price():
    start = begin(DEAR).placement
    other = swapped(start, 2)
    stayed, moved = account_after([start, start]), account_after([start, other])
    assert moved < 0 < stayed
    assert account_after([other, other]) == pytest.approx(stayed), "how a job begins is no move"
    once = account_after([start, other, other])
    again = account_after([start, other, start, other, start])
    assert again < 3 * max(moved, once)
