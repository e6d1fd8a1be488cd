"""From a workload and a placement to the one number that an MoE layer's price needs: the busiest rank's load."""

from __future__ import annotations

import numpy as np

from planner.cost.balance import rank_loads
from planner.spec.errors import InputError
from planner.spec.model import MoeFeedForward
from planner.spec.placement import Placement
from planner.spec.workload import Workload


def load_ratio(
    moe: MoeFeedForward,
    moe_layer: int,
    num_ranks: int,
    workload: Workload,
    placement: Placement | None = None,
    capacity_factor: float | None = None,
) -> float:
    """Tokens of the busiest expert-parallel rank over the mean of all ranks, in the `moe_layer`-th MoE layer.

    Without a placement, experts stand in order. A capacity factor caps every expert at that multiple of its even
    share: what is dropped is not computed. Raises InputError if workload or placement do not match the layer.
    """
    shares = np.asarray(workload.shares(moe_layer, moe.num_experts))
    if len(shares) != moe.num_experts:
        raise InputError.at("workload.expert_shares", f"must have {moe.num_experts} experts, has {len(shares)}")
    if capacity_factor is not None:
        shares = np.minimum(shares, capacity_factor / moe.num_experts)
    if placement is None:
        loads = shares.reshape(num_ranks, -1).sum(axis=1)
    else:
        split = None if placement.split is None else placement.split[moe_layer]
        loads = rank_loads(shares, _slots(moe, moe_layer, num_ranks, placement), num_ranks, split)
    return float(loads.max() * num_ranks)


def check_workload(num_moe_layers: int, workload: Workload) -> None:
    """One row for all MoE layers, or one for each; raises InputError."""
    rows = len(workload.expert_shares)
    if rows not in (0, 1, num_moe_layers):
        raise InputError.at("workload.expert_shares", f"must have 1 or {num_moe_layers} rows (MoE layers), has {rows}")


def check_placement(num_moe_layers: int, placement: Placement | None) -> None:
    """A row of slots for each MoE layer, no fewer and no more; raises InputError."""
    if placement is not None and len(placement.layers) != num_moe_layers:
        raise InputError.at(
            "placement.layers", f"must have a row for each of {num_moe_layers} MoE layers, has {len(placement.layers)}"
        )


def _slots(moe: MoeFeedForward, moe_layer: int, num_ranks: int, placement: Placement) -> tuple[int, ...]:
    if placement.num_ranks != num_ranks:
        raise InputError.at("placement.num_ranks", f"must be the plan's {num_ranks}, is {placement.num_ranks}")
    if placement.num_experts(moe_layer) != moe.num_experts:
        raise InputError.at(
            f"placement.layers[{moe_layer}]",
            f"must place {moe.num_experts} experts, places {placement.num_experts(moe_layer)}",
        )
    return placement.layers[moe_layer]
