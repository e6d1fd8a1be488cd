"""Tensors that change ranks: any number of parcels in one all-to-all, as bytes, whatever their number formats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from runtime.exchange import Group, is_distributed, num_ranks, rank

ALIGNMENT_BYTES = 16
"""Of each part in a buffer: the size of the largest number format (complex128), so each can be read where it lies."""


class Parcel(NamedTuple):
    """What goes from one rank of a group to another (or itself)."""

    from_rank: int
    to_rank: int
    contents: Sequence[Tensor]
    """On the sender; elsewhere empty."""
    into: Sequence[Tensor]
    """On the receiver, shaped like the contents; elsewhere empty. Overwritten by `unpack` only."""


class Stowed(NamedTuple):
    """A tensor beside its piece of a buffer, in the same number format and shape."""

    part: Tensor
    piece: Tensor


@dataclass(frozen=True)
class Shipment:
    """What leaves this rank, packed in the order of destinations, and room for what comes, in the order of sources."""

    group: Group | None
    sent: Tensor
    send_counts: list[int]
    received: Tensor
    receive_counts: list[int]
    arrivals: list[Stowed]

    @classmethod
    def pack(cls, parcels: Iterable[Parcel], group: Group | None, device: torch.device) -> Shipment:
        """Copy what is to be sent and allocate for what comes; all ranks list all parcels in the same order."""
        me, ranks = rank(group), num_ranks(group)
        outgoing: list[list[Tensor]] = [[] for _ in range(ranks)]
        incoming: list[list[Tensor]] = [[] for _ in range(ranks)]
        for parcel in parcels:
            if parcel.from_rank == me:
                outgoing[parcel.to_rank] += [part.detach() for part in parcel.contents]
            if parcel.to_rank == me:
                incoming[parcel.from_rank] += parcel.into
        send_counts, receive_counts = ([sum(map(_room_bytes, parts)) for parts in way] for way in (outgoing, incoming))
        sent, received = (
            torch.empty(sum(counts), dtype=torch.uint8, device=device) for counts in (send_counts, receive_counts)
        )
        for part, piece in _pieces(sent, outgoing):
            piece.copy_(part)
        return cls(group, sent, send_counts, received, receive_counts, list(_pieces(received, incoming)))

    def exchange(self) -> None:
        """Fill `received`. A collective."""
        if is_distributed():
            dist.all_to_all_single(self.received, self.sent, self.receive_counts, self.send_counts, group=self.group)
        else:
            self.received.copy_(self.sent)

    def unpack(self) -> None:
        """Write what came to where it belongs. Allocates nothing: ranks that have agreed must not fail any more."""
        for part, piece in self.arrivals:
            part.copy_(piece)


def ship(parcels: Sequence[Parcel], group: Group | None, device: torch.device) -> None:
    """Bring all parcels where they belong, or do nothing if there are none. A collective."""
    if parcels:
        shipment = Shipment.pack(parcels, group, device)
        shipment.exchange()
        shipment.unpack()


def _pieces(buffer: Tensor, parts_by_rank: Iterable[Iterable[Tensor]]) -> Iterator[Stowed]:
    """Each part with its place in the buffer [bytes], seen in the part's number format and shape."""
    offset = 0
    for part in chain.from_iterable(parts_by_rank):
        size_bytes = part.numel() * part.element_size()
        yield Stowed(part, buffer[offset : offset + size_bytes].view(part.dtype).view(part.shape))
        offset += _room_bytes(part)


def _room_bytes(part: Tensor) -> int:
    """What a part takes in a buffer: whole units of ALIGNMENT_BYTES, so that the next one is aligned too."""
    return -(-part.numel() * part.element_size() // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
