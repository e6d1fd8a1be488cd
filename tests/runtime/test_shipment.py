"""Tensors of any number formats and odd sizes change ranks; what comes is written without a further allocation."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from runtime.launch import launch
from runtime.shipment import Parcel, Shipment

CPU = torch.device("cpu")
RANKS = 3


class Operations(TorchDispatchMode):
    """Names of what was called in torch."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def mixed(from_rank, to_rank):
    """A bias of odd length beside moments, and what else can belong to an expert; no two pairs of ranks send equals."""
    generator = torch.Generator().manual_seed(10 * from_rank + to_rank)
    noise = torch.randn(35, generator=generator)
    return [
        noise[:7].bfloat16(),
        noise[:15].reshape(3, 5),
        noise[:3].to(torch.int8),
        noise[4].double(),
        torch.empty(0, 4),
        noise[:5] > 0,
        noise.reshape(5, 7).t(),
        noise[:9].to(torch.complex128),
        noise[1:2].half(),
    ]


def send_to_all(report):
    me, ranks = (dist.get_rank(), RANKS) if dist.is_initialized() else (0, 1)
    room = {other: [torch.empty_like(part) for part in mixed(other, me)] for other in range(ranks)}
    parcels = [
        Parcel(one, other, mixed(one, other) if one == me else [], room[one] if other == me else [])
        for one in range(ranks)
        for other in range(ranks)
        if (one, other) != (2, 0)
    ]
    shipment = Shipment.pack(parcels, None, CPU)
    shipment.exchange()
    with Operations() as operations:
        shipment.unpack()
    come = [other for other in range(ranks) if (other, me) != (2, 0)]
    assert all(torch.equal(was, is_) for other in come for was, is_ in zip(mixed(other, me), room[other], strict=True))
    return set(operations.names)


def test_parts_of_all_formats_and_odd_sizes_arrive_and_nothing_is_allocated_for_them_on_arrival():
    assert send_to_all(None) == {"aten::copy_"}


def test_they_do_so_between_ranks():
    assert launch(send_to_all, RANKS, timeout_s=60) == [{"aten::copy_"}] * RANKS
