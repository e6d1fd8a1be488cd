"""Which expert stands in each physical slot of one layer, and which of its slots computes which token.

Slots are numbered rank by rank; of each rank's slots the last few may be shadow slots. Knows no weights and sends
nothing but counts of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from planner.cost.balance import Floats
from planner.online.placement.shadows import first_slots
from planner.online.placement.split import StepSplit
from planner.spec.errors import InputError
from planner.spec.placement import Placement, TokenSplit
from runtime.topology import Counts


@dataclass(frozen=True)
class SlotMap:
    """The slots of a layer; raises InputError where they cannot be."""

    experts: tuple[int, ...]
    """The logical expert in each slot."""
    num_experts: int
    num_ranks: int
    shadows_per_rank: int = 0
    split: tuple[float, ...] | None = None
    """The part of its expert's tokens that each slot takes; None: equal parts."""

    def __post_init__(self) -> None:
        if len(self.experts) % self.num_ranks:
            raise InputError.at("slots", f"{len(self.experts)} slots cannot be shared evenly by {self.num_ranks} ranks")
        if set(self.experts) != set(range(self.num_experts)):
            raise InputError.at("slots", f"each of the experts 0 … {self.num_experts - 1} must stand in some slot")
        if [] in self.holders:
            raise InputError.at("slots", f"expert {self.holders.index([])} stands in shadow slots only")

    @classmethod
    def first(cls, num_experts: int, num_ranks: int, extra_per_rank: int, shadows_per_rank: int) -> SlotMap:
        """Expert e on rank e // (experts / ranks), in extra slots the experts of the next ranks, shadow slots idle."""
        lasting = min(num_experts, -(-num_experts // num_ranks) + extra_per_rank)
        slots = first_slots(num_experts, num_ranks, lasting, shadows_per_rank)
        return cls(tuple(slots.tolist()), num_experts, num_ranks, shadows_per_rank)

    @property
    def per_rank(self) -> int:
        """Slots of each rank."""
        return len(self.experts) // self.num_ranks

    @property
    def lasting_per_rank(self) -> int:
        """Slots of each rank that are no shadow slots: their experts have optimizer state."""
        return self.per_rank - self.shadows_per_rank

    @cached_property
    def holders(self) -> list[list[int]]:
        """[experts]: the lasting slots (those that are no shadow slots) of each expert, ascending."""
        found: list[list[int]] = [[] for _ in range(self.num_experts)]
        for slot, expert in enumerate(self.experts):
            if not self.is_shadow(slot):
                found[expert].append(slot)
        return found

    @property
    def has_replicas(self) -> bool:
        """Whether some expert stands in more than one slot."""
        return len(self.experts) > self.num_experts

    def rank_of(self, slot: int) -> int:
        """The rank that has the slot."""
        return slot // self.per_rank

    def is_shadow(self, slot: int) -> bool:
        """Whether the slot is for a shadow expert."""
        return slot % self.per_rank >= self.lasting_per_rank

    def nearest(self, expert: int, to_rank: int) -> int:
        """The lasting slot from which an expert comes to a rank: the nearest by rank number, the lower of equals.

        The rule of `copies_between` in planner/online/placement/copies.py, for one expert.
        """
        return min(self.holders[expert], key=lambda slot: (abs(self.rank_of(slot) - to_rank), slot))

    def parts(self, equally: bool = False) -> tuple[float, ...]:
        """[slots]: the part of its expert's tokens that each slot takes; `equally` whatever the split says."""
        if self.split is not None and not equally:
            return self.split
        replicas = np.bincount(self.experts)
        return tuple(1.0 / int(replicas[expert]) for expert in self.experts)


class PartSplit:
    """Shares out tokens by fixed parts."""

    def __init__(self, slots: SlotMap, parts: Sequence[float]) -> None:
        """`parts` [S]: of its expert's tokens that each slot takes."""
        experts = np.array(slots.experts)
        self._by_expert = experts.argsort(kind="stable")
        self._experts = experts[self._by_expert]
        self._is_first = np.diff(self._experts, prepend=-1) != 0
        self._upper = _upper_ends(slots, parts)
        self._phases = (np.arange(slots.num_ranks)[:, None] + 0.5) / slots.num_ranks

    def shares_of_sources(self, counts_by_source: Counts) -> Counts:
        """[R, S]: whole tokens that each source rank sends to each slot, for its own `counts_by_source` [R, E].

        A source's tokens of an expert are cut at floor(sum of parts so far · tokens + phase). Phases are spread evenly
        over the ranks, so that their roundings cancel out: two ranks with one token each use both of two slots.
        """
        tokens = counts_by_source[:, self._experts]
        ends = np.floor(self._upper * tokens + self._phases).astype(np.int64)
        shares = np.empty_like(ends)
        shares[:, self._by_expert] = ends - np.where(self._is_first, 0, np.roll(ends, 1, axis=1))
        return shares


def token_shares(slots: SlotMap, token_split: TokenSplit, ranks_per_node: int | None) -> Callable[[Counts], Counts]:
    """How ranks share out their tokens: counts [R, E] by source and expert → [R, S] by source and slot.

    The same on all ranks; made once for a placement. `ranks_per_node` None: nodes do not matter.
    """
    if not slots.has_replicas:
        return lambda counts: counts[:, list(slots.experts)]
    if token_split is TokenSplit.STEP:
        return StepSplit(slots.experts, slots.num_ranks, ranks_per_node).shares_of_sources
    return PartSplit(slots, slots.parts(equally=token_split is TokenSplit.EVEN)).shares_of_sources


def _upper_ends(slots: SlotMap, parts: Sequence[float]) -> Floats:
    """In the order of experts, then slots: the sums of an expert's parts up to each slot; exactly 1 at the last."""
    of_expert: list[list[float]] = [[] for _ in range(slots.num_experts)]
    for expert, part in zip(slots.experts, parts, strict=True):
        of_expert[expert].append(part)
    return np.array([end for mine in of_expert for end in [*(min(end, 1.0) for end in accumulate(mine[:-1])), 1.0]])


def as_slot_maps(placement: Placement, num_experts: Sequence[int]) -> list[SlotMap]:
    """A placement, layer by layer; raises InputError that names the layer."""
    maps = []
    for number, (slots, experts) in enumerate(zip(placement.layers, num_experts, strict=True)):
        split = None if placement.split is None else placement.split[number]
        try:
            maps.append(SlotMap(slots, experts, placement.num_ranks, placement.shadow_slots_per_rank, split))
        except InputError as error:
            raise error.under(f"placement.layers[{number}]") from None
    return maps
