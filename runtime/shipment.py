"""Tensors that change ranks: any number of parcels in one all-to-all, as bytes, whatever their number formats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from runtime.exchange import Group, is_distributed, num_ranks, rank


class Parcel(NamedTuple):
    """What goes from one rank of a group to another (or itself)."""

    from_rank: int
    to_rank: int
    contents: Sequence[Tensor]
    """On the sender; elsewhere empty."""
    into: Sequence[Tensor]
    """On the receiver, shaped like the contents; elsewhere empty. Overwritten by `unpack` only."""


@dataclass(frozen=True)
class Shipment:
    """What leaves this rank, packed in the order of destinations, and room for what comes, in the order of sources."""

    group: Group | None
    sent: Tensor
    send_counts: list[int]
    received: Tensor
    receive_counts: list[int]
    arrivals: list[Tensor]

    @classmethod
    def pack(cls, parcels: Iterable[Parcel], group: Group | None, device: torch.device) -> Shipment:
        """Copy what is to be sent and allocate for what comes; all ranks list all parcels in the same order."""
        me, ranks = rank(group), num_ranks(group)
        outgoing: list[list[Tensor]] = [[] for _ in range(ranks)]
        incoming: list[list[Tensor]] = [[] for _ in range(ranks)]
        for parcel in parcels:
            if parcel.from_rank == me:
                outgoing[parcel.to_rank] += [_bytes(part, device) for part in parcel.contents]
            if parcel.to_rank == me:
                incoming[parcel.from_rank] += parcel.into
        receive_counts = [sum(map(_size_bytes, source)) for source in incoming]
        return cls(
            group=group,
            sent=torch.cat(
                [torch.empty(0, dtype=torch.uint8, device=device), *(part for to in outgoing for part in to)]
            ),
            send_counts=[sum(part.numel() for part in to) for to in outgoing],
            received=torch.empty(sum(receive_counts), dtype=torch.uint8, device=device),
            receive_counts=receive_counts,
            arrivals=[part for source in incoming for part in source],
        )

    def exchange(self) -> None:
        """Fill `received`. A collective."""
        if is_distributed():
            dist.all_to_all_single(self.received, self.sent, self.receive_counts, self.send_counts, group=self.group)
        else:
            self.received.copy_(self.sent)

    def unpack(self) -> None:
        """Write what came to where it belongs."""
        offset = 0
        for part in self.arrivals:
            # A copy of the piece starts where every number format is aligned.
            piece = self.received[offset : offset + _size_bytes(part)].clone()
            part.copy_(piece.view(part.dtype).view(part.shape))
            offset += piece.numel()


def ship(parcels: Sequence[Parcel], group: Group | None, device: torch.device) -> None:
    """Bring all parcels where they belong, or do nothing if there are none. A collective."""
    if parcels:
        shipment = Shipment.pack(parcels, group, device)
        shipment.exchange()
        shipment.unpack()


def _size_bytes(part: Tensor) -> int:
    return part.numel() * part.element_size()


def _bytes(part: Tensor, device: torch.device) -> Tensor:
    return part.detach().contiguous().reshape(-1).to(device).view(torch.uint8)
