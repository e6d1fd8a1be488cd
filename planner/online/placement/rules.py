"""Which slots of a placement may change, and how. Arrays: S slots (numbered rank by rank)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Rules:
    """What a search may do to slots: flags are [S]."""

    swaps: Flags
    """What stands in them may change places with another such slot."""
    replaces: Flags
    """They may get another expert's replica, if what stands in them stands elsewhere too."""
    shadows: Flags
    """They hold shadow experts, whose copies are no moves."""
    num_ranks: int

    @classmethod
    def of(cls, num_slots: int, num_ranks: int, shadow_slots_per_rank: int = 0) -> Rules:
        """All slots may change; with shadow slots, the last of each rank, only these, by new replicas."""
        each = num_slots // num_ranks
        shadows = np.arange(num_slots) % each >= each - shadow_slots_per_rank
        if shadow_slots_per_rank:
            return cls(np.zeros(num_slots, dtype=bool), shadows, shadows, num_ranks)
        anything = np.ones(num_slots, dtype=bool)
        return cls(anything, anything, shadows, num_ranks)
