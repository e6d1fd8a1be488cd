"""What pairs of ranks can trade: the changes of a hot rank and a cold one, weighed for many pairs at once.

A change is a swap of two experts, or one more replica of the hot rank's expert in place of a spare one of the cold
rank. Replicas take equal parts. Arrays as in the package's docstring, experts numbered through all layers (N = L E);
H hot ranks, of any layers, each beside C cold ones. Places within ranks are the first axes: numpy is slow where the
last is short.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.balance import Floats, Indices
from planner.online.placement.rules import Rules

ROUNDING = 1e-9
"""A gain below this part of the hot rank's load is rounding; without this the search could turn in circles."""

Flags = NDArray[np.bool_]


class Layers(NamedTuple):
    """Layers as they stand."""

    loads: Floats
    """[N]."""
    counts: Indices
    """[N]: replicas."""
    experts: Indices
    """[s, L, R]."""
    parts: Floats
    """[s, L, R]: load of each slot."""
    carried: Floats
    """[L, R]."""

    @property
    def peak(self) -> Floats:
        """[L]: load of the hottest rank."""
        peak: Floats = self.carried.max(axis=1)
        return peak


class Pairs(NamedTuple):
    """Ranks that may trade, numbered through all layers (rank r of layer l is l R + r)."""

    hot: Indices
    """[H]: no two the same."""
    cold: Indices
    """[H, C]: of the same layers; none of them hot."""


def standing(loads: Floats, num_ranks: int, slots: Indices) -> Layers:
    """The layers with experts `slots` [L, S] under `loads` [L, E]."""
    numbers = slots + np.arange(0, loads.size, loads.shape[1])[:, None]
    experts = np.ascontiguousarray(
        numbers.reshape(len(slots), num_ranks, slots.shape[1] // num_ranks).transpose(2, 0, 1)
    )
    counts = np.bincount(numbers.ravel(), minlength=loads.size)
    parts = (loads.ravel() / counts)[experts]
    return Layers(loads.ravel(), counts, experts, parts, parts.sum(axis=0))


class Weighed(NamedTuple):
    """Changes of pairs, by their gain: how much less the hottest of the ranks they touch has, per moved expert."""

    pairs: Pairs
    gains: Floats
    """[kinds, s, s, H, C]: of swaps and of replicas, by the place in the hot rank and in the cold one."""
    least: Floats
    """[H]: a gain that is less is rounding."""

    def applied(self, slots: Indices) -> Indices:
        """`slots` [L, S] after the best change of each pair that is `_disjoint`."""
        each, flat = self.gains.shape[1], slots.ravel()
        rows, column = self._disjoint()
        if not rows.size:
            return slots
        gains = self.gains[..., rows, column].reshape(-1, len(rows))
        kind, mine, theirs = np.unravel_index(gains.argmax(axis=0), self.gains.shape[:3])
        hot, cold = self.pairs.hot[rows] * each + mine, self.pairs.cold[rows, column] * each + theirs
        changed = flat.copy()
        one, other = hot[kind == 0], cold[kind == 0]
        changed[one], changed[other] = flat[other], flat[one]
        hot, cold = hot[kind == 1], cold[kind == 1]
        if not hot.size:
            return changed.reshape(slots.shape)
        # An expert that loses its replica to two pairs could stand nowhere, and one that gets two gains less.
        for side in (1, 0):
            lone = _first((hot, cold)[side], slots)
            hot, cold = hot[lone], cold[lone]
        changed[cold] = flat[hot]
        return changed.reshape(slots.shape)

    def _disjoint(self) -> tuple[Indices, Indices]:
        """(Row, column) of each hot rank's best pair; of those with the same cold rank the one that gains most.

        Of equals the first. What gains less than rounding is left out.
        """
        best = self.gains.max(axis=(0, 1, 2))
        column = best.argmax(axis=1)
        gain = best[np.arange(len(best)), column]
        rows = np.argsort(-gain, kind="stable")
        rows = rows[gain[rows] > self.least[rows]]
        rows = rows[np.unique(self.pairs.cold[rows, column[rows]], return_index=True)[1]]
        rows.sort()
        return rows, column[rows]


def weighed(now: Layers, pairs: Pairs, rules: Rules, replicate: bool) -> Weighed:
    """All changes of the pairs; -inf where a rank would get an expert that it has. Replicas only if `replicate`.

    P = H C pairs side by side, and `take`, which leaves places the first axes in memory too: so no loop is short.
    """
    each = len(now.experts)
    experts, parts, carried = now.experts.reshape(each, -1), now.parts.reshape(each, -1), now.carried.ravel()
    hot, cold = np.repeat(pairs.hot, pairs.cold.shape[1]), pairs.cold.ravel()
    arriving, leaving = experts.take(hot, axis=1), experts.take(cold, axis=1)
    mine, theirs = parts.take(hot, axis=1), parts.take(cold, axis=1)
    peak, other = carried[hot], carried[cold]
    same = arriving[:, None] == leaving
    known_here, known_there = same.any(axis=0), same.any(axis=1)
    gains = np.empty((1 + replicate, *same.shape))
    if rules.swaps.all():
        # Halves, for a swap moves two experts.
        given = np.where(known_there, -np.inf, mine / 2)
        passed = given[:, None] - np.where(known_here, np.inf, theirs / 2)
        np.minimum(passed, (peak - other) / 2 - passed, out=gains[0])
    else:
        gains[0] = -np.inf
    if replicate:
        added = (now.loads / (now.counts + 1))[arriving]
        burden = _burden(now, leaving, theirs)
        spared = peak - burden - _hottest_other_host(now, leaving, peak, other)
        spared = np.where(_may_replace(rules, cold), spared, -np.inf)
        relief = np.where(known_there, -np.inf, mine - added)
        np.minimum(relief[:, None] - np.where(known_here, burden, 0.0), spared, out=gains[1])
        np.minimum(gains[1], (peak - other + theirs) - added[:, None], out=gains[1])
    return Weighed(pairs, gains.reshape(*gains.shape[:3], *pairs.cold.shape), ROUNDING * carried[pairs.hot])


def _burden(now: Layers, leaving: Indices, parts: Floats) -> Floats:
    """[s, P]: what each other rank of the expert gets once its replica with load `parts` is gone.

    Of x tokens in c replicas it is x/(c-1) - x/c. Infinite if it is the last.
    """
    others = now.counts[leaving] - 1
    return np.where(others > 0, now.loads[leaving] / np.maximum(others, 1) - parts, np.inf)


def _hottest_other_host(now: Layers, leaving: Indices, peak: Floats, own: Floats) -> Floats:
    """[s, P]: load of the hottest rank that has the expert too, the cold rank left out, or else the hot one.

    These have `own` [P] and `peak` [P].
    """
    experts = now.experts.ravel()
    replicas = np.flatnonzero(now.counts[experts] > 1)
    experts, hosts = experts[replicas], now.carried.ravel()[replicas % now.carried.size]
    hottest, second = np.zeros((2, len(now.loads)))
    np.maximum.at(hottest, experts, hosts)
    leads = hosts == hottest[experts]
    np.maximum.at(second, experts[~leads], hosts[~leads])
    alone = np.bincount(experts[leads], minlength=len(now.loads)) == 1
    most = hottest[leaving]
    return np.where(((most == own) | (most == peak)) & alone[leaving], second[leaving], most)


def _may_replace(rules: Rules, ranks: Indices) -> Flags:
    """[s, P]: whether the slot of the rank may get another expert's replica."""
    allowed: Flags = rules.replaces.reshape(rules.num_ranks, -1).T.take(ranks % rules.num_ranks, axis=1)
    return allowed


def _first(flat_slots: Indices, slots: Indices) -> Indices:
    """Which of some slots of `slots` [L, S], numbered through all layers, are the first with their expert."""
    numbers = flat_slots // slots.shape[1] * (int(slots.max()) + 1) + slots.ravel()[flat_slots]
    return np.sort(np.unique(numbers, return_index=True)[1])
