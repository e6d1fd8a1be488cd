"""Local search: the placements on the way from one in force, or from one made afresh, to a more even one.

A few hot ranks trade with some cold ones each; or many hot ranks with one cold one each (`pairs` weighs what).
Arrays as in the package's docstring: L layers, E experts, R ranks, S slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.balance import Floats, Indices
from planner.online.placement.pairs import Layers, Pairs, standing, weighed
from planner.online.placement.rules import Rules

EVEN_ENOUGH = 1e-3
"""A layer whose hottest rank is within this part of the bound is done. A choice: less than any forecast knows."""

TURNS = 6
"""Most steps of pairs: with each, every hot rank meets another cold one."""

PAIRS = 16
"""Most pairs of a step. A choice: with more, a step costs more than the coolest of the hot ranks gain."""

HOT_RANKS = 4
COLD_RANKS = 8
"""Most of a step of few ranks in each layer. A choice of CPU time."""

RANKS_PER_HOT = 4
"""A step of few ranks has one hot rank of so many: where ranks are few, each must meet most of the others."""

WEIGHED = 2000
"""Changes that are weighed in a layer by all steps of few ranks, but one step at least. A choice of CPU time."""

Flags = NDArray[np.bool_]


class Path(NamedTuple):
    """Placements on the way to a more even one."""

    slots: Indices
    """[steps + 1, L, S]."""
    hottest: Floats
    """[steps + 1, L]: load of the hottest rank."""


def improve(loads: Floats, num_ranks: int, slots: Indices, bound: Floats, rules: Rules) -> Path:
    """The path from `slots` [L, S] to a more even placement for `loads` [L, E].

    A layer close to its `bound` [L] is done; the others first `cooled`, then by steps of pairs. All treat the ranks
    that are above the middle between the hottest and the bound: so the path goes down with few moves at a time.
    """
    few = cooled(loads, num_ranks, slots, bound, rules)
    if rules.shadows.any():
        return few
    many = _walked(loads, few.slots[-1], bound, rules, [partial(_paired, turn=turn) for turn in range(TURNS)])
    return Path(*(np.concatenate([before, after[1:]]) for before, after in zip(few, many, strict=True)))


def cooled(loads: Floats, num_ranks: int, slots: Indices, bound: Floats, rules: Rules) -> Path:
    """The path from `slots` by the best changes of the few hottest ranks with some cold ones.

    Best of all swaps, and of all replicas of the hot ranks' experts put in place of a spare replica: what lowers the
    greatest load among the ranks it touches most per moved expert. A layer in which nothing gains is left as it is.
    """
    steps = _steps_of_few(num_ranks, slots.shape[1] // num_ranks)
    turns = [partial(_crossed, turn=turn) for turn in range(steps)]
    return _walked(loads, slots, bound, rules, turns, until_stuck=True)


def _walked(
    loads: Floats,
    slots: Indices,
    bound: Floats,
    rules: Rules,
    turns: Sequence[Callable[[Layers, Floats], Pairs]],
    until_stuck: bool = False,
) -> Path:
    """The path from `slots`, a step for each of the `turns`, which say what ranks may trade."""
    replicate, num_ranks = slots.shape[1] > loads.shape[1], rules.num_ranks
    now = standing(loads, num_ranks, slots)
    placed, hottest, active = [slots], [now.peak], np.arange(len(slots))
    for pairs in turns:
        going = _uneven(hottest[-1][active], bound[active])
        if not going.all():
            active = active[going]
            now = standing(loads[active], num_ranks, placed[-1][active])
        if not active.size:
            break
        level = (hottest[-1][active] + bound[active]) / 2
        changed = weighed(now, pairs(now, level), rules, replicate).applied(placed[-1][active])
        moved = (changed != placed[-1][active]).any(axis=1)
        now = standing(loads[active], num_ranks, changed)
        placed.append(placed[-1].copy())
        hottest.append(hottest[-1].copy())
        placed[-1][active], hottest[-1][active] = changed, now.peak
        if until_stuck and not moved.all():
            active = active[moved]
            now = standing(loads[active], num_ranks, placed[-1][active])
    return Path(np.stack(placed), np.stack(hottest))


def _steps_of_few(num_ranks: int, slots_per_rank: int) -> int:
    """How many steps of few ranks weigh `WEIGHED` changes."""
    hot = _few(num_ranks)
    return max(1, WEIGHED // max(1, hot * min(COLD_RANKS, num_ranks - hot) * slots_per_rank**2))


def _few(num_ranks: int) -> int:
    """Hot ranks of a step of few ranks."""
    return max(1, min(HOT_RANKS, num_ranks // RANKS_PER_HOT))


def evened(loads: Floats, num_ranks: int, slots: Indices, bound: Floats) -> Indices:
    """[L, S]: `slots` after steps of pairs that only swap, whatever they move; of all steps the most even.

    A layer close to its `bound` [L] is done, and one in which no pair has a swap left.
    """
    best, least = slots.copy(), np.full(len(slots), np.inf)
    rules = Rules.of(slots.shape[1], num_ranks)
    active, last = np.arange(len(slots)), slots
    for turn in range(TURNS + 1):
        now = standing(loads[active], num_ranks, last)
        peak = now.peak
        better = peak < least[active]
        best[active[better]], least[active[better]] = last[better], peak[better]
        if turn == TURNS:
            break
        before = last
        last = weighed(now, _paired(now, bound[active], turn), rules, replicate=False).applied(before)
        going = (last != before).any(axis=1) & _uneven(least[active], bound[active])
        active, last = active[going], last[going]
        if not active.size:
            break
    return best


def _crossed(now: Layers, level: Floats, turn: int) -> Pairs:
    """The few hottest ranks, as far as they are above their layer's `level` [L], each with some cold ones.

    These are the coldest in every other `turn`, else the next.
    """
    hot, others = _by_load(now, _few(now.carried.shape[1]))
    first = turn * COLD_RANKS if turn % 2 else 0
    cold = others[:, np.arange(first, first + min(COLD_RANKS, others.shape[1])) % others.shape[1]]
    cold = np.sort(cold, axis=1)
    return _above(now, level, hot, np.repeat(cold[:, None], hot.shape[1], axis=1))


def _paired(now: Layers, level: Floats, turn: int) -> Pairs:
    """The hottest rank with the coldest, the next with the next: hot ranks above their layer's `level` [L].

    Each `turn` pairs them with other cold ones.
    """
    hot, others = _by_load(now, min(now.carried.shape[1] // 2, PAIRS))
    cold = others[:, (np.arange(hot.shape[1]) + turn) % hot.shape[1]]
    return _above(now, level, hot, cold[:, :, None])


def _by_load(now: Layers, number: int) -> tuple[Indices, Indices]:
    """([L, H], [L, R - H]): the `number` of the hottest ranks, the hottest first; the others, the coldest first."""
    num_ranks = now.carried.shape[1]
    order = np.argsort(-now.carried, axis=1, kind="stable") + np.arange(0, now.carried.size, num_ranks)[:, None]
    return order[:, :number], order[:, number:][:, ::-1]


def _above(now: Layers, level: Floats, hot: Indices, cold: Indices) -> Pairs:
    """Of hot ranks [L, H], those above the `level`, each with its cold ones [L, H, C]."""
    above = now.carried.ravel()[hot] > level[:, None]
    return Pairs(hot[above], cold[above])


def _uneven(peak: Floats, bound: Floats) -> Flags:
    """[L]: which layers are not close to their bound."""
    return np.asarray(peak > bound * (1 + EVEN_ENOUGH))
