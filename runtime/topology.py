"""How rows get from rank to rank: straight to each, or within nodes first and across nodes then.

Knows neither experts nor gradients. Straight, each rank sends R - 1 messages, most of them over the network. Of two
levels, ranks of a node first gather on the rank with the target's number in its node all that goes to that number
anywhere; then ranks of equal number exchange across nodes: fewer and larger messages on the network, and all bytes
twice inside the node. What arrives is the same to the bit, in the same order.
Source: Tutel, arXiv 2206.03382 (2DH all-to-all); HetuMoE, arXiv 2203.14685 (hierarchical all-to-all).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from planner.spec.errors import InputError
from runtime.exchange import Group, num_ranks, rank
from runtime.upload import uploaded

Counts = NDArray[np.int64]
"""Whole numbers on the host; [R, R]: rows from each rank of a group to each."""


@dataclass(frozen=True)
class Topology:
    """A group of ranks, and its nodes where those matter: consecutive ranks, equally many in each."""

    group: Group | None = None
    within: Group | None = None
    """The ranks of this rank's node; None: nodes do not matter."""
    across: Group | None = None
    """The ranks that have this rank's number in their nodes."""

    @classmethod
    def of_nodes(cls, group: Group | None, ranks_per_node: int) -> Topology:
        """Two levels; all ranks of the group must call this, in the same order as they make other groups.

        With one node, or one rank per node, there is one level. Raises InputError.
        """
        ranks = num_ranks(group)
        if ranks_per_node < 1 or ranks % ranks_per_node:
            raise InputError.at("ranks_per_node", f"must divide the group's {ranks} ranks, got {ranks_per_node}")
        if ranks_per_node in (1, ranks):
            return cls(group)
        members = dist.get_process_group_ranks(group)
        node, number = divmod(rank(group), ranks_per_node)
        first = node * ranks_per_node
        within = dist.new_group(members[first : first + ranks_per_node], use_local_synchronization=True)
        across = dist.new_group(members[number::ranks_per_node], use_local_synchronization=True)
        return cls(group, within, across)

    @property
    def num_ranks(self) -> int:
        """Ranks of the group."""
        return num_ranks(self.group)

    @property
    def ranks_per_node(self) -> int | None:
        """None: nodes do not matter."""
        return None if self.within is None else num_ranks(self.within)

    @property
    def rank(self) -> int:
        """This process's number in the group."""
        return rank(self.group)

    def exchange(self, rows: Tensor, counts: Counts) -> Tensor:
        """Rows [counts[me].sum(), …] by target rank → rows [counts[:, me].sum(), …] by source rank.

        `counts` [R, R] must be the same on all ranks.
        """
        received, finish = self._start(rows, counts)
        finish()
        return received

    def begin(self, rows: Tensor, counts: Counts) -> tuple[Tensor, Callable[[], None]]:
        """As `exchange`, but rows are on their way when it returns: read what it returns after calling the second.

        On a GPU the host waits for nothing; the stream that is current at the second call waits for the rows.
        """
        if not rows.is_cuda:
            return self._start(rows, counts)
        side = _side_stream(rows.device)
        side.wait_stream(torch.cuda.current_stream(rows.device))
        with torch.cuda.stream(side):
            received = self.exchange(rows, counts)
            arrived = side.record_event()
        rows.record_stream(side)

        def finish() -> None:
            stream = torch.cuda.current_stream(received.device)
            stream.wait_event(arrived)
            received.record_stream(stream)

        return received, finish

    def _start(self, rows: Tensor, counts: Counts) -> tuple[Tensor, Callable[[], None]]:
        if self.within is None or self.across is None:
            return _send(rows.contiguous(), counts[self.rank], counts[:, self.rank], self.group)
        per_node = num_ranks(self.within)
        node, number = divmod(self.rank, per_node)
        # [node and number of the source, node and number of the target]
        cube = counts.reshape(-1, per_node, len(counts) // per_node, per_node)
        by_number = rows.index_select(0, swapped(cube[node, number], rows.device))
        gathered, arrive = _send(by_number, cube[node, number].sum(0), cube[node, :, :, number].sum(1), self.within)
        received = rows.new_empty((int(cube[:, :, node, number].sum()), *rows.shape[1:]))

        def finish() -> None:
            arrive()
            by_node = gathered.index_select(0, swapped(cube[node, :, :, number], rows.device))
            sent, due = cube[node, :, :, number].sum(0), cube[:, :, node, number].sum(1)
            dist.all_to_all_single(received, by_node, due.tolist(), sent.tolist(), group=self.across)

        return received, finish


def swapped(sizes: Counts, device: torch.device) -> Tensor:
    """For pieces of `sizes` [A, B] rows that lie in the order (a, b): the index that puts them in the order (b, a)."""
    begins = (sizes.ravel().cumsum() - sizes.ravel()).reshape(sizes.shape).T.ravel()
    lengths = sizes.T.ravel()
    shifts = begins - (lengths.cumsum() - lengths)
    table = uploaded(np.stack([shifts, lengths]), device)
    total = int(lengths.sum())
    return torch.arange(total, device=device) + table[0].repeat_interleave(table[1], output_size=total)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Where a GPU sends while it computes: one for all layers, as memory freed in a stream is free for it alone."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _send(rows: Tensor, sent: Counts, due: Counts, group: Group | None) -> tuple[Tensor, Callable[[], None]]:
    received = rows.new_empty((int(due.sum()), *rows.shape[1:]))
    work = dist.all_to_all_single(received, rows, due.tolist(), sent.tolist(), group=group, async_op=True)

    def finish() -> None:
        work.wait()

    return received, finish
