"""Who sends how much to whom when state changes owners, without listing all pairs of devices where they are many.

State is a unit cube of three axes; each axis is cut into equal parts before and after, so that what a device holds is
one cell of a grid. A device receives its new cell less what of it lies in its old one; the other holders of the rest
send it, each in proportion to what it has of it. Sums over the devices of an island are prefix sums over its grid:
time and memory grow with the devices and the cells, not with the pairs.
"""

from __future__ import annotations

from copy import copy
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.busy import Busy, Floats
from planner.cost.holding import Cuts, Devices
from planner.spec.cluster import Level

SMALL_ISLAND = 32
"""Up to this many devices, the pairs inside an island are cheaper to visit than its grid."""
FEW_PAIRS = 1 << 12
"""Up to this many pairs of an old and a new device, listing them is cheaper than their grids."""
NOTHING = 1e-12
"""Relative size below which a difference is the rounding of floats."""


class Traffic(NamedTuple):
    """What devices send and receive inside the islands of one level; each [devices of the cluster]."""

    sent_bytes: Floats
    received_bytes: Floats
    sent_messages: Floats
    received_messages: Floats


class Redistribution:
    """One kind of state that goes over from the devices of one stage to those of another."""

    def __init__(
        self, size_bytes: float, old_stage: tuple[int, int], old: Cuts, new_stage: tuple[int, int], new: Cuts
    ) -> None:
        """The stages: their first device and the one after their last; `size_bytes`: the whole cube."""
        self._bytes, self._pieces = size_bytes, 1.0
        self._old_first, self._old_end = old_stage
        self._new_first, self._new_end = new_stage
        self._old, self._old_parts = _numbers(old, *old_stage), tuple(cut.parts for cut in old)
        self._new, self._new_parts = _numbers(new, *new_stage), tuple(cut.parts for cut in new)
        self._receivers = np.arange(*new_stage)
        self._shared = (
            self._all_pairs() if len(self._receivers) * (self._old_end - self._old_first) <= FEW_PAIRS else None
        )
        """[senders, receivers] what their cells share, another device's only; None: too many pairs to list."""
        own = self._overlap(self._receivers, self._receivers)
        needed = 1 / np.prod(self._new_parts)
        if self._shared is None:
            others = self._at_receivers(_overlaps(self._holders(*old_stage), self._new_parts)) - own
        else:
            others = self._shared.sum(axis=0)
        lacks = (needed - own > NOTHING * needed) & (others > NOTHING * needed)
        self._ratio = np.where(lacks, (needed - own) / np.where(lacks, others, 1.0), 0.0)
        """[receivers] what a holder sends of each part that it shares with the receiver."""
        self._remembered: dict[int, Traffic] = {}
        """By size of island, the traffic of a cube of one byte."""

    def of_size(self, size_bytes: float, pieces: float = 1.0) -> Redistribution:
        """The same cuts for a cube of another size, sent in so many pieces; what is known of one is known of both."""
        other = copy(self)
        other._bytes, other._pieces = size_bytes, pieces
        return other

    @property
    def is_idle(self) -> bool:
        """Whether all devices hold what they need."""
        return not self._ratio.any()

    def add(self, busy: Busy) -> None:
        """Add the seconds of this state."""
        within = [self.inside(level, busy.num_devices) for level in busy.levels]
        amounts = np.diff(np.array(within), axis=0, prepend=0.0)
        for direction, size, messages in ((busy.sending, 0, 2), (busy.receiving, 1, 3)):
            byte_s, message_s = busy.seconds(amounts[:, size], amounts[:, messages])
            direction[:] += byte_s
            direction[0] += message_s

    def pair_bytes(self, senders: Devices, receivers: Devices) -> Floats:
        """[pairs] bytes from each sender to its receiver; devices that are in no stage send and receive nothing."""
        takes = (receivers >= self._new_first) & (receivers < self._new_end) & (senders != receivers)
        ratio = self._ratio[np.where(takes, receivers - self._new_first, 0)]
        return np.where(takes, self._bytes * ratio * self._overlap(senders, receivers), 0.0)

    def inside(self, level: Level, num_devices: int) -> Traffic:
        """Traffic between devices that share an island of this level."""
        unit = self._remembered.get(level.num_devices)
        if unit is None:
            unit = self._remembered[level.num_devices] = self.of_size(1.0)._inside(level, num_devices)
        sent, received, sent_messages, received_messages = unit
        return Traffic(
            sent * self._bytes, received * self._bytes, sent_messages * self._pieces, received_messages * self._pieces
        )

    def _inside(self, level: Level, num_devices: int) -> Traffic:
        traffic = Traffic(*(np.zeros(num_devices) for _ in Traffic._fields))
        if self._shared is not None:
            self._sum_pairs(self._shared, level.num_devices, traffic)
            return traffic
        if level.num_devices <= SMALL_ISLAND:
            self._visit_pairs(level.num_devices, traffic)
            return traffic
        islands = self._receivers // level.num_devices
        for island in range(int(islands[0]), int(islands[-1]) + 1):
            begin, end = island * level.num_devices, (island + 1) * level.num_devices
            self._sum_island(begin, end, traffic)
        self._without_own(traffic)
        return traffic

    def _all_pairs(self) -> Floats:
        senders = np.arange(self._old_first, self._old_end)
        shared: Floats = (senders[:, None] != self._receivers).astype(np.float64)
        for old, parts, new, new_parts in zip(self._old, self._old_parts, self._new, self._new_parts, strict=True):
            if parts * new_parts > 1:
                begin = np.maximum.outer(old * new_parts, new * parts)
                end = np.minimum.outer((old + 1) * new_parts, (new + 1) * parts)
                shared = shared * (np.maximum(end - begin, 0) / (parts * new_parts))
        return shared

    def _sum_pairs(self, shared: Floats, island: int, traffic: Traffic) -> None:
        senders = np.arange(self._old_first, self._old_end)
        together = (senders // island)[:, None] == self._receivers // island
        size = shared * (self._ratio * self._bytes) * together
        messages = size > 0
        for axis, stage, sizes, counts in (
            (1, slice(self._old_first, self._old_end), traffic.sent_bytes, traffic.sent_messages),
            (0, slice(self._new_first, self._new_end), traffic.received_bytes, traffic.received_messages),
        ):
            sizes[stage], counts[stage] = size.sum(axis=axis), messages.sum(axis=axis)

    def _visit_pairs(self, island: int, traffic: Traffic) -> None:
        for senders, receivers in island_pairs(self._receivers, island):
            size = self.pair_bytes(senders, receivers)
            known = (senders >= self._old_first) & (senders < self._old_end)
            for sums, addend in zip(traffic, (size, size, size > 0, size > 0), strict=True):
                where = senders if sums is traffic.sent_bytes or sums is traffic.sent_messages else receivers
                sums[where[known]] += addend[known].astype(np.float64)

    def _sum_island(self, begin: int, end: int, traffic: Traffic) -> None:
        """All pairs of an island, those of a device with itself included."""
        from_, to = max(begin, self._old_first), min(end, self._old_end)
        first, last = max(begin, self._new_first), min(end, self._new_end)
        if from_ >= to:
            return
        holders = self._holders(from_, to)
        inside, senders = slice(first - self._new_first, last - self._new_first), slice(from_, to)
        new = tuple(number[inside] for number in self._new)
        old = tuple(number[from_ - self._old_first : to - self._old_first] for number in self._old)
        ratio = self._ratio[inside]
        wanted, asked = (_grid(new, self._new_parts, weights) for weights in (ratio, ratio > 0))
        traffic.received_bytes[first:last] += self._bytes * ratio * _overlaps(holders, self._new_parts)[new]
        traffic.received_messages[first:last] += (ratio > 0) * _touching(holders, self._new_parts)[new]
        traffic.sent_bytes[senders] += self._bytes * _overlaps(wanted, self._old_parts)[old]
        traffic.sent_messages[senders] += _touching(asked, self._old_parts)[old]

    def _without_own(self, traffic: Traffic) -> None:
        """What a device holds of its own new cell is not sent."""
        shared = self._overlap(self._receivers, self._receivers)
        kept, message = self._bytes * self._ratio * shared, (self._ratio > 0) & (shared > 0)
        for sums, own in zip(traffic, (kept, kept, message, message), strict=True):
            sums[self._new_first : self._new_end] -= own.astype(np.float64)

    def _overlap(self, senders: Devices, receivers: Devices) -> Floats:
        """[pairs] size of what the sender's old cell and the receiver's new one share."""
        known = (senders >= self._old_first) & (senders < self._old_end)
        before = np.where(known, senders - self._old_first, 0)
        after = np.clip(receivers - self._new_first, 0, len(self._receivers) - 1)
        size = known.astype(np.float64)
        for old, parts, new, new_parts in zip(self._old, self._old_parts, self._new, self._new_parts, strict=True):
            begin = np.maximum(old[before] * new_parts, new[after] * parts)
            end = np.minimum((old[before] + 1) * new_parts, (new[after] + 1) * parts)
            size *= np.maximum(end - begin, 0) / (parts * new_parts)
        return size

    def _holders(self, begin: int, end: int) -> Floats:
        """Devices from `begin` to `end` in each cell of the old grid."""
        chosen = slice(begin - self._old_first, end - self._old_first)
        return _grid(tuple(number[chosen] for number in self._old), self._old_parts, np.ones(end - begin))

    def _at_receivers(self, grid: Floats) -> Floats:
        return grid[self._new]


def island_pairs(devices: Devices, island: int) -> list[tuple[Devices, Devices]]:
    """Pairs (another device of the same island, device), so that no device stands twice on one side of a list item.

    In a last island that is smaller some of the others do not exist: their numbers are beyond all devices.
    """
    begin = devices // island * island
    return [(begin + (devices - begin + shift) % island, devices) for shift in range(1, island)]


def _numbers(cuts: Cuts, first: int, end: int) -> tuple[Devices, ...]:
    return tuple(cut.number(end - first) for cut in cuts)


def _grid(numbers: tuple[Devices, ...], parts: tuple[int, ...], weights: NDArray[np.generic]) -> Floats:
    """[parts of each axis]: sums of the weights of the devices in each cell."""
    cells = np.ravel_multi_index(numbers, parts)
    sums = np.bincount(cells, weights=weights.astype(np.float64), minlength=int(np.prod(parts)))
    return np.asarray(sums.reshape(parts), dtype=np.float64)


def _overlaps(grid: Floats, parts: tuple[int, ...]) -> Floats:
    """[parts]: for each cell of another grid, the sum over this grid's cells of weight x shared volume."""
    for axis in _shrinking_first(grid, parts):
        old, new = grid.shape[axis], parts[axis]
        place = np.arange(new + 1) * old
        below, rest = np.divmod(place, new)
        sums = _prefix_sums(grid, axis) / old
        low = sums.take(below, axis)
        high = sums.take(np.minimum(below + 1, old), axis)
        share = (rest / new).reshape([-1 if i == axis else 1 for i in range(grid.ndim)])
        grid = np.diff(low + share * (high - low), axis=axis)
    return grid


def _touching(grid: Floats, parts: tuple[int, ...]) -> Floats:
    """[parts]: for each cell of another grid, the sum of the weights of this grid's cells that share volume with it."""
    for axis in _shrinking_first(grid, parts):
        old, new = grid.shape[axis], parts[axis]
        begin = np.arange(new) * old // new
        end = -(-np.arange(1, new + 1) * old // new)
        sums = _prefix_sums(grid, axis)
        grid = sums.take(end, axis) - sums.take(begin, axis)
    return grid


def _shrinking_first(grid: Floats, parts: tuple[int, ...]) -> list[int]:
    """The axes in the order in which no grid between the two is larger than both."""
    return sorted(range(grid.ndim), key=lambda axis: parts[axis] / grid.shape[axis])


def _prefix_sums(grid: Floats, axis: int) -> Floats:
    zero = np.zeros([1 if i == axis else length for i, length in enumerate(grid.shape)])
    return np.concatenate([zero, grid.cumsum(axis=axis)], axis=axis)
