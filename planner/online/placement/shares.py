"""Whole tokens: what each source rank sends to each slot, so that slots get their parts and few tokens travel far.

Only experts with more than one slot need any thought. Deterministic, the same on every rank. Arrays: E experts,
R ranks, S slots (numbered rank by rank), M copies: slots of the C experts that have more than one.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from planner.cost.balance import Floats, Indices

Number = TypeVar("Number", np.int64, np.float64)


class _Runs:
    """Stretches of equal keys, for sums that run within each stretch."""

    def __init__(self, keys: Indices) -> None:
        self.begins = np.flatnonzero(np.diff(keys, prepend=-1))
        self.last = np.append(self.begins[1:], len(keys)) - 1
        self._opens = np.repeat(self.begins, self.last - self.begins + 1)

    def running(self, values: NDArray[Number]) -> NDArray[Number]:
        """Sum of the values of the stretch up to each, that one included."""
        sums = values.cumsum()
        running: NDArray[Number] = sums - (sums - values)[self._opens]
        return running

    def steps(self, sums: NDArray[np.int64]) -> NDArray[np.int64]:
        """The values that run up to `sums`."""
        steps = np.diff(sums, prepend=0)
        steps[self.begins] = sums[self.begins]
        return steps


class _Copies:
    """Slots of the experts that have more than one, expert by expert: M slots, C experts."""

    def __init__(self, experts: Indices, slots_per_rank: int) -> None:
        counts = np.bincount(experts)
        by_expert = np.argsort(experts, kind="stable")
        self.slots = by_expert[counts[experts[by_expert]] > 1]
        """[M]."""
        self.experts = np.flatnonzero(counts > 1)
        """[C]."""
        self.ranks = self.slots // slots_per_rank
        """[M]."""
        self.of_slots = np.repeat(np.arange(len(self.experts)), counts[self.experts])
        """[M]: place of the slot's expert in `experts`."""
        self.runs = _Runs(self.of_slots)


class _Group(NamedTuple):
    """Ranks that exchange tokens before others do: those of a node, all."""

    ranks: int
    runs: _Runs
    """Of copies, by expert and group."""
    inside: NDArray[np.bool_]
    """[R, M]: whether source and slot are of one group."""


class Sharing:
    """Shares out the tokens of one layer; made once for a placement."""

    def __init__(self, experts: Indices, num_ranks: int, ranks_per_node: int) -> None:
        """`experts` [S]: of each slot."""
        self._experts = experts
        self._num_ranks = num_ranks
        self._copies = _Copies(experts, len(experts) // num_ranks)
        self._group_sizes = sorted({ranks_per_node, num_ranks} - {1})

    def of_sources(self, counts: NDArray[np.int64], parts: Floats) -> NDArray[np.int64]:
        """[R, S]: tokens from source to slot, for `counts` [R, E] of the sources and the `parts` [S] of the slots."""
        shares = counts[:, self._experts]
        copies = self._copies
        if not copies.slots.size:
            return shares
        left = counts[:, copies.experts]
        wanted = self._whole(parts[copies.slots], left.sum(axis=0))
        own = self._own(left, wanted)
        wanted = wanted - own
        np.subtract.at(left, (copies.ranks, copies.of_slots), own)
        served = np.zeros((self._num_ranks, len(own)), dtype=np.int64)
        served[copies.ranks, np.arange(len(own))] = own
        for group in self._groups:
            passed = self._passed(left, wanted, group)
            served += passed
            if group.ranks < self._num_ranks:
                wanted = wanted - passed.sum(axis=0)
                left = left - np.add.reduceat(passed, copies.runs.begins, axis=1)
        shares[:, copies.slots] = served
        return shares

    @cached_property
    def _groups(self) -> list[_Group]:
        return [self._group(ranks) for ranks in self._group_sizes]

    def _group(self, ranks: int) -> _Group:
        copies = self._copies
        of_slots, of_sources = copies.ranks // ranks, np.arange(self._num_ranks) // ranks
        return _Group(ranks, _Runs(copies.of_slots * self._num_ranks + of_slots), of_sources[:, None] == of_slots)

    def _whole(self, parts: Floats, totals: NDArray[np.int64]) -> NDArray[np.int64]:
        """[M]: tokens of each copy, whole numbers that sum to the expert's total: its running sums are rounded."""
        runs, of_slots = self._copies.runs, totals[self._copies.of_slots]
        ends = np.minimum(np.rint(runs.running(parts) * of_slots).astype(np.int64), of_slots)
        ends[runs.last] = of_slots[runs.last]
        return runs.steps(ends)

    def _own(self, left: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
        """[M]: what each copy gets from its own rank; twins one after the other."""
        copies = self._copies
        taken = self._of_ranks.running(wanted)
        own: NDArray[np.int64] = np.minimum(left[copies.ranks, copies.of_slots], taken) - (taken - wanted)
        return np.maximum(own, 0)

    @cached_property
    def _of_ranks(self) -> _Runs:
        return _Runs(self._copies.of_slots * self._num_ranks + self._copies.ranks)

    def _passed(self, left: NDArray[np.int64], wanted: NDArray[np.int64], group: _Group) -> NDArray[np.int64]:
        """[R, M]: what sources and copies of the same group of ranks exchange, both in the order of ranks.

        Sources lay their tokens of an expert end to end, and so do slots their wants: where the stretches overlap,
        tokens go from source to slot.
        """
        of_slots = self._copies.of_slots
        given = left.reshape(-1, group.ranks, left.shape[1]).cumsum(axis=1).reshape(left.shape)
        taken = group.runs.running(wanted)
        begins = np.maximum((given - left)[:, of_slots], taken - wanted)
        overlap = np.minimum(given[:, of_slots], taken) - begins
        passed: NDArray[np.int64] = np.maximum(overlap, 0)
        return passed if group.ranks == self._num_ranks else passed * group.inside
