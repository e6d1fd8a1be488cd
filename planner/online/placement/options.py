"""Which expert sits in which slot: balanced placements of all MoE layers at once, reached with few moves.

`options` proposes, layer by layer, a path of placements that starts from the one in force and gets more even with
most steps, and, where that path ends far from the bound, one placement made afresh and relabelled so that most experts
stay. `Options.choose` takes for each layer the option with the least (load of the hottest rank + price of a move x
moves). So the price of a move alone says how far to go; price 0 is the best balance that was found.

Modes. Without slots to spare experts only change places. With them, hot experts get replicas, which take equal parts of
the tokens (`TokenSplit.EVEN`) or the parts that are best for the load (`split`): then the search looks for replicas
that couple hot ranks with cold ones, and needs far fewer. With shadow slots only their content changes, which costs no
move. For routing that is limited to nodes see `nodes`. Arrays as in the package's docstring.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.balance import Floats, Indices, hottest_rank_bound, rank_loads, slot_loads, spread_replicas
from planner.online.placement.assign import align_slots, dealt, keep_in_place
from planner.online.placement.couple import coupled
from planner.online.placement.pairs import ROUNDING
from planner.online.placement.refine import cooled, evened, improve
from planner.online.placement.rules import Rules
from planner.online.placement.split import poured_again, split_of
from planner.spec.placement import TokenSplit

FAR = 0.02
"""A path that ends further than this part above the bound is worth a placement made afresh beside it. A choice."""


@dataclass(frozen=True)
class Options:
    """Placements to choose from, for each layer; option 0 is the placement in force."""

    slots: Indices
    """[options, L, S]."""
    hottest: Floats
    """[options, L]: load of the hottest rank, in the unit of the loads, rounded so that equals are equal."""
    moves: Indices
    """[options, L]: experts to copy, counted against option 0."""
    num_ranks: int

    def choose(self, move_price: float) -> Indices:
        """[L, S]: the best option of each layer when a move is worth `move_price` of load on the hottest rank.

        Of equals, the one with fewer moves, then the earlier. An expert that stays on its rank keeps its slot.
        """
        value = self.hottest + move_price * self.moves
        best = np.lexsort((np.broadcast_to(np.arange(len(value))[:, None], value.shape), self.moves, value), axis=0)[0]
        chosen: Indices = self.slots[best, np.arange(value.shape[1])]
        return align_slots(chosen, self.slots[0], self.num_ranks)


def options(
    loads: Floats,
    num_ranks: int,
    current: Indices,
    token_split: TokenSplit = TokenSplit.EVEN,
    shadow_slots_per_rank: int = 0,
) -> Options:
    """Placements of L layers near `current` [L, S] and far from it, for `loads` [L, E] (shares or counts).

    Slots beyond one per expert hold replicas. Two replicas of one expert share a rank only where `current` has it so
    and nothing was gained by a change. Of a rank's slots the last `shadow_slots_per_rank` hold shadow experts; with
    any, the other slots stay as they are.
    """
    rules = Rules.of(current.shape[1], num_ranks, shadow_slots_per_rank)
    counts = spread_replicas(loads, num_ranks, current.shape[1] // num_ranks)
    bound = hottest_rank_bound(loads, num_ranks, current.shape[1] // num_ranks, counts)
    if token_split is TokenSplit.EVEN or current.shape[1] == loads.shape[1]:
        path, hottest = improve(loads, num_ranks, current, bound, rules)
    else:
        carried = poured_again(loads, current, num_ranks, slot_loads(loads, current))
        path, _, hottest = coupled(loads, num_ranks, current, carried, bound, rules)
    far = np.flatnonzero(hottest.min(axis=0) > bound * (1 + FAR))
    if far.size and not shadow_slots_per_rank:
        fresh, peak = path[-1].copy(), hottest[-1].copy()
        fresh[far], peak[far] = _afresh_near(loads[far], num_ranks, current[far], counts[far], token_split)
        path, hottest = np.concatenate([path, fresh[None]]), np.concatenate([hottest, peak[None]])
    mean = loads.mean(axis=1)
    unit = np.where(mean > 0, ROUNDING * mean, 1.0)
    return Options(
        path, np.rint(hottest / unit) * unit, _newcomers(path, current, num_ranks, loads.shape[1], rules), num_ranks
    )


def afresh(loads: Floats, num_ranks: int, slots_per_rank: int, token_split: TokenSplit = TokenSplit.EVEN) -> Indices:
    """[L, S]: the most even placement found for `loads` [L, E], whatever was before.

    Where tokens are split as is best, that evens out what this leaves.
    """
    if token_split is not TokenSplit.EVEN and num_ranks * slots_per_rank > loads.shape[1]:
        return afresh_with_split(loads, num_ranks, slots_per_rank)[0]
    return _with_counts(loads, num_ranks, spread_replicas(loads, num_ranks, slots_per_rank))


def _with_counts(loads: Floats, num_ranks: int, counts: Indices) -> Indices:
    """`afresh` for equal parts, with so many replicas of each expert [L, E]."""
    bound = hottest_rank_bound(loads, num_ranks, int(counts[0].sum()) // num_ranks, counts)
    fresh = evened(loads, num_ranks, dealt(loads, num_ranks, counts), bound)
    path = cooled(loads, num_ranks, fresh, bound, Rules.of(fresh.shape[1], num_ranks))
    coolest: Indices = path.slots[path.hottest.argmin(axis=0), np.arange(len(loads))]
    return coolest


def afresh_with_split(loads: Floats, num_ranks: int, slots_per_rank: int) -> tuple[Indices, Floats]:
    """([L, S], [L, S]): the most even placement found for `loads` [L, E] with split tokens, and the split.

    It is that for equal parts, changed in the layers that the best split leaves far from their bound. In these the
    split may be a little worse than `best_split`.
    """
    return _with_counts_and_split(loads, num_ranks, spread_replicas(loads, num_ranks, slots_per_rank))


def _with_counts_and_split(loads: Floats, num_ranks: int, counts: Indices) -> tuple[Indices, Floats]:
    """`afresh_with_split`, with so many replicas of each expert [L, E]."""
    bound = hottest_rank_bound(loads, num_ranks, int(counts[0].sum()) // num_ranks, counts)
    slots = evened(loads, num_ranks, dealt(loads, num_ranks, counts), bound)
    carried = poured_again(loads, slots, num_ranks, slot_loads(loads, slots))
    hottest = carried.reshape(len(loads), num_ranks, -1).sum(axis=-1).max(axis=1)
    far = np.flatnonzero(hottest > bound * (1 + FAR))
    if far.size:
        rules = Rules.of(slots.shape[1], num_ranks)
        path = coupled(loads[far], num_ranks, slots[far], carried[far], bound[far] * (1 + FAR / 2), rules).best()
        slots[far], carried[far] = path.slots[0], path.carried[0]
    return slots, split_of(loads, slots, carried)


def _afresh_near(
    loads: Floats, num_ranks: int, current: Indices, counts: Indices, token_split: TokenSplit
) -> tuple[Indices, Floats]:
    """(Placement made afresh, relabelled after `current`, load of its hottest rank)."""
    split = None
    if token_split is TokenSplit.EVEN or current.shape[1] == loads.shape[1]:
        fresh = _with_counts(loads, num_ranks, counts)
    else:
        fresh, split = _with_counts_and_split(loads, num_ranks, counts)
    hottest = rank_loads(loads, fresh, num_ranks, split).max(axis=-1)
    return keep_in_place(fresh, current, num_ranks), hottest


def first_placement(num_experts: int, num_ranks: int, slots_per_rank: int) -> Indices:
    """[S]: expert e on rank e // (E / R) as frameworks place them; slots beyond hold experts of the next ranks.

    Even for even load as far as whole replicas can be; needs E <= S and s <= E.
    """
    counts = np.full(num_ranks, num_experts // num_ranks)
    counts[: num_experts % num_ranks] += 1
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rows = [(start + np.arange(slots_per_rank)) % num_experts for start in starts]
    return np.asarray(np.concatenate(rows), dtype=np.intp)


def _newcomers(slots: Indices, current: Indices, num_ranks: int, num_experts: int, rules: Rules) -> Indices:
    """[options, L]: slots whose expert is not on their rank in `current` (shadow slots left out)."""
    option, layer, slot = np.nonzero((slots != current) & ~rules.shadows)
    ranks = np.arange(current.shape[1]) // (current.shape[1] // num_ranks)
    number = np.arange(0, len(current) * num_ranks, num_ranks)[:, None] + ranks
    present = np.zeros((len(current) * num_ranks, num_experts), dtype=bool)
    present[number, current] = True
    new = ~present[number[layer, slot], slots[option, layer, slot]]
    counted = np.bincount((option * len(current) + layer)[new], minlength=len(slots) * len(current))
    return counted.reshape(len(slots), -1)
