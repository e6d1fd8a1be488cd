"""Which experts are copied to turn one placement into another, as arrays: thousands of them cost no objects."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from planner.cost.balance import Indices
from planner.cost.migration import Copied
from planner.online.placement.shadows import lasting_slots
from planner.spec.placement import Move


class Copies(NamedTuple):
    """One copy each; all [copies], layer by layer and in the order of slots."""

    layer: Indices
    expert: Indices
    from_rank: Indices
    to_rank: Indices
    to_slot: Indices

    @property
    def copied(self) -> Copied:
        """What their price depends on."""
        return Copied(self.layer, self.from_rank, self.to_rank)

    def moves(self) -> tuple[Move, ...]:
        """The same as values."""
        columns = (column.tolist() for column in self)
        # A call of the class itself checks the same, and takes twice as long: thousands are made at a time.
        move = Move.__pydantic_validator__.validate_python
        return tuple(
            [
                move({"layer": layer, "expert": expert, "from_rank": source, "to_rank": rank, "to_slot": slot})
                for layer, expert, source, rank, slot in zip(*columns, strict=True)
            ]
        )


def copies_between(current: Indices, target: Indices, num_ranks: int, shadows_per_rank: int = 0) -> Copies:
    """The copies that turn slots `current` into `target` (both [L, S]), from the nearest rank that has the expert.

    Experts that stay on a rank must keep their slots there, as in all that `Options.choose` returns. Nearest is by rank
    number (near ranks have near numbers); of two at equal distance the lower. What goes into shadow slots, the last of
    each rank, is not copied here but in every step, and what comes out of one has no optimizer state to give.
    """
    each = target.shape[1] // num_ranks
    lasting = np.flatnonzero(np.arange(target.shape[1]) % each < each - shadows_per_rank)
    current, target = (lasting_slots(slots, num_ranks, shadows_per_rank) for slots in (current, target))
    layers = np.arange(len(current))[:, None]
    experts = int(max(current.max(), target.max())) + 1
    present = np.zeros((len(current), num_ranks, experts), dtype=bool)
    present[layers, np.arange(current.shape[1]) // (current.shape[1] // num_ranks), current] = True
    ranks = np.arange(target.shape[1]) // (target.shape[1] // num_ranks)
    layer, slot = np.nonzero(~present[layers, ranks, target])
    expert, to_rank = target[layer, slot], ranks[slot]
    distance = np.abs(np.arange(num_ranks) - to_rank[:, None])
    source = np.where(present[layer, :, expert], distance, num_ranks).argmin(axis=1)
    return Copies(layer, expert, source, to_rank, lasting[slot])
