"""Loads made to hurt the policy, and games against them: its total beside the best fixed placement, by brute force.

`bound_s` and `factor_bound_s` are what docs/online.md proves: with S the time of all steps, B what they would take with
the best placement of each window, F with the best fixed one, rho the greatest ratio of S to B in a window and C_max the
dearest move, B + (1 + CREDIT) (S - B) + (1 - TRUST) C_max and (1 + (1 + CREDIT) (rho - 1)) F + (1 - TRUST) C_max.
"""

import math
from typing import NamedTuple

import numpy as np
from moe_runs import all_assignments, imbalance_price, run_context, window

from planner.cost.balance import imbalance, rank_loads
from planner.online import begin, decide
from planner.online.calibration import calibration_of
from planner.online.ledger import CREDIT, TRUST
from planner.spec.decision import Action

EXPERTS, RANKS = 8, 4
CHEAP = run_context(layers=1, experts=EXPERTS, ranks=RANKS)
"""A move costs 0.05 s: hardly more than its pause. A step takes 2 s and more."""
DEAR = run_context(layers=1, experts=EXPERTS, ranks=RANKS, bandwidth=5e7)
"""A move costs about 10 s."""
EVERY = np.array(all_assignments(EXPERTS, RANKS))


class Game(NamedTuple):
    total_s: float
    steps_s: float
    best_of_each_window_s: float
    best_fixed_s: float
    static_s: float
    dearest_s: float
    actions: int
    worst_ratio: float

    @property
    def bound_s(self) -> float:
        lost_s = self.steps_s - self.best_of_each_window_s
        return self.best_of_each_window_s + (1 + CREDIT) * lost_s + (1 - TRUST) * self.dearest_s

    @property
    def factor_bound_s(self) -> float:
        return (1 + (1 + CREDIT) * (self.worst_ratio - 1)) * self.best_fixed_s + (1 - TRUST) * self.dearest_s

    def stays_within_what_is_proved(self) -> bool:
        return self.total_s <= self.bound_s + 1e-6 and self.total_s <= self.factor_bound_s + 1e-6


def step_times(loads):
    """[assignments]: seconds of a step under every fixed placement."""
    shares = np.asarray(loads, dtype=float) / np.sum(loads)
    return 1.0 + rank_loads(np.broadcast_to(shares, EVERY.shape), EVERY, RANKS).max(axis=1) * RANKS


def step_s(shares, placement):
    """Seconds of a step under a placement."""
    return 1.0 + imbalance(rank_loads(shares, np.array(placement.layers), RANKS))


def play(next_load, windows, num_steps=10, run=CHEAP, delay=0.0, clock=None):
    """`next_load(index, placement, coming)` is the adversary: it may look at the placement in force.

    `coming` takes its place after a part `delay` of the window, as the agent does it. `clock(index)`: how many times
    its price each step of a window is measured to take; all seconds of the game are then as calibrated.
    """
    state = begin(run)
    steps_s = pauses_s = best_s = 0.0
    fixed_s = np.zeros(len(EVERY))
    dearest_s, actions, worst_ratio = 0.0, 0, 1.0
    placement, late_steps = state.placement, math.ceil(delay * num_steps)
    for index in range(windows):
        coming = state.placement
        placed = {} if coming == placement else {"placed_step": index * num_steps + late_steps}
        loads = np.asarray([next_load(index, placement, coming)], dtype=float)
        seen = window(index, loads, num_steps, placement=coming.model_dump(), **placed)
        shares = np.array(seen.tokens) / np.sum(seen.tokens)
        if clock is not None:
            last = coming if late_steps < num_steps else placement
            seen = seen.model_copy(update={"step_time_s": clock(index) * step_s(shares, last)})
        ratio = calibration_of(state).ratio
        window_s = late_steps * step_s(shares, placement) + (num_steps - late_steps) * step_s(shares, coming)
        window_s *= ratio
        steps_s += window_s
        every = ratio * num_steps * step_times(shares[0])
        worst_ratio = max(worst_ratio, window_s / every.min())
        fixed_s += every
        best_s += every.min()
        placement = coming
        decision, state = decide(seen, state, run, imbalance_price)
        if decision.action is not Action.KEEP:
            pauses_s, dearest_s, actions = pauses_s + decision.cost_s, max(dearest_s, decision.cost_s), actions + 1
    start = EVERY.tolist().index(list(begin(run).placement.layers[0]))
    return Game(steps_s + pauses_s, steps_s, best_s, fixed_s.min(), fixed_s[start], dearest_s, actions, worst_ratio)


def hot(*experts, by=4.0):
    loads = np.ones(EXPERTS)
    loads[list(experts)] = by
    return loads


PAIRS = [tuple(np.random.default_rng(index).choice(EXPERTS, 2, replace=False)) for index in range(120)]


def spiteful(every_rank, by=4.0):
    """Heats what rank 0 holds, or what each rank in turn does."""

    def load(index, placement, _):
        slots = placement.layers[0]
        rank = index % RANKS if every_rank else 0
        return hot(slots[2 * rank], slots[2 * rank + 1], by=by)

    return load


def bursts(index, *_):
    return hot(0, 1) if index % 20 < 3 else np.ones(EXPERTS)


ADVERSARIES = {
    "hot expert": lambda index, *_: hot(0, by=8.0),
    "hot rank": lambda index, *_: hot(0, 1),
    "hot rank that changes once": lambda index, *_: hot(0, 1) if index < 60 else hot(4, 5),
    "rotating hot spot, every window": lambda index, *_: hot(2 * index % 8, (2 * index + 1) % 8),
    "rotating hot spot, every 5 windows": lambda index, *_: hot(index // 5 * 2 % 8, (index // 5 * 2 + 1) % 8),
    "rotating hot spot, every 20 windows": lambda index, *_: hot(index // 20 * 2 % 8, (index // 20 * 2 + 1) % 8),
    "oscillation at the window's frequency": lambda index, *_: hot(0, 1) if index % 2 else hot(0, 2),
    "slow oscillation": lambda index, *_: hot(0, 1) if index // 7 % 2 else hot(0, 2),
    "another pair every window": lambda index, *_: hot(*PAIRS[index]),
    "another pair every 10 windows": lambda index, *_: hot(*PAIRS[index // 10]),
    "bursts": bursts,
    "spike of one window": lambda index, *_: hot(0, 1, by=20.0) if index == 60 else np.ones(EXPERTS),
}
