"""From loads and placements to the few numbers that an MoE layer's price needs, above all the busiest rank's load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from planner.cost.balance import Floats, Indices, rank_loads
from planner.cost.numbers import Numbers
from planner.spec.errors import InputError
from planner.spec.model import MoeFeedForward
from planner.spec.placement import Placement
from planner.spec.workload import Workload


class Seats(NamedTuple):
    """A placement as arrays, for those who look at many; every MoE layer has as many slots."""

    layers: Indices
    """[MoE layers, slots], like `Placement.layers`."""
    num_ranks: int
    split: Floats | None = None
    """[MoE layers, slots], like `Placement.split`."""
    shadow_slots_per_rank: int = 0

    def num_experts(self, layer: int) -> int:
        """Logical experts of a layer."""
        return int(self.layers[layer].max()) + 1


class ExpertLoads(NamedTuple):
    """What the price of MoE layers depends on besides plan and recipe: arrays [loads, MoE layers]."""

    load_ratio: Floats
    """Tokens of the busiest expert-parallel rank over the mean of all ranks."""
    copies_ratio: Floats
    """Expert slots of a rank over its even share of the experts."""
    differ: bool
    """Whether MoE layers of one kind differ in any of them."""

    def of(self, moe_layers: Sequence[int]) -> tuple[Numbers, Numbers]:
        """Both ratios of some layers: arrays [loads, layers], or [loads] of one for all, or numbers if there is one."""
        of_layers = moe_layers if self.differ else moe_layers[0]
        load, copies = (column[:, of_layers] for column in (self.load_ratio, self.copies_ratio))
        same = (copies == copies.flat[0]).all()
        return float(load[0]) if load.shape == (1,) else load, float(copies.flat[0]) if same else copies


def expert_loads(
    sizes: Sequence[tuple[int, int]],
    conditions: Sequence[tuple[ArrayLike | None, Placement | Seats | None]],
    capacity_factor: float | None,
) -> ExpertLoads:
    """What pairs of shares and placement make of MoE layers; `sizes`: (experts, expert-parallel ranks) of each.

    Shares are rows by MoE layer, or one for all of them; None: balanced. Placement None: experts in order. Raises
    InputError if any does not match.
    """
    found = [_ratios(sizes, shares, placement, capacity_factor) for shares, placement in conditions]
    load, copies = (np.array(column, dtype=np.float64) for column in zip(*found, strict=True))
    differ = any(placement is not None or _num_rows(shares) > 1 for shares, placement in conditions)
    return ExpertLoads(load, copies, differ)


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
    shares = _rows(workload.expert_shares or None, [moe_layer], moe.num_experts)
    if placement is not None:
        _check_seats(moe.num_experts, moe_layer, num_ranks, placement)
    return float(load_ratios(shares, num_ranks, *_seats(placement, [moe_layer]), capacity_factor)[0])


def load_ratios(
    shares: ArrayLike,
    num_ranks: int,
    slots: ArrayLike | None = None,
    split: ArrayLike | None = None,
    capacity_factor: float | None = None,
) -> Floats:
    """The same for shares [..., experts] and slots [..., slots] (None: experts in order): [...]."""
    served = np.asarray(shares, dtype=np.float64)
    if capacity_factor is not None:
        served = np.minimum(served, capacity_factor / served.shape[-1])
    if slots is None:
        loads = served.reshape(*served.shape[:-1], num_ranks, -1).sum(axis=-1)
    else:
        loads = rank_loads(served, slots, num_ranks, split)
    return np.asarray(loads.max(axis=-1) * num_ranks)


def check_workload(num_moe_layers: int, workload: Workload) -> None:
    """One row for all MoE layers, or one for each; raises InputError."""
    _check_rows(num_moe_layers, workload.expert_shares or None)


def check_placement(num_moe_layers: int, placement: Placement | Seats | None) -> None:
    """A row of slots for each MoE layer, no fewer and no more; raises InputError."""
    if placement is not None and len(placement.layers) != num_moe_layers:
        raise InputError.at(
            "placement.layers", f"must have a row for each of {num_moe_layers} MoE layers, has {len(placement.layers)}"
        )


def _num_rows(shares: Any) -> int:
    return 0 if shares is None else len(shares)


def _check_rows(num_moe_layers: int, shares: Any) -> None:
    rows = _num_rows(shares)
    if rows not in (0, 1, num_moe_layers):
        raise InputError.at("workload.expert_shares", f"must have 1 or {num_moe_layers} rows (MoE layers), has {rows}")


def _ratios(
    sizes: Sequence[tuple[int, int]],
    shares: Any,
    placement: Placement | Seats | None,
    capacity_factor: float | None,
) -> tuple[Floats, Floats]:
    """(load ratio, copies ratio) of every MoE layer; those of equal sizes are looked at together."""
    _check_rows(len(sizes), shares)
    check_placement(len(sizes), placement)
    load, copies = np.ones(len(sizes)), np.ones(len(sizes))
    alike: dict[tuple[int, int, int], list[int]] = {}
    for number, (experts, ranks) in enumerate(sizes):
        num_slots = experts
        if placement is not None:
            _check_seats(experts, number, ranks, placement)
            num_slots = len(placement.layers[number])
        alike.setdefault((experts, ranks, num_slots), []).append(number)
    for (experts, ranks, num_slots), numbers in alike.items():
        rows = _rows(shares, numbers, experts)
        if placement is not None:
            rows = np.broadcast_to(rows, (len(numbers), experts))
        load[numbers] = load_ratios(rows, ranks, *_seats(placement, numbers), capacity_factor)
        copies[numbers] = num_slots / experts
    return load, copies


def _rows(shares: Any, moe_layers: Sequence[int], num_experts: int) -> Floats:
    """Shares [layers, experts] of some MoE layers, or [1, experts] where they have one for all."""
    if shares is None:
        return np.full((1, num_experts), 1.0 / num_experts)
    rows = shares if len(shares) == 1 else [shares[number] for number in moe_layers]
    wrong = next((len(row) for row in rows if len(row) != num_experts), None)
    if wrong is not None:
        raise InputError.at("workload.expert_shares", f"must have {num_experts} experts, has {wrong}")
    return np.asarray(rows, dtype=np.float64)


def _seats(placement: Placement | Seats | None, moe_layers: Sequence[int]) -> tuple[Indices | None, Floats | None]:
    """(slots, split) of some MoE layers with as many slots: [layers, slots]; None where there are none."""
    if placement is None:
        return None, None
    slots = np.array([placement.layers[number] for number in moe_layers], dtype=np.intp)
    if placement.split is None:
        return slots, None
    return slots, np.array([placement.split[number] for number in moe_layers], dtype=np.float64)


def _check_seats(num_experts: int, moe_layer: int, num_ranks: int, placement: Placement | Seats) -> None:
    if placement.num_ranks != num_ranks:
        raise InputError.at("placement.num_ranks", f"must be the plan's {num_ranks}, is {placement.num_ranks}")
    placed = placement.num_experts(moe_layer)
    if placed != num_experts:
        raise InputError.at(f"placement.layers[{moe_layer}]", f"must place {num_experts} experts, places {placed}")
