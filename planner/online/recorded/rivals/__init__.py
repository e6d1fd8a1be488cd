"""Rules of others for placing experts, re-made from what they published, to be replayed beside our own policy.

Each takes the loads of the window that has just ended and gives the slots from now on; `fastermoe`, which decides
within a step, those of the step itself. What a move costs is no part of these rules; the replay charges it, for all
alike.
"""

from planner.online.recorded.rivals.eplb import balanced_replicas
from planner.online.recorded.rivals.fastermoe import ShadowCosts, on_all_ranks, shadowed_experts
from planner.online.recorded.rivals.smartmoe import greedy_exchange

__all__ = ["ShadowCosts", "balanced_replicas", "greedy_exchange", "on_all_ranks", "shadowed_experts"]
