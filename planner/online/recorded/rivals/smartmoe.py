"""SmartMoE's greedy rule: experts, the heaviest first, each to the rank with the least load that still has room.

Of ranks with equal load an expert stays where it is, else the first takes it. Layer by layer the new placement is
taken if its hottest rank would have been any cooler for the very load it was made for. No replicas. The rule knows no
cost: its system moves the weights in training precision, and leaves the optimizer state out of account.
Source: Zhai et al., SmartMoE, USENIX ATC 2023, expert placement of the online stage, as the published artifact runs it
(fmoe/smartmoe/mapping.py). Arrays as in `planner.online.placement`.
"""

from __future__ import annotations

import numpy as np

from planner.cost.balance import Floats, Indices, rank_loads


def greedy_exchange(loads: Floats, num_ranks: int, current: Indices) -> Indices:
    """[L, S]: the slots for `loads` [L, E] of the window before; `current` [L, S] with one slot per expert."""
    fresh = _heaviest_first(loads, num_ranks, current)
    before = rank_loads(loads, current, num_ranks).max(axis=1)
    after = rank_loads(loads, fresh, num_ranks).max(axis=1)
    return np.where((after < before)[:, None], fresh, current)


def _heaviest_first(loads: Floats, num_ranks: int, current: Indices) -> Indices:
    layers, experts = loads.shape
    size = experts // num_ranks
    every = np.arange(layers)
    home = np.empty((layers, experts), dtype=np.intp)
    np.put_along_axis(home, current, np.broadcast_to(np.arange(experts) // size, current.shape), axis=1)
    filled = np.zeros((layers, num_ranks), dtype=np.intp)
    carried = np.zeros((layers, num_ranks))
    slots = np.empty((layers, experts), dtype=np.intp)
    for expert in np.argsort(-loads, axis=1, kind="stable").T:
        open_load = np.where(filled < size, carried, np.inf)
        first = open_load.argmin(axis=1)
        mine = home[every, expert]
        rank = np.where(open_load[every, mine] == open_load[every, first], mine, first)
        slots[every, rank * size + filled[every, rank]] = expert
        filled[every, rank] += 1
        carried[every, rank] += loads[every, expert]
    return slots
