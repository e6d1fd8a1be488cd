"""Where experts sit, and how one placement becomes another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Annotated

from pydantic import Field, model_validator

from planner.spec.value import Count, Index, Value


class Placement(Value):
    """For each MoE layer, the logical expert in each physical slot; slots are numbered rank by rank.

    Every rank has the same number of slots; an expert that stands in several slots has replicas.
    """

    layers: Annotated[tuple[tuple[Index, ...], ...], Field(min_length=1)]
    num_ranks: Count

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


class Move(Value):
    """Copy one expert's weights and optimizer state from a rank that has it into a slot of another."""

    layer: Index
    expert: Index
    from_rank: Index
    to_rank: Index
    to_slot: Index
