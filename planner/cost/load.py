"""From loads and placements to the few numbers that an MoE layer's price needs, above all the busiest rank's load."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from planner.cost.balance import Floats, Indices, rank_loads
from planner.cost.copies import ONE_EACH, Copies, ExpertBytes, equal_copies_s
from planner.cost.numbers import Numbers
from planner.spec.cluster import Level
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
    own_ratio: Floats
    """Expert slots of a rank that are no shadows over its even share of the experts."""
    shadow_ratio: Floats
    """Shadow slots of a rank over the same."""
    placements: tuple[Placement | Seats | None, ...]
    """[loads]."""
    differ: bool
    """Whether MoE layers of one kind differ in any of them."""

    def load(self, moe_layers: Sequence[int]) -> Numbers:
        """Load ratios of some layers: [loads, layers], or [loads] of one for all, or a number if there is one load."""
        if self.differ:
            return self.load_ratio[:, moe_layers]
        load = self.load_ratio[:, moe_layers[0]]
        return float(load[0]) if len(load) == 1 else load

    def copies(
        self, moe_layers: Sequence[int], levels: tuple[Level, ...], rank_stride: int, sent: ExpertBytes
    ) -> Copies:
        """Of the same layers, on devices under these levels, where a device sends so much of an expert."""
        if all(placement is None for placement in self.placements):
            return ONE_EACH
        ratios = (_one_if_same(column[:, moe_layers]) for column in (self.own_ratio, self.shadow_ratio))
        seconds = np.zeros((2, len(self.placements), len(moe_layers)))
        first = {id(placement): number for number, placement in reversed([*enumerate(self.placements)])}
        for number, placement in enumerate(self.placements):
            if placement is None:
                continue
            if first[id(placement)] < number:
                seconds[:, number] = seconds[:, first[id(placement)]]
                continue
            for own, slots, _ in _by_size(placement, moe_layers):
                shadows = placement.shadow_slots_per_rank
                found = equal_copies_s(levels, slots, placement.num_ranks, shadows, rank_stride, sent)
                seconds[:, number, own] = found
        return Copies(*ratios, *seconds)


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
    load, own, shadow = (np.array(column, dtype=np.float64) for column in zip(*found, strict=True))
    differ = any(placement is not None or _num_rows(shares) > 1 for shares, placement in conditions)
    return ExpertLoads(load, own, shadow, tuple(placement for _, placement in conditions), differ)


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
    if placement is None:
        return float(load_ratios(shares, num_ranks, capacity_factor=capacity_factor)[0])
    _check_seats(moe.num_experts, moe_layer, num_ranks, placement)
    [(_, slots, split)] = _by_size(placement, [moe_layer])
    return float(load_ratios(shares, num_ranks, slots, split, capacity_factor)[0])


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
) -> tuple[Floats, Floats, Floats]:
    """(load ratio, own ratio, shadow ratio) of every MoE layer; those of equal sizes are looked at together."""
    _check_rows(len(sizes), shares)
    check_placement(len(sizes), placement)
    load, own, shadow = np.ones(len(sizes)), np.ones(len(sizes)), np.zeros(len(sizes))
    alike: dict[tuple[int, int], list[int]] = {}
    for number, size in enumerate(sizes):
        alike.setdefault(size, []).append(number)
    for (experts, ranks), numbers in alike.items():
        rows = _rows(shares, numbers, experts)
        if placement is None:
            load[numbers] = load_ratios(rows, ranks, capacity_factor=capacity_factor)
            continue
        _check_all_seats(experts, numbers, ranks, placement)
        rows = np.broadcast_to(rows, (len(numbers), experts))
        for some, slots, split in _by_size(placement, numbers):
            here = [numbers[each] for each in some]
            load[here] = load_ratios(rows[some], ranks, slots, split, capacity_factor)
            shadow[here] = placement.shadow_slots_per_rank * ranks / experts
            own[here] = slots.shape[1] / experts - shadow[here]
    return load, own, shadow


def _rows(shares: Any, moe_layers: Sequence[int], num_experts: int) -> Floats:
    """Shares [layers, experts] of some MoE layers, or [1, experts] where they have one for all."""
    if shares is None:
        return np.full((1, num_experts), 1.0 / num_experts)
    rows = shares if len(shares) == 1 else [shares[number] for number in moe_layers]
    wrong = next((len(row) for row in rows if len(row) != num_experts), None)
    if wrong is not None:
        raise InputError.at("workload.expert_shares", f"must have {num_experts} experts, has {wrong}")
    return np.asarray(rows, dtype=np.float64)


def _by_size(
    placement: Placement | Seats, moe_layers: Sequence[int]
) -> Iterator[tuple[list[int], Indices, Floats | None]]:
    """(which of these MoE layers, slots, split) of those with equally many slots, as arrays [layers, slots]."""
    if isinstance(placement, Seats):
        split = None if placement.split is None else placement.split[moe_layers]
        yield [*range(len(moe_layers))], placement.layers[moe_layers], split
        return
    alike: dict[int, list[int]] = {}
    for position, number in enumerate(moe_layers):
        alike.setdefault(len(placement.layers[number]), []).append(position)
    for some in alike.values():
        here = [moe_layers[position] for position in some]
        slots = np.array([placement.layers[number] for number in here], dtype=np.intp)
        split = None if placement.split is None else np.array([placement.split[number] for number in here], dtype=float)
        yield some, slots, split


def _one_if_same(numbers: Floats) -> Numbers:
    """The number, where all are equal."""
    return float(numbers.flat[0]) if (numbers == numbers.flat[0]).all() else numbers


def _check_all_seats(num_experts: int, moe_layers: Sequence[int], num_ranks: int, placement: Placement | Seats) -> None:
    if isinstance(placement, Seats) and placement.num_ranks == num_ranks:
        if (placement.layers[moe_layers].max(axis=1) == num_experts - 1).all():
            return
    for number in moe_layers:
        _check_seats(num_experts, number, num_ranks, placement)


def _check_seats(num_experts: int, moe_layer: int, num_ranks: int, placement: Placement | Seats) -> None:
    if placement.num_ranks != num_ranks:
        raise InputError.at("placement.num_ranks", f"must be the plan's {num_ranks}, is {placement.num_ranks}")
    placed = placement.num_experts(moe_layer)
    if placed != num_experts:
        raise InputError.at(f"placement.layers[{moe_layer}]", f"must place {num_experts} experts, places {placed}")
