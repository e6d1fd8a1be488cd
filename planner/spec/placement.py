"""Where experts sit, and how one placement becomes another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from math import isclose
from typing import Annotated

from pydantic import Field, model_validator

from planner.spec.value import Count, Index, NonNegative, StrEnum, Value


class TokenSplit(StrEnum):
    """How the tokens of an expert with replicas are shared out among its slots."""

    EVEN = "even"
    WINDOW = "window"
    """By `Placement.split`, which is decided with the placement."""
    STEP = "step"
    """Made anew in every step from the counts of that very step, as evenly as the slots allow."""


class Placement(Value):
    """For each MoE layer, the logical expert in each physical slot; slots are numbered rank by rank.

    Every rank has the same number of slots; an expert that stands in several slots has replicas. Of each rank's slots
    the last `shadow_slots_per_rank` hold shadow experts: temporary copies, whose weights come in every step from a slot
    that is none, and whose gradients go back there.
    """

    layers: Annotated[
        tuple[Annotated[tuple[Index, ...], Field(fail_fast=True)], ...], Field(min_length=1, fail_fast=True)
    ]
    num_ranks: Count
    shadow_slots_per_rank: Index = 0
    split: (
        Annotated[tuple[Annotated[tuple[NonNegative, ...], Field(fail_fast=True)], ...], Field(fail_fast=True)] | None
    ) = None
    """The part of its expert's tokens that each slot takes, shaped like `layers`; None: replicas take equal parts."""

    @model_validator(mode="after")
    def _complete(self) -> Placement:
        for number, slots in enumerate(self.layers):
            if not slots or len(slots) % self.num_ranks:
                raise ValueError(
                    f"layers[{number}]: {len(slots)} slots cannot be shared evenly by {self.num_ranks} ranks"
                )
            experts = set(slots)
            if len(experts) != max(slots) + 1:
                missing = next(expert for expert in count() if expert not in experts)
                raise ValueError(f"layers[{number}]: expert {missing} stands in no slot")
        return self

    @model_validator(mode="after")
    def _shadows_have_owners(self) -> Placement:
        for number, slots in enumerate(self.layers if self.shadow_slots_per_rank else ()):
            own = self.slots_per_rank(number) - self.shadow_slots_per_rank
            owned = {expert for slot, expert in enumerate(slots) if slot % self.slots_per_rank(number) < own}
            if lacking := set(slots) - owned:
                raise ValueError(f"layers[{number}]: expert {min(lacking)} stands in shadow slots only")
        return self

    @model_validator(mode="after")
    def _split_is_whole(self) -> Placement:
        if self.split is None:
            return self
        if [len(row) for row in self.split] != [len(row) for row in self.layers]:
            raise ValueError("split: must have one part for each slot of each layer")
        for number, (slots, parts) in enumerate(zip(self.layers, self.split, strict=True)):
            sums = [0.0] * self.num_experts(number)
            for expert, part in zip(slots, parts, strict=True):
                sums[expert] += part
            for expert, whole in enumerate(sums):
                if not isclose(whole, 1.0, abs_tol=1e-6):
                    raise ValueError(f"split[{number}]: parts of expert {expert} must sum to 1, not {whole:.6g}")
        return self

    @classmethod
    def contiguous(cls, experts_per_layer: Sequence[int], num_ranks: int) -> Placement:
        """Expert e of E on rank e // (E / num_ranks), as frameworks place them by default."""
        return cls(layers=tuple(tuple(range(experts)) for experts in experts_per_layer), num_ranks=num_ranks)

    def num_experts(self, layer: int) -> int:
        """Logical experts of a layer."""
        return max(self.layers[layer]) + 1

    def slots_per_rank(self, layer: int) -> int:
        """Physical slots of each rank."""
        return len(self.layers[layer]) // self.num_ranks

    def is_shadow(self, layer: int, slot: int) -> bool:
        """Whether a slot holds a shadow expert."""
        per_rank = self.slots_per_rank(layer)
        return slot % per_rank >= per_rank - self.shadow_slots_per_rank


class Move(Value):
    """Copy one expert's weights and optimizer state from a rank that has it into a slot of another."""

    layer: Index
    expert: Index
    from_rank: Index
    to_rank: Index
    to_slot: Index
