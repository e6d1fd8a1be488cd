"""How tokens of experts with replicas are shared out among their slots: best for known loads, or anew in every step.

The best split makes the hottest rank as cool as the placement allows. By max-flow/min-cut that is the greatest, over
sets A of ranks, of (load of the experts all of whose replicas lie in A) / |A|. Water is filled in: each expert in turn
pours its tokens over its ranks up to one level, given all the others, until the hottest rank is within TOLERANCE of a
bound. The bound comes from the hottest rank itself: the set of ranks to which it could pass tokens on, directly or over
others, is such an A.

Pure Python on lists and a few numpy calls: fast enough to be called in every layer of every step of a training job,
without a compiler. Deterministic: whoever has the same counts gets the same split. Arrays: L layers, E experts,
R ranks, S slots (numbered rank by rank), s = S / R.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.balance import Floats, Indices, replica_counts, slot_loads
from planner.online.placement.assign import twins
from planner.online.placement.shares import Sharing

TOLERANCE = 1e-3
"""The hottest rank may have this part more than the bound. A choice: fewer sweeps against a thousandth of a step."""

SWEEPS = 24
"""Most sweeps over the experts. A choice of CPU time: a sweep never heats the hottest rank, so all splits are sound."""

SWEEPS_PER_CHECK = 4
"""The bound of the hottest rank is looked for once in so many sweeps: it costs as much as one."""


class _Spread(NamedTuple):
    """An expert that stands on several ranks."""

    expert: int
    ranks: tuple[int, ...]
    slots: tuple[tuple[int, ...], ...]
    """On each of the ranks; more than one only if the rank has twins."""


class _Pour(NamedTuple):
    """Tokens of one expert as they are poured over its ranks now."""

    ranks: tuple[int, ...]
    tokens: float
    amounts: list[float]
    """On each of the ranks; changes from sweep to sweep."""


class StepSplit:
    """Splits the tokens of one layer in every step; made once for a placement."""

    def __init__(self, slots: Sequence[int], num_ranks: int, ranks_per_node: int | None = None) -> None:
        """`slots` [S]: the expert of each slot. Without `ranks_per_node` all ranks are one node."""
        self.num_ranks = num_ranks
        self._experts = np.array(slots, dtype=np.intp)
        self._slots_per_rank = len(slots) // num_ranks
        self._ranks_per_node = ranks_per_node or num_ranks
        hosts: dict[int, dict[int, list[int]]] = {}
        for slot, expert in enumerate(self._experts.tolist()):
            hosts.setdefault(expert, {}).setdefault(slot // self._slots_per_rank, []).append(slot)
        self._spread = [
            _Spread(expert, tuple(ranks), tuple(map(tuple, ranks.values())))
            for expert, ranks in sorted(hosts.items())
            if len(ranks) > 1
        ]
        self._alone = [(expert, next(iter(ranks))) for expert, ranks in sorted(hosts.items()) if len(ranks) == 1]
        self._parts = [1.0 / sum(map(len, hosts[expert].values())) for expert in self._experts.tolist()]

    def parts(self, counts: Sequence[float]) -> list[float]:
        """[S]: the part of its expert's tokens that each slot takes, for `counts` [E] of this step.

        An expert without tokens takes equal parts. The parts of an expert sum to 1 up to rounding.
        """
        parts = self._parts.copy()
        for spread, pour in zip(self._spread, self._poured(counts), strict=True):
            if pour.tokens > 0:
                for slots, amount in zip(spread.slots, pour.amounts, strict=True):
                    for slot in slots:
                        parts[slot] = amount / pour.tokens / len(slots)
        return parts

    def shares_of_sources(self, counts_by_source: NDArray[np.integer]) -> NDArray[np.int64]:
        """[R, S]: whole tokens that each source rank sends to each slot, for its own `counts_by_source` [R, E].

        Exact for every source and expert; each slot gets its part of all tokens to at most one. A source sends what
        it can to its own rank, then to its own node, then to others in the order of ranks.
        """
        counts = np.asarray(counts_by_source, dtype=np.int64)
        return self._sharing.of_sources(counts, np.array(self.parts(counts.sum(axis=0).tolist())))

    @cached_property
    def _sharing(self) -> Sharing:
        return Sharing(self._experts, self.num_ranks, self._ranks_per_node)

    def _poured(self, counts: Sequence[float]) -> list[_Pour]:
        """The experts of `_spread` as they are poured at last; at first, evenly."""
        carried = [0.0] * self.num_ranks
        for expert, rank in self._alone:
            carried[rank] += counts[expert]
        bound = max(*carried, sum(counts) / self.num_ranks)
        pours = []
        for spread in self._spread:
            part = counts[spread.expert] / len(spread.ranks)
            pours.append(_Pour(spread.ranks, counts[spread.expert], [part] * len(spread.ranks)))
            for rank in spread.ranks:
                carried[rank] += part
        _level(pours, carried, bound)
        return pours


def best_split(loads: Floats, slots: Indices, num_ranks: int) -> Floats:
    """[L, S]: the part of its expert's tokens that each slot takes so that the hottest rank is as cool as can be.

    For `loads` [L, E] (shares or counts) under the placement `slots` [L, S], within TOLERANCE. Fits
    `Placement.split` and `rank_loads`.
    """
    return split_of(loads, slots, poured_again(loads, slots, num_ranks, slot_loads(loads, slots)))


def split_of(loads: Floats, slots: Indices, carried: Floats) -> Floats:
    """[L, S]: the part of its expert's tokens that each slot takes that carries `carried` [L, S] of them.

    An expert without tokens takes equal parts.
    """
    tokens = np.take_along_axis(loads, slots, axis=1)
    parts = 1.0 / np.take_along_axis(replica_counts(slots, loads.shape[1]), slots, axis=1)
    return np.divide(carried, tokens, out=parts, where=tokens > 0)


def poured_again(loads: Floats, slots: Indices, num_ranks: int, carried: Floats) -> Floats:
    """[L, S]: tokens of each slot under the best split, found from those that the slots carry now, `carried`.

    Layers with twins are split anew: their slots share what their rank takes.
    """
    poured = _poured_apart(loads, slots, num_ranks, carried)
    for layer in np.flatnonzero(twins(slots, num_ranks).any(axis=1)):
        parts = StepSplit(slots[layer].tolist(), num_ranks).parts(loads[layer].tolist())
        poured[layer] = loads[layer, slots[layer]] * np.array(parts)
    return poured


def _poured_apart(loads: Floats, slots: Indices, num_ranks: int, carried: Floats) -> Floats:
    """`poured_again` for layers without twins."""
    counts = np.take_along_axis(replica_counts(slots, loads.shape[1]), slots, axis=1)
    on_ranks = carried.reshape(len(slots), num_ranks, -1).sum(axis=-1)
    alone = np.where(counts == 1, carried, 0.0).reshape(len(slots), num_ranks, -1).sum(axis=-1)
    bounds = np.maximum(alone.max(axis=1), on_ranks.mean(axis=1))
    layer, slot = np.nonzero((counts > 1) & (np.take_along_axis(loads, slots, axis=1) > 0))
    if not slot.size:
        return carried.copy()
    order = np.lexsort((slots[layer, slot], layer))
    layer, slot = layer[order], slot[order]
    begins = np.flatnonzero(np.diff(layer * loads.shape[1] + slots[layer, slot], prepend=-1))
    ranks = (slot // (slots.shape[1] // num_ranks)).tolist()
    amounts = carried[layer, slot].tolist()
    tokens = loads[layer, slots[layer, slot]][begins].tolist()
    pours: list[list[_Pour]] = [[] for _ in slots]
    for number, begin, end, whole in zip(
        layer[begins].tolist(), begins.tolist(), [*begins[1:].tolist(), len(slot)], tokens, strict=True
    ):
        pours[number].append(_Pour(tuple(ranks[begin:end]), whole, amounts[begin:end]))
    for mine, hosts, bound in zip(pours, on_ranks.tolist(), bounds.tolist(), strict=True):
        _level(mine, hosts, bound)
    poured = carried.copy()
    poured[layer, slot] = [amount for mine in pours for pour in mine for amount in pour.amounts]
    return poured


def _level(pours: list[_Pour], carried: list[float], bound: float) -> None:
    """Pour tokens from hot ranks to cold ones, in place, until the hottest rank is close to its bound."""
    pairs = [pour for pour in pours if len(pour.ranks) == 2]
    wider = [pour for pour in pours if len(pour.ranks) > 2]
    for sweep in range(SWEEPS):
        if max(carried) <= bound * (1 + TOLERANCE):
            break
        if sweep % SWEEPS_PER_CHECK == SWEEPS_PER_CHECK - 1:
            bound = max(bound, _bound_of_hottest(pours, carried))
        _sweep_wider(wider, carried)
        _sweep_pairs(pairs, carried)


def _sweep_pairs(pours: list[_Pour], carried: list[float]) -> None:
    """Bring the two ranks of each expert to one load, as far as its tokens go."""
    for (one, other), tokens, amounts in pours:
        amount = amounts[0]
        level = amount + (carried[other] - carried[one]) / 2
        if level < 0:
            level = 0.0
        elif level > tokens:
            level = tokens
        passed = level - amount
        carried[one] += passed
        carried[other] -= passed
        amounts[0] = level
        amounts[1] = tokens - level


def _sweep_wider(pours: list[_Pour], carried: list[float]) -> None:
    """Take each expert's tokens off its ranks and pour them again, up to one level."""
    for ranks, tokens, amounts in pours:
        for place, rank in enumerate(ranks):
            carried[rank] -= amounts[place]
        level, filled = tokens, 0
        for under in sorted([carried[rank] for rank in ranks]):
            if filled and under * filled >= level:
                break
            level += under
            filled += 1
        level /= filled
        for place, rank in enumerate(ranks):
            under = carried[rank]
            if under < level:
                amounts[place] = level - under
                carried[rank] = level
            else:
                amounts[place] = 0.0


def _bound_of_hottest(pours: list[_Pour], carried: list[float]) -> float:
    """Mean load of the ranks to which the hottest rank could pass tokens on: no split brings the hottest below it.

    Sets of ranks are the bits of a number.
    """
    waiting = []
    for ranks, _, amounts in pours:
        giving = taking = 0
        for rank, amount in zip(ranks, amounts, strict=True):
            taking |= 1 << rank
            if amount > 0:
                giving |= 1 << rank
        waiting.append((giving, taking))
    reached, before = 1 << carried.index(max(carried)), 0
    while reached != before:
        before = reached
        still = []
        for pour in waiting:
            if pour[0] & reached:
                reached |= pour[1]
            else:
                still.append(pour)
        waiting = still
    loads = [load for rank, load in enumerate(carried) if reached >> rank & 1]
    return sum(loads) / len(loads)
